"""Dose models: right where the truth is known, honest about their spread, and blind to the unit of the outcome."""

import math

import pytest
import torch

from stimopt import plugins
from stimopt.dose_protocol import DOSE_MODELS
from stimopt.dose_trials import DoseTrials
from stimopt.montage import NO_MONTAGE
from stimopt.skill import gaussian_crps
from stimopt.space import Parameter, StimulationSpace
from stimopt.stimulus import table_stimulus
from stimopt.tensors import generator

NAMES = plugins.names("dose_models")
DOSES = (1.0, 2.0, 4.0, 8.0)


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(-1)


def trials(settings, outcome, names=("current",)):
    """Trials whose space holds what was set, and doses 3 and 5 besides, as a space does that holds held-out ones."""
    choices = [tuple(sorted({*settings[:, i].tolist(), 3.0, 5.0})) for i in range(len(names))]
    knobs = tuple(Parameter(name, "ordinal", choices=own) for name, own in zip(names, choices, strict=True))
    template = table_stimulus(NO_MONTAGE, torch.zeros(len(names), dtype=torch.float64), names)
    return DoseTrials(StimulationSpace(knobs, template), settings, outcome.double())


def fitted(name, past):
    return plugins.find("dose_models", name)(past)


def many(mean_at, repeats, sd, seed):
    """Gaussian trials at four doses."""
    settings = column(*DOSES).repeat(repeats, 1)
    noise = torch.randn(len(settings), generator=generator(seed, "noise"), dtype=torch.float64)
    return trials(settings, mean_at(settings[:, 0]) + sd * noise)


def hill(dose):
    return 1 + 2 * dose**2 / (9 + dose**2)


def test_the_models_of_the_protocol_can_all_be_named():
    assert set(DOSE_MODELS) <= set(NAMES)


def test_without_a_dose_the_forecast_is_the_mean_of_the_past():
    forecast = fitted("no-dose", trials(column(1, 2, 4), torch.tensor([1.0, 2.0, 6.0])))(column(1, 5, 4))
    assert forecast.mean.tolist() == [3.0, 3.0, 3.0]
    assert forecast.scale.tolist() == pytest.approx([math.sqrt(7 * 4 / 3)] * 3)  # variance 7, one mean of three trials


def test_a_setting_never_tried_gets_the_mean_of_the_nearest_ones():
    curve = fitted("setting-means", trials(column(1, 1, 4, 6), torch.tensor([1.0, 3.0, 7.0, 9.0])))
    assert curve(column(1, 4, 3, 5)).mean.tolist() == pytest.approx([2.0, 7.0, 7.0, 8.0])


def test_a_line_in_the_logarithm_is_found_and_a_dose_of_zero_is_half_of_the_smallest():
    doses = column(*DOSES)
    curve = fitted("log-linear", trials(doses, 2 + 3 * doses[:, 0].log()))
    assert curve(column(3, 16)).mean.tolist() == pytest.approx([2 + 3 * math.log(3), 2 + 3 * math.log(16)])
    assert curve(column(0)).mean.tolist() == pytest.approx([2 + 3 * math.log(0.5)])


def test_one_dose_alone_has_no_slope():
    curve = fitted("log-linear", trials(column(2, 2), torch.tensor([1.0, 3.0])))
    assert curve(column(3)).mean.tolist() == pytest.approx([2.0])


def test_a_monotone_curve_pools_doses_that_are_out_of_order():
    curve = fitted("monotone", trials(column(1, 2, 4, 8), torch.tensor([1.0, 3.0, 2.0, 4.0])))
    assert curve(column(1, 2, 4, 8)).mean.tolist() == pytest.approx([1.0, 2.5, 2.5, 4.0])
    assert curve(column(0.5, 6, 20)).mean.tolist() == pytest.approx([1.0, 3.25, 4.0])


@pytest.mark.parametrize("seed", range(5))
def test_a_monotone_curve_never_falls(seed):
    past = many(lambda dose: -0.2 * dose, 3, 1.0, seed)  # the truth falls, so the data try their best
    mean = fitted("monotone", past)(torch.linspace(0, 10, 200, dtype=torch.float64).unsqueeze(-1)).mean
    assert float(mean.diff().min()) >= 0


