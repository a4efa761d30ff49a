"""What passes through the foundation network: what it knows of trials, and what it answers."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .ieeg_subject import Shots


@dataclass(frozen=True)
class Ongoing:
    """What the ongoing stage made of contexts: one token a patch, and each patch in cosines; rows are contexts."""

    token: Float[Tensor, "row channel patch width"]
    patch: Float[Tensor, "row channel patch wave"]


@dataclass(frozen=True)
class Answer:
    """A forecast in units of spread.

    Attributes:
        mean: Expected signal.
        log_scale: Logarithm of the independent noise's standard deviation.
        factors: Shared noise: each times a standard normal moves a whole window.
        statistics: Mean and logarithm of the spread of each band's log power in the window.
        token: What the network knew of each channel before its heads, for closed-form adaptation and embeddings.
        ongoing: What it made of the contexts of the windows asked for.
    """

    mean: Float[Tensor, "*batch shot channel time"]
    log_scale: Float[Tensor, "*batch shot channel time"]
    factors: Float[Tensor, "*batch shot factor channel time"]
    statistics: Float[Tensor, "*batch shot channel band 2"]
    token: Float[Tensor, "*batch shot channel width"]
    ongoing: Ongoing


@dataclass(frozen=True)
class Trials:
    """What the network is told of trials, before they hear each other."""

    token: Tensor  # [patient, trial, channel, width]
    stimulus: Tensor  # [patient, trial, width]
    spot: Tensor  # [patient, trial, number]: middles of cathodes and anodes, whether there are any, and the train
    shots: Shots  # what they were made of
    carried: Tensor  # [patient, trial, channel, wave]
    evoked: Tensor | None  # [patient, trial, channel, wave], what followed less what was carried; None where asked for
    ongoing: Ongoing

    @property
    def level(self) -> Float[Tensor, "patient 1 channel 1"]:
        """How large past responses were, see `level_of`."""
        return level_of(self.carried[:, :0] if self.evoked is None else self.evoked)


def level_of(evoked: Float[Tensor, "patient trial channel wave"]) -> Float[Tensor, "patient 1 channel 1"]:
    """How large responses are beside the ongoing activity they ride on: root mean square over trials and time, 1 where
    there are none; a cosine of size 1 has a mean square of a half.
    """
    if not evoked.shape[1]:
        return evoked.new_ones(len(evoked), 1, evoked.shape[2], 1)
    return (1 + evoked.square().sum(-1, keepdim=True).mean(1, keepdim=True) / 2).sqrt()
