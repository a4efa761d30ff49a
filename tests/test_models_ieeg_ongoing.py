"""What a patient's signal does by itself: a linear forecast of the patient's own beside the network's."""

import math
from dataclasses import replace

import linear_truth as made
import pytest
import torch
from linear_truth import RATE_HZ, linear_truth, silent_rows
from untrained import untrained

from stimopt.checkpoint import load_checkpoint, save_checkpoint
from stimopt.forecaster import Context
from stimopt.models import ieeg_ongoing
from stimopt.models.ieeg_adapt import adapt, at_level, fit_ieeg_adapted
from stimopt.models.ieeg_blended import fit_ieeg_blended
from stimopt.models.ieeg_foundation import KIND
from stimopt.models.ieeg_ongoing import calmed, fit_ongoing
from stimopt.models.ieeg_parts import OngoingForecaster, fit_ieeg_ongoing
from stimopt.models.ieeg_quiet import Quiet, kept_of, reset_of
from stimopt.models.ieeg_saved import SavedFoundation
from stimopt.stimulus import no_stimulus
from stimopt.tensors import generator
from stimopt.testing import check_forecaster

pytestmark = pytest.mark.usefixtures("remembered_regressions")

POLE = 0.99  # of the background, an autoregression of order two: it loses half in 69 samples
TURN = 2 * POLE * math.cos(2 * math.pi * 10.0 / RATE_HZ)