def test_a_curve_that_saturates_is_found_between_and_beyond_the_doses():
    doses = column(0, *DOSES)
    curve = fitted("saturating", trials(doses, hill(doses[:, 0])))
    asked = column(0, 1.5, 3, 5, 8, 16)
    # the grid's steps of 6 % in the half dose and the coefficient leave less than 1 % of the rise of 2
    assert torch.allclose(curve(asked).mean, hill(asked[:, 0]), atol=0.02)
    falling = fitted("saturating", trials(doses, -hill(doses[:, 0])))
    assert torch.allclose(falling(asked).mean, -hill(asked[:, 0]), atol=0.02)


def test_a_sham_that_was_left_out_is_not_missed_by_much_more_than_the_curve_rises():
    doses = column(10, 20, 30, 40, 50)
    curve = fitted("saturating", trials(doses, torch.tensor([1.0, 1.1, 1.08, 1.1, 1.12])))
    assert abs(float(curve(column(0)).mean) - 1) < 0.3


@pytest.mark.parametrize("name", ["log-linear", "monotone", "saturating"])
def test_each_frequency_has_a_curve_of_its_own_and_a_new_one_that_of_all(name):
    doses = column(*DOSES).repeat(2, 1)
    frequency = torch.tensor([3.0] * 4 + [5.0] * 4, dtype=torch.float64).unsqueeze(-1)
    outcome = hill(doses[:, 0]) * torch.where(frequency[:, 0] == 3, 1.0, 3.0)
    curve = fitted(name, trials(torch.cat([doses, frequency], -1), outcome, ("current", "frequency")))

    def asked(hz):
        return curve(torch.cat([column(*DOSES), torch.full((4, 1), hz, dtype=torch.float64)], -1)).mean

    assert torch.allclose(asked(5.0), 3 * asked(3.0), rtol=0.02)
    assert torch.allclose(asked(4.0), 2 * asked(3.0), rtol=0.02)


def test_the_gaussian_process_forecasts_a_dose_between_those_tried():
    past = many(hill, 10, 0.1, seed=0)
    forecast = fitted("gaussian-process", past)(column(3, 4))
    assert forecast.mean.tolist() == pytest.approx(hill(torch.tensor([3.0, 4.0])).tolist(), abs=0.15)
    assert forecast.scale[0] > forecast.scale[1] > 0.08  # more doubt where nothing was tried, never less than the noise


@pytest.mark.parametrize("name", NAMES)
def test_ninety_percent_intervals_hold_ninety_percent(name):
    truth = torch.ones_like if name == "no-dose" else torch.log  # every other model can follow a logarithm
    curve = fitted(name, many(truth, 100, 0.3, seed=1))
    new = many(truth, 2000, 0.3, seed=2)
    forecast = curve(new.settings)
    inside = ((new.outcome - forecast.mean).abs() <= 1.6449 * forecast.scale).double().mean()
    # the spread of 400 trials is known to 3.5 %, which is 1.5 % of coverage; two of those
    assert 0.87 < float(inside) < 0.93


@pytest.mark.parametrize("name", NAMES)
def test_an_outcome_in_another_unit_gives_the_same_forecast_in_that_unit(name):
    past = many(hill, 5, 0.2, seed=3)
    asked = column(1, 3, 8)
    one = fitted(name, past)(asked)
    other = fitted(name, DoseTrials(past.space, past.settings, 1000 * past.outcome))(asked)
    assert torch.allclose(other.mean, 1000 * one.mean, rtol=1e-4)
    assert torch.allclose(other.scale, 1000 * one.scale, rtol=1e-4)


def test_the_score_of_a_gaussian_is_that_of_its_closed_form():
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    at_its_mean = math.sqrt(2 / math.pi) - 1 / math.sqrt(math.pi)  # Gneiting and Raftery 2007, equation 21, at z = 0
    assert gaussian_crps(zero, 2 * one, zero).tolist() == pytest.approx([2 * at_its_mean])
    assert gaussian_crps(zero, 1e-9 * one, 3 * one).tolist() == pytest.approx([3.0])  # without spread, the distance
