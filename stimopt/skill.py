"""How well a forecaster does on trials it has not seen, in numbers that can be compared.

| name | meaning | best |
| --- | --- | --- |
| r2 | share of single-trial variance forecast, mean over channels | the noise ceiling |
| r2_mean | the same for the mean over trials of equal settings | 1 |
| r | correlation over trials and time, mean over channels | 1 |
| crps_uv | continuous ranked probability score, mean over samples | 0 |
| coverage_50, coverage_90 | share of samples inside the central interval | 0.5, 0.9 |
| r2_shuffled | r2 with the stimuli dealt out anew among the trials | below r2 |

A model whose r2_shuffled equals its r2 does not use the stimulus.

Reference: Gneiting and Raftery, J Am Stat Assoc 102 (2007) 359-378, for the score and its Gaussian form.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import DataError
from .forecaster import Forecast, Forecaster, GaussianForecast, Trials
from .history import settings_matrix
from .tensors import generator

_CHUNK = 128  # trials forecast at once
_WINDOWS_DRAWN = 32
_DRAWS = 64  # for forecasts whose score has no closed form

Reading = Callable[[Forecast, Tensor], Float[Tensor, "trial channel time"]]


@torch.no_grad()
def held_out_skill(forecaster: Forecaster, trials: Trials, *, seed: int = 0, from_s: float = 0.0) -> dict[str, float]:
    """The table above, on trials that took no part in the fit.

    Args:
        forecaster: Fitted on other trials.
        trials: Held-out ones, two at least.
        seed: Of the shuffle, and of draws where a score has no closed form.
        from_s: Samples before this time of the window are not judged, such as those of an artefact.

    Raises:
        DataError: If there are fewer than two trials.
        ShapeError: If no sample is left to judge.
    """
    if len(trials) < 2:
        raise DataError(f"skill needs at least 2 held-out trials, got {len(trials)}; hold out a larger share.")
    end_s = trials.response.start_s + trials.response.signal_uv.shape[-1] / trials.response.rate_hz
    truth = trials.response.between(from_s, end_s).signal_uv.double()
    judged = slice(trials.response.signal_uv.shape[-1] - truth.shape[-1], None)
    order = torch.randperm(len(trials), generator=generator(seed, "shuffle"))
    dealt = Trials(trials.context, trials.stimulus[order], trials.response)

    def read(reading: Reading, these: Trials = trials) -> Tensor:
        return _read(forecaster, these, reading)[..., judged]

    def coverage(share: float) -> float:
        low = read(lambda forecast, _: forecast.quantile((1 - share) / 2))
        high = read(lambda forecast, _: forecast.quantile((1 + share) / 2))
        return float(((truth >= low) & (truth <= high)).double().mean())

    mean = read(lambda forecast, _: forecast.mean)
    return {
        "r2": r_squared(mean, truth),
        "r2_mean": r_squared(*(_setting_means(trials, signal) for signal in (mean, truth))),
        "r": _correlation(mean, truth),
        "crps_uv": float(read(lambda f, y: crps(f, y, seed=seed)).mean()),
        "coverage_50": coverage(0.5),
        "coverage_90": coverage(0.9),
        "r2_shuffled": r_squared(read(lambda forecast, _: forecast.mean, dealt), truth),
    }


def split_trials(trials: Trials, share: float, seed: int) -> tuple[Trials, Trials]:
    """Training and held-out trials, both in time order.

    Args:
        trials: To split.
        share: Held out, between 0 and 1.
        seed: Of the draw.

    Raises:
        DataError: If either part would be empty.
    """
    held = round(share * len(trials))
    if not 0 < held < len(trials):
        raise DataError(f"share {share} of {len(trials)} trials holds out {held}; both parts need at least one.")
    order = torch.randperm(len(trials), generator=generator(seed, "split"))
    return trials[order[held:].sort().values], trials[order[:held].sort().values]


def r_squared(forecast_uv: Float[Tensor, "trial channel time"], truth_uv: Float[Tensor, "trial channel time"]) -> float:
    """1 minus squared error over squared deviation from each channel's mean; mean over channels that vary."""
    error = (truth_uv - forecast_uv).square().sum((0, -1))
    spread = (truth_uv - truth_uv.mean((0, -1), keepdim=True)).square().sum((0, -1))
    return float((1 - error / spread)[spread > 0].mean())


