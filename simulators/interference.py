"""What a channel reads besides its regions: 1/f background, mains, white noise.

All of it is drawn from the row's key and the window's salt: another window has another
background and another phase of the mains, as windows of a session are apart in time.

References: Miller, Sorensen, Ojemann and den Nijs 2009, PLoS Comput Biol 5:e1000609 (spectra of the
human cortical surface: exponent 2.0 +- 0.4 below 70 Hz, 4.0 +- 0.1 above 80 Hz).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError, ShapeError
from stimopt.tensors import Signal

from .amplifier import Part, SensedWindow

REFERENCE_HZ = 10.0  # where the size of the background is given


@dataclass(frozen=True)
class Background(Part):
    """Tissue that no region stands for: Gaussian noise with a power density that falls as 1 / f^exponent.

    Drawn over a period of two windows, of which one is kept, so the window's ends do not know each other; what is
    slower than two windows is not in it.

    Attributes:
        density_uv: Amplitude density at 10 Hz, uV per square root of Hz. With exponent 2, what is above 1 Hz has a
            standard deviation of ten times as many uV.
        exponent: How fast the power falls; 2 in cortex below 70 Hz (Miller et al. 2009).
        flat_below_hz: Below this the density does not rise further.
        mixing: How sources of noise reach the channels, `[channel, source]`; None gives each channel its own. With a
            montage's `channel_matrix` each contact has its own, and bipolar channels share them as they do in nature.
    """

    density_uv: float = 3.0
    exponent: float = 2.0
    flat_below_hz: float = 0.5
    mixing: Float[Tensor, "channel source"] | None = None

    def __post_init__(self) -> None:
        if not (self.density_uv >= 0 and self.exponent >= 0 and self.flat_below_hz > 0):
            raise ConfigError(
                f"a background needs density_uv and exponent of 0 or more and a positive flat_below_hz, got "
                f"{self.density_uv}, {self.exponent} and {self.flat_below_hz}."
            )

    def applied(self, signal_uv: Signal, window: SensedWindow) -> Signal:
        """See Part."""
        channels, samples = signal_uv.shape[-2:]
        mixing = None if self.mixing is None else self.mixing.to(signal_uv)
        if mixing is not None and mixing.shape[0] != channels:
            raise ShapeError(f"mixing must be [channel, source] for {channels} channels, got {list(mixing.shape)}.")
        sources = channels if mixing is None else mixing.shape[1]
        noise = self._shaped(window.noise((sources, 2 * samples), signal_uv), window.rate_hz)[..., :samples]
        return signal_uv + (noise if mixing is None else mixing @ noise)

    def _shaped(self, white: Tensor, rate_hz: float) -> Tensor:
        """Weigh each frequency: white noise of variance 1 has a one-sided density of 2 / rate, everywhere."""
        size = white.shape[-1]
        frequency = torch.fft.rfftfreq(size, 1 / rate_hz, dtype=white.dtype, device=white.device)
        falling = (frequency.clamp_min(self.flat_below_hz) / REFERENCE_HZ) ** (-self.exponent / 2)
        weight = self.density_uv * falling * math.sqrt(rate_hz / 2)
        shaped: Tensor = torch.fft.irfft(torch.fft.rfft(white) * weight, n=size)
        return shaped


@dataclass(frozen=True)
class LineNoise(Part):
    """Hum of the mains: a sine and its harmonics, in phase with each other, at a random phase in each row and window.

    Harmonics at or above half the sampling rate are left out, as by an anti-aliasing filter.

    Attributes:
        mains_hz: 50 or 60.
        harmonics_uv: Amplitude of the mains and of its multiples, uV.
        gain: How strongly each channel picks it up; None is 1 for all. A bipolar pair picks up less than a contact.
    """

    mains_hz: float = 50.0
    harmonics_uv: tuple[float, ...] = (10.0, 1.0, 3.0)
    gain: Float[Tensor, " channel"] | None = None

    def applied(self, signal_uv: Signal, window: SensedWindow) -> Signal:
        """See Part."""
        time = torch.arange(signal_uv.shape[-1], dtype=signal_uv.dtype, device=signal_uv.device)
        one, other = window.noise((2,), signal_uv).unbind(-1)
        turns = torch.atan2(one, other).unsqueeze(-1) + 2 * math.pi * self.mains_hz / window.rate_hz * time
        hum = torch.zeros_like(turns)  # [*batch, time]
        for number, amplitude_uv in enumerate(self.harmonics_uv, 1):
            if number * self.mains_hz < window.rate_hz / 2:
                hum = hum + amplitude_uv * torch.sin(number * turns)
        picked = hum.unsqueeze(-2)
        return signal_uv + (picked if self.gain is None else self.gain.to(signal_uv).unsqueeze(-1) * picked)


@dataclass(frozen=True)
class WhiteNoise(Part):
    """Noise of the amplifier itself, the same at all frequencies.

    Attributes:
        noise_uv: Standard deviation per sample, independent over channels and time.
    """

    noise_uv: float

    def applied(self, signal_uv: Signal, window: SensedWindow) -> Signal:
        """See Part."""
        return signal_uv + self.noise_uv * window.noise(signal_uv.shape[-2:], signal_uv)
