"""The network, the Gaussian process and what every forecaster here has in common."""

import time
from dataclasses import replace

import pytest
import torch
from linear_truth import RATE_HZ, linear_truth, shafts, silent_rows

from stimopt.errors import DataError, ShapeError, SpaceError
from stimopt.forecaster import Context, GaussianForecast, Trials
from stimopt.models import (
    ArxForecaster,
    GaussianProcessForecaster,
    IeegForecaster,
    MeanEvokedForecaster,
    PersistenceForecaster,
    StateSpaceForecaster,
    fit_arx,
    fit_gaussian_process,
    fit_ieeg_network,
    fit_mean_evoked,
    fit_no_effect,
    fit_persistence,
    fit_state_space,
)  # fmt: skip
from stimopt.models.ieeg_network import place_features, stimulus_features
from stimopt.montage import Contact, monopolar
from stimopt.response import Response
from stimopt.skill import crps, energy_score, held_out_skill, split_trials
from stimopt.stimulus import no_stimulus
from stimopt.tensors import generator, map_tensors
from stimopt.testing import check_forecaster

FITS = {
    "none": (PersistenceForecaster, fit_no_effect),
    "persistence": (PersistenceForecaster, fit_persistence),
    "evoked": (MeanEvokedForecaster, fit_mean_evoked),
    "arx": (ArxForecaster, lambda trials: fit_arx(trials, lags=8)),
    "state space": (StateSpaceForecaster, lambda trials: fit_state_space(trials, order=8)),
    "gaussian process": (GaussianProcessForecaster, lambda trials: fit_gaussian_process(trials, linear_truth(8).space)),
    "network": (IeegForecaster, lambda trials: fit_ieeg_network(trials, steps=60, members=2)),
}
DIFFERENTIABLE = ["arx", "state space", "gaussian process", "network"]


@pytest.fixture(scope="module")
def truth():
    return linear_truth(8)


@pytest.fixture(scope="module")
def trials(truth):
    return truth.trials(silent_rows(truth.random_stimuli(48, 1), 4), 1)


@pytest.fixture(scope="module")
def fitted(trials):
    return {name: fit(trials) for name, (_, fit) in FITS.items()}


@pytest.mark.parametrize("name", FITS)
def test_every_forecaster_keeps_the_contract(name, truth, trials, fitted):
    check_forecaster(
        fitted[name], trials.context[:4], truth.random_stimuli(4, 2), differentiable=name in DIFFERENTIABLE
    )


@pytest.mark.parametrize("name", FITS)
def test_one_context_serves_a_batch_of_stimuli(name, truth, trials, fitted):
    stimuli = truth.random_stimuli(6, 2).reshape(2, 3)
    context = Context(truth.montage, trials.context.signal_uv[0], RATE_HZ)
    forecast = fitted[name].forecast(context, stimuli)
    assert forecast.mean.shape == (2, 3, 8, 125)
    assert forecast.rsample(4, generator(0)).shape == (4, 2, 3, 8, 125)
    alone = fitted[name].forecast(context, stimuli[1][2]).mean
    assert torch.allclose(alone, forecast.mean[1, 2], atol=1e-8)


@pytest.mark.parametrize("name", FITS)
def test_the_forecast_has_the_dtype_of_the_stimulus(name, truth, trials, fitted):
    for dtype in (torch.float32, torch.float64):
        stimuli = truth.random_stimuli(3, 2).to(torch.zeros((), dtype=dtype))
        forecast = fitted[name].forecast(trials.context[:1], stimuli)
        assert isinstance(forecast, GaussianForecast)
        assert {forecast.mean.dtype, forecast.scale_uv.dtype, forecast.factors_uv.dtype} == {dtype}


@pytest.mark.parametrize("name", FITS)
def test_a_saved_forecaster_forecasts_the_same_to_the_last_bit(name, truth, trials, fitted, tmp_path):
    from stimopt.checkpoint import load_checkpoint, save_checkpoint

    kind = FITS[name][0]
    save_checkpoint(tmp_path / "model", "it", fitted[name], {})
    again = load_checkpoint(tmp_path / "model", {"it": kind})
    stimuli = truth.random_stimuli(5, 3)
    one, other = (f.forecast(trials.context[:1], stimuli) for f in (fitted[name], again))
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.scale_uv, other.scale_uv)
    assert torch.equal(one.factors_uv, other.factors_uv)


@pytest.mark.parametrize("name", FITS)
def test_silence_is_answered_with_no_deflection(name, truth, trials, fitted):
    quiet = fitted[name].forecast(trials.context[:1], no_stimulus(truth.montage, (1,))).mean
    loud = fitted[name].forecast(trials.context[:1], truth.random_stimuli(20, 3, (1.0, 1.0))).mean
    if name in ("arx", "state space", "gaussian process", "network"):
        assert quiet.std() < 0.8 * loud.std()
    assert quiet.isfinite().all()


