"""CONTRACT Part: one thing that happens to a signal on its way from the tissue to the file.

A sensing has a tuple of parts and applies them in that order, each to what the one before
left. The order in nature, which `clinical_amplifier` keeps:

| part | file | what |
| --- | --- | --- |
| Background | interference | 1/f noise of the tissue |
| Artefact | artefact | the stimulus itself, conducted through the volume, and its tail |
| LostContacts | here | channels whose contact is broken |
| LineNoise, WhiteNoise | interference | mains, and the amplifier's own noise |
| Band | here | AC coupling and anti-aliasing filter |
| Saturation, SoftSaturation | here | the rails |
| CommonAverage | here | a digital reference, taken after everything analogue |
| Delay | here | what is late before anyone can read it |

A part knows one window and nothing before it: a tail, a recovery or a delay does not reach into
the next one. Random parts draw from each row's own key and the window's salt, so a row reads
the same alone as in any batch and no two windows share noise. All signals are in uV and stay
finite; a lost contact reads noise, never NaN, as an amplifier with an open input does.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stimopt.errors import BandError, ConfigError
from stimopt.montage import Montage
from stimopt.stimulus import Stimulus
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
        """The signal after this part, of the same shape."""


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
class Band(Part):
    """The amplifier's pass band: causal Butterworth filters, as its AC coupling and anti-aliasing are.

    What was before the window has to be guessed. The high-pass takes it that the signal had swung around the window's
    own mean, so a constant offset makes no transient and early samples know that one number of later ones; the
    low-pass takes it that the signal had stood at its first value. Within the window both are exact.

    Attributes:
        low_hz: High-pass edge, 3 dB down; None passes the offset.
        high_hz: Low-pass edge, 3 dB down; None passes everything up to half the sampling rate.
        order: Of each of the two filters.
    """

    low_hz: float | None = None
    high_hz: float | None = None
    order: int = 1

    def applied(self, signal_uv: Signal, window: SensedWindow) -> Signal:
        """See Part.

        Raises:
            BandError: If an edge is not between 0 and half the sampling rate, or the edges are not ordered.
        """
        edges = [edge for edge in (self.low_hz, self.high_hz) if edge is not None]
        if any(not 0 < edge < window.rate_hz / 2 for edge in edges) or sorted(set(edges)) != edges:
            raise BandError(
                f"low_hz {self.low_hz} and high_hz {self.high_hz} must be ordered and lie between 0 and "
                f"{window.rate_hz / 2} Hz, half of rate_hz {window.rate_hz}; leave out the one that is not needed."
            )
        if self.low_hz is not None:
            around = signal_uv - signal_uv.mean(-1, keepdim=True)
            signal_uv = self._filtered(around, self.low_hz, "highpass", window.rate_hz)
        if self.high_hz is not None:
            first = signal_uv[..., :1]
            signal_uv = first + self._filtered(signal_uv - first, self.high_hz, "lowpass", window.rate_hz)
        return signal_uv

    def _filtered(self, signal_uv: Tensor, edge_hz: float, kind: str, rate_hz: float) -> Tensor:
        """Convolved with the filter's impulse response, as long as the window, so nothing is cut off."""
        from scipy.signal import butter, sosfilt  # here, since it is slow to import and only filters need it

        samples = signal_uv.shape[-1]
        impulse = torch.zeros(samples, dtype=torch.float64)
        impulse[0] = 1.0
        kernel = sosfilt(butter(self.order, edge_hz, kind, fs=rate_hz, output="sos"), impulse.numpy())
        size = 2 * samples  # room for the whole answer, so that its end does not wrap round to the start
        spectrum = torch.fft.rfft(torch.from_numpy(kernel).to(signal_uv), n=size) * torch.fft.rfft(signal_uv, n=size)
        filtered: Tensor = torch.fft.irfft(spectrum, n=size)[..., :samples]
        return filtered


@dataclass(frozen=True)
class Saturation(Part):
    """Hard rails: beyond +-range_uv a channel reads the rail, and for `recovery_s` afterwards still that rail.

    Differentiable where it does not clip; a clipped or recovering sample has no gradient, for it tells nothing.

    Attributes:
        range_uv: Largest voltage that is read.
        recovery_s: Time at the rail after the signal has come back, rounded to whole samples.
    """

    range_uv: float
    recovery_s: float = 0.0

    def __post_init__(self) -> None:
        _require_range(self.range_uv)

    def applied(self, signal_uv: Signal, window: SensedWindow) -> Signal:
        """See Part."""
        clipped = signal_uv.clamp(-self.range_uv, self.range_uv)
        held = round(self.recovery_s * window.rate_hz)
        if held == 0:
            return clipped
        time = torch.arange(signal_uv.shape[-1], device=signal_uv.device)
        never = -held - 1
        over = signal_uv.detach().abs() > self.range_uv
        last = torch.where(over, time, never).cummax(-1).values  # the latest sample that was over, at each sample
        recovering = (time - last) <= held
        rail = clipped.detach().gather(-1, last.clamp_min(0))
        return torch.where(recovering, rail, clipped)


@dataclass(frozen=True)
class SoftSaturation(Part):
    """Rails without a corner: range_uv * tanh(x / range_uv). Differentiable everywhere; a twentieth of the range is
    read 0.08 % too small.

    Attributes:
        range_uv: What the largest signals come near.
    """

    range_uv: float

    def __post_init__(self) -> None:
        _require_range(self.range_uv)

    def applied(self, signal_uv: Signal, window: SensedWindow) -> Signal:
        """See Part."""
        return self.range_uv * torch.tanh(signal_uv / self.range_uv)


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
class Delay(Part):
    """What is read lags by `delay_s`: sample t shows what happened at t - delay_s.

    Between samples a straight line is taken. What was before the window is not known here: the first sample stands
    for it, so a window shows nothing of itself until the delay is over.

    Attributes:
        delay_s: How late.
    """

    delay_s: float

    def __post_init__(self) -> None:
        if not self.delay_s >= 0:
            raise ConfigError(f"delay_s is {self.delay_s}; nothing is read before it happens, so give 0 s or more.")

    def applied(self, signal_uv: Signal, window: SensedWindow) -> Signal:
        """See Part."""
        samples = signal_uv.shape[-1]
        late = round(self.delay_s * window.rate_hz, 9)  # 10 ms at 300 Hz are 3 samples, not 2.9999999999999996
        whole = int(late)
        share = late - whole
        time = torch.arange(samples, device=signal_uv.device)
        after = signal_uv[..., (time - whole).clamp_min(0)]
        before = signal_uv[..., (time - whole - 1).clamp_min(0)]
        return (1 - share) * after + share * before


def _require_range(range_uv: float) -> None:
    if not range_uv > 0:
        raise ConfigError(f"range_uv is {range_uv}; an amplifier needs a positive range, such as 8000 uV.")