def crps(
    forecast: Forecast, signal_uv: Float[Tensor, "*batch channel time"], *, seed: int = 0
) -> Float[Tensor, "*batch channel time"]:
    """Continuous ranked probability score of each sample in uV, smaller is better.

    Closed for a GaussianForecast; else the fair estimate from 64 draws.
    """
    if isinstance(forecast, GaussianForecast):
        return gaussian_crps(forecast.mean, forecast.total_scale_uv, signal_uv.to(forecast.total_scale_uv))
    draws = forecast.rsample(_DRAWS, generator(seed, "crps")).sort(0).values
    off = (draws - signal_uv.to(draws)).abs().mean(0)
    rank = torch.arange(_DRAWS, dtype=draws.dtype, device=draws.device) * 2 - _DRAWS + 1
    apart = torch.einsum("s,s...->...", rank, draws) / (_DRAWS * (_DRAWS - 1))  # half the mean distance of two draws
    return off - apart


def gaussian_crps(
    mean: Float[Tensor, "*#batch"], scale: Float[Tensor, "*#batch"], value: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*shape"]:
    """Continuous ranked probability score of a value under a Gaussian, in the unit of the value, smaller is better."""
    z = (value - mean) / scale
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    score: Tensor = scale * (z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))
    return score


def energy_score(
    forecast: Forecast, signal_uv: Float[Tensor, "#answer *batch channel time"], *, seed: int = 0
) -> Float[Tensor, "answer *batch"]:
    """Energy score of whole windows in uV, smaller is better: E|X - y| - E|X - X'| / 2, |.| the root mean square.

    Unlike the score of each sample it tells whether channels and times go together as they do in the forecast. By 32
    draws, each beside the next; unbiased.

    Args:
        forecast: Of a batch.
        signal_uv: What followed; several answers to the same forecast share its draws.
        seed: Of the draws.
    """
    draws = forecast.rsample(_WINDOWS_DRAWN, generator(seed, "energy score"))  # [draw, *batch, channel, time]
    apart = _size(draws - draws.roll(1, 0)).mean(0)
    return torch.stack([_size(draws - answer.to(draws)).mean(0) - apart / 2 for answer in signal_uv])


def _size(window_uv: Float[Tensor, "*batch channel time"]) -> Float[Tensor, "*batch"]:
    return window_uv.square().mean((-2, -1)).sqrt()


def _read(forecaster: Forecaster, trials: Trials, reading: Reading) -> Float[Tensor, "trial channel time"]:
    parts = [trials[i : i + _CHUNK] for i in range(0, len(trials), _CHUNK)]
    return torch.cat([
        reading(forecaster.forecast(part.context, part.stimulus), part.response.signal_uv).double() for part in parts
    ])  # fmt: skip


def _setting_means(trials: Trials, signal: Tensor) -> Float[Tensor, "setting channel time"]:
    anytime = replace(
        trials.stimulus, onset_s=torch.zeros_like(trials.stimulus.onset_s)
    )  # onsets differ below a sample
    _, group = torch.unique(settings_matrix(anytime), dim=0, return_inverse=True)
    sums = torch.zeros(int(group.max()) + 1, *signal.shape[1:], dtype=signal.dtype).index_add(0, group, signal)
    return sums / torch.bincount(group).reshape(-1, 1, 1)


def _correlation(forecast_uv: Tensor, truth_uv: Tensor) -> float:
    one, other = (x - x.mean((0, -1), keepdim=True) for x in (forecast_uv, truth_uv))
    size = (one.square().sum((0, -1)) * other.square().sum((0, -1))).sqrt()
    return float(((one * other).sum((0, -1)) / size.clamp_min(1e-12)).mean())
