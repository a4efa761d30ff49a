"""How dose models did on trials that they never saw: sums of errors made into measures, measures into a table.

r2         1 - error / size: sums of (outcome - forecast)^2 and of (outcome - mean of the past)^2
ceiling    the same for the mean of the tested trials at each setting, the freedom of those means taken off
effect_r2  the same once the tested block's own mean is taken off its outcome and its forecast alike: what is
           left is the effect of the dose within the block. That mean is of the tested block; no forecast knows it
crps       of the Gaussian forecast, in the outcome's unit, smaller is better
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .statistics import Statistic, bootstrap_interval, paired_difference

JUDGED = ["split", "outcome", "model"]
UNIT = [*JUDGED, "unit", "channel"]
_MEASURES = ("r2", "ceiling", "effect_r2", "effect_ceiling", "crps", "coverage_90")
_COMPARED = ("r2", "effect_r2")
_NO_WAVEFORMS = (
    "It holds one number a trial, no waveforms and no coordinates: forecasters of waveforms (ARX, the foundation "
    "model) cannot be judged on it."
)


@dataclass(frozen=True)
class DoseTable:
    """How dose models forecast trials that they never saw.

    Attributes:
        title: What was left out, and what a unit is.
        rows: One a model, unit and channel: "split", "outcome", "model", "unit", "channel", and the measures.
        refused: What could not be judged, and why: "model", "unit", "reason".
        average: Over units: their median for patients, their mean for settings. A unit of several channels counts
            once, by the mean of its channels.
    """

    title: str
    rows: pd.DataFrame
    refused: pd.DataFrame
    average: Statistic

    def summary(self) -> pd.DataFrame:
        """The average over units of every measure, R2 with its 95 % interval."""
        found = []
        for key, part in self.rows.groupby(JUDGED, sort=False):
            row = {**dict(zip(JUDGED, key, strict=True)), "units": part.unit.nunique()}
            for name in (name for name in _MEASURES if name in part):
                middle = bootstrap_interval(part[name].to_numpy(), self.average, units=part.unit.to_numpy())
                row[name] = middle.estimate
                if name in _COMPARED:
                    row |= {f"{name}_low": middle.low, f"{name}_high": middle.high}
            found.append(row)
        return pd.DataFrame(found)

    def differences(self, model: str) -> pd.DataFrame:
        """How much higher R2 is than each other model's, paired; `ahead`: the interval lies above 0."""
        found: list[dict[str, Any]] = []
        for (split, outcome), part in self.rows.groupby(JUDGED[:2], sort=False):
            for name in (name for name in _COMPARED if name in part):
                wide = part.pivot_table(index=["unit", "channel"], columns="model", values=name, sort=False)
                same = {"split": split, "outcome": outcome, "measure": name}
                found += [{**same, **row} for row in self._gaps(wide, model)]
        return pd.DataFrame(found)

    def text(self) -> str:
        """To read: what was judged, every model, then what was refused."""
        shown = self.summary().round(3)
        lines = [self.title, _NO_WAVEFORMS]
        for (split, outcome), part in shown.groupby(JUDGED[:2], sort=False):
            lines += ["", f"{outcome}, {split}:", part.drop(columns=JUDGED[:2]).to_string(index=False)]
        lines += [f"{row.model}, {row.unit}: not judged: {row.reason}" for row in self.refused.itertuples()]
        return "\n".join(lines)

    def _gaps(self, wide: pd.DataFrame, model: str) -> Iterable[dict[str, Any]]:
        for other in (name for name in wide.columns if name != model and model in wide.columns):
            both = wide[[model, other]].dropna()
            if len(both):
                units = both.index.get_level_values("unit").to_numpy()
                gap = paired_difference(both[model].to_numpy(), both[other].to_numpy(), units, self.average)
                yield {"against": other, "difference": gap.estimate, "low": gap.low, "high": gap.high,
                       "ahead": gap.low > 0}  # fmt: skip


def measured_by_patient(sums: pd.DataFrame) -> pd.DataFrame:
    """Measures of every patient and channel, from sums over their trials in all tested blocks.

    A channel that never varies has none.
    """
    whole = _whole(sums)
    whole = whole[whole.effect_size > 0]
    rows = pd.DataFrame({
        "r2": 1 - whole.error / whole["size"], "ceiling": 1 - whole.noise / whole["size"],
        "effect_r2": 1 - whole.effect_error / whole.effect_size,
        "effect_ceiling": 1 - whole.noise / whole.effect_size,
    })  # fmt: skip
    return _with_spread(rows, whole)


def measured_by_setting(sums: pd.DataFrame) -> pd.DataFrame:
    """Measures over all settings, written one row a setting so that settings can be resampled.

    The mean over rows is the R2 of all trials together, a ratio of sums; a row is that ratio plus what the setting
    pulls at it to first order (its influence: Davison and Hinkley 1997, section 2.7), no R2 of the setting's own, which
    would have no meaning where its trials lie at the mean of the past.
    """
    whole = _whole(sums)
    mean = whole.groupby(JUDGED, sort=False).transform("mean")

    def influence(error: str) -> pd.Series:
        r2 = 1 - mean[error] / mean["size"]
        return r2 + (whole["size"] - whole[error] - r2 * whole["size"]) / mean["size"]

    return _with_spread(pd.DataFrame({"r2": influence("error"), "ceiling": influence("noise")}), whole)


def _whole(sums: pd.DataFrame) -> pd.DataFrame:
    """Sums over folds; a model that refused some of a unit's is left out of the unit: it would be judged on fewer."""
    whole = sums.groupby(UNIT, sort=False).sum()
    others = [name for name in UNIT if name != "model"]
    return whole[whole.trials == whole.groupby(others).trials.transform("max")]


def _with_spread(rows: pd.DataFrame, whole: pd.DataFrame) -> pd.DataFrame:
    more = {"crps": whole.crps / whole.trials, "coverage_90": whole.inside / whole.trials, "trials": whole.trials}
    return rows.assign(**more).reset_index()
