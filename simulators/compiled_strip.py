"""A ring of the last steps of a series, and weighted sums over it that move on with it.

    strip    [region, step, part, lane]    the last steps, oldest first; a new step takes the place of the oldest
    sums     [sum, lane]                   each of some entries of the strip, counted from its oldest step

What is summed stays the same from step to step but for where the ring begins. A strip changes in
place, and lives as long as one call.
"""

import warnings

import torch
from torch import Tensor

_BAG_TYPES = (torch.float32, torch.float16, torch.bfloat16)  # for others torch's bags are slower than CSR
_LARGEST_INT32 = 2**31 - 1
_MOST_KEPT = 2**21  # places of entries kept for all beginnings of a ring: 8 MB, and finding them anew costs as much


class Strip:
    """The last steps of a growing series.

    Args:
        rows: To begin with, `[region, step, part, lane]`; copied.
        coming: Steps that will be appended; after so many the ring begins where its memory does.
        still: Whether all steps are alike and nobody else needs them: then they are written over, not copied.
        ring: Memory to copy them to; new where it is not given.
    """

    def __init__(self, rows: Tensor, coming: int = 0, still: bool = False, ring: Tensor | None = None) -> None:
        self.oldest = -coming % rows.shape[1]
        first = rows.shape[1] - self.oldest
        if still:
            self.ring = rows.contiguous()
            return
        self.ring = rows.new_empty(rows.shape) if ring is None else ring
        self.ring[:, : self.oldest] = rows[:, first:]
        self.ring[:, self.oldest :] = rows[:, :first]

    def append(self, row: Tensor) -> None:
        """One more step, `[region, part, lane]`, in the place of the oldest."""
        self.ring[:, self.oldest].copy_(row)
        self.oldest = (self.oldest + 1) % self.ring.shape[1]

    @property
    def rows(self) -> Tensor:
        """All steps in their order; the ring's own memory where it begins there, or else a copy."""
        if self.oldest == 0:
            return self.ring
        return torch.cat([self.ring[:, self.oldest :], self.ring[:, : self.oldest]], 1)


class Sums:
    """Weighted sums over a strip.

    Args:
        strip: As the strips that will be read.
        count: How many sums.
        number: Which sum each entry belongs to.
        place: Region, step from the oldest, and part of each entry.
        value: Its weight.
    """

    def __init__(
        self, strip: Strip, count: int, number: Tensor, place: tuple[Tensor, Tensor, Tensor], value: Tensor
    ) -> None:
        regions, self._steps, self._parts, _ = strip.ring.shape
        size = regions * self._steps * self._parts
        kind = torch.int32 if size <= _LARGEST_INT32 else torch.int64
        region, step, part = place
        index = (region * self._steps + step) * self._parts + part
        order = number.argsort(stable=True)
        self._index = index[order].to(kind)  # where the ring begins with its oldest step
        self._end = ((region[order] + 1) * self._steps * self._parts).to(kind)
        self._value = value[order].to(strip.ring)
        self._starts = torch.nn.functional.pad(torch.bincount(number, minlength=count).cumsum(0), (1, 0)).to(kind)
        self._size = (count, size)
        self._bags = self._value.device.type == "cpu" and self._value.dtype in _BAG_TYPES
        self._moved: dict[int, Tensor] = {}
        self._most = max(1, _MOST_KEPT // max(1, len(index)))

    def of(self, strip: Strip) -> Tensor:
        """All sums, `[sum, lane]`."""
        index, entries = self._moved_to(strip.oldest), strip.ring.view(self._size[1], -1)
        if self._bags:  # torch.nn.functional.embedding_bag without its checks, which take as long as a small sum
            return torch.embedding_bag(entries, index, self._starts, False, 0, False, self._value, True)[0]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            matrix = torch.sparse_csr_tensor(self._starts, index, self._value, self._size, check_invariants=False)
        return matrix @ entries

    def _moved_to(self, oldest: int) -> Tensor:
        """Where the entries are when the ring begins there."""
        if oldest in self._moved:
            return self._moved[oldest]
        index = self._index + oldest * self._parts
        index.sub_((index >= self._end).to(index.dtype), alpha=self._steps * self._parts)
        if len(self._moved) >= self._most:
            self._moved.pop(next(iter(self._moved)))
        self._moved[oldest] = index
        return index
