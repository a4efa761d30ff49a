"""Distance decay: one waveform, the larger the nearer the channel lies to the current.

    y_c(t) = rest_c + g_c  sum over polarity p of  w_p(t)  sum over contacts k of  q_pk^a exp(-d_ck / reach)

with q the charge of a train's first phases in uC and d in mm. The gain g is 1 for all
channels, or each channel's usual size. The waveforms are a ridge regression; reach,
exponent, gain and ridge are what forecast held-out trials best. It knows of a channel its
place and size: a model that claims to know connections has to beat it. The context is not used.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import DataError
from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.stimulus import Stimulus
from stimopt.tensors import generator

from .felt import at_rest_uv, unit_uv
from .residuals import noisy_forecast, residual_noise
from .window import Window, contiguous, in_double, window_from_dict, window_of

_REACHES_MM = (5.0, 10.0, 20.0, 40.0, 80.0)
_EXPONENTS = (0.5, 1.0)
_GAINS = (0.0, 1.0)  # powers of a channel's size
_RIDGES = (1e-4, 1e-2, 1e-1, 1.0)  # of the mean squared size
_FOLDS = 5
_LEAST_UC = 1e-6  # below, the root of a charge is a straight line: its slope at zero would be infinite


@dataclass(frozen=True)
class DistanceDecayForecaster(Forecaster):
    """Waveforms that fall with distance and grow with charge. Differentiable in the stimulus.

    Attributes:
        window: What it was fitted on.
        rest_uv: Mean of each channel.
        wave_uv: What one unit of cathodic and of anodic size adds at each channel.
        scale_uv: Independent noise.
        factors_uv: Shared noise.
        reach_mm: Distance over which the size falls to 1/e.
        exponent: Of the charge.
    """

    window: Window
    rest_uv: Float[Tensor, " channel"]
    wave_uv: Float[Tensor, "polarity channel time"]
    scale_uv: Float[Tensor, "channel time"]
    factors_uv: Float[Tensor, "factor channel time"]
    reach_mm: float
    exponent: float

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        self.window.context_signal(context, stimulus)  # refuses what does not fit
        size = _size(self.window, stimulus, self.reach_mm, self.exponent)
        mean = self.rest_uv.to(size).unsqueeze(-1) + torch.einsum("...pc,pct->...ct", size, self.wave_uv.to(size))
        return noisy_forecast(self.window, mean, self.scale_uv, self.factors_uv)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        names = ("rest_uv", "wave_uv", "scale_uv", "factors_uv")
        config = {"window": self.window.to_dict(), "reach_mm": self.reach_mm, "exponent": self.exponent}
        return config, {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "DistanceDecayForecaster":
        """See Saveable."""
        window = window_from_dict(config["window"])
        return cls(window=window, reach_mm=config["reach_mm"], exponent=config["exponent"], **tensors)


def fit_distance_decay(trials: Trials, *, seed: int = 0, factors: int = 12) -> DistanceDecayForecaster:
    """Waveforms that fall with distance from the current and grow with its charge.

    Args:
        trials: Recorded trials with signals.
        seed: Of the folds on which the choices are made and the noise is measured.
        factors: How many shared noise factors at most.

    Raises:
        DataError: If there are fewer than four trials, no signals, or no contact and channel have known places.
    """
    window, trials = window_of(trials), in_double(trials)
    if not bool(_distance_mm(window).isfinite().any()):
        raise DataError("no contact and channel of this montage have known places; distance decay needs position_mm.")
    parts = torch.randperm(len(trials), generator=generator(seed, "folds")).chunk(_FOLDS)
    rest, unit = at_rest_uv(trials), unit_uv(trials)
    target = (trials.response.signal_uv - rest.unsqueeze(-1)) / unit.unsqueeze(-1)
    best, lowest, left = (0.0, 0.0, 0.0, 0.0), math.inf, target
    for reach, exponent, grown in product(_REACHES_MM, _EXPONENTS, _GAINS):
        size = _size(window, trials.stimulus, reach, exponent) * unit ** (grown - 1)
        for ridge, residual in zip(_RIDGES, _held_out(size, target, parts), strict=True):
            if float(residual.square().mean()) < lowest:
                best, lowest, left = (reach, exponent, grown, ridge), float(residual.square().mean()), residual
    reach, exponent, grown, ridge = best
    size = _size(window, trials.stimulus, reach, exponent) * unit ** (grown - 1)
    wave = _ridge(*_products(size, target), ridge)
    noise = residual_noise(left * unit.unsqueeze(-1), window.rate_hz, factors)
    wave_uv = torch.einsum("pt,c->pct", wave, unit**grown)
    return contiguous(DistanceDecayForecaster(window, rest, wave_uv, *noise, reach, exponent))


def _held_out(
    size: Float[Tensor, "trial polarity channel"], target: Float[Tensor, "trial channel time"], parts: Sequence[Tensor]
) -> list[Float[Tensor, "trial channel time"]]:
    """Residuals of every trial, its fold left out, for each ridge."""
    products = [_products(size[part], target[part]) for part in parts]
    residuals = [torch.empty_like(target) for _ in _RIDGES]
    for i, part in enumerate(parts):
        others = zip(*(pair for j, pair in enumerate(products) if j != i), strict=True)
        gram, together = (torch.stack(parts).sum(0) for parts in others)
        for residual, ridge in zip(residuals, _RIDGES, strict=True):
            residual[part] = target[part] - torch.einsum("npc,pt->nct", size[part], _ridge(gram, together, ridge))
    return residuals


def _products(
    size: Tensor, target: Tensor
) -> tuple[Float[Tensor, "polarity polarity"], Float[Tensor, "polarity time"]]:
    """Products of sizes with each other and with the responses, summed over trials and channels alike."""
    return torch.einsum("npc,nqc->pq", size, size), torch.einsum("npc,nct->pt", size, target)


def _ridge(gram: Tensor, together: Tensor, ridge: float) -> Tensor:
    """Waveforms of unit size."""
    strength = ridge * gram.diagonal().mean() + 1e-12
    wave: Tensor = torch.linalg.solve(gram + strength * torch.eye(2, dtype=gram.dtype), together)
    return wave


def _size(
    window: Window, stimulus: Stimulus, reach_mm: float, exponent: float
) -> Float[Tensor, "*batch polarity channel"]:
    """Charge to the exponent, faded by distance; cathodic, then anodic."""
    charge = window.drive_ma(stimulus).sum(-1) * (1e3 / window.rate_hz)  # uC
    raised = (charge + _LEAST_UC) ** exponent - _LEAST_UC**exponent
    fade = (-_distance_mm(window) / reach_mm).exp().nan_to_num(0.0).to(charge)
    size: Tensor = raised.unflatten(-1, (2, -1)) @ fade.mT
    return size


def _distance_mm(window: Window) -> Float[Tensor, "channel contact"]:
    return torch.cdist(window.montage.channel_position_mm, window.montage.contact_position_mm)
