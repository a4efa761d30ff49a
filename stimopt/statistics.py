"""Medians, means and differences with the doubt that few patients leave.

An interval is a percentile bootstrap interval: resample, read the statistic again, keep
the middle share. Where runs belong to units (seeds to patients, channels to animals) the
units are resampled first and the runs within them second, because seeds are cheap and
patients are not. The seed fixes every draw.

References: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13;
Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torch import Tensor

from .errors import DataError
from .tensors import stream_seed

Statistic = Literal["median", "mean"]
Values = Sequence[Any] | NDArray[Any] | Tensor
Units = Sequence[Hashable] | NDArray[Any] | Tensor

_READ: dict[str, Callable[..., Any]] = {"median": np.median, "mean": np.mean}
_DRAWS_AT_ONCE = 1_000_000  # resampled numbers held in memory together


@dataclass(frozen=True)
class Interval:
    """An estimate and the range its resamples span; `low` and `high` are NaN where nothing could be resampled."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether the range lies on one side of zero; False where there is no range."""
        return self.low > 0 or self.high < 0


def bootstrap_interval(
    values: Values,
    statistic: Statistic = "median",
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    units: Units | None = None,
) -> Interval:
    """A statistic with its percentile bootstrap interval.

    Without units every value stands alone. With units, it is the statistic over units of their mean value, every
    unit counting once: units are resampled with replacement, then the values within each. The second stage makes
    the range a little wider than resampling whole units would (Davison and Hinkley 1997, section 3.8), the cautious
    side, because percentile intervals are narrow when units are few: for the mean of Gaussian values a nominal 95 %
    covers about 83 % at 5 values, 89 % at 10 and 94 % at 40.

    Args:
        values: `[value]`.
        statistic: "median" or "mean".
        level: Share of resamples inside the range.
        draws: How many resamples.
        seed: Fixes the draws.
        units: The unit (patient, animal, channel) of each value.

    Returns:
        The estimate and its range; the range is NaN for a single value or a single unit.

    Raises:
        DataError: If there is no value, one is not finite, units and values do not pair up, or `level` or `draws`
            make no range.
    """
    sample = _numbers("values", values, axes=1)
    if units is not None:
        return _unit_interval(_grouped(sample, units), statistic, level, draws, seed)
    low, high = _percentiles(sample, statistic, level, draws, seed)
    return Interval(float(_READ[statistic](sample)), float(low), float(high), level)


def bootstrap_band(
    curves: Values, statistic: Statistic = "median", level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The statistic over runs at every step, with its range; whole runs are resampled together.

    The band holds step by step, not for the whole curve at once.

    Args:
        curves: `[run, step]`.
        statistic: "median" or "mean".
        level: Share of resamples inside the band.
        draws: How many resamples.
        seed: Fixes the draws.

    Returns:
        The statistic, lower and upper edge, `[step]` each; the edges are NaN for a single run.

    Raises:
        DataError: If there is no run, a number is not finite, or `level` or `draws` make no range.
    """
    sample = _numbers("curves", curves, axes=2)
    low, high = _percentiles(sample, statistic, level, draws, seed)
    return _READ[statistic](sample, axis=0), low, high


def paired_difference(
    a: Values,
    b: Values,
    units: Units | None = None,
    statistic: Statistic = "median",
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """How much higher `a` is than `b`, pair by pair: the statistic of a - b with its interval.

    Args:
        a: `[pair]`, for example the final score of one policy per patient and seed.
        b: `[pair]`, another policy on the same patients and seeds, in the same order.
        units: The unit of each pair, as in `bootstrap_interval`; without it every pair stands alone.
        statistic: "median" or "mean".
        level: Share of resamples inside the range.
        draws: How many resamples.
        seed: Fixes the draws.

    Raises:
        DataError: If the two are not paired, or as `bootstrap_interval`.
    """
    first, second = _numbers("a", a, axes=1), _numbers("b", b, axes=1)
    if first.shape != second.shape:
        raise DataError(
            f"a has {first.size} values and b {second.size}; pair them: same patients, same seeds, same order."
        )
    return bootstrap_interval(first - second, statistic, level, draws, seed, units)


def _unit_interval(
    groups: Sequence[NDArray[Any]], statistic: Statistic, level: float, draws: int, seed: int
) -> Interval:
    _check_range(level, draws)
    estimate = float(_READ[statistic](np.array([group.mean() for group in groups])))
    if len(groups) < 2:
        return Interval(estimate, math.nan, math.nan, level)
    source, size = np.random.default_rng(stream_seed(seed, "units")), sum(map(len, groups))
    drawn = np.concatenate([_resampled(groups, statistic, n, source) for n in _portions(draws, size)])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), level)


def _percentiles(
    sample: NDArray[Any], statistic: Statistic, level: float, draws: int, seed: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    _check_range(level, draws)
    if len(sample) < 2:
        nothing = np.full(sample.shape[1:], math.nan)
        return nothing, nothing
    result = bootstrap(
        (sample,), _READ[statistic], n_resamples=draws, confidence_level=level, method="percentile", axis=0,
        vectorized=True, batch=max(1, _DRAWS_AT_ONCE // sample.size),
        rng=np.random.default_rng(stream_seed(seed, "bootstrap")),
    )  # fmt: skip
    interval = result.confidence_interval
    return np.asarray(interval.low), np.asarray(interval.high)


def _resampled(
    groups: Sequence[NDArray[Any]], statistic: Statistic, draws: int, source: np.random.Generator
) -> NDArray[Any]:
    count = len(groups)
    picked = source.integers(count, size=(draws, count))
    means = np.empty((draws, count))
    for index, group in enumerate(groups):
        here = picked == index  # each time a unit is drawn, its values are drawn anew
        inner = source.integers(len(group), size=(int(here.sum()), len(group)))
        means[here] = group[inner].mean(-1)
    statistics: NDArray[Any] = _READ[statistic](means, axis=-1)
    return statistics


def _portions(draws: int, size: int) -> list[int]:
    most = max(1, _DRAWS_AT_ONCE // size)
    return [most] * (draws // most) + ([draws % most] if draws % most else [])


def _grouped(sample: NDArray[Any], units: Units) -> list[NDArray[Any]]:
    if len(units) != len(sample):
        raise DataError(f"there are {len(sample)} values and {len(units)} units; name the unit of every value.")
    places: dict[Hashable, list[int]] = {}
    names = units.tolist() if isinstance(units, np.ndarray | Tensor) else units
    for index, unit in enumerate(names):
        places.setdefault(unit, []).append(index)
    return [sample[rows] for rows in places.values()]


def _numbers(name: str, values: Values, axes: int) -> NDArray[Any]:
    plain = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    numbers = np.asarray(plain, dtype=np.float64)
    if numbers.ndim != axes or numbers.size == 0:
        raise DataError(f"{name} must have {axes} axes and at least one number, got shape {list(numbers.shape)}.")
    bad = int((~np.isfinite(numbers)).sum())
    if bad:
        raise DataError(f"{name} has {bad} of {numbers.size} numbers that are not finite; drop those trials first.")
    return numbers


def _check_range(level: float, draws: int) -> None:
    if not 0 < level < 1 or draws < 1:
        raise DataError(f"level is {level} and draws {draws}; level lies between 0 and 1, draws is 1 or more.")
