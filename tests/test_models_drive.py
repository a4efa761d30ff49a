"""What models see of pulses: those that follow others, and how they may count less."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_truth import shafts

from stimopt.models.drive import (
    Tiring,
    along_shafts,
    even_course,
    flowing_ma,
    leading_current_ma,
    leading_ma,
    paired_course,
    pulse_course,
    repeated_course,
    tired_current_ma,
)
from stimopt.montage import Contact, monopolar
from stimopt.stimulus import Stimulus, no_stimulus, pulse_train

RATE_HZ, SAMPLES = 250.0, 125
FADING_S, LAGS_S = (0.02, 0.08), (0.01, 0.02, 0.04)


def train(frequency_hz: float = 40.0, pulses: float = 3.0, amplitude_ma: float = 2.0) -> Stimulus:
    made = pulse_train(shafts(4), "A1-A2", amplitude_ma=amplitude_ma, frequency_hz=frequency_hz, pulse_width_us=150.0)
    return replace(made, pulses=torch.full_like(made.pulses, pulses))


def around(course: torch.Tensor, at: int) -> float:
    """What a pulse in this sample or the half after it adds."""
    return float(course[max(0, at - 1) : at + 3].sum())


def ringing(time_s: torch.Tensor) -> torch.Tensor:
    """What one pulse might be answered: at 30 Hz, risen in 20 ms and gone in a tenth of a second."""
    late_s = time_s.clamp_min(0) / 0.02
    return late_s.square() * (-late_s).exp() * (2 * torch.pi * 30 * time_s).cos()


def answered(course: torch.Tensor) -> torch.Tensor:
    """Each pulse of a course answered on the grid."""
    kernel = ringing(torch.arange(SAMPLES, dtype=course.dtype) / RATE_HZ)
    length = 2 * SAMPLES
    return torch.fft.irfft(torch.fft.rfft(course, length) * torch.fft.rfft(kernel, length), length)[..., :SAMPLES]


@given(st.floats(2.0, 120.0), st.integers(1, 8), st.floats(0.0, 0.2))
def test_pulses_between_samples_are_answered_as_those_on_them_and_none_is_lost(frequency_hz, pulses, onset_s):
    some = train(frequency_hz, float(pulses))
    some = replace(some, onset_s=some.onset_s + onset_s)
    course = pulse_course(some, RATE_HZ, SAMPLES)
    at_s = onset_s + torch.arange(pulses, dtype=torch.float64) / frequency_hz
    within = at_s < (SAMPLES - 2) / RATE_HZ
    if bool(within.all()):
        assert float(course.sum()) == pytest.approx(pulses)
    exact = ringing(torch.arange(SAMPLES, dtype=torch.float64) / RATE_HZ - at_s.unsqueeze(-1)).sum(0)
    error = float((answered(course) - exact)[: SAMPLES - 2].norm() / exact.norm())
    assert error < 0.07  # shared in straight lines, up to 0.15


def test_slopes_along_frequency_are_those_of_a_small_step_and_no_ripple():
    """Of the size of an answer, over many trains; where pulses are shared in straight lines, 0.86."""
    source = torch.Generator().manual_seed(0)
    hz = 16 * (100 / 16) ** torch.rand(64, generator=source, dtype=torch.float64)
    pulses = torch.randint(2, 9, (64,), generator=source).to(torch.float64)
    one = train().reshape(1)
    many = replace(one[torch.zeros(64, dtype=torch.long)], pulses=pulses)

    def size(step: torch.Tensor | float) -> torch.Tensor:
        course = pulse_course(replace(many, frequency_hz=hz * (1 + step)), RATE_HZ, SAMPLES)
        return answered(course).square().mean(-1).sqrt()

    step = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(size(step).sum(), step)
    apart = (size(0.03) - size(-0.03)) / 0.06
    assert float(torch.cosine_similarity(slope, apart, dim=0)) > 0.98


def test_a_pulse_weighs_what_earlier_ones_have_left():
    course, frequency = repeated_course(train(), RATE_HZ, SAMPLES, FADING_S), 40.0
    for row, constant in zip(course, FADING_S, strict=True):
        kept = math.exp(-1 / (frequency * constant))
        left = [0.0, kept, kept + kept**2]
        found = [around(row, round(k / frequency * RATE_HZ)) for k in range(3)]
        assert found == pytest.approx([t / (1 + t) for t in left])


def test_the_weight_of_a_pulse_does_not_depend_on_the_rate():
    for weighted, how in ((repeated_course, FADING_S), (paired_course, LAGS_S)):
        course = [weighted(train(37.0, 5.0), rate, round(0.5 * rate), how).sum(-1) for rate in (250.0, 1000.0)]
        torch.testing.assert_close(*course)


def test_a_pulse_pairs_with_each_earlier_one_by_the_time_between_them():
    """At 40 Hz neighbours lie 25 ms apart: three quarters about 20 ms, a quarter about 40; others 50, half about 40."""
    course = paired_course(train(), RATE_HZ, SAMPLES, LAGS_S)
    found = [[around(row, at) for at in (0, 6, 12)] for row in course]  # samples of the three pulses
    expected = [[0.0, 0.0, 0.0], [0.0, 0.75 / 1.75, 0.75 / 1.75], [0.0, 0.25 / 1.25, 0.75 / 1.75]]
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted)


def test_more_pulses_than_samples_are_counted_too():
    fast = train(900.0, 40.0)
    at_once = repeated_course(fast, RATE_HZ, SAMPLES, FADING_S).sum(-1)
    apart = repeated_course(fast, 9000.0, 500, FADING_S).sum(-1)
    torch.testing.assert_close(at_once, apart)


def test_silence_and_single_pulses_follow_nothing():
    for weighted, how in ((repeated_course, FADING_S), (paired_course, LAGS_S)):
        silent = weighted(no_stimulus(shafts(4), (2,)), RATE_HZ, SAMPLES, how)
        single = weighted(train(pulses=1.0), RATE_HZ, SAMPLES, how)
        assert silent.shape == (2, len(how), SAMPLES)
        assert not silent.any()
        assert not single.any()


def with_currents(*rows: list[float]) -> Stimulus:
    current_ma = torch.tensor(rows, dtype=torch.float64)
    """Trains on one shaft of four contacts."""
    shaft = monopolar(shafts(8).contacts[:4])
    one = pulse_train(shaft, "A1-A2", amplitude_ma=1.0, frequency_hz=40.0, pulse_width_us=150.0).reshape(1)
    return replace(one[torch.zeros(len(rows), dtype=torch.long)], amplitude_ma=current_ma)


def test_current_that_moves_to_the_next_pair_keeps_its_sum_and_what_enters_and_leaves():
    """On the way from A1-A2 to A2-A3 the sum of currents is halved; the moment, and what is counted, are not."""
    rows = [[-2 * (1 - m), 2 * (1 - 2 * m), 2 * m, 0.0] for m in (0.0, 0.25, 0.5, 1.0)]
    counted = flowing_ma(with_currents(*rows))
    assert counted.sum(-1).flatten().tolist() == pytest.approx([2.0] * 8)
    assert counted[1].tolist() == [[1.5, 0.5, 0.0, 0.0], [0.0, 1.5, 0.5, 0.0]]
    assert torch.equal(counted[[0, 3]], leading_ma(with_currents(rows[0], rows[3])))


def test_pairs_far_apart_other_shafts_and_single_contacts_count_as_they_are():
    far = with_currents([-2.0, 0.0, 0.0, 2.0], [-2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0] * 4)
    assert torch.equal(flowing_ma(far), leading_ma(far))
    two_shafts = shafts(4)
    across = replace(with_currents([0.0, -1.0, 1.0, 0.0], [-1.0, 0.0, 0.5, 0.5]), montage=two_shafts)
    assert torch.equal(flowing_ma(across), leading_ma(across))


def test_contacts_that_do_not_follow_each_other_count_as_they_are():
    """Three segments around a lead between two rings, and a grid of two rows."""
    lead = [(0.0, 0.0, 0.0), (0.7, 0.0, 2.0), (-0.4, 0.6, 2.0), (-0.4, -0.6, 2.0), (0.0, 0.0, 4.0)]
    grid = [(10.0 * i, 10.0 * j, 0.0) for j in range(2) for i in range(3)]
    for places in (lead, grid):
        montage = monopolar([Contact(f"C{i}", place, shaft="C") for i, place in enumerate(places)])
        assert along_shafts(montage) == ()
        current_ma = torch.randn(6, len(places), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        some = replace(with_currents(*[[0.0] * 4] * 6), montage=montage, amplitude_ma=current_ma)
        torch.testing.assert_close(flowing_ma(some), leading_ma(some))


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4))
def test_what_enters_less_what_leaves_is_the_current(row):
    stimulus = with_currents(row)
    cathodic, anodic = flowing_ma(stimulus)[0]
    torch.testing.assert_close(anodic - cathodic, stimulus.amplitude_ma[0], rtol=1e-9, atol=1e-9)
    assert float(torch.minimum(cathodic, anodic).min()) >= 0


def test_a_train_without_pulses_delivers_as_many_until_it_ends():
    even = even_course(train(40.0, 3.0), RATE_HZ, SAMPLES)
    assert float(even.sum()) == pytest.approx(3.0)
    assert even[:18].tolist() == pytest.approx([40.0 / RATE_HZ] * 18)
    assert not even[19:].any()  # three periods of 25 ms end within sample 18
    assert not even_course(no_stimulus(shafts(4), (2,)), RATE_HZ, SAMPLES).any()
    late = even_course(replace(train(2.0, 3.0), onset_s=train().onset_s + 0.1), RATE_HZ, SAMPLES)
    assert float(late.sum()) == pytest.approx(2.0 * 0.4)  # the window ends before the train


def test_slow_weak_trains_drive_as_rectified_current_does():
    """What fades is gone after 2.5 constants' length, and a thousandth of the bend is in proportion."""
    weak, tiring = train(8.0, 3.0, amplitude_ma=0.001), Tiring(1.0, 0.005, 200.0)
    tired = tired_current_ma(weak, RATE_HZ, SAMPLES, tiring)
    torch.testing.assert_close(tired, leading_current_ma(weak, RATE_HZ, SAMPLES), rtol=1e-6, atol=0.0)


