"""The loop over compiled steps: blocks of steps, what arrives in each, and what is kept on the way.

A walk has one half, the values, or two, the values and their tangents, which then travel
together through the same unit and lie side by side in one strip, so the past is read once for both.

    given   start [*batch, region, state], waves, drive, strip, instant, and every leaf of the circuit by name
    turns   tangents of some of these, by the same names
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.tensors import batch_innermost

from .compiled_delays import Reads, Strip
from .compiled_step import Step
from .compiled_unit import Unit, compiled
from .integrate import MIDDLE

Given: TypeAlias = Mapping[str, Tensor]
Watch = Callable[[int, list[Tensor], list[Tensor]], None]  # step number, columns, what arrives at its stages
_BLOCK = 64  # steps whose noise and drive are put in order at once, where no delay says less
_PREFIXES = ("", "turn.")


@dataclass(frozen=True)
class Course:
    """What stays the same over a walk.

    Attributes:
        step: The step, not compiled.
        batch_shape: Of the state.
        steps: How many.
        reads: Of the late tracts; None where nothing is late.
        ahead: Steps that are known at once.
    """

    step: Step
    batch_shape: tuple[int, ...]
    steps: int
    reads: Reads | None
    ahead: int = _BLOCK

    @property
    def states(self) -> int:
        """How many states a region has."""
        return len(self.step.dynamics.states)

    @property
    def outputs(self) -> int:
        """How many outputs a region has."""
        return len(self.step.dynamics.outputs)

    def slots(
        self, fixed: Given, columns: Sequence[Tensor], late: Sequence[Sequence[Tensor]], push: Given
    ) -> dict[str, Tensor]:
        """All inputs of one step; `columns` and `late` hold one half after the other."""
        named = dict(fixed)
        named.update(zip(_names("state.", self.states), columns, strict=False))
        if len(columns) > self.states:
            named.update(zip(_names("turn.state.", self.states), columns[self.states :], strict=True))
        for prefix, heard in zip(_PREFIXES, late, strict=False):
            for stage, arriving in enumerate(heard):
                names = _names(f"{prefix}late.{stage}.", self.outputs)
                lanes = arriving.view(len(arriving), self.outputs, *self.batch_shape).unbind(1)
                named.update(zip(names, [lane.movedim(0, -1) for lane in lanes], strict=True))
        named.update(push)
        return named

    def unit(self, given: Given, turns: Given | None, pulled: Sequence[str] = ()) -> Unit:
        """The compiled step for inputs like these."""
        halves = [given] if turns is None else [given, turns]
        columns = [column for half in halves for column in columns_of(half["start"])]
        late = [[one] * 3 for one in _apart(_strip(halves)[0, 0], len(halves))] if self.reads else []
        fixed, push = _fixed(halves), _pushes_of(halves, 0, 1)[0]
        return compiled(self.step, self.slots(fixed, columns, late, push), pulled)


def _fixed(halves: Sequence[Given]) -> dict[str, Tensor]:
    """What is the same for all steps, by slot."""
    kept = ("leaf", "instant")
    return {
        f"{p}{n}": x for p, half in zip(_PREFIXES, halves, strict=False) for n, x in half.items() if n.startswith(kept)
    }


def _pushes_of(halves: Sequence[Given], begin: int, count: int) -> list[dict[str, Tensor]]:
    parts = [pushes(half, begin, count, prefix) for prefix, half in zip(_PREFIXES, halves, strict=False)]
    return parts[0] if len(parts) == 1 else [one | other for one, other in zip(*parts, strict=True)]


def pushes(given: Given, begin: int, count: int, prefix: str = "") -> list[dict[str, Tensor]]:
    """Noise and drive from outside of each step of a block, the batch innermost."""
    slots: list[dict[str, Tensor]] = [{} for _ in range(count)]
    if "waves" in given:
        waves = batch_innermost(given["waves"][begin : begin + count].movedim(-1, 1), 2)
        for slot, step in zip(slots, waves.unbind(0), strict=True):
            slot.update(zip(_names(f"{prefix}wave.", len(step)), step.unbind(0), strict=True))
    if "drive" in given:
        drive = batch_innermost(given["drive"][begin : begin + count].movedim(-1, 2), 3)
        for slot, step in zip(slots, drive.unbind(0), strict=True):
            for stage, inputs in enumerate(step.unbind(0)):
                slot.update(zip(_names(f"{prefix}drive.{stage}.", len(inputs)), inputs.unbind(0), strict=True))
    return slots


def columns_of(state: Tensor) -> list[Tensor]:
    """[*batch, region, state] as columns with the batch innermost."""
    return list(batch_innermost(state.movedim(-1, 0), 1).unbind(0))


def state_of(columns: Sequence[Tensor]) -> Tensor:
    """The other way round: a view of columns that are put together once."""
    return torch.stack([column.movedim(-1, 0) for column in columns]).movedim((0, 1), (-1, -2))


def walk(
    course: Course, given: Given, turns: Given | None, unit: Unit, watch: Watch
) -> tuple[list[Tensor], list[Tensor]]:
    """All steps. `watch` is called before each; gives the columns at the end, and the strip of each half there.

    Args:
        course: What to play.
        given: All values, no tangents.
        turns: Tangents of some; `start` and, with delays, `strip` must be among them.
        unit: Of `Course.unit` for these.
        watch: Sees every step.
    """
    halves = [given] if turns is None else [given, turns]
    columns = [column for half in halves for column in columns_of(half["start"])]
    fixed = _fixed(halves)
    seats = Seats(unit, fixed)
    ears = _Ears(course, _strip(halves), unit) if course.reads else None
    for begin in range(0, course.steps, course.ahead):
        count = min(course.ahead, course.steps - begin)
        pushed, heard = _pushes_of(halves, begin, count), ears.block() if ears else []
        edges: list[list[Tensor]] = [[] for _ in halves]
        for k, push in enumerate(pushed):
            stages = [_apart(arriving, len(halves)) for arriving in ears.stages(heard, k)] if ears else []
            late = [list(half) for half in zip(*stages, strict=True)]
            watch(begin + k, columns, late[0] if late else [])
            outputs = seats.filled(course.slots({}, columns, late, push))
            parts = [outputs[h * len(outputs) // len(halves) :] for h in range(len(halves))]
            columns = [column for part in parts for column in part[: course.states]]
            for kept, part in zip(edges, parts, strict=True):
                kept += _edges(course, part)
        if ears:
            ears.strip.append(edges, count)
    return columns, _apart(ears.strip.rows, len(halves)) if ears else []


def _strip(halves: Sequence[Given]) -> Tensor:
    """The strips of all halves, their lanes side by side."""
    strips = [half["strip"] for half in halves]
    return strips[0] if len(strips) == 1 else torch.cat(strips, -1)


def _apart(lanes: Tensor, halves: int) -> list[Tensor]:
    """What of it belongs to each half."""
    return [lanes] if halves == 1 else list(lanes.chunk(halves, -1))


class Seats:
    """The inputs of a unit in its order, where what is the same for all steps has its place once."""

    def __init__(self, unit: Unit, fixed: Given) -> None:
        self.call = unit.call
        self.inputs = [fixed.get(name) for name in unit.names]
        self.open = [(i, name) for i, name in enumerate(unit.names) if name not in fixed]

    def filled(self, slots: Given) -> list[Tensor]:
        """The outputs of the unit for the other slots."""
        inputs = self.inputs.copy()
        for i, name in self.open:
            inputs[i] = slots[name]
        return list(self.call(*inputs))


def _edges(course: Course, outputs: list[Tensor]) -> list[Tensor]:
    """Emission after a step and its two slopes, each [region, lane in parts]."""
    edges = [part.movedim(-1, 0) for part in outputs[course.states : course.states + 3 * course.outputs]]
    if course.outputs == 1:
        return edges
    return [torch.stack(edges[i : i + course.outputs], 1) for i in range(0, len(edges), course.outputs)]


class _Ears:
    """What a walk with delays hears: the strip of its halves, and the reads of each block."""

    def __init__(self, course: Course, rows: Tensor, unit: Unit) -> None:
        if course.reads is None:
            raise ConfigError("nothing is late in this network; a walk through it has nothing to hear.")
        self.reads, self.per_step = course.reads, reads_per_step(unit)
        self.strip = Strip(rows, course.ahead)
        number = torch.arange(1, course.ahead * self.per_step + 1, device=rows.device)
        self.matrix = self.reads.matrix(number * (2 // self.per_step), rows)
        now = self.reads.matrix(torch.zeros_like(number[:1]), rows)
        self.last = self.reads.arrivals(now, self.strip.rows)[0]

    def block(self) -> list[Tensor]:
        """What arrives from the start of a block to its end."""
        heard = [self.last, *self.reads.arrivals(self.matrix, self.strip.rows).unbind(0)]
        self.last = heard[-1]
        return heard

    def stages(self, heard: list[Tensor], step: int) -> list[Tensor]:
        """Of these, at the start, middle and end of a step; the end again where a middle is not read."""
        first = step * self.per_step
        return [heard[first], heard[first + self.per_step - 1], heard[first + self.per_step]]


@cache
def _names(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{i}" for i in range(count))


def reads_per_step(unit: Unit) -> int:
    """Two where a scheme reads the middle of a step, one elsewhere."""
    return 2 if unit.needs(f"late.{MIDDLE}.") else 1
