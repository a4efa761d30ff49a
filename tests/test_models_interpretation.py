"""Virtual experiments on a forecaster whose answers are known."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from stimopt.errors import ConfigError, DataError, MontageError, ShapeError
from stimopt.forecaster import Context, Forecaster, GaussianForecast
from stimopt.models.interpretation import (
    compare_connectivity,
    distance_decay,
    dose_response,
    monotonicity,
    played_pulses,
    reciprocity,
    site_distance_mm,
    site_names,
    unstimulated,
    virtual_pulses,
)
from stimopt.montage import Contact, monopolar
from stimopt.response import Response
from stimopt.system import System
from stimopt.tensors import generator, row_keys, row_noise

RATE_HZ, SAMPLES = 250.0, 50


def two_shafts():
    contacts = [
        Contact(f"{shaft}{i + 1}", (x, 8.0 * i, 0.0), 0.05, "depth", shaft)
        for shaft, x in (("A", 0.0), ("B", 60.0))
        for i in range(4)
    ]
    return monopolar(contacts, "test")


MONTAGE = two_shafts()
GAIN = 10.0 * torch.rand(8, 8, generator=generator(0, "gain"), dtype=torch.float64)  # uV per mA, [contact, channel]
WAVE = torch.sin(2 * math.pi * torch.arange(SAMPLES, dtype=torch.float64) / 25)  # of size 1 / sqrt(2)


@dataclass(frozen=True)
class Known(Forecaster):
    """Every cathode adds a sine of a known size to half the last sample of the context; currents wrap at a limit."""

    gain: Tensor
    limit_ma: float = math.inf

    def forecast(self, context, stimulus):
        level = context.signal_uv[..., -1:].double() / 2
        current = (-stimulus.amplitude_ma).clamp_min(0.0) * stimulus.pulses.clamp_max(1).unsqueeze(-1)
        current = torch.where(current > self.limit_ma, 2 * self.limit_ma - current, current)
        mean = level + (current @ self.gain).unsqueeze(-1) * WAVE
        template = Response(MONTAGE, mean, RATE_HZ)
        return GaussianForecast(template, torch.ones_like(mean), mean.new_zeros(*mean.shape[:-2], 0, *mean.shape[-2:]))


@dataclass(frozen=True)
class KnownSystem(System):
    """The same law with noise, which is that of each state's row."""

    gain: Tensor
    montage = MONTAGE
    window_s = SAMPLES / RATE_HZ

    def start(self, batch_shape, generator):
        return {"key": row_keys(batch_shape, generator)}

    def respond(self, state, stimulus, generator):
        current = (-stimulus.amplitude_ma).clamp_min(0.0) * stimulus.pulses.clamp_max(1).unsqueeze(-1)
        evoked = (current @ self.gain).unsqueeze(-1) * WAVE
        return Response(MONTAGE, evoked + 50 * row_noise(state["key"], (8, SAMPLES), 0, evoked), RATE_HZ), state


@pytest.fixture
def rest():
    return Context(MONTAGE, 30 * torch.randn(5, 8, 40, generator=generator(0, "rest")), RATE_HZ)


def contacts():
    return tuple(contact.name for contact in MONTAGE.contacts)


def test_pulses_at_every_contact_give_the_gain_back(rest):
    effect = virtual_pulses(Known(GAIN), rest, contacts(), amplitude_ma=2.0)
    assert torch.allclose(effect, 2.0 * GAIN / math.sqrt(2), rtol=1e-6)
    late = virtual_pulses(Known(GAIN), rest[0], contacts(), amplitude_ma=2.0, from_s=0.1)
    assert torch.allclose(late, effect, rtol=1e-6)  # a whole period from there


def test_more_pulses_than_fit_at_once_are_the_same(rest):
    many = replace(rest, signal_uv=rest.signal_uv.repeat(30, 1, 1))
    assert torch.allclose(virtual_pulses(Known(GAIN), many), virtual_pulses(Known(GAIN), rest))


def test_what_a_patient_plays_is_compared_on_the_same_noise():
    assert torch.allclose(played_pulses(KnownSystem(GAIN), amplitude_ma=-1.0)[0], GAIN[1] / math.sqrt(2), atol=1e-4)


