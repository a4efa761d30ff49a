"""Does a long roll-out stay what rest is? Growth of its energy, and how its spectrum drifts."""

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ShapeError
from stimopt.features import power_spectrum
from stimopt.forecaster import Context
from stimopt.response import Response

from .ieeg_subject import BANDS_HZ


def roll_out_drift(rolled: Response, rest: Context) -> dict[str, float]:
    """How a roll-out's energy grows and its spectrum leaves that of rest, bands 1 to 70 Hz as far as the rate reaches.

    The roll-out is cut into windows of the length of those of rest. Energies are medians over channels; spectra are
    root mean squares over channels and bands of differences of the logarithm of band power.

    Args:
        rolled: See `roll_out`, at least 6 windows long.
        rest: Windows without stimulation `[window, channel, time]`, at least 2, uV.

    Returns:
        growth_db_per_min: Slope of the energy over the roll-out.
        energy_db: Energy of its last third over that of rest.
        spectrum_drift: Of its last third from its first, decades.
        spectrum_error: Of its last third from rest, decades.
        rest_drift: Of the second half of the windows of rest from the first, decades: what rest itself does.
        within_rest: Share of channels and bands whose power in the last third is between the least and the largest of
            rest's windows.
        pulled_back: Share of patches that were shrunk, if the roll-out tells it.

    Raises:
        ShapeError: If either is too short or rates differ.
    """
    length = rest.signal_uv.shape[-1]
    count = rolled.signal_uv.shape[-1] // length
    if rolled.rate_hz != rest.rate_hz or count < 6 or rest.signal_uv.shape[:-2].numel() < 2:
        raise ShapeError(
            f"the roll-out holds {count} windows of {length} samples at {rolled.rate_hz} Hz, rest "
            f"{rest.signal_uv.shape[:-2].numel()} at {rest.rate_hz} Hz; give 6 and 2 windows or more at one rate."
        )
    cut = rolled.signal_uv[..., : count * length].unflatten(-1, (count, length)).movedim(-2, 0).flatten(1, -3)
    power, energy = _bands(cut, rolled)  # [window, channel, band], [window, channel]
    own, own_energy = _bands(rest.signal_uv.reshape(-1, 1, *rest.signal_uv.shape[-2:]), rolled)
    third, half = count // 3, len(own) // 2
    minutes = torch.arange(count).to(energy) * length / rest.rate_hz / 60
    late = minutes - minutes.mean()
    slope = (late @ (10 * energy.log10())) / late.square().sum()
    last = power[-third:].mean(0).log10()
    inside = (last >= own.amin(0).log10()) & (last <= own.amax(0).log10())
    found = {
        "growth_db_per_min": slope.median(),
        "energy_db": (10 * (energy[-third:].mean(0) / own_energy.mean(0)).log10()).median(),
        "spectrum_drift": _rms(last - power[:third].mean(0).log10()),
        "spectrum_error": _rms(last - own.mean(0).log10()),
        "rest_drift": _rms(own[half:].mean(0).log10() - own[:half].mean(0).log10()),
        "within_rest": inside.double().mean(),
    }
    if "pulled_back" in rolled.outcomes:
        found["pulled_back"] = rolled.outcomes["pulled_back"].mean()
    return {name: float(value) for name, value in found.items()}


def _bands(signal: Float[Tensor, "window row channel time"], like: Response) -> tuple[Tensor, Tensor]:
    """Power of each band and energy about the mean, means over rows, uV^2."""
    frequency, density = power_spectrum(Response(like.montage, signal, like.rate_hz))
    within = [(frequency >= low) & (frequency < high) for low, high in BANDS_HZ if high <= like.rate_hz / 2]
    power = torch.stack([density[..., band].sum(-1) * frequency[1] for band in within if bool(band.any())], -1)
    return power.mean(1).clamp_min(1e-12), signal.var(-1).mean(1).clamp_min(1e-12)


def _rms(value: Tensor) -> Tensor:
    return value.square().mean().sqrt()
