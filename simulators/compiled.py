"""`simulate` for many rows, compiled: the same equations, the same arguments, the same results.

One step of the circuit is one compiled unit (see `compiled_step`), delays are weighted sums over
a ring of the past, one call per block of steps (see `compiled_delays`), and the loop over steps
stays in Python (`compiled_walk`). Everything lies in memory as [region, *batch] from one step to
the next, so a step is a few vectorised loops (see `regions_first`), on CPU and GPU alike.

    forward mode    tangents travel beside the values, of several parameters at once (see `compiled_tangents`)
    reverse mode    states are kept, and each step is differentiated by a unit of its own on the way back

The first call with new shapes compiles for some seconds; values never do. Where there is no
compiler, or the circuit cannot be traced, `simulate` plays instead, after a warning. It also has
the gradients that are not here: in late weights, in delays, and any where late weights differ
from row to row.

Chosen by measurement, Jansen-Rit with coupling, 76 regions, 64 rows, float32, one thread of a shared two-core
machine, CPU time per region and step of Heun, noise given (least of several repeats):

    the step through torch.compile's Inductor as it stands    87 ns
    Numba 0.68, the equations written again, fastmath         68
    C, the equations written again, gcc -O3 -ffast-math       25
    Inductor after `columns`                                  18 in the unit alone, 19 to 25 with the loop
    and after `regions_first`, this                           16

Not run on a GPU yet.
"""

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from stimopt.errors import ConfigError
from stimopt.tensors import carries_gradient

from .compiled_delays import reads_of, still_strip, strip_of
from .compiled_gradient import played_with_tape
from .compiled_reading import itself, reads_potential
from .compiled_step import Step, leaves
from .compiled_tangents import Turned, dual, played_with_turns, turned
from .compiled_unit import Unit
from .compiled_walk import Course
from .delays import Past, steps_ahead, steps_back
from .dynamics import Dynamics
from .integrate import Scheme, euler, rk4
from .network import Network
from .simulate import Reading, Trajectory, require_fitting, simulate, steps_of


def compiled_simulate(
    dynamics: Dynamics,
    start: Float[Tensor, "*batch region state"],
    *,
    dt_s: float,
    steps: int | None = None,
    drive: Float[Tensor, "step 3 *#batch #region input"] | None = None,
    waves: Float[Tensor, "step *batch region noisy"] | None = None,
    past: Past | None = None,
    scheme: Scheme = rk4,
    hold_coupling: bool = False,
    reading: Reading | None = None,
    every: int = 1,
    checkpoint: bool = False,
) -> Trajectory:
    """As `simulate`, in every argument and result, to rounding; the header says where it is fast.

    `start` must have the whole batch. Noise and drive are used as they lie in memory when their batch is innermost
    (`lane_waves`), and copied block by block otherwise.

    Raises:
        ShapeError: As `simulate`.
        ConfigError: As `simulate`.
    """
    steps = steps_of(steps, drive)
    require_fitting(dynamics, start, drive, waves)
    arguments: dict[str, Any] = {
        "dt_s": dt_s, "steps": steps, "drive": drive, "waves": waves, "past": past, "scheme": scheme,
        "hold_coupling": hold_coupling, "reading": reading, "every": every, "checkpoint": checkpoint,
    }  # fmt: skip
    if _beyond(dynamics, [start, drive, waves]):
        return simulate(dynamics, start, **arguments)
    given = turned(_given(dynamics, start, dt_s, drive, waves, past))
    with temporarily_clear_interpreter_stack():  # what torch.func differentiates goes on as plain tensors
        told = every == 1 and reads_potential(dynamics, reading)
        course = _course(dynamics, tuple(start.shape[:-2]), dt_s, steps, scheme, hold_coupling, told)
        units = _compiles(course, given)
        if given and units:
            value, *tangents = _play(course, given, units, reading or itself, every, checkpoint, past is None)
    if not given or not units:
        return simulate(dynamics, start, **arguments)
    return dual(value, tangents, given.level) if tangents else value


