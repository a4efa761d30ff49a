"""Reverse mode through compiled steps: forward keeps states and arrivals, backward undoes one step after another.

Autograd would keep every stage of every step and run each operation on its own. Here a step is
one node: its states and what arrived are kept, a second unit computes the stages again and their
cotangents in one go. What reached other regions late comes back by the transposed matrix: the
cotangent of an emission is gathered from all later reads of it, block by block, latest first.

Kept for each step: its state and its one or two arrivals. With `checkpoint` they are kept for a
stretch only, and stretches are played again on the way back.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint as replayed

from .compiled_delays import past_of_strip
from .compiled_reading import Echoes, Reader, Told, itself, reads_potential
from .compiled_strip import Strip
from .compiled_unit import Unit
from .compiled_walk import BLOCK, Course, Seats, columns_of, pushes_back, reads_per_step, state_of, walk
from .simulate import Reading, Trajectory

_PUSHES = ("waves", "drive")


def played_with_tape(
    course: Course, values: Mapping[str, Tensor], reading: Reading, every: int, checkpoint: bool
) -> Trajectory:
    """A trajectory that carries gradients in all values."""
    taped: Any = _Tape.apply
    length = _stretch(course, values) if checkpoint else course.steps
    values, readings, past = dict(values), [], None
    own = _keeps_gradients(reading, values["start"])  # then it must be read where autograd sees it
    step = replace(course.step, told=course.step.told and not own)
    for first in range(0, course.steps, length):
        part = slice(first, first + length)
        stretch = Course(step, course.batch_shape, min(length, course.steps - first), course.reads, course.ahead)
        names = tuple(values)
        now = [values[name][part] if name in _PUSHES else values[name] for name in names]
        rules = (stretch, names, itself if own else reading, (-first) % every, every)
        played = replayed(taped, *rules, *now, use_reentrant=False) if checkpoint else taped(*rules, *now)
        values["start"], values["strip"], read = played[0], played[1], played[2]
        if own:
            readings += [reading(state) for state in read.unbind(-1)]
        elif read.shape[-1]:
            readings.append(read)
    whole = torch.stack(readings, -1) if own else torch.cat(readings, -1)
    if course.reads is not None:
        past = past_of_strip(values["strip"], course.batch_shape, course.outputs)
    return Trajectory(whole, values["start"], past)


def _keeps_gradients(reading: Reading, start: Tensor) -> bool:
    with torch.enable_grad():
        return bool(reading(start.detach()).requires_grad)


def _stretch(course: Course, values: Mapping[str, Tensor]) -> int:
    """Steps of a stretch, so that what all stretches keep and what one keeps for its steps are about the same."""
    state = values["start"].numel()
    per_step = state * (1 + 2 * course.outputs / course.states * (course.reads is not None))
    kept = state + (values["strip"].numel() if course.reads else 0)
    whole_blocks = math.ceil(math.sqrt(course.steps * kept / per_step) / course.ahead)
    return min(course.steps, whole_blocks * course.ahead)


class _Tape(torch.autograd.Function):
    """A stretch of steps as one node of autograd."""

    @staticmethod
    def forward(
        ctx: Any, course: Course, names: tuple[str, ...], reading: Reading, first: int, every: int, *now: Tensor
    ) -> Any:
        """End, strip and readings; readings are at `first` and every `every` on."""
        given = dict(zip(names, now, strict=True))
        kept: list[Tensor] = []  # as the unit made them: gathering them would cost as much as a small step
        heard: list[Tensor] = []
        reader = Reader(course, reading, every, first=first)

        def watch(number: int, columns: list[Tensor], late: list[Tensor], told: list[Tensor]) -> None:
            kept.extend(columns)
            heard.extend(late)
            reader.watch(number, columns, late, told)

        columns, strips = walk(course, given, (), course.unit(given), watch)
        nothing = given["start"].new_zeros(0)
        ctx.rules = (course, names, reading, first, every)
        ctx.save_for_backward(*kept, *heard, *now)
        return state_of(columns), strips[0] if strips else nothing, next(iter(reader.read()), nothing)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, end: Tensor, strip: Tensor, read: Tensor) -> Any:
        """Cotangents of all values."""
        course, names, reading, first, every = ctx.rules
        saved = ctx.saved_tensors
        states, end_of_tape = course.steps * course.states, len(saved) - len(names)
        given = dict(zip(names, saved[end_of_tape:], strict=True))
        wanted = [name for name, needed in zip(names, ctx.needs_input_grad[5:], strict=True) if needed]
        told = reads_potential(course.step.dynamics, reading)
        back = _Back(course, given, wanted, saved[:states], saved[states:end_of_tape], told)
        if told:
            readings = Told(read, first, every, end.new_zeros(end.shape[-2], *course.batch_shape))
            found = back.run(end, strip, readings)
        else:
            found = back.run(end, strip, Echoes(course, reading, read, first, every, back.states))
        return None, None, None, None, None, *[found.get(name) for name in names]


class _Back:
    """The way back through a stretch."""

    def __init__(
        self,
        course: Course,
        given: Mapping[str, Tensor],
        wanted: Sequence[str],
        states: Sequence[Tensor],
        heard: Sequence[Tensor],
        told: bool,
    ) -> None:
        self.course, self.given, self.states, self.heard = course, given, states, heard
        forward = course.unit(given)
        self.per_step = reads_per_step(forward)
        self.pulled = [
            name for name in forward.names if name.startswith(("state.", "late.")) or _source(name) in wanted
        ]
        self.unit: Unit = course.unit(given, pulled=self.pulled, told=told)
        self.found = {name: torch.zeros_like(given[name]) for name in wanted}
        self.kept = [
            name for name in self.pulled if _source(name) in wanted and not name.startswith(("state.", "late."))
        ]
        self.pieces: dict[str, list[Tensor]] = {name: [] for name in self.kept if _source(name) in _PUSHES}

    def run(self, end: Tensor, strip: Tensor, readings: Told | Echoes) -> dict[str, Tensor]:
        """All cotangents that are wanted."""
        course, pull = self.course, columns_of(end)
        ears = _Echo(course, strip, self.per_step) if course.reads else None
        told = readings if isinstance(readings, Told) else None
        count = course.states + bool(ears) + bool(told)
        names = [*course.names([self.given]), *(f"pull.{i}" for i in range(count))]
        seats = Seats(self.unit, {name: self.given[name] for name in self.unit.names if name in self.given}, names)
        each = len(self.heard) // course.steps
        pushed = pushes_back(self.given, course.steps)
        for begin in reversed(range(0, course.steps, course.ahead)):
            count = min(course.ahead, course.steps - begin)
            edges: Sequence[Tensor] = ears.block(count, full=count == course.ahead).unbind(0) if ears else ()
            for k in reversed(range(count)):
                number = begin + k
                columns = list(self.states[number * course.states : (number + 1) * course.states])
                late = self.heard[number * each : (number + 1) * each]
                pulls = [*pull, edges[k].view(len(edges[k]), -1, *course.batch_shape)] if ears else pull
                pulls = [*pulls, told.at(number)] if told else pulls
                found = seats.filled([*columns, *late, *next(pushed), *pulls])
                cotangents = dict(zip(self.pulled, found, strict=True))
                pull = [
                    cotangents[name] if (name := f"state.{i}") in cotangents else torch.zeros_like(columns[i])
                    for i in range(course.states)
                ]
                self._add(cotangents)
                if ears:
                    ears.hear(cotangents)
                if isinstance(readings, Echoes) and (read_here := readings.at(number)):
                    pull = [a + b for a, b in zip(pull, read_here, strict=True)]
            self._put(begin)
            if ears:
                ears.close()
        if "start" in self.found:
            self.found["start"] = state_of(pull)
        if ears and "strip" in self.found:
            self.found["strip"] = ears.past()
        return self.found

    def _add(self, cotangents: Mapping[str, Tensor]) -> None:
        """Those of a step: pushes are kept for the block, parameters summed."""
        for name in self.kept:
            if name in self.pieces:
                self.pieces[name].append(cotangents[name])
            else:
                self.found[name] += cotangents[name]

    def _put(self, begin: int) -> None:
        """Those of pushes, of which the last step came first, in their places: of many steps at once."""
        for name, pieces in self.pieces.items():
            if begin and len(pieces) < BLOCK:
                return
            slot, *place = name.split(".")
            turned = torch.stack(pieces[::-1]).movedim(1, -1)  # [step, *batch, region]
            target = self.found[_source(name)][begin : begin + len(pieces)]
            if slot == "drive":
                target[:, int(place[0]), ..., int(place[1])] = turned
            else:
                target[..., int(place[0])] = turned
            pieces.clear()


def _source(slot: str) -> str:
    """Which of the given values a slot is part of."""
    kinds = {"state": "start", "wave": "waves", "drive": "drive", "late": "strip"}
    return kinds.get(slot.split(".")[0], slot)


class _Echo:
    """Delays on the way back: cotangents of arrivals, latest first, and the emissions that they belong to."""

    def __init__(self, course: Course, strip: Tensor, per_step: int) -> None:
        assert course.reads is not None
        self.course, self.reads, self.per_step, self.late_rows = course, course.reads, per_step, strip
        nothing = strip.new_zeros(self.reads.regions, self.reads.reach(per_step), 1, strip.shape[-1])
        self.strip = Strip(nothing)
        self.sums = self.reads.adjoint(course.ahead, per_step, self.strip)
        self.carried = nothing[:, 0, 0]
        self.fresh: list[Tensor] = []

    def block(self, count: int, full: bool) -> Tensor:
        """Cotangents of what a block's steps emitted, [step, region, 3, lane]: later reads, and the past at the end."""
        regions, known, parts, lanes = self.late_rows.shape
        shape = (regions, parts, lanes)
        rows = self.sums.of(self.strip).view(-1, *shape) if full else self.late_rows.new_zeros(count, *shape)
        mine = min(count, known)
        rows[count - mine :] += self.late_rows[:, known - mine :].movedim(1, 0)
        self.late_rows = self.late_rows[:, : known - mine]
        return rows

    def hear(self, cotangents: Mapping[str, Tensor]) -> None:
        """What a step says of its arrivals."""
        start, middle, end = (self._lane(cotangents, stage) for stage in range(3))
        self.fresh.append(self.carried if end is None else end + self.carried)
        if self.per_step == 2:
            self.fresh.append(torch.zeros_like(self.carried) if middle is None else middle)
        self.carried = torch.zeros_like(self.carried) if start is None else start

    def _lane(self, cotangents: Mapping[str, Tensor], stage: int) -> Tensor | None:
        names = [f"late.{stage}.{o}" for o in range(self.course.outputs)]
        if names[0] not in cotangents:
            return None
        if len(names) == 1:
            return cotangents[names[0]].flatten(1)
        return torch.stack([cotangents[name] for name in names], 1).flatten(1)

    def close(self) -> None:
        """The block is over."""
        for row in self.fresh:
            self.strip.append(row.unsqueeze(1))
        self.fresh = []

    def past(self) -> Tensor:
        """Cotangents of the strip that the stretch began with."""
        blocks: list[Tensor] = []
        rows = 0
        while rows < self.reads.back + 1:
            blocks.insert(0, self.block(self.course.ahead, full=True))
            for _ in range(self.course.ahead):
                self.hear({})
            self.close()
            rows += self.course.ahead
        return torch.cat(blocks)[-(self.reads.back + 1) :].movedim(0, 1)
