"""What a surrogate believes, and doubts, over the parameters a search may turn.

Each pair of parameters gives two panels: the mean, and one standard deviation as doubt,
in real units, on a logarithmic axis where the parameter is logarithmic, with a row per
choice where it is a site or a category. The other parameters are held at one point.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from torch import Tensor

from .errors import SpaceError
from .figures import draw_best_so_far, draw_window, runs_of
from .picture import WIDTH_IN, Figure, paint, two_figures
from .response import Response
from .space import Parameter, StimulationSpace, Value
from .statistics import Values

Posterior = Callable[[Float[Tensor, "point dimension"]], tuple[Float[Tensor, " point"], Float[Tensor, " point"]]]

_ROWS_NAMED = 24  # of a site or category; beyond that every second, third, ... is named
_SUFFIXES = {"ma": "mA", "hz": "Hz", "us": "µs", "s": "s", "uv": "µV", "mm": "mm", "uc": "µC", "cm2": "cm²"}


@dataclass(frozen=True)
class _Axis:
    """One parameter laid out for drawing: cube points `[place, width]` and where they stand on paper."""

    parameter: Parameter
    cells: slice
    unit: Float[Tensor, "place width"]
    places: Any

    @property
    def listed(self) -> bool:
        return self.parameter.kind in ("categorical", "site")


def surrogate_maps(
    posterior: Posterior,
    space: StimulationSpace,
    tried: Float[Tensor, "trial dimension"],
    *,
    at: Float[Tensor, " dimension"],
    score_label: str = "score",
    resolution: int = 33,
) -> tuple[Figure, ...]:
    """The surrogate over every pair of parameters, or over the one there is.

    Args:
        posterior: Mean and standard deviation of the score at cube points; any model behind it will do.
        space: Names, units and scales of the axes.
        tried: Cube points of the trials, drawn as circles.
        at: Cube point, marked by a star, at which the parameters not on the axes are held.
        score_label: With the unit of the objective.
        resolution: Points along a continuous axis.

    Returns:
        One figure per pair; for a space of one parameter that has several values, its slice.

    Raises:
        SpaceError: If no parameter has two values to draw between.
    """
    axes = [axis for axis in _axes_of(space, resolution) if len(axis.places) > 1]
    if not axes:
        raise SpaceError("a map needs a parameter with at least two values; this space has one point.")
    if len(axes) == 1:
        return (surrogate_slice(posterior, space, axes[0].parameter.name, at=at, score_label=score_label),)
    pairs = [(b, a) if a.listed and not b.listed else (a, b) for a, b in combinations(axes, 2)]
    return tuple(_pair_figure(posterior, space, pair, tried, at, score_label) for pair in pairs)


def surrogate_slice(
    posterior: Posterior,
    space: StimulationSpace,
    name: str,
    *,
    at: Float[Tensor, " dimension"],
    tried: Float[Tensor, "trial dimension"] | None = None,
    scores: Float[Tensor, " trial"] | None = None,
    score_label: str = "score",
    resolution: int = 65,
) -> Figure:
    """The surrogate along one parameter: mean and the middle 95 % of its Gaussian doubt.

    Args:
        posterior: Mean and standard deviation of the score at cube points.
        space: Names, units and scales.
        name: The parameter along the axis.
        at: Cube point at which the others are held.
        tried: Cube points of trials, drawn with their scores; they may differ in the other parameters.
        scores: Scores of those trials.
        score_label: With the unit of the objective.
        resolution: Points along a continuous axis.

    Raises:
        SpaceError: If there is no such parameter.
    """
    along = next((axis for axis in _axes_of(space, resolution) if axis.parameter.name == name), None)
    if along is None:
        raise SpaceError(f"parameter {name!r} is not in this space; it has {', '.join(space.slices())}.")
    mean, sd = _read(posterior, _held(at, along))

    def strokes(drawing: Any) -> None:
        axes = drawing.subplots()
        if along.listed:
            axes.errorbar(along.places, mean, 1.96 * sd, fmt="s", color="black", capsize=3, lw=1.0, ms=4)
        else:
            axes.fill_between(along.places, mean - 1.96 * sd, mean + 1.96 * sd, color="#bbbbbb", lw=0)
            axes.plot(along.places, mean, color="black")
        if tried is not None and scores is not None:
            axes.plot(_places(along, space, tried), scores.detach().cpu().numpy(), "o", ms=4, mfc="white", mec="black")
        _dress(axes, along, "x")
        axes.set_ylabel(score_label)

    caption = (
        f"The surrogate along {label_of(along.parameter)}: mean and the middle 95 %. {_held_words(space, at, name)}"
    )
    return paint((WIDTH_IN * 0.7, 2.8), strokes, caption, f"{score_label} against {label_of(along.parameter)}.")


def story_picture(
    before: Response,
    after: Response,
    channel: str,
    scores: Mapping[str, Values],
    posterior: Posterior,
    space: StimulationSpace,
    tried: Float[Tensor, "trial dimension"],
    *,
    at: Float[Tensor, " dimension"],
    pair: tuple[str, str],
    score_label: str = "score",
    reference: float | None = None,
    reference_name: str = "optimum",
) -> Figure:
    """The whole loop in one strip: what a circuit answers, how the search went, what the surrogate believes.

    Args:
        before: A window without stimulation.
        after: A window with it.
        channel: The channel to draw.
        scores: `[run, trial]` or `[trial]` by policy.
        posterior: Mean and standard deviation of the score at cube points.
        space: Names, units and scales of the map's axes.
        tried: Cube points of the trials.
        at: Cube point, marked by a star, at which the other parameters are held.
        pair: The two parameters of the map, across and up.
        score_label: With the unit of the objective.
        reference: A level to compare with.
        reference_name: What that level is.
    """
    by_name = {axis.parameter.name: axis for axis in _axes_of(space, 33)}

    def strokes(drawing: Any) -> None:
        left, middle, right = drawing.subplots(1, 3, width_ratios=(1, 1, 1.15))
        draw_window(left, None, (before, after), before.montage.channel_index(channel))
        left.set(xlabel="time in the window (s)", ylabel=f"{channel} (µV)", title="the circuit answers")
        left.margins(y=0.25)
        left.legend(loc="upper left", ncols=2, handlelength=1.0, columnspacing=0.8)
        runs = {name: runs_of(values) for name, values in scores.items()}
        draw_best_so_far(middle, runs, score_label, reference, reference_name)
        middle.set_title("the search learns")
        middle.legend(loc="lower right")
        across, up = by_name[pair[0]], by_name[pair[1]]
        mean, _ = _read(posterior, _held(at, across, up))
        _map(drawing, right, across, up, mean, "viridis", score_label)
        _points(right, across, up, space, tried, at)
        right.set_title("the surrogate believes")

    return paint((10.0, 3.0), strokes, "From circuit to recommendation.", "Response, search trace and surrogate map.")


def setting_words(space: StimulationSpace, point: Float[Tensor, " dimension"], *names: str) -> str:
    """A point of the cube in words, all parameters or the named ones: "amplitude 2.1 mA, contacts LA3-LA4"."""
    values, said = space.describe(point), []
    for parameter in space.parameters:
        if parameter.name in (names or values):
            name, _, unit = label_of(parameter).partition(" (")
            said.append(f"{name} {value_text(values[parameter.name])} {unit.rstrip(')')}".strip())
    return ", ".join(said)


def value_text(value: Value) -> str:
    """A parameter's value with the digits that a device is set by: three figures, names as they are."""
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 100 or value == 0 else f"{value:#.3g}"


