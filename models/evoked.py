"""Mean evoked response: what this site gave on average. The first baseline.

Not differentiable in the stimulus: the mean of the nearest recorded setting is a step
function. Ignores the context, so ongoing rhythms are noise to it. Each mean is shrunk
towards the mean of all, the more the fewer trials it has (James-Stein with the
between-setting variance found by moments).

Reference: Efron and Morris, J Am Stat Assoc 68 (1973) 117-130.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.stimulus import Stimulus

from .residuals import held_out_residuals, noisy_forecast, residual_noise
from .window import Window, contiguous, in_double, window_from_dict, window_of

_FAR_MM = 1e4  # further than any two points of a head: a site never stands in for silence, nor silence for a site


@dataclass(frozen=True)
class MeanEvokedForecaster(Forecaster):
    """Answers with the mean of the nearest recorded setting. Not differentiable in the stimulus.

    Attributes:
        window: What it was fitted on.
        current_ma: One recorded current per setting; the first is silence.
        mean_uv: Mean response of each setting.
        scale_uv: Independent noise.
        factors_uv: Shared noise.
        per: "site" where amplitude is ignored, "amplitude" where each amplitude at a site is a setting of its own.
    """

    window: Window
    current_ma: Float[Tensor, "setting contact"]
    mean_uv: Float[Tensor, "setting channel time"]
    scale_uv: Float[Tensor, "channel time"]
    factors_uv: Float[Tensor, "factor channel time"]
    per: Literal["site", "amplitude"]

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        self.window.context_signal(context, stimulus)  # refuses what does not fit
        current = _setting(stimulus, self.per)
        nearest = _distance(self.window, current, self.current_ma.to(current)).argmin(-1)
        mean = self.mean_uv.to(current)[nearest]
        return noisy_forecast(self.window, mean, self.scale_uv, self.factors_uv)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        names = ("current_ma", "mean_uv", "scale_uv", "factors_uv")
        return {"window": self.window.to_dict(), "per": self.per}, {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "MeanEvokedForecaster":
        """See Saveable."""
        return cls(window=window_from_dict(config["window"]), per=config["per"], **tensors)


def fit_mean_evoked(
    trials: Trials, *, seed: int = 0, per: Literal["site", "amplitude"] = "site", factors: int = 12
) -> MeanEvokedForecaster:
    """Mean response of each recorded setting, shrunk to the mean of all; the nearest one where a site is new.

    Args:
        trials: Recorded trials with signals.
        seed: Of the folds on which the noise is measured.
        per: What makes a setting: the site alone, or site and amplitude.
        factors: How many shared noise factors at most.

    Raises:
        DataError: If there are fewer than four trials, or no signals.
    """
    window, trials = window_of(trials), in_double(trials)

    def predict(train: Trials, test: Trials) -> Tensor:
        current, mean = _means(train, per)
        return mean[_distance(window, _setting(test.stimulus, per), current).argmin(-1)]

    residual = held_out_residuals(trials, predict, folds=5, seed=seed)
    current, mean = _means(trials, per)
    noise = residual_noise(residual, window.rate_hz, factors)
    return contiguous(MeanEvokedForecaster(window, current, mean, *noise, per))


def _setting(stimulus: Stimulus, per: str) -> Float[Tensor, "*batch contact"]:
    """Current that names the setting: of the largest size 1 where only the site counts, zero for silence."""
    current = torch.where(stimulus.silent.unsqueeze(-1), 0.0, stimulus.amplitude_ma)
    if per == "amplitude":
        return current
    size = current.abs().amax(-1, keepdim=True)
    return current / torch.where(size > 0, size, 1.0)


def _means(trials: Trials, per: str) -> tuple[Float[Tensor, "setting contact"], Float[Tensor, "setting channel time"]]:
    key, signal = _setting(trials.stimulus, per), trials.response.signal_uv
    silent = (key == 0).all(-1)
    settings, group = torch.unique((key * 1e6).round() / 1e6, dim=0, return_inverse=True)
    count = torch.bincount(group).to(signal)
    sums = torch.zeros(len(settings), *signal.shape[1:], dtype=signal.dtype).index_add(0, group, signal)
    mean = sums / count.reshape(-1, 1, 1)
    active = (settings != 0).any(-1)
    noise = _noise(trials, signal - mean[group], len(settings))
    shrunk = _shrunk(mean[active], count[active], noise) if active.any() else mean[:0]
    rest = trials.context.signal_uv.mean((0, -1)).unsqueeze(-1).expand(signal.shape[1:])
    rest = signal[silent].mean(0) if silent.any() else rest
    return torch.cat([torch.zeros_like(settings[:1]), settings[active]]), torch.cat([rest.unsqueeze(0), shrunk])


def _noise(trials: Trials, off: Tensor, settings: int) -> Tensor:
    """Variance of single trials about their setting's mean; of the context where no setting was repeated."""
    freedom = len(trials) - settings
    return off.square().sum(0).mean() / freedom if freedom > 0 else trials.context.signal_uv.var((0, -1)).mean()


def _shrunk(mean: Float[Tensor, "setting channel time"], count: Tensor, noise: Tensor) -> Tensor:
    """Means moved to the mean of all by the share of their spread that is noise."""
    grand = (count.reshape(-1, 1, 1) * mean).sum(0) / count.sum()
    spread = (mean - grand).square().mean((-1, -2))  # holds noise / count besides the true spread
    between = (spread - noise / count).mean().clamp_min(0)
    weight = between / (between + noise / count + 1e-12)
    return grand + weight.reshape(-1, 1, 1) * (mean - grand)


def _distance(
    window: Window, one: Float[Tensor, "*batch contact"], other: Float[Tensor, "setting contact"]
) -> Float[Tensor, "*batch setting"]:
    """How far settings lie apart: mm between the middles of their current, then how it is shared and how much."""
    middles = [_middle_mm(window, current) for current in (one, other)]
    apart = (middles[0].unsqueeze(-2) - middles[1]).norm(dim=-1).nan_to_num(nan=_FAR_MM / 10)
    silent = [(current == 0).all(-1) for current in (one, other)]
    differ = (one.unsqueeze(-2) - other).norm(dim=-1) / other.abs().amax().clamp_min(1.0)
    apart = torch.where(differ == 0, 0.0, apart)
    distance: Tensor = apart + differ + _FAR_MM * (silent[0].unsqueeze(-1) != silent[1])
    return distance


def _middle_mm(window: Window, current: Float[Tensor, "*batch contact"]) -> Float[Tensor, "*batch 3"]:
    places = window.montage.contact_position_mm.to(current)
    share = current.abs() / current.abs().sum(-1, keepdim=True).clamp_min(1e-12)
    used = (share > 0).unsqueeze(-1)
    return torch.where(used, share.unsqueeze(-1) * places, 0.0).sum(-2)
