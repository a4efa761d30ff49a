import math

import pytest
import torch

from stimopt.errors import BandError, ShapeError
from stimopt.features import (
    band_power,
    coherence,
    evoked_amplitude,
    evoked_peak,
    line_length,
    phase_locking,
    power_spectrum,
    spectral_distance,
)
from stimopt.montage import Contact, monopolar
from stimopt.response import Response

RATE_HZ = 500.0
TIME_S = torch.arange(1000, dtype=torch.float64) / RATE_HZ


def response(*signals):
    montage = monopolar([Contact(f"A{i}") for i in range(len(signals))])
    return Response(montage, torch.stack(signals), RATE_HZ)


def sine(frequency_hz, amplitude_uv=10.0, phase=0.3):
    return amplitude_uv * torch.sin(2 * math.pi * frequency_hz * TIME_S + phase)


def test_a_sine_puts_half_its_squared_amplitude_into_its_band():
    power = band_power(response(sine(10.0), sine(40.0)), (6.0, 14.0))
    assert power[0].item() == pytest.approx(50.0, rel=1e-6)
    assert power[1].item() < 1e-6


def test_the_spectrum_integrates_to_the_variance_of_noise():
    noise = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    frequency, density = power_spectrum(response(noise))
    assert float(density.sum() * frequency[1]) == pytest.approx(float(noise.var()), rel=0.1)  # Hann: about 5 % spread


def test_a_band_beyond_nyquist_or_upside_down_is_refused():
    for band in [(10.0, 300.0), (30.0, 13.0), (10.1, 10.3)]:
        with pytest.raises(BandError):
            band_power(response(sine(10.0)), band)


def test_evoked_amplitude_of_a_sine_is_its_root_mean_square():
    assert evoked_amplitude(response(sine(10.0) + 500.0)).item() == pytest.approx(10 / math.sqrt(2), rel=1e-6)


def test_the_peak_is_found_at_its_time_with_its_sign():
    bump = -80 * torch.exp(-(((TIME_S - 0.5) / 0.01) ** 2))
    amplitude, latency = evoked_peak(response(bump))
    assert amplitude.item() == pytest.approx(-80, rel=0.03)
    assert latency.item() == pytest.approx(0.5, abs=0.004)


def test_line_length_of_a_ramp_is_its_slope():
    assert line_length(response(250.0 * TIME_S)).item() == pytest.approx(250.0)
    with pytest.raises(ShapeError):
        line_length(Response(monopolar([Contact("A")]), torch.zeros(1, 1), 10.0))


def test_locked_phases_give_one_and_free_ones_little():
    source = torch.Generator().manual_seed(3)
    free = torch.randn(1000, dtype=torch.float64, generator=source)
    locking = phase_locking(response(sine(10.0), sine(10.0, 3.0, 1.5), free), (5.0, 45.0))
    assert locking[0, 1].item() > 0.99
    assert locking[0, 2].item() < 0.3


def test_coherence_sees_a_shared_rhythm_through_noise():
    source = torch.Generator().manual_seed(4)
    noises = [torch.randn(1000, dtype=torch.float64, generator=source) for _ in range(3)]
    found = coherence(response(sine(20.0) + noises[0], sine(20.0, 5.0) + noises[1], noises[2]), (18.0, 22.0))
    assert found[0, 1].item() > 0.9
    assert found[0, 2].item() < 0.5
    assert torch.allclose(found.diagonal(), torch.ones(3, dtype=torch.float64))


def test_ten_times_the_amplitude_is_two_decades_of_power_away():
    noise = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    distance = spectral_distance(response(noise), response(10 * noise))
    assert distance.item() == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize(
    "reading",
    [lambda r: band_power(r, (6.0, 14.0)).log(), evoked_amplitude, line_length, lambda r: evoked_peak(r)[0],
     lambda r: phase_locking(r, (5.0, 20.0)), lambda r: coherence(r, (5.0, 60.0), 2)],
)  # fmt: skip
def test_readings_have_the_gradient_of_finite_differences(reading):
    source = torch.Generator().manual_seed(5)
    signal = torch.randn(2, 48, dtype=torch.float64, generator=source, requires_grad=True)
    montage = monopolar([Contact("A"), Contact("B")])
    assert torch.autograd.gradcheck(lambda s: reading(Response(montage, s, 128.0)), signal)