@pytest.mark.parametrize("name", FITS)
def test_another_montage_is_refused(name, trials, fitted):
    with pytest.raises(ShapeError, match="montage"):
        fitted[name].forecast(trials.context[:1], linear_truth(4).random_stimuli(2, 1))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("parameter", ["amplitude_ma", "frequency_hz", "pulse_width_us"])
def test_the_gradient_of_the_mean_agrees_with_finite_differences(name, parameter, truth, trials, fitted):
    unit = torch.full((1, truth.space.dimension), 0.437, dtype=torch.float64)
    axis = truth.space.slices()[parameter].start
    weight = torch.randn(8, 125, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def reading(x):
        return (fitted[name].forecast(trials.context[:1], truth.space.stimulus(x)).mean * weight).sum()

    step = 1e-6 * torch.nn.functional.one_hot(torch.tensor([axis]), unit.shape[1])
    slope = (reading(unit + step) - reading(unit - step)) / 2e-6
    gradient = torch.autograd.grad(reading(unit.requires_grad_()), unit)[0][0, axis]
    assert slope.abs() > 1e-3
    assert torch.allclose(gradient, slope, rtol=1e-5)


@pytest.mark.parametrize("name", FITS)
def test_256_stimuli_are_forecast_in_time_for_a_search(name, truth, trials, fitted):
    stimuli = truth.random_stimuli(256, 4)
    spans = []
    for _ in range(3):
        begin = time.process_time()
        with torch.no_grad():
            fitted[name].forecast(trials.context[:1], stimuli)
        spans.append(time.process_time() - begin)
    assert min(spans) < 0.6  # 0.2 s on a free core; three times that on a busy one


@pytest.mark.parametrize("name", FITS)
def test_trials_without_signals_or_with_holes_are_refused(name, truth, trials):
    fit = FITS[name][1]
    empty = replace(trials, response=Response(truth.montage, trials.response.signal_uv[..., :0], RATE_HZ))
    with pytest.raises(DataError, match="kept no response signals"):
        fit(empty)
    hole = trials.response.signal_uv.clone()
    hole[3, 2, 1] = torch.nan
    with pytest.raises(ShapeError, match="1 of"):
        fit(replace(trials, response=Response(truth.montage, hole, RATE_HZ)))


def test_a_gaussian_process_refuses_what_lies_outside_its_space(truth, trials, fitted):
    beyond = map_tensors(truth.random_stimuli(2, 1), lambda tensor: tensor)
    beyond = replace(beyond, amplitude_ma=10 * beyond.amplitude_ma)
    with pytest.raises(SpaceError, match="amplitude_ma"):
        fitted["gaussian process"].forecast(trials.context[:1], beyond)


def test_a_gaussian_process_doubts_least_where_it_has_tried(truth, trials, fitted):
    process = fitted["gaussian process"]
    _, near = process.components(trials.stimulus[:10])
    _, far = process.components(truth.space.stimulus(torch.ones(1, truth.space.dimension, dtype=torch.float64)))
    assert (near.mean(0) < far[0] + 1e-9).double().mean() > 0.8


def test_intervals_of_a_gaussian_process_hold_what_they_claim(truth, fitted):
    skill = held_out_skill(fitted["gaussian process"], truth.trials(truth.random_stimuli(60, 9), 9))
    assert abs(skill["coverage_90"] - 0.9) < 0.06
    assert skill["r2"] > 0.1


@pytest.fixture(scope="module")
def dose():
    """Training up to 60% of the amplitude range, tests above 80%: an amplitude that was never seen."""
    truth = linear_truth(8)
    train = truth.trials(silent_rows(truth.random_stimuli(80, 11, (0.0, 0.6)), 8), 11)
    test = truth.trials(truth.random_stimuli(40, 12, (0.8, 1.0)), 12)
    return train, test, fit_ieeg_network(train, steps=250, members=2)


def test_a_network_beats_the_mean_evoked_response_on_an_amplitude_never_seen(dose):
    train, test, network = dose
    skill, base = held_out_skill(network, test), held_out_skill(fit_mean_evoked(train), test)
    assert skill["r2"] > base["r2"] + 0.2
    assert skill["r2_shuffled"] < skill["r2"] - 0.2


def test_a_network_stays_small(dose):
    numbers = sum(value.numel() for value in dose[2].weights[0].values())
    assert 20_000 < numbers < 100_000


def test_the_same_seed_trains_the_same_network(trials):
    one, other = (fit_ieeg_network(trials, steps=5, members=1, seed=3) for _ in range(2))
    assert all(torch.equal(one.weights[0][name], other.weights[0][name]) for name in one.weights[0])


def test_features_of_silence_are_zero_and_grow_from_there(truth):
    quiet = stimulus_features(no_stimulus(truth.montage, (2,)))
    faint = stimulus_features(
        replace(truth.random_stimuli(2, 1), amplitude_ma=truth.random_stimuli(2, 1).amplitude_ma * 1e-6)
    )
    assert torch.equal(quiet, torch.zeros_like(quiet))
    assert faint.abs().max() < 1e-3


def test_an_unknown_place_has_no_features_of_the_origin():
    montage = monopolar([Contact("A1"), Contact("A2", (0.0, 0.0, 0.0))])
    unknown, origin = place_features(montage.contact_position_mm)
    assert torch.equal(unknown, torch.zeros_like(unknown))
    assert origin.abs().sum() > 1


def test_the_gaussian_score_is_the_published_one():
    """A standard normal forecast of 0 scores 2 pdf(0) - 1 / sqrt(pi) = 0.2337 (Gneiting and Raftery 2007, eq 21)."""
    montage = monopolar([Contact("A1")])
    zero = torch.zeros(1, 1, 2, dtype=torch.float64)
    forecast = GaussianForecast(
        Response(montage, zero, RATE_HZ), zero + 1, torch.zeros(1, 0, 1, 2, dtype=torch.float64)
    )
    assert torch.allclose(crps(forecast, zero), zero + 0.233695, atol=1e-5)


def test_the_score_from_draws_agrees_with_the_closed_one(trials, fitted):
    forecast = fitted["arx"].forecast(trials.context, trials.stimulus)
    truth_uv = trials.response.signal_uv
    plain = type("Plain", (type(forecast).__mro__[1],), {
        "template": forecast.template, "rsample": forecast.rsample, "quantile": forecast.quantile,
        "log_prob": forecast.log_prob,
    })()  # fmt: skip
    assert abs(float(crps(plain, truth_uv).mean() / crps(forecast, truth_uv).mean()) - 1) < 0.02


def test_the_energy_score_of_a_single_sample_is_its_crps():
    template = Response(monopolar([Contact("A1")]), torch.zeros(1, 1), RATE_HZ)
    forecast = GaussianForecast(template, torch.ones(1, 1), torch.zeros(0, 1, 1))
    answers = torch.tensor([0.0, 1.5]).reshape(2, 1, 1)
    scores = torch.stack([energy_score(forecast, answers, seed=seed) for seed in range(600)]).mean(0)
    exact = torch.stack([crps(forecast, answer).squeeze() for answer in answers])
    torch.testing.assert_close(scores, exact, rtol=0, atol=0.015)  # 600 times 32 draws: three standard errors


def test_the_energy_score_prefers_who_knows_that_channels_go_together():
    """Each sample has the same law in both forecasts; windows move as a whole, as the truth does, in one alone."""
    template = Response(shafts(4), torch.zeros(4, 20), RATE_HZ)
    whole = GaussianForecast(template, torch.full((4, 20), 0.1), torch.ones(1, 4, 20))
    apart = GaussianForecast(template, whole.total_scale_uv, torch.zeros(0, 4, 20))
    truth = whole.rsample(400, torch.Generator().manual_seed(0)).float()
    scores = [float(energy_score(forecast, truth).mean()) for forecast in (whole, apart)]
    assert scores[0] < 0.9 * scores[1]
    assert float(crps(whole, truth).mean()) == pytest.approx(float(crps(apart, truth).mean()))


def test_a_split_loses_no_trial_and_uses_none_twice(trials):
    marked = replace(trials, context=Context(trials.context.montage, trials.context.signal_uv.clone(), RATE_HZ))
    marked.context.signal_uv[:, 0, 0] = torch.arange(len(trials)).double()
    train, test = split_trials(marked, 0.25, 0)
    ids = torch.cat([train.context.signal_uv[:, 0, 0], test.context.signal_uv[:, 0, 0]])
    assert len(test) == 12
    assert torch.equal(ids.sort().values, torch.arange(48).double())
    assert isinstance(train, Trials)
    with pytest.raises(DataError, match="holds out 0"):
        split_trials(trials, 0.001, 0)


def test_noise_of_a_forecast_keeps_the_rhythm_of_the_signal(truth, fitted):
    """Band power of drawn windows at the rhythm, against recorded ones; white noise of that variance gives 0.2."""
    from stimopt.features import band_power

    test = truth.trials(truth.random_stimuli(40, 21), 21)
    for name in ("arx", "state space"):
        drawn = fitted[name].forecast(test.context, test.stimulus).responses(8, generator(1))
        ratio = band_power(drawn, (6.0, 14.0)).mean() / band_power(test.response, (6.0, 14.0)).mean()
        assert 0.6 < float(ratio) < 1.4


@pytest.mark.parametrize("name", ["arx", "state space", "network"])
def test_a_window_cut_after_the_artefact_still_knows_when_the_pulses_came(name, truth, trials):
    short = Context(truth.montage, trials.context.signal_uv[..., 25:], RATE_HZ)
    cut = replace(trials, context=short, response=trials.response.between(0.06, 0.5))
    test = truth.trials(truth.random_stimuli(30, 31), 31)
    test = replace(test, response=test.response.between(0.06, 0.5))
    forecaster = FITS[name][1](cut)
    assert forecaster.forecast(test.context, test.stimulus).template.start_s == cut.response.start_s
    skill = held_out_skill(forecaster, test)
    assert skill["r2"] > 0.3 + (skill["r2_shuffled"] if name == "network" else 0.0)
