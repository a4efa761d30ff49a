"""The waveform holds the charge of the pulses exactly, whatever the sampling rate."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stimopt.errors import ShapeError
from stimopt.montage import Contact, monopolar
from stimopt.stimulus import Stimulus, no_stimulus, pulse_train
from stimopt.tensors import concatenate, map_tensors
from stimopt.waveform import current_ma, net_charge_uc, rectified_current_ma, train_s

MONTAGE = monopolar([Contact(name, area_cm2=0.05) for name in ("A1", "A2", "A3")])


def charge_uc(current: torch.Tensor, rate_hz: float) -> torch.Tensor:
    return current.sum(-1) / rate_hz * 1e3  # mA s to uC


def sampled_pulse_by_pulse(stimulus: Stimulus, rate_hz: float, duration_s: float) -> torch.Tensor:
    """The same waveform by looping over pulses, phases and bins."""
    edges = torch.arange(round(duration_s * rate_hz) + 1, dtype=torch.float64) / rate_hz
    width, gap = float(stimulus.pulse_width_us) * 1e-6, float(stimulus.interphase_us) * 1e-6
    shape = torch.zeros(len(edges) - 1, dtype=torch.float64)
    for pulse in range(int(stimulus.pulses)):
        start = float(stimulus.onset_s) + pulse / float(stimulus.frequency_hz)
        for sign, begin in ((1.0, start), (-1.0, start + width + gap)):
            overlap = edges[1:].clamp_max(begin + width) - edges[:-1].clamp_min(begin)
            shape += sign * overlap.clamp_min(0.0) * rate_hz
    return stimulus.amplitude_ma[:, None] * shape


trains = st.builds(
    lambda amplitude, frequency, share, gap_share, pulses, onset: pulse_train(
        MONTAGE, "A1-A2", amplitude_ma=amplitude, frequency_hz=frequency,
        pulse_width_us=share * 0.4e6 / frequency, interphase_us=gap_share * 0.2e6 / frequency,
        pulses=pulses, onset_s=onset,
    ),
    st.floats(-10, 10), st.floats(1, 300), st.floats(0.001, 1), st.floats(0, 1), st.integers(0, 40), st.floats(0, 0.5),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(trains, st.floats(50, 5000))
def test_net_charge_is_zero_when_the_train_lies_in_the_window(stimulus, rate_hz):
    window_s = float(stimulus.onset_s + train_s(stimulus)) + 2 / rate_hz
    net = charge_uc(current_ma(stimulus, rate_hz, window_s), rate_hz)
    delivered = stimulus.phase_charge_uc.abs() * stimulus.pulses
    assert bool((net.abs() <= 1e-9 * delivered + 1e-12).all())


@settings(max_examples=20, deadline=None)
@given(trains, st.floats(100, 3000))
def test_the_closed_form_is_the_sum_over_pulses(stimulus, rate_hz):
    found = current_ma(stimulus, rate_hz, 0.7)
    assert torch.allclose(found, sampled_pulse_by_pulse(stimulus, rate_hz, 0.7), atol=1e-8)


@pytest.mark.parametrize("rate_hz", [100.0, 512.0, 20000.0])
def test_each_phase_keeps_its_charge_at_any_rate(rate_hz):
    stimulus = pulse_train(
        MONTAGE, "A1-A2", amplitude_ma=5.0, frequency_hz=50.0, pulse_width_us=200.0, pulses=7, onset_s=0.013
    )
    cathodic, anodic = rectified_current_ma(stimulus, rate_hz, 0.5)
    # 5 mA for 200 us is 1 uC a phase; seven pulses
    assert charge_uc(cathodic, rate_hz).tolist() == pytest.approx([7.0, 7.0, 0.0], abs=1e-9)
    assert charge_uc(anodic, rate_hz).tolist() == pytest.approx([7.0, 7.0, 0.0], abs=1e-9)


def test_the_parts_are_nonnegative_and_differ_by_the_current():
    stimulus = pulse_train(MONTAGE, "A1-A2", amplitude_ma=2.0, frequency_hz=130.0, pulse_width_us=60.0, pulses=40)
    cathodic, anodic = rectified_current_ma(stimulus, 1000.0, 0.4)
    assert float(torch.minimum(cathodic, anodic).min()) >= 0.0
    assert torch.allclose(anodic - cathodic, current_ma(stimulus, 1000.0, 0.4), atol=1e-12)


def test_a_finely_sampled_pulse_looks_like_the_textbook():
    stimulus = pulse_train(MONTAGE, "A1", amplitude_ma=3.0, pulse_width_us=100.0, interphase_us=50.0, onset_s=0.001)
    wave = current_ma(stimulus, 1e6, 0.0015)[0]  # one sample a microsecond
    expected = torch.zeros(1500, dtype=torch.float64)
    expected[1000:1100], expected[1150:1250] = -3.0, 3.0  # cathodic first at the named contact
    assert torch.allclose(wave, expected, atol=1e-6)


def test_a_negative_amplitude_turns_every_phase():
    one = pulse_train(MONTAGE, "A1-A3", amplitude_ma=2.0, pulses=3, frequency_hz=20.0)
    other = pulse_train(MONTAGE, "A1-A3", amplitude_ma=-2.0, pulses=3, frequency_hz=20.0)
    assert torch.equal(current_ma(one, 500.0, 0.3), -current_ma(other, 500.0, 0.3))
    assert torch.equal(rectified_current_ma(one, 500.0, 0.3)[0], rectified_current_ma(other, 500.0, 0.3)[1])


def test_gradients_agree_with_finite_differences():
    # numbers chosen so that no phase begins or ends on the edge of a bin, where the slope jumps
    start = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.7, 41.3, 371.0, 12.34, 53.0)]

    def wave(amplitude, frequency, width, onset_ms, gap):
        base = pulse_train(MONTAGE, "A1-A2", amplitude_ma=1.0, pulses=4)
        stimulus = replace(base, amplitude_ma=base.amplitude_ma * amplitude, frequency_hz=frequency,
                           pulse_width_us=width, onset_s=onset_ms * 1e-3, interphase_us=gap)  # fmt: skip
        return (current_ma(stimulus, 997.0, 0.12), *rectified_current_ma(stimulus, 997.0, 0.12))

    # a step of 1e-5 us is 1e-11 s; times round at 1e-17 s, so differences are good to 1e-6
    assert torch.autograd.gradcheck(wave, start, eps=1e-5, atol=1e-5, rtol=1e-4)


def test_every_row_of_a_batch_is_what_it_is_alone():
    alone = [
        pulse_train(MONTAGE, "A1-A2", amplitude_ma=1.0, frequency_hz=f, pulses=n) for f, n in ((20.0, 3), (77.0, 11))
    ]
    batch = concatenate([map_tensors(s, lambda t: t.unsqueeze(0)) for s in alone])
    together = current_ma(batch, 400.0, 0.3)
    assert all(torch.equal(together[i], current_ma(s, 400.0, 0.3)) for i, s in enumerate(alone))


def test_single_precision_keeps_the_charge_of_a_late_pulse():
    stimulus = pulse_train(MONTAGE, "A1", amplitude_ma=1.0, pulse_width_us=60.0, onset_s=90.0)
    cathodic, _ = rectified_current_ma(stimulus.to(torch.zeros((), dtype=torch.float32)), 1000.0, 91.0)
    assert cathodic.dtype == torch.float32
    assert float(charge_uc(cathodic, 1000.0)[0]) == pytest.approx(0.06, rel=1e-5)


def test_silence_has_no_current():
    assert float(current_ma(no_stimulus(MONTAGE, (2,)), 100.0, 1.0).abs().max()) == 0.0


def test_a_window_that_ends_within_a_pulse_leaves_charge():
    stimulus = pulse_train(MONTAGE, "A1", amplitude_ma=2.0, pulse_width_us=200.0, onset_s=0.01)
    assert net_charge_uc(stimulus, until_s=0.0102)[0].item() == pytest.approx(-0.4)  # the first phase alone, 0.4 uC
    assert net_charge_uc(stimulus)[0].item() == pytest.approx(0.0, abs=1e-12)


def test_a_train_lasts_from_the_first_edge_to_the_last():
    stimulus = pulse_train(MONTAGE, "A1", amplitude_ma=1.0, frequency_hz=50.0, pulse_width_us=200.0, pulses=11)
    assert float(train_s(stimulus)) == pytest.approx(0.2004)


def test_an_empty_window_is_refused():
    with pytest.raises(ShapeError, match="no bin"):
        current_ma(no_stimulus(MONTAGE), 100.0, 0.001)
