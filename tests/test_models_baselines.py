"""The baselines of the forecast tables, each held to something whose answer is known."""

import math
from dataclasses import replace

import pytest
import torch
from linear_truth import RATE_HZ, linear_truth, silent_rows

from stimopt.errors import ConfigError, DataError
from stimopt.forecaster import Context, Trials
from stimopt.models import impulse_regression
from stimopt.models.arx import fit_arx
from stimopt.models.basis_functions import fit_basis_functions
from stimopt.models.delay_embedding import fit_delay_embedding
from stimopt.models.distance_decay import fit_distance_decay
from stimopt.models.drive import TIRINGS
from stimopt.models.felt import felt
from stimopt.models.impulse import convolve, delay_basis, filtered
from stimopt.models.impulse_regression import fit_impulse_regression
from stimopt.models.nearest import fit_nearest
from stimopt.models.other_sites import fit_other_sites
from stimopt.models.recurrent import fit_recurrent
from stimopt.models.residual_mlp import fit_residual_mlp
from stimopt.models.trained import Recipe, dense, dense_start, train
from stimopt.models.window import window_of
from stimopt.response import Response
from stimopt.skill import held_out_skill
from stimopt.stimulus import no_stimulus
from stimopt.tensors import generator

FITS = (
    fit_nearest, fit_other_sites, fit_distance_decay, fit_impulse_regression, fit_delay_embedding,
    fit_basis_functions, fit_residual_mlp, fit_recurrent,
)  # fmt: skip
TRAINED = (fit_basis_functions, fit_residual_mlp, fit_recurrent)
_ENOUGH = {fit_basis_functions: 100, fit_residual_mlp: 64, fit_recurrent: 160}  # steps for an effect without noise


@pytest.fixture(scope="module")
def truth():
    return linear_truth(6)


@pytest.fixture(scope="module")
def train_trials(truth):
    return truth.trials(silent_rows(truth.random_stimuli(40, 1), 4), 1)


@pytest.fixture(scope="module")
def test_trials(truth):
    return truth.trials(truth.random_stimuli(30, 2), 2)


def recorded(truth, stimulus, response_uv):
    """Trials of these responses, over a flat context."""
    context = Context(
        truth.montage, torch.zeros(len(stimulus.pulses), len(truth.montage.channels), 50).double(), RATE_HZ
    )
    return Trials(context, stimulus, Response(truth.montage, response_uv, RATE_HZ))


@pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.__name__)
def test_three_trials_are_refused_with_a_sentence(fit, train_trials):
    with pytest.raises(DataError, match="at least 4 trials, got 3"):
        fit(train_trials[:3])


@pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.__name__)
def test_five_trials_are_enough_to_answer(fit, train_trials, test_trials):
    options = {"steps": 2} if fit in TRAINED else {}
    forecast = fit(train_trials[:5], **options).forecast(test_trials.context, test_trials.stimulus)
    assert torch.isfinite(forecast.mean).all()
    assert (forecast.total_scale_uv > 0).all()


def test_the_nearest_of_one_is_the_trial_itself(truth, train_trials):
    given = train_trials[:36]  # the last four are silent
    forecaster = fit_nearest(given, neighbours=1)
    torch.testing.assert_close(forecaster.forecast(given.context, given.stimulus).mean, given.response.signal_uv)


def test_the_nearest_answers_silence_with_the_mean_of_silence(truth, train_trials):
    answer = fit_nearest(train_trials).forecast(train_trials.context[:1], no_stimulus(truth.montage, (1,))).mean[0]
    torch.testing.assert_close(answer, train_trials.response.signal_uv[36:].mean(0))


def test_more_neighbours_are_chosen_where_trials_are_noisy(truth):
    stimulus = truth.random_stimuli(60, 3)
    effect, source = truth.effect(stimulus), torch.Generator().manual_seed(3)
    loud = effect + 20 * effect.std() * torch.randn(effect.shape, generator=source, dtype=torch.float64)
    assert fit_nearest(recorded(truth, stimulus, loud)).neighbours > 5
    assert fit_nearest(recorded(truth, stimulus, effect)).neighbours <= 5