def label_of(parameter: Parameter) -> str:
    """A parameter's name and unit as printed on an axis: "pulse width (µs)"."""
    words = parameter.name.split("_")
    suffix = _SUFFIXES.get(words[-1], "") if len(words) > 1 else ""
    name = " ".join(words[:-1] if suffix else words)
    unit = "" if parameter.kind in ("categorical", "site") else (parameter.unit or suffix)
    return f"{name} ({unit.replace('us', 'µs') if unit == 'us' else unit})" if unit else name


def _pair_figure(
    posterior: Posterior, space: StimulationSpace, pair: tuple[_Axis, _Axis], tried: Tensor, at: Tensor, label: str
) -> Figure:
    across, up = pair
    mean, sd = _read(posterior, _held(at, across, up))

    def strokes(drawing: Any) -> None:
        panels = drawing.subplots(1, 2, sharex=True, sharey=True)
        _map(drawing, panels[0], across, up, mean, "viridis", f"mean {label}")
        _map(drawing, panels[1], across, up, sd, "Greys", "doubt (1 SD)")
        for axes in panels:
            _points(axes, across, up, space, tried, at)
        panels[1].set_ylabel("")

    names = f"{label_of(across.parameter)} and {label_of(up.parameter)}"
    held = _held_words(space, at, across.parameter.name, up.parameter.name)
    caption = f"The surrogate over {names}: mean (left) and doubt (right). Circles: trials; star: recommended. {held}"
    rows = min(len(up.places), _ROWS_NAMED) if up.listed else 0
    best = two_figures(float(mean.max()))
    return paint((WIDTH_IN, max(2.7, 1.2 + 0.24 * rows)), strokes, caption, f"Maps over {names}; highest mean {best}.")


