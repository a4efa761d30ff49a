"""A running account of what was delivered, one a row: the past of many loops side by side.

A `History` holds every trial and is judged exactly. Ten thousand closed loops of ten
milliseconds a decision cannot keep theirs, so a ledger keeps what the limits ask for: the
latest train, the latest current, and the dose in buckets. A bucket counts whole until all
of it is out of the window, so a ledger may refuse a little early and never late.

Batch-first tensors throughout; a new ledger follows each delivery, nothing changes in place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import ShapeError
from .safety_readings import DOSE_WINDOW_S
from .stimulus import Stimulus
from .tensors import where_rows
from .waveform import train_s

BUCKETS = 12  # a dose window is told to a twelfth: 5 s of a minute, 5 minutes of an hour


@dataclass(frozen=True)
class Ledger:
    """What each row's past left behind. Begun by `empty_ledger`; judged by `Envelope.margins`.

    Attributes:
        now_s: Start of each row's next window.
        began_s: Start of the train that began last, and of the one that ends last; minus infinity for none.
        lasted_s: Their lengths.
        last_ma: Current of the latest train at each contact.
        dose_uc: Charge of first phases in each bucket that is over, for each dose window in the order of
            `DOSE_WINDOW_S`; the place of the newest is empty.
        over_uc: Their sum.
        open_uc: Charge in the newest bucket.
        bucket: Number of the newest bucket since the session began, for each dose window.
    """

    now_s: Float[Tensor, "*batch"]
    began_s: Float[Tensor, "*batch 2"]
    lasted_s: Float[Tensor, "*batch 2"]
    last_ma: Float[Tensor, "*batch contact"]
    dose_uc: Float[Tensor, "*batch window bucket contact"]
    over_uc: Float[Tensor, "*batch window contact"]
    open_uc: Float[Tensor, "*batch window contact"]
    bucket: Float[Tensor, "*batch window"]

    def at(self, time_s: Float[Tensor, "*batch"]) -> "Ledger":
        """The same account at the start of another window; buckets that are over are emptied.

        A clock that is set back, or unknown, leaves the buckets as they are.
        """
        widths = self.dose_uc.new_tensor([window / BUCKETS for window in DOSE_WINDOW_S.values()])
        newest = torch.maximum((time_s.nan_to_num(nan=-math.inf).unsqueeze(-1) / widths).floor(), self.bucket)
        passed = newest - self.bucket  # [*batch, window]
        if not bool((passed > 0).any()):  # nearly always so for short windows: nothing to empty
            return replace(self, now_s=time_s)
        place = torch.arange(BUCKETS + 1, dtype=widths.dtype, device=widths.device)
        behind = (self.bucket.unsqueeze(-1) - place) % (BUCKETS + 1)  # how many buckets ago each place was written
        closes = (behind == 0) & (passed > 0).unsqueeze(-1)
        gone = behind + passed.unsqueeze(-1) > BUCKETS
        dose_uc = torch.where(closes.unsqueeze(-1), self.open_uc.unsqueeze(-2), self.dose_uc)
        dose_uc = torch.where(gone.unsqueeze(-1), 0.0, dose_uc)
        open_uc = torch.where((passed > 0).unsqueeze(-1), 0.0, self.open_uc)
        return replace(
            self, now_s=time_s, bucket=newest, dose_uc=dose_uc, over_uc=dose_uc.sum(-2), open_uc=open_uc
        )  # fmt: skip

    def after(self, stimulus: Stimulus) -> "Ledger":
        """The account after a stimulus was delivered in the window that starts now; silence leaves nothing.

        Raises:
            ShapeError: If the batch or the contacts are not those of the ledger.
        """
        if stimulus.amplitude_ma.shape != self.last_ma.shape:
            raise ShapeError(
                f"the stimulus has batch and contacts {list(stimulus.amplitude_ma.shape)}, the ledger "
                f"{list(self.last_ma.shape)}; keep one ledger for the rows that are stimulated."
            )
        exact = stimulus.to(self.last_ma)
        sounding = ~exact.silent
        starts, length = self.now_s + exact.onset_s, train_s(exact)
        later = starts + length >= (self.began_s + self.lasted_s)[..., 1]
        renewed = torch.stack([sounding, sounding & later], -1)
        dose = exact.phase_charge_uc.abs() * exact.pulses.unsqueeze(-1)  # [*batch, contact]
        return replace(
            self,
            began_s=torch.where(renewed, starts.unsqueeze(-1), self.began_s),
            lasted_s=torch.where(renewed, length.unsqueeze(-1), self.lasted_s),
            last_ma=torch.where(sounding.unsqueeze(-1), exact.amplitude_ma, self.last_ma),
            open_uc=self.open_uc + dose.unsqueeze(-2),
        )

    def dose_within(self, window_s: float) -> Float[Tensor, "*batch contact"]:
        """See `Account`; at least the dose, at most one bucket's width too old.

        Raises:
            ShapeError: If no dose is kept over such a window.
        """
        windows = list(DOSE_WINDOW_S.values())
        if window_s not in windows:
            raise ShapeError(f"a ledger keeps doses over {windows} s, not over {window_s} s.")
        window = windows.index(window_s)
        return self.over_uc[..., window, :] + self.open_uc[..., window, :]

    def latest(self) -> tuple[Tensor, Tensor]:
        """See `Account`."""
        return self.began_s, self.lasted_s

    def where(self, keep: Bool[Tensor, "*batch"], other: "Ledger") -> "Ledger":
        """Row by row, this ledger where `keep` holds and `other` elsewhere."""
        return Ledger(**{f.name: where_rows(keep, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


def empty_ledger(template: Stimulus, batch_shape: Sequence[int]) -> Ledger:
    """The account of rows to which nothing was delivered, at time zero, for the contacts of `template`."""
    shape, contacts = tuple(batch_shape), len(template.montage.contacts)
    zero = template.amplitude_ma.new_zeros(shape, dtype=torch.float64)
    windows = len(DOSE_WINDOW_S)

    def zeros(*sizes: int) -> Tensor:
        """With the batch innermost in memory, which is fast for many rows."""
        return zero.new_zeros(*sizes, *shape).movedim(tuple(range(-len(shape), 0)), tuple(range(len(shape))))

    return Ledger(
        now_s=zero,
        began_s=zeros(2) - math.inf,
        lasted_s=zeros(2),
        last_ma=zeros(contacts),
        dose_uc=zeros(windows, BUCKETS + 1, contacts),
        over_uc=zeros(windows, contacts),
        open_uc=zeros(windows, contacts),
        bucket=zeros(windows),
    )
