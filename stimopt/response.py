"""What comes back: a window of voltage per channel, and any outcomes measured beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import ShapeError
from .montage import Montage
from .tensors import map_tensors


@dataclass(frozen=True)
class Response:
    """A batch of windows on one montage.

    Attributes:
        montage: Whose channels are read.
        signal_uv: Voltage; may have no samples where a table kept only outcomes.
        rate_hz: Samples per second.
        start_s: Time of the first sample, from the start of the window that the stimulus's `onset_s` counts from.
        outcomes: Named numbers measured in the same trial, one `[*batch]` each.

    Raises:
        ShapeError: If the channels do not fit the montage or an outcome does not fit the batch.
    """

    montage: Montage
    signal_uv: Float[Tensor, "*batch channel time"]
    rate_hz: float
    start_s: float = 0.0
    outcomes: Mapping[str, Float[Tensor, "*batch"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        channels = len(self.montage.channels)
        if self.signal_uv.ndim < 2 or self.signal_uv.shape[-2] != channels:
            swapped = self.signal_uv.ndim >= 2 and self.signal_uv.shape[-1] == channels
            mend = " The last two axes look swapped: try signal_uv.mT." if swapped else ""
            raise ShapeError(
                f"signal_uv must be [*batch, channel, time] with {channels} channels as in the montage, "
                f"got {list(self.signal_uv.shape)}.{mend}"
            )
        if not self.rate_hz > 0:
            raise ShapeError(f"rate_hz is {self.rate_hz}; it must be positive.")
        for name, value in self.outcomes.items():
            if value.shape != self.batch_shape:
                raise ShapeError(
                    f"outcome {name!r} has shape {list(value.shape)}, the batch is {list(self.batch_shape)}."
                )

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of `*batch`."""
        return self.signal_uv.shape[:-2]

    @property
    def time_s(self) -> Float[Tensor, " time"]:
        """Time of each sample, from the start of the window."""
        steps = torch.arange(self.signal_uv.shape[-1], dtype=self.signal_uv.dtype, device=self.signal_uv.device)
        return self.start_s + steps / self.rate_hz

    def between(self, start_s: float, end_s: float) -> "Response":
        """The samples with start <= time < end, outcomes kept.

        Raises:
            ShapeError: If no sample lies there.
        """
        first = max(0, round((start_s - self.start_s) * self.rate_hz))
        last = min(self.signal_uv.shape[-1], round((end_s - self.start_s) * self.rate_hz))
        if last <= first:
            end = self.start_s + self.signal_uv.shape[-1] / self.rate_hz
            raise ShapeError(
                f"no sample lies in [{start_s}, {end_s}) s; the window runs from {self.start_s} to {end} s."
            )
        return replace(self, signal_uv=self.signal_uv[..., first:last], start_s=self.start_s + first / self.rate_hz)

    def __getitem__(self, index: int | slice | Tensor) -> "Response":
        """Pick along the first batch axis."""
        return map_tensors(self, lambda tensor: tensor[index])
