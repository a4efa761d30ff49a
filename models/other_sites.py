"""Mean response of all other sites: what an unseen site gives if every site is alike.

Not differentiable in the stimulus: only the site counts, not how much enters. A model
that claims to know a site it never saw has to beat this. The context is not used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.stimulus import Stimulus

from .felt import site_current, unstimulated_uv
from .residuals import noisy_forecast, residual_noise
from .window import Window, contiguous, in_double, window_from_dict, window_of


@dataclass(frozen=True)
class OtherSitesForecaster(Forecaster):
    """Mean over all sites but the one asked for. Not differentiable in the stimulus.

    Attributes:
        window: What it was fitted on.
        site: How each site shares its current among the contacts.
        mean_uv: Mean response of each site.
        rest_uv: Mean window without stimulus: the answer to silence, and to the only site there is.
        scale_uv: Independent noise.
        factors_uv: Shared noise.
    """

    window: Window
    site: Float[Tensor, "site contact"]
    mean_uv: Float[Tensor, "site channel time"]
    rest_uv: Float[Tensor, "channel time"]
    scale_uv: Float[Tensor, "channel time"]
    factors_uv: Float[Tensor, "factor channel time"]

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        self.window.context_signal(context, stimulus)  # refuses what does not fit
        mean = _mean_of_others(stimulus, self.site, self.mean_uv, self.rest_uv)
        return noisy_forecast(self.window, mean, self.scale_uv, self.factors_uv)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        names = ("site", "mean_uv", "rest_uv", "scale_uv", "factors_uv")
        return {"window": self.window.to_dict()}, {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "OtherSitesForecaster":
        """See Saveable."""
        return cls(window=window_from_dict(config["window"]), **tensors)


def fit_other_sites(trials: Trials, *, seed: int = 0, factors: int = 12) -> OtherSitesForecaster:
    """Mean response over all sites but the one asked for.

    Args:
        trials: Recorded trials with signals.
        seed: Not used: no choice is left to chance. Every fit takes one.
        factors: How many shared noise factors at most.

    Raises:
        DataError: If there are fewer than four trials, or no signals.
    """
    window, trials = window_of(trials), in_double(trials)
    given = ~trials.stimulus.silent
    current, signal = site_current(trials.stimulus)[given], trials.response.signal_uv[given]
    site, group = torch.unique((current * 1e6).round() / 1e6, dim=0, return_inverse=True)
    count = torch.bincount(group, minlength=len(site)).to(signal)
    sums = torch.zeros(len(site), *trials.response.signal_uv.shape[1:], dtype=signal.dtype).index_add(0, group, signal)
    mean, rest = sums / count.reshape(-1, 1, 1), unstimulated_uv(trials)
    residual = trials.response.signal_uv - _mean_of_others(trials.stimulus, site, mean, rest)
    noise = residual_noise(residual, window.rate_hz, factors)
    return contiguous(OtherSitesForecaster(window, site, mean, rest, *noise))


def _mean_of_others(
    stimulus: Stimulus, site: Tensor, mean: Tensor, rest: Tensor
) -> Float[Tensor, "*batch channel time"]:
    current = site_current(stimulus).detach()
    other = ((current.unsqueeze(-2) - site.to(current)).abs() > 1e-5).any(-1).to(current)  # [*batch, site]
    count = other.sum(-1)
    average = torch.einsum("...s,sct->...ct", other / count.clamp_min(1).unsqueeze(-1), mean.to(current))
    known = (count > 0) & ~stimulus.silent
    return torch.where(known.unsqueeze(-1).unsqueeze(-1), average, rest.to(current))