@pytest.fixture(scope="module", autouse=True)
def lasting():
    """A rhythm that is remembered longer than elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "POLE", POLE)
        yield


@pytest.fixture(scope="module")
def model():
    """First weights, never trained: of ongoing activity they know nothing."""
    return untrained()


@pytest.fixture(scope="module")
def truth():
    return linear_truth(6)


@pytest.fixture(scope="module")
def trials(truth):
    return truth.trials(silent_rows(truth.random_stimuli(20, 1), 4), 1)


@pytest.fixture(scope="module")
def rest(truth):
    return Context(truth.montage, truth.background(8, torch.Generator().manual_seed(5)), RATE_HZ)


@pytest.fixture(scope="module")
def whole(model, rest, trials):
    return model.for_patient(rest.montage, rest, trials, samples=125)


@pytest.fixture(scope="module")
def ongoing(whole, rest):
    return fit_ongoing(whole, rest)


@pytest.fixture(scope="module")
def calm(truth):
    """Windows without a stimulus that nothing was fitted to."""
    return truth.trials(no_stimulus(truth.montage, (40,)), 9)


def free_run(context: Context, samples: int) -> torch.Tensor:
    """The best forecast there is, from the equation that made the signal."""
    last, before = context.signal_uv[..., -1], context.signal_uv[..., -2]
    run = []
    for _ in range(samples):
        last, before = TURN * last - POLE**2 * before, last
        run.append(last)
    return torch.stack(run, -1)


def test_what_happens_by_itself_is_forecast_nearly_as_well_as_can_be(whole, ongoing, calm):
    forecaster = OngoingForecaster(whole, ongoing)
    forecast = forecaster.forecast(calm.context, calm.stimulus)
    answer, best = calm.response.signal_uv, free_run(calm.context, 125)
    plain = whole.forecast(calm.context, calm.stimulus).mean

    def left(mean):
        return float((answer - mean).square().mean() / answer.square().mean())

    assert ongoing.weight > 0.9
    assert left(best) < 0.75
    assert left(forecast.mean) < left(best) + 0.02
    assert left(plain) > left(best) + 0.2
    at_once = (forecast.mean - best)[..., :25]  # while the rhythm is remembered
    assert float(at_once.square().mean() / best[..., :25].square().mean()) < 0.03


def test_noise_without_a_stimulus_grows_as_errors_do(whole, ongoing, calm):
    forecast = OngoingForecaster(whole, ongoing).forecast(calm.context, calm.stimulus)
    answer = calm.response.signal_uv
    inside = (answer - forecast.mean).abs() <= 1.6449 * forecast.total_scale_uv
    for span in (slice(0, 5), slice(5, 25), slice(25, 125)):
        assert 0.85 < float(inside[..., span].double().mean()) < 0.95
    variance, wanted = 0.0, []
    kernel = [1.0, TURN]
    for _ in range(125):
        kernel.append(TURN * kernel[-1] - POLE**2 * kernel[-2])
        variance += kernel[len(wanted)] ** 2
        wanted.append(2.0 * math.sqrt(variance))  # of an autoregression with innovations of 2 uV
    scale = forecast.total_scale_uv.mean((0, 1))
    assert float((scale[[2, 10, 60, 120]] / torch.tensor(wanted)[[2, 10, 60, 120]].double() - 1).abs().max()) < 0.2


def test_a_stimulus_adds_what_the_network_says(whole, ongoing, trials):
    forecaster, none = OngoingForecaster(whole, ongoing), no_stimulus(trials.response.montage, (20,))
    own, network = (
        f.forecast(trials.context, trials.stimulus).mean - f.forecast(trials.context, none).mean
        for f in (forecaster, whole)
    )
    assert torch.allclose(own, network, atol=1e-4)
    loud, quiet = (forecaster.forecast(trials.context, x).total_scale_uv for x in (trials.stimulus, none))
    assert bool((loud >= quiet * (1 - 1e-6)).all())
    wider = replace(forecaster, wider=2.0).forecast(trials.context, trials.stimulus).total_scale_uv
    torch.testing.assert_close(
        wider.square() - quiet.square(), 4 * (loud.square() - quiet.square()), atol=1e-3, rtol=1e-3
    )
    silent = trials.stimulus.silent
    torch.testing.assert_close(loud[silent], quiet[silent])


def test_it_keeps_the_contract(whole, ongoing, trials):
    weights = dict(whole.model.weights)
    weights["head.weight"] = 0.3 * torch.randn(weights["head.weight"].shape, generator=generator(5, "invented"))
    moved = replace(whole, model=replace(whole.model, weights=weights))  # first weights move with no stimulus
    for forecaster in (fit_ieeg_ongoing(moved, ongoing), fit_ieeg_blended(whole, trials, ongoing=ongoing)):
        check_forecaster(forecaster, trials.context[:4], trials.stimulus[:4], differentiable=True)


def test_rest_alone_is_enough(model, rest, calm):
    """Without a past trial there is a rest, and it tells what happens by itself."""
    nothing = model.for_patient(rest.montage, rest, None, samples=125)
    own = fit_ongoing(nothing, rest)
    assert own is not None
    assert own.weight > 0.9
    told = OngoingForecaster(nothing, own).forecast(calm.context, calm.stimulus)
    error, best = (calm.response.signal_uv - told.mean).square().mean(), free_run(calm.context, 125)
    assert float(error / (calm.response.signal_uv - best).square().mean()) < 1.06


def test_where_the_network_is_right_it_keeps_its_say(whole, rest, monkeypatch):
    """A network that knows what comes is not drowned by a linear forecast that cannot."""

    def knows(plain, signal):
        ahead = ieeg_ongoing._pieces(plain, rest)[..., signal.shape[-1] :]
        return ahead, torch.ones_like(ahead), torch.zeros(len(ahead), 1, *ahead.shape[1:])

    monkeypatch.setattr(ieeg_ongoing, "_network", knows)
    assert fit_ongoing(whole, rest).weight < 1e-6


def test_noise_that_remembers_nothing_is_not_forecast(model, rest):
    white = torch.randn(rest.signal_uv.shape, generator=generator(1, "white"), dtype=torch.float64)
    quiet = replace(rest, signal_uv=20 * white + 3)
    nothing = model.for_patient(rest.montage, quiet, None, samples=125)
    own = fit_ongoing(nothing, quiet)
    none = no_stimulus(rest.montage, (8,))
    told = OngoingForecaster(nothing, own).forecast(quiet, none)
    assert float((told.mean - 3).square().mean().sqrt()) < 3.0  # near the middle, of a spread of 20
    assert 18 < float(told.total_scale_uv.mean()) < 22


def test_channels_that_lead_others_are_heard(model, rest):
    """All channels follow the first 160 ms later, which is noise: only together are they forecast."""
    late = torch.randn(rest.signal_uv.shape, generator=generator(2, "lead"), dtype=torch.float64)
    late[:, 1:, 40:] = late[:, :1, :-40]
    led, none = replace(rest, signal_uv=10 * late), no_stimulus(rest.montage, (8,))
    nothing = model.for_patient(rest.montage, led, None, samples=125)
    own = fit_ongoing(nothing, led)
    assert own.back.shape[-1] == 6
    then = OngoingForecaster(nothing, own).forecast(replace(led, signal_uv=10 * late[..., :125]), none)
    error = (then.mean - 10 * late[..., 125:])[:, 1:, :40].square().mean() / 100
    assert float(error) < 0.4  # from eight seconds


def test_with_many_channels_each_may_be_forecast_alone(whole, ongoing, rest, monkeypatch):
    monkeypatch.setattr("stimopt.models.autoregression._MOST_REGRESSORS", 6)
    alone = fit_ongoing(whole, rest)
    assert alone.back.shape[-1] == 1
    assert alone.weight > 0.9
    signal = torch.randn(3, 6, 200, generator=generator(4, "signal"))
    wide = torch.zeros(6, alone.back.shape[1], 6)
    wide[range(6), :, range(6)] = alone.back[..., 0]  # the same weights, written for all channels
    silent = (torch.zeros(3, 6, 125), torch.ones(3, 6, 125), torch.zeros(3, 1, 6, 125))
    heard = torch.ones_like(signal, dtype=torch.bool)
    one, other = (replace(alone, back=back).quiet(silent, signal, heard).mean for back in (alone.back, wide))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_where_the_newest_past_is_not_known_the_network_is_alone(whole, ongoing, calm):
    missing = calm.context.signal_uv[:3].clone()
    missing[0, 2, -2] = math.nan
    missing[1, 2, 3] = math.nan  # long before
    forecaster, none = OngoingForecaster(whole, ongoing), calm.stimulus[:3]
    told, plain = (f.forecast(replace(calm.context, signal_uv=missing), none) for f in (forecaster, whole))
    assert torch.allclose(told.mean[0], plain.mean[0], atol=1e-4)
    assert torch.allclose(told.total_scale_uv[0], plain.total_scale_uv[0], rtol=1e-4)
    for row in (1, 2):
        assert not torch.allclose(told.mean[row], plain.mean[row], atol=0.1)


def test_too_little_rest_leaves_the_network_alone(model, rest, trials):
    short = replace(rest, signal_uv=rest.signal_uv[:3])
    few = model.for_patient(rest.montage, short, None, samples=125)
    assert fit_ongoing(few, short) is None
    holes = rest.signal_uv.clone()
    holes[:5, 1, 7] = math.nan
    hollow = replace(rest, signal_uv=holes)
    assert fit_ongoing(few, hollow) is None
    level = at_level(few, "ongoing")
    assert torch.equal(
        level.forecast(trials.context, trials.stimulus).mean, few.forecast(trials.context, trials.stimulus).mean
    )


def test_rest_that_was_given_twice_counts_once(model, trials):
    """Where contexts of trials serve as rest, no part of them is forecast by what was fitted to itself."""
    twice = model.for_patient(trials.response.montage, trials.context, trials, samples=125)
    alone = model.for_patient(trials.response.montage, trials.context, None, samples=125)
    one, other = (fit_ongoing(plain, trials.context) for plain in (twice, alone))
    assert torch.equal(one.back, other.back)
    assert torch.equal(one.wide, other.wide)
    assert len(ieeg_ongoing._pieces(twice, trials.context)) == len(trials)


def test_a_run_that_grows_is_never_kept(model, rest):
    """Half a window can be forecast well by what explodes in the second half."""
    time = torch.arange(250, dtype=torch.float64) / 250
    growing = torch.sin(40 * time) * (6 * time).exp() + 0.1 * rest.signal_uv
    wild = replace(rest, signal_uv=growing)
    own = fit_ongoing(model.for_patient(rest.montage, wild, None, samples=125), wild)
    none = no_stimulus(rest.montage, (8,))
    plain = model.for_patient(rest.montage, wild, None, samples=125)
    told = OngoingForecaster(plain, own).forecast(wild, none).mean
    assert float(told.abs().max()) < 3 * float(growing.abs().max())


def test_the_order_of_channels_carries_nothing(model, rest, trials):
    order = [4, 2, 0, 5, 1, 3]
    montage = replace(rest.montage, channels=tuple(rest.montage.channels[i] for i in order))
    turned = Context(montage, rest.signal_uv[:, order], RATE_HZ)
    one, other = (model.for_patient(x.montage, x, None, samples=125) for x in (rest, turned))
    own, again = fit_ongoing(one, rest), fit_ongoing(other, turned)
    none = no_stimulus(rest.montage, (8,))
    before = OngoingForecaster(one, own).forecast(rest, none)
    after = OngoingForecaster(other, again).forecast(turned, replace(none, montage=montage))
    assert torch.allclose(before.mean[:, order], after.mean, atol=1e-3)
    assert torch.allclose(before.total_scale_uv[:, order], after.total_scale_uv, rtol=1e-3)


def test_past_trials_are_told_without_what_rode_on_them(whole, ongoing, trials):
    told = calmed(whole, whole.past, ongoing)
    effect = (trials.response.signal_uv - free_run(trials.context, 125)) / whole.subject.spread_uv.unsqueeze(-1)
    network = whole.untold.forecast(trials.context, no_stimulus(trials.response.montage, (20,))).mean
    network = (network - whole.subject.rest_uv.unsqueeze(-1)) / whole.subject.spread_uv.unsqueeze(-1)
    assert float((told.response - network - effect).square().mean()) < 0.03
    assert calmed(whole, whole.past, None) is whole.past


def test_a_blend_with_it_forecasts_better_and_is_as_sure_as_it_may_be(whole, ongoing, truth, trials):
    tested = truth.trials(truth.random_stimuli(30, 12), 12)
    errors, inside = [], []
    for own in (None, ongoing):
        forecast = fit_ieeg_blended(whole, trials, ongoing=own).forecast(tested.context, tested.stimulus)
        off = tested.response.signal_uv - forecast.mean
        errors.append(float(off.square().mean()))
        inside.append(float((off.abs() <= 1.6449 * forecast.total_scale_uv).double().mean()))
    assert errors[1] < 0.9 * errors[0]
    assert 0.82 < inside[1] < 0.96


@pytest.mark.parametrize("ended", [False, True])
def test_what_a_stimulus_ends_is_told_by_trials(ended):
    """A rhythm that only the patient's own forecast knows goes on under the responses, or does not."""
    source = generator(6, "ended")
    rhythm, effect, noise = (torch.randn(16, 6, 125, generator=source) for _ in range(3))
    effect, good = 3 * effect, torch.ones(16, 6, 125, dtype=torch.bool)
    one, nothing = torch.ones_like(rhythm), torch.zeros_like(rhythm)
    quiet = Quiet(rhythm, 0.2 * one, nothing, one, judged=True)
    response = effect + 0.3 * noise + (0 if ended else rhythm)
    reset, kept = reset_of([(quiet, response - rhythm, effect, good)]), kept_of(quiet, response, good)
    assert reset == pytest.approx(0.8 if ended else 0.0, abs=0.02)  # 16 trials, and four that say it goes on
    assert kept == pytest.approx(0.2 if ended else 1.0, abs=0.06)
    loud, silent = quiet.after(effect, reset), quiet.after(nothing, reset)
    assert torch.equal(silent.mean, rhythm)
    assert torch.equal(silent.variance, quiet.variance)
    torch.testing.assert_close(loud.mean, (1 - reset) * rhythm, atol=0.05, rtol=0)
    assert float(loud.variance.min()) > 0.95  # no less than the network says, once all is moved
    hidden = good.clone()
    hidden[8:] = False
    torn = torch.where(hidden, response, math.nan)
    assert reset_of([(quiet, torn - rhythm, effect, hidden)]) == pytest.approx(0.67 if ended else 0.0, abs=0.03)


