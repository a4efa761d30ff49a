"""Forecast, objective and acquisition as one differentiable chain; a forecaster played as a system."""

import pytest
import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.sampling.index_sampler import IndexSampler
from linear_truth import RATE_HZ, linear_truth

from stimopt.errors import ShapeError
from stimopt.forecaster import Context
from stimopt.models import ImaginedSystem, ScoreModel, fit_arx, fit_gaussian_process, fit_ieeg_network, fit_state_space
from stimopt.objective import BandPower, Charge, EvokedAmplitude, WeightedSum
from stimopt.stimulus import no_stimulus
from stimopt.system import sliced
from stimopt.tensors import generator

OBJECTIVE = WeightedSum((EvokedAmplitude((0.02, 0.4)), BandPower((4.0, 20.0)), Charge()), (1.0, 0.5, 0.1))
FITS = {
    "arx": lambda trials, space: fit_arx(trials, lags=8),
    "state space": lambda trials, space: fit_state_space(trials, order=8),
    "gaussian process": fit_gaussian_process,
    "network": lambda trials, space: fit_ieeg_network(trials, steps=40, members=2),
}


@pytest.fixture(scope="module")
def truth():
    return linear_truth(6)


@pytest.fixture(scope="module")
def trials(truth):
    return truth.trials(truth.random_stimuli(40, 1), 1)


@pytest.fixture(scope="module")
def models(truth, trials):
    now = Context(truth.montage, trials.context.signal_uv[0], RATE_HZ)
    return {
        name: ScoreModel(fit(trials, truth.space), OBJECTIVE, truth.space, now, samples=16)
        for name, fit in FITS.items()
    }


@pytest.mark.parametrize("name", FITS)
def test_the_gradient_of_an_acquisition_through_a_forecast_agrees_with_finite_differences(name, truth, models):
    source = torch.Generator().manual_seed(5)
    tried = torch.rand(4, truth.space.dimension, generator=source, dtype=torch.float64)
    sampler = IndexSampler(torch.Size([16]), seed=0)
    acquisition = qLogNoisyExpectedImprovement(models[name], tried, sampler, prune_baseline=False)
    point = 0.1 + 0.8 * torch.rand(1, 1, truth.space.dimension, generator=source, dtype=torch.float64)
    gradient = torch.autograd.grad(acquisition(point.requires_grad_()).sum(), point)[0][0, 0]
    for parameter in ("amplitude_ma", "frequency_hz", "pulse_width_us"):
        axis = truth.space.slices()[parameter].start
        step = torch.zeros_like(point)
        step[..., axis] = 1e-6
        with torch.no_grad():
            slope = (acquisition(point + step) - acquisition(point - step))[0] / 2e-6
        assert slope.abs() > 1e-4
        assert torch.allclose(gradient[axis], slope, rtol=5e-5)


def test_the_posterior_is_that_of_the_drawn_scores(truth, models):
    points = torch.rand(3, 2, truth.space.dimension, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    posterior = models["arx"].posterior(points)
    assert posterior.mean.shape == (3, 2, 1)
    assert posterior.values.shape == (3, 16, 2, 1)
    again = models["arx"].posterior(points[1:2, :1])
    assert torch.allclose(again.mean[0, 0], posterior.mean[1, 0], rtol=1e-10)  # common random numbers


def test_scores_are_the_same_with_and_without_gradients_and_in_pieces(truth, models, monkeypatch):
    points = torch.rand(9, truth.space.dimension, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    points[3] = points[0]
    with torch.no_grad():
        plain = models["arx"].scores(points)
    monkeypatch.setattr("stimopt.models.score._NUMBERS", 3 * 16 * 6 * 125)
    followed = points.clone().requires_grad_()
    kept = models["arx"].scores(followed)
    assert torch.allclose(kept, plain, rtol=1e-9)
    kept.sum().backward()
    assert followed.grad is not None
    assert torch.allclose(followed.grad[3], followed.grad[0], rtol=1e-9)


def test_a_louder_stimulus_scores_higher_where_the_response_is_wanted(truth, trials, models):
    model = ScoreModel(models["arx"].forecaster, EvokedAmplitude((0.0, 0.5)), truth.space, models["arx"].context)
    points = torch.full((2, truth.space.dimension), 0.4, dtype=torch.float64)
    points[:, truth.space.slices()["amplitude_ma"]] = torch.tensor([[0.1], [0.9]], dtype=torch.float64)
    low, high = model.posterior(points).mean.squeeze(-1)
    assert high > low + 5  # uV


def test_a_score_model_needs_one_context(truth, trials, models):
    with pytest.raises(ShapeError, match="one window"):
        ScoreModel(models["arx"].forecaster, OBJECTIVE, truth.space, trials.context)


def test_an_imagined_system_answers_each_row_the_same_alone_and_in_company(truth, trials, models):
    system = ImaginedSystem(models["state space"].forecaster, trials.context)
    stimuli = truth.random_stimuli(5, 8)
    state = system.start((5,), generator(0, "start"))
    first, after = system.respond(state, stimuli, generator(1))
    alone, _ = system.respond(sliced(state, slice(2, 3)), stimuli[2:3], generator(2))
    assert torch.allclose(alone.signal_uv[0], first.signal_uv[2], atol=1e-9)
    assert system.window_s == 0.5
    second, _ = system.respond(after, stimuli, generator(1))
    assert not torch.allclose(second.signal_uv, first.signal_uv)
    assert torch.equal(after["signal_uv"], first.signal_uv)


def test_an_imagined_system_stays_as_large_as_the_recorded_one_over_twenty_windows(truth, trials, models):
    system = ImaginedSystem(models["arx"].forecaster, trials.context)
    state = system.start((8,), generator(0, "start"))
    for _ in range(20):
        response, state = system.respond(state, no_stimulus(truth.montage, (8,)), generator(0))
    ratio = response.signal_uv.std() / trials.context.signal_uv.std()
    assert 0.5 < float(ratio) < 2.0


def test_an_imagined_system_refuses_a_stimulus_of_another_batch(truth, trials, models):
    system = ImaginedSystem(models["arx"].forecaster, trials.context)
    with pytest.raises(ShapeError, match="batch"):
        system.respond(system.start((2,), generator(0)), truth.random_stimuli(3, 1), generator(0))