def test_strong_fast_pulses_count_less_and_the_first_in_full():
    strong, tiring = train(100.0, 4.0, amplitude_ma=5.0), Tiring(4.0, 0.02, 200.0)
    share = tired_current_ma(strong, 1000.0, 500, tiring) / leading_current_ma(strong, 1000.0, 500)
    bent = 200 / 750 * math.asinh(750 / 200)
    kept = math.exp(-1 / 2)
    left = [0.0, kept, kept + kept**2, kept + kept**2 + kept**3]
    found = share[0][pulse_course(strong, 1000.0, 500) > 0.5]
    assert found.tolist() == pytest.approx([bent / (1 + 4 * t) for t in left])


@pytest.mark.parametrize("name", ["frequency_hz", "pulse_width_us", "amplitude_ma", "onset_s"])
def test_slopes_agree_with_finite_differences(name):
    at, tiring = train(41.3, 5.0), Tiring(2.0, 0.03, 200.0)
    current_ma = torch.tensor([-2.0, 1.1, 0.6, 0.3], dtype=torch.float64)  # none at the kink of zero
    at = replace(at, onset_s=at.onset_s + 0.0013, amplitude_ma=current_ma)
    weight = torch.randn(8, SAMPLES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def read(value: torch.Tensor) -> torch.Tensor:
        turned = replace(at, **{name: value})
        repeated = repeated_course(turned, RATE_HZ, SAMPLES, FADING_S)
        paired = paired_course(turned, RATE_HZ, SAMPLES, LAGS_S)
        several = (weight[:2] * repeated).sum() + (weight[2:5] * paired).sum()
        return (weight * tired_current_ma(turned, RATE_HZ, SAMPLES, tiring)).sum() + several

    start = getattr(at, name).clone().requires_grad_(True)
    assert torch.autograd.gradcheck(read, (start,), eps=1e-7, rtol=1e-5, atol=1e-5)
