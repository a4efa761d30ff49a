"""Compiled steps: made from a `Step` for inputs of given shapes, with its derivatives, and kept.

Everything that has a value is an input, so new values never compile anew; new shapes do. Units
are kept for the life of the process, by what they were traced from; torch keeps the machine
code on disk for the next one. Inputs are the slots that `compiled_step` names; those of regions lie
as [region, *batch], the batch innermost, and so do the outputs: columns of the state, then all edges in one,
[region, 3 x output, *batch], then the potential where it is told. Axes are turned inside the unit, where it costs
nothing.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from .columns import without_stacks
from .compiled_step import Slots, Step, form
from .integrate import Scheme
from .regions_first import regions_first

_OF_REGIONS = ("state.", "wave.", "drive.", "late.")
_MOST_UNITS = 256  # kept; a study of a few circuits, shapes and schemes needs some tens


@dataclass(frozen=True)
class Unit:
    """A compiled step.

    Attributes:
        names: The slots that it reads, in order; others need not be made.
        call: Takes tensors in that order and gives a list.
    """

    names: tuple[str, ...]
    call: Any

    def needs(self, prefix: str) -> bool:
        """Whether it reads any slot of this kind."""
        return any(name.startswith(prefix) for name in self.names)


# code, and the scheme that it was made from: one that holds numbers is known by its place in memory, which another one
# would be given if it were let go
_units: dict[Any, tuple[Unit, Scheme]] = {}
_compiling = threading.Lock()


def compiled(step: Step, slots: Slots, pulled: Sequence[str] = ()) -> Unit:
    """The unit of a step for slots of these shapes.

    Args:
        step: What to compile.
        slots: Examples of all inputs. Where some have tangents, those of all outputs follow the outputs, a
            direction at a time.
        pulled: Slots whose cotangents are wanted instead of the outputs.
    """
    names = tuple(slots)
    look = tuple((tuple(x.shape), x.stride(), x.dtype, x.device) for x in slots.values())
    rules = (step.scheme, step.dt_s, step.hold, step.edges, step.told, tuple(pulled), torch.get_num_threads())
    key = (form(step.dynamics), names, look, id(step.scheme), *rules[1:])
    with _compiling:
        if key not in _units:
            if len(_units) >= _MOST_UNITS:
                _units.pop(next(iter(_units)))
            _units[key] = _compile(step, slots, pulled), step.scheme
        return _units[key][0]


def _compile(step: Step, slots: Slots, pulled: Sequence[str]) -> Unit:
    turns = {name: x.detach() for name, x in slots.items() if name.startswith("turn.")}
    values = {name: x.detach() for name, x in slots.items() if name not in turns}
    names, examples = list(values), list(values.values())
    with torch.enable_grad():
        graph = without_stacks(lambda *given: _turned(step, dict(zip(names, given, strict=True))), examples)
        graph = regions_first(graph, examples)
    if turns:
        graph, names, examples = _forward_mode(graph, names, examples, turns)
    if pulled:
        graph, names, examples = _reverse_mode(graph, names, examples, pulled)
    return _lowered(graph, names, examples)


def _turned(step: Step, slots: Slots) -> list[Tensor]:
    """A step over inputs and outputs with regions first."""
    outputs = step({name: x.movedim(0, -1) if name.startswith(_OF_REGIONS) else x for name, x in slots.items()})
    laid = [x.movedim(-1, 0) for x in outputs]
    first, last = len(step.dynamics.states), len(laid) - step.told
    edges = [torch.stack(laid[first:last], 1)] if step.edges else []
    return [*laid[:first], *edges, *laid[last:]]


def _forward_mode(
    graph: GraphModule, names: list[str], examples: list[Tensor], turns: Slots
) -> tuple[GraphModule, list[str], list[Tensor]]:
    moving = [name.removeprefix("turn.0.") for name in turns if name.startswith("turn.0.")]
    places = [names.index(name) for name in moving]
    count = len(turns) // len(places)
    ordered = [f"turn.{number}.{name}" for number in range(count) for name in moving]

    def both(*values: Tensor) -> list[Tensor]:
        plain = list(values[: len(names)])

        def moved(*some: Tensor) -> list[Tensor]:
            for place, value in zip(places, some, strict=True):
                plain[place] = value
            return list(graph(*plain))

        # what a vjp does to its cotangent is linear, and the transpose of that is the jvp; unlike torch.func.jvp this
        # can be traced while the caller himself is differentiating forwards
        primal, pull, *_ = torch.func.vjp(moved, *[plain[p] for p in places])
        nothing = [torch.zeros_like(value) for value in primal]
        _, push, *_ = torch.func.vjp(lambda *cotangents: pull(list(cotangents)), *nothing)
        tangents = values[len(names) :]
        each = [tangents[i : i + len(places)] for i in range(0, len(tangents), len(places))]
        return [*primal, *(pushed for tangent in each for pushed in push(tuple(tangent)))]

    examples = examples + [turns[name] for name in ordered]
    return make_fx(both)(*examples), names + ordered, examples


def _reverse_mode(
    graph: GraphModule, names: list[str], examples: list[Tensor], pulled: Sequence[str]
) -> tuple[GraphModule, list[str], list[Tensor]]:
    places = [names.index(name) for name in pulled]
    outputs = list(graph(*examples))

    def back(*values: Tensor) -> list[Tensor]:
        plain = list(values[: len(names)])

        def moved(*some: Tensor) -> list[Tensor]:
            for place, value in zip(places, some, strict=True):
                plain[place] = value
            return list(graph(*plain))

        _, pull, *_ = torch.func.vjp(moved, *[plain[p] for p in places])
        return list(pull(list(values[len(names) :])))

    examples = examples + [output.new_zeros(output.shape) for output in outputs]
    return make_fx(back)(*examples), names + [f"pull.{i}" for i in range(len(outputs))], examples


def _laid_out(graph: GraphModule, examples: list[Tensor]) -> None:
    """Every output in one piece of memory, in the order of its axes: the next step reads it so, unchecked."""
    (end,) = (node for node in graph.graph.nodes if node.op == "output")
    made = list(graph(*examples))
    outputs = list(end.args[0])
    with graph.graph.inserting_before(end):
        for place, value in enumerate(made):
            if isinstance(value, Tensor) and not value.is_contiguous():
                outputs[place] = graph.graph.call_function(
                    torch.ops.aten.clone.default, (outputs[place],), {"memory_format": torch.contiguous_format}
                )
    end.args = (outputs,)
    graph.recompile()


def _lowered(graph: GraphModule, names: list[str], examples: list[Tensor]) -> Unit:
    """Machine code of a graph, for the inputs that it reads."""
    import torch._inductor  # here: it takes a second to import, and only compiled simulations need it

    _laid_out(graph, examples)
    holders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    read = [bool(node.users) for node in holders]
    for node, used in zip(holders, read, strict=True):
        if not used:
            graph.graph.erase_node(node)
    graph.recompile()
    kept: list[Any] = [example for example, used in zip(examples, read, strict=True) if used]
    with torch.no_grad():
        # sizes are right by the unit's key; checking them again at each step takes as long as a small circuit's sums
        call = torch._inductor.compile(graph, kept, options={"size_asserts": False})
        made = call(*kept)  # the machine code is made at the first call; an error belongs here
    laid = all(output.is_contiguous() for output in made)
    slots = tuple(name for name, used in zip(names, read, strict=True) if used)
    return Unit(slots, call if laid else _Laid(call))


@dataclass(frozen=True)
class _Laid:
    """Machine code whose compiler took a sum with nothing for a view of something larger, whatever the graph asks."""

    call: Any

    def __call__(self, *given: Tensor) -> list[Tensor]:
        return [output.contiguous() for output in self.call(*given)]
