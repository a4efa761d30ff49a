"""How the foundation model is bent to a patient: by its context, in closed form, by gradient steps, or not at all."""

import math
from dataclasses import replace

import pytest
import torch
from linear_truth import RATE_HZ, linear_truth, silent_rows
from untrained import SIZE, untrained

from stimopt.checkpoint import load_checkpoint, save_checkpoint
from stimopt.errors import ConfigError, DataError
from stimopt.forecaster import Context, Trials
from stimopt.models import ieeg_adapt
from stimopt.models.ieeg_adapt import CLOSED_FORM, LEVELS, adapt, at_level, fit_ieeg_adapted
from stimopt.models.ieeg_blended import fit_ieeg_blended, held_sites, seen_share, site_distance_mm, site_parts
from stimopt.models.ieeg_foundation import KIND
from stimopt.models.ieeg_residual import ResidualForecaster, fit_ieeg_residual
from stimopt.models.ieeg_saved import SavedFoundation
from stimopt.models.landmarks import best_ridge, landmarks_of, left_out
from stimopt.models.low_rank import changed, full_changes, low_rank_changes
from stimopt.response import Response
from stimopt.skill import held_out_skill
from stimopt.stimulus import no_stimulus
from stimopt.tensors import generator, map_tensors
from stimopt.testing import check_forecaster

pytestmark = pytest.mark.usefixtures("remembered_regressions")


@pytest.fixture(scope="module")
def model():
    """First weights, never trained: whatever is learnt here is learnt from the patient."""
    return untrained()


@pytest.fixture(scope="module")
def truth():
    return linear_truth(6)


@pytest.fixture(scope="module")
def trials(truth):
    return _mixed(truth.trials(silent_rows(truth.random_stimuli(40, 1), 8), 1))


@pytest.fixture(scope="module")
def held_out(truth):
    return truth.trials(truth.random_stimuli(12, 2), 2)


@pytest.fixture(scope="module")
def whole(model, trials):
    return model.for_patient(trials.response.montage, trials.context, trials, samples=125)


@pytest.fixture(scope="module")
def few(model, trials):
    return model.for_patient(trials.response.montage, trials.context, trials[:8], samples=125)


@pytest.fixture(scope="module")
def residual(whole):
    return fit_ieeg_residual(whole)


def _mixed(trials: Trials) -> Trials:
    return trials[torch.randperm(len(trials), generator=generator(0, "order"))]


def test_residual_keeps_the_contract(residual, held_out):
    check_forecaster(residual, held_out.context[:4], held_out.stimulus[:4], differentiable=True)


def test_residual_mends_a_network_that_knows_nothing(whole, residual, held_out):
    """40 trials in closed form, on the tokens of a network that was never trained."""
    before, after = (held_out_skill(f, held_out) for f in (at_level(whole, "context"), residual))
    assert after["r2"] > before["r2"] + 0.2
    assert after["crps_uv"] < 0.9 * before["crps_uv"]
    assert 0.8 < after["coverage_90"] < 0.97
    assert after["r2_shuffled"] < after["r2"] - 0.1


def test_residual_of_a_trial_is_taken_with_the_trial_out_of_context(model, trials):
    """Responses that no other trial foretells leave nothing to correct; a trial in its own context would."""
    noise = 50 * torch.randn(trials.response.signal_uv.shape, generator=generator(0, "noise"), dtype=torch.float64)
    strange = replace(trials, response=replace(trials.response, signal_uv=noise))
    whole = model.for_patient(trials.response.montage, trials.context, strange, samples=125)
    residual = fit_ieeg_residual(whole)
    plain = at_level(whole, "context").forecast(trials.context, trials.stimulus)
    moved = residual.forecast(trials.context, trials.stimulus).mean - plain.mean
    assert moved.square().mean().sqrt() < 0.15 * 50
    total = residual.forecast(trials.context, trials.stimulus).total_scale_uv
    assert 0.7 < total.square().mean().sqrt() / 50 < 1.3


