"""The page: one HTML file with everything in it, readable on a screen and on paper.

A page is sections of text, tables and figures, the ladder that a policy climbs (twin,
replay, live; a rung not climbed is said so), and where it all comes from. It is built from
plain frozen nouns, so any door can assemble one. Every number on it is an argument.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from .errors import DataError
from .picture import Figure, two_figures
from .provenance import write_atomically
from .statistics import Interval

Origin = Literal["simulated", "recorded", "live", ""]
Cell = str | int | float | Interval | None

_REACHES_OUT = re.compile(
    r"""<script|<foreignobject|javascript:|@import|\son\w+\s*=|href\s*=\s*["']?(?!["'\#]|data:image/)|url\((?!["']?\#)""",
    re.IGNORECASE,
)  # handlers and scripts; a link to anything but the page's own parts and pictures held in it


@dataclass(frozen=True)
class Table:
    """Rows under headings.

    Attributes:
        columns: Headings, with units.
        rows: As many cells each as there are columns. Numbers are shown with two significant figures, whole numbers
            in full, intervals as "estimate (low to high)", None as "not available".
        caption: What is shown.
        note: Units, conventions, what to beware of.

    Raises:
        DataError: If a row has another number of cells.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                counts = f"{len(self.columns)} columns and a row of {len(row)}"
                raise DataError(f"table {self.caption!r} has {counts} cells; give one cell each.")


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Its heading.
        text: Paragraphs, parted by empty lines.
        tables: In order.
        figures: In order, after the tables.
        note: In small print, last.
        origin: Where its numbers come from, stamped beside the heading; empty where it has none.
    """

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    note: str = ""
    origin: Origin = ""


@dataclass(frozen=True)
class Ladder:
    """The evidence of each rung in a sentence; empty for a rung that was not climbed."""

    twin: str = ""
    replay: str = ""
    live: str = ""


@dataclass(frozen=True)
class Page:
    """All of it.

    Attributes:
        title: Of the page.
        summary: What was found, in a few sentences; paragraphs parted by empty lines.
        sections: In order.
        provenance: What is needed to make it again: versions, commit, seed, command, platform, date, time taken.
        ladder: Shown after the summary; None on a page that judges no policy.
    """

    title: str
    summary: str
    sections: tuple[Section, ...]
    provenance: Mapping[str, str]
    ladder: Ladder | None = None


def write_page(page: Page, path: Path) -> Path:
    """Write the page as one HTML file, whole or not at all; returns its path.

    Raises:
        DataError: If a figure's SVG carries a script or reaches outside the page.
    """
    write_atomically(path, page_text(page))
    return path


def page_text(page: Page) -> str:
    """The page as HTML. All text is escaped; only the figures' SVG stands as it is.

    Raises:
        DataError: If a figure's SVG carries a script or reaches outside the page.
    """
    return _template().render(page=page, rungs=_rungs(page.ladder))


def cell_text(cell: Cell) -> str:
    """A cell as printed: 0.4683 as "0.47", an interval as "0.47 (0.31 to 0.63)", None as "not available"."""
    if cell is None:
        return "not available"
    if isinstance(cell, Interval):
        span = f"{two_figures(cell.low)} to {two_figures(cell.high)}"
        return f"{two_figures(cell.estimate)} ({span if cell.low == cell.low else 'no interval'})"
    return two_figures(cell) if isinstance(cell, float) else str(cell)


def table_of(rows: Sequence[Mapping[str, Any]], caption: str, note: str = "") -> Table:
    """A table from records with the same keys, such as a data frame's rows.

    A number with its edges beside it (`regret`, `regret_low`, `regret_high`) becomes one column with an interval;
    edges named by the last words alone (`regret_vs_random`, `vs_random_low`) are found too.

    Raises:
        DataError: If there is no row.
    """
    if not rows:
        raise DataError(f"table {caption!r} has no rows; there is nothing to show.")
    spans = {_owner(key, rows[0]): key.removesuffix("_low") for key in rows[0] if key.endswith("_low")}
    edges = {f"{stem}_{edge}" for name, stem in spans.items() if name for edge in ("low", "high")}
    names = [name for name in rows[0] if name not in edges]
    return Table(
        tuple(name.replace("_", " ") + (" (95 % interval)" if name in spans else "") for name in names),
        tuple(tuple(_cell(row, name, spans.get(name)) for name in names) for row in rows),
        caption,
        note,
    )


def skill_table(skill: Mapping[str, Mapping[str, Cell]], caption: str = "Held-out skill", note: str = "") -> Table:
    """Models down, metrics across.

    Args:
        skill: Values by metric, by model; name the unit in the metric. A metric that a model lacks is left blank.
        caption: What is shown.
        note: The split, and what the metrics mean.
    """
    metrics = tuple(dict.fromkeys(metric for values in skill.values() for metric in values))
    rows = tuple((name, *(values.get(metric) for metric in metrics)) for name, values in skill.items())
    return Table(("model", *metrics), rows, caption, note)


def _owner(low: str, row: Mapping[str, Any]) -> str:
    stem = low.removesuffix("_low")
    if f"{stem}_high" not in row:
        return ""
    return stem if stem in row else next((key for key in row if key.endswith(f"_{stem}")), "")


def _cell(row: Mapping[str, Any], name: str, stem: str | None) -> Cell:
    value = row[name]
    if stem is not None:
        return Interval(float(value), float(row[f"{stem}_low"]), float(row[f"{stem}_high"]))
    plain: Cell = value.item() if hasattr(value, "item") else value
    return plain


def _rungs(ladder: Ladder | None) -> list[tuple[str, str, str]]:
    if ladder is None:
        return []
    rungs = (
        ("1", "twin: simulated patients, truth known", ladder.twin),
        ("2", "replay: recorded trials only", ladder.replay),
        ("3", "live: a person, with approval", ladder.live),
    )
    return [(number, name, evidence or "not climbed") for number, name, evidence in rungs]


def _svg(figure: Figure) -> Markup:
    found = _REACHES_OUT.search(figure.svg)
    if found:
        raise DataError(
            f"figure {figure.caption!r} holds {found[0]!r}; a page carries no script and nothing from outside."
        )
    return Markup(figure.svg)  # checked above, and drawn by this program


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "svg": _svg,
        "cell": cell_text,
        "paragraphs": lambda text: [part.strip() for part in text.split("\n\n") if part.strip()],
        "numeric": lambda cell: not isinstance(cell, str),
    }
    return environment.from_string(files("stimopt").joinpath("report.html.j2").read_text(encoding="utf-8"))
