"""Do the parts of a twin fit each other? Refused when a twin is built, before anything is simulated."""

from collections.abc import Mapping

from torch import Tensor

from stimopt.errors import ConfigError, ShapeError

from .delays import steps_ahead
from .dynamics import Dynamics
from .network import Network


def require_times(circuit: Dynamics, dt_s: float, rate_hz: float, window_s: float) -> None:
    """Refuse a step that was not tested for the circuit, or that samples, windows or delays do not fit.

    Raises:
        ConfigError: Naming the largest step, or the two times that do not fit.
    """
    if not 0 < dt_s <= circuit.largest_dt_s:
        raise ConfigError(
            f"dt_s is {dt_s} s; the largest step tested for {type(circuit).__name__} is {circuit.largest_dt_s} s. "
            "Choose dt_s at or below it."
        )
    if isinstance(circuit, Network) and circuit.late is not None:
        steps_ahead(circuit, dt_s)
    for name, ratio in (("dt_s into a sample", 1 / (rate_hz * dt_s)), ("samples into window_s", window_s * rate_hz)):
        if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6 * ratio:
            raise ConfigError(
                f"{name} goes {ratio:g} times; it must be a whole number of times. "
                f"Change window_s ({window_s}), rate_hz ({rate_hz}) or dt_s ({dt_s})."
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