def test_no_neighbour_is_refused(train_trials):
    with pytest.raises(DataError, match="neighbours is 0"):
        fit_nearest(train_trials, neighbours=0)


def test_the_mean_of_other_sites_holds_no_trial_of_the_site(truth):
    first, second = (row for row in truth.random_stimuli(40, 4).amplitude_ma.sign().unique(dim=0)[:2])
    stimulus = truth.random_stimuli(8, 5)
    stimulus = replace(stimulus, amplitude_ma=torch.stack([first, second] * 4))
    signal = torch.zeros(8, 6, 125).double()
    signal[0::2], signal[1::2] = 3.0, 7.0
    forecaster = fit_other_sites(recorded(truth, stimulus, signal))
    mean = forecaster.forecast(recorded(truth, stimulus, signal).context, stimulus).mean
    assert (mean[0::2] == 7.0).all()
    assert (mean[1::2] == 3.0).all()


def test_distance_decay_finds_the_reach_and_the_size_of_a_known_fall(truth):
    stimulus = truth.random_stimuli(30, 6)
    charge_uc = stimulus.amplitude_ma.abs() * (stimulus.pulse_width_us * stimulus.pulses).unsqueeze(-1) * 1e-3
    place = truth.montage.contact_position_mm
    fall = charge_uc @ (-torch.cdist(place, place) / 20.0).exp()
    wave = (2 * math.pi * 5.0 * torch.arange(125) / RATE_HZ).sin().double()
    forecaster = fit_distance_decay(recorded(truth, stimulus, 30.0 * fall.unsqueeze(-1) * wave))
    assert (forecaster.reach_mm, forecaster.exponent) == (20.0, 1.0)
    # the smallest ridge of 1e-4 shrinks the sum of the two polarities by as much
    torch.testing.assert_close(forecaster.wave_uv.mean(0)[2], 30.0 * wave, rtol=1e-2, atol=0.1)


def one_contact_each(truth, count, seed):
    """Stimuli at one contact, returned through the case, of either polarity: every input is told from every other."""
    stimulus, place = truth.random_stimuli(count, seed), torch.arange(count) % 6
    sign = torch.where(torch.arange(count) // 6 % 2 == 0, 1.0, -1.0).double()
    amplitude = stimulus.amplitude_ma.abs().amax(-1) * sign
    return replace(stimulus, amplitude_ma=torch.eye(6).double()[place] * amplitude.unsqueeze(-1))


def test_an_impulse_regression_recovers_a_known_kernel(truth):
    stimulus = one_contact_each(truth, 72, 7)
    window = window_of(recorded(truth, stimulus, torch.zeros(72, 6, 125).double()))
    basis = delay_basis(16, 125, torch.zeros(()).double())
    kernel = torch.randn(6, 12, 16, generator=torch.Generator().manual_seed(7), dtype=torch.float64) @ basis
    fitted = fit_impulse_regression(recorded(truth, stimulus, convolve(kernel, window.drive_ma(stimulus))))
    assert (fitted.kernel - kernel).norm() / kernel.norm() < 1e-3


def test_an_impulse_regression_answers_an_unseen_site_by_distance(truth):
    """Kernels of distance alone: what the other sites taught is all there is to know."""
    stimulus = one_contact_each(truth, 72, 8)
    window = window_of(recorded(truth, stimulus, torch.zeros(72, 6, 125).double()))
    basis = delay_basis(16, 125, torch.zeros(()).double())
    wave = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(8), dtype=torch.float64) @ basis
    near = felt(truth.montage, window.drive_ma(stimulus))[:, :, 2]  # cathodes, 16 mm
    response = convolve(wave, near.unsqueeze(-2)).squeeze(-2)
    trials, unseen = recorded(truth, stimulus, response), stimulus.amplitude_ma[:, 1] != 0
    fitted = fit_impulse_regression(trials[~unseen])
    answer = fitted.forecast(trials.context[unseen], trials.stimulus[unseen]).mean
    assert (answer - response[unseen]).norm() / response[unseen].norm() < 0.05  # seen: 0.02, the ridge


