"""Is a step small enough? The same path at a step and at half of it, with the same noise.

The error of a step is the largest difference between the two paths, over the size of the
signal. Noise is halved consistently: an increment over a step is the sum of the increments
over its halves (a Brownian path seen at two resolutions), so what differs is the step alone.

Reference: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations, Springer 1992, section 9.3.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError

from .dynamics import Dynamics
from .integrate import Scheme, rk4
from .simulate import simulate, white_waves


def half_step_error(
    dynamics: Dynamics,
    *,
    dt_s: float,
    seconds: float,
    start: Float[Tensor, "*batch region state"] | None = None,
    scheme: Scheme = rk4,
    source: torch.Generator | None = None,
) -> float:
    """How much a circuit's potential changes when the step is halved, as a share of its standard deviation.

    Args:
        dynamics: A circuit or a network.
        dt_s: The step in question.
        seconds: How long to compare; for chaotic circuits, shorter than errors take to grow on their own.
        start: Where to begin; at rest by default.
        scheme: How a step is made.
        source: Draws the noise; None plays without.

    Returns:
        Largest difference of the potential over its standard deviation over time and regions, in the coarser path;
        infinite where either path is not finite.

    Raises:
        ConfigError: If `seconds` holds no step.
    """
    steps = round(seconds / dt_s)
    if steps < 2:
        raise ConfigError(f"{seconds} s hold {steps} steps of {dt_s} s; compare over 2 steps or more.")
    start = dynamics.rest if start is None else start
    batch = tuple(start.shape[:-2])
    fine = None if source is None else white_waves(dynamics, batch, 2 * steps, dt_s / 2, source)
    coarse = None if fine is None else fine.unflatten(0, (steps, 2)).sum(1)
    with torch.no_grad():
        whole, halves = (
            simulate(
                dynamics, start, dt_s=dt_s / parts, steps=parts * steps, waves=waves, scheme=scheme,
                reading=dynamics.potential_mv, every=parts,
            ).readings
            for parts, waves in ((1, coarse), (2, fine))
        )  # fmt: skip
    if not bool(whole.isfinite().all() & halves.isfinite().all()):
        return float("inf")
    return float((whole - halves).abs().max() / whole.std().clamp_min(1e-12))


def require_step(
    dynamics: Dynamics,
    *,
    dt_s: float,
    seconds: float,
    scheme: Scheme = rk4,
    source: torch.Generator | None = None,
    tolerance: float = 0.05,
) -> None:
    """Refuse a step that halving shows to be too large, from rest; other arguments as `half_step_error`.

    Raises:
        ConfigError: Naming the error found and the largest step tested for the circuit.
    """
    error = half_step_error(dynamics, dt_s=dt_s, seconds=seconds, scheme=scheme, source=source)
    if not error <= tolerance:
        raise ConfigError(
            f"dt_s {dt_s:g} s is too large for this circuit with {scheme_name(scheme)}: halving it changes the "
            f"potential by {error:.2g} of its standard deviation, {tolerance:g} is allowed. Choose a shorter one; the "
            f"largest tested is {dynamics.largest_dt_s:g} s, with {' or '.join(dynamics.tested_schemes)}."
        )


def scheme_name(scheme: Scheme) -> str:
    """What a scheme is called."""
    return str(getattr(scheme, "__name__", type(scheme).__name__))
