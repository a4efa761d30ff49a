"""Current to input and potential to voltage: fields, polarity, charge, lead fields, units."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from stimopt.errors import ConfigError, MontageError
from stimopt.montage import Contact, monopolar
from stimopt.simulators import JansenRit, distance_sensing, point_source_drive, point_source_potential, simulate
from stimopt.simulators.drive import pulse_shares, train_shares
from stimopt.simulators.entry import Entry, entries_of
from stimopt.stimulus import no_stimulus, pulse_train
from stimopt.tensors import generator, row_keys

PAIR = monopolar([Contact("A1", (0.0, 0.0, 0.0), shaft="A"), Contact("A2", (3.5, 0.0, 0.0), shaft="A")])


def places(*points: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(points, dtype=torch.float64)


def train(contacts: str = "A1", **changes: float):
    numbers = {"amplitude_ma": 2.0, "frequency_hz": 40.0, "pulse_width_us": 200.0, "pulses": 4, "onset_s": 0.0103}
    return pulse_train(PAIR, contacts, **{**numbers, **changes})


def test_one_milliampere_at_ten_millimetres_gives_26_millivolts():
    """I / (4 pi sigma r) = 1e-3 A / (4 pi 0.3 S/m 0.01 m) = 26.5 mV."""
    potential = point_source_potential(places((0.0, 0.0, 0.0)), places((10.0, 0.0, 0.0)))
    assert abs(float(potential) - 26.526) < 0.001


def test_the_potential_does_not_grow_within_a_millimetre_of_the_contact():
    near, edge = point_source_potential(places((0.0, 0.0, 0.0)), places((0.1, 0.0, 0.0), (1.0, 0.0, 0.0)))
    torch.testing.assert_close(near, edge)


def test_the_field_of_a_pair_falls_with_the_square_of_distance_and_of_one_contact_with_distance():
    drive = point_source_drive(PAIR, places((51.75, 0.0, 0.0), (101.75, 0.0, 0.0)))  # 50 and 100 mm from the middle
    alone = drive.field_mv(train("A1")).abs()
    pair = drive.field_mv(train("A1-A2")).abs()
    assert abs(float(alone[0] / alone[1]) - 101.75 / 51.75) < 1e-9
    assert abs(float(pair[0] / pair[1]) - 4.0) < 0.01  # a dipole; 3.5 mm against 50 mm leaves a thousandth


def test_swapping_the_contacts_of_a_pair_mirrors_its_field():
    drive = point_source_drive(PAIR, places((1.0, 4.0, 0.0), (9.0, 0.0, 2.0)))
    torch.testing.assert_close(drive.field_mv(train("A1-A2")), -drive.field_mv(train("A2-A1")))


def test_a_train_brings_the_spikes_of_its_pulses_whatever_the_step():
    drive = point_source_drive(PAIR, places((3.0, 2.0, 0.0)))
    expected = 4 * drive.arriving_spikes(train()).sum(-2)  # four pulses, both phases
    for dt_s, steps in ((1e-3, 150), (5e-4, 300)):
        firing_hz = drive.firing_hz(train(), dt_s, steps)
        torch.testing.assert_close(firing_hz[:, 1].sum(0) * dt_s, expected, rtol=1e-9, atol=0.0)


def test_a_cathodic_phase_counts_four_times_an_anodic_one():
    drive = point_source_drive(PAIR, places((3.0, 2.0, 0.0)))
    cathodic_first, anodic_first = (drive.arriving_spikes(train(amplitude_ma=a))[..., 0] for a in (2.0, -2.0))
    assert drive.anodic_gain == 0.25
    torch.testing.assert_close(cathodic_first[0], 4 * anodic_first[0])
    torch.testing.assert_close(cathodic_first[1], anodic_first[1] / 4)


def test_axons_at_half_the_potential_and_twice_the_chronaxie_are_recruited_by_weiss_law():
    drive = point_source_drive(PAIR, places((10.0, 0.0, 0.0)), half_mv=2 * 26.525823)
    stimulus = train(amplitude_ma=3.0, pulse_width_us=2 * drive.chronaxie_us)
    assert abs(float(drive.recruited(stimulus)) - 0.5) < 1e-6  # 79.58 mV over 53.05 mV, times 2/3, is 1


def test_no_more_than_all_axons_are_recruited_and_none_by_silence():
    drive = point_source_drive(PAIR, places((1.0, 1.0, 0.0)))
    assert 0.9 < float(drive.recruited(train(amplitude_ma=50.0))) < 1.0
    assert not drive.firing_hz(no_stimulus(PAIR), 1e-3, 20).any()


def test_what_arrives_per_second_is_largest_at_the_rate_that_axons_can_follow():
    drive = point_source_drive(PAIR, places((3.0, 2.0, 0.0)), follow_hz=70.0)
    rates = [60.0, 70.0, 80.0]
    arriving = [f * float(drive.arriving_spikes(train(frequency_hz=f)).sum()) for f in rates]
    assert max(arriving) == arriving[1]


def test_a_drive_needs_the_places_of_all_contacts():
    lost = monopolar([Contact("A1"), Contact("A2", (0.0, 0.0, 0.0))])
    with pytest.raises(MontageError, match="A1"):
        point_source_drive(lost, places((1.0, 0.0, 0.0)))


def test_one_millivolt_at_a_contact_reads_a_hundred_microvolts_and_half_at_the_reach():
    montage = monopolar([Contact("A1", (0.0, 0.0, 0.0)), Contact("A2", (3.0, 0.0, 0.0))])
    sensing = distance_sensing(montage, places((0.0, 0.0, 0.0)))
    one_mv = torch.ones(1, 5, dtype=torch.float64)
    torch.testing.assert_close(sensing.clean_uv(one_mv)[:, 0], torch.tensor([100.0, 50.0], dtype=torch.float64))


def test_a_bipolar_channel_reads_the_difference_of_its_contacts():
    sources = places((1.0, 2.0, 0.0), (6.0, 1.0, 1.0))
    alone, pair = (distance_sensing(montage, sources) for montage in (PAIR, PAIR.bipolar()))
    potential = torch.rand(2, 7, generator=generator(0), dtype=torch.float64)
    one, two = alone.clean_uv(potential)
    torch.testing.assert_close(pair.clean_uv(potential)[0], one - two)


def test_the_amplifiers_noise_has_the_size_it_says_in_microvolts():
    sensing = replace(distance_sensing(PAIR, places((1.0, 0.0, 0.0))), noise_uv=5.0)
    keys = row_keys((40,), generator(0))
    potential, silence = torch.zeros(40, 1, 250, dtype=torch.float64), no_stimulus(PAIR, (40,))
    signal = sensing.signal_uv(potential, silence, 500.0, keys=keys, salt=3)
    assert abs(float(signal.std()) - 5.0) < 4 * 5.0 / math.sqrt(2 * signal.numel())


def test_the_field_of_many_contacts_is_the_sum_of_theirs():
    """Tripolar, steered: half of the current returns on each side."""
    three = monopolar([Contact(f"A{i}", (3.5 * i, 0.0, 0.0)) for i in range(3)])
    drive = point_source_drive(three, places((4.0, 3.0, 1.0), (12.0, -2.0, 0.0)))
    field = torch.tensor([0.7, -1.4, 0.7], dtype=torch.float64)
    steered = replace(pulse_train(three, "A1", amplitude_ma=1.0), amplitude_ma=field)
    alone = [drive.field_mv(pulse_train(three, f"A{i}", amplitude_ma=-float(field[i]))) for i in range(3)]
    torch.testing.assert_close(drive.field_mv(steered), sum(alone))


def test_a_region_of_extent_sees_the_mean_potential_of_its_tissue():
    """1/r is harmonic: the mean over a ball is its centre's. Three points an axis miss 0.6 % at three spreads."""
    centre = places((10.0, 0.0, 0.0), (0.0, 15.0, 3.0))
    point, ball = (point_source_drive(PAIR, centre, spread_mm=spread) for spread in (0.0, 2.0))
    torch.testing.assert_close(ball.potential_mv_per_ma, point.potential_mv_per_ma, rtol=1e-2, atol=0.0)
    assert float(ball.point_share.sum()) == pytest.approx(1.0, abs=1e-12)


