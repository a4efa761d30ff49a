"""The stop rule sees after-discharges that last, and nothing else."""

import math

import pytest
import torch

from stimopt.errors import DataError, ShapeError
from stimopt.montage import Contact, monopolar
from stimopt.response import Response
from stimopt.stimulus import no_stimulus, pulse_train
from stimopt.stop_rule import AfterdischargeRule
from stimopt.tensors import generator

RATE_HZ = 500.0
MONTAGE = monopolar([Contact(name, area_cm2=0.05) for name in ("A1", "A2", "A3")])
TRAIN = pulse_train(
    MONTAGE, "A1-A2", amplitude_ma=3.0, frequency_hz=50.0, pulse_width_us=200.0, pulses=26, onset_s=1.0
)  # ends at 1.5 s
RULE = AfterdischargeRule()


def rest(seconds: float = 4.0, seed: int = 3) -> Response:
    """Noise with the short memory of resting iEEG, about 20 uV."""
    noise = torch.randn(3, round(seconds * RATE_HZ), generator=generator(seed, "rest"), dtype=torch.float64)
    kernel = torch.exp(-torch.arange(40, dtype=torch.float64) / 10)
    smooth = torch.nn.functional.conv1d(noise.unsqueeze(1), kernel.flip(0).reshape(1, 1, -1), padding=20)[
        :, 0, : noise.shape[-1]
    ]
    return Response(MONTAGE, 20 * smooth / smooth.std(), RATE_HZ)


def with_burst(
    response: Response, start_s: float, lasts_s: float, amplitude_uv: float, frequency_hz: float = 14.0
) -> Response:
    """An oscillation on channel A2."""
    time_s = response.time_s
    inside = ((time_s >= start_s) & (time_s < start_s + lasts_s)).double()
    signal = response.signal_uv.clone()
    signal[1] += amplitude_uv * inside * torch.sin(2 * math.pi * frequency_hz * time_s)
    return Response(MONTAGE, signal, RATE_HZ)


def test_an_after_discharge_is_named_with_its_channel():
    reason = RULE(with_burst(rest(), 1.6, 1.5, 500.0), TRAIN)
    assert "A2" in reason
    assert "line length" in reason


@pytest.mark.parametrize("seed", range(20))
def test_rest_never_fires(seed):
    assert RULE(rest(seed=seed), TRAIN) == ""


def test_a_short_evoked_potential_does_not_fire():
    # N1 and N2 of a cortico-cortical evoked potential: large, and over within 0.35 s of the last pulse
    response = with_burst(rest(), 1.5, 0.35, 800.0, frequency_hz=10.0)
    assert RULE(response, TRAIN) == ""


def test_a_burst_during_the_train_does_not_fire():
    assert RULE(with_burst(rest(), 1.0, 0.55, 3000.0), TRAIN) == ""


@pytest.mark.parametrize(("lasts_s", "fires"), [(0.3, False), (1.0, True)])
def test_it_must_last_for_the_set_time(lasts_s, fires):
    assert bool(RULE(with_burst(rest(), 2.0, lasts_s, 500.0), TRAIN)) is fires


def test_a_pause_begins_the_count_again():
    halves = with_burst(with_burst(rest(), 1.7, 0.35, 500.0), 2.4, 0.35, 500.0)
    assert RULE(halves, TRAIN) == ""


def test_the_threshold_is_a_multiple_of_the_channel_before_the_train():
    loud = Response(MONTAGE, rest().signal_uv * 1000.0, RATE_HZ)
    assert RULE(loud, TRAIN) == ""  # the same shape a thousand times larger is the same rest
    assert RULE(with_burst(loud, 1.6, 1.5, 500_000.0), TRAIN) != ""


def test_band_power_sees_what_line_length_passes_over():
    response = with_burst(rest(), 1.6, 2.0, 100.0, frequency_hz=6.0)  # slow: little line length
    watched = AfterdischargeRule(band_hz=(3.0, 12.0), window_s=0.4, for_s=1.0)
    assert AfterdischargeRule(window_s=0.4, for_s=1.0)(response, TRAIN) == ""
    assert "3-12 Hz" in watched(response, TRAIN)
    assert watched(rest(), TRAIN) == ""


def test_an_absolute_threshold_serves_a_window_that_begins_with_the_train():
    early = pulse_train(MONTAGE, "A1-A2", amplitude_ma=3.0, frequency_hz=50.0, pulses=26)
    rule = AfterdischargeRule(line_length_uv_per_s=15_000.0)  # 500 uV at 14 Hz is 28 000 uV/s
    assert rule(rest(), early) == ""
    assert rule(with_burst(rest(), 1.0, 1.5, 500.0), early) != ""


def test_without_rest_to_compare_with_it_says_so():
    with pytest.raises(DataError, match="cannot know rest"):
        RULE(rest(), pulse_train(MONTAGE, "A1-A2", amplitude_ma=3.0))


def test_a_window_that_ends_too_soon_is_refused():
    with pytest.raises(DataError, match="record longer windows"):
        RULE(rest(seconds=1.9), TRAIN)


def test_a_seizure_without_stimulation_stops_too():
    silent = no_stimulus(MONTAGE)
    absolute = AfterdischargeRule(line_length_uv_per_s=15_000.0)
    assert absolute(with_burst(rest(), 1.0, 1.5, 500.0), silent) != ""
    assert RULE(rest(), silent) == ""


def test_a_lost_signal_is_not_taken_for_rest():
    response = rest()
    response.signal_uv[0, 1200] = math.nan
    with pytest.raises(ShapeError, match="not finite"):
        RULE(response, TRAIN)


def test_a_ratio_that_rest_would_pass_is_refused():
    with pytest.raises(ShapeError, match="above 1"):
        AfterdischargeRule(line_length_ratio=1.0)
