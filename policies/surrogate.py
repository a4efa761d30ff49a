"""Gaussian process over a stimulation space: what the trials so far say about every setting.

    score = level + slope . trend + f(point) + noise

f has a Matern-5/2 covariance with one length per axis of the cube; a categorical axis counts
distance 1 between any two names. Level and slopes have normal priors and are integrated out. Trials
of one setting are pooled without loss: the likelihood needs only their mean, number and scatter.
Lengths, signal and noise are the most probable ones given log-normal priors, found from the best of a
fixed set of prior draws, so a fit never fails and needs no generator. Scores are standardised inside.

Reference: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), equations 2.23-2.30, 4.17, 5.9.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from torch import Tensor
from torch.quasirandom import SobolEngine

from stimopt.space import StimulationSpace

# Priors, chosen on rat motor maps and synthetic functions, for scores standardised to variance 1.
_LENGTH_MEDIAN, _LENGTH_SPREAD = 0.25, 0.4  # share of an axis, times sqrt(axes): Hvarfner et al. 2024, ICML
_SIGNAL_MEDIAN, _SIGNAL_SPREAD = 1.0, 0.7  # variance
_NOISE_MEDIAN, _NOISE_SPREAD = 0.08, 1.3  # variance of one trial
_NOISE_FLOOR = 1e-4  # keeps ties and noiseless twins well conditioned
_DRAWS, _STEPS = 32, 25
_LEVEL_SD = 1.0


@dataclass(frozen=True)
class Surrogate:
    """A posterior over scores, ready to be asked. Built by `fit_surrogate`; differentiable in the points.

    Attributes:
        space: Whose cube the points lie in.
        rows: Distinct settings as features and trend, one row each: the kernel's coordinates.
        means: Standardised mean score of each row.
        noise: Variance of that mean.
        lengths: Length of each feature column.
        signal: Variance of f.
        offset: Score that standardises to zero.
        scale: Score that standardises to one, less the offset.
        cholesky: Lower factor of the covariance of `means`.
        weights: Inverse covariance times `means`.
    """

    space: StimulationSpace
    rows: Float[Tensor, "row column"]
    means: Float[Tensor, " row"]
    noise: Float[Tensor, " row"]
    lengths: Float[Tensor, " feature"]
    signal: Float[Tensor, ""]
    offset: Float[Tensor, ""]
    scale: Float[Tensor, ""]
    cholesky: Float[Tensor, "row row"]
    weights: Float[Tensor, " row"]

    def columns(
        self, points: Float[Tensor, "*batch dimension"], trend: Float[Tensor, "*batch trend"]
    ) -> Float[Tensor, "*batch column"]:
        """The kernel's coordinates of points at given trends."""
        return columns_of(self.space, points, trend)

    def posterior(
        self, points: Float[Tensor, "point dimension"], trend: Float[Tensor, "point trend"]
    ) -> tuple[Float[Tensor, " point"], Float[Tensor, " point"]]:
        """Mean and standard deviation of the expected score (without trial noise) at each point."""
        columns = self.columns(points, trend)
        cross = self.covariance(columns, self.rows)  # [point, row]
        half = torch.linalg.solve_triangular(self.cholesky, cross.mT, upper=False)
        width = len(self.lengths)
        own = self.signal + columns[..., width:].square().sum(-1)
        variance = (own - half.square().sum(0)).clamp_min(1e-12)
        return self.offset + self.scale * (cross @ self.weights), self.scale * variance.sqrt()

    def sample(
        self, points: Float[Tensor, "point dimension"], trend: Float[Tensor, "point trend"], generator: torch.Generator
    ) -> Float[Tensor, " point"]:
        """One draw of the expected scores at all points together."""
        columns = self.columns(points, trend)
        cross = self.covariance(columns, self.rows)
        half = torch.linalg.solve_triangular(self.cholesky, cross.mT, upper=False)
        covariance = self.covariance(columns, columns) - half.mT @ half
        jitter = 1e-6 * covariance.diagonal().mean() + 1e-10
        factor = torch.linalg.cholesky(covariance + jitter * torch.eye(len(points), dtype=points.dtype))
        normal = torch.randn(len(points), generator=generator, dtype=torch.float64).to(points)
        drawn: Tensor = self.offset + self.scale * (cross @ self.weights + factor @ normal)
        return drawn

    def covariance(
        self, left: Float[Tensor, "*batch left column"], right: Float[Tensor, "*batch right column"]
    ) -> Float[Tensor, "*batch left right"]:
        """Prior covariance of standardised expected scores between kernel coordinates."""
        width = len(self.lengths)
        a, b = left[..., :width] / self.lengths, right[..., :width] / self.lengths
        squared = (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
        return self.signal * _matern(squared)[0] + left[..., width:] @ right[..., width:].mT


def columns_of(
    space: StimulationSpace, points: Float[Tensor, "*batch dimension"], trend: Float[Tensor, "*batch trend"]
) -> Float[Tensor, "*batch column"]:
    """Features of the points (categorical axes one-hot, so that two names are 1 apart), the level, and the trend."""
    parts = []
    for parameter, axes in zip(space.parameters, space.slices().values(), strict=True):
        part = points[..., axes]
        if parameter.kind == "categorical":
            part = torch.nn.functional.one_hot(parameter.nearest(part), len(parameter.choices)).to(points) / math.sqrt(
                2
            )
        parts.append(part)
    return torch.cat([*parts, points.new_full((*points.shape[:-1], 1), _LEVEL_SD), trend], -1)


def axis_of_feature(space: StimulationSpace) -> Int[Tensor, " feature"]:
    """Which length each feature column has: one per axis of the cube, one for all names of a categorical axis."""
    counts = []
    for parameter in space.parameters:
        counts += [len(parameter.choices)] if parameter.kind == "categorical" else [1] * parameter.width
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def fit_surrogate(
    space: StimulationSpace,
    points: Float[Tensor, "trial dimension"],
    trend: Float[Tensor, "trial trend"],
    scores: Float[Tensor, " trial"],
    standard: tuple[Tensor, Tensor] | None = None,
) -> Surrogate:
    """The surrogate of trials at `points`; at least one trial, repetitions welcome.

    Args:
        space: Tells which axes are categorical.
        points: Snapped cube points, float64.
        trend: Numbers that the score may depend on linearly, such as session time. A column's slope has a
            normal prior of mean 0 and sd 1, for standardised scores. May be 0 wide.
        scores: Finite.
        standard: Score that counts as zero, and difference that counts as one; by default mean and sd of the scores.
    """
    offset, scale = (scores.mean(), _spread(scores)) if standard is None else standard
    data = _pooled(columns_of(space, points, trend), (scores - offset) / scale, axis_of_feature(space))
    theta = _most_probable(data)
    lengths, signal, noise = theta[:-2].exp(), theta[-2].exp(), theta[-1].exp() + _NOISE_FLOOR
    covariance = signal * _matern(data.squared_by(lengths))[0] + data.linear
    variance = noise / data.counts
    factor, _ = torch.linalg.cholesky_ex(covariance + variance.diag())
    weights = torch.cholesky_solve(data.means.unsqueeze(-1), factor).squeeze(-1)
    return Surrogate(
        space, data.rows, data.means, variance, lengths[axis_of_feature(space)], signal, offset, scale, factor, weights
    )


def _spread(scores: Tensor) -> Tensor:
    """Standard deviation; 1 for scores that are equal but for rounding."""
    spread = scores.std(correction=0)
    return torch.where(spread > 1e-12 * scores.abs().max(), spread, 1.0)


@dataclass(frozen=True)
class _Pooled:
    """Trials of one setting pooled: what the likelihood needs of them."""

    rows: Tensor  # [row, column]
    means: Tensor  # [row]
    counts: Tensor  # [row]
    scatter: Tensor  # sum of squares within rows
    gaps: Tensor  # [length, row, row] squared distance along each axis
    linear: Tensor  # [row, row] covariance of level and trend

    def squared_by(self, lengths: Tensor) -> Tensor:
        """Squared distance in lengths, `[*batch, row, row]`."""
        return torch.einsum("...l,lij->...ij", lengths**-2, self.gaps)


def _pooled(columns: Tensor, scores: Tensor, axis: Tensor) -> _Pooled:
    keys = (columns * 1e9).round()
    _, group = torch.unique(keys, dim=0, return_inverse=True)
    counts = torch.bincount(group).to(scores)
    means = scores.new_zeros(len(counts)).index_add(0, group, scores) / counts
    rows = columns.new_zeros(len(counts), columns.shape[-1]).index_copy(0, group, columns)
    features, rest = rows[:, : len(axis)], rows[:, len(axis) :]
    squares = (features.unsqueeze(0) - features.unsqueeze(1)).square().movedim(-1, 0)
    gaps = rows.new_zeros(int(axis.max()) + 1, len(rows), len(rows)).index_add(0, axis, squares)
    return _Pooled(rows, means, counts, (scores - means[group]).square().sum(), gaps, rest @ rest.mT)


def _matern(squared: Tensor) -> tuple[Tensor, Tensor]:
    """Matern-5/2 correlation of squared distance, and its derivative in a length's logarithm per squared gap."""
    root = (5 * squared + 1e-20).sqrt()
    decay = torch.exp(-root)
    return (1 + root + root.square() / 3) * decay, (5 / 3) * (1 + root) * decay


def _prior(lengths: int) -> tuple[Tensor, Tensor]:
    """Mean and sd of the logarithms of lengths, signal and noise."""
    length = math.log(_LENGTH_MEDIAN * math.sqrt(lengths))
    mean = [length] * lengths + [math.log(_SIGNAL_MEDIAN), math.log(_NOISE_MEDIAN)]
    spread = [_LENGTH_SPREAD] * lengths + [_SIGNAL_SPREAD, _NOISE_SPREAD]
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(spread, dtype=torch.float64)


def _most_probable(data: _Pooled) -> Float[Tensor, " theta"]:
    mean, spread = _prior(len(data.gaps))
    share = SobolEngine(len(mean), scramble=True, seed=0).draw(_DRAWS, dtype=torch.float64)
    draws = torch.cat([mean.unsqueeze(0), mean + spread * torch.special.ndtri(share.clamp(0.01, 0.99))])
    values, _ = _negative_log_posterior(draws, data, mean, spread)
    start = draws[int(values.argmin())]

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _negative_log_posterior(torch.from_numpy(theta).unsqueeze(0), data, mean, spread)
        return float(value), slope.squeeze(0).numpy()

    bounds = [(float(m - 5 * s), float(m + 5 * s)) for m, s in zip(mean, spread, strict=True)]
    found = minimize(objective, start.numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS})
    better = math.isfinite(found.fun) and found.fun <= float(values.min())
    return torch.from_numpy(found.x) if better else start