def test_products_of_what_channels_feel_are_those_of_its_own_course(truth):
    """Told from products of contacts' currents, against every channel's own drive through the same delays."""
    stimulus = truth.random_stimuli(20, 10)
    trials = recorded(truth, stimulus, torch.zeros(20, 6, 125).double())
    window, unit = window_of(trials), torch.ones(6).double()
    basis = delay_basis(3, 125, unit)
    products = impulse_regression._products(window, trials, torch.zeros(6).double(), unit, basis)
    own = felt(truth.montage, window.drive_ma(stimulus))  # [trial, channel, polarity and scale, time]
    course = filtered(basis, own.flatten(1, 2)).flatten(1, 2).unflatten(1, (6, -1))
    wanted = torch.einsum("ncft,ncgt->cfg", course, course)
    assert wanted.abs().amax() > 1
    torch.testing.assert_close(products.felt, wanted, rtol=1e-10, atol=1e-10)


def test_an_impulse_regression_without_a_way_to_count_pulses_is_refused(train_trials):
    with pytest.raises(ConfigError, match="give one or more of tirings"):
        fit_impulse_regression(train_trials, tirings=())


def test_an_impulse_regression_finds_out_how_pulses_tire(truth):
    """Trains of several pulses, which count less the more came before: another choice does not explain the answers."""
    stimulus = replace(one_contact_each(truth, 72, 9), pulses=torch.full((72,), 4.0).double())
    window = window_of(recorded(truth, stimulus, torch.zeros(72, 6, 125).double()))
    basis = delay_basis(16, 125, torch.zeros(()).double())
    kernel = torch.randn(6, 12, 16, generator=torch.Generator().manual_seed(9), dtype=torch.float64) @ basis
    for tiring in TIRINGS:
        answers = convolve(kernel, replace(window, tiring=tiring).drive_ma(stimulus))
        fitted = fit_impulse_regression(recorded(truth, stimulus, answers))
        assert fitted.window.tiring == tiring
        assert fit_arx(recorded(truth, stimulus, answers)).window.tiring == tiring
        assert (fitted.kernel - kernel).norm() / kernel.norm() < 0.01
        assert (fitted.effect_uv(stimulus) - answers).norm() / answers.norm() < 0.01


def test_a_delay_embedding_recovers_a_known_linear_system(truth):
    """Two rotating modes driven by the cathode of A1, six channels, no noise: four numbers a sample, exactly."""
    turn = 2 * math.pi * torch.tensor([6.0, 15.0]).double() / RATE_HZ
    move = torch.zeros(4, 4).double()
    for i, (angle, keep) in enumerate(zip(turn, (0.98, 0.95), strict=True)):
        block = [[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]]
        move[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = keep * torch.tensor(block).double()
    source = torch.Generator().manual_seed(9)
    entry, readout = (torch.randn(shape, generator=source, dtype=torch.float64) for shape in ((4,), (6, 4)))
    stimulus = truth.random_stimuli(40, 9)
    stimulus = replace(stimulus, amplitude_ma=torch.where(torch.arange(6) == 0, -2.0, 0.0).double().expand(40, 6))
    drive = window_of(recorded(truth, stimulus, torch.zeros(40, 6, 125).double())).drive_ma(stimulus)[:, 0]
    state, steps = torch.randn(40, 4, generator=source, dtype=torch.float64), []
    for t in range(175):
        push = 100.0 * drive[:, t - 50 :][:, :1] * entry if t >= 50 else 0.0
        state = state @ move.mT + push
        steps.append(state @ readout.mT)
    signal = torch.stack(steps, -1)
    context = Context(truth.montage, signal[..., :50], RATE_HZ)
    trials = Trials(context, stimulus, Response(truth.montage, signal[..., 50:], RATE_HZ))
    fitted = fit_delay_embedding(trials[:30], delays=6)
    found = torch.linalg.eigvals(fitted.transition)
    for value in torch.linalg.eigvals(move):
        assert (found - value).abs().min() < 1e-3
    mean = fitted.forecast(trials.context[30:], trials.stimulus[30:]).mean
    assert (mean - signal[30:, :, 50:]).norm() / signal[30:, :, 50:].norm() < 1e-2


@pytest.mark.parametrize(
    "fit", [fit_basis_functions, fit_residual_mlp, pytest.param(fit_recurrent, marks=pytest.mark.slow)],
    ids=lambda fit: fit.__name__,
)  # fmt: skip
def test_a_small_network_learns_an_effect_that_it_is_shown(fit, truth):
    """One waveform at two channels, in proportion to the charge at one of two sites; no noise."""
    stimulus = truth.random_stimuli(60, 10)
    site = torch.zeros(2, 6).double()
    site[0, :2], site[1, 4:] = torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 1.0])
    amplitude = stimulus.amplitude_ma.abs().amax(-1, keepdim=True) * site[torch.arange(60) % 2]
    stimulus = replace(stimulus, amplitude_ma=amplitude)
    wave = (2 * math.pi * 5.0 * torch.arange(125) / RATE_HZ).sin().double()
    size = amplitude[:, [0, 0, 1, 4, 4, 5]] * torch.tensor([1.0, -1.0, 2.0, 1.0, 0.5, -2.0]).double()
    trials = recorded(truth, stimulus, 10.0 * size.unsqueeze(-1) * wave)
    trials = replace(trials, response=replace(trials.response, signal_uv=trials.response.signal_uv + 5.0 * _noise(60)))
    skill = held_out_skill(fit(trials[:40], steps=_ENOUGH[fit]), trials[40:])
    assert skill["r2"] > 0.6
    assert skill["r2_shuffled"] < 0.2


