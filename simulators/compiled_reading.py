"""Readings of a walk through compiled steps: on the way, and their cotangents on the way back.

What leaves a state as it is, or reads its potential, is told of many states at once; any other
reading of one state after the other, since it may not know of a further axis in front. Potentials
lie in memory with time innermost, turned while they are still in the cache: a spectrum of them
then takes half as long (76 regions, 64 rows, 960 readings: 18 ms, not 36, and turning takes 7).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

from .compiled_walk import Course
from .simulate import Reading

_TOGETHER = 16  # states that are read at once: so many are still in the cache, and fill a line of it
_BACK = 64  # of which cotangents are made at once


def itself(state: Tensor) -> Tensor:
    """The reading that leaves a state as it is."""
    return state


def _together(course: Course, reading: Reading) -> int:
    return _TOGETHER if reading is itself or reading == course.step.dynamics.potential_mv else 1


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
        self.together = _together(course, reading)
        self.turned = self.together > 1 and reading is not itself
        self.kept: list[list[Tensor]] = []
        self.readings: list[list[Tensor]] = [[] for _ in range(parts)]

    def watch(self, number: int, columns: list[Tensor], late: list[Tensor]) -> None:
        """Keep the columns of a step where one is asked for."""
        if number >= self.first and (number - self.first) % self.every == 0:
            self.kept.append(columns)
            if len(self.kept) == self.together:
                self._flush()

    def read(self) -> list[Tensor]:
        """Readings of values, and of tangents where there are, `[*batch, ..., time]`; empty lists where none is."""
        self._flush()
        if self.turned:
            return [torch.cat(read, -1) for read in self.readings if read]
        return [torch.cat(read).movedim(0, -1) for read in self.readings if read]

    def _flush(self) -> None:
        if not self.kept:
            return
        states, count = [], self.course.states
        for part in range(self.parts):
            columns = [column for kept in self.kept for column in kept[part * count : (part + 1) * count]]
            states.append(_states(columns, count))
        self.kept.clear()
        if self.together == 1:
            states = [state[0] for state in states]
        for readings, read in zip(self.readings, self._read(states), strict=True):
            one = read.unsqueeze(0) if self.together == 1 else read
            readings.append(one.movedim(0, -1).contiguous() if self.turned else one)

    def _read(self, states: list[Tensor]) -> list[Tensor]:
        """Readings of a state and of its tangents."""
        value, *turns = states
        if not turns:
            return [self.reading(value)]
        make: Any = forward_mode.make_dual
        pairs = [forward_mode.unpack_dual(self.reading(make(value, turn))) for turn in turns]
        known = [torch.zeros_like(pair.primal) if pair.tangent is None else pair.tangent for pair in pairs]
        return [pairs[0].primal, *known]


class Echoes:
    """Cotangents of states, from those of their readings, asked for from the last to the first.

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
        self.together = _BACK if _together(course, reading) > 1 else 1
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
