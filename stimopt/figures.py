"""Pictures for the page: drawn from arguments alone, legible in greyscale, with words for those who cannot see them.

Each function returns a `Figure`, ready for a page. Policies differ by line and mark, verdicts by
hatch and word, never by colour alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .features import power_spectrum
from .picture import WIDTH_IN, Figure, paint, two_figures
from .response import Response
from .statistics import Interval, Values, bootstrap_band

Verdict = Literal["PASS", "CAUTION", "FAIL", "NOT EVALUATED"]

_INKS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#8c4799", "#946c00")  # after Okabe and Ito, darkened for print
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
_MARKS = ("o", "s", "^", "D", "v", "P", "X")  # one more than the lines, so that 42 policies still differ
_BEFORE = {"color": "#9a9a9a", "lw": 1.8, "label": "before"}
_AFTER = {"color": "#000000", "lw": 0.9, "label": "with stimulus"}
_HIGHEST_SHOWN_HZ = 100.0  # iEEG rhythms end in the gamma band; above, spectra of short windows show noise
_LONGEST_SHOWN_S = 1.0  # of a signal; spectra are always of the whole window
_LOOKS: dict[str, dict[str, Any]] = {
    "PASS": {"facecolor": "#d9d9d9", "edgecolor": "#333333"},
    "CAUTION": {"facecolor": "#ffffff", "edgecolor": "#333333", "hatch": "////"},
    "FAIL": {"facecolor": "#333333", "edgecolor": "#000000"},
    "NOT EVALUATED": {"facecolor": "none", "edgecolor": "#999999", "linestyle": ":"},
}


@dataclass(frozen=True)
class MarginRow:
    """One limit of the envelope and how much of it is used.

    Attributes:
        limit: Its name, such as "charge density, contact L2".
        value: What the stimulus needs; NaN where not evaluated.
        allowed: What the limit allows; NaN where none is established.
        unit: Of both.
        verdict: PASS, CAUTION, FAIL or NOT EVALUATED.
        source: Where the limit comes from.
        margin: 1 idle, 0 at the limit, negative beyond it; where NaN it is read from value and allowed.
    """

    limit: str
    value: float
    allowed: float
    unit: str
    verdict: Verdict
    source: str = ""
    margin: float = math.nan

    @property
    def share(self) -> float:
        """How much of the limit is used: 1 at the limit, more beyond it; NaN where not evaluated.

        A limit from below, such as a shortest interval, is known by its verdict and counts the other way round.
        """
        if self.verdict == "NOT EVALUATED" or math.isnan(self.value) or math.isnan(self.allowed):
            return math.nan
        if not math.isnan(self.margin):
            return max(1 - self.margin, 0.0)
        from_below = (self.verdict == "FAIL") == (self.value < self.allowed) and self.value != self.allowed
        used, limit = (self.allowed, self.value) if from_below else (self.value, self.allowed)
        if limit == 0:
            return 0.0 if used == 0 else math.inf
        return max(used / limit, 0.0)


def search_trace(
    scores: Mapping[str, Values],
    *,
    score_label: str = "score (higher is better)",
    regret: Mapping[str, Values] | None = None,
    reference: float | None = None,
    reference_name: str = "best recorded",
) -> Figure:
    """Best score so far over trials per policy and, for a twin, simple regret beside it.

    One run shows its trials as dots; several show the median with its 95 % bootstrap band over runs.

    Args:
        scores: `[run, trial]` or `[trial]` by policy, as told.
        score_label: With the unit of the objective.
        regret: `[run, trial]` or `[trial]` by policy: the optimum less the true score of what would be recommended.
        reference: A level to compare with: the twin's optimum, or the best recorded stimulus.
        reference_name: What that level is.

    Raises:
        DataError: If a number is not finite.
    """
    runs = {name: runs_of(values) for name, values in scores.items()}

    def strokes(drawing: Any) -> None:
        panels = drawing.subplots(1, 2 if regret else 1, squeeze=False)[0]
        draw_best_so_far(panels[0], runs, score_label, reference, reference_name)
        if regret:
            draw_curves(panels[1], {name: runs_of(values) for name, values in regret.items()})
            panels[1].set(xlabel="trial", ylabel="simple regret (units of the score)", ylim=(0, None))
        drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=5)

    counts = ", ".join(f"{name} {len(values)}" for name, values in runs.items())
    caption = f"The search, trial by trial. Runs: {counts}. {_band_words(runs)}"
    caption += " Right: simple regret of what would be recommended; zero is the optimum." if regret else ""
    ends = "; ".join(f"{name} reaches {two_figures(float(np.median(values.max(1))))}" for name, values in runs.items())
    return paint((WIDTH_IN, 3.1), strokes, caption, f"Best score so far against trial. {ends}.")


def draw_best_so_far(
    axes: Any, runs: Mapping[str, Any], score_label: str, reference: float | None, reference_name: str
) -> None:
    """Draw running maxima on existing axes; the trials themselves too where a policy has one run."""
    for index, values in enumerate(runs.values()):
        if len(values) == 1:
            trials = np.arange(1, values.shape[1] + 1)
            axes.plot(
                trials, values[0], _MARKS[index % 7], ms=3, mfc="none", mew=0.8, color=_INKS[index % 6], alpha=0.6
            )
    draw_curves(axes, {name: np.maximum.accumulate(values, 1) for name, values in runs.items()})
    if reference is not None:
        axes.axhline(reference, color="#666666", lw=1.0, ls=(0, (2, 2)), label=reference_name)
    axes.set(xlabel="trial", ylabel=score_label)


def draw_curves(axes: Any, runs: Mapping[str, Any]) -> None:
    """Draw the median over runs by name, `[run, trial]` each, with its bootstrap band where there are several."""
    for index, (name, values) in enumerate(runs.items()):
        middle, low, high = bootstrap_band(values)
        _line(axes, np.arange(1, len(middle) + 1), middle, low, high, index, name)


def runs_of(values: Values) -> Any:
    """Curves as an array `[run, trial]`, a single curve as one run."""
    numbers = _plain(values) if isinstance(values, Tensor) else np.asarray(values, dtype=float)
    return numbers.reshape(-1, numbers.shape[-1])


def before_after(before: Response, after: Response, channels: Sequence[str] = ()) -> Figure:
    """The signal of some channels before and with stimulation, and its spectrum.

    Of a batch of windows the mean signal and the mean spectrum are shown.

    Args:
        before: Without, or before, stimulation.
        after: With it; same montage.
        channels: Names; the first four where empty.

    Raises:
        MontageError: If a channel is not there.
    """
    names = tuple(channels) or tuple(channel.name for channel in before.montage.channels[:4])
    rows = [before.montage.channel_index(name) for name in names]

    def strokes(drawing: Any) -> None:
        panels = drawing.subplots(len(rows), 2, squeeze=False, sharex="col", width_ratios=(1.7, 1))
        for (left, right), name, row in zip(panels, names, rows, strict=True):
            draw_window(left, right, (before, after), row)
            left.set_ylabel(f"{name} (µV)")
            right.set_ylabel("µV²/Hz")
        panels[-1, 0].set_xlabel("time in the window (s)")
        panels[-1, 1].set_xlabel("frequency (Hz)")
        drawing.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2)

    shown = f"{len(names)} of {len(before.montage.channels)} channels"
    length_s = before.signal_uv.shape[-1] / before.rate_hz
    cut = f", first {_LONGEST_SHOWN_S:g} s of {length_s:g} s" if length_s > _LONGEST_SHOWN_S else ""
    caption = f"Response before and with the stimulus, {shown}: signal{cut} (left) and power spectral density (right)."
    return paint(
        (WIDTH_IN, 0.8 + 1.15 * len(rows)), strokes, caption, f"Signals and spectra of channels {', '.join(names)}."
    )


def draw_window(left: Any, right: Any, pair: tuple[Response, Response], row: int) -> None:
    """Draw one channel of two responses, before and after, on existing axes; `right`, if any, gets the spectra."""
    for response, look in zip(pair, (_BEFORE, _AFTER), strict=True):
        early = response.time_s < response.start_s + _LONGEST_SHOWN_S
        left.plot(_plain(response.time_s[early]), _mean_of_batch(response.signal_uv)[row][_plain(early) > 0], **look)
        if right is not None:
            frequency, density = power_spectrum(response)
            shown = frequency <= _HIGHEST_SHOWN_HZ
            power = _mean_of_batch(density[..., shown].clamp_min(1e-12))[row]  # a silent channel has no logarithm
            right.semilogy(_plain(frequency[shown])[1:], power[1:], **look)


def safety_margins(rows: Sequence[MarginRow]) -> Figure:
    """How much of each limit is used, with the verdict in words.

    Args:
        rows: One per limit, drawn from the top. Use beyond 200 % is drawn to 200 % and written out.
    """

    def strokes(drawing: Any) -> None:
        axes = drawing.subplots()
        for place, row in enumerate(rows):
            percent = 100.0 if math.isnan(row.share) else min(100 * row.share, 200.0)
            axes.barh(place, percent, height=0.62, linewidth=0.9, **_LOOKS[row.verdict])
            axes.text(1.02, place, f"{row.verdict}   {_needs(row)}", transform=axes.get_yaxis_transform(), va="center")
        axes.axvline(100, color="black", lw=1.2)
        axes.set(yticks=range(len(rows)), yticklabels=[row.limit for row in rows], ylim=(len(rows) - 0.4, -0.6))
        axes.set(xlabel="share of the limit used (%)", xlim=(0, None))
        axes.tick_params(axis="y", length=0)

    caption = (
        "Safety margins. Line: the limit. Grey: PASS; hatched: CAUTION; black: FAIL; dotted outline: NOT EVALUATED, "
        "because no limit is established or a quantity is unknown."
    )
    alt = "; ".join(f"{row.limit}: {row.verdict}" for row in rows)
    return paint((WIDTH_IN, 0.9 + 0.3 * len(rows)), strokes, caption, f"Bars of limits used. {alt}.")


def _needs(row: MarginRow) -> str:
    if math.isnan(row.value):
        return "not known"
    if math.isnan(row.allowed):
        return f"{two_figures(row.value)} {row.unit}, no limit"
    return f"{two_figures(row.value)} of {two_figures(row.allowed)} {row.unit}"


def replay_curves(
    n: Sequence[int], curves: Mapping[str, tuple[Values, Values, Values]], label: str = "exploration"
) -> Figure:
    """A replayed search: median and interval per policy against the number of trials.

    Args:
        n: Trials at each point.
        curves: Median, lower and upper edge by policy, `[point]` each.
        label: What is plotted, with its unit where it has one.
    """

    def strokes(drawing: Any) -> None:
        axes = drawing.subplots()
        for index, (name, (middle, low, high)) in enumerate(curves.items()):
            _line(axes, np.asarray(n), np.asarray(middle), np.asarray(low), np.asarray(high), index, name)
        axes.set(xlabel="trials", ylabel=label)
        drawing.legend(loc="outside upper left", ncols=5)

    ends = "; ".join(f"{name} ends at {two_figures(float(middle[-1]))}" for name, (middle, _, _) in curves.items())
    caption = f"Replay on recorded trials: {label}, median and 95 % bootstrap interval."
    return paint((WIDTH_IN, 3.1), strokes, caption, f"{label} against trials. {ends}.")


def interval_plot(values: Mapping[str, Interval], label: str) -> Figure:
    """Estimates side by side with their intervals, one row per name; `label` carries the unit."""

    def strokes(drawing: Any) -> None:
        axes = drawing.subplots()
        for place, interval in enumerate(values.values()):
            if not math.isnan(interval.low):
                axes.plot([interval.low, interval.high], [place, place], "-", color="black", lw=1.2)
            axes.plot([interval.estimate], [place], "o", color="black", ms=5)
        axes.axvline(0, color="#666666", lw=0.8, ls=(0, (2, 2)))
        axes.set(yticks=range(len(values)), yticklabels=list(values), ylim=(len(values) - 0.4, -0.6), xlabel=label)

    said = "; ".join(f"{name} {two_figures(interval.estimate)}" for name, interval in values.items())
    return paint(
        (WIDTH_IN, 0.8 + 0.27 * len(values)),
        strokes,
        f"{label[:1].upper()}{label[1:]}: estimates with their intervals.",
        f"{label}: {said}.",
    )


def _mean_of_batch(values: Float[Tensor, "*batch channel last"]) -> Any:
    return _plain(values.flatten(0, -3).mean(0) if values.ndim > 2 else values)


def _line(axes: Any, x: Any, middle: Any, low: Any, high: Any, index: int, name: str) -> None:
    ink = _INKS[index % 6]
    if np.isfinite(low).any():
        axes.fill_between(x, low, high, color=ink, alpha=0.15, lw=0)
    every = max(1, len(x) // 8)
    axes.plot(
        x, middle, color=ink, ls=_LINES[index % 6], marker=_MARKS[index % 7], ms=4, label=name,
        markevery=(min(index, every - 1), every),
    )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _band_words(runs: Mapping[str, Any]) -> str:
    several = any(len(values) > 1 for values in runs.values())
    lines = "Lines: median best score so far; bands: 95 % bootstrap intervals over runs."
    return lines if several else "Dots: single trials; line: best score so far."


def _plain(values: Tensor) -> Any:
    return values.detach().cpu().double().numpy()
