"""CONTRACT Objective: one number per trial, higher is better.

Objectives are ready objects: `BandPower((13, 30), better="lower")` scores the negative log
power. `WeightedSum` trades several, `Charge` prices the stimulus itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import DataError
from .features import band_power, evoked_amplitude, line_length
from .response import Response
from .stimulus import Stimulus

Better = Literal["higher", "lower"]


class Objective(ABC):
    """Judges responses. Works on a batch, passes gradients where its reading does."""

    @abstractmethod
    def __call__(self, response: Response, stimulus: Stimulus) -> Float[Tensor, "*batch"]:
        """Score of each trial, higher is better. `response` may carry leading axes that `stimulus` lacks."""


@dataclass(frozen=True)
class BandPower(Objective):
    """Mean over channels of the log10 power (uV^2) in a band, between two times after the window's start.

    Attributes:
        band_hz: Lower and upper edge.
        channels: Names; all where empty.
        better: "lower" to suppress, "higher" to drive.
        between_s: Stretch of the window to read; None reads all of it.
    """

    band_hz: tuple[float, float]
    channels: tuple[str, ...] = ()
    better: Better = "lower"
    between_s: tuple[float, float] | None = None

    def __call__(self, response: Response, stimulus: Stimulus) -> Float[Tensor, "*batch"]:
        """See Objective."""
        power = band_power(_stretch(response, self.between_s), self.band_hz)
        return _signed(_picked(power, response, self.channels).clamp_min(1e-12).log10(), self.better)


@dataclass(frozen=True)
class EvokedAmplitude(Objective):
    """Mean over channels of the size of the evoked deflection (root mean square, uV) between two times.

    Attributes:
        between_s: From the window's start; begin after the stimulation artefact.
        channels: Names; all where empty.
        better: "higher" to evoke, "lower" to avoid.
    """

    between_s: tuple[float, float]
    channels: tuple[str, ...] = ()
    better: Better = "higher"

    def __call__(self, response: Response, stimulus: Stimulus) -> Float[Tensor, "*batch"]:
        """See Objective."""
        size = evoked_amplitude(_stretch(response, self.between_s))
        return _signed(_picked(size, response, self.channels), self.better)


@dataclass(frozen=True)
class LineLength(Objective):
    """Mean over channels of the line length (uV/s); lower is calmer."""

    channels: tuple[str, ...] = ()
    better: Better = "lower"
    between_s: tuple[float, float] | None = None

    def __call__(self, response: Response, stimulus: Stimulus) -> Float[Tensor, "*batch"]:
        """See Objective."""
        length = line_length(_stretch(response, self.between_s))
        return _signed(_picked(length, response, self.channels), self.better)


@dataclass(frozen=True)
class Outcome(Objective):
    """A number measured in the trial, by name: what a replay of a trial table is judged on."""

    outcome: str
    better: Better = "higher"

    def __call__(self, response: Response, stimulus: Stimulus) -> Float[Tensor, "*batch"]:
        """See Objective.

        Raises:
            DataError: If the response carries no such outcome.
        """
        if self.outcome not in response.outcomes:
            raise DataError(
                f"outcome {self.outcome!r} was not measured; this one has {', '.join(response.outcomes) or 'none'}."
            )
        return response.outcomes[self.outcome] * (1.0 if self.better == "higher" else -1.0)


@dataclass(frozen=True)
class Charge(Objective):
    """Minus the total charge delivered in the trial (uC, first phases, the larger polarity): less is better."""

    def __call__(self, response: Response, stimulus: Stimulus) -> Float[Tensor, "*batch"]:
        """See Objective."""
        per_pulse = stimulus.phase_charge_uc
        return -torch.maximum(per_pulse.clamp_min(0).sum(-1), -per_pulse.clamp_max(0).sum(-1)) * stimulus.pulses


@dataclass(frozen=True)
class WeightedSum(Objective):
    """A trade between objectives, such as band power and charge."""

    parts: tuple[Objective, ...]
    weights: tuple[float, ...]

    def __call__(self, response: Response, stimulus: Stimulus) -> Float[Tensor, "*batch"]:
        """See Objective."""
        scores = [weight * part(response, stimulus) for part, weight in zip(self.parts, self.weights, strict=True)]
        return torch.stack(torch.broadcast_tensors(*scores)).sum(0)


def _stretch(response: Response, between_s: tuple[float, float] | None) -> Response:
    return response if between_s is None else response.between(*between_s)


def _picked(reading: Tensor, response: Response, channels: Sequence[str]) -> Tensor:
    if not channels:
        return reading.mean(-1)
    return reading[..., [response.montage.channel_index(name) for name in channels]].mean(-1)


def _signed(reading: Tensor, better: Better) -> Tensor:
    return reading if better == "higher" else -reading
