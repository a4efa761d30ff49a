"""The loop over compiled steps: blocks of steps, what arrives in each, and what is kept on the way.

A walk has one part, the values, or more, the values and one or several tangents, which then
travel together through the same unit, each with a strip of its own. What has a region lies in
memory as the units read it, [region, *batch].

    given   start [*batch, region, state], waves, drive, strip, instant, and every leaf of the circuit by name
    turns   tangents of some of these, by the same names, once for each direction
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import TypeAlias

import torch
from torch import Tensor

from stimopt.errors import ConfigError

from .compiled_delays import Reads
from .compiled_step import Step
from .compiled_strip import Strip, Sums
from .compiled_unit import Unit, compiled
from .integrate import MIDDLE

Given: TypeAlias = Mapping[str, Tensor]
Watch = Callable[[int, list[Tensor], list[Tensor], list[Tensor]], None]
"""Step number, columns before it, what arrives at its stages, and the potential before it of each part, where told."""
BLOCK = 64  # steps whose noise and drive are put in order at once; and of a block, where no delay says less
_STAGES = 3


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
    ahead: int = BLOCK

    @property
    def states(self) -> int:
        """How many states a region has."""
        return len(self.step.dynamics.states)

    @property
    def outputs(self) -> int:
        """How many outputs a region has."""
        return len(self.step.dynamics.outputs)

    @property
    def late(self) -> Reads:
        """The reads of a network with delays.

        Raises:
            ConfigError: If nothing is late.
        """
        if self.reads is None:
            raise ConfigError("nothing is late in this network; a walk through it has nothing to hear.")
        return self.reads

    def names(self, parts: Sequence[Given]) -> list[str]:
        """Slots of what changes from step to step: columns of each part, what each hears at each stage, and pushes."""
        prefixes = _prefixes(len(parts))
        pushed = [name for prefix, part in zip(prefixes, parts, strict=True) for name in _pushed(part, prefix)]
        columns = [name for prefix in prefixes for name in _names(f"{prefix}state.", self.states)]
        if self.reads is None:
            return [*columns, *pushed]
        stages = [f"{prefix}late.{stage}." for prefix in prefixes for stage in range(_STAGES)]
        return [*columns, *(name for stage in stages for name in _names(stage, self.outputs)), *pushed]

    def lanes(self, arriving: Tensor) -> list[list[Tensor]]:
        """What arrives, `[read, region, lane]`, read by read and output by output, each [region, *batch]."""
        regions = arriving.shape[1]
        if self.outputs == 1:
            return [[read] for read in arriving.view(-1, regions, *self.batch_shape).unbind(0)]
        by_output = arriving.view(-1, regions, self.outputs, *self.batch_shape).movedim(2, 1).contiguous()
        return [list(read.unbind(0)) for read in by_output.unbind(0)]

    def unit(self, given: Given, turns: Sequence[Given] = (), pulled: Sequence[str] = (), told: bool = False) -> Unit:
        """The compiled step for inputs like these; with `told` it tells the potential, whatever the step does."""
        parts = [given, *turns]
        regions = given["start"].shape[-2]
        columns = [given["start"].new_empty(regions, *self.batch_shape)] * (self.states * len(parts))
        late = []
        if self.reads is not None:
            now = [part["strip"][None, :, 0, 0].contiguous() for part in parts]
            late = [one for arriving in now for one in _STAGES * self.lanes(arriving)[0]]
        names, (push,) = self.names(parts), _pushes_of(parts, 0, 1)
        moving = dict(zip(names, [*columns, *late, *push], strict=True))
        return compiled(replace(self.step, told=told or self.step.told), {**_fixed(parts), **moving}, pulled)


@cache
def _prefixes(count: int) -> tuple[str, ...]:
    """Of the slots of each part: values first, then one tangent after the other."""
    return ("", *(f"turn.{number}." for number in range(count - 1)))


def _fixed(parts: Sequence[Given]) -> dict[str, Tensor]:
    """What is the same for all steps, by slot."""
    kept = ("leaf", "instant")
    prefixes = _prefixes(len(parts))
    return {
        f"{p}{n}": x for p, part in zip(prefixes, parts, strict=True) for n, x in part.items() if n.startswith(kept)
    }


def _pushed(given: Given, prefix: str) -> list[str]:
    """Slots of noise and drive from outside."""
    waves = _names(f"{prefix}wave.", given["waves"].shape[-1]) if "waves" in given else ()
    stages = range(_STAGES) if "drive" in given else ()
    return [*waves, *(name for s in stages for name in _names(f"{prefix}drive.{s}.", given["drive"].shape[-1]))]


def _pushes_of(parts: Sequence[Given], begin: int, count: int) -> list[list[Tensor]]:
    by_part = [_pushes(part, begin, count) for part in parts]
    return [[push for pushed in step for push in pushed] for step in zip(*by_part, strict=True)]


def pushes_back(given: Given, steps: int) -> Iterator[list[Tensor]]:
    """Those of values, from the last step to the first."""
    for begin in reversed(range(0, steps, BLOCK)):
        yield from reversed(_pushes(given, begin, min(BLOCK, steps - begin)))


def _all_pushes(parts: Sequence[Given], steps: int) -> Iterator[list[Tensor]]:
    """Of one step after the other; put in order by many at once, however short the shortest delay is."""
    for begin in range(0, steps, BLOCK):
        yield from _pushes_of(parts, begin, min(BLOCK, steps - begin))


def _pushes(given: Given, begin: int, count: int) -> list[list[Tensor]]:
    """What is in the slots of noise and drive at each step of a block."""
    steps: list[list[Tensor]] = [[] for _ in range(count)]
    if "waves" in given:
        waves = given["waves"][begin : begin + count].movedim((-1, -2), (1, 2)).contiguous()
        _deal(waves.flatten(0, 1), steps)
    if "drive" in given:
        drive = given["drive"][begin : begin + count].movedim((-1, -2), (2, 3)).contiguous()
        _deal(drive.flatten(0, 2), steps)
    return steps


def _deal(parts: Tensor, steps: list[list[Tensor]]) -> None:
    each = len(parts) // len(steps)
    apart = parts.unbind(0)
    for number, step in enumerate(steps):
        step += apart[number * each : (number + 1) * each]


def columns_of(state: Tensor) -> list[Tensor]:
    """[*batch, region, state] as columns [region, *batch], each in one piece of memory."""
    return list(state.movedim((-1, -2), (0, 1)).contiguous().unbind(0))


def state_of(columns: Sequence[Tensor]) -> Tensor:
    """The other way round: a view of columns that are put together once."""
    return torch.stack(list(columns)).movedim((0, 1), (-1, -2))


def walk(
    course: Course, given: Given, turns: Sequence[Given], unit: Unit, watch: Watch, still: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """All steps. `watch` is called for each; gives the columns at the end, and the strip of each part there.

    Args:
        course: What to play.
        given: All values, no tangents.
        turns: Tangents of some, one or more of each; `start` and, with delays, `strip` must be among them.
        unit: Of `Course.unit` for these.
        watch: Sees every step; of what arrives, the values.
        still: Whether the strips hold one state of rest throughout, and may be written over.
    """
    parts = [given, *turns]
    columns = [column for part in parts for column in columns_of(part["start"])]
    seats = Seats(unit, _fixed(parts), course.names(parts))
    ears = _ears(course, _strips(course, given, turns, still), unit) if course.reads else []
    pushed = _all_pushes(parts, course.steps)
    for begin in range(0, course.steps, course.ahead):
        heard = [ear.block() for ear in ears]
        for k, push in enumerate(islice(pushed, course.ahead)):
            late = [ear.stages(block, k) for ear, block in zip(ears, heard, strict=True)]
            outputs = seats.filled([*columns, *(one for arriving in late for one in arriving), *push])
            each = len(outputs) // len(parts)
            told = outputs[each - 1 :: each] if course.step.told else []
            watch(begin + k, columns, late[0] if late else [], told)
            columns = [x for first in range(0, len(outputs), each) for x in outputs[first : first + course.states]]
            for number, ear in enumerate(ears):
                ear.hear(outputs[number * each + course.states])
    return columns, [ear.strip.rows for ear in ears]


class Seats:
    """The inputs of a unit in its order, where what is the same for all steps has its place once.

    Args:
        unit: Whose inputs.
        fixed: What is the same for all steps.
        names: Slots of the rest, in the order in which `filled` is given them.
    """

    def __init__(self, unit: Unit, fixed: Given, names: Sequence[str]) -> None:
        place = {name: i for i, name in enumerate([*names, *fixed])}
        self.call, self.fixed = unit.call, list(fixed.values())
        self.order = [place[name] for name in unit.names]

    def filled(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The outputs of the unit."""
        inputs = [*values, *self.fixed]
        return list(self.call(*[inputs[i] for i in self.order]))


