"""A forecast without a stimulus, what of it is left after one, and the noise that a stimulus adds.

A stimulus may end what would have gone on, as spikes that it sets to another phase: then the patient's own forecast,
sure of them, is wrong and the network, which was not, is right. So

    quiet after a stimulus = network + (1 - r p / (p + 0.1)) (quiet - network),   p power of the channel's effect
    variance = quiet variance + s^2 (what the network adds for the stimulus + 0.03 effect^2)

where r, of 0 to 1, and s are what the patient's trials ask for; and after a strong stimulus noise is no less than the
network says.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

LEAST = 1e-6  # of variances, in squared units of spread
_RESET = 0.1  # power of an effect, in squared units of spread, that ends half of what it may
_PRIOR_TRIALS = 4  # that say a stimulus ends nothing
_EFFECT = 0.03  # of an effect's square, in the variance that a stimulus adds
_REACH_90 = 1.6449  # standard deviations
_NARROWEST = 0.5  # factor on the noise that a stimulus adds

Told = tuple[Tensor, Tensor, Tensor]  # mean, scale and factors in units of spread, `[row, ...]`


@dataclass(frozen=True)
class Quiet:
    """What is forecast without a stimulus, in units of spread.

    Attributes:
        mean: Expected signal.
        variance: Of single answers.
        network: What the network alone expects.
        said: Variance that it gave.
        judged: Whether rest was asked how large the variance is; else trials say it, of all noise.
    """

    mean: Float[Tensor, "row channel time"]
    variance: Float[Tensor, "row channel time"]
    network: Float[Tensor, "row channel time"]
    said: Float[Tensor, "row channel time"]
    judged: bool

    def noise(self, told: Told, effect: Float[Tensor, "row channel time"], wider: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and factors of a forecast with a stimulus, shared among channels and times as the network says.

        Args:
            told: By the network, with the stimulus.
            effect: What the stimulus adds to the mean.
            wider: Factor on what it adds to the noise, broadcasting with it.
        """
        _, scale, factors = told
        total = (scale.square() + factors.square().sum(1)).clamp_min(LEAST)
        ratio = ((self._known() + wider.square() * self._added(total, effect)) / total).sqrt()
        return ratio * scale, ratio.unsqueeze(1) * factors

    def after(self, effect: Float[Tensor, "row channel time"], reset: float) -> "Quiet":
        """The same after stimuli with such effects, which the patient's own forecast may not survive.

        Args:
            effect: On the mean.
            reset: How much a strong one ends of what that forecast knows and the network does not.
        """
        strength = _strength(effect)
        mean = self.mean + reset * strength * (self.network - self.mean)
        variance = self.variance + strength * (self.said - self.variance).clamp_min(0.0)
        return replace(self, mean=mean, variance=variance)

    def ratios(self, left: Tensor, total: Tensor, effect: Tensor, good: Tensor, reset: float) -> list[Tensor]:
        """Errors of trials as shares of the noise that a stimulus adds, beyond what rest leads to expect.

        An error at the end of a central interval of 90 % is as large a share as that interval reaches.

        Args:
            left: The response less the forecast without a stimulus.
            total: Variance that the network gave.
            effect: What the stimulus was thought to add to the mean.
            good: Which samples are known.
            reset: See `after`.
        """
        after = self.after(effect, reset)
        error = left + self.mean - after.mean - effect
        beyond = (error.square() - _REACH_90**2 * after._known()).clamp_min(0.0)
        share = (beyond / self._added(total, effect).clamp_min(LEAST)).sqrt().clamp_min(_REACH_90 * _NARROWEST)
        return [row[here] for row, here in zip(share, good, strict=True) if bool(here.any())]

    def _known(self) -> Tensor:
        return self.variance if self.judged else torch.zeros_like(self.variance)

    def _added(self, total: Tensor, effect: Tensor) -> Float[Tensor, "row channel time"]:
        """Variance that a stimulus adds, from the network's own with it; all of that where rest was not asked."""
        return (total - self.said if self.judged else total).clamp_min(0.0) + _EFFECT * effect.square()


def variance_of(told: Told) -> Float[Tensor, "row channel time"]:
    """Of single answers."""
    return (told[1].square() + told[2].square().sum(1)).clamp_min(LEAST)


def alone(silent: Told) -> Quiet:
    """The network's own forecast without a stimulus."""
    mean, said = silent[0], variance_of(silent)
    return Quiet(mean, said, mean, said, judged=False)


def reset_of(parts: Sequence[tuple[Quiet, Tensor, Tensor, Tensor]]) -> float:
    """How much strong stimuli end of what the patient's own forecast knows, by least squares over trials.

    Args:
        parts: The forecast without a stimulus, the response less that, what the stimulus was thought to add, and which
            samples are known; of stimulated trials alone.
    """
    return _ended((_strength(e) * (quiet.mean - quiet.network), left - e, good) for quiet, left, e, good in parts)


def kept_of(quiet: Quiet, response: Tensor, good: Tensor) -> float:
    """How much of what the patient's own forecast knows survives stimuli of whose effects nothing is known."""
    return 1 - _ended([(quiet.mean - quiet.network, response - quiet.mean, good)])


def _ended(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> float:
    """Between 0 and 1, the share of the first that is missing in the second."""
    found = size = trials = 0.0
    for known, left, good in parts:
        here = known * good
        found -= float((here * torch.where(good, left, 0.0)).sum())
        size += float(here.square().sum())
        trials += int(good.flatten(1).any(-1).sum())
    return min(1.0, max(0.0, found / max(size, LEAST) * trials / (trials + _PRIOR_TRIALS)))


def _strength(effect: Float[Tensor, "row channel time"]) -> Float[Tensor, "row channel 1"]:
    power: Tensor = effect.square().mean(-1, keepdim=True)
    return power / (power + _RESET)
