"""Fixed-step schemes: one step of dx = slope(x, u) dt + kick, as pure functions.

A scheme evaluates the whole right-hand side, coupling and stimulus included, at each of its
stages; a stimulus frozen over the step, or added after it, would make every scheme a
first-order one. `drive` holds the input at the start, the middle and the end of the step.

| scheme | order, no noise | noise (additive: strong order 1) |
| --- | --- | --- |
| euler | 1 | Euler-Maruyama |
| heun | 2 | the kick enters predictor and corrector |
| rk4 | 4 | half of the kick before the step, half after |

Reference: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations, Springer 1992.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Slope = Callable[[Tensor, Tensor], Tensor]  # (state, drive at one stage) -> rate of change
Scheme = Callable[[Slope, Tensor, Tensor, float, "Tensor | float"], Tensor]

START, MIDDLE, END = range(3)


def euler(slope: Slope, state: Tensor, drive: Tensor, dt_s: float, kick: Tensor | float = 0.0) -> Tensor:
    """One step of Euler-Maruyama. The drive is read in the middle, which for `stage_drive` is its mean.

    Args:
        slope: The right-hand side, (state, drive) to rate of change.
        state: Where the step starts.
        drive: Input at start, middle and end of the step, `[3, ...]`.
        dt_s: Length of the step.
        kick: Random increment over the step, the noise's size times a normal of variance dt_s.

    Returns:
        The state after the step.
    """
    return state + dt_s * slope(state, drive[MIDDLE]) + kick


def heun(slope: Slope, state: Tensor, drive: Tensor, dt_s: float, kick: Tensor | float = 0.0) -> Tensor:
    """One step of Heun's scheme; arguments as `euler`."""
    first = slope(state, drive[START])
    second = slope(state + dt_s * first + kick, drive[END])
    return state + 0.5 * dt_s * (first + second) + kick


def rk4(slope: Slope, state: Tensor, drive: Tensor, dt_s: float, kick: Tensor | float = 0.0) -> Tensor:
    """One step of the classical Runge-Kutta scheme; arguments as `euler`.

    The two half kicks are one increment, so a damped oscillator's variance is off by about (rate dt)^2 / 12.
    """
    state = state + 0.5 * kick
    first = slope(state, drive[START])
    second = slope(state + 0.5 * dt_s * first, drive[MIDDLE])
    third = slope(state + 0.5 * dt_s * second, drive[MIDDLE])
    fourth = slope(state + dt_s * third, drive[END])
    return state + (dt_s / 6) * (first + 2 * (second + third) + fourth) + 0.5 * kick


def stage_drive(bins: Float[Tensor, "*batch time"], per_step: int) -> Float[Tensor, "step 3 *batch"]:
    """Input at the three stages of each step, from its mean over each of `per_step` bins of the step.

    The straight line of least squares through the bins is read at start, middle and end. Pulses are far shorter
    than a step: sampled at the stages they would be missed or counted double, while the line keeps the charge of
    the step exactly, and its centre in time to within a bin, whatever the scheme.

    Args:
        bins: Mean input over each bin, two or more bins per step.
        per_step: How many bins a step has.

    Returns:
        Input at the stages, steps first so that a loop reads one after the other.
    """
    parts = bins.unflatten(-1, (-1, per_step))  # [*batch, step, bin]
    place = (torch.arange(per_step, dtype=bins.dtype, device=bins.device) + 0.5) / per_step - 0.5
    middle = parts.mean(-1)
    rise = (parts @ place) / place.square().sum()  # over one step
    stages = torch.stack([middle - 0.5 * rise, middle, middle + 0.5 * rise])
    return stages.movedim(-1, 0).contiguous()
