"""A picture that can stand in a page by itself: SVG, caption, description; and numbers as text.

Matplotlib is used through its objects only. Its settings hold while a picture is drawn and
are put back afterwards, so draw in one thread at a time.
"""

import hashlib
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Drawing
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .errors import DataError

_RASTER_DPI = 200.0  # of shaded cells inside an SVG, which show seams when drawn as shapes
_MINUS = "\u2212"
WIDTH_IN = 7.1  # text width of an A4 page with 15 mm margins
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9.0, "axes.titlesize": 9.5, "axes.labelsize": 9.0,
    "axes.titlelocation": "left", "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 8.5,
    "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7,
    "lines.linewidth": 1.5, "hatch.linewidth": 0.7, "svg.fonttype": "path", "svg.hashsalt": "stimopt",
    "figure.facecolor": "white", "savefig.facecolor": "white", "path.simplify": True,
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A picture for a page.

    Attributes:
        svg: The picture, without references to anything outside it.
        caption: What it shows, printed beneath.
        alt: What is seen, for those who cannot.
        drawing: The matplotlib figure it was made from.
    """

    svg: str
    caption: str
    alt: str
    drawing: Any = field(default=None, repr=False, compare=False)


def two_figures(value: float) -> str:
    """A number with two significant figures, whole numbers above 100 in full: "0.052", "1.3", "87", "13204".

    NaN gives "n/a". Beyond 100 000 and below 0.001 the power of ten is written, "2.1e-05".
    """
    if not math.isfinite(value) or value == 0:
        return "n/a" if math.isnan(value) else f"{value:.0f}"
    rounded = float(f"{value:.1e}")
    if not 1e-3 <= abs(rounded) < 1e5:
        text = f"{value:.1e}"
    elif abs(rounded) >= 100:
        text = f"{value:.0f}"
    else:
        text = f"{rounded:.{max(0, 1 - math.floor(math.log10(abs(rounded))))}f}"
    return text.replace("-", _MINUS)


def paint(size_in: tuple[float, float], strokes: Callable[[Any], None], caption: str, alt: str) -> Figure:
    """A figure of the house style; `strokes` gets an empty matplotlib figure to draw on.

    Args:
        size_in: Width and height in inches.
        strokes: Draws.
        caption: Printed beneath.
        alt: What is seen.
    """
    with matplotlib.rc_context(STYLE):
        spacing = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, wspace=0.06)
        drawing = Drawing(figsize=size_in, layout=spacing)
        strokes(drawing)
        text = io.StringIO()
        drawing.savefig(text, format="svg", dpi=_RASTER_DPI, metadata={"Date": None, "Creator": None})
    return Figure(_bare_svg(text.getvalue()), caption, alt, drawing)


def save_picture(figure: Figure, path: Path, dots_per_inch: float = 120.0) -> None:
    """Write a figure as a file of its own, `.svg` or `.png` by its suffix.

    Raises:
        DataError: If the suffix is another.
    """
    if path.suffix not in (".svg", ".png"):
        raise DataError(f"{path.name} must end in .svg or .png, as the picture's format is read from it.")
    with matplotlib.rc_context(STYLE):
        quiet = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.drawing.savefig(path, dpi=dots_per_inch, metadata=quiet)


def _bare_svg(text: str) -> str:
    """The element alone: no prologue, metadata or namespaces, and names that no other figure of a page has."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    key = "f" + hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{key}-", text)
    return re.sub(r"\n\s*", "\n", text).strip()
