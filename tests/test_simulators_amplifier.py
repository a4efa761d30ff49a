"""Parts between tissue and file: sizes, spectra and shapes against what is known, and noise that belongs to a row."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import signal as filters
from scipy.integrate import quad

from stimopt.errors import BandError, ConfigError, MontageError, ShapeError
from stimopt.montage import Contact, monopolar
from stimopt.simulators.amplifier import CommonAverage, Delay, LostContacts, SensedWindow, lost_channels
from stimopt.simulators.artefact import Artefact, artefact_coupling, late_phase_seconds
from stimopt.simulators.band import Band
from stimopt.simulators.interference import Background, LineNoise, WhiteNoise
from stimopt.simulators.rails import Saturation, SoftSaturation
from stimopt.simulators.sensing import clinical_amplifier
from stimopt.stimulus import Stimulus, no_stimulus, pulse_train
from stimopt.tensors import concatenate, generator, map_tensors, row_keys
from stimopt.waveform import current_ma

MONTAGE = monopolar([Contact(f"A{i + 1}", (3.5 * i, 0.0, 0.0), shaft="A") for i in range(5)])
RATE_HZ = 500.0


def train(**changes: float) -> Stimulus:
    return pulse_train(
        MONTAGE, "A1-A2", **({"amplitude_ma": 2.0, "frequency_hz": 60.0, "pulses": 4, "onset_s": 0.0173} | changes)
    )


def sensed(rows: int = 1, stimulus: Stimulus | None = None, *, salt: int = 3, rate_hz: float = RATE_HZ) -> SensedWindow:
    given = no_stimulus(MONTAGE, (rows,)) if stimulus is None else stimulus.expand(rows)
    return SensedWindow(given, rate_hz, row_keys((rows,), generator(0)), salt)


def silence(rows: int = 1, channels: int = 5, samples: int = 250) -> torch.Tensor:
    return torch.zeros(rows, channels, samples, dtype=torch.float64)


def density(noise: torch.Tensor, rate_hz: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean one-sided power density over rows and channels, Hann-tapered."""
    taper = torch.hann_window(noise.shape[-1], periodic=True, dtype=noise.dtype)
    power = torch.fft.rfft(noise * taper).abs().square().mean((0, 1)) * 2 / (rate_hz * taper.square().sum())
    return torch.fft.rfftfreq(noise.shape[-1], 1 / rate_hz, dtype=noise.dtype), power


RANDOM = (Background(), LineNoise(), WhiteNoise(5.0), LostContacts(torch.tensor([True, False, False, False, True])))
PARTS = (
    *RANDOM,
    Artefact(artefact_coupling(MONTAGE)),
    Band(1.0, 100.0),
    Saturation(50.0, 0.01),
    SoftSaturation(50.0),
    CommonAverage(),
    Delay(0.0053),
)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_a_row_reads_the_same_alone_and_in_a_batch_and_keeps_its_shape_and_type(part):
    stimuli = concatenate([map_tensors(train(amplitude_ma=a), lambda t: t.unsqueeze(0)) for a in (1.0, -2.0, 3.0)])
    keys = row_keys((3,), generator(4))
    signal = 40 * torch.randn(3, 5, 200, generator=generator(5), dtype=torch.float64)
    together = part.applied(signal, SensedWindow(stimuli, RATE_HZ, keys, 9))
    assert together.shape == signal.shape
    assert bool(together.isfinite().all())
    for row in range(3):
        alone = part.applied(
            signal[row : row + 1], SensedWindow(stimuli[row : row + 1], RATE_HZ, keys[row : row + 1], 9)
        )
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-9)
    single = part.applied(signal.float(), SensedWindow(stimuli, RATE_HZ, keys, 9))
    assert single.dtype == torch.float32


@pytest.mark.parametrize("part", RANDOM, ids=lambda part: type(part).__name__)
def test_noise_is_the_rows_and_the_windows_own(part):
    first, again, other = (part.applied(silence(2), sensed(2, salt=salt)) for salt in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])