def test_residual_doubts_most_where_nothing_was_tried(model, truth, trials):
    montage = trials.response.montage
    some = trials[(trials.stimulus.amplitude_ma[:, 3:].abs().sum(-1) == 0).nonzero().squeeze(-1)]
    residual = fit_ieeg_residual(model.for_patient(montage, trials.context, some, samples=125))
    active = truth.random_stimuli(40, 5)
    tried = active.amplitude_ma[:, 3:].abs().sum(-1) == 0
    forecast = residual.forecast(trials.context[0], active)
    doubt = forecast.factors_uv[:, : -SIZE.factors].square().sum((1, 2, 3))
    assert doubt[~tried].mean() > doubt[tried].mean()


def test_gradient_of_the_residual_agrees_with_finite_differences(residual, held_out):
    stimulus, context = held_out.stimulus[:1], held_out.context[:1]

    def read(gain):  # a contact at rest has no slope of its own: cathodes and anodes count apart
        forecast = residual.forecast(context, replace(stimulus, amplitude_ma=gain * stimulus.amplitude_ma))
        return torch.stack([forecast.mean.square().sum(), forecast.total_scale_uv.sum()])

    gain = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(read, gain, rtol=1e-4, atol=1e-3)


def test_residual_survives_a_checkpoint(residual, held_out, tmp_path):
    card = {"title": "t", "training_data": "d", "metrics": {}, "limits": "l", "simulated": True}
    save_checkpoint(tmp_path / "m", "ieeg-residual", residual, card)
    again = load_checkpoint(tmp_path / "m", {"ieeg-residual": ResidualForecaster})
    one, other = (f.forecast(held_out.context, held_out.stimulus) for f in (residual, again))
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.total_scale_uv, other.total_scale_uv)


def test_residual_refuses_three_trials(model, trials):
    three = model.for_patient(trials.response.montage, trials.context, trials[:3], samples=125)
    with pytest.raises(DataError, match="at least 4 trials"):
        fit_ieeg_residual(three)


def test_windows_that_begin_late_are_corrected_too(model, trials, held_out):
    def late(these):
        cut = Response(these.response.montage, these.response.signal_uv[..., 25:], RATE_HZ, start_s=0.1)
        return Trials(these.context, these.stimulus, cut)

    whole = model.for_patient(
        trials.response.montage, trials.context, late(trials), samples=100, start_s=0.1
    )  # fmt: skip
    before, after = (held_out_skill(f, late(held_out)) for f in (at_level(whole, "context"), fit_ieeg_residual(whole)))
    assert after["r2"] > before["r2"]
    assert after["crps_uv"] < before["crps_uv"]


def test_left_out_blocks_are_those_of_a_fit_without_them():
    source = generator(0, "rows")
    feature = torch.randn(8, 3, 5, generator=source, dtype=torch.float64)
    size = torch.randn(8, 3, 2, generator=source, dtype=torch.float64)
    marks = landmarks_of(feature, torch.ones(8, 3, dtype=torch.float64), 0)
    known = marks.known(feature)
    left = left_out(known, marks.moment, size, 0.7)
    some, wanted = known[1:].flatten(0, 1), size[1:].flatten(0, 1)
    weight = torch.linalg.solve(some.mT @ some + 0.7 * torch.eye(some.shape[-1]), some.mT @ wanted)
    assert torch.allclose(left[0], size[0] - known[0] @ weight, atol=1e-9)


def test_landmarks_at_all_rows_are_the_exact_process():
    source = generator(0, "rows")
    feature = torch.randn(10, 2, 3, generator=source, dtype=torch.float64)
    marks = landmarks_of(feature, torch.ones(10, 2, dtype=torch.float64), 0)
    flat = marks.known(feature).flatten(0, 1)
    scaled = ((feature - feature.mean((0, 1))) / feature.std((0, 1))).flatten(0, 1)
    exact = (-torch.cdist(scaled, scaled).square() / (2 * 3)).exp()  # one width for three features of variance 1
    assert torch.allclose(flat @ flat.mT, exact, atol=3e-4)  # the nugget is 1e-4
    far = marks.known(torch.full((1, 3), 1e3, dtype=torch.float64))
    assert far.abs().max() < 1e-12


