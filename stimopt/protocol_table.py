"""Tables of the protocol: medians over patients with intervals, paired differences, slopes.

Patients are the units: seeds of a patient are averaged, patients resampled. A value that
was not defined (no channel responds, a refused fit) is left out and the number of patients says so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .statistics import Interval, bootstrap_interval, paired_difference

SHOWN = (
    "r2", "r2_mean", "r2_mean_share", "r2_mean_share_responsive", "r2_effect", "r2_shuffled", "crps_uv", "energy_uv",
    "coverage_50", "coverage_80", "coverage_90", "coverage_95",
)  # fmt: skip
_READ = ("r2_mean_share", "r2_mean", "r2_effect", "r2", "r2_shuffled", "crps_uv", "coverage_90")  # fits a screen
_SLOPES = ("sign", "cosine", "ceiling")
COMPARED = ("r2_mean", "r2_effect", "crps_uv", "energy_uv")
_LOWER = ("crps_uv", "energy_uv")  # better when lower; differences are turned so that more is always better


@dataclass(frozen=True)
class ProtocolTable:
    """Readings of contenders on virtual patients.

    Attributes:
        rows: One a patient, contender, number of past trials, seed and split: all readings of `protocol_readings`,
            and "family", "patient", "model", "trials", "seed", "split", "fit_cpu_s".
        slopes: One a patient, contender, objective and knob: "sign", "cosine" and its "ceiling".
        refused: What could not be made, and why.
    """

    rows: pd.DataFrame
    slopes: pd.DataFrame
    refused: pd.DataFrame

    def summary(self, metrics: Sequence[str] = SHOWN) -> pd.DataFrame:
        """Median over patients of each metric with its 95 % interval (`_low`, `_high`), and how many patients."""
        keys = ["family", "split", "model", "trials"]
        return _grouped(self.rows, keys, metrics)

    def slope_summary(self) -> pd.DataFrame:
        """The same for slopes."""
        return _grouped(self.slopes, ["family", "objective", "knob", "model", "trials"], _SLOPES)

    def differences(
        self, model: str, trials: int, metrics: Sequence[str] = COMPARED, against_trials: int = 20
    ) -> pd.DataFrame:
        """How much better a contender is than each other one fitted on `against_trials`, on the same patients.

        The median over patients of the paired difference with its 95 % interval, positive where `model` is better
        (scores in uV are turned round); `ahead` says whether the interval lies above zero.

        Args:
            model: Label of the contender.
            trials: Its number of past trials.
            metrics: Which readings.
            against_trials: Past trials of the others.
        """
        if self.rows.empty:
            return pd.DataFrame()
        own = self.rows[(self.rows.model == model) & (self.rows.trials == trials)]
        found = []
        for (family, split, other), theirs in self.rows[self.rows.trials == against_trials].groupby(
            ["family", "split", "model"], sort=False
        ):
            if other == model:
                continue
            mine = own[(own.family == family) & (own.split == split)]
            pairs = mine.merge(theirs, on=["patient", "seed"], suffixes=("", "_other"))
            if pairs.empty:  # not judged beside each other, which is no verdict
                continue
            for metric in metrics:
                gap = _gap(pairs, metric)
                found.append({"family": family, "split": split, "against": other, "metric": metric, **gap})
        return pd.DataFrame(found)

    def to_dict(self) -> dict[str, Any]:
        """Summaries as plain values, None where there is no number."""
        parts = {"summary": self.summary(), "slopes": self.slope_summary(), "refused": self.refused}
        return {name: _records(frame) for name, frame in parts.items()}

    def text(self) -> str:
        """The summaries to read: a block for each family and split, then slopes, then what was refused."""
        blocks = ["Simulated patients; medians over patients [95 % interval]."]
        summary = self.summary()
        for (family, split), part in _blocks(summary, ["family", "split"]):
            blocks.append(f"{family}, {split}\n{_shown(part, _READ)}")
        slopes = self.slope_summary()
        known = slopes if slopes.empty else slopes[slopes.sign.notna()]
        for (family, objective), part in _blocks(known, ["family", "objective"]):
            blocks.append(f"{family}, slopes of {objective}\n{_shown(part, _SLOPES, ('knob',))}")
        if not self.refused.empty:
            for (model, trials), part in self.refused.groupby(["model", "trials"], sort=False):
                blocks.append(f"{model} on {trials} trials, {len(part)} not made: {part.reason.iloc[0]}")
        return "\n\n".join(blocks)


def protocol_table(files: Sequence[Mapping[str, Any]], models: Sequence[str] | None = None) -> ProtocolTable:
    """The table of patients' files.

    Args:
        files: Contents, as `run_protocol` writes them.
        models: Labels to keep, in this order; None keeps all.
    """
    frames = []
    for part in ("rows", "slopes", "refused"):
        rows = [{"family": f["family"], "patient": f["patient"], **row} for f in files for row in f[part]]
        frame = pd.DataFrame(rows)
        if models is not None and rows:
            frame = frame[frame.model.isin(models)]
            order = {label: place for place, label in enumerate(models)}
            frame = frame.sort_values("model", key=lambda column: column.map(order), kind="stable")
        frames.append(frame.reset_index(drop=True))
    return ProtocolTable(*frames)


def _grouped(frame: pd.DataFrame, keys: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    rows = []
    if frame.empty:
        return pd.DataFrame(columns=[*keys, "patients"])
    for values, part in frame.groupby(list(keys), sort=False):
        row: dict[str, Any] = dict(zip(keys, values, strict=True))
        row["patients"] = part.patient.nunique()
        for metric in metrics:
            middle = _interval(part, metric)
            row |= {metric: middle.estimate, f"{metric}_low": middle.low, f"{metric}_high": middle.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _interval(part: pd.DataFrame, metric: str) -> Interval:
    known = part[pd.to_numeric(part[metric]).notna()]
    if known.empty:
        return Interval(math.nan, math.nan, math.nan)
    return bootstrap_interval(known[metric].astype(float).groupby(known.patient).mean().to_numpy())


def _gap(pairs: pd.DataFrame, metric: str) -> dict[str, Any]:
    one, other = (pd.to_numeric(pairs[name]) for name in (metric, f"{metric}_other"))
    known = one.notna() & other.notna()
    if not known.any():
        return {"patients": 0, "difference": math.nan, "low": math.nan, "high": math.nan, "ahead": False}
    sign = -1.0 if metric in _LOWER else 1.0
    unit = pairs.patient[known]
    values = [(sign * column[known]).astype(float).groupby(unit).mean().to_numpy() for column in (one, other)]
    gap = paired_difference(values[0], values[1])
    return {"patients": len(values[0]), "difference": gap.estimate, "low": gap.low,
            "high": gap.high, "ahead": bool(gap.low > 0)}  # fmt: skip


def _blocks(frame: pd.DataFrame, keys: list[str]) -> Any:
    return [] if frame.empty else frame.groupby(keys, sort=False)


def _shown(part: pd.DataFrame, metrics: Sequence[str], more: Sequence[str] = ()) -> str:
    columns = {name: part[name] for name in (*more, "model", "trials", "patients")}
    columns |= {metric: [_words(*row) for row in part[_ends(metric)].itertuples(index=False)] for metric in metrics}
    return str(pd.DataFrame(columns).to_string(index=False))


def _ends(metric: str) -> list[str]:
    return [metric, f"{metric}_low", f"{metric}_high"]


def _words(middle: float, low: float, high: float) -> str:
    if math.isnan(middle):
        return "-"
    return f"{middle:.2f}" if math.isnan(low) else f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = frame.to_dict("records")
    return [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows]