def _negative_log_posterior(
    theta: Float[Tensor, "draw theta"], data: _Pooled, mean: Tensor, spread: Tensor
) -> tuple[Float[Tensor, " draw"], Float[Tensor, "draw theta"]]:
    """Value and gradient in the logarithms of lengths, signal and noise; 1e10 where no factor exists."""
    lengths, signal = theta[:, :-2].exp(), theta[:, -2, None, None].exp()
    single = theta[:, -1].exp() + _NOISE_FLOOR
    matern, slope = _matern(data.squared_by(lengths))
    covariance = signal * matern + data.linear + torch.diag_embed(single[:, None] / data.counts)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    inverse = torch.cholesky_inverse(factor)
    weights = inverse @ data.means
    within = data.counts.sum() - len(data.counts)  # degrees of freedom inside the rows
    value = 0.5 * (weights @ data.means + within * single.log() + data.scatter / single)
    value = value + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    pull = 0.5 * (inverse - weights.unsqueeze(-1) * weights.unsqueeze(-2))  # equation 5.9
    by_length = torch.einsum("dij,lij->dl", pull * signal * slope, data.gaps) * lengths**-2
    by_signal = (pull * signal * matern).sum((-2, -1))
    by_noise = (pull.diagonal(dim1=-2, dim2=-1) / data.counts).sum(-1) + 0.5 * (
        within / single - data.scatter / single**2
    )
    gradient = torch.cat([by_length, by_signal[:, None], (by_noise * theta[:, -1].exp())[:, None]], -1)
    off = (theta - mean) / spread
    value = value + 0.5 * off.square().sum(-1)
    bad = (failed > 0) | ~value.isfinite()
    return torch.where(bad, 1e10, value), torch.where(bad[:, None], 0.0, gradient + off / spread)
