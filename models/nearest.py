"""Nearest recorded stimuli: what the most similar trials gave, averaged.

Not differentiable in the stimulus: which trials are nearest changes by steps. Similarity is
distance in a space of where current entered (cathode and anode, mm) and the logarithms of
amplitude, frequency, width and number of pulses, each in units of its spread over the
trials. How much place counts against the rest, and how many trials are averaged, are
what forecast held-out trials best. The context is not used.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stimopt.errors import DataError
from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.stimulus import Stimulus
from stimopt.tensors import generator

from .felt import unstimulated_uv
from .residuals import noisy_forecast, residual_noise
from .window import Window, contiguous, in_double, window_from_dict, window_of

_NEIGHBOURS = (1, 2, 3, 5, 8, 13)
_PLACE_WEIGHTS = (0.3, 1.0, 3.0)
_NUMBERS = 4  # coordinates that are not places
_FOLDS = 5


@dataclass(frozen=True)
class NearestForecaster(Forecaster):
    """Mean response of the nearest recorded stimuli. Not differentiable in the stimulus.

    Attributes:
        window: What it was fitted on.
        tried: Coordinates of the recorded stimuli, those with current.
        unit: What each coordinate is divided by.
        response_uv: Their responses.
        rest_uv: Mean window without stimulus, the answer to silence.
        scale_uv: Independent noise.
        factors_uv: Shared noise.
        neighbours: How many responses are averaged.
    """

    window: Window
    tried: Float[Tensor, "trial coordinate"]
    unit: Float[Tensor, " coordinate"]
    response_uv: Float[Tensor, "trial channel time"]
    rest_uv: Float[Tensor, "channel time"]
    scale_uv: Float[Tensor, "channel time"]
    factors_uv: Float[Tensor, "factor channel time"]
    neighbours: int

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        self.window.context_signal(context, stimulus)  # refuses what does not fit
        where = _coordinates(self.window, stimulus.to(self.unit)).detach()
        mean = self.response_uv[_order(where, self.tried, self.unit)[..., : self.neighbours]].mean(-3)
        mean = torch.where(stimulus.silent.unsqueeze(-1).unsqueeze(-1), self.rest_uv, mean).to(stimulus.amplitude_ma)
        return noisy_forecast(self.window, mean, self.scale_uv, self.factors_uv)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        names = ("tried", "unit", "response_uv", "rest_uv", "scale_uv", "factors_uv")
        config = {"window": self.window.to_dict(), "neighbours": self.neighbours}
        return config, {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "NearestForecaster":
        """See Saveable."""
        return cls(window=window_from_dict(config["window"]), neighbours=config["neighbours"], **tensors)


def fit_nearest(
    trials: Trials, *, seed: int = 0, neighbours: int | None = None, factors: int = 12
) -> NearestForecaster:
    """What the most similar recorded stimuli gave, averaged.

    Args:
        trials: Recorded trials with signals.
        seed: Of the folds on which the choices are made and the noise is measured.
        neighbours: How many trials are averaged; None takes the number that forecasts held-out trials best.
        factors: How many shared noise factors at most.

    Raises:
        DataError: If there are fewer than four trials or none with a stimulus, no signals, or `neighbours` is not
            positive.
    """
    window, trials = window_of(trials), in_double(trials)
    if bool(trials.stimulus.silent.all()):
        raise DataError("no trial has a stimulus; the nearest one needs at least 1: record some.")
    if neighbours is not None and neighbours < 1:
        raise DataError(f"neighbours is {neighbours}; it must be 1 or more, or None to have it chosen.")
    counts = _NEIGHBOURS if neighbours is None else (neighbours,)
    parts = torch.randperm(len(trials), generator=generator(seed, "folds")).chunk(_FOLDS)
    where, lowest, left = _coordinates(window, trials.stimulus), math.inf, trials.response.signal_uv
    best = (counts[0], _PLACE_WEIGHTS[0])
    for weight in _PLACE_WEIGHTS:
        for count, residual in zip(counts, _held_out(trials, where, parts, weight, counts), strict=True):
            if float(residual.square().mean()) < lowest:
                best, lowest, left = (count, weight), float(residual.square().mean()), residual
    noise = residual_noise(left, window.rate_hz, factors)
    given = ~trials.stimulus.silent
    kept = (where[given], _unit(where[given], best[1]), trials.response.signal_uv[given], unstimulated_uv(trials))
    return contiguous(NearestForecaster(window, *kept, *noise, best[0]))


def _held_out(
    trials: Trials, where: Tensor, parts: Sequence[Tensor], weight: float, counts: Sequence[int]
) -> list[Float[Tensor, "trial channel time"]]:
    """Residuals of every trial, its fold left out, for each number of neighbours."""
    signal, given = trials.response.signal_uv, ~trials.stimulus.silent
    residuals = [torch.empty_like(signal) for _ in counts]
    for part in parts:
        kept = torch.ones(len(trials), dtype=torch.bool)
        kept[part] = False
        tried, rest = kept & given, unstimulated_uv(trials[kept.nonzero().squeeze(-1)])
        order = _order(where[part], where[tried], _unit(where[tried], weight)) if bool(tried.any()) else None
        for residual, count in zip(residuals, counts, strict=True):
            mean = rest if order is None else signal[tried][order[:, :count]].mean(1)
            residual[part] = signal[part] - torch.where(given[part].reshape(-1, 1, 1), mean, rest)
    return residuals


def _order(
    where: Float[Tensor, "*batch coordinate"], tried: Float[Tensor, "trial coordinate"], unit: Tensor
) -> Int[Tensor, "*batch trial"]:
    """Trials from near to far; of equally near ones the earliest first."""
    apart = ((where.unsqueeze(-2) - tried) / unit).square().sum(-1)
    return apart.sort(dim=-1, stable=True).indices


def _unit(tried: Float[Tensor, "trial coordinate"], weight: float) -> Float[Tensor, " coordinate"]:
    """Spread of each coordinate, of places all together; place counts by `weight`."""
    place, numbers = tried[:, :-_NUMBERS], tried[:, -_NUMBERS:]
    spread = place.var(0, correction=0).sum().sqrt()
    return torch.cat([_not_zero(spread).expand(place.shape[-1]) / weight, _not_zero(numbers.std(0, correction=0))])


def _not_zero(spread: Tensor) -> Tensor:
    """A spread to divide by; what never varied is left in its own unit."""
    return torch.where(spread > 1e-9, spread, 1.0)


def _coordinates(window: Window, stimulus: Stimulus) -> Float[Tensor, "*batch coordinate"]:
    """Places of cathode and anode, then the logarithms of amplitude, frequency, width and number of pulses."""
    places = window.montage.contact_position_mm.to(stimulus.amplitude_ma)
    if not bool(places.isfinite().all()):  # unknown places: every contact is as far from every other
        places = torch.eye(len(places), dtype=places.dtype, device=places.device)
    signed = stimulus.amplitude_ma
    polar = torch.stack([(-signed).clamp_min(0), signed.clamp_min(0)], -2)  # [*batch, polarity, contact]
    total = polar.sum(-1, keepdim=True)
    middle = (polar / total.clamp_min(1e-12)) @ places
    middle = torch.where(total > 0, middle, middle.sum(-2, keepdim=True))  # returned through the case: one place twice
    amplitude = signed.abs().amax(-1) if signed.shape[-1] else torch.zeros_like(stimulus.pulses)
    numbers = (amplitude, stimulus.frequency_hz, stimulus.pulse_width_us, stimulus.pulses)
    return torch.cat([middle.flatten(-2), torch.stack([x.clamp_min(1e-3).log() for x in numbers], -1)], -1)