def _compiles(course: Course, given: Turned | None) -> list[Unit]:
    """The compiled step for each group of tangents; none, and a warning that says why, where it cannot be compiled."""
    try:
        if given is None:
            raise ConfigError(
                "no compiled step under torch.vmap, torch.func.grad or two derivatives; torch.autograd, torch.func.jvp "
                "and torch.func.jacfwd have one"
            )
        values = {name: value.detach() for name, value in given.values.items()}
        return [course.unit(values, turns) for turns in given.groups]
    except Exception as reason:  # whatever a compiler or a trace may say, the circuit can still be played
        advice = "install a C++ compiler, or play with" if given else "play with"
        warnings.warn(
            f"{type(course.step.dynamics).__name__} could not be compiled ({type(reason).__name__}: "
            f"{str(reason)[:200]}), so `simulate` plays it, many times slower; {advice} `simulate` to silence this.",
            stacklevel=3,
        )
        return []


def _play(
    course: Course,
    given: Turned,
    units: list[Unit],
    reading: Reading,
    every: int,
    checkpoint: bool,
    still: bool,
) -> list[Trajectory]:
    """The trajectory and its tangents."""
    recorded = torch.is_grad_enabled() and any(value.requires_grad for value in given.values.values())
    if recorded and not given.turns:
        return [played_with_tape(course, given.values, reading, every, checkpoint)]
    return played_with_turns(course, given, units, reading, every, still)


def lane_waves(
    dynamics: Dynamics, batch_shape: tuple[int, ...], steps: int, dt_s: float, source: torch.Generator
) -> Float[Tensor, "step *batch region noisy"]:
    """As `white_waves`, drawn in the order in which compiled steps read: another path for the same seed, no copy."""
    rest = dynamics.rest
    shape = (steps, len(dynamics.noisy), rest.shape[-2], *batch_shape)
    drawn = torch.randn(shape, generator=source, dtype=rest.dtype, device=source.device).to(rest)
    return drawn.mul_(dt_s**0.5).movedim((2, 1), (-2, -1))


def _beyond(dynamics: Dynamics, inputs: list[Tensor | None]) -> bool:
    """Whether a gradient is wanted that only `simulate` has."""
    if not isinstance(dynamics, Network) or dynamics.delay_s is None or dynamics.late is None:
        return False
    if carries_gradient(dynamics.weights) or carries_gradient(dynamics.delay_s):
        return True
    given = [x for x in [*inputs, *leaves(dynamics).values()] if x is not None]
    return dynamics.weights.ndim > 2 and any(carries_gradient(x) for x in given)


def _given(
    dynamics: Dynamics, start: Tensor, dt_s: float, drive: Tensor | None, waves: Tensor | None, past: Past | None
) -> dict[str, Tensor]:
    """All values by name."""
    given = {"start": start, **leaves(dynamics)}
    given |= {name: value for name, value in (("drive", drive), ("waves", waves)) if value is not None}
    if isinstance(dynamics, Network):
        instant = dynamics.instant_weights
        if bool((instant != 0).any()):
            given["instant"] = instant
        if steps_back(dynamics, dt_s):
            given["strip"] = still_strip(dynamics, start, dt_s) if past is None else strip_of(past)
    return given


def _course(
    dynamics: Dynamics,
    batch_shape: tuple[int, ...],
    dt_s: float,
    steps: int,
    scheme: Scheme,
    hold_coupling: bool,
    told: bool,
) -> Course:
    """What stays the same."""
    late = isinstance(dynamics, Network) and bool(steps_back(dynamics, dt_s))
    step = Step(dynamics, scheme, dt_s, hold_coupling or scheme is euler, late, told)
    if not late or not isinstance(dynamics, Network):
        return Course(step, batch_shape, steps, None)
    return Course(step, batch_shape, steps, reads_of(dynamics, dt_s), steps_ahead(dynamics, dt_s))
