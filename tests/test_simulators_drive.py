"""Current to input and potential to voltage: fields, polarity, charge, lead fields, units."""

import math
from dataclasses import replace

import pytest
import torch

from stimopt.errors import MontageError
from stimopt.montage import Contact, monopolar
from stimopt.simulators import distance_sensing, point_source_drive, point_source_potential
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
