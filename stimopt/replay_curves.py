"""What a replayed policy reached, trial by trial, and how sure that is.

A unit is a patient, channel and outcome replayed on its own. Units whose stimuli are all
equally good cannot tell one policy from another and are left out of every number, by name.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import DataError
from .statistics import Interval, Statistic, bootstrap_band, bootstrap_interval, paired_difference

Curve = Literal["exploration", "exploitation"]


@dataclass(frozen=True)
class ReplayCurves:
    """Shares of the best recorded stimulus, by unit, repeat and trial; position n is after trial n + 1.

    Attributes:
        policy: Its name.
        outcome: What was searched for.
        units: Names, "patient/channel/outcome".
        flat: Those among them where every stimulus has the same truth; their shares are 1.
        exploration: Truth of what the policy would recommend then.
        exploitation: Truth of what it chose then.
    """

    policy: str
    outcome: str
    units: tuple[str, ...]
    flat: tuple[str, ...]
    exploration: Float[Tensor, "unit repeat trial"]
    exploitation: Float[Tensor, "unit repeat trial"]

    def kept(self, curve: Curve) -> Float[Tensor, "unit repeat trial"]:
        """A curve of the units that can tell policies apart; of all, where none can."""
        telling = [i for i, unit in enumerate(self.units) if unit not in self.flat] or list(range(len(self.units)))
        whole = self.exploration if curve == "exploration" else self.exploitation
        return whole[telling]

    def band(self, curve: Curve, draws: int = 2000) -> tuple[Tensor, Tensor, Tensor]:
        """Median with its 95 % bootstrap interval at each trial, `[trial]` each: middle, low, high.

        Over units, each with its mean over repeats, where there are several; over repeats of the one unit else,
        and then the interval says nothing about other patients. NaN edges for a single run.
        """
        runs = self.kept(curve)
        if len(runs) == 1:
            edges = bootstrap_band(runs[0], draws=draws)
            return tuple(torch.from_numpy(edge) for edge in edges)  # type: ignore[return-value]
        found = [self._interval(step, draws) for step in runs.unbind(-1)]
        rows = torch.tensor([[i.estimate, i.low, i.high] for i in found], dtype=torch.float64)
        return rows[:, 0], rows[:, 1], rows[:, 2]

    def difference(
        self, other: "ReplayCurves", trial: int, curve: Curve = "exploration", statistic: Statistic = "mean"
    ) -> Interval:
        """How much more this policy has reached after `trial` trials than `other`, on the same draws, run by run.

        Args:
            other: Another policy on the same units, repeats and seed.
            trial: 1 or more.
            curve: Which curve.
            statistic: "mean", or "median" (which is 0 wherever most runs tie), over repeats or over units.

        Raises:
            DataError: If the two are not paired, or the trial is not in them.
        """
        if self.units != other.units or self.exploration.shape != other.exploration.shape:
            raise DataError("the two replays are not paired; run both with the same units, trials, repeats and seed.")
        if not 1 <= trial <= self.exploration.shape[-1]:
            raise DataError(f"trial {trial} is not in a replay of {self.exploration.shape[-1]} trials.")
        mine, theirs = self.kept(curve)[..., trial - 1], other.kept(curve)[..., trial - 1]
        units = torch.arange(len(mine)).unsqueeze(-1).expand_as(mine).reshape(-1) if len(mine) > 1 else None
        return paired_difference(mine.reshape(-1), theirs.reshape(-1), units=units, statistic=statistic)

    @staticmethod
    def _interval(values: Float[Tensor, "unit repeat"], draws: int) -> Interval:
        units = torch.arange(len(values)).unsqueeze(-1).expand_as(values).reshape(-1)
        return bootstrap_interval(values.reshape(-1), draws=draws, units=units)
