"""Delayed coupling of many rows at once: every block of steps reads the past by one sparse matrix.

By the method of steps (see `delays`) all that arrives in a block of steps is known when the block
begins, and where a tract reads is the same in every block, counted from its begin. So weights
and Hermite cubics together are one constant matrix, from what regions emitted to what arrives,
and its transpose in time, from later arrivals back to earlier emissions, carries gradients.

    strip    [step, 3, region, lane]   emission at a step's end, its slopes at start and end; lanes are outputs x rows
    arrivals [read, region, lane]      one at the middle and the end of each step, or at the end alone

Reads are counted in half steps: 2n is the start of step n, 2n + 1 its middle.
Measured (76 regions, 1494 tracts, 64 rows, float32, per region and step): sparse CSR 14 to 25 ns, torch's embedding
bags 11 to 14, but five times as much as CSR in float64; CSR serves both. At 0.1 ms the strip is 27 MB: memory decides.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .delays import Past, hermite, steps_back, tract_delays
from .network import Network

_PARTS = 3


@dataclass(frozen=True)
class Reads:
    """Where the late tracts of a network read, in steps.

    Attributes:
        to_region: Receiving region of each tract.
        from_region: Sending region.
        weights: `[tract]`, or one row per row of the batch.
        delays: In steps.
        regions: How many regions.
        back: Steps that the past reaches back.
        dt_s: Length of a step.
    """

    to_region: Tensor
    from_region: Tensor
    weights: Tensor
    delays: Tensor
    regions: int
    back: int
    dt_s: float

    @property
    def shared(self) -> bool:
        """Whether all rows have the same weights, which then are part of the matrix."""
        return self.weights.ndim == 1

    def entries(self, reads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Every product of a read: number of the tract and of its read, row of the strip from now, and coefficient.

        The row is (step * 3 + part) * regions + region, step 0 being the first after now.

        Args:
            reads: In half steps from now, `[tract, read]` or the same for all tracts.
        """
        place = reads.double() / 2 - self.delays.unsqueeze(-1)
        step = place.floor()
        basis = hermite(place - step, self.dt_s)  # [4, tract, read]
        step = step.long()
        offsets = torch.stack([(step - 1) * _PARTS, step * _PARTS, step * _PARTS + 1, step * _PARTS + 2])
        rows = offsets * self.regions + self.from_region.unsqueeze(-1)
        basis, rows = basis.permute(2, 1, 0), rows.permute(2, 1, 0)  # read by read, and there region by region
        used = basis != 0
        read, tract, _ = used.nonzero(as_tuple=True)
        return tract, read, rows[used], basis[used]

    def matrix(self, reads: Tensor, like: Tensor) -> Tensor:
        """From a strip of `back + 1` steps, the last of them just over, to arrivals at `reads`."""
        tract, read, row, value = self.entries(reads)
        to, count = (self.to_region[tract], self.regions) if self.shared else (tract, len(self.delays))
        value = value * self.weights[tract] if self.shared else value
        rows = (self.back + 1) * _PARTS * self.regions
        return _sparse(read * count + to, row + rows, value.to(like), (len(reads) * count, rows))

    def arrivals(self, matrix: Tensor, strip: Tensor) -> Tensor:
        """`[read, region, lane]` for the reads of `matrix`."""
        lanes = strip.shape[-1]
        read = matrix @ strip.view(-1, lanes)
        if self.shared:
            return read.view(-1, self.regions, lanes)
        weights = self.weights.flatten(0, -2).mT  # [tract, row]
        weighted = read.view(-1, len(self.delays), lanes // weights.shape[-1], weights.shape[-1]) * weights[:, None]
        summed = weighted.new_zeros(len(weighted), self.regions, *weighted.shape[2:])
        return summed.index_add(1, self.to_region, weighted).flatten(2)

    def adjoint(self, block: int, per_step: int, like: Tensor) -> Tensor:
        """From cotangents of later arrivals to those of the emissions of a block of steps.

        Rows are those of a strip of `block` steps; columns are the reads after the block, latest first, each with all
        regions: as many as the longest delay keeps in reach (`reach`).
        """
        stride = 2 // per_step
        number = (2 * self.delays / stride).floor().long().unsqueeze(-1) + torch.arange(
            (block + 1) * per_step + 1, device=self.delays.device
        )
        tract, read, row, value = self.entries(number * stride)
        later = number[tract, read] - block * per_step  # 1 is the first after the block
        mine = (row >= 0) & (row < block * _PARTS * self.regions) & (later > 0) & (later <= self.reach(per_step))
        tract, row, value, later = tract[mine], row[mine], value[mine] * self.weights[tract[mine]], later[mine]
        column = (self.reach(per_step) - later) * self.regions + self.to_region[tract]
        size = (block * _PARTS * self.regions, self.reach(per_step) * self.regions)
        return _sparse(row, column, value.to(like), size)

    def reach(self, per_step: int) -> int:
        """How many reads after a step can still hear it."""
        return per_step * (self.back + 1)


def _sparse(row: Tensor, column: Tensor, value: Tensor, size: tuple[int, int]) -> Tensor:
    if bool((row.diff() < 0).any()):
        row, order = row.sort(stable=True)
        column, value = column[order], value[order]
    starts = torch.nn.functional.pad(torch.bincount(row, minlength=size[0]).cumsum(0), (1, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning)
        return torch.sparse_csr_tensor(starts, column, value, size, check_invariants=False)


def reads_of(network: Network, dt_s: float) -> Reads:
    """The reads of a network with delays."""
    to_region, from_region, delays = tract_delays(network, dt_s)
    weights = network.weights.detach()[..., to_region, from_region]
    return Reads(
        to_region, from_region, weights, delays.detach(), network.weights.shape[-1], steps_back(network, dt_s), dt_s
    )


def strip_of(past: Past) -> Tensor:
    """A past as `[step, 3, region, lane]`; its first step ends where the past begins, and has no slopes."""
    whole = past.emission._base
    if whole is not None and _is_view(past, whole):
        return whole
    value = _lanes(past.emission)
    begin, end = (
        torch.nn.functional.pad(_lanes(slope), (0, 0, 0, 0, 1, 0)) for slope in (past.slope_start, past.slope_end)
    )
    return torch.stack([value, begin, end], 1)


def _is_view(past: Past, strip: Tensor) -> bool:
    """Whether a past is just the one that `past_of_strip` makes of a strip, which need not be copied then."""
    *batch_shape, regions, outputs, edges = past.emission.shape
    if strip.shape != (edges, _PARTS, regions, outputs * math.prod(batch_shape)):
        return False
    same = past_of_strip(strip, tuple(batch_shape), outputs)
    parts = [(getattr(past, f.name), getattr(same, f.name)) for f in fields(Past)]
    turned = any(unpack_dual(one).tangent is not None for one, _ in parts)
    return not turned and all(
        one._base is strip and one.storage_offset() == other.storage_offset() and one.stride() == other.stride()
        for one, other in parts
    )


def _lanes(part: Tensor) -> Tensor:
    """[*batch, region, output, time] to [time, region, lane]."""
    return part.movedim((-1, -3, -2), (0, 1, 2)).flatten(2) if part.ndim > 3 else part.permute(2, 0, 1)


def past_of_strip(strip: Tensor, batch_shape: tuple[int, ...], outputs: int) -> Past:
    """The other way round."""
    parts = strip.unflatten(-1, (outputs, *batch_shape)).movedim(
        (2, 3, 0), (-3, -2, -1)
    )  # [3, *batch, region, output, time]
    return Past(parts[0], parts[1][..., 1:], parts[2][..., 1:])


class Strip:
    """The last `window` rows of a growing series, always together in memory.

    Rows are appended at the end of a buffer; when it is full the window moves to its begin, so that every row is
    copied about once. The one thing here that changes in place; it lives as long as one call.
    """

    def __init__(self, rows: Tensor, room: int) -> None:
        self.window = len(rows)
        self._buffer = rows.new_empty(self.window * 2 + room, *rows.shape[1:])
        self._buffer[: self.window] = rows
        self._end = self.window

    @property
    def rows(self) -> Tensor:
        """The window."""
        return self._buffer[self._end - self.window : self._end]

    def append(self, halves: Sequence[list[Tensor]], count: int) -> None:
        """Append `count` rows, given as all the parts of each half of their lanes in the order of memory."""
        if self._end + count > len(self._buffer):
            self._buffer[: self.window] = self.rows.clone()
            self._end = self.window
        room = self._buffer[self._end : self._end + count]
        if len(halves) == 1:
            torch.stack(halves[0], out=room.view(len(halves[0]), *halves[0][0].shape))
        else:
            by_part = room.view(-1, *room.shape[2:])  # [step and part, region, lane]
            for lanes, parts in zip(by_part.chunk(len(halves), -1), halves, strict=True):
                lanes.copy_(torch.stack(parts).reshape(lanes.shape))
        self._end += count
