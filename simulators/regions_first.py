"""A graph over [*batch, region] told to lie in memory as [region, *batch], from its inputs to its outputs.

Inputs of a compiled step lie as [region, *batch], and equations are written over [*batch, region].
A compiler that sees turned axes between them keeps what it must store in the order of the
equations, then loops now over one order, now over the other, and passes through memory several
times. Sums and products do not care which axis comes first; so here they are made over the
order of memory, and all of a step becomes loops of one kind, which are then one.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate

_aten = torch.ops.aten
_Operation: TypeAlias = Any  # an operator of torch's own list, which has no public type
_ALIKE = (
    _aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default, _aten.clone.default,
    _aten.detach.default, _aten.alias.default,
)  # fmt: skip


class Turned:
    """A tensor [*batch, region], kept as [region, *batch]."""

    def __init__(self, lanes: Tensor) -> None:
        self.lanes = lanes

    def upright(self) -> Tensor:
        """The tensor."""
        return self.lanes.movedim(0, -1)


def regions_first(graph: GraphModule, examples: Sequence[Tensor]) -> GraphModule:
    """The same graph, its elementwise operations over tensors in the order of memory."""
    turned: GraphModule = make_fx(lambda *inputs: _InLanes(graph).run(*inputs))(*examples)
    turned.graph.eliminate_dead_code()
    turned.recompile()
    return turned


class _InLanes(Interpreter):
    """Runs a graph with `Turned` in the place of tensors that were turned."""

    def call_function(self, target: _Operation, args: Any, kwargs: Any) -> Any:
        if target is _aten.permute.default:
            return _permuted(*args)
        if any(isinstance(arg, Turned) for arg in args):
            if target in _ALIKE:
                return Turned(target(args[0].lanes, *args[1:], **kwargs))
            if torch.Tag.pointwise in getattr(target, "tags", ()):
                axes = max(arg.lanes.ndim for arg in args if isinstance(arg, Turned))
                if all(arg.ndim <= axes for arg in args if isinstance(arg, Tensor)):
                    return Turned(target(*(_laid(arg, axes) for arg in args), **kwargs))
        return super().call_function(target, map_aggregate(args, _upright), map_aggregate(kwargs, _upright))

    def output(self, target: _Operation, args: Any, kwargs: Any) -> Any:
        return map_aggregate(args[0], _upright)


def _permuted(tensor: Tensor | Turned, order: Sequence[int]) -> Tensor | Turned:
    """Turning is noted, and turning back gives what was there."""
    axes = tensor.lanes.ndim if isinstance(tensor, Turned) else tensor.ndim
    order = [axis % axes for axis in order]
    if isinstance(tensor, Turned):
        back = [axes - 1, *range(axes - 1)]
        return tensor.lanes if order == back else tensor.upright().permute(order)
    return Turned(tensor) if axes > 1 and order == [*range(1, axes), 0] else tensor.permute(order)


def _laid(value: Any, axes: int) -> Any:
    """An operand in the order of memory."""
    if isinstance(value, Turned):
        lanes = value.lanes
        return lanes.reshape(lanes.shape[0], *[1] * (axes - lanes.ndim), *lanes.shape[1:])
    if isinstance(value, Tensor) and value.ndim:
        return value.reshape(*[1] * (axes - value.ndim), *value.shape).movedim(-1, 0)
    return value


def _upright(value: Any) -> Any:
    return value.upright() if isinstance(value, Turned) else value
