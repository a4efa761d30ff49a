"""What a forecast leaves over, as noise that a Forecast can draw: shared factors and an independent rest.

Brain rhythms outlast a sample and span channels. Noise drawn sample by sample would have
the right variance and the wrong spectrum, and every band power read from it would be
wrong; a few factors over whole windows keep the rhythm. They are the probabilistic
principal components of standardised residuals, scaled so that each sample's variance is kept.

Reference: Tipping and Bishop, J R Stat Soc B 61 (1999) 611-622, equation 7.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.forecaster import GaussianForecast, Trials

from .folds import folds_of
from .window import Window

_SMOOTHING_S = 0.02  # neighbours in time share their variance: halves the error of a scale read from 60 trials


def residual_noise(
    residual_uv: Float[Tensor, "trial channel time"], rate_hz: float, rank: int
) -> tuple[Float[Tensor, "channel time"], Float[Tensor, "factor channel time"]]:
    """Independent scale and shared factors, in uV, of residuals that a model did not see in training.

    Args:
        residual_uv: Held-out response minus its forecast.
        rate_hz: Samples per second.
        rank: How many factors; fewer than half of the trials are kept.

    Returns:
        Scale of the independent part and the factors; their squares sum to the residual's mean square.
    """
    total = _smooth(residual_uv.square().mean(0), rate_hz).clamp_min(1e-12).sqrt()  # [channel, time]
    standard = (residual_uv / total).flatten(1)  # [trial, channel * time]
    count, width = standard.shape
    rank = min(rank, count // 2, width - 1)
    gram_value, gram_vector = torch.linalg.eigh(standard @ standard.mT / count)
    value = gram_value.flip(-1)[:rank].clamp_min(0)
    floor = (standard.square().sum() / count - value.sum()).clamp_min(0) / (width - rank)
    kept = (value - floor).clamp_min(0)
    direction = standard.mT @ gram_vector.flip(-1)[:, :rank] / (count * value.clamp_min(1e-12)).sqrt()
    factors = (direction * kept.sqrt()).mT.reshape(rank, *total.shape)
    share = factors.square().sum(0)
    factors = factors * (0.95 / share.clamp_min(0.95)).sqrt()  # the independent part never vanishes
    return total * (1 - factors.square().sum(0)).sqrt(), total * factors


def held_out_residuals(
    trials: Trials, predict: Callable[[Trials, Trials], Float[Tensor, "trial channel time"]], folds: int, seed: int
) -> Float[Tensor, "trial channel time"]:
    """Residuals of every trial under a model that was fitted without it.

    Args:
        trials: To fit and to forecast.
        predict: `predict(training, test)` gives the forecast mean of the test trials.
        folds: In how many parts the trials are cut.
        seed: Of the cut.
    """
    residual = torch.empty_like(trials.response.signal_uv)
    for test in folds_of(len(trials), min(folds, len(trials)), seed):
        kept = torch.ones(len(trials), dtype=torch.bool)
        kept[test] = False
        held = trials[test]
        residual[test] = (held.response.signal_uv - predict(trials[kept], held)).to(residual)
    return residual


def noisy_forecast(
    window: Window,
    mean_uv: Float[Tensor, "*batch channel time"],
    scale_uv: Float[Tensor, "channel time"],
    factors_uv: Float[Tensor, "factor channel time"],
) -> GaussianForecast:
    """A forecast with this mean and the same noise for every stimulus."""
    batch = mean_uv.shape[:-2]
    scale, factors = scale_uv.to(mean_uv), factors_uv.to(mean_uv)
    return GaussianForecast(
        window.response(mean_uv), scale.expand(*batch, *scale.shape), factors.expand(*batch, *factors.shape)
    )


def _smooth(power: Float[Tensor, "channel time"], rate_hz: float) -> Float[Tensor, "channel time"]:
    reach = min(round(_SMOOTHING_S * rate_hz), (power.shape[-1] - 1) // 2)
    padded = torch.nn.functional.pad(power.unsqueeze(0), (reach, reach), mode="replicate")
    return torch.nn.functional.avg_pool1d(padded, 2 * reach + 1, stride=1).squeeze(0)
