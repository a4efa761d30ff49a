"""A patient's small networks as one forecaster: units in, networks, microvolts and noise out.

What `trained` learns is the same for every network that is only trained on the trials of
one patient; a network says how it reads a window and what it answers.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.stimulus import Stimulus
from stimopt.tensors import map_tensors, named_under

from .felt import at_rest_uv, unit_uv
from .residuals import noisy_forecast, residual_noise
from .trained import Inputs, Recipe, Trained, Weights, train
from .window import Window, window_from_dict

_WEIGHT = "weight."  # before a weight's name in a file


class SmallNetwork(ABC):
    """How a network reads windows and what it answers; its weights are kept apart."""

    window: Window

    @abstractmethod
    def first(self, source: torch.Generator) -> dict[str, Tensor]:
        """Weights of one member before training."""

    @abstractmethod
    def inputs(
        self, context: Float[Tensor, "row channel past"], drive: Float[Tensor, "row input time"], stimulus: Stimulus
    ) -> dict[str, Tensor]:
        """What it reads, each beginning with the row.

        Args:
            context: In each channel's unit, about its rest.
            drive: Rectified current from the window's start, in the typical charge of a stimulus for each sample.
            stimulus: The same stimuli, one batch axis.
        """

    @abstractmethod
    def answer(self, weights: Weights, inputs: Inputs) -> Float[Tensor, "member row channel time"]:
        """Responses in each channel's unit, about its rest."""


Kind = TypeVar("Kind", bound=SmallNetwork)


@dataclass(frozen=True)
class Members:
    """The trained members of one patient.

    Attributes:
        rest_uv: Mean of each channel.
        unit_uv: Size of each channel's responses, the networks' unit.
        drive_ma: Sum over the samples of a typical stimulus's current, which drives are divided by.
        weights: Of all members.
        scale_uv: Independent noise.
        factors_uv: Shared noise.
    """

    rest_uv: Float[Tensor, " channel"]
    unit_uv: Float[Tensor, " channel"]
    drive_ma: Float[Tensor, ""]
    weights: Mapping[str, Tensor]
    scale_uv: Float[Tensor, "channel time"]
    factors_uv: Float[Tensor, "factor channel time"]

    def forecast(self, network: SmallNetwork, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """Mean of the members' answers."""
        window = network.window
        signal = window.context_signal(context, stimulus).expand(*stimulus.batch_shape, -1, -1)
        rows = stimulus.reshape(stimulus.batch_shape.numel())
        inputs = self.inputs(network, signal.reshape(len(rows.pulses), *signal.shape[-2:]), rows)
        answer = network.answer(self.weights, {name: value.unsqueeze(0) for name, value in inputs.items()}).mean(0)
        mean = self.rest_uv.to(answer).unsqueeze(-1) + self.unit_uv.to(answer).unsqueeze(-1) * answer
        mean = mean.reshape(*stimulus.batch_shape, *mean.shape[1:])
        return noisy_forecast(window, mean, self.scale_uv, self.factors_uv)

    def inputs(self, network: SmallNetwork, signal_uv: Tensor, stimulus: Stimulus) -> dict[str, Tensor]:
        """What the network reads of these rows."""
        scaled = (signal_uv - self.rest_uv.to(signal_uv).unsqueeze(-1)) / self.unit_uv.to(signal_uv).unsqueeze(-1)
        drive = network.window.drive_ma(stimulus)
        return network.inputs(scaled, drive / self.drive_ma.to(drive), stimulus)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under the names that `members_from` reads."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return plain | {_WEIGHT + name: value for name, value in self.weights.items()}


_PLAIN = ("rest_uv", "unit_uv", "drive_ma", "scale_uv", "factors_uv")


def members_from(tensors: Mapping[str, Tensor]) -> Members:
    """The members that `Members.tensors` took apart."""
    return Members(weights=named_under(tensors, _WEIGHT), **{name: tensors[name] for name in _PLAIN})


@dataclass(frozen=True)
class NetworkForecaster(Forecaster):
    """Mean of the members of one small network. Differentiable in the stimulus.

    Attributes:
        window: What it was fitted on.
        size: Of the network: the width of its state, or how many functions of time it has.
        members: Weights, units and noise.
    """

    window: Window
    size: int
    members: Members

    @property
    @abstractmethod
    def network(self) -> SmallNetwork:
        """What the members' weights belong to."""

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        return self.members.forecast(self.network, context, stimulus)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        return {"window": self.window.to_dict(), "size": self.size}, self.members.tensors()

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "NetworkForecaster":
        """See Saveable."""
        return cls(window_from_dict(config["window"]), config["size"], members_from(tensors))


def fit_members(
    networks: Sequence[Kind], trials: Trials, recipe: Recipe, *, seed: int, factors: int
) -> tuple[Kind, Members]:
    """Train each network and keep the one that forecasts held-out trials best.

    Args:
        networks: Of one window, such as different widths.
        trials: With signals, of that window.
        recipe: How to train.
        seed: Of folds, first weights and batches.
        factors: How many shared noise factors at most.
    """
    trials = map_tensors(trials, lambda tensor: tensor.float())
    window, rest, unit = networks[0].window, at_rest_uv(trials), unit_uv(trials)
    current = window.drive_ma(trials.stimulus).sum(-1).amax(-1)  # of the contact that most enters at
    used = current[current > 0]
    drive = used.mean() if len(used) else current.new_ones(())
    empty = torch.zeros_like(trials.response.signal_uv[:0])
    bare = Members(rest, unit, drive, {}, torch.zeros_like(trials.response.signal_uv[0]), empty)
    target = (trials.response.signal_uv - rest.unsqueeze(-1)) / unit.unsqueeze(-1)
    found: list[Trained] = []
    for network in networks:
        inputs = bare.inputs(network, trials.context.signal_uv, trials.stimulus)
        found.append(train(network.answer, network.first, inputs, target, recipe, seed))
    best = min(range(len(found)), key=lambda i: found[i].loss)
    residual = (found[best].residual * unit.unsqueeze(-1)).double()
    scale, shared = residual_noise(residual, window.rate_hz, factors)
    members = Members(rest, unit, drive, found[best].weights, scale.float(), shared.float())
    return networks[best], members
