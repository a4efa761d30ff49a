"""Forward mode through compiled steps: tangents travel beside the values, through the same units.

`torch.func.jvp` gives one tangent of every value, `torch.func.jacfwd` one for each parameter at
once; four of these share each pass of values, so that a further parameter costs less than the
first. Each tangent reads a past of its own, as large as that of the values; those of a group lie
in one memory, so that they leave as they are. Jansen-Rit, 76 regions, 64 rows, a loss of band
power included, in passes for one parameter alone and for each of four at once: without delays 1.6
and 0.8, with delays at 0.1 ms (Heun) 1.9 and 1.0, at 1 ms (RK4) 1.8 and 1.2. A step of values and
one tangent costs 1.6 of values alone, the sums over two pasts 2 to 3 of those over one: a past is
27 MB at 0.1 ms, and two leave a cache of 32 MB.

Tried and not kept: all lanes of a step on one axis, or all states of a region side by side, so that
a step compiles to fewer loops (6 to 20 % less for RK4, up to 28 % more for Heun); values and tangents
side by side in one past (as slow at 0.1 ms); huge pages for the past (a tenth less for its sums); rows in two halves,
one after the other (as slow).

Torch wraps what it differentiates: here the wrappers come off, and go on again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from .compiled_delays import past_of_strip
from .compiled_reading import Reader
from .compiled_unit import Unit
from .compiled_walk import Course, state_of, walk
from .delays import Past
from .simulate import Reading, Trajectory

_TOGETHER = 4  # directions of one unit; more of them take longer to compile
_CHANGING = {"start", "strip"}  # what a walk changes, or goes on from
_WRAPPERS = torch._C._functorch


@dataclass(frozen=True)
class Turned:
    """Values, and their tangents in one direction or several.

    Attributes:
        values: All values by name, bare.
        turns: Of each direction, tangents by name, bare; `start` and `strip` have one always. Empty where nothing
            is differentiated forwards.
        level: Of the `torch.vmap` that tangents of several directions are in; None for one direction.
    """

    values: dict[str, Tensor]
    turns: list[dict[str, Tensor]]
    level: int | None

    @property
    def groups(self) -> list[list[dict[str, Tensor]]]:
        """Directions that travel together; one empty group where there are none."""
        return [self.turns[first : first + _TOGETHER] for first in range(0, max(1, len(self.turns)), _TOGETHER)]


def turned(given: Mapping[str, Tensor]) -> Turned | None:
    """Values and tangents without their wrappers; None where more is wrapped than one forward differentiation does.

    That is so under `torch.vmap` over values, and for derivatives of derivatives.
    """
    pairs = {name: forward_mode.unpack_dual(value) for name, value in given.items()}
    with temporarily_clear_interpreter_stack():  # or all that is made here were wrapped again
        tangents = {name: _directions(_bare(pair.tangent)) for name, pair in pairs.items() if pair.tangent is not None}
        values = {name: _bare(pair.primal) for name, pair in pairs.items()} if tangents else dict(given)
        parts = [*values.values(), *(part for tangent in tangents.values() for part in tangent)]
        if any(_is_wrapped(part) for part in parts):
            return None
        count = max((len(tangent) for tangent in tangents.values()), default=0)
        turns = [{name: tangent[i % len(tangent)] for name, tangent in tangents.items()} for i in range(count)]
        for turn in turns:
            for name in _CHANGING & values.keys():
                if name not in turn:
                    turn[name] = values[name].new_zeros(()).expand_as(values[name])
    levels = {_WRAPPERS.maybe_get_level(_bare(pair.tangent)) for pair in pairs.values() if pair.tangent is not None}
    return Turned(values, turns, max(levels - {None, -1}, default=None))


def _is_wrapped(tensor: Tensor) -> bool:
    return bool(_WRAPPERS.is_functorch_wrapped_tensor(tensor))


def _bare(tensor: Tensor) -> Tensor:
    """Without the wrapper that `torch.func.jvp` puts round it."""
    wrapped = _is_wrapped(tensor) and not _WRAPPERS.is_batchedtensor(tensor)
    return _WRAPPERS.get_unwrapped(tensor) if wrapped else tensor


def _directions(tangent: Tensor) -> list[Tensor]:
    """Of one tensor: a tangent for each direction, or one for all."""
    if not _WRAPPERS.is_batchedtensor(tangent):
        return [tangent]
    return list(_WRAPPERS.get_unwrapped(tangent).unbind(_WRAPPERS.maybe_get_bdim(tangent)))


def played_with_turns(
    course: Course, given: Turned, units: Sequence[Unit], reading: Reading, every: int, still: bool
) -> list[Trajectory]:
    """The trajectory, and its tangent in each direction."""
    played: list[Trajectory] = []
    still = still and len(units) == 1  # or the next group could not begin where the first did
    with torch.no_grad():
        for turns, unit in zip(given.groups, units, strict=True):
            reader = Reader(course, reading, every, 1 + len(turns))
            columns, strips = walk(course, given.values, turns, unit, reader.watch, still)
            played += _trajectories(course, columns, strips, reader.read())[len(played) > 0 :]
    return played


def _trajectories(
    course: Course, columns: Sequence[Tensor], strips: Sequence[Tensor], read: Sequence[Tensor]
) -> list[Trajectory]:
    """Of values, and of each tangent."""
    ends = [state_of(columns[i : i + course.states]) for i in range(0, len(columns), course.states)]
    pasts: list[Past | None] = [past_of_strip(strip, course.batch_shape, course.outputs) for strip in strips]
    pasts = pasts or [None] * len(ends)
    return [Trajectory(*parts) for parts in zip(read, ends, pasts, strict=True)]


def dual(value: Trajectory, tangents: Sequence[Trajectory], level: int | None) -> Trajectory:
    """Both as dual numbers; made where the caller differentiates, or they would be constants there."""

    def joined(part: Tensor, parts: Sequence[Tensor]) -> Tensor:
        with temporarily_clear_interpreter_stack():
            tangent = parts[0] if level is None else _WRAPPERS._add_batch_dim(_stacked(parts), 0, level)
        make: Any = forward_mode.make_dual
        both: Tensor = make(part, tangent)
        return both

    past = None
    if value.past is not None:
        known = [turn.past for turn in tangents if turn.past is not None]
        past = Past(*(joined(getattr(value.past, f.name), [getattr(t, f.name) for t in known]) for f in fields(Past)))
    readings = joined(value.readings, [turn.readings for turn in tangents])
    return Trajectory(readings, joined(value.end, [turn.end for turn in tangents]), past)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Along a new first axis: a view where they lie one after the other in one memory, as the pasts of a group do."""
    places = [(part.untyped_storage().data_ptr(), part.stride(), part.storage_offset()) for part in parts]
    memory, strides, begin = places[0]
    each = (places[-1][2] - begin) // max(1, len(parts) - 1)
    if places != [(memory, strides, begin + number * each) for number in range(len(parts))]:
        return torch.stack(list(parts))
    return parts[0].as_strided((len(parts), *parts[0].shape), (each, *strides))
