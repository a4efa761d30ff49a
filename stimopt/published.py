"""Simulated numbers held against published ones: rows with their tolerance, sections, one page.

A row says what a paper states, what was simulated, how far it may lie, and whether it does. A
number outside its tolerance stays on the page, with NO beside it.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .picture import WIDTH_IN, Figure, paint
from .provenance import provenance
from .report import Cell, Page, Section, Table, write_page

COLUMNS = ("quantity", "paper", "simulated here", "tolerance", "within")
Row = tuple[Cell, ...]


def held(quantity: str, paper: str, ours: float, low: float, high: float, digits: int = 2) -> Row:
    """A row whose tolerance is an interval; an infinite end leaves that side open."""
    edges = {
        (False, True): f"below {high:.3g}",
        (True, False): f"above {low:.3g}",
        (True, True): f"{low:.4g} to {high:.4g}",
    }
    tolerance = edges[bool(np.isfinite(low)), bool(np.isfinite(high))]
    return quantity, paper, f"{ours:.{digits}f}", tolerance, "yes" if low <= ours <= high else "NO"


def near(quantity: str, paper: str, ours: float, goal: float, off: float, digits: int = 2) -> Row:
    """A row whose tolerance is a distance from a number."""
    return quantity, paper, f"{ours:.{digits}f}", f"{goal:g} \u00b1 {off:g}", "yes" if abs(ours - goal) <= off else "NO"


def section(title: str, text: str, rows: Sequence[Row], note: str, figures: Sequence[Figure] = ()) -> Section:
    """A part of the page: what was done, the table, what stands under it, and pictures."""
    table = Table(COLUMNS, tuple(rows), "Paper and simulation", note)
    return Section(title, text, (table,), tuple(figures), origin="simulated")


def traces(names: Sequence[str], signals: Any, sample: float, caption: str, clock: str = "time, s") -> Figure:
    """Signals one under the other, each to its own scale, `sample` apart on the clock's axis."""

    def strokes(drawing: Any) -> None:
        for axes, name, signal in zip(drawing.subplots(len(names), 1, sharex=True), names, signals, strict=True):
            axes.plot(np.arange(len(signal)) * sample, signal, color="k", linewidth=0.7)
            axes.set_title(name, fontsize=8.5, pad=2)
            axes.locator_params(axis="y", nbins=3)
        axes.set_xlabel(clock)

    return paint((WIDTH_IN, 0.5 + 0.8 * len(names)), strokes, caption, f"{len(names)} traces.")


def crossings(value: Tensor, at: Tensor) -> list[float]:
    """Where a curve over `at` crosses zero, by straight lines: bifurcations are read off a sweep so."""
    turns = (value[1:] * value[:-1] < 0).nonzero().flatten()
    share = value[turns] / (value[turns] - value[turns + 1])
    return (at[turns] + share * (at[turns + 1] - at[turns])).tolist()


def publish(parts: Iterable[Section], page: Path | None, seeds: str) -> None:
    """Print every part as it is made, and write the page.

    Args:
        parts: Made one after the other.
        page: Where the page goes; None for none.
        seeds: What to say of seeds under the page.
    """
    begun, sections = time.monotonic(), []
    for part in parts:
        sections.append(part)
        print(f"{part.title} (simulated)")
        for quantity, paper, ours, tolerance, within in part.tables[0].rows:
            print(f"  {quantity}: paper {paper}, here {ours}, tolerance {tolerance}, within: {within}")
        print(f"  after {time.monotonic() - begun:.0f} s", flush=True)
    rows = [row for part in sections for row in part.tables[0].rows]
    kept = sum(row[-1] == "yes" for row in rows)
    print(f"{kept} of {len(rows)} numbers within their tolerance")
    if page is None:
        return
    summary = (
        f"{kept} of {len(rows)} simulated numbers lie within their tolerance. A number under 'paper' that is followed "
        "by its origin was not printed in the paper: it is what its equations give, solved or integrated apart."
    )
    more = {"seed": seeds, "time": f"{time.monotonic() - begun:.0f} s"}
    write_page(Page("Published behaviour, simulated again", summary, tuple(sections), provenance(**more)), page)
    print(f"the page: {page}")