def test_responses_that_ended_the_rhythm_are_left_as_they_are(whole, ongoing, truth, trials):
    """What stimulated trials show to have gone, the network is not told to add."""
    fresh = truth.trials(trials.stimulus, 77).response
    other = calmed(whole, replace(whole.past, response=_in_spreads(whole, fresh.signal_uv)), ongoing)
    loud = ~trials.stimulus.silent
    moved = (other.response - _in_spreads(whole, fresh.signal_uv)).square().mean((1, 2)).sqrt()
    usual = (calmed(whole, whole.past, ongoing).response - whole.past.response).square().mean((1, 2)).sqrt()
    assert float(moved[loud].mean()) < 0.5 * float(usual[loud].mean())


def _in_spreads(whole, signal_uv):
    subject = whole.subject
    return ((signal_uv - subject.rest_uv.unsqueeze(-1)) / subject.spread_uv.unsqueeze(-1)).float()


def test_it_is_a_level_of_its_own_and_what_few_trials_are_given(model, rest, trials, calm, monkeypatch):
    chosen = adapt(model, rest.montage, rest, calm[:20], levels=("rest", "ongoing"))
    assert chosen.level == "ongoing"
    assert isinstance(chosen.forecaster, OngoingForecaster)
    monkeypatch.setattr("stimopt.models.ieeg_adapt.load_foundation", lambda _: model)
    for count, kind in ((0, OngoingForecaster), (5, OngoingForecaster)):
        assert isinstance(fit_ieeg_adapted(trials[:count], rest=rest), kind)


@pytest.mark.parametrize("kind", ["ongoing", "blended"])
def test_saved_it_forecasts_alike(whole, ongoing, trials, tmp_path, kind):
    made = fit_ieeg_ongoing(whole, ongoing) if kind == "ongoing" else fit_ieeg_blended(whole, trials, ongoing=ongoing)
    save_checkpoint(tmp_path / kind, KIND, made, {"title": kind})
    again = load_checkpoint(tmp_path / kind, {KIND: SavedFoundation})
    one, other = (f.forecast(trials.context, trials.stimulus) for f in (made, again))
    assert type(again) is type(made)
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.total_scale_uv, other.total_scale_uv)