def test_noise_alone_asks_for_the_strongest_ridge_or_nearly():
    source = generator(1, "rows")
    feature = torch.randn(40, 4, 6, generator=source, dtype=torch.float64)
    size = torch.randn(40, 4, 20, generator=source, dtype=torch.float64)
    marks = landmarks_of(feature, torch.ones(40, 4, dtype=torch.float64), 0)
    ridge, left = best_ridge(marks.known(feature), marks.moment, size)
    assert ridge >= 10
    assert left.square().mean() > 0.9 * size.square().mean()


def test_changes_begin_at_zero_and_have_the_rank_that_was_asked(model):
    changes = low_rank_changes(model.weights, 2, generator(0, "changes"))
    begun = changed(model.weights, changes)
    assert all(torch.equal(begun[name], value) for name, value in model.weights.items())
    grown = {name: torch.randn(v.shape, generator=generator(1, name)) for name, v in changes.items()}
    name = "through_trials.0.query.weight"
    apart = changed(model.weights, grown)[name] - model.weights[name]
    assert torch.linalg.matrix_rank(apart, rtol=1e-4) == 2
    assert set(full_changes(model.weights)) == {f"{name}:plain" for name in model.weights}
    numbers = sum(value.numel() for value in changes.values())
    assert numbers < 0.2 * sum(value.numel() for value in model.weights.values())


def test_changes_of_what_is_not_there_are_refused(model):
    with pytest.raises(ConfigError, match="0 matrices"):
        low_rank_changes(model.weights, 2, generator(0, "changes"), layers=("decoder",))


@pytest.mark.parametrize("level", ["low-rank", "full"])
def test_gradient_steps_give_a_plain_network_again(few, held_out, level):
    tuned = at_level(few, level, steps=2)
    shipped, own = few.model.weights, tuned.model.weights
    assert shipped.keys() == own.keys()
    assert all(torch.isfinite(value).all() and not value.requires_grad for value in own.values())
    assert torch.equal(shipped["patch.up.weight"], own["patch.up.weight"]) == (level == "low-rank")
    assert not torch.equal(shipped["head.weight"], own["head.weight"])
    tuned.forecast(held_out.context[:2], held_out.stimulus[:2])
    again = at_level(few, level, steps=2) if level == "low-rank" else tuned
    assert torch.equal(own["head.weight"], again.model.weights["head.weight"])


def test_gradient_steps_that_do_not_help_are_not_taken(model, few, monkeypatch):
    monkeypatch.setitem(ieeg_adapt._RATES, "full", 30.0)  # steps so large that they can only hurt
    tuned = at_level(few, "full", steps=3)
    assert all(torch.equal(tuned.model.weights[name], value) for name, value in model.weights.items())


def test_adapt_takes_the_residual_where_it_helps_and_shows_the_frozen_model(model, trials):
    chosen = adapt(model, trials.response.montage, trials.context, trials, folds=2)
    assert chosen.level == "residual"
    assert isinstance(chosen.forecaster, ResidualForecaster)
    assert tuple(chosen.scores) == CLOSED_FORM
    assert chosen.scores["residual"].crps < chosen.scores["context"].crps
    assert "* residual" in str(chosen)
    assert "context" in str(chosen)


def test_the_frozen_context_stays_unless_another_level_is_better_by_more_than_its_error():
    source = generator(0, "scores")
    context = 1 + torch.rand(20, generator=source, dtype=torch.float64)
    little = context - 0.01 + 0.2 * torch.randn(20, generator=source, dtype=torch.float64)
    much = context - 0.3 + 0.2 * torch.randn(20, generator=source, dtype=torch.float64)
    assert ieeg_adapt._chosen({"rest": little, "context": context})[0] == "context"
    assert ieeg_adapt._chosen({"rest": much, "context": context})[0] == "rest"
    level, scores = ieeg_adapt._chosen({"rest": little, "context": context, "residual": much})
    assert level == "residual"
    assert scores["context"].behind == pytest.approx(0.3, abs=0.15)
    assert scores["residual"].behind == 0


def test_adapt_with_few_trials_reads_them_and_compares_nothing(model, trials):
    chosen = adapt(model, trials.response.montage, trials.context, trials[:3])
    assert chosen.level == "context"
    assert not chosen.scores
    assert "too few" in str(chosen)