def test_a_region_of_extent_is_recruited_more_gently_than_a_point():
    """Twice the spread of distances: weak currents already reach its near edge, strong ones miss its far edge."""
    centre = places((6.0, 0.0, 0.0))
    point, ball = (point_source_drive(PAIR, centre, spread_mm=spread) for spread in (0.0, 2.5))
    weak, strong = train(amplitude_ma=0.3), train(amplitude_ma=9.0)
    assert float(ball.recruited(weak)) > 1.1 * float(point.recruited(weak))
    assert float(ball.recruited(strong)) < 0.99 * float(point.recruited(strong))


def test_both_polarities_are_counted_where_a_region_lies_across_a_pair():
    """A region half way between the poles of a pair: as a point it sees no field, as a ball both signs alike."""
    middle = places((1.75, 0.0, 0.0))
    point, ball = (point_source_drive(PAIR, middle, spread_mm=spread) for spread in (0.0, 2.0))
    assert float(point.arriving_spikes(train("A1-A2")).sum()) < 1e-12
    first, second = ball.arriving_spikes(train("A1-A2"))[..., 0]
    assert float(first) > 0.1
    torch.testing.assert_close(first, second)


SPLIT = (
    Entry(afferent_hz=1.0),
    Entry(cathodic_hz=1.0),
    Entry(anodic_hz=1.0),
    Entry(cathodic_mv=1.0),
    Entry(anodic_mv=1.0),
    Entry(cathodic_mv=0.1, anodic_mv=-0.1),
)


