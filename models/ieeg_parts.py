"""Forecasts in parts: what happens without a stimulus, what one adds to it, and the noise of both.

The simplest is the network's effects on top of a patient's own forecast of what happens by itself; others weigh
effects of further models, and stand on the same ground.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.forecaster import Context, Forecaster, GaussianForecast
from stimopt.stimulus import Stimulus
from stimopt.tensors import named_under

from .folds import folds_of, others_of
from .ieeg_foundation import FoundationForecaster
from .ieeg_judging import patient_temper
from .ieeg_ongoing import LinearOngoing, calmed, quiet_of, silenced, stimulated, told_of
from .ieeg_quiet import Quiet, Told, reset_of, variance_of
from .ieeg_residual import MOST_PAST

_FOLDS = 4
_FEWEST_TRIALS = 4  # that say how wide the noise is that a stimulus adds


@dataclass(frozen=True)
class Parts:
    """What a forecast is made of, in units of spread.

    Attributes:
        told: Mean, scale and factors by the network, with the stimulus.
        quiet: Without it.
        effect: Of the stimulus on the mean.
        wider: Factor on the noise that a stimulus adds.
    """

    told: Told
    quiet: Quiet
    effect: Float[Tensor, "row channel time"]
    wider: Float[Tensor, "row 1 1"]


class PartedForecaster(Forecaster):
    """A forecaster that can say what its forecasts are made of.

    Attributes:
        plain: The foundation model with the patient's past trials.
        ongoing: The patient's own forecast of what happens without a stimulus; None for the network's.
        reset: How much a strong stimulus ends of what that forecast knows and the network does not.
    """

    plain: FoundationForecaster
    ongoing: LinearOngoing | None
    reset: float

    @abstractmethod
    def parts(self, context: Context, stimulus: Stimulus) -> Parts:
        """What a forecast is made of, a row for each stimulus."""

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        return self.in_uv(self.parts(context, stimulus), stimulus)

    def in_uv(self, parts: Parts, stimulus: Stimulus) -> GaussianForecast:
        """The forecast that is made of these."""
        quiet = parts.quiet.after(parts.effect, self.reset)
        scale, factors = quiet.noise(parts.told, parts.effect, parts.wider)
        return self.plain.in_uv(quiet.mean + parts.effect, scale, factors, stimulus)


@dataclass(frozen=True)
class OngoingForecaster(PartedForecaster):
    """A foundation forecaster whose patient's own linear forecast says what happens by itself.

    Attributes:
        plain: The network with past trials in context, which says what a stimulus adds.
        ongoing: What happens without one.
        wider: Factor on the noise that a stimulus adds.
        reset: How much a strong stimulus ends of what the patient's own forecast knows.
    """

    plain: FoundationForecaster
    ongoing: LinearOngoing
    wider: float = 1.0
    reset: float = 0.0

    def parts(self, context: Context, stimulus: Stimulus) -> Parts:
        """See PartedForecaster."""
        told = self.plain.told(self.plain.answer(context, stimulus))
        quiet = quiet_of(self.plain, self.ongoing, context, stimulus)
        return Parts(told, quiet, told[0] - quiet.network, told[0].new_full((len(told[0]), 1, 1), self.wider))

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        config, tensors = self.plain.export()
        own, more = self.ongoing.export()
        tensors = {f"plain.{name}": value for name, value in tensors.items()}
        config |= {"ongoing": own, "wider": self.wider, "reset": self.reset}
        return config, tensors | {f"ongoing.{n}": v for n, v in more.items()}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "OngoingForecaster":
        """See Saveable."""
        plain = FoundationForecaster.restore(config, named_under(tensors, "plain."))
        ongoing = LinearOngoing.restore(config["ongoing"], named_under(tensors, "ongoing."))
        return cls(plain, ongoing, float(config["wider"]), float(config["reset"]))


@torch.no_grad()
def fit_ieeg_ongoing(plain: FoundationForecaster, ongoing: LinearOngoing, *, seed: int = 0) -> OngoingForecaster:
    """A patient's own forecast of what happens by itself beside the network's effects, noise as wide as trials ask for.

    Args:
        plain: With the patient's trials in context.
        ongoing: Of the same patient.
        seed: Of the parts in which trials are held out, from four trials on.

    Returns:
        The forecaster, with the newest 64 trials in context.
    """
    past, count, lead = plain.past, len(plain.past.numbers), plain.window.lead
    parts, totals = [], []
    for held in folds_of(count, _FOLDS, seed, "parts") if count >= _FEWEST_TRIALS else ():
        known, own = past.pick(others_of(count, held)[-MOST_PAST:]), past.pick(held)
        known = calmed(plain, known, ongoing)
        told, silent = (told_of(plain, known, asked) for asked in (own, silenced(own)))
        quiet, effect = ongoing.quiet(silent, own.context, own.heard), told[0] - silent[0]
        parts.append((quiet, own.response[..., lead:] - quiet.mean, effect, own.good[..., lead:] & stimulated(own)))
        totals.append(variance_of(told))
    reset, rows = reset_of(parts), list[Tensor]()
    for (quiet, left, effect, good), total in zip(parts, totals, strict=True):
        rows += quiet.ratios(left, total, effect, good, reset)
    kept = replace(plain, past=calmed(plain, past.pick(slice(max(0, count - MOST_PAST), None)), ongoing))
    return OngoingForecaster(kept, ongoing, patient_temper(rows, len(rows)), reset)
