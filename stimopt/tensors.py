"""Shapes, checks and random streams that every other file leans on.

`*batch` comes first, `time` last; a drawn `sample` axis is prepended. Randomness is
an argument: `generator(seed, *path)` names a stream by a path of words and numbers, so
that trial 7 of run 3 draws the same numbers whether or not trials 1 to 6 were run.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .errors import ShapeError

Noun = TypeVar("Noun")

_HASHED_NUMBERS = 256  # beyond, a generator for each row is faster: measured with 4096 rows on one CPU

Batch = Float[Tensor, "*batch"]
Unit = Float[Tensor, "*batch dimension"]
Signal = Float[Tensor, "*batch channel time"]


def stream_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the stream named by `path`; the same on every machine and version."""
    words = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU generator for the stream named by `path`, such as `generator(7, "trial", 3)`."""
    return torch.Generator().manual_seed(stream_seed(seed, *path))


def row_keys(batch_shape: Sequence[int], source: torch.Generator) -> Int[Tensor, "*batch"]:
    """One 62-bit key per batch row, kept in a system's state so that a row's noise is its own."""
    return torch.randint(0, 2**62, tuple(batch_shape), generator=source, dtype=torch.int64, device=source.device)


def row_noise(keys: Int[Tensor, "*batch"], shape: Sequence[int], salt: int, like: Tensor) -> Float[Tensor, "..."]:
    """Standard normal noise, `shape` per batch row, that depends only on the row's key and `salt`.

    A row gets the same noise alone as in any batch. Drawn in float32 on the CPU, then moved to the
    device and dtype of `like`, so float32 and float64 runs see the same path. Few numbers a row are
    hashed for all rows at once, many are drawn row by row, which is slower to begin and faster to go on.
    """
    if math.prod(shape) <= _HASHED_NUMBERS:
        return _hashed_normals(keys.cpu(), math.prod(shape), salt).reshape((*keys.shape, *shape)).to(like)
    rows = [
        torch.randn(tuple(shape), generator=torch.Generator().manual_seed(stream_seed(int(key), salt)))
        for key in keys.reshape(-1)
    ]
    return torch.stack(rows).reshape((*keys.shape, *shape)).to(like)


def _hashed_normals(keys: Tensor, count: int, salt: int) -> Tensor:
    """`count` normals per key, `[*batch, count]` in float32: SplitMix64 of key, salt and place, then Box and Muller.

    References: Steele, Lea and Flood 2014, OOPSLA 49:453-472; Box and Muller 1958, Ann Math Stat 29:610-611.
    """
    places = torch.arange((count + 1) // 2, dtype=torch.int64).add_(1).mul_(_wrapped(0x9E3779B97F4A7C15))
    begin = _mixed(keys ^ _wrapped(salt * 0x9E3779B97F4A7C15))
    bits = _mixed(begin + places.reshape(-1, *(1,) * keys.ndim))  # [half of the count, *batch]: rows innermost are fast
    low, high = ((half & 0xFFFFFFFF).double().add_(0.5).div_(2**32) for half in (bits, bits >> 32))
    radius = low.log_().mul_(-2).sqrt_()
    angle = high.mul_(2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin_()])[:count].float().movedim(0, -1)


def _mixed(bits: Tensor) -> Tensor:
    """The finaliser of SplitMix64; whole numbers wrap round, shifts bring in zeros."""
    bits = ((bits >> 30).bitwise_and_(2**34 - 1).bitwise_xor_(bits)).mul_(_wrapped(0xBF58476D1CE4E5B9))
    bits = ((bits >> 27).bitwise_and_(2**37 - 1).bitwise_xor_(bits)).mul_(_wrapped(0x94D049BB133111EB))
    return (bits >> 31).bitwise_and_(2**33 - 1).bitwise_xor_(bits)


def _wrapped(number: int) -> int:
    """A whole number as the 64-bit one with sign that has the same last 64 bits."""
    return (number + 2**63) % 2**64 - 2**63


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums are then rounded alike on any machine and beside any other work, and small twins run
    faster. The number of threads is put back afterwards.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def require_shape(name: str, value: Tensor, trailing: Sequence[int], axes: str) -> None:
    """Refuse a tensor whose last axes are not `trailing`.

    Raises:
        ShapeError: Naming the tensor, its axes and, where the last two were swapped, the mend.
    """
    size = len(trailing)
    if value.ndim >= size and tuple(value.shape[value.ndim - size :]) == tuple(trailing):
        return
    swapped = size == 2 and value.ndim >= 2 and tuple(value.shape[-2:]) == (trailing[1], trailing[0])
    mend = f" The last two axes look swapped: try {name}.mT." if swapped else ""
    raise ShapeError(f"{name} must end in [{axes}] = {list(trailing)}, got {list(value.shape)}.{mend}")


def require_finite(name: str, value: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        ShapeError: Saying how many entries are not finite.
    """
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise ShapeError(f"{name} has {bad} of {value.numel()} entries that are not finite; drop or mask those trials.")