def test_cathodic_and_anodic_recruitment_can_be_sent_apart():
    drive = point_source_drive(PAIR, places((3.0, 2.0, 0.0), (8.0, 1.0, 0.0)))
    firing, cathodic, anodic = drive.input(train(), SPLIT, 1e-3, 150).unbind(-1)[:3]
    torch.testing.assert_close(firing, cathodic + drive.anodic_gain * anodic)
    torch.testing.assert_close(firing, drive.firing_hz(train(), 1e-3, 150))
    arriving = 1e-3 * torch.stack([cathodic[:, 1].sum(0), anodic[:, 1].sum(0)])  # spikes over the train
    followed = 1 / (1 + (40.0 / drive.follow_hz) ** 2)
    expected = 4 * drive.spikes * followed * drive.recruited(train())
    torch.testing.assert_close(arriving, torch.stack([expected, expected]), rtol=1e-9, atol=0.0)


def test_a_train_polarises_by_the_time_that_its_phases_last():
    """2 mA at 10 mm lower the potential by 53 mV for 4 pulses of 200 us, then raise it as long."""
    drive = point_source_drive(PAIR, places((-10.0, 0.0, 0.0)))
    lowered, raised, balanced = drive.input(train(), SPLIT, 1e-3, 150)[..., 3:].unbind(-1)
    for potential in (lowered, raised):
        assert float(potential[:, 1].sum()) * 1e-3 == pytest.approx(53.0516 * 4 * 200e-6, rel=1e-5)
    assert float(balanced[:, 1].sum().abs()) < 1e-12
    assert float(balanced.abs().max()) > 0.1  # not averaged away within a step when a phase fills a fifth of it


def test_a_train_without_pulses_brings_as_many_spikes_as_one_with_them():
    drive = point_source_drive(PAIR, places((3.0, 2.0, 0.0)))
    smooth = replace(drive, shares=train_shares).firing_hz(train(), 1e-3, 150)
    pulsed = drive.firing_hz(train(), 1e-3, 150)
    torch.testing.assert_close(smooth[:, 1].sum(0), pulsed[:, 1].sum(0), rtol=1e-9, atol=0.0)
    inside = smooth[15:105, 1, 0]  # from 10.3 to 110.3 ms: four periods at 40 Hz
    torch.testing.assert_close(inside, inside[:1].expand_as(inside))
    assert not smooth[:10].any()
    assert not smooth[111:].any()


