"""States taken apart: an equation over a last axis of states becomes one over separate columns.

Circuits stack what they compute along the last axis and take it apart again at every stage of
a step. Compiled as it stands, each stack is a pass through memory with the states innermost,
and nothing is vectorised: a Jansen-Rit step then costs five times as much. Once the step is a
graph of tensor operations, stacks can be followed to where they are read, so what remains are
columns [*batch, region], which a compiler makes one loop of. What is not known here is put
together first and computed as it stands: slower, never wrong.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate

_aten = torch.ops.aten
_Operation: TypeAlias = Any  # an operator of torch's own list, which has no public type


class Columns:
    """A tensor that is still in parts along its last axis."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = list(parts)
        self.axis = max(part.ndim for part in parts)  # where the parts would be stacked

    def stacked(self) -> Tensor:
        """The tensor."""
        return torch.stack(torch.broadcast_tensors(*self.parts), -1)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Columns":
        """`change` of every part."""
        return Columns([change(part) for part in self.parts])


class _Layers:
    """Several of them stacked along a new first axis: the drive at the stages of a step."""

    def __init__(self, layers: Sequence[Columns]) -> None:
        self.layers = list(layers)

    def stacked(self) -> Tensor:
        return torch.stack([layer.stacked() for layer in self.layers])


def without_stacks(function: Callable[..., list[Tensor]], examples: Sequence[Tensor]) -> GraphModule:
    """The graph of `function` at inputs like `examples`, with stacks along the last axis followed to where they go."""
    whole = make_fx(function)(*examples)
    graph: GraphModule = make_fx(lambda *inputs: _InColumns(whole).run(*inputs))(*examples)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


class _InColumns(Interpreter):
    """Runs a graph with `Columns` in the place of stacked tensors."""

    def call_function(self, target: _Operation, args: Any, kwargs: Any) -> Any:
        made = _made(target, args)
        if args and isinstance(args[0], _Layers) and target is _aten.select.int and args[1] == 0:
            return args[0].layers[args[2]]
        if made is None and any(isinstance(arg, Columns) for arg in args):
            made = _kept(target, args, kwargs)
        if made is not None:
            return made
        return super().call_function(target, map_aggregate(args, _stacked), map_aggregate(kwargs, _stacked))

    def output(self, target: _Operation, args: Any, kwargs: Any) -> Any:
        return map_aggregate(args[0], _stacked)


def _stacked(value: Any) -> Any:
    return value.stacked() if isinstance(value, Columns | _Layers) else value


def _made(target: _Operation, args: Any) -> Columns | _Layers | None:
    """Columns where an operation makes a last axis of plain tensors, layers where it makes a first one of columns."""
    if target is _aten.stack.default and all(isinstance(part, Columns) for part in args[0]):
        return _Layers(args[0]) if _given(args, 1) == 0 else None
    if target is _aten.stack.default and all(isinstance(part, Tensor) for part in args[0]):
        return Columns(args[0]) if _given(args, 1) in (-1, args[0][0].ndim) else None
    if target is _aten.unsqueeze.default and isinstance(args[0], Tensor):
        return Columns([args[0]]) if args[1] in (-1, args[0].ndim) else None
    return None


def _given(args: Any, place: int) -> int:
    return int(args[place]) if len(args) > place else 0


def _kept(target: _Operation, args: Any, kwargs: Any) -> Any:
    """What an operation makes of columns without putting them together; None where it cannot."""
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return _pointwise(target, args, kwargs)
    columns = args[0]
    if not isinstance(columns, Columns):
        return None
    if target in (_aten.clone.default, _aten.detach.default, _aten.alias.default, _aten.zeros_like.default):
        return columns.each(target)
    if target in (_aten.unbind.int, _aten.select.int, _aten.slice.Tensor):
        return _picked(target, columns, args) if _given(args, 1) in (-1, columns.axis) else None
    if target is _aten.constant_pad_nd.default and len(args[1]) == 2 and args[1][0] == 0 and min(args[1]) >= 0:
        value = args[2] if len(args) > 2 else 0
        return Columns([*columns.parts, *[torch.full_like(columns.parts[0], value)] * args[1][1]])
    return None


def _picked(target: _Operation, columns: Columns, args: Any) -> Any:
    if target is _aten.unbind.int:
        return columns.parts
    if target is _aten.select.int:
        return columns.parts[args[2]]
    return Columns(columns.parts[slice(*args[2:])])


def _pointwise(target: _Operation, args: Any, kwargs: Any) -> Columns | None:
    """An operation on every column; other tensors are read along their last axis, where they have one."""
    count = max(len(arg.parts) for arg in args if isinstance(arg, Columns))
    if any(isinstance(arg, Tensor) and arg.ndim and arg.shape[-1] not in (1, count) for arg in args):
        return None  # a single column against an axis of something else: that axis is no axis of states
    return Columns([target(*(_column(arg, i) for arg in args), **kwargs) for i in range(count)])


def _column(value: Any, number: int) -> Any:
    if isinstance(value, Columns):
        return value.parts[number if len(value.parts) > 1 else 0]
    if isinstance(value, Tensor) and value.ndim:
        return value.select(-1, number if value.shape[-1] > 1 else 0)
    return value