def test_unknown_levels_are_refused(model, trials, whole):
    with pytest.raises(ConfigError, match="levels"):
        adapt(model, trials.response.montage, trials.context, trials, levels=("lora",))
    with pytest.raises(ConfigError, match="level 'lora'"):
        at_level(whole, "lora")
    with pytest.raises(ConfigError, match="adapt is 'lora'"):
        fit_ieeg_adapted(trials, adapt="lora")


@pytest.mark.parametrize("level", [pytest.param("auto", marks=pytest.mark.slow), *LEVELS[:3]])
def test_fit_by_name_gives_a_forecaster_at_that_level(model, trials, tmp_path, level):
    card = {"title": "t", "training_data": "d", "metrics": {}, "limits": "l", "simulated": True}
    folder = save_checkpoint(tmp_path / "m", KIND, model, card)
    forecaster = fit_ieeg_adapted(trials[:8], checkpoint=str(folder), adapt=level)
    assert forecaster.forecast(trials.context[:2], trials.stimulus[:2]).mean.shape == (2, 6, 125)
    if level == "rest":
        assert len(forecaster.past.numbers) == 0
    single = map_tensors(trials.stimulus[:2], lambda x: x.float() if x.is_floating_point() else x)
    quiet = Context(trials.context.montage, trials.context.signal_uv[:2].float(), RATE_HZ)
    assert forecaster.forecast(quiet, single).mean.dtype == torch.float32


def test_noise_is_as_wide_as_the_patients_own_trials_ask_drawn_towards_the_models(model, trials, held_out):
    whole = at_level(model.for_patient(trials.response.montage, trials.context, trials, samples=125), "context")
    wrong = replace(model, temper=4 * model.temper)
    wide = at_level(wrong.for_patient(trials.response.montage, trials.context, trials, samples=125), "context")
    share = len(trials) / (len(trials) + 4)
    assert math.log(whole.temper / wide.temper) == pytest.approx(share * math.log(4), rel=1e-4)
    scale = [f.forecast(held_out.context, held_out.stimulus).total_scale_uv.mean() for f in (whole, wide)]
    assert scale[1] / scale[0] == pytest.approx(4 ** (1 - share), rel=1e-4)
    few = at_level(model.for_patient(trials.response.montage, trials.context, trials[:3], samples=125), "context")
    assert few.temper == 1.0


def test_a_blend_turns_down_networks_that_invent_effects_and_takes_up_what_is_linear(model, trials, held_out):
    """The truth is linear; networks that were never trained, and move with every stimulus, know nothing. A linear model
    is believed where it had trials at the same site, and hardly at others."""
    found = []
    for seed in range(5, 10):
        whole = inventing(model, seed).for_patient(trials.response.montage, trials.context, trials, samples=125)
        blend = fit_ieeg_blended(whole, trials)
        plain, blended = (held_out_skill(f, held_out)["r2"] for f in (at_level(whole, "context"), blend))
        assert blended > plain + 0.3
        assert 0.8 < held_out_skill(blend, held_out)["coverage_90"] < 0.97
        found.append(blend.weight)
    _, (network_at_new, linear_at_new, _), (network_at_seen, linear_at_seen, _) = (
        torch.stack(found).median(0).values.tolist()
    )
    assert max(network_at_new, network_at_seen) < 0.15  # a prior at 1 lets go where trials contradict it
    assert linear_at_seen > 0.8
    assert 0.1 < linear_at_new < 0.5


def test_a_blend_turns_down_invented_effects_where_a_linear_model_has_none(model, trials):
    """Nothing answers: the linear model of such a patient has no effect, and the network's is weighed all the same."""
    noise = torch.randn(trials.response.signal_uv.shape, generator=generator(3, "noise"), dtype=torch.float64)
    silent = replace(trials, response=replace(trials.response, signal_uv=20 * noise))
    whole = inventing(model, 5).for_patient(trials.response.montage, silent.context, silent, samples=125)
    blend = fit_ieeg_blended(whole, silent)
    assert float(blend.linear.effect_uv(trials.stimulus).abs().max()) == 0
    assert float(blend.weight[1:, 0].max()) < 0.85  # noise drowns much of what is invented


