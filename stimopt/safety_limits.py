"""The limits that an envelope may hold: names, units, one bound each with its source, and verdicts on it.

A bound from above leaves the margin 1 - reading / bound, one from below reading / bound - 1, at most 1. The
readings themselves lie in `safety_readings`.

References: Shannon, IEEE Transactions on Biomedical Engineering 39 (1992) 424-426 (k).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .errors import EnvelopeError

# name -> (unit, label, whether the value may be no more or no less than the limit)
LIMITS: Mapping[str, tuple[str, str, Literal["most", "least"]]] = {
    "contact_current_ma": ("mA", "current", "most"),
    "total_current_ma": ("mA", "total current", "most"),
    "pulse_width_min_us": ("us", "shortest pulse width", "least"),
    "pulse_width_max_us": ("us", "longest pulse width", "most"),
    "frequency_min_hz": ("Hz", "lowest frequency", "least"),
    "frequency_max_hz": ("Hz", "highest frequency", "most"),
    "pulses": ("", "pulses in a train", "most"),
    "train_s": ("s", "length of a train", "most"),
    "window_s": ("s", "end of the train in its window", "most"),
    "phase_charge_uc": ("uC", "charge per phase", "most"),
    "charge_density_uc_cm2": ("uC/cm2", "charge density per phase", "most"),
    "shannon_k": ("", "Shannon k", "most"),
    "net_charge_uc": ("uC", "net charge", "most"),
    "duty_cycle": ("", "share of a period with current", "most"),
    "train_share": ("", "share of the interval taken by the last train", "most"),
    "ramp_ma": ("mA", "rise above the last stimulus", "most"),
    "dose_minute_uc": ("uC", "dose in a minute", "most"),
    "dose_hour_uc": ("uC", "dose in an hour", "most"),
    "interval_s": ("s", "interval since the last stimulus", "least"),
}
ROUNDING = 1e-9  # relative; a value read back from a file or decoded from a cube carries the last bits' rounding

Word = Literal["PASS", "CAUTION", "FAIL", "NOT EVALUATED"]


@dataclass(frozen=True)
class Limit:
    """One bound, with its unit and where it comes from.

    Attributes:
        name: One of `LIMITS`.
        value: The bound; NaN where it is not evaluated.
        unit: Of the bound.
        source: Paper, manual or derivation.
        caution: Value from which a stimulus inside the limit is given with CAUTION; for a limit from below,
            under which. It may stand where no limit is evaluated.
        evaluated: False where no limit is established: never binds, and reports NOT EVALUATED.
        reason: Why it is not evaluated.

    Raises:
        EnvelopeError: If the name is unknown, the number impossible, or a reason or source is missing.
    """

    name: str
    value: float
    unit: str
    source: str
    caution: float | None = None
    evaluated: bool = True
    reason: str = ""

    def __post_init__(self) -> None:
        if self.name not in LIMITS:
            raise EnvelopeError(f"limit {self.name!r} is not known; there are {', '.join(LIMITS)}.", self.name)
        if self.unit != LIMITS[self.name][0]:
            raise EnvelopeError(
                f"limit {self.name} came in {self.unit!r}; give it in {LIMITS[self.name][0]!r}.", self.name
            )
        if not self.evaluated and not self.reason:
            raise EnvelopeError(f"limit {self.name} is not evaluated; say why in `reason`.", self.name)
        if self.evaluated and not (math.isfinite(self.value) and (self.value > 0 or self.name == "shannon_k")):
            raise EnvelopeError(
                f"limit {self.name} is {self.value}; give a positive, finite number, and forbid the contacts "
                "where nothing may be delivered.", self.name,
            )  # fmt: skip
        if not self.source:
            raise EnvelopeError(f"limit {self.name} has no source; say where {self.value} comes from.", self.name)

    @property
    def label(self) -> str:
        """Its name in words."""
        return LIMITS[self.name][1]

    @property
    def least(self) -> bool:
        """Whether it bounds from below."""
        return LIMITS[self.name][2] == "least"

    @property
    def scale(self) -> float:
        """The bound in the unit of the reading: for Shannon's k, the largest charge over the root of the area."""
        return float(10 ** (self.value / 2)) if self.name == "shannon_k" else self.value

    def margin(self, reading: Tensor) -> Tensor:
        """Share of the limit left: 1 idle, 0 at the limit, negative beyond; NaN stays."""
        return (reading / self.scale - 1).clamp_max(1.0) if self.least else 1 - reading / self.scale

    def cautioned(self, shown: float) -> bool:
        """Whether a value, as shown to people, calls for caution."""
        if self.caution is None or math.isnan(shown):
            return False
        return shown < self.caution if self.least else shown >= self.caution


def not_evaluated(name: str, reason: str, source: str, caution: float | None = None) -> Limit:
    """A limit of which no value is established; `reason` says why and what to do."""
    return Limit(name, math.nan, LIMITS[name][0], source, caution, False, reason)


@dataclass(frozen=True)
class Verdict:
    """One limit against one stimulus.

    Attributes:
        limit: Name of the limit.
        label: In words, with the contact where one binds.
        value: What the stimulus asks; NaN where it cannot be known.
        allowed: What the limit allows; NaN where none is established.
        unit: Of both.
        margin: 1 idle, 0 at the limit, negative outside, NaN not evaluated.
        verdict: PASS, CAUTION, FAIL or NOT EVALUATED.
        contact: The worst contact, or empty.
        source: Where the limit comes from, and why it is not evaluated where it is not.
    """

    limit: str
    label: str
    value: float
    allowed: float
    unit: str
    margin: float
    verdict: Word
    contact: str
    source: str


def shown(limit: Limit, value: float) -> float:
    """A reading as people know it: for Shannon, k itself."""
    if limit.name != "shannon_k":
        return value
    return 2 * math.log10(value) if value > 0 else -math.inf if value == 0 else math.nan
