"""CONTRACT Part: one thing that happens to a signal on its way from the tissue to the file.

A sensing has a tuple of parts and applies them in that order, each to what the one before
left. The order in nature, which `clinical_amplifier` keeps:

| part | file | what |
| --- | --- | --- |
| Background | interference | 1/f noise of the tissue |
| Artefact | artefact | the stimulus itself, conducted through the volume, and its tail |
| LostContacts | here | channels whose contact is broken |
| LineNoise, WhiteNoise | interference | mains, and the amplifier's own noise |
| Band | band | AC coupling and anti-aliasing filter |
| Saturation, SoftSaturation | rails | the rails |
| CommonAverage | here | a digital reference, taken after everything analogue |
| Delay | here | what is late before anyone can read it |

What a tail, a filter, a recovery or a delay still holds as a window ends is its state, which
`Sensing.continued` carries into the next one: without noise, two windows read as one of twice
the length. Random parts draw from each row's own key and the window's salt, so a row reads the
same alone as in any batch and no two windows share noise. All signals are in uV and stay
finite; a lost contact reads noise, never NaN, as an amplifier with an open input does.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.montage import Montage
from stimopt.stimulus import Stimulus
from stimopt.system import State
from stimopt.tensors import Signal, row_noise


@dataclass(frozen=True)
class SensedWindow:
    """What a part may know of a window.

    Attributes:
        stimulus: What is delivered during it.
        rate_hz: Samples per second.
        keys: One per row.
        salt: Of this part in this window.
    """

    stimulus: Stimulus
    rate_hz: float
    keys: Int[Tensor, "*batch"]
    salt: int

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal noise, `[*batch, *shape]`; the same every time it is asked for."""
        return row_noise(self.keys, shape, self.salt, like)


class Part(ABC):
    """One step between tissue and file. Pure; rows of a batch never see each other.

    Follows dtype and device of the signal; tensors that a part holds are moved when they are used.
    """

    @abstractmethod
    def applied(self, signal_uv: Signal, window: SensedWindow) -> Signal:
        """The signal after this part, of the same shape; for a part with a state, a session of this window alone."""


class StatefulPart(Part):
    """A part that holds something of one window in the next. Differentiable through its state."""

    @abstractmethod
    def start(self, signal_uv: Signal, window: SensedWindow) -> State:
        """The state at the beginning of a session whose first window this is; empty where nothing is ever held.

        What was before is not known here; each part says what it takes it for.
        """

    @abstractmethod
    def continued(self, state: State, signal_uv: Signal, window: SensedWindow) -> tuple[Signal, State]:
        """The signal after this part, and the state after the window, with the names and shapes of the one before."""

    def applied(self, signal_uv: Signal, window: SensedWindow) -> Signal:
        """See Part."""
        return self.continued(self.start(signal_uv, window), signal_uv, window)[0]


@dataclass(frozen=True)
class LostContacts(Part):
    """Channels whose contact is broken: no tissue, only the noise of an open input. See `lost_channels`.

    Attributes:
        lost: Which channels; one choice, or one per row of the batch.
        noise_uv: Standard deviation of what they read instead, per sample.
    """

    lost: Bool[Tensor, "*batch channel"]
    noise_uv: float = 20.0

    def applied(self, signal_uv: Signal, window: SensedWindow) -> Signal:
        """See Part."""
        open_input = self.noise_uv * window.noise(signal_uv.shape[-2:], signal_uv)
        return torch.where(self.lost.to(signal_uv.device).unsqueeze(-1), open_input, signal_uv)


def lost_channels(montage: Montage, contacts: Sequence[str]) -> Bool[Tensor, " channel"]:
    """Channels that read at least one of these contacts, for `LostContacts` and `CommonAverage`.

    Raises:
        MontageError: If a contact is not in the montage.
    """
    broken = torch.zeros(len(montage.contacts), dtype=torch.float64)
    broken[[montage.contact_index(name) for name in contacts]] = 1.0
    return (montage.channel_matrix.abs() @ broken) > 0


@dataclass(frozen=True)
class CommonAverage(Part):
    """Every channel against the mean of all of them, as ECoG and scalp EEG are often read.

    Meant for channels that each read one contact. Channels that are left out of the mean have it taken away too.

    Attributes:
        left_out: Channels that do not enter the mean, such as those of lost contacts; one choice, or one per row.
    """

    left_out: Bool[Tensor, "*batch channel"] | None = None

    def applied(self, signal_uv: Signal, window: SensedWindow) -> Signal:
        """See Part.

        Raises:
            ConfigError: If all channels of a row are left out.
        """
        if self.left_out is None:
            return signal_uv - signal_uv.mean(-2, keepdim=True)
        kept = (~self.left_out).to(signal_uv).unsqueeze(-1)
        count = kept.sum(-2, keepdim=True)
        if not bool((count > 0).all()):
            raise ConfigError("left_out names every channel, so no common average is left; keep one at least.")
        return signal_uv - (signal_uv * kept).sum(-2, keepdim=True) / count


@dataclass(frozen=True)
class Delay(StatefulPart):
    """What is read lags by `delay_s`: sample t shows what happened at t - delay_s, in whichever window that was.

    Between samples a straight line is taken. Before a session's first window the signal is taken to have stood at its
    first sample.

    State   "waiting_uv"   [*batch, channel, time]   samples that were not read yet

    Attributes:
        delay_s: How late.
    """

    delay_s: float

    def __post_init__(self) -> None:
        if not self.delay_s >= 0:
            raise ConfigError(f"delay_s is {self.delay_s}; nothing is read before it happens, so give 0 s or more.")

    def start(self, signal_uv: Signal, window: SensedWindow) -> State:
        """See StatefulPart."""
        waiting = math.ceil(self._late(window))
        return {"waiting_uv": signal_uv[..., :1].repeat_interleave(waiting, -1)} if waiting else {}

    def continued(self, state: State, signal_uv: Signal, window: SensedWindow) -> tuple[Signal, State]:
        """See StatefulPart."""
        if not state:
            return signal_uv, state
        samples, late = signal_uv.shape[-1], self._late(window)
        line = torch.cat([state["waiting_uv"], signal_uv], -1)
        read = line[..., :samples]
        if share := math.ceil(late) - late:  # of a sample by which the oldest that waits is too old
            read = (1 - share) * read + share * line[..., 1 : samples + 1]
        return read, {"waiting_uv": line[..., samples:]}

    def _late(self, window: SensedWindow) -> float:
        """In samples: 10 ms at 300 Hz are 3, not 2.9999999999999996."""
        return round(self.delay_s * window.rate_hz, 9)
