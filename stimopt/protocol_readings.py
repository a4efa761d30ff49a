"""How a forecaster does on one split of an examination, beside what could be done at all.

| name | meaning | best |
| --- | --- | --- |
| r2, r2_ceiling | single answers; and the best any forecast could do | the ceiling |
| r2_mean, r2_mean_ceiling | each stimulus's mean over its repeats | the ceiling |
| r2_mean_share | r2_mean over its ceiling | 1 |
| r2_effect, r_effect | E[y given stimulus] - E[y given none], same states and noise | 1 |
| r | correlation of single answers with their forecasts | below 1 |
| crps_uv | continuous ranked probability score | 0 |
| energy_uv | energy score of whole windows, all channels together | 0 |
| coverage_50 .. coverage_95 | share of samples inside the central interval | its name |
| r2_shuffled | r2 with another test stimulus in the place of each (first repeats alone) | far below r2 |

R2 and correlations are means over channels; with the ending `_responsive`, over channels
that the patient's truth says respond.

Noise ceiling. Two futures of the same state share all that a forecast could know. Let d be draws of
a quantity (futures of single answers, or of means over repeats), y their mean over D draws,
v their unbiased variance over draws. The best forecast of y leaves the sum of v / D
unexplained, so its R2 is 1 - sum(v / D) / sum((y - mean of y)^2): sums over stimuli and times, the
mean that of the channel. It is unbiased in numerator and denominator and may fall below zero by chance.

Reference: Schoppe et al., Front Comput Neurosci 10 (2016) 10, for signal power from repeats.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .forecaster import Forecaster
from .protocol_trials import Examination, Pool, Repeats, repeated
from .skill import crps, energy_score, r_squared
from .stimulus import Stimulus, no_stimulus
from .tensors import concatenate, generator

COVERAGES = (0.5, 0.8, 0.9, 0.95)
RESPONSIVE_SHARE = 0.25  # of the ongoing activity's spread: the mean of 16 trials would show such an effect
SMALLEST_CEILING = 0.05  # below, a share of the ceiling is a ratio of two noises and is not given
_SHUFFLED_REPEATS = 2
_CHUNK = 128


@dataclass(frozen=True)
class _Read:
    """Readings of every row of one split."""

    mean_uv: Float[Tensor, "stimulus repeat channel time"]
    crps_uv: float
    energy_uv: float
    coverage: Mapping[str, float]


def examined(forecaster: Forecaster, exam: Examination, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """The table above for every split of an examination.

    Args:
        forecaster: Of this patient.
        exam: Its truth.
        seed: Of the shuffle, and of draws where a score has no closed form.

    Returns:
        Readings by split. `ms_per_forecast` is CPU time of the plain forecasts, divided by their number.
    """
    responds = responsive(exam)
    silent_uv = _means(forecaster, exam.pool, None, torch.arange(len(exam.pool.contexts.signal_uv)))
    dealt = _dealt(exam, seed)
    return {split: _judged(forecaster, exam, split, silent_uv, responds, dealt[split], seed) for split in exam.splits}


def noise_ceiling(draws: Float[Tensor, "draw *rows channel time"]) -> Float[Tensor, " channel"]:
    """R2 of the best forecast of the mean over independent draws of the same quantity; see the file's beginning.

    Args:
        draws: Two draws or more.
    """
    count = draws.shape[0]
    mean = draws.mean(0).movedim(-2, 0).flatten(1)  # [channel, sample]
    noise = draws.var(0).movedim(-2, 0).flatten(1).sum(-1) / count
    return 1 - noise / (mean - mean.mean(-1, keepdim=True)).square().sum(-1).clamp_min(1e-12)


def single_ceiling(draws: Float[Tensor, "draw *rows channel time"]) -> Float[Tensor, " channel"]:
    """The same for a single draw: the share of its variance that two draws have in common."""
    each = draws.movedim(-2, 0).flatten(1)  # [channel, sample of every draw]
    noise = draws.var(0).movedim(-2, 0).flatten(1).sum(-1) * draws.shape[0]
    return 1 - noise / (each - each.mean(-1, keepdim=True)).square().sum(-1).clamp_min(1e-12)


def responsive(exam: Examination) -> Bool[Tensor, " channel"]:
    """Channels whose mean effect, root mean square over all test stimuli, is a quarter of their spread at rest."""
    effects = [_effect(exam.pool, repeats) for repeats in exam.splits.values()]
    size = torch.cat(effects).square().mean((0, -1)).sqrt()
    spread: Tensor = exam.pool.silent_uv.movedim(-2, 0).flatten(1).std(-1)
    return size > RESPONSIVE_SHARE * spread


def correlation(
    forecast_uv: Float[Tensor, "*rows channel time"], truth_uv: Float[Tensor, "*rows channel time"]
) -> float:
    """Over rows and times, mean over channels that vary in both."""
    one, other = (x.movedim(-2, 0).flatten(1) for x in (forecast_uv, truth_uv))
    one, other = one - one.mean(-1, keepdim=True), other - other.mean(-1, keepdim=True)
    size = (one.square().sum(-1) * other.square().sum(-1)).sqrt()
    return float(torch.where(size > 1e-12, (one * other).sum(-1) / size.clamp_min(1e-12), 0.0).mean())


def _judged(
    forecaster: Forecaster, exam: Examination, split: str, silent_uv: Tensor, responds: Tensor, dealt: Stimulus,
    seed: int,
) -> dict[str, float]:  # fmt: skip
    pool, repeats = exam.pool, exam.splits[split]
    began_s = time.process_time()
    read = _read(forecaster, pool, repeats, seed)
    spent_ms = 1e3 * (time.process_time() - began_s) / repeats.state.numel()
    effect_uv = (read.mean_uv - silent_uv[repeats.state]).mean(1)
    every = torch.ones_like(responds)
    return {
        **_by_channel(read.mean_uv, effect_uv, pool, repeats, every, ""),
        **_by_channel(read.mean_uv, effect_uv, pool, repeats, responds, "_responsive"),
        "crps_uv": read.crps_uv, "energy_uv": read.energy_uv, **read.coverage,
        "r2_shuffled": _shuffled(forecaster, pool, repeats, dealt),
        "responsive_channels": float(responds.sum()), "ms_per_forecast": spent_ms,
    }  # fmt: skip


def _shuffled(forecaster: Forecaster, pool: Pool, repeats: Repeats, dealt: Stimulus) -> float:
    few = repeats.state[:, :_SHUFFLED_REPEATS]
    forecast = _means(forecaster, pool, repeated(dealt, few.shape[-1]), few.flatten())
    truth = repeats.answer_uv[:, :, :_SHUFFLED_REPEATS].flatten(1, 2)  # [future, row, channel, time]
    return r_squared(_singles(forecast.expand_as(truth)), _singles(truth))


def _by_channel(
    mean_uv: Tensor, effect_uv: Tensor, pool: Pool, repeats: Repeats, channels: Tensor, ending: str
) -> dict[str, float]:
    """Readings that are means over channels; NaN where there is none."""
    truth = repeats.answer_uv[..., channels, :]
    forecast = mean_uv[..., channels, :].expand_as(truth)
    effect, true_effect = effect_uv[:, channels], _effect(pool, repeats)[:, channels]
    over_repeats = truth.mean(2)
    ceiling = float(noise_ceiling(over_repeats).mean())
    r2_mean = r_squared(forecast[0].mean(1), over_repeats.mean(0))
    readings = {
        "r2": r_squared(_singles(forecast), _singles(truth)),
        "r2_ceiling": float(single_ceiling(truth).mean()),
        "r": correlation(forecast, truth),
        "r2_mean": r2_mean,
        "r2_mean_ceiling": ceiling,
        "r2_mean_share": r2_mean / ceiling if ceiling > SMALLEST_CEILING else math.nan,
        "r2_effect": r_squared(effect, true_effect),
        "r_effect": correlation(effect, true_effect),
    }
    return {name + ending: value for name, value in readings.items()}


def _effect(pool: Pool, repeats: Repeats) -> Float[Tensor, "stimulus channel time"]:
    """Mean difference to silence over repeats and futures, state by state and noise by noise."""
    return (repeats.answer_uv - pool.silent_uv[:, repeats.state]).mean((0, 2))


def _singles(signal_uv: Float[Tensor, "*rows channel time"]) -> Float[Tensor, "row channel time"]:
    return signal_uv.flatten(0, -3)


@torch.no_grad()
def _read(forecaster: Forecaster, pool: Pool, repeats: Repeats, seed: int) -> _Read:
    rows, many = repeats.state.flatten(), repeated(repeats.stimulus, repeats.state.shape[-1])
    truth = repeats.answer_uv.flatten(1, 2)  # [future, row, channel, time]
    means, scores, energy, inside = [], 0.0, 0.0, dict.fromkeys(COVERAGES, 0.0)
    for first in range(0, len(rows), _CHUNK):
        part = slice(first, first + _CHUNK)
        forecast = forecaster.forecast(pool.contexts[rows[part]], many[part])
        means.append(forecast.mean.to(truth))
        bounds = {share: [forecast.quantile((1 + sign * share) / 2) for sign in (-1, 1)] for share in COVERAGES}
        energy += float(energy_score(forecast, truth[:, part], seed=seed).sum())
        for answer in truth[:, part]:
            scores += float(crps(forecast, answer, seed=seed).sum())
            for share, (low, high) in bounds.items():
                inside[share] += float(((answer >= low) & (answer <= high)).sum())
    coverage = {f"coverage_{round(100 * share)}": count / truth.numel() for share, count in inside.items()}
    mean_uv = torch.cat(means).unflatten(0, tuple(repeats.state.shape))
    return _Read(mean_uv, scores / truth.numel(), energy / truth.shape[:2].numel(), coverage)


@torch.no_grad()
def _means(
    forecaster: Forecaster, pool: Pool, stimulus: Stimulus | None, rows: Tensor
) -> Float[Tensor, "row channel time"]:
    """Expected answers at states of the pool; without a stimulus, those to silence."""
    many = no_stimulus(pool.contexts.montage, (len(rows),)) if stimulus is None else stimulus
    parts = [slice(first, first + _CHUNK) for first in range(0, len(rows), _CHUNK)]
    return torch.cat([
        forecaster.forecast(pool.contexts[rows[part]], many[part]).mean.to(pool.silent_uv) for part in parts
    ])  # fmt: skip


def _dealt(exam: Examination, seed: int) -> dict[str, Stimulus]:
    """Another test stimulus for each, of any split: one cycle through all of them, so none keeps its own."""
    every = concatenate([repeats.stimulus for repeats in exam.splits.values()])
    order = torch.randperm(every.batch_shape[0], generator=generator(seed, "dealt"))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    parts = other.split([repeats.stimulus.batch_shape[0] for repeats in exam.splits.values()])
    return {split: every[part] for split, part in zip(exam.splits, parts, strict=True)}