def map_tensors(noun: Noun, change: Any) -> Noun:
    """The same frozen dataclass with `change` applied to every tensor in it, nested nouns and mappings included."""
    changes = {f.name: _mapped(getattr(noun, f.name), change) for f in fields(noun)}  # type: ignore[arg-type]
    return replace(noun, **changes)  # type: ignore[type-var]


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping) and _holds_tensors(value):
        return {key: _mapped(item, change) for key, item in value.items()}
    return map_tensors(value, change) if _holds_tensors(value) else value


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(isinstance(item, Tensor) for item in value.values())
    if not is_dataclass(value):
        return False
    items = [getattr(value, f.name) for f in fields(value)]
    return any(isinstance(item, Tensor) or _holds_tensors(item) for item in items)


def where_rows(keep: Tensor, kept: Tensor, other: Tensor) -> Tensor:
    """Row by row of the batch, `kept` where `keep` holds and `other` elsewhere, whatever axes follow the batch."""
    return torch.where(keep.reshape((*keep.shape, *(1,) * (kept.ndim - keep.ndim))), kept, other)


def batch_innermost(tensor: Tensor, leading: int = 0) -> Tensor:
    """The same tensor `[leading, *batch, last]`, its last axis before the batch in memory: sums over a short last axis
    and loops over many rows take a fraction of the time, and what is computed from it keeps the order.
    """
    return tensor.movedim(-1, leading).contiguous().movedim(leading, -1)


def mean_over_last(tensor: Tensor) -> Tensor:
    """The mean over the last axis, `[*batch, last]` to `[*batch]`; where that axis is outermost in memory, as in what
    loops over time have read, in the order of memory, which then takes a fraction of the time.
    """
    others = sorted(range(tensor.ndim - 1), key=tensor.stride, reverse=True)
    if not others or tensor.stride(-1) <= tensor.stride(others[0]):
        return tensor.mean(-1)
    mean = tensor.permute(tensor.ndim - 1, *others).mean(0)
    return mean.permute(tuple(sorted(range(len(others)), key=others.__getitem__)))


def carries_gradient(tensor: Tensor) -> bool:
    """Whether what is computed from it is differentiated, backwards or forwards."""
    return (tensor.requires_grad and torch.is_grad_enabled()) or unpack_dual(tensor).tangent is not None


def named_under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def concatenate(nouns: Sequence[Noun]) -> Noun:
    """Join nouns along their first batch axis; everything but the tensors is taken from the first."""
    first = nouns[0]
    changes = {f.name: _joined([getattr(noun, f.name) for noun in nouns]) for f in fields(first)}  # type: ignore[arg-type]
    return replace(first, **changes)  # type: ignore[type-var]


def _joined(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    if isinstance(values[0], Mapping) and _holds_tensors(values[0]):
        return {key: _joined([value[key] for value in values]) for key in values[0]}
    return concatenate(values) if _holds_tensors(values[0]) else values[0]
