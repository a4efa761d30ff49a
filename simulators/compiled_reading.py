"""Readings of a walk through compiled steps: on the way, and their cotangents on the way back.

Potentials of every step are told by the compiled step itself, and their cotangents go into the unit that goes back:
next to nothing, where made outside of all columns of a state they took a twentieth of a pass, a tenth of a gradient
(Jansen-Rit, 76 regions, 64 rows, RK4). Potentials of some steps, and whole states, are read many at once; any other
reading is made of one state after the other, since it may not know of a further axis in front. Potentials
lie in memory with time innermost, turned while they are still in the cache: a spectrum of them
then takes half as long (76 regions, 64 rows, 960 readings: 18 ms, not 36, and turning takes 7).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

from .compiled_walk import Course
from .dynamics import Dynamics
from .simulate import Reading

_TOGETHER = 16  # states that are read at once: so many are still in the cache, and fill a line of it
_BACK = 64  # of which cotangents are made at once


def itself(state: Tensor) -> Tensor:
    """The reading that leaves a state as it is."""
    return state


def reads_potential(dynamics: Dynamics, reading: Reading | None) -> bool:
    """Whether a reading is the circuit's own."""
    return bool(reading == dynamics.potential_mv)


class Reader:
    """Reads states on the way.

    Args:
        course: Of the walk.
        reading: What is read.
        every: Of how many steps one is read.
        parts: Values and their tangents; 1 for values alone.
        first: The step that is read first.
    """

    def __init__(self, course: Course, reading: Reading, every: int, parts: int = 1, first: int = 0) -> None:
        self.course, self.reading, self.every, self.parts, self.first = course, reading, every, parts, first
        self.turned = reads_potential(course.step.dynamics, reading)
        self.together = _TOGETHER if self.turned or reading is itself else 1
        self.kept: list[list[Tensor]] = []
        self.readings: list[Tensor] = []  # of each part, [time, *batch, ...], once the first are known
        self.done = 0

    def watch(self, number: int, columns: list[Tensor], late: list[Tensor], told: list[Tensor]) -> None:
        """Keep of a step what is read, where it is asked for."""
        if number >= self.first and (number - self.first) % self.every == 0:
            self.kept.append(told or columns)
            if len(self.kept) == self.together:
                self._flush()

    def read(self) -> list[Tensor]:
        """Readings of values, and of tangents where there are, `[*batch, ..., time]`; empty lists where none is."""
        if self.kept:
            self._flush()
        return [readings.movedim(0, -1) for readings in self.readings]

    def _flush(self) -> None:
        if self.course.step.told:
            read = [torch.stack(told).movedim(1, -1) for told in zip(*self.kept, strict=True)]
        else:
            read = self._read([_states(columns, self.course.states) for columns in self._apart()])
        begin, self.done = self.done, self.done + len(self.kept)
        self.kept.clear()
        if not self.readings:
            count = len(range(self.first, self.course.steps, self.every))
            self.readings = [_empty(one, count, innermost=self.turned) for one in read]
        for readings, one in zip(self.readings, read, strict=True):
            readings[begin : self.done] = one

    def _apart(self) -> list[list[Tensor]]:
        """Columns of each part, of one kept step after the other."""
        each = self.course.states
        parts = range(0, each * self.parts, each)
        return [[column for columns in self.kept for column in columns[part : part + each]] for part in parts]

    def _read(self, states: list[Tensor]) -> list[Tensor]:
        """Readings of states and of their tangents, `[time, *batch, ...]`."""
        one = self.together == 1  # then the reading may not know of the axis of time
        value, *turns = [state[0] for state in states] if one else states
        if turns:
            make: Any = forward_mode.make_dual
            pairs = [forward_mode.unpack_dual(self.reading(make(value, turn))) for turn in turns]
            known = [torch.zeros_like(pair.primal) if pair.tangent is None else pair.tangent for pair in pairs]
            read = [pairs[0].primal, *known]
        else:
            read = [self.reading(value)]
        return [part.unsqueeze(0) for part in read] if one else read


def _empty(like: Tensor, count: int, innermost: bool) -> Tensor:
    """Room for so many of a kind, `[time, ...]`; time innermost in memory, or outermost."""
    shape = like.shape[1:]
    return like.new_empty(*shape, count).movedim(-1, 0) if innermost else like.new_empty(count, *shape)


class Told:
    """Cotangents of potentials, asked for from the last step to the first.

    Args:
        cotangent: Of all potentials that were read, `[*batch, region, time]`.
        first: The step that was read first.
        every: Of how many steps one was read.
        nothing: What a step gets that was not read, `[region, *batch]`.
    """

    def __init__(self, cotangent: Tensor, first: int, every: int, nothing: Tensor) -> None:
        self.cotangent, self.first, self.every, self.nothing = cotangent, first, every, nothing
        self.chunk, self.known = -1, tuple[Tensor, ...]()

    def at(self, number: int) -> Tensor:
        """Of the potential at the start of a step."""
        read, other = divmod(number - self.first, self.every)
        if read < 0 or other:
            return self.nothing
        if read // _BACK != self.chunk:
            self.chunk = read // _BACK
            begin = self.chunk * _BACK
            self.known = self.cotangent[..., begin : begin + _BACK].movedim((-1, -2), (0, 1)).contiguous().unbind(0)
        return self.known[read % _BACK]


class Echoes:
    """Cotangents of states, from those of any other readings, asked for from the last to the first.

    Args:
        course: Of the walk.
        reading: What was read.
        cotangent: Of all readings, `[*batch, ..., time]`.
        first: The step that was read first.
        every: Of how many steps one was read.
        columns: Of all states, one after the other.
    """

    def __init__(
        self, course: Course, reading: Reading, cotangent: Tensor, first: int, every: int, columns: Sequence[Tensor]
    ) -> None:
        self.course, self.reading, self.first, self.every = course, reading, first, every
        self.cotangent, self.columns = cotangent, columns
        self.together = _BACK if reading is itself else 1
        self.chunk, self.known = -1, list[list[Tensor]]()

    def at(self, number: int) -> list[Tensor]:
        """Of the columns of a step's state; nothing where it was not read."""
        read, other = divmod(number - self.first, self.every)
        if read < 0 or other:
            return []
        if read // self.together != self.chunk:
            self.chunk = read // self.together
            self.known = self._pulled(self.chunk * self.together)
        return self.known[read % self.together]

    def _pulled(self, begin: int) -> list[list[Tensor]]:
        count, states = min(self.together, self.cotangent.shape[-1] - begin), self.course.states
        steps = [self.first + read * self.every for read in range(begin, begin + count)]
        columns = [x for step in steps for x in self.columns[step * states : (step + 1) * states]]
        cotangent = self.cotangent[..., begin : begin + count].movedim(-1, 0)
        with torch.enable_grad():
            state = _states(columns, states).detach().requires_grad_()
            value = self.reading(state) if self.together > 1 else self.reading(state[0]).unsqueeze(0)
            pulled = torch.autograd.grad(value, state, cotangent)[0]  # [time, *batch, region, state]
        each = pulled.movedim((-1, -2), (1, 2)).contiguous().flatten(0, 1).unbind(0)
        return [list(each[i : i + states]) for i in range(0, len(each), states)]


def _states(columns: Sequence[Tensor], count: int) -> Tensor:
    """Columns of some states as [time, *batch, region, state]."""
    by_time: Tensor = torch.stack(list(columns)).unflatten(0, (-1, count))  # [time, state, region, *batch]
    return by_time.movedim((1, 2), (-1, -2))