def test_one_loud_site_does_not_speak_for_all(model, trials):
    """Three parts of the trials answer as the network says, the fourth, five times as loud, a third of that: its power
    would say .4 or less for sites that nobody tried."""
    whole = inventing(model, 5).for_patient(trials.response.montage, trials.context, trials, samples=125)
    held = []
    for part, (loud, true) in zip(
        held_sites(whole, trials, 0), [(5.0, 1 / 3), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0)], strict=True
    ):
        known = part.good & part.loud[:, None, None]
        network = loud * part.effects[0] / (part.effects[0] * known).square().sum().sqrt()
        effects = torch.stack([network, torch.zeros_like(network), network])
        held.append(replace(part, effects=effects, left=true * network))
    at_new = fit_ieeg_blended(whole, trials, at_new_sites=held).weight[1]
    assert 0.5 < float(at_new[0]) < 0.8
    assert float(at_new[1]) == 0.0


def inventing(model, seed):
    """The same model with weights in its head that nothing taught."""
    weights = {name: value.clone() for name, value in model.weights.items()}
    head = weights["head.weight"]
    weights["head.weight"] = head + 0.3 * torch.randn(head.shape, generator=generator(seed, "invented"))
    return replace(model, weights=weights)


def test_far_from_past_trials_the_network_told_of_none_is_asked(model, trials, held_out):
    """Shaft A has a past and B, 30 mm from it, none. What is invented there is turned down by what is invented on A."""
    montage, half = trials.response.montage, len(trials.response.montage.contacts) // 2
    some = trials[~(trials.stimulus.amplitude_ma[:, half:] != 0).any(-1)]
    whole = inventing(model, 5).for_patient(montage, some.context, some, samples=125)
    blend = fit_ieeg_blended(whole, some)
    far, _, _ = blend.weight.tolist()
    assert far[:2] == [0.0, 0.0]
    assert 0.0 <= far[2] < 0.8
    elsewhere = held_out[(held_out.stimulus.amplitude_ma[:, half:] != 0).any(-1)]
    context, stimulus = elsewhere.context, elsewhere.stimulus
    none = no_stimulus(montage, (len(elsewhere),))

    def effect(forecaster):
        return forecaster.forecast(context, stimulus).mean - forecaster.forecast(context, none).mean

    assert torch.allclose(effect(blend), far[2] * effect(whole.untold), atol=1e-3)
    one, other = (f.forecast(context, stimulus).total_scale_uv for f in (blend, replace(blend, wider=(2.0, 1.0, 1.0))))
    assert torch.allclose(other, 2 / blend.wider[0] * one)  # all of it, for no rest was asked
    assert blend.shares(none.amplitude_ma).tolist() == [[0.0, 1.0, 0.0]] * len(none.amplitude_ma)
    both = some.stimulus.amplitude_ma[0] / some.stimulus.amplitude_ma[0].abs().sum()
    other = stimulus.amplitude_ma[0] / stimulus.amplitude_ma[0].abs().sum()
    apart = torch.stack([blend.shares(both + step * (other - both)) for step in (0.0, 0.4, 0.6, 0.8, 1.0)])
    torch.testing.assert_close(apart.sum(-1), torch.ones(5, dtype=torch.float64))
    assert apart[0].tolist() == [0.0, 0.0, 1.0]
    assert apart[-1].tolist() == [1.0, 0.0, 0.0]
    assert bool((apart[:, 0].diff() > 0)[1:].all())


def test_where_places_are_not_known_nothing_is_far():
    place = torch.tensor([[0.0, 0, 0], [5, 0, 0], [0, 40, 0], [5, 40, 0], [math.nan] * 3])
    sites = torch.tensor([[0.5, 0.5, 0, 0, 0]])
    asked = torch.tensor([[-1.0, 1, 0, 0, 0], [0, 0, -1, 1, 0], [0, 0, 0, -1, 1], [0, 0, 0, 0, 0]])
    assert site_distance_mm(asked, sites, place).tolist() == pytest.approx([0.0, 40.0, 0.0, 0.0])
    assert site_distance_mm(asked, sites[:0], place).tolist() == [0.0] * 4


