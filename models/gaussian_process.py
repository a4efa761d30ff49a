"""Gaussian process on the stimulus's parameters: few trials, smooth answers, and doubt where nothing was tried.

Response windows are written in the few shapes that change with the stimulus (a reduced
rank regression), and each shape's size is an exact Gaussian process over the unit cube of
the stimulation space: Matern 5/2, one length scale an axis, hyperparameters by marginal
likelihood under dimension-scaled priors. Doubt about the surface enters a forecast as
shared factors. The context is not used.

References: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), equations 2.25, 5.8 and 5.12;
Hvarfner, Hellsten and Nardi, ICML 2024, for the prior on length scales.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.checkpoint import space_from_dict, space_to_dict
from stimopt.errors import DataError
from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.space import StimulationSpace
from stimopt.stimulus import Stimulus
from stimopt.tensors import generator

from .residuals import residual_noise
from .window import Window, contiguous, in_double, window_from_dict, window_of

_MOST_TRIALS = 400  # the cube of this is what one likelihood costs
_STEPS = 60  # of L-BFGS


@dataclass(frozen=True)
class GaussianProcessForecaster(Forecaster):
    """One process per response shape. Differentiable in the stimulus along continuous and log parameters.

    A stimulus outside the space is refused, as by `StimulationSpace.locate`; silence is answered with the rest.

    Attributes:
        window: What it was fitted on.
        space: Whose cube the processes live on.
        tried: Features of the trials.
        length: Length scales.
        height: Prior variance of each component.
        cholesky: Of each component's covariance over the trials, noise included.
        weight: That covariance's inverse times the components' sizes.
        mean_uv: Mean window, where all components are zero.
        rest_uv: Mean window without stimulus.
        shape_uv: The shapes.
        scale_uv: Independent noise.
        factors_uv: Shared noise.
    """

    window: Window
    space: StimulationSpace
    tried: Float[Tensor, "trial feature"]
    length: Float[Tensor, "component feature"]
    height: Float[Tensor, " component"]
    cholesky: Float[Tensor, "component trial trial"]
    weight: Float[Tensor, "component trial"]
    mean_uv: Float[Tensor, "channel time"]
    rest_uv: Float[Tensor, "channel time"]
    shape_uv: Float[Tensor, "component channel time"]
    scale_uv: Float[Tensor, "channel time"]
    factors_uv: Float[Tensor, "factor channel time"]

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster.

        Raises:
            SpaceError: If a stimulus lies outside the space.
        """
        self.window.context_signal(context, stimulus)  # refuses what does not fit
        flat = stimulus.reshape(stimulus.batch_shape.numel())
        active = (~_quiet(flat)).nonzero().squeeze(-1)
        size, doubt = self.components(flat[active])
        mean = self.mean_uv + torch.einsum("nk,kct->nct", size, self.shape_uv)
        unsure = doubt.unsqueeze(-1).unsqueeze(-1) * self.shape_uv  # [row, component, channel, time]
        rest = self.rest_uv.expand(len(flat.pulses), *self.rest_uv.shape)
        certain = unsure.new_zeros(len(rest), *unsure.shape[1:])
        batch, like = stimulus.batch_shape, stimulus.amplitude_ma
        mean = rest.index_copy(0, active, mean).reshape(*batch, *self.rest_uv.shape).to(like)
        unsure = certain.index_copy(0, active, unsure).reshape(*batch, *unsure.shape[1:]).to(like)
        shared = self.factors_uv.to(like).expand(*batch, *self.factors_uv.shape)
        scale = self.scale_uv.to(like).expand_as(mean)
        return GaussianForecast(self.window.response(mean), scale, torch.cat([unsure, shared], -3))

    def components(self, stimulus: Stimulus) -> tuple[Float[Tensor, "row component"], Float[Tensor, "row component"]]:
        """Expected size of each shape and its doubt (standard deviation), for stimuli that are not silent."""
        cross = _matern(features(self.space, stimulus), self.tried, self.length, self.height)  # [component, row, trial]
        size = torch.einsum("krn,kn->rk", cross, self.weight)
        known = torch.linalg.solve_triangular(self.cholesky, cross.mT, upper=False).square().sum(-2)
        variance = (self.height.unsqueeze(-1) - known).clamp_min(1e-9)
        return size, variance.sqrt().mT

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        names = ("tried", "length", "height", "cholesky", "weight", "mean_uv", "rest_uv", "shape_uv", "scale_uv",
                 "factors_uv")  # fmt: skip
        config = {"window": self.window.to_dict(), "space": space_to_dict(self.space)}
        return config, {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "GaussianProcessForecaster":
        """See Saveable."""
        return cls(window=window_from_dict(config["window"]), space=space_from_dict(config["space"]), **tensors)


def fit_gaussian_process(
    trials: Trials, space: StimulationSpace, *, seed: int = 0, components: int = 8, factors: int = 12
) -> GaussianProcessForecaster:
    """Gaussian processes on the parameters of a space, one per shape of the response.

    Args:
        trials: Recorded trials with signals; of more than 400 a random 400 are used.
        space: In which all stimuli lie that are not silent.
        seed: Of that draw.
        components: How many shapes at most.
        factors: How many shared noise factors at most.

    Raises:
        DataError: If there are fewer than four trials with a stimulus, or no signals.
        SpaceError: If a stimulus lies outside the space.
    """
    window, trials = window_of(trials), in_double(trials)
    quiet = _quiet(trials.stimulus)
    tried = (~quiet).nonzero().squeeze(-1)
    if len(tried) < 4:
        raise DataError(f"a Gaussian process needs at least 4 trials with a stimulus, got {len(tried)}; record more.")
    tried = tried[torch.randperm(len(tried), generator=generator(seed, "trials"))[:_MOST_TRIALS].sort().values]
    x, signal = features(space, trials.stimulus[tried]).detach(), trials.response.signal_uv[tried]
    rest = trials.context.signal_uv.mean((0, -1)).unsqueeze(-1).expand(signal.shape[1:])
    rest = trials.response.signal_uv[quiet].mean(0) if bool(quiet.any()) else rest.contiguous()
    mean = signal.mean(0)
    shapes = _shapes(x, signal - mean, components)
    sizes = _sizes(shapes, signal - mean)  # [trial, component], each of variance 1
    length, height, noise = _hyperparameters(x, sizes)
    covariance = _matern(x, x, length, height) + torch.diag_embed(noise.unsqueeze(-1).expand(-1, len(x)))
    cholesky = torch.linalg.cholesky(covariance)
    inverse = torch.cholesky_inverse(cholesky)
    weight = torch.einsum("kij,jk->ki", inverse, sizes)
    left_out = weight / inverse.diagonal(dim1=-2, dim2=-1)  # trial less its forecast without it, equation 5.12
    residual = signal - mean - torch.einsum("nk,kct->nct", sizes - left_out.mT, shapes)
    # each length scale was chosen on these trials and costs about one, as a coefficient of a regression does:
    # without this, 90% intervals of 40 trials in 6 dimensions held 83%
    residual = residual * math.sqrt(len(x) / max(1, len(x) - x.shape[-1] - 1))
    scale, shared = residual_noise(residual, window.rate_hz, factors)
    surface = (x, length, height, cholesky, weight)
    return contiguous(GaussianProcessForecaster(window, space, *surface, mean, rest, shapes, scale, shared))


def features(space: StimulationSpace, stimulus: Stimulus) -> Float[Tensor, "row feature"]:
    """Axes of the cube, but one column a choice for categorical parameters: any two choices lie equally far."""
    unit, columns = space.locate(stimulus), []
    for parameter, axes in zip(space.parameters, space.slices().values(), strict=True):
        part = unit[..., axes]
        if parameter.kind == "categorical":
            part = torch.nn.functional.one_hot(parameter.nearest(part), len(parameter.choices)).to(part) / math.sqrt(2)
        columns.append(part)
    return torch.cat(columns, -1)


def _quiet(stimulus: Stimulus) -> Tensor:
    if stimulus.sensory is None:
        return stimulus.silent
    return torch.zeros_like(stimulus.silent)  # the senses are stimulated even where no current flows


def _matern(one: Tensor, other: Tensor, length: Tensor, height: Tensor) -> Float[Tensor, "component row trial"]:
    """Matern 5/2 of each component."""
    apart = (one.unsqueeze(-2) - other) / length[:, None, None, :]  # [component, row, trial, feature]
    distance = math.sqrt(5) * (apart.square().sum(-1) + 1e-14).sqrt()  # the root has no slope at zero
    return height[:, None, None] * (1 + distance + distance.square() / 3) * (-distance).exp()


def _shapes(
    x: Tensor, signal: Float[Tensor, "trial channel time"], count: int
) -> Float[Tensor, "component channel time"]:
    """Leading shapes of the part of the windows that a smooth function of the stimulus explains."""
    width = math.sqrt(x.shape[-1])
    kernel = _matern(x, x, x.new_full((1, x.shape[-1]), 0.5 * width), x.new_ones(1))[0]
    spread = signal.square().mean((0, -1)).clamp_min(1e-12).sqrt().unsqueeze(-1)
    flat = (signal / spread).flatten(1)
    smooth = kernel @ torch.linalg.solve(kernel + torch.eye(len(x), dtype=x.dtype), flat)
    _, _, direction = torch.linalg.svd(smooth, full_matrices=False)
    direction = direction[: min(count, len(x) - 1)]
    size = (flat @ direction.mT).std(0).clamp_min(1e-9)
    shapes: Tensor = (direction * size.unsqueeze(-1)).reshape(-1, *signal.shape[1:]) * spread
    return shapes


def _sizes(shapes: Tensor, signal: Tensor) -> Float[Tensor, "trial component"]:
    spread = signal.square().mean((0, -1)).clamp_min(1e-12).sqrt().unsqueeze(-1)
    plain, flat = (shapes / spread).flatten(1), (signal / spread).flatten(1)
    return flat @ plain.mT / plain.square().sum(-1)


def _hyperparameters(x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Length scales, heights and noise variances with the highest posterior density, all components at once."""
    components, width = sizes.shape[1], x.shape[-1]
    centre = math.sqrt(2) + 0.5 * math.log(width)  # Hvarfner et al. 2024, equation 8; scale sqrt(3)
    log = torch.cat([x.new_full((components, width), 0.0), x.new_full((components, 1), math.log(0.5)),
                     x.new_full((components, 1), math.log(0.5))], -1).requires_grad_()  # fmt: skip
    search = torch.optim.LBFGS([log], lr=0.5, max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        length, height, noise = _positive(log)
        covariance = _matern(x, x, length, height) + torch.diag_embed(noise.unsqueeze(-1).expand(-1, len(x)))
        root = torch.linalg.cholesky(covariance)
        white = torch.linalg.solve_triangular(root, sizes.mT.unsqueeze(-1), upper=False)
        fit = white.square().sum() / 2 + root.diagonal(dim1=-2, dim2=-1).log().sum()
        prior = ((log[:, :width] - centre) / math.sqrt(3)).square().sum() / 2 + log[:, -2:].square().sum() / 8
        total: Tensor = fit + prior
        total.backward()
        return total

    with torch.enable_grad():
        search.step(loss)
    return _positive(log.detach())


def _positive(log: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Length scales, heights and noise, within bounds that keep every covariance invertible."""
    value = log.clamp(-7.0, 5.0).exp()
    return value[:, :-2], value[:, -2], value[:, -1]