@pytest.mark.parametrize("exponent", [1.0, 2.0, 4.0])
def test_the_background_falls_as_it_says_and_has_its_density_at_ten_hertz(exponent):
    background = Background(density_uv=3.0, exponent=exponent)
    noise = background.applied(silence(60, 5, 1000), sensed(60))
    frequency, power = density(noise, RATE_HZ)
    inside = (frequency >= 3) & (frequency <= 100)
    x, y = frequency[inside].log(), power[inside].log()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    # 195 frequencies of 300 draws each: relative standard error 0.06 a frequency, 0.006 of the slope; the taper's
    # curvature at 3 Hz adds up to 0.02 where the spectrum is steep
    assert abs(slope + exponent) < 0.03
    near = (frequency >= 5) & (frequency <= 20)
    size = float((power[near] / (9.0 * (frequency[near] / 10) ** -exponent)).mean())  # density is 9 uV^2/Hz at 10 Hz
    assert abs(size - 1) < 0.06  # 31 frequencies of 300 draws: four standard errors, neighbours sharing under the taper


def test_the_background_does_not_depend_on_the_sampling_rate():
    for rate_hz in (250.0, 2000.0):
        noise = Background().applied(silence(100, 5, int(rate_hz)), sensed(100, rate_hz=rate_hz))
        frequency, power = density(noise, rate_hz)
        at_twenty = float(power[(frequency > 17) & (frequency < 23)].mean())
        assert abs(at_twenty / (9.0 / 4) - 1) < 0.12  # exponent 2, an octave above 10 Hz; four standard errors


def test_background_at_contacts_is_shared_by_neighbouring_pairs():
    pairs = MONTAGE.bipolar()
    noise = Background(mixing=pairs.channel_matrix).applied(silence(400, 4, 100), sensed(400))
    joined = torch.corrcoef(noise.movedim(1, 0).flatten(1))
    assert abs(float(joined[0, 1]) + 0.5) < 0.1  # one contact of two in common, with opposite sign
    assert abs(float(joined[0, 2])) < 0.1


def test_a_background_mixed_for_other_channels_is_refused():
    with pytest.raises(ShapeError, match="5 channels"):
        Background(mixing=torch.eye(3, dtype=torch.float64)).applied(silence(), sensed())


