"""Fixed-step schemes: one step of dx = slope(x, u) dt + kick, as pure functions.

A scheme evaluates the whole right-hand side, coupling and stimulus included, at each of its
stages; a stimulus frozen over the step, or added after it, would make every scheme a
first-order one. `drive` holds the input at the start, the middle and the end of the step.

| scheme | order, no noise | noise (additive: strong order 1) |
| --- | --- | --- |
| euler | 1 | Euler-Maruyama |
| heun | 2 | the kick enters predictor and corrector |
| rk4 | 4 | half of the kick before the step, half after |
| exponential_euler(decay) | 1, exact for the decay | the kick decays over half of the step |

The kick is one for the whole step, of the size that the noise has at its start. So with noise that depends on the
state every scheme, heun too, converges to the Ito solution, path by path to the order 1/2.

References: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations, Springer 1992;
Hochbruck and Ostermann 2010, Acta Numerica 19:209-286 (exponential integrators).
"""

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class ExponentialEuler:
    """Euler's scheme in which each state's own decay is exact; for stiff circuits. Built by `exponential_euler`.

    Attributes:
        decay_per_s: State to the decay of each state, 1/s and not negative, as it stands at the start of the step.
    """

    decay_per_s: Callable[[Tensor], Tensor]

    def __call__(self, slope: Slope, state: Tensor, drive: Tensor, dt_s: float, kick: Tensor | float = 0.0) -> Tensor:
        """One step; arguments as `euler`."""
        decayed = self.decay_per_s(state) * dt_s
        weight = torch.where(decayed > 1e-8, -torch.expm1(-decayed) / decayed.clamp_min(1e-8), 1 - 0.5 * decayed)
        return state + dt_s * weight * slope(state, drive[MIDDLE]) + torch.exp(-0.5 * decayed) * kick


def exponential_euler(decay_per_s: Tensor | Callable[[Tensor], Tensor]) -> ExponentialEuler:
    """A scheme for x' = f(x) - decay x, given the decay: x + (1 - exp(-decay dt)) / decay * slope.

    Args:
        decay_per_s: Decay of each state, `[state]` or anything that broadcasts with a state, or a function from the
            state to it, as conductances need.
    """
    if isinstance(decay_per_s, Tensor):
        fixed = decay_per_s
        return ExponentialEuler(lambda state: fixed.to(state))
    return ExponentialEuler(decay_per_s)


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