def _noise(count):
    return torch.randn(count, 6, 125, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


def test_a_network_that_cannot_learn_answers_with_the_rest(truth):
    """Held-out trials choose the untrained network where responses are noise."""
    stimulus = truth.random_stimuli(12, 12)
    forecaster = fit_residual_mlp(recorded(truth, stimulus, _noise(12)), steps=16)
    trials = recorded(truth, stimulus, _noise(12))
    assert forecaster.forecast(trials.context, trials.stimulus).mean.abs().mean() < 0.2


@pytest.mark.parametrize("fit", TRAINED, ids=lambda fit: fit.__name__)
def test_the_same_seed_trains_the_same_network(fit, train_trials):
    one, again, other = (fit(train_trials[:5], seed=seed, steps=2).export()[1] for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one if one[name].shape == other[name].shape)


def test_training_finds_a_line_and_keeps_members_apart():
    source = torch.Generator().manual_seed(13)
    x = torch.randn(30, 4, generator=source)
    target = (x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 3.0).reshape(30, 1, 1)

    def network(weights, inputs):
        return dense(weights, "line", inputs["x"]).unsqueeze(-1)

    def first(source):
        return dense_start(source, "line", 4, 1)

    both = Recipe(steps=300, rate=0.1, decays=(0.0, 30.0), rows=30, folds=3)
    found = train(network, first, {"x": x}, target, both, seed=0)
    alone = train(network, first, {"x": x}, target, replace(both, decays=(0.0,)), seed=0)
    torch.testing.assert_close(found.weights["line.weight"].mean(0).flatten(), torch.tensor([1.0, -2.0, 0.5, 0.0]),
                               atol=0.02, rtol=0)  # fmt: skip
    torch.testing.assert_close(found.weights["line.weight"], alone.weights["line.weight"])
    assert found.loss < 1e-3


def test_no_member_saw_the_trials_that_its_residual_is_measured_on():
    """Targets are noise that inputs name one by one: a member could repeat those it saw, and no others."""
    target = torch.randn(12, 1, 1, generator=torch.Generator().manual_seed(14))

    def network(weights, inputs):
        return dense(weights, "line", inputs["x"]).unsqueeze(-1)

    recipe = Recipe(steps=200, rate=0.1, decays=(0.0,), rows=12, folds=3)
    found = train(network, lambda s: dense_start(s, "line", 12, 1, 0.0), {"x": torch.eye(12)}, target, recipe, seed=0)
    order = torch.randperm(12, generator=generator(0, "folds"))
    for member, part in enumerate(order.chunk(3)):
        assert (found.weights["line.weight"][member, part] == 0).all()