def test_sites_are_pairs_of_neighbours_unless_named():
    assert site_names(MONTAGE) == ("A1-A2", "A2-A3", "A3-A4", "B1-B2", "B2-B3", "B3-B4")
    with pytest.raises(MontageError, match="no site"):
        site_names(MONTAGE, ())


def test_distances_and_touched_channels_of_a_site():
    assert site_distance_mm(MONTAGE, ["A1-A2"])[0, :3].tolist() == [4.0, 4.0, 12.0]
    assert unstimulated(MONTAGE, ["A1-A2", "B4"]).sum(-1).tolist() == [6, 7]


def test_a_matrix_is_compared_by_ranks_and_beyond_distance():
    distance = site_distance_mm(MONTAGE, contacts())
    noise = torch.rand(8, 8, generator=generator(1, "noise"), dtype=torch.float64)
    same = compare_connectivity(GAIN.exp(), GAIN, distance)
    assert same["rank_correlation"] == pytest.approx(1.0)
    assert same["rank_correlation_beyond_distance"] == pytest.approx(1.0)
    near, truth = -distance + 0.1 * GAIN, -distance + 5.0 * noise
    only = compare_connectivity(near, truth, distance, unstimulated(MONTAGE, contacts()))
    assert only["pairs"] == 56
    assert only["rank_correlation"] > 0.9
    assert abs(only["rank_correlation_beyond_distance"]) < 0.4  # 3 standard errors of 56 pairs
    assert math.isnan(compare_connectivity(torch.ones(8, 8), GAIN)["rank_correlation"])
    with pytest.raises(DataError, match="four or more"):
        compare_connectivity(GAIN, GAIN, distance, torch.zeros(8, 8).bool())


def test_a_dose_response_curve_is_monotone_until_it_falls(rest):
    doses = (0.5, 1.0, 2.0, 3.0)
    rising = dose_response(Known(GAIN), rest, "A2-A1", doses)
    assert torch.allclose(rising, torch.tensor(doses).double().unsqueeze(-1) * GAIN[1] / math.sqrt(2), rtol=1e-6)
    assert torch.allclose(monotonicity(rising), torch.ones(8).double())
    falling = monotonicity(dose_response(Known(GAIN, 2.0), rest, "A2-A1", doses))
    assert torch.allclose(falling, torch.full((8,), 1.5 / 2.5).double())  # up 1.5 mA, down 1 mA
    assert monotonicity(torch.zeros(3, 2)).isnan().all()
    with pytest.raises(ShapeError, match="two or more"):
        monotonicity(rising[:1])


def test_effects_are_binned_by_distance():
    distance = torch.tensor([[0.0, 20.0, 21.0, 100.0, 150.0, math.nan]])
    rows = distance_decay(torch.tensor([[9.0, 3.0, 2.0, 1.0, 0.6, 50.0]]), distance)
    assert [row["distance"] for row in rows] == ["<= 20 mm", "20 to 100 mm", "> 100 mm"]
    assert [row["pairs"] for row in rows] == [2, 2, 1]
    assert [row["mean_uv"] for row in rows] == pytest.approx([6.0, 1.5, 0.6])
    assert [row["of_nearest"] for row in rows] == pytest.approx([1.0, 0.25, 0.1])
    with pytest.raises(ConfigError, match="must rise"):
        distance_decay(distance, distance, bins_mm=(20.0, 10.0))


def test_a_symmetric_matrix_is_reciprocal_and_a_one_way_one_is_not():
    both = reciprocity(GAIN + GAIN.mT, MONTAGE, contacts())
    assert both["pairs"] == 28
    assert both["rank_correlation"] == pytest.approx(1.0)
    assert both["asymmetry"] == pytest.approx(0.0)
    one_way = reciprocity(torch.triu(GAIN + 5.0, 1), MONTAGE, contacts())
    assert one_way["rank_correlation"] < -0.5
    assert one_way["asymmetry"] == pytest.approx(1.0)


def test_windows_that_begin_late_or_leave_nothing_are_handled(rest):
    with pytest.raises(ShapeError, match="no sample"):
        virtual_pulses(Known(GAIN), rest, from_s=1.0)
