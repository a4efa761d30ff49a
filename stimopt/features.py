"""Numbers read from a window of signal: batched, differentiable, in physical units.

Every reading follows one convention: signal in uV, `[*batch, channel, time]`, the reading
`[*batch, channel]`. Spectra are one-sided, from one Hann-tapered periodogram, so a sine of
amplitude A puts A**2 / 2 into its band.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import BandError, ShapeError
from .response import Response
from .tensors import mean_over_last

_FLOOR = 1e-12  # uV^2/Hz; far below any amplifier, keeps logarithms finite on silence


def power_spectrum(response: Response) -> tuple[Float[Tensor, " frequency"], Float[Tensor, "*batch channel frequency"]]:
    """Frequencies in Hz and one-sided power spectral density in uV^2/Hz (Hann taper, mean removed).

    Raises:
        ShapeError: If the window has fewer than four samples.
    """
    signal = response.signal_uv
    samples = signal.shape[-1]
    if samples < 4:
        raise ShapeError(f"a spectrum needs at least 4 samples, got {samples}.")
    taper = torch.hann_window(samples, periodic=True, dtype=signal.dtype, device=signal.device)
    centred = signal - signal.mean(-1, keepdim=True)
    spectrum = torch.fft.rfft(centred * taper, dim=-1)  # [*batch, channel, frequency]
    density = 2 * spectrum.abs().square() / (response.rate_hz * taper.square().sum())  # uV^2/Hz
    frequency = torch.fft.rfftfreq(samples, 1 / response.rate_hz, dtype=signal.dtype, device=signal.device)
    return frequency, density


def band_power(response: Response, band_hz: tuple[float, float]) -> Float[Tensor, "*batch channel"]:
    """Power of each channel within a band.

    A sine of amplitude A inside the band gives A**2 / 2. Windows shorter than two periods of the
    lower edge are too short to resolve it; that is the caller's choice and is not refused.

    Args:
        response: The window to read.
        band_hz: Lower and upper edge in Hz, both included.

    Returns:
        Power in uV^2.

    Raises:
        BandError: If the edges are not ordered, pass the Nyquist limit, or hold no frequency of this window.

    Example:
        >>> beta = band_power(response, (13.0, 30.0))
        >>> beta.shape == (*response.batch_shape, len(response.montage.channels))
        True
    """
    low, high = band_hz
    if not 0 <= low < high <= response.rate_hz / 2:
        raise BandError(f"band_hz {low} to {high} must rise and end by {response.rate_hz / 2} Hz, half of rate_hz.")
    frequency, density = power_spectrum(response)
    inside = (frequency >= low) & (frequency <= high)
    if not bool(inside.any()):
        raise BandError(
            f"band_hz {low} to {high} holds no frequency of this window (spacing {float(frequency[1]):.3g} Hz)."
        )
    return density[..., inside].sum(-1) * frequency[1]


def evoked_amplitude(response: Response) -> Float[Tensor, "*batch channel"]:
    """Size of the deflection over the window: root mean square about its mean, in uV."""
    signal = response.signal_uv
    centred = signal - signal.mean(-1, keepdim=True)
    return (centred.square().mean(-1) + _FLOOR).sqrt()


def evoked_peak(response: Response, sharpness: float = 50.0) -> tuple[Tensor, Tensor]:
    """Amplitude and latency of the largest absolute deflection, `[*batch, channel]` each, in uV and s.

    The peak is a softmax average, so that it has a gradient; as `sharpness` grows it becomes the sample of
    the maximum. At 50 a lone peak's amplitude is read within about 2 %.
    """
    size = response.signal_uv.abs()
    scale = size.amax(-1, keepdim=True).clamp_min(_FLOOR)
    weight = torch.softmax(sharpness * size / scale, -1)
    return (weight * response.signal_uv).sum(-1), (weight * response.time_s).sum(-1)


def line_length(response: Response) -> Float[Tensor, "*batch channel"]:
    """Mean absolute change per second, uV/s (Esteller et al. 2001, IEEE EMBS: a seizure and after-discharge detector).

    Raises:
        ShapeError: If the window has fewer than two samples.
    """
    if response.signal_uv.shape[-1] < 2:
        raise ShapeError(f"line length needs at least 2 samples, got {response.signal_uv.shape[-1]}.")
    return mean_over_last(response.signal_uv.diff(dim=-1).abs()) * response.rate_hz


def analytic(response: Response, band_hz: tuple[float, float]) -> Tensor:
    """Analytic signal of each channel within a band, complex `[*batch, channel, time]` (FFT mask, zero phase).

    Raises:
        BandError: If the edges are not ordered or pass the Nyquist limit.
    """
    low, high = band_hz
    if not 0 < low < high <= response.rate_hz / 2:
        raise BandError(f"band_hz {low} to {high} must rise from above 0 and end by {response.rate_hz / 2} Hz.")
    signal = response.signal_uv
    frequency = torch.fft.fftfreq(signal.shape[-1], 1 / response.rate_hz, dtype=signal.dtype, device=signal.device)
    keep = ((frequency >= low) & (frequency <= high)).to(signal.dtype)
    wave: Tensor = torch.fft.ifft(2 * keep * torch.fft.fft(signal, dim=-1), dim=-1)
    return wave


def phase_locking(response: Response, band_hz: tuple[float, float]) -> Float[Tensor, "*batch channel channel"]:
    """Phase locking value between channels over the window, 0 to 1 (Lachaux et al. 1999, Hum Brain Mapp 8:194).

    Raises:
        BandError: If the edges are not ordered or pass the Nyquist limit.
    """
    wave = analytic(response, band_hz)
    phase = wave / (wave.abs() + _FLOOR)
    return (phase @ phase.mH / phase.shape[-1]).abs()


def coherence(
    response: Response, band_hz: tuple[float, float], segments: int = 8
) -> Float[Tensor, "*batch channel channel"]:
    """Magnitude-squared coherence between channels, averaged over a band, 0 to 1.

    Welch's estimate over `segments` half-overlapping Hann segments; with few segments it is biased upward by
    about 1 / segments.

    Raises:
        BandError: If the band holds no frequency of a segment.
        ShapeError: If the window is too short for the segments.
    """
    signal = response.signal_uv
    length = 2 * signal.shape[-1] // (segments + 1)
    if length < 4:
        raise ShapeError(
            f"{signal.shape[-1]} samples cannot be cut into {segments} half-overlapping segments of 4 or more."
        )
    pieces = signal.unfold(-1, length, length // 2)  # [*batch, channel, segment, time]
    taper = torch.hann_window(length, periodic=True, dtype=signal.dtype, device=signal.device)
    spectrum = torch.fft.rfft((pieces - pieces.mean(-1, keepdim=True)) * taper, dim=-1)
    frequency = torch.fft.rfftfreq(length, 1 / response.rate_hz, dtype=signal.dtype, device=signal.device)
    inside = (frequency >= band_hz[0]) & (frequency <= band_hz[1])
    if not bool(inside.any()):
        raise BandError(f"band_hz {band_hz} holds no frequency of a segment (spacing {float(frequency[1]):.3g} Hz).")
    kept = spectrum[..., inside].movedim(-1, -3)  # [*batch, frequency, channel, segment]
    cross = kept @ kept.mH
    power = cross.diagonal(dim1=-2, dim2=-1).real
    ratio: Tensor = cross.abs().square() / (power.unsqueeze(-1) * power.unsqueeze(-2) + _FLOOR)
    return ratio.mean(-3)


def spectral_distance(response: Response, other: Response) -> Float[Tensor, "*batch channel"]:
    """Root mean square difference of log10 spectra, in decades, between two windows of the same length and rate.

    Raises:
        ShapeError: If length or rate differ.
    """
    if response.signal_uv.shape[-1] != other.signal_uv.shape[-1] or response.rate_hz != other.rate_hz:
        raise ShapeError("spectral_distance needs two windows of the same length and rate; cut or resample one.")
    logs = [(power_spectrum(r)[1][..., 1:] + _FLOOR).log10() for r in (response, other)]
    return ((logs[0] - logs[1]).square().mean(-1) + _FLOOR).sqrt()