def _strips(course: Course, given: Given, turns: Sequence[Given], still: bool) -> list[Strip]:
    """Of values and of their tangents, those in one memory: so they are one tensor when the walk is over."""
    rings = given["strip"].new_empty(len(turns), *given["strip"].shape)
    turned = [Strip(turn["strip"], course.steps, ring=ring) for turn, ring in zip(turns, rings, strict=True)]
    return [Strip(given["strip"], course.steps, still), *turned]


def _ears(course: Course, strips: Sequence[Strip], unit: Unit) -> list["_Ears"]:
    """Of all parts, which read alike."""
    per_step = reads_per_step(unit)
    ends = torch.arange(course.ahead * per_step + 1, device=strips[0].ring.device) * (2 // per_step)
    now, block = (course.late.sums(reads, strips[0]) for reads in (ends[:1], ends[1:]))
    return [_Ears(course, strip, now, block, per_step) for strip in strips]


class _Ears:
    """What a part of a walk hears of its own past, and its strip."""

    def __init__(self, course: Course, strip: Strip, now: Sums, block: Sums, per_step: int) -> None:
        self.course, self.strip, self.sums, self.per_step = course, strip, block, per_step
        self.last = self._arrivals(now)[0]

    def block(self) -> list[list[Tensor]]:
        """What arrives from the start of a block to its end."""
        heard = [self.last, *self._arrivals(self.sums)]
        self.last = heard[-1]
        return heard

    def _arrivals(self, sums: Sums) -> list[list[Tensor]]:
        return self.course.lanes(self.course.late.arrivals(sums, self.strip))

    def stages(self, heard: list[list[Tensor]], step: int) -> list[Tensor]:
        """Of these, at the start, middle and end of a step; the end again where a middle is not read."""
        first = step * self.per_step
        return [*heard[first], *heard[first + self.per_step - 1], *heard[first + self.per_step]]

    def hear(self, edges: Tensor) -> None:
        """What a step emitted, `[region, 3 x output, *batch]`."""
        self.strip.append(edges.view(len(edges), *self.strip.ring.shape[2:]))


@cache
def _names(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{i}" for i in range(count))


def reads_per_step(unit: Unit) -> int:
    """Two where a scheme reads the middle of a step, one elsewhere."""
    return 2 if unit.needs(f"late.{MIDDLE}.") else 1