@pytest.mark.parametrize("knob", ["frequency_hz", "pulse_width_us", "onset_s", "amplitude_ma"])
def test_a_train_without_pulses_has_the_gradients_of_finite_differences(knob):
    drive = replace(point_source_drive(PAIR, places((3.0, 2.0, 0.0))), shares=train_shares)
    base = train(frequency_hz=41.7, onset_s=0.01234)
    weigh = torch.linspace(1.0, 2.0, 150, dtype=torch.float64)

    def arriving(value: torch.Tensor) -> torch.Tensor:
        return drive.firing_hz(replace(base, **{knob: value}), 1e-3, 150)[:, 1, 0] @ weigh

    assert torch.autograd.gradcheck(arriving, getattr(base, knob).clone().requires_grad_(), rtol=1e-5)


TRAINS_HZ = (20.0, 30.0, 80.0, 130.0)


@cache
def column_responses() -> tuple[torch.Tensor, torch.Tensor]:
    """One second at 20 afferent spikes a second, with pulses and without, [train, column, time].

    Two Jansen-Rit columns after 1 s alone: one that rests, one in its alpha rhythm.
    """
    drive = replace(point_source_drive(PAIR, places((3.0, 2.0, 0.0), (3.0, 2.0, 0.0))), follow_hz=1e9)
    frequency_hz, count = torch.tensor(TRAINS_HZ, dtype=torch.float64), len(TRAINS_HZ)
    stimuli = replace(train(onset_s=0.0).expand(count), frequency_hz=frequency_hz, pulses=frequency_hz)
    size = 20.0 / (frequency_hz * float(drive.arriving_spikes(train())[:, 0].sum()))
    columns = JansenRit(torch.tensor([60.0, 150.0], dtype=torch.float64))
    settled = simulate(columns, columns.rest, dt_s=1e-3, steps=1000).end.expand(2 * count, 2, 6)
    drives = [replace(drive, shares=shares) for shares in (pulse_shares, train_shares)]
    inputs = [one.input(stimuli, (Entry(afferent_hz=1.0), Entry()), 1e-3, 1000) for one in drives]
    both = torch.cat([one * size[:, None, None] for one in inputs], 2)
    played = simulate(columns, settled, dt_s=1e-3, drive=both, reading=columns.potential_mv)
    pulsed, smooth = played.readings.chunk(2)
    return pulsed, smooth


def test_above_80_hz_a_resting_column_answers_a_train_as_it_answers_its_pulses():
    """Pulses leave a ripple of 2 / (1 + (2 pi f / a)^2) through the synapse's filter: 7 % at 80 Hz, 3 at 130."""
    pulsed, smooth = (both[:, 0] for both in column_responses())
    response = (smooth[:, 400:].mean(-1) - smooth[:, 0]).abs()
    means = (pulsed - smooth)[:, 400:].mean(-1).abs() / response
    ripple = (pulsed - smooth)[:, 400:].abs().amax(-1) / response
    assert float(means[2:].max()) < 0.01
    assert float(ripple[2]) < 0.12
    assert float(ripple[3]) < 0.05
    assert float(ripple[1]) > 0.4  # at 30 Hz they are different stimuli


def test_above_80_hz_an_alpha_rhythm_has_the_same_power_under_a_train_as_under_its_pulses():
    window = torch.hann_window(600, dtype=torch.float64)
    lasting = [both[:, 1, 400:] for both in column_responses()]
    spectra = [torch.fft.rfft((p - p.mean(-1, keepdim=True)) * window).abs().square() for p in lasting]
    alpha = [spectrum[:, 4:9].sum(-1).log10() for spectrum in spectra]  # 7 to 13 Hz
    difference = (alpha[0] - alpha[1]).abs()
    assert float(difference[2:].max()) < 0.03  # decades
    assert float(difference[0]) > 0.05  # 20 Hz, a harmonic of the rhythm, entrains it


def test_a_number_as_entry_is_all_firing_and_the_first_input_takes_it_unless_told():
    assert entries_of(None, ("afferents_hz", "pyramidal_mv")) == (Entry(1.0, sensory_hz=1.0), Entry())
    assert entries_of({"pyramidal_mv": -0.2}, ("afferents_hz", "pyramidal_mv"))[1] == Entry(-0.2, sensory_hz=-0.2)
    with pytest.raises(ConfigError, match="afferents_hz, pyramidal_mv"):
        entries_of({"current": 1.0}, ("afferents_hz", "pyramidal_mv"))
