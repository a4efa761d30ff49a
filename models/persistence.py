"""Baselines that never look at the stimulus: no effect, and the present fading to the mean.

Not differentiable in the stimulus: their forecasts do not depend on it. A model that does
not beat them has learnt nothing about stimulation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.stimulus import Stimulus

from .residuals import held_out_residuals, noisy_forecast, residual_noise
from .window import Window, contiguous, in_double, window_from_dict, window_of


@dataclass(frozen=True)
class PersistenceForecaster(Forecaster):
    """The mean at rest, plus what is left of the last sample's deviation. Not differentiable in the stimulus.

    Attributes:
        window: What it was fitted on.
        rest_uv: Mean of each channel before stimuli.
        kept: Share of the last sample's deviation that is left at each time; all zero is "no effect".
        scale_uv: Independent noise.
        factors_uv: Shared noise.
    """

    window: Window
    rest_uv: Float[Tensor, " channel"]
    kept: Float[Tensor, "channel time"]
    scale_uv: Float[Tensor, "channel time"]
    factors_uv: Float[Tensor, "factor channel time"]

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        last = self.window.context_signal(context, stimulus)[..., -1]
        mean = _faded(last, self.rest_uv.to(last), self.kept.to(last))
        mean = mean.expand(*stimulus.batch_shape, *mean.shape[-2:])
        return noisy_forecast(self.window, mean, self.scale_uv, self.factors_uv)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        names = ("rest_uv", "kept", "scale_uv", "factors_uv")
        return {"window": self.window.to_dict()}, {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "PersistenceForecaster":
        """See Saveable."""
        return cls(window=window_from_dict(config["window"]), **tensors)


def fit_no_effect(trials: Trials, *, seed: int = 0, factors: int = 12) -> PersistenceForecaster:
    """The mean of each channel at rest, whatever is delivered.

    Args:
        trials: Recorded trials with signals.
        seed: Of the folds on which the noise is measured.
        factors: How many shared noise factors at most.

    Raises:
        DataError: If there are fewer than four trials, or no signals.
    """
    return _fit(trials, seed, factors, fading=0.0)


def fit_persistence(trials: Trials, *, seed: int = 0, factors: int = 12) -> PersistenceForecaster:
    """The last sample before the stimulus, fading to the mean as fast as it did in the trials.

    Args:
        trials: Recorded trials with signals.
        seed: Of the folds on which the noise is measured.
        factors: How many shared noise factors at most.

    Raises:
        DataError: If there are fewer than four trials, or no signals.
    """
    return _fit(trials, seed, factors, fading=1.0)


def _fit(trials: Trials, seed: int, factors: int, fading: float) -> PersistenceForecaster:
    window, trials = window_of(trials), in_double(trials)

    def predict(train: Trials, test: Trials) -> Tensor:
        rest, kept = _rest_and_kept(train)
        return _faded(test.context.signal_uv[..., -1], rest, fading * kept)

    residual = held_out_residuals(trials, predict, folds=5, seed=seed)
    rest, kept = _rest_and_kept(trials)
    noise = residual_noise(residual, window.rate_hz, factors)
    return contiguous(PersistenceForecaster(window, rest, fading * kept, *noise))


def _rest_and_kept(trials: Trials) -> tuple[Float[Tensor, " channel"], Float[Tensor, "channel time"]]:
    rest = trials.context.signal_uv.mean((0, -1))
    last = trials.context.signal_uv[..., -1] - rest  # [trial, channel]
    later = trials.response.signal_uv - trials.response.signal_uv.mean(0)
    kept = torch.einsum("nc,nct->ct", last, later) / last.square().sum(0).clamp_min(1e-12).unsqueeze(-1)
    return rest, kept.clamp(-1.0, 1.0)


def _faded(last: Float[Tensor, "*batch channel"], rest: Tensor, kept: Tensor) -> Float[Tensor, "*batch channel time"]:
    return rest.unsqueeze(-1) + (last - rest).unsqueeze(-1) * kept
