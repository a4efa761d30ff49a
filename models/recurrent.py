"""Gated recurrent network driven by the current: state carried from context through the window.

All channels share one network. Through the context it reads a channel's own signal and the
mean of all; through the window it reads the current that the channel feels through
distance and writes the response, a few samples a step. Its own forecasts are never fed
back, so errors do not build up.

Reference: Cho et al., EMNLP 2014, equations 5 to 8, with the reset applied after the product.
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
from .members import NetworkForecaster, SmallNetwork, fit_members
from .trained import Inputs, Recipe, Weights, dense, dense_start
from .window import Window, contiguous, window_of

_WIDTHS = (16, 32)
_STEP_S = 0.032  # of the recurrence
_READ_S = 0.2  # of the context
_ROWS = 96  # trials times channels in a step of training, up to 30 trials; three times as many from 90
_DECAYS = (1.0, 10.0)


class RecurrentForecaster(NetworkForecaster):
    """Mean of a few gated recurrent networks. Differentiable in the stimulus."""

    @property
    def network(self) -> SmallNetwork:
        """See NetworkForecaster."""
        return _Recurrent(self.window, self.size)


def fit_recurrent(trials: Trials, *, seed: int = 0, steps: int = 160, factors: int = 12) -> RecurrentForecaster:
    """A gated recurrent network driven by the current, trained on these trials alone.

    Args:
        trials: Recorded trials with signals.
        seed: Of folds, first weights and batches; the same seed gives the same network.
        steps: Of training, at most, for each width and strength of weight decay.
        factors: How many shared noise factors at most.

    Raises:
        DataError: If there are fewer than four trials, or no signals.
    """
    window = window_of(trials)
    cells = _ROWS * min(3.0, max(1.0, len(trials) / 30))  # 8 trials of 100 a step learnt less than all of 20 did
    rows = max(4, round(cells / max(1, window.channels)))
    recipe = Recipe(steps, rate=2e-2, decays=_DECAYS, rows=rows, folds=3)
    networks = [_Recurrent(window, width) for width in _WIDTHS]
    best, members = fit_members(networks, trials, recipe, seed=seed, factors=factors)
    return contiguous(RecurrentForecaster(window, best.width, members))


@dataclass(frozen=True)
class _Recurrent(SmallNetwork):
    """The network, without its weights."""

    window: Window
    width: int

    @property
    def step(self) -> int:
        """Samples in a step."""
        return max(1, round(_STEP_S * self.window.rate_hz))

    @property
    def read(self) -> int:
        """Context samples that are read, whole steps."""
        steps = min(round(_READ_S * self.window.rate_hz), self.window.context_samples) // self.step
        return max(1, steps) * self.step

    def first(self, source: torch.Generator) -> dict[str, Tensor]:
        """See SmallNetwork."""
        width, step = self.width, self.step
        weights = {"identity.weight": torch.zeros(self.window.channels, width)}
        weights |= dense_start(source, "signal", 2 * step, 3 * width)
        weights |= dense_start(source, "drive", 2 * len(SPREADS_MM) * step, 3 * width)
        weights |= dense_start(source, "entered", entry_width(self.window), 3 * width, gain=0.3)
        weights |= dense_start(source, "context", width, 3 * width)
        weights |= dense_start(source, "window", width, 3 * width)
        return weights | dense_start(source, "head", width, step, gain=0.0)

    def inputs(
        self, context: Float[Tensor, "row channel past"], drive: Float[Tensor, "row input time"], stimulus: Stimulus
    ) -> dict[str, Tensor]:
        """See SmallNetwork: signals and felt current, cut into steps."""
        short = max(0, self.read - context.shape[-1])
        last = F.pad(context, (short, 0))[..., -self.read :]
        both = torch.stack([last, last.mean(1, keepdim=True).expand_as(last)], 2)  # [row, channel, 2, time]
        near = felt(self.window.montage, F.pad(drive, (0, -drive.shape[-1] % self.step)))
        return {
            "signal": _steps(both, self.step), "drive": _steps(near, self.step),
            "entered": entry_numbers(self.window, stimulus),
        }  # fmt: skip

    def answer(self, weights: Weights, inputs: Inputs) -> Float[Tensor, "member row channel time"]:
        """See SmallNetwork."""
        signal = dense(weights, "signal", inputs["signal"])  # [member, row, channel, step, gate]
        entered = dense(weights, "entered", inputs["entered"]).unsqueeze(2).unsqueeze(2)
        drive = dense(weights, "drive", inputs["drive"]) + entered
        state = weights["identity.weight"].to(drive).unsqueeze(1).expand(*drive.shape[:3], -1)
        for step in signal.unbind(3):
            state = _gated(state, step, dense(weights, "context", state))
        states = []
        for step in drive.unbind(3):
            state = _gated(state, step, dense(weights, "window", state))
            states.append(state)
        answer = dense(weights, "head", torch.stack(states, 3)).flatten(3)
        return answer[..., self.window.lead : self.window.lead + self.window.samples]


def _steps(signal: Float[Tensor, "row channel feature time"], step: int) -> Float[Tensor, "row channel step input"]:
    """Cut into steps: the samples of all features together."""
    cut: Tensor = signal.unflatten(-1, (-1, step)).transpose(2, 3).flatten(3)
    return cut


def _gated(state: Tensor, given: Tensor, own: Tensor) -> Tensor:
    """The next state, from what came in and from the state itself, each as update, reset and candidate."""
    update, reset, candidate = given.chunk(3, -1)
    own_update, own_reset, own_candidate = own.chunk(3, -1)
    keep = torch.sigmoid(update + own_update)
    fresh = torch.tanh(candidate + torch.sigmoid(reset + own_reset) * own_candidate)
    return keep * state + (1 - keep) * fresh