def test_a_current_that_enters_half_elsewhere_is_at_a_new_site():
    sites = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    asked = torch.tensor(
        [[-2.0, 2.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0], [-1.0, 0.5, 0.5, 0.0], [0, -1.0, 1.0, 0], [0] * 4]
    )
    assert seen_share(asked, sites).tolist() == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])
    assert seen_share(asked, sites[:0]).tolist() == [0.0] * 5


def test_a_blend_of_one_is_the_network_and_of_none_the_linear_model(whole, trials, held_out):
    blend = fit_ieeg_blended(whole, trials)
    context, stimulus = held_out.context[:3], held_out.stimulus[:3]
    network, linear = (replace(blend, weight=torch.eye(3)[[own] * 3], wider=(1.0, 1.0, 1.0)) for own in (0, 1))
    expected = blend.plain.forecast(context, stimulus)
    assert torch.allclose(network.forecast(context, stimulus).mean, expected.mean, atol=1e-4)
    effect = (
        network.forecast(context, stimulus).mean - network.forecast(context, no_stimulus(stimulus.montage, (3,))).mean
    )
    wide = (expected.total_scale_uv.square() + 0.03 * effect.square()).sqrt()
    torch.testing.assert_close(network.forecast(context, stimulus).total_scale_uv, wide)
    added = linear.forecast(context, stimulus).mean - linear.forecast(context, no_stimulus(stimulus.montage, (3,))).mean
    assert torch.allclose(added, blend.linear.effect_uv(stimulus).to(added), atol=1e-4)
    shared = blend.forecast(held_out.context[0], stimulus).mean
    each = blend.forecast(held_out.context[torch.zeros(3, dtype=torch.long)], stimulus).mean
    assert torch.allclose(shared, each, atol=1e-4)


def test_noise_is_narrower_at_seen_sites_where_trials_there_ask_for_it(whole, trials, held_out):
    blend = fit_ieeg_blended(whole, trials)
    narrower, plain = blend.wider[2] / blend.wider[1], blend.wider[:2] + blend.wider[1:2]
    assert 0.3 < narrower < 1.0  # a linear truth is known better where a site has a past
    seen = trials.stimulus[~trials.stimulus.silent][:3]
    one, other = (f.forecast(held_out.context[0], seen) for f in (blend, replace(blend, wider=plain)))
    assert torch.allclose(one.total_scale_uv, narrower * other.total_scale_uv)
    assert torch.equal(one.mean, other.mean)
    elsewhere = replace(blend, sites=blend.sites[:0])
    assert torch.equal(
        elsewhere.forecast(held_out.context[0], seen).total_scale_uv,
        replace(elsewhere, wider=plain).forecast(held_out.context[0], seen).total_scale_uv,
    )


def test_parts_of_a_blend_share_no_site(whole, trials):
    parts = site_parts(trials.stimulus, 4, 0)
    sites = [
        {tuple(row.tolist()) for row in trials.stimulus.amplitude_ma[part] != 0 if bool(row.any())} for part in parts
    ]
    assert sorted(torch.cat(parts).tolist()) == list(range(len(trials)))
    assert sum(len(some) for some in sites) == len(set.union(*sites))
    one = trials[:1].stimulus[torch.zeros(10, dtype=torch.long)]
    assert [len(part) for part in site_parts(one, 4, 0)] == [3, 3, 3, 1]
    with pytest.raises(DataError, match="at least 8 trials, all samples finite, got 7"):
        fit_ieeg_blended(whole, trials[:7])
    missing = trials.response.signal_uv.clone()
    missing[3, 1, :10] = math.nan
    hollow = replace(trials, response=replace(trials.response, signal_uv=missing))
    for few in (trials[:7], hollow):
        forecast = fit_ieeg_adapted(few, adapt="blended").forecast(trials.context[:2], trials.stimulus[:2])
        assert forecast.mean.isfinite().all()


def test_a_saved_blend_forecasts_alike(whole, trials, held_out, tmp_path):
    blend = fit_ieeg_blended(whole, trials)
    save_checkpoint(tmp_path / "blend", KIND, blend, {"title": "a blend"})
    again = load_checkpoint(tmp_path / "blend", {KIND: SavedFoundation})
    one, other = (f.forecast(held_out.context, held_out.stimulus) for f in (blend, again))
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.total_scale_uv, other.total_scale_uv)
