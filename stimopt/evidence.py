"""The pages of a run, of a study and of a model, assembled from nouns.

A run's page shows the search, the responses, what the surrogate believes, the margins of
what is recommended, and the settings tried. What was not given is not shown, and a rung
of the ladder that was not climbed is said so.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import SpaceError
from .figures import MarginRow, before_after, interval_plot, safety_margins, search_trace
from .history import History
from .maps import Posterior, label_of, setting_words, surrogate_maps, value_text
from .picture import Figure, two_figures
from .report import Cell, Ladder, Origin, Page, Section, Table, skill_table, table_of
from .response import Response
from .space import StimulationSpace
from .statistics import Interval, Values
from .stimulus import Stimulus

_SETTINGS_SHOWN = 10


def run_page(
    title: str,
    history: History,
    space: StimulationSpace,
    objective: str,
    *,
    provenance: Mapping[str, str],
    origin: Origin,
    policy: str = "policy",
    recommended: Stimulus | None = None,
    posterior: Posterior | None = None,
    before: Response | None = None,
    after: Response | None = None,
    margins: Sequence[MarginRow] = (),
    regret: Values | None = None,
    reference: float | None = None,
    reference_name: str = "best recorded",
    ladder: Ladder | None = None,
    locked: str = "",
) -> Page:
    """The page of one search.

    Args:
        title: Of the page.
        history: Its trials; none is allowed.
        space: What was searched.
        objective: Name of the score, with its unit; higher is better.
        provenance: Versions, commit, seed, command, platform, date, time taken.
        origin: Whether the trials are "simulated", "recorded" or "live".
        policy: Name of the policy.
        recommended: What it would keep, batch shape ().
        posterior: The surrogate's mean and standard deviation at cube points; None for a policy without one.
        before: A response without stimulation.
        after: A response to the recommended stimulus.
        margins: Of the recommended stimulus.
        regret: Simple regret after each trial, where the truth is known.
        reference: A score to compare with: a twin's optimum, or the best recorded.
        reference_name: What it is.
        ladder: Evidence by rung; by default every rung is marked as not climbed.
        locked: Why the session is locked; empty while it is not.
    """
    sections: list[Section] = []
    unit, inside = _located(space, history.stimuli)
    if len(history):
        trace = search_trace(
            {policy: history.scores}, score_label=objective, regret=None if regret is None else {policy: regret},
            reference=reference, reference_name=reference_name,
        )  # fmt: skip
        sections.append(Section("The search", figures=(trace,), origin=origin))
    if before is not None and after is not None:
        sections.append(Section("The response", figures=(before_after(before, after),), origin=origin))
    chosen = space.locate(recommended) if recommended is not None else None
    if posterior is not None and chosen is not None:
        maps = surrogate_maps(posterior, space, unit, at=chosen, score_label=objective)
        text = "What the surrogate believes after the last trial. It is a model, not a measurement."
        sections.append(Section("The surrogate", text, figures=maps, origin=origin))
    if margins:
        sections.append(_margin_section(margins))
    if len(unit):
        tried = _settings_table(space, unit, history.scores[inside], objective)
        sections.append(Section("Settings tried", tables=(tried,), origin=origin))
    summary = _run_summary(history, space, chosen, policy, objective, locked)
    return Page(title, summary, tuple(sections), provenance, ladder or Ladder())


def study_page(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    provenance: Mapping[str, str],
    origin: Origin = "simulated",
    summary: str = "",
    measure: str = "regret",
    ladder: Ladder | None = None,
    note: str = "",
) -> Page:
    """The page of a study: policies side by side.

    Args:
        title: Of the page.
        rows: One per policy, the first key naming it; a value's interval stands beside it as `..._low`, `..._high`.
        provenance: As for a run.
        origin: Where the numbers come from.
        summary: What was found.
        measure: The key drawn as a figure, where the rows have it with its interval.
        ladder: Evidence by rung.
        note: Under the table.

    Raises:
        DataError: If there is no row.
    """
    table = table_of(rows, "Policies side by side", note)
    first = next(iter(rows[0]))
    figures: tuple[Figure, ...] = ()
    if {measure, f"{measure}_low", f"{measure}_high"} <= set(rows[0]):
        spans = {str(r[first]): Interval(r[measure], r[f"{measure}_low"], r[f"{measure}_high"]) for r in rows}
        figures = (interval_plot(spans, measure.replace("_", " ")),)
    section = Section("Policies compared", tables=(table,), figures=figures, origin=origin)
    return Page(title, summary or f"{len(rows)} policies compared.", (section,), provenance, ladder or Ladder())


def model_page(
    title: str,
    card: Mapping[str, str],
    skill: Mapping[str, Mapping[str, Cell]],
    *,
    provenance: Mapping[str, str],
    origin: Origin,
    summary: str = "",
    note: str = "",
) -> Page:
    """The page of a fitted model: its card, and its held-out skill beside the baselines.

    Args:
        title: Of the page.
        card: What it is, what it was fitted on, its limits; text by heading.
        skill: Values by metric, by model, this one and the baselines.
        provenance: As for a run.
        origin: Where the trials it is judged on come from.
        summary: What was found.
        note: The split, and what the metrics mean.
    """
    rows = tuple((name, text) for name, text in card.items())
    judged = Section("Skill", tables=(skill_table(skill, note=note),), origin=origin)
    unjudged = Section("Skill", "No held-out skill was kept with this model, so nothing is claimed of it.")
    sections = (
        Section("Model card", tables=(Table(("", ""), rows, "What this model is"),)),
        judged if skill else unjudged,
    )
    said = f"{len(skill)} models compared on held-out trials." if skill else "A fitted model."
    return Page(title, summary or said, sections, provenance)


def _margin_section(margins: Sequence[MarginRow]) -> Section:
    rows = tuple(
        (
            row.limit,
            _quantity(row.value, row.unit, "not known"),
            _quantity(row.allowed, row.unit, "none"),
            row.verdict,
            row.source,
        )
        for row in margins
    )
    table = Table(("limit", "this stimulus", "allowed", "verdict", "source"), rows, "Limits and their sources")
    counts = {
        verdict: sum(row.verdict == verdict for row in margins) for verdict in dict.fromkeys(r.verdict for r in margins)
    }
    text = "Margins of the recommended stimulus: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()) + "."
    return Section("Safety", text, tables=(table,), figures=(safety_margins(margins),))


def _quantity(value: float, unit: str, absent: str) -> str:
    return absent if math.isnan(value) else f"{two_figures(value)} {unit}"


def _run_summary(
    history: History, space: StimulationSpace, chosen: Tensor | None, policy: str, objective: str, locked: str
) -> str:
    if not len(history):
        said = "No trial has been told yet, so nothing is recommended."
    else:
        best = two_figures(float(history.scores.max()))
        said = (
            f"The policy '{policy}' was told {len(history)} trials of {objective}; the best single trial scored {best}."
        )
    if len(history) and chosen is not None:
        said += f"\n\nIt recommends {setting_words(space, chosen)}."
    return said + (f"\n\nThe session is locked: {locked}" if locked else "")


def _settings_table(
    space: StimulationSpace, unit: Float[Tensor, "trial dimension"], scores: Float[Tensor, " trial"], objective: str
) -> Table:
    settings, group = torch.unique(unit, dim=0, return_inverse=True)
    counts = torch.bincount(group)
    means = torch.zeros(len(settings), dtype=scores.dtype).index_add(0, group, scores) / counts
    order = means.argsort(descending=True)[:_SETTINGS_SHOWN].tolist()
    rows: list[tuple[Cell, ...]] = []
    for i in order:
        setting = [value_text(value) for value in space.describe(settings[i]).values()]
        rows.append((*setting, int(counts[i]), float(means[i])))
    columns = (*(label_of(parameter) for parameter in space.parameters), "trials", f"mean {objective}")
    return Table(columns, tuple(rows), f"The best {len(rows)} of {len(settings)} settings by mean score")


def _located(
    space: StimulationSpace, stimuli: Stimulus
) -> tuple[Float[Tensor, "inside dimension"], Bool[Tensor, " trial"]]:
    """Cube points of the stimuli that lie in the space, and which those are; comparators may lie outside."""
    points: list[Tensor] = []
    inside = torch.zeros(stimuli.batch_shape[0], dtype=torch.bool)
    for trial in range(len(inside)):
        try:
            points.append(space.locate(stimuli[trial]))
        except SpaceError:
            continue
        inside[trial] = True
    return torch.stack(points) if points else torch.zeros(0, space.dimension, dtype=torch.float64), inside