def test_the_mains_are_at_fifty_hertz_with_harmonics_of_the_size_they_say():
    hum = LineNoise(50.0, (10.0, 2.0, 4.0), gain=torch.tensor([1.0, 1.0, 0.1, 0.0, 2.0])).applied(silence(3), sensed(3))
    lines = torch.fft.rfft(hum).abs() / 125  # amplitude of each line; 250 samples hold whole periods
    at = [25, 50, 75]  # of 2 Hz
    torch.testing.assert_close(lines[0, 0, at], torch.tensor([10.0, 2.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(lines[:, 2] * 10, lines[:, 0])
    assert not hum[:, 3].any()
    assert float(lines[0, 0].square().sum()) == pytest.approx(100 + 4 + 16)


def test_the_phase_of_the_mains_is_even_over_rows():
    hum = LineNoise(50.0, (1.0,)).applied(silence(500, 1), sensed(500))
    phase = torch.angle(torch.fft.rfft(hum)[:, 0, 25])
    for order in (1, 2):
        assert abs(complex(torch.exp(1j * order * phase).mean())) < 3 / math.sqrt(500)


def test_harmonics_above_half_the_sampling_rate_are_left_out():
    full = LineNoise(60.0, (5.0, 1.0)).applied(silence(), sensed(rate_hz=200.0))
    torch.testing.assert_close(full, LineNoise(60.0, (5.0,)).applied(silence(), sensed(rate_hz=200.0)))


def test_white_noise_has_the_size_it_says():
    noise = WhiteNoise(5.0).applied(silence(40), sensed(40))
    assert abs(float(noise.std()) - 5.0) < 4 * 5.0 / math.sqrt(2 * noise.numel())


def test_without_a_tail_the_artefact_is_the_current_through_the_volume():
    coupling = artefact_coupling(MONTAGE)
    seen = Artefact(coupling, late=0.0).applied(silence(1, 5, 5000), sensed(1, train(), rate_hz=50_000.0))
    torch.testing.assert_close(seen[0], coupling @ current_ma(train(), 50_000.0, 0.1))
    # 2 mA at A1 and A2, seen at A4, 10.5 and 7 mm off: 1 / (4 pi 0.3 S/m) (1 / 7 mm - 1 / 10.5 mm) 2 mA
    expected_uv = 2 / (4 * math.pi * 0.3) * (1 / 7 - 1 / 10.5) * 1e6
    assert float(seen[0, 3].max()) == pytest.approx(expected_uv)


def test_each_channel_sees_an_artefact_in_proportion_to_the_current():
    artefact = Artefact(artefact_coupling(MONTAGE), late=0.3)
    one, three = (artefact.applied(silence(), sensed(1, train(amplitude_ma=amplitude))) for amplitude in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)


def test_a_pair_sees_less_of_a_far_stimulus_than_a_contact():
    alone, pairs = (artefact_coupling(m) @ train().amplitude_ma for m in (MONTAGE, MONTAGE.bipolar()))
    assert float(pairs[3].abs()) < 0.6 * float(alone[3].abs())


def tail_by_quadrature(stimulus: Stimulus, at_s: float, tail_s: float) -> float:
    """Voltage that the tail has at one moment, by integrating over the second phases: no closed form."""
    width = float(stimulus.pulse_width_us) * 1e-6
    period = 1 / float(stimulus.frequency_hz)
    first = float(stimulus.onset_s) + width + float(stimulus.interphase_us) * 1e-6
    total = 0.0
    for k in range(int(stimulus.pulses)):
        begin, end = first + k * period, min(first + k * period + width, at_s)
        if end > begin:
            total += quad(lambda s: math.exp(-(at_s - s) / tail_s) / tail_s, begin, end, epsabs=1e-14)[0]
    return total


@pytest.mark.parametrize("tail_s", [2e-4, 5e-3, 0.3])
def test_the_tail_is_the_exponential_of_all_pulses_before(tail_s):
    stimulus = train(interphase_us=100.0)
    times = [0.0, 0.01731, 0.01765, 0.018, 0.034, 0.05, 0.0671, 0.0678, 0.09, 0.2]
    middle, apart = torch.tensor(times, dtype=torch.float64), 1e-7
    _, before = late_phase_seconds(stimulus, middle - apart, tail_s)
    _, after = late_phase_seconds(stimulus, middle + apart, tail_s)
    expected = torch.tensor([tail_by_quadrature(stimulus, t, tail_s) for t in times], dtype=torch.float64)
    torch.testing.assert_close((after - before) / (2 * apart), expected, rtol=1e-3, atol=1e-6)  # a difference quotient


@pytest.mark.parametrize("rate_hz", [100.0, 333.0, 500.0, 30_000.0])
@pytest.mark.parametrize("onset_s", [0.0, 0.0173, 0.01739])
def test_the_charge_of_the_artefact_is_the_same_however_samples_fall(rate_hz, onset_s):
    artefact = Artefact(torch.ones(1, 5, dtype=torch.float64), late=0.4, tail_s=4e-3)
    stimulus = train(onset_s=onset_s, pulses=5)
    one = replace(stimulus, amplitude_ma=stimulus.amplitude_ma * torch.eye(5, dtype=torch.float64)[1])
    seen = artefact.seen_ma(one, rate_hz, round(0.3 * rate_hz))[1]
    assert abs(float(seen.sum()) / rate_hz) < 1e-15  # mA s, of 2e-6 delivered: what is owed is paid, tails are over
    tail_only = seen - (artefact_without_tail(artefact).seen_ma(one, rate_hz, round(0.3 * rate_hz))[1])
    moment = (tail_only * torch.arange(len(seen), dtype=torch.float64)).sum() / rate_hz**2
    # mean lateness of what is owed is tail_s: first moment -late A w n tail_s, to within half a bin's place
    owed = 0.4 * 2.0 * 200e-6 * 5
    assert abs(float(moment) + owed * 4e-3) < owed * 0.5 / rate_hz + 1e-12


def artefact_without_tail(artefact: Artefact) -> Artefact:
    return replace(artefact, late=0.0)


def test_a_spike_is_followed_by_an_opposite_tail_that_falls_with_its_time_constant():
    artefact = Artefact(torch.ones(1, 5, dtype=torch.float64), late=0.3, tail_s=10e-3)
    case = pulse_train(MONTAGE, "A1", amplitude_ma=2.0, pulses=1, onset_s=0.0101)
    seen = artefact.applied(silence(1, 1), sensed(1, case))[0, 0]
    assert int(seen.abs().argmax()) == 5  # 10.1 ms lie in the bin from 10 ms on
    assert float(seen[5]) < 0 < float(seen[6])
    fall = seen[7:40] / seen[6:39]
    torch.testing.assert_close(fall, torch.full_like(fall, math.exp(-0.2)))


def test_a_silent_stimulus_has_no_artefact():
    assert not Artefact(artefact_coupling(MONTAGE)).applied(silence(2), sensed(2)).any()


@pytest.mark.parametrize("name", ["amplitude_ma", "frequency_hz", "pulse_width_us", "onset_s", "interphase_us"])
def test_gradients_of_the_artefact_match_finite_differences(name):
    artefact = Artefact(artefact_coupling(MONTAGE), late=0.3)
    weight = torch.rand(5, 250, generator=generator(1), dtype=torch.float64)
    start = train(interphase_us=150.0)

    def score(value):
        return (weight * artefact.applied(silence(), sensed(1, replace(start, **{name: value})))[0]).sum()

    at = getattr(start, name)
    step = 1e-5 * float(at.abs().max())
    value = at.clone().requires_grad_()
    (slope,) = torch.autograd.grad(score(value), value)
    numeric = (score(at + step) - score(at - step)) / (2 * step)
    torch.testing.assert_close(slope.sum(), numeric, rtol=1e-5, atol=1e-6 * float(numeric.abs() + 1))


def test_a_coupling_for_other_channels_is_refused():
    with pytest.raises(ShapeError, match="montage that is sensed"):
        Artefact(artefact_coupling(MONTAGE.bipolar())).applied(silence(), sensed(1, train()))


def test_an_artefact_needs_places():
    with pytest.raises(MontageError, match="B1"):
        artefact_coupling(monopolar([Contact("B1")]))


def test_the_band_is_three_decibels_down_at_its_edges():
    samples = 4000
    impulse = silence(1, 1, samples)
    impulse[..., 1], impulse[..., 51] = 1.0, -1.0  # a mean of zero and a first sample of zero: nothing was before
    frequency = torch.fft.rfftfreq(samples, 1 / RATE_HZ, dtype=torch.float64)
    for part, edge in ((Band(low_hz=5.0), 5.0), (Band(high_hz=105.0), 105.0), (Band(high_hz=105.0, order=4), 105.0)):
        gain = (torch.fft.rfft(part.applied(impulse, sensed())) / torch.fft.rfft(impulse))[0, 0].abs()
        assert float(gain[frequency == edge]) == pytest.approx(math.sqrt(0.5), rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("high_hz", [80.0, RATE_HZ / 4], ids=str)  # at a quarter of the rate a pole lies at zero
def test_the_band_filters_as_scipy_does(order, high_hz):
    wave = torch.randn(1, 2, 300, generator=generator(2), dtype=torch.float64)
    wave = wave - wave.mean(-1, keepdim=True)
    ours = Band(1.0, high_hz, order=order).applied(wave, sensed())
    edges = ((1.0, "highpass"), (high_hz, "lowpass"))
    high, low = (filters.butter(order, edge, kind, fs=RATE_HZ, output="sos") for edge, kind in edges)
    passed = filters.sosfilt(high, wave.numpy())
    stood = filters.sosfilt_zi(low)[:, None, None] * passed[None, :, :, :1]  # at its first value
    theirs, _ = filters.sosfilt(low, passed, zi=stood)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-12)


def test_a_constant_offset_is_taken_away_without_a_transient_or_passed_whole():
    offset = silence() + 300.0
    assert float(Band(low_hz=0.3).applied(offset, sensed()).abs().max()) < 1e-9
    torch.testing.assert_close(Band(high_hz=100.0).applied(offset, sensed()), offset)


def test_an_edge_beyond_half_the_sampling_rate_is_refused():
    with pytest.raises(BandError, match="250"):
        Band(high_hz=300.0).applied(silence(), sensed())
    with pytest.raises(BandError, match="ordered"):
        Band(50.0, 10.0).applied(silence(), sensed())


def test_the_rails_clip_and_are_left_after_the_recovery():
    signal = silence(1, 1, 12)
    signal[0, 0] = torch.tensor([0, 1, 9, 2, 2, 2, 2, -7, -8, 1, 1, 1], dtype=torch.float64)
    read = Saturation(5.0, recovery_s=2 / RATE_HZ).applied(signal, sensed())[0, 0]
    assert read.tolist() == [0, 1, 5, 5, 5, 2, 2, -5, -5, -5, -5, 1]
    assert Saturation(5.0).applied(signal, sensed())[0, 0].tolist() == [0, 1, 5, 2, 2, 2, 2, -5, -5, 1, 1, 1]


def test_saturation_passes_gradients_where_it_does_not_clip():
    signal = (3 * torch.ones(1, 1, 6, dtype=torch.float64)).requires_grad_()
    loud = signal * torch.tensor([1.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    Saturation(5.0, recovery_s=1 / RATE_HZ).applied(loud, sensed()).sum().backward()
    assert signal.grad[0, 0].tolist() == [1, 0, 0, 1, 1, 1]


def test_soft_saturation_is_gentle_to_small_signals_and_bounds_large_ones():
    signal = torch.tensor([[[400.0, -400.0, 1e6]]], dtype=torch.float64)
    read = SoftSaturation(8000.0).applied(signal, sensed())[0, 0]
    torch.testing.assert_close(read[0], torch.tensor(400.0, dtype=torch.float64), rtol=1e-3, atol=0)
    assert float(read[1]) == -float(read[0])
    assert float(read[2]) == 8000.0


def test_a_lost_contact_reads_noise_and_no_tissue_in_every_channel_that_reads_it():
    pairs = MONTAGE.bipolar()
    lost = lost_channels(pairs, ["A3"])
    assert lost.tolist() == [False, True, True, False]
    loud = silence(50, 4) + 1000.0
    read = LostContacts(lost, noise_uv=20.0).applied(loud, sensed(50))
    assert bool((read[:, [0, 3]] == 1000.0).all())
    assert abs(float(read[:, 1].std()) - 20.0) < 4 * 20.0 / math.sqrt(2 * read[:, 1].numel())
    assert abs(float(read[:, 1].mean())) < 1.0


def test_rows_may_lose_contacts_of_their_own():
    lost = torch.tensor([[True, False, False, False, False], [False, False, False, False, True]])
    read = LostContacts(lost).applied(silence(2) + 1000.0, sensed(2))
    assert (read.mean(-1) > 900).tolist() == (~lost).tolist()


def test_an_unknown_contact_cannot_be_lost():
    with pytest.raises(MontageError, match="X1"):
        lost_channels(MONTAGE, ["X1"])


def test_the_common_average_leaves_nothing_that_all_channels_share():
    own = torch.randn(1, 5, 250, generator=generator(3), dtype=torch.float64)
    shared = own + torch.sin(torch.arange(250, dtype=torch.float64))
    torch.testing.assert_close(CommonAverage().applied(shared, sensed()), own - own.mean(-2, keepdim=True))


def test_a_lost_channel_can_be_left_out_of_the_average():
    left_out = lost_channels(MONTAGE, ["A2"])
    signal = silence() + 7.0
    signal[:, 1] = 1e5
    read = CommonAverage(left_out).applied(signal, sensed())
    assert not read[:, [0, 2, 3, 4]].any()
    with pytest.raises(ConfigError, match="every channel"):
        CommonAverage(left_out | True).applied(signal, sensed())


def test_a_delay_shifts_and_holds_the_first_sample_before():
    ramp = torch.arange(10, dtype=torch.float64).expand(1, 1, 10) + 3
    assert Delay(0.006).applied(ramp, sensed())[0, 0].tolist() == [3, 3, 3, 3, 4, 5, 6, 7, 8, 9]
    halves = Delay(0.003).applied(ramp, sensed())[0, 0]
    torch.testing.assert_close(halves, torch.tensor([3, 3, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5]).double())
    assert torch.equal(Delay(0.0).applied(ramp, sensed()), ramp)
    assert bool((Delay(5.0).applied(ramp, sensed()) == 3).all())


def test_nothing_is_read_before_it_happens():
    with pytest.raises(ConfigError, match="before it happens"):
        Delay(-0.001)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Saturation(0.0),
        lambda: SoftSaturation(-1.0),
        lambda: Background(exponent=-1.0),
        lambda: Artefact(artefact_coupling(MONTAGE), late=1.5),
    ],
)
def test_impossible_parts_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_the_clinical_amplifier_has_artefact_hum_and_rails_and_stays_finite():
    strong = sensed(2, train(amplitude_ma=8.0))
    signal = silence(2)
    for part in clinical_amplifier(MONTAGE):
        signal = part.applied(signal, strong)
    assert bool(signal.isfinite().all())
    assert float(signal.abs().max()) == 8192.0  # the stimulated contacts reach the rails