def _map(drawing: Any, axes: Any, across: _Axis, up: _Axis, values: Any, colours: str, label: str) -> None:
    smooth = not (across.parameter.discrete or up.parameter.discrete) and values.max() > values.min()
    if smooth:
        levels = MaxNLocator(10).tick_values(values.min(), values.max())
        shades = axes.contourf(across.places, up.places, values, levels=levels, cmap=colours)
        axes.contour(across.places, up.places, values, levels=levels[::2], colors="white", linewidths=0.4)
    else:
        shades = axes.pcolormesh(across.places, up.places, values, shading="nearest", cmap=colours, rasterized=True)
    bar = drawing.colorbar(shades, ax=axes, label=label, pad=0.02, aspect=28)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
    _dress(axes, across, "x")
    _dress(axes, up, "y")


def _points(axes: Any, across: _Axis, up: _Axis, space: StimulationSpace, tried: Tensor, at: Tensor) -> None:
    look = {"ls": "none", "mec": "black", "clip_on": False, "zorder": 5}
    if len(tried):
        axes.plot(
            _places(across, space, tried), _places(up, space, tried), marker="o", ms=3.5, mfc="white", mew=0.7, **look
        )
    star = at.unsqueeze(0)
    axes.plot(_places(across, space, star), _places(up, space, star), marker="*", ms=12, mfc="#ffd92f", mew=0.9, **look)


def _dress(axes: Any, axis: _Axis, side: str) -> None:
    ruler = getattr(axes, f"{side}axis")
    ruler.set_label_text(label_of(axis.parameter))
    if axis.listed:
        every = math.ceil(len(axis.places) / _ROWS_NAMED)
        names = [str(choice) for choice in axis.parameter.choices][::every]
        crowded = side == "x" and len(names) > 6
        ruler.set_ticks(axis.places[::every], names, rotation=90 if crowded else 0)
    elif axis.parameter.kind == "log":
        getattr(axes, f"set_{side}scale")("log")
        ruler.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ruler.set_major_formatter(ScalarFormatter())
        ruler.set_minor_formatter(NullFormatter())


def _axes_of(space: StimulationSpace, resolution: int) -> list[_Axis]:
    return [_axis(p, cells, resolution) for p, cells in zip(space.parameters, space.slices().values(), strict=True)]


def _axis(parameter: Parameter, cells: slice, resolution: int) -> _Axis:
    line = torch.linspace(0, 1, resolution, dtype=torch.float64).unsqueeze(-1)
    if parameter.kind == "continuous":
        return _Axis(parameter, cells, line, parameter.low + line[:, 0].numpy() * (parameter.high - parameter.low))
    if parameter.kind == "log":
        return _Axis(parameter, cells, line, np.geomspace(parameter.low, parameter.high, resolution))
    unit, values = parameter.grid_like(line), parameter.values()
    if parameter.kind in ("categorical", "site"):
        return _Axis(parameter, cells, unit, np.arange(len(values), dtype=float))
    few = torch.linspace(0, len(values) - 1, min(resolution, len(values))).round().long()
    return _Axis(parameter, cells, unit[few], np.array([float(values[i]) for i in few]))


def _held(at: Tensor, across: _Axis, up: _Axis | None = None) -> Float[Tensor, "up across dimension"]:
    """Cube points over one or two axes, everything else at `at`."""
    rows = 1 if up is None else len(up.unit)
    points = at.detach().cpu().double().repeat(rows, len(across.unit), 1)
    points[..., across.cells] = across.unit
    if up is not None:
        points[..., up.cells] = up.unit.unsqueeze(1)
    return points


def _read(posterior: Posterior, points: Float[Tensor, "up across dimension"]) -> tuple[Any, Any]:
    with torch.no_grad():
        mean, sd = posterior(points.flatten(0, 1))
    shape = points.shape[:2] if points.shape[0] > 1 else points.shape[1:2]
    return tuple(v.detach().cpu().double().reshape(shape).numpy() for v in (mean, sd))  # type: ignore[return-value]


def _places(axis: _Axis, space: StimulationSpace, unit: Tensor) -> Any:
    return space.decode(unit)[axis.parameter.name].detach().cpu().double().numpy()


def _held_words(space: StimulationSpace, at: Tensor, *drawn: str) -> str:
    values = {name: value for name, value in space.describe(at).items() if name not in drawn}
    if not values:
        return ""
    return f"Held: {setting_words(space, at, *values)}."
