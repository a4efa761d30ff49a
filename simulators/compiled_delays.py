"""Delayed coupling of many rows at once: every block of steps reads the past by the same weighted sums.

By the method of steps (see `delays`) all that arrives in a block of steps is known when the block
begins, and where a tract reads is the same in every block, counted from its begin. So weights
and Hermite cubics together are one constant list of sums, from what regions emitted to what
arrives, and its transpose in time, from later arrivals back to earlier emissions, carries gradients.

    strip    [region, step, 3, lane]   emission at a step's end, its slopes at start and end; lanes are outputs x rows
    arrivals [read, region, lane]      one at the middle and the end of each step, or at the end alone

Reads are counted in half steps: 2n is the start of step n, 2n + 1 its middle. The strip is a ring, so no step is ever
moved; each sum keeps to one region's stretch of it, which the next read of the same tract finds in the cache again.
Measured (76 regions, 1494 tracts, 64 rows, float32, 0.1 ms, an AMD EPYC, per region and step): torch's embedding bags
7 ns in this order and 12 with steps outermost, sparse CSR 20 to 40; in float64 bags cost five times as much as CSR.
Adding each step ahead to all that it will reach (Numba, a third of the memory to keep near) was tried and not kept: it
was faster without tangents at 0.1 ms, slower with them and at 1 ms.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .compiled_strip import Strip, Sums
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
        """Whether all rows have the same weights, which then are part of the sums."""
        return self.weights.ndim == 1

    def entries(self, reads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Every product of a read: number of the tract and of its read, step (0 is the first after now), part, weight.

        Args:
            reads: In half steps from now, `[tract, read]` or the same for all tracts.
        """
        place = reads.double() / 2 - self.delays.unsqueeze(-1)
        step = place.floor()
        basis = hermite(place - step, self.dt_s)  # [4, tract, read]
        step = step.long()
        steps, parts = torch.stack([step - 1, step, step, step]), step.new_tensor([0, 0, 1, 2])
        used = basis.permute(1, 2, 0) != 0
        tract, read, which = used.nonzero(as_tuple=True)
        return tract, read, steps.permute(1, 2, 0)[used], parts[which], basis.permute(1, 2, 0)[used]

    def sums(self, reads: Tensor, strip: Strip) -> Sums:
        """Over a strip of `back + 1` steps, the last of them just over: what arrives at `reads`, for `arrivals`."""
        tract, read, step, part, value = self.entries(reads)
        to, count = (self.to_region[tract], self.regions) if self.shared else (tract, len(self.delays))
        value = value * self.weights[tract] if self.shared else value
        place = (self.from_region[tract], step + self.back + 1, part)
        return Sums(strip, count * len(reads), to * len(reads) + read, place, value)

    def arrivals(self, sums: Sums, strip: Strip) -> Tensor:
        """`[read, region, lane]` for the reads of `sums`."""
        read = sums.of(strip)
        if self.shared:
            return read.view(self.regions, -1, read.shape[-1]).transpose(0, 1).contiguous()
        weights = self.weights.flatten(0, -2).mT.unsqueeze(1).unsqueeze(1)  # [tract, 1, 1, row]
        weighted = read.view(len(self.delays), -1, read.shape[-1] // weights.shape[-1], weights.shape[-1]) * weights
        summed = weighted.new_zeros(self.regions, *weighted.shape[1:])
        return summed.index_add(0, self.to_region, weighted).flatten(2).transpose(0, 1).contiguous()

    def adjoint(self, block: int, per_step: int, strip: Strip) -> Sums:
        """Cotangents of the emissions of a block of steps, `[step, region, part]`, from those of later arrivals.

        The strip holds the reads after the block, latest first, `[region, read, 1, lane]`: as many as the longest
        delay keeps in reach (`reach`).
        """
        stride = 2 // per_step
        number = (2 * self.delays / stride).floor().long().unsqueeze(-1) + torch.arange(
            (block + 1) * per_step + 1, device=self.delays.device
        )
        tract, read, step, part, value = self.entries(number * stride)
        later = number[tract, read] - block * per_step  # 1 is the first after the block
        mine = (step >= 0) & (step < block) & (later > 0) & (later <= self.reach(per_step))
        tract, step, part, value, later = tract[mine], step[mine], part[mine], value[mine], later[mine]
        emission = (step * self.regions + self.from_region[tract]) * _PARTS + part
        place = (self.to_region[tract], self.reach(per_step) - later, torch.zeros_like(later))
        return Sums(strip, block * self.regions * _PARTS, emission, place, value * self.weights[tract])

    def reach(self, per_step: int) -> int:
        """How many reads after a step can still hear it."""
        return per_step * (self.back + 1)


def reads_of(network: Network, dt_s: float) -> Reads:
    """The reads of a network with delays."""
    to_region, from_region, delays = tract_delays(network, dt_s)
    weights = network.weights.detach()[..., to_region, from_region]
    return Reads(
        to_region, from_region, weights, delays.detach(), network.weights.shape[-1], steps_back(network, dt_s), dt_s
    )


def still_strip(network: Network, start: Tensor, dt_s: float) -> Tensor:
    """The strip of `still_past`, in a memory of its own."""
    emission = network.emission(start).movedim((-2, -1), (0, 1)).flatten(1)  # [region, lane]
    value = emission.unsqueeze(1).expand(-1, steps_back(network, dt_s) + 1, -1)
    nothing = torch.zeros_like(emission).unsqueeze(1).expand_as(value)
    return torch.stack([value, nothing, nothing], 2)


def strip_of(past: Past) -> Tensor:
    """A past as `[region, step, 3, lane]`; its first step ends where the past begins, and has no slopes."""
    whole = past.emission._base
    if whole is not None and _is_view(past, whole):
        return whole
    value = _lanes(past.emission)
    begin, end = (torch.nn.functional.pad(_lanes(slope), (0, 0, 1, 0)) for slope in (past.slope_start, past.slope_end))
    return torch.stack([value, begin, end], 2)


def _is_view(past: Past, strip: Tensor) -> bool:
    """Whether a past is just the one that `past_of_strip` makes of a strip, which need not be copied then."""
    *batch_shape, regions, outputs, edges = past.emission.shape
    if strip.shape != (regions, edges, _PARTS, outputs * math.prod(batch_shape)):
        return False
    same = past_of_strip(strip, tuple(batch_shape), outputs)
    parts = [(getattr(past, f.name), getattr(same, f.name)) for f in fields(Past)]
    turned = any(unpack_dual(one).tangent is not None for one, _ in parts)
    return not turned and all(
        one._base is strip and one.storage_offset() == other.storage_offset() and one.stride() == other.stride()
        for one, other in parts
    )


def _lanes(part: Tensor) -> Tensor:
    """[*batch, region, output, time] to [region, time, lane]."""
    return part.movedim((-3, -1, -2), (0, 1, 2)).flatten(2) if part.ndim > 3 else part.mT


def past_of_strip(strip: Tensor, batch_shape: tuple[int, ...], outputs: int) -> Past:
    """The other way round."""
    parts = strip.unflatten(-1, (outputs, *batch_shape)).movedim((2, 0, 3, 1), (0, -3, -2, -1))
    return Past(parts[0], parts[1][..., 1:], parts[2][..., 1:])  # parts: [3, *batch, region, output, time]
