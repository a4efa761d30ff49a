"""Residual network from context and stimulus to the coefficients of the response, one channel at a time.

All channels share one network; what tells them apart is their own recent signal, the
current they feel through distance, and a learnt identity. Its answer is written in
cosines of the window. No attention, no recurrence: the plainest network that has all
that the larger ones have.

Reference: He et al., CVPR 2016, for blocks that add to what came in.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from stimopt.forecaster import Trials
from stimopt.stimulus import Stimulus

from .felt import entry_numbers, entry_width, felt
from .ieeg_network import SPREADS_MM
from .ieeg_waves import slowest_cosines
from .members import NetworkForecaster, SmallNetwork, fit_members
from .trained import Inputs, Recipe, Weights, dense, dense_start
from .window import Window, contiguous, window_of

_BLOCKS = 2
_HIGHEST_HZ = 40.0  # of the cosines that a response is written in
_RECENT_S = 0.08  # of the context, sample by sample
_SLOW = 12  # cosines that summarise the whole context, and the course of the current
_ROWS = 384  # trials times channels in a step
_WIDTHS = (24, 48)
_DECAYS = (1.0, 10.0)


class ResidualMlpForecaster(NetworkForecaster):
    """Mean of a few small residual networks. Differentiable in the stimulus."""

    @property
    def network(self) -> SmallNetwork:
        """See NetworkForecaster."""
        return _ResidualMlp(self.window, self.size)


def fit_residual_mlp(trials: Trials, *, seed: int = 0, steps: int = 240, factors: int = 12) -> ResidualMlpForecaster:
    """A small residual network shared by the channels, trained on these trials alone.

    Args:
        trials: Recorded trials with signals.
        seed: Of folds, first weights and batches; the same seed gives the same network.
        steps: Of training, at most, for each width and strength of weight decay.
        factors: How many shared noise factors at most.

    Raises:
        DataError: If there are fewer than four trials, or no signals.
    """
    window = window_of(trials)
    rows = max(4, _ROWS // max(1, window.channels))
    recipe = Recipe(steps, rate=8e-3, decays=_DECAYS, rows=rows, folds=3)
    networks = [_ResidualMlp(window, width) for width in _WIDTHS]
    best, members = fit_members(networks, trials, recipe, seed=seed, factors=factors)
    return contiguous(ResidualMlpForecaster(window, best.width, members))


@dataclass(frozen=True)
class _ResidualMlp(SmallNetwork):
    """The network, without its weights."""

    window: Window
    width: int

    @property
    def recent(self) -> int:
        """Context samples that are read one by one."""
        return max(1, min(round(_RECENT_S * self.window.rate_hz), self.window.context_samples))

    @property
    def waves(self) -> int:
        """Cosines that a response is written in."""
        return max(4, min(round(2 * _HIGHEST_HZ * self.window.samples / self.window.rate_hz), self.window.samples))

    def first(self, source: torch.Generator) -> dict[str, Tensor]:
        """See SmallNetwork."""
        slow, polarities, scales = min(_SLOW, self.window.samples), 2, len(SPREADS_MM)
        own = 2 * self.recent + min(_SLOW, self.window.context_samples)
        entered = entry_width(self.window)
        weights = {"identity.weight": torch.zeros(self.window.channels, self.width)}
        weights |= dense_start(source, "own", own, self.width)
        weights |= dense_start(source, "felt", polarities * scales * slow, self.width)
        weights |= dense_start(source, "entered", entered, self.width)
        for block in range(_BLOCKS):
            weights |= dense_start(source, f"up{block}", self.width, 2 * self.width)
            weights |= dense_start(source, f"down{block}", 2 * self.width, self.width, gain=0.5)
        weights |= dense_start(source, "head", self.width, self.waves, gain=0.0)
        return weights | dense_start(source, "ongoing", own, self.waves, gain=0.0)

    def inputs(
        self, context: Float[Tensor, "row channel past"], drive: Float[Tensor, "row input time"], stimulus: Stimulus
    ) -> dict[str, Tensor]:
        """See SmallNetwork: each channel's signal and that of all, the current it feels, numbers of the stimulus."""
        last = context[..., -self.recent :]
        slow = context @ slowest_cosines(_SLOW, context.shape[-1], context).mT / context.shape[-1]
        everyone = last.mean(1, keepdim=True).expand_as(last)
        course = drive @ slowest_cosines(_SLOW, drive.shape[-1], drive).mT
        near = torch.asinh(2 * felt(self.window.montage, course)).flatten(2)
        own = torch.cat([last, 4 * slow, everyone], -1)
        return {"own": own, "felt": near, "entered": entry_numbers(self.window, stimulus)}

    def answer(self, weights: Weights, inputs: Inputs) -> Float[Tensor, "member row channel time"]:
        """See SmallNetwork."""
        own = inputs["own"]
        token = dense(weights, "own", own) + dense(weights, "felt", inputs["felt"])
        token = token + dense(weights, "entered", inputs["entered"]).unsqueeze(2)
        token = token + weights["identity.weight"].to(own).unsqueeze(1)
        for block in range(_BLOCKS):
            token = token + dense(weights, f"down{block}", F.gelu(dense(weights, f"up{block}", _even(token))))
        wave = dense(weights, "head", _even(token)) + dense(weights, "ongoing", own)
        answer: Tensor = wave @ slowest_cosines(self.waves, self.window.samples, own)
        return answer


def _even(token: Tensor) -> Tensor:
    """The same direction at unit size (root mean square)."""
    return token * (token.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
