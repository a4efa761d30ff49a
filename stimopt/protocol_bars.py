"""What a model of responses has to reach before it is trusted, held against the protocol's table.

The numbers are this project's own, set before any model was judged. Each bar is read for each
family by itself. A bar against baselines is met where the 95 % interval of the paired
difference over patients lies above zero for every one of them.
"""

from typing import Any

import pandas as pd

from .protocol_table import ProtocolTable

CEILING_SHARE = 0.85
COVERAGE_90 = (0.87, 0.93)
SIGN, COSINE = 0.9, 0.8
_FEW, _MANY = 5, 20
_LINEAR = "arx"


def protocol_bars(table: ProtocolTable, model: str) -> pd.DataFrame:
    """Every bar that the table can speak of: "family", "bar", "value", "needed", "met".

    Args:
        table: Of the protocol, with baselines on 20 past trials.
        model: Label of the model that is judged.
    """
    rows: list[dict[str, Any]] = []
    summary = table.summary()
    own = summary[(summary.model == model) & (summary.trials == _MANY)] if not summary.empty else summary
    gaps = {count: _of_others(table.differences(model, count), model) for count in (_MANY, _FEW)}
    for family in dict.fromkeys(own.family):
        here = own[own.family == family].set_index("split")
        rows += [{"family": family, **row} for row in (
            *_ceiling(here), *_ahead(gaps, family), *_linear(gaps[_MANY], family), *_calibrated(here),
            *_slopes(table, model, family),
        )]  # fmt: skip
    return pd.DataFrame(rows, columns=["family", "bar", "value", "needed", "met"])


def _of_others(gap: pd.DataFrame, model: str) -> pd.DataFrame:
    """Without the same model under other options, which is no baseline of itself."""
    return gap if gap.empty else gap[gap.against.str.split(" ").str[0] != model.split(" ")[0]]


def _row(bar: str, value: float, needed: str, met: bool) -> dict[str, Any]:
    return {"bar": bar, "value": value, "needed": needed, "met": bool(met)}


def _ceiling(here: pd.DataFrame) -> list[dict[str, Any]]:
    if "sites" not in here.index:
        return []
    share = float(here.loc["sites", "r2_mean_share"])
    bar = f"new sites, {_MANY} trials: R2 of the mean response over its ceiling"
    return [_row(bar, share, f"at least {CEILING_SHARE}", share >= CEILING_SHARE)]


def _ahead(gaps: dict[int, pd.DataFrame], family: str) -> list[dict[str, Any]]:
    rows = []
    for count, gap in gaps.items():
        for metric, splits in (("r2_mean", ("sites",)), ("crps_uv", None)):
            if gap.empty or (count == _FEW and metric == "crps_uv"):
                continue
            part = gap[(gap.family == family) & (gap.metric == metric)]
            part = part if splits is None else part[part.split.isin(splits)]
            for split, baselines in part.groupby("split", sort=False):
                bar = f"{split}, {count} trials: {metric} better than every baseline on {_MANY}"
                ahead, most = int(baselines.ahead.sum()), baselines.difference.max()
                others = f", not {', '.join(baselines.against[~baselines.ahead])}" if ahead < len(baselines) else ""
                needed = f"interval above 0: {ahead} of {len(baselines)}{others}; differences to {most:.2f}"
                rows.append(_row(bar, float(baselines.difference.min()), needed, bool(baselines.ahead.all())))
    return rows


def _linear(gap: pd.DataFrame, family: str) -> list[dict[str, Any]]:
    if gap.empty:
        return []
    names = (gap.family == family) & (gap.metric == "r2_mean") & (gap.split == "amplitude-beyond")
    part = gap[names & (gap.against == _LINEAR)]
    bar = f"amplitude-beyond, {_MANY} trials: r2_mean no worse than {_LINEAR}"
    return [_row(bar, float(value), "at least 0", value >= 0) for value in part.difference]


def _calibrated(here: pd.DataFrame) -> list[dict[str, Any]]:
    low, high = COVERAGE_90
    return [
        _row(f"{split}: coverage of 90 % intervals", float(value), f"{low} to {high}", low <= value <= high)
        for split, value in here.coverage_90.items()
    ]


def _slopes(table: ProtocolTable, model: str, family: str) -> list[dict[str, Any]]:
    slopes = table.slope_summary()
    if "sign" not in slopes:
        return []
    part = slopes[(slopes.family == family) & (slopes.model == model) & (slopes.trials == _MANY)]
    found = part[part.objective == "evoked"].to_dict("records")
    return [
        _row(f"slope in {row['knob']}: {name}", row[name], f"at least {least}", row[name] >= least)
        for row in found
        for name, least in (("sign", SIGN), ("cosine", COSINE))
    ]
