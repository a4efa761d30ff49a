"""Do the parts of a twin fit each other? Refused when a twin is built, before anything is simulated."""

from collections.abc import Mapping

from torch import Tensor

from stimopt.errors import ConfigError, ShapeError
from stimopt.tensors import generator

from .delays import steps_ahead
from .dynamics import Dynamics
from .integrate import Scheme
from .linear import ExactStep
from .network import Network
from .step_check import require_step, scheme_name

_TESTED_STEPS = 200


def require_times(circuit: Dynamics, dt_s: float, rate_hz: float, window_s: float) -> None:
    """Refuse a step that was not tested for the circuit, or that samples, windows or delays do not fit.

    Raises:
        ConfigError: Naming the largest step, or the two times that do not fit.
    """
    if not 0 < dt_s <= circuit.largest_dt_s:
        raise ConfigError(
            f"dt_s is {dt_s} s; the largest step tested for {_kind(circuit)} with these parameters is "
            f"{circuit.largest_dt_s:g} s. Choose dt_s at or below it."
        )
    if isinstance(circuit, Network) and circuit.late is not None:
        steps_ahead(circuit, dt_s)
    for name, ratio in (("dt_s into a sample", 1 / (rate_hz * dt_s)), ("samples into window_s", window_s * rate_hz)):
        if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6 * ratio:
            raise ConfigError(
                f"{name} goes {ratio:g} times; it must be a whole number of times. "
                f"Change window_s ({window_s}), rate_hz ({rate_hz}) or dt_s ({dt_s})."
            )


def require_tested(circuit: Dynamics, dt_s: float, scheme: Scheme) -> None:
    """Halve the step once, from rest and with noise, where the circuit was not tested with this scheme.

    Raises:
        ConfigError: If halving changes the potential by more than a twentieth of its deviation, or if the scheme is the
            exact solution of another circuit.
    """
    if isinstance(scheme, ExactStep) and not scheme.solves(circuit):
        raise ConfigError(
            f"the exact step given is not that of this {_kind(circuit)} with its parameters and tracts; build it anew "
            "with exact_step(circuit, dt_s), or take rk4."
        )
    if scheme_name(scheme) not in circuit.tested_schemes:
        source = generator(0, "half steps")
        require_step(circuit, dt_s=dt_s, seconds=_TESTED_STEPS * dt_s, scheme=scheme, source=source)


def require_finite(circuit: Dynamics, state: Tensor, dt_s: float) -> None:
    """Refuse a state that ran away, in the circuit itself or by a step too long for it.

    Raises:
        ConfigError: Naming the regions.
    """
    finite = state.isfinite().all(-1)
    if not bool(finite.all()):
        lost = sorted({int(region) for region in (~finite).nonzero()[:, -1].tolist()})
        raise ConfigError(
            f"regions {', '.join(map(str, lost[:8]))} of {_kind(circuit)} left every bound at a step of {dt_s:g} s: "
            "the circuit runs away with these parameters, gains and stimuli, or the step is too long for them. Halve "
            "dt_s; if it still does, weaken gain or stimulus."
        )


def require_shapes(parts: Mapping[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    """Refuse a part whose matrix does not end in the axes it must have; a part that is None is not there.

    Args:
        parts: By name: the matrix and its last axes.

    Raises:
        ShapeError: Naming the part.
    """
    for part, (matrix, axes) in parts.items():
        if matrix is not None and tuple(matrix.shape[-len(axes) :]) != axes:
            raise ShapeError(
                f"the {part} has a matrix of shape {list(matrix.shape)}, this montage and circuit need "
                f"{list(axes)}; build it from the same montage and places."
            )


def _kind(circuit: Dynamics) -> str:
    return type(circuit.circuit if isinstance(circuit, Network) else circuit).__name__
