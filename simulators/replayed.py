"""A stretch of a simulation as one node of autograd: forgotten on the way there, played again on the way back.

Autograd then holds what enters a stretch and nothing of its steps. torch's own checkpoints free the
tensors but keep every node of the first pass, 0.15 MB a step of a small network, which grows with
time. A node must be told of all that it differentiates, so the circuit's tensors go in by their places.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_PLAIN = (float, int, str, bool, type(None))


def tensors_of(value: Any, path: str = "") -> dict[str, Tensor] | None:
    """Every tensor of a circuit by its place; None where it holds things that may hide more."""
    if isinstance(value, Tensor):
        return {path: value}
    if isinstance(value, _PLAIN):
        return {}
    if isinstance(value, tuple):
        parts = [(f"{path}.{place}", item) for place, item in enumerate(value)]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(f"{path}.{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value)]
    else:
        return None
    found: dict[str, Tensor] = {}
    for place, item in parts:
        inner = tensors_of(item, place)
        if inner is None:
            return None
        found |= inner
    return found


def with_tensors(value: Any, tensors: Mapping[str, Tensor], path: str = "") -> Any:
    """The same circuit with other tensors, in the place of numbers too; its values were checked when it was made."""
    if isinstance(value, Tensor | float):
        return tensors.get(path, value)
    if isinstance(value, tuple):
        return tuple(with_tensors(item, tensors, f"{path}.{place}") for place, item in enumerate(value))
    if not dataclasses.is_dataclass(value):
        return value
    same = object.__new__(type(value))
    for f in dataclasses.fields(value):
        object.__setattr__(same, f.name, with_tensors(getattr(value, f.name), tensors, f"{path}.{f.name}"))
    return same


def replayed(play: Callable[..., Sequence[Tensor]], *given: Tensor) -> tuple[Tensor, ...]:
    """What `play` makes of tensors; its gradients are those of playing it again."""
    made: Any = _Replayed.apply
    results: tuple[Tensor, ...] = made(play, *given)
    return results


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, play: Callable[..., Sequence[Tensor]], *given: Tensor) -> tuple[Tensor, ...]:
        """Play without a memory."""
        ctx.play = play
        ctx.save_for_backward(*given)
        return tuple(play(*given))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Play again, and go back."""
        needed = ctx.needs_input_grad[1:]
        given = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            results = ctx.play(*given)
        pairs = [(one, pull) for one, pull in zip(results, cotangents, strict=True) if one.requires_grad]
        wanted = [x for x in given if x.requires_grad]
        ends, pulls = [one for one, _ in pairs], [pull for _, pull in pairs]
        found = iter(torch.autograd.grad(ends, wanted, pulls, allow_unused=True))
        return None, *(next(found) if x.requires_grad else None for x in given)
