"""Temporal basis functions: what the stimulus shapes in time, weighed by the state before it.

    y(t) = x0(t) + W(runway) B(stimulus, t)

B are a few functions of time that a small network makes of the stimulus, shared by all
channels; W, their weights in each channel, are linear in the runway, the last samples of
all channels. x0 is the last sample; here it fades to the mean at a learnt rate, since over
half a second a sample held for ever does worse than none.

Reference: Bryan et al., J Neural Eng (2025), temporal basis function models for closed-loop neural stimulation; the
equation is theirs, without their first-order state held constant.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.forecaster import Trials
from stimopt.stimulus import Stimulus

from .felt import entry_numbers, entry_width
from .ieeg_waves import slowest_cosines
from .members import NetworkForecaster, SmallNetwork, fit_members
from .trained import Inputs, Recipe, Weights, dense, dense_start
from .window import Window, contiguous, window_of

_BASES = (6, 16)
_HIDDEN = 48
_HIGHEST_HZ = 40.0  # of the cosines that a basis function is written in
_COURSE = 12  # cosines that summarise the course of the current
_RUNWAY_S = 0.08
_FADE_S = 0.03  # of x0, before training
_DECAYS = (10.0, 50.0)
_STATE_GAIN, _NUMBERS_GAIN = 0.03, 0.1  # small inputs are learnt late: a simulated linear brain asked for it


class BasisFunctionsForecaster(NetworkForecaster):
    """Mean of a few temporal basis function models. Differentiable in the stimulus."""

    @property
    def network(self) -> SmallNetwork:
        """See NetworkForecaster."""
        return _BasisFunctions(self.window, self.size)


def fit_basis_functions(
    trials: Trials, *, seed: int = 0, steps: int = 300, factors: int = 12
) -> BasisFunctionsForecaster:
    """Temporal basis functions of the stimulus, weighed by the state before it (TBFM).

    Args:
        trials: Recorded trials with signals.
        seed: Of folds, first weights and batches; the same seed gives the same model.
        steps: Of training, at most, for each number of functions and strength of weight decay.
        factors: How many shared noise factors at most.

    Raises:
        DataError: If there are fewer than four trials, or no signals.
    """
    window = window_of(trials)
    recipe = Recipe(steps, rate=2e-2, decays=_DECAYS, rows=64, folds=3)
    networks = [_BasisFunctions(window, bases) for bases in _BASES]
    best, members = fit_members(networks, trials, recipe, seed=seed, factors=factors)
    return contiguous(BasisFunctionsForecaster(window, best.bases, members))


@dataclass(frozen=True)
class _BasisFunctions(SmallNetwork):
    """The network, without its weights."""

    window: Window
    bases: int

    @property
    def runway(self) -> int:
        """Samples that the weights of the bases are linear in."""
        return max(1, min(round(_RUNWAY_S * self.window.rate_hz), self.window.context_samples))

    @property
    def waves(self) -> int:
        """Cosines that a basis function is written in."""
        return max(4, min(round(2 * _HIGHEST_HZ * self.window.samples / self.window.rate_hz), self.window.samples))

    def first(self, source: torch.Generator) -> dict[str, Tensor]:
        """See SmallNetwork."""
        channels, polarities = self.window.channels, 2
        numbers = entry_width(self.window) + polarities * min(_COURSE, self.window.lead + self.window.samples)
        weights = dense_start(source, "state", channels * self.runway, channels * self.bases, gain=0.0)
        weights |= dense_start(source, "stimulus", numbers, _HIDDEN)
        weights |= dense_start(source, "hidden", _HIDDEN, _HIDDEN)
        weights |= dense_start(source, "bases", _HIDDEN, self.bases * self.waves, gain=0.3)
        return weights | {"fade": torch.zeros(())}

    def inputs(
        self, context: Float[Tensor, "row channel past"], drive: Float[Tensor, "row input time"], stimulus: Stimulus
    ) -> dict[str, Tensor]:
        """See SmallNetwork: the runway, its last sample, and numbers of the stimulus with its course."""
        polarity = drive.unflatten(1, (2, -1)).sum(2)
        course = polarity @ slowest_cosines(_COURSE, drive.shape[-1], drive).mT
        numbers = torch.cat([entry_numbers(self.window, stimulus), torch.asinh(2 * course).flatten(1)], -1)
        runway = _STATE_GAIN * context[..., -self.runway :].flatten(1)
        return {"runway": runway, "last": context[..., -1], "numbers": _NUMBERS_GAIN * numbers}

    def answer(self, weights: Weights, inputs: Inputs) -> Float[Tensor, "member row channel time"]:
        """See SmallNetwork."""
        numbers, last = inputs["numbers"], inputs["last"].unsqueeze(-1)
        hidden = torch.tanh(dense(weights, "stimulus", numbers))
        hidden = torch.tanh(dense(weights, "hidden", hidden))
        waves = slowest_cosines(self.waves, self.window.samples, numbers)
        basis = dense(weights, "bases", hidden).unflatten(-1, (self.bases, self.waves)) @ waves
        state = dense(weights, "state", inputs["runway"]).unflatten(-1, (self.window.channels, self.bases))
        time_s = (self.window.lead + 1 + torch.arange(self.window.samples).to(numbers)) / self.window.rate_hz
        rate = weights["fade"].to(numbers).exp().reshape(-1, 1, 1, 1) / _FADE_S
        answer: Tensor = last * (-time_s * rate).exp() + state @ basis
        return answer
