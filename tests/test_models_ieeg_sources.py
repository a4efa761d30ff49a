"""Circuits of sources: their equation, what is learned of many patients, and what is fitted to one."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from linear_truth import linear_truth, silent_rows
from scipy.integrate import solve_ivp
from untrained import untrained

from stimopt.checkpoint import load_checkpoint, save_checkpoint
from stimopt.errors import CheckpointError, ConfigError, DataError
from stimopt.forecaster import Trials
from stimopt.models import ieeg_adapt
from stimopt.models.ieeg_blended import fit_ieeg_blended
from stimopt.models.ieeg_foundation import KIND as FOUNDATION
from stimopt.models.ieeg_foundation import FoundationForecaster, load_foundation
from stimopt.models.ieeg_ongoing import fit_ongoing
from stimopt.models.ieeg_parts import OngoingForecaster, fit_ieeg_ongoing
from stimopt.models.ieeg_residual import MOST_PAST
from stimopt.models.ieeg_saved import SavedFoundation
from stimopt.models.ieeg_sourced import SourcedForecaster, fit_ieeg_sourced
from stimopt.models.ieeg_sources import (
    KIND,
    STEP_HZ,
    SourceModel,
    Sources,
    SourceSize,
    Tissue,
    Trains,
    effects,
    first_own,
    first_shared,
    load_sources,
    side_by_side,
    steps_of,
    trains_of,
)
from stimopt.models.ieeg_sources_training import Effects, SourceRecipe, learned, train_ieeg_sources
from stimopt.models.ieeg_transformer import TransformerSize
from stimopt.montage import Channel, Contact, Montage, monopolar
from stimopt.skill import held_out_skill
from stimopt.stimulus import Sensory, no_stimulus, pulse_train
from stimopt.tensors import generator
from stimopt.testing import check_forecaster

pytestmark = pytest.mark.usefixtures("remembered_regressions")

SIZE = SourceSize(3, 4)
SHAFT = tuple(Contact(f"A{i}", shaft="A", position_mm=(3.5 * i, 0.0, 0.0)) for i in range(6))
MONTAGE = monopolar(SHAFT)
CARD = {"title": "Test", "training_data": "None.", "metrics": {}, "limits": "A test.", "simulated": True}


@pytest.fixture
def model():
    return sources_model(0)


def sources_model(seed):
    """Numbers as if learned, each of them at work."""
    source = generator(seed, "model")
    shared = {n: v + 0.1 * torch.randn(v.shape, generator=source) for n, v in first_shared(SIZE, source).items()}
    own = first_own(SIZE, tissue(), source)
    usual = {n: 0.1 * torch.randn(v.shape[1:], generator=source) for n, v in own.items() if n != "place"}
    return SourceModel(SIZE, shared, usual, {n: torch.tensor(0.3) for n in usual})


def tissue(montage=MONTAGE, circuits=1):
    place, read = montage.contact_position_mm.float(), montage.channel_matrix.float()
    return Tissue(place.expand(circuits, -1, -1), read.expand(circuits, -1, -1))


def patient(model, seed=1, circuits=1, montage=MONTAGE):
    own = model.begun(tissue(montage, circuits), generator(seed, "own"))
    return Sources(model, own, tissue(montage), torch.ones(len(montage.channels)))


def train(pair="A1-A2", **changes):
    given = {"amplitude_ma": 3.0, "frequency_hz": 40.0, "pulse_width_us": 200.0, "pulses": 6} | changes
    return pulse_train(MONTAGE, pair, **given)


def test_a_source_solves_its_equation(model):
    """Against scipy, one circuit step by step with the input held, populations and sources coupled."""
    own = {n: v.double() for n, v in model.begun(tissue(), generator(3, "own")).items()}
    shared = {n: v.double() for n, v in model.shared.items()}
    trains = side_by_side(trains_of(train().reshape(1), 50), 1)
    played = effects(shared, own, tissue(), trains)[0, 0]

    deep = {n: v[0].numpy() for n, v in own.items()}
    flat = {n: v.numpy() for n, v in shared.items()}
    place, contact = 10 * deep["place"], MONTAGE.contact_position_mm.numpy()
    apart = np.linalg.norm(place[:, None] - contact[None], axis=-1)
    blunt, width = np.exp(flat["blunt"] + deep["blunt"]), 200.0
    field = 10 * (1 / np.sqrt(apart**2 + blunt**2)) @ train().amplitude_ma.numpy()
    field *= width / (width + np.exp(flat["chronaxie"]))
    strength = (field / np.exp(flat["half"] + deep["half"])) ** 2
    cathodic = 1 / (1 + np.exp(20 * field))
    weight = cathodic + (1 - cathodic) * np.exp(flat["anodic"] + deep["anodic"])
    followed = 1 / (1 + (40.0 / np.exp(flat["follow"] + deep["follow"])) ** 2)
    arriving = strength / (1 + strength) * weight * followed * np.exp(deep["gain"])
    rate = np.broadcast_to(np.exp(flat["rate"] + deep["rate"]), (3, 4))
    bias, size = flat["bias"] + deep["bias"], np.exp(deep["size"])
    hearing = (flat["hearing"] + deep["hearing"]) * arriving[:, None]
    coupling, reading = flat["coupling"] + deep["coupling"], flat["reading"] + deep["reading"]
    lead = np.exp(deep["lead"]) / (1 + (apart.T / np.exp(flat["reach"] + deep["reach"])) ** 2)

    state, speed, read = np.zeros((3, 4)), np.zeros((3, 4)), []
    for pulse in trains.pulses[0, 0].tolist():
        sent = (state @ flat["sending"]) @ deep["tie"]
        drive = state @ coupling + sent[:, None] * flat["listening"] + bias
        answer = size * (np.tanh(drive + hearing) - np.tanh(drive)) + flat["past_bound"] * hearing  # of a whole pulse
        wanted = size * (np.tanh(drive) - np.tanh(bias)) + pulse * answer

        def change(_, both, wanted=wanted):
            y, y_dot = both.reshape(2, 3, 4)
            return np.concatenate([y_dot.ravel(), (rate**2 * (wanted - y) - 2 * rate * y_dot).ravel()])

        begun = np.concatenate([state.ravel(), speed.ravel()])
        state, speed = solve_ivp(change, (0, 1 / STEP_HZ), begun, rtol=1e-10, atol=1e-13).y[:, -1].reshape(2, 3, 4)
        read.append(lead @ (state @ reading))
    torch.testing.assert_close(played, torch.tensor(np.array(read).T), rtol=1e-6, atol=1e-9)
    assert played.abs().amax() > 5e-4


def test_without_a_current_nothing_moves(model):
    sources = patient(model)
    assert not sources.effect(no_stimulus(MONTAGE, (2,)), 250.0, 125).any()
    assert not sources.effect(train(amplitude_ma=0.0), 250.0, 125).any()
    assert sources.effect(train(), 250.0, 125).any()


def test_a_pulse_that_recruits_all_answers_no_more_when_doubled(model):
    sources = patient(model)
    small, large, more = (sources.effect(train(amplitude_ma=a), 250.0, 125).abs().amax() for a in (0.1, 800.0, 1600.0))
    assert small < 0.1 * large
    torch.testing.assert_close(more, large, rtol=0.01, atol=0.0)


def test_other_rates_read_the_same_course(model):
    sources = patient(model)
    usual, fine = sources.effect(train(), 250.0, 125), sources.effect(train(), 1000.0, 500)
    torch.testing.assert_close(fine[..., 3::4], usual)
    torch.testing.assert_close(fine[..., 1], usual[..., 0] / 2)


@pytest.mark.parametrize(("samples", "rate_hz", "steps"), [(125, 250.0, 125), (500, 1000.0, 125), (50, 512.0, 25)])
def test_a_window_takes_the_steps_that_cover_it(samples, rate_hz, steps):
    assert steps_of(samples, rate_hz) == steps


def test_pairs_of_contacts_read_the_difference(model):
    pairs = Montage(SHAFT, (Channel("A0-A1", "A0", "A1"), Channel("A3", "A3")))
    sources = patient(model)
    both = replace(sources, tissue=tissue(pairs), unit=torch.ones(2)).effect(
        replace(train(), montage=pairs), 250.0, 125
    )
    single = sources.effect(train(), 250.0, 125)
    torch.testing.assert_close(both, torch.stack([single[0] - single[1], single[3]]))


def test_a_pulse_between_two_steps_recruits_as_one_in_a_step(model):
    """However strong: shared between steps, it is not bounded twice, so its answer is as large."""
    sources, strong = patient(model), train(amplitude_ma=50.0, pulses=1)
    on, between = (
        sources.effect(replace(strong, onset_s=strong.onset_s + late_s), 250.0, 125).square().sum().sqrt()
        for late_s in (0.1, 0.102)
    )
    torch.testing.assert_close(between, on, rtol=0.02, atol=0.0)


@pytest.mark.parametrize("knob", ["amplitude_ma", "frequency_hz", "pulse_width_us"])
def test_effects_are_smooth_in_the_stimulus(model, knob):
    """Against central differences, float64; pulses are moved by a little less than a step."""
    sources, stimulus = patient(model), train().reshape(1)

    def size(factor):
        changed = replace(stimulus, **{knob: getattr(stimulus, knob) * factor})
        return sources.effect(changed, 250.0, 125).square().mean()

    factor = torch.tensor(1.003, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(size(factor), factor)[0]
    moved = [size(torch.tensor(1.003 + step, dtype=torch.float64)).detach() for step in (1e-6, -1e-6)]
    torch.testing.assert_close(slope, (moved[0] - moved[1]) / 2e-6, rtol=1e-4, atol=1e-9)


def test_several_circuits_answer_with_their_mean(model):
    sources = patient(model, circuits=3)
    alone = [replace(sources, own={n: v[i : i + 1] for n, v in sources.own.items()}) for i in range(3)]
    each = torch.stack([one.effect(train(), 250.0, 125) for one in alone])
    torch.testing.assert_close(sources.effect(train(), 250.0, 125), each.mean(0))


def test_circuits_agree_as_far_as_their_mean_stands_out(model):
    """Channel by channel, against each circuit alone, who agrees with itself; on silence nobody says anything."""
    sources = patient(model, circuits=3)
    alone = [replace(sources, own={n: v[i : i + 1] for n, v in sources.own.items()}) for i in range(3)]
    each = torch.stack([one.effect(train(), 250.0, 125) for one in alone])
    mean, agreed = sources.told(train(), 250.0, 125)
    size, doubt = mean.square().mean(-1, keepdim=True), each.var(0).mean(-1, keepdim=True)
    torch.testing.assert_close(agreed, size / (size + 3 * doubt))
    assert agreed.shape == (6, 1)
    assert 0.01 < float(agreed.min()) < float(agreed.max()) < 0.99
    torch.testing.assert_close(alone[0].told(train(), 250.0, 125)[1], torch.ones(6, 1).double())
    assert not sources.told(no_stimulus(MONTAGE, (2,)), 250.0, 125)[1].any()


def test_a_checkpoint_holds_what_patients_share_and_is_read_strictly(model, tmp_path):
    save_checkpoint(tmp_path / "model", KIND, model, CARD)
    again = load_sources(tmp_path / "model")
    same = patient(again).effect(train(), 250.0, 125)
    assert torch.equal(same, patient(model).effect(train(), 250.0, 125))
    config, tensors = model.export()
    with pytest.raises(CheckpointError, match="not those of circuits of this size"):
        SourceModel.restore({"size": {"sources": 4, "populations": 4}}, tensors)
    with pytest.raises(CheckpointError, match="not those of circuits of this size"):
        SourceModel.restore(config, {n: v for n, v in tensors.items() if n != "shared.half"})


def made_patients(count, windows=40):
    """Patients whose effects are those of circuits."""
    truth, found = sources_model(5), []
    for number in range(count):
        source = generator(number, "stimuli")
        pair = torch.randint(5, (windows,), generator=source)
        current = torch.zeros(windows, 6)
        current[torch.arange(windows), pair], current[torch.arange(windows), pair + 1] = -4.0, 4.0
        pulses = torch.zeros(windows, 60)
        every = torch.randint(5, 20, (windows,), generator=source)
        for row, step in zip(pulses, every.tolist(), strict=True):
            row[:40:step] = 1.0
        trains = Trains(current, torch.full((windows,), 200.0), STEP_HZ / every, pulses)
        own = truth.begun(tissue(), source)
        effect = effects(truth.shared, own, tissue(), side_by_side(trains, 1))[0]
        found.append(Effects(MONTAGE.contact_position_mm.float(), MONTAGE.channel_matrix.float(), trains, effect))
    return found


def test_what_patients_share_is_learned_and_how_far_they_differ():
    recipe = SourceRecipe(steps=200, windows=12, size=SIZE)
    model, left = learned(made_patients(5), recipe)
    _, first = learned(made_patients(5), replace(recipe, steps=1))
    assert left < 0.35 * first
    assert model.usual["tie"].abs().sum() == 0
    assert all(0.0199 < float(spread) < math.inf for spread in model.spread.values())
    again, _ = learned(made_patients(5), recipe)
    assert all(torch.equal(again.shared[n], v) for n, v in model.shared.items())


def test_a_trainer_refuses_what_it_cannot_learn_from(tmp_path):
    def trained(recordings=(), **recipe):
        return train_ieeg_sources(
            lambda: ([], tmp_path, dict(recordings)), tmp_path, tmp_path / "out", recipe=recipe, machine={},
            resume=False, command="test",
        )  # fmt: skip

    with pytest.raises(DataError, match="recordings do not tell"):
        trained({"one": None})
    with pytest.raises(DataError, match="no patient was recorded in branches"):
        trained()
    with pytest.raises(ConfigError, match="give 1 or more"):
        trained(steps=0)
    with pytest.raises(ConfigError, match="'rate' is not known"):
        trained(rate=1.0)


TRUTH = linear_truth(6)


@pytest.fixture(scope="module")
def trials():
    return TRUTH.trials(silent_rows(TRUTH.random_stimuli(24, 1), 4), 1)


@pytest.fixture(scope="module")
def plain(trials):
    """A network that was never trained: what is learnt is learnt from the patient."""
    return unlearned(trials)


def unlearned(trials):
    model = untrained(TransformerSize(16, 1, 16, 1, heads=2, hubs=2, rhythms=2, factors=2))
    return model.for_patient(TRUTH.montage, trials.context, trials, samples=125)


def shipped(trials):
    """The shipped network, told of these, and the patient's own forecast of ongoing activity."""
    plain = load_foundation().for_patient(TRUTH.montage, trials.context, trials, samples=125)
    return plain, fit_ongoing(plain, TRUTH.trials(no_stimulus(TRUTH.montage, (8,)), 9).context)


@pytest.fixture(scope="module")
def sourced(plain, trials):
    return fit_ieeg_sourced(plain, trials, circuits=2, steps=15)


def test_a_fit_keeps_the_contract_and_can_be_saved(sourced, tmp_path):
    held = TRUTH.trials(TRUTH.random_stimuli(4, 2), 2)
    check_forecaster(sourced, held.context, held.stimulus, differentiable=True)
    save_checkpoint(tmp_path / "model", FOUNDATION, sourced, CARD)
    again = load_checkpoint(tmp_path / "model", {FOUNDATION: SavedFoundation})
    one, other = (f.forecast(held.context, held.stimulus) for f in (sourced, again))
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.scale_uv, other.scale_uv)


def test_sources_learn_what_a_patient_answers(sourced):
    """At sites with a past, from 20 trials with a current; the share is no more than a half."""
    held = TRUTH.trials(TRUTH.random_stimuli(12, 4), 4)
    assert 0 <= sourced.share <= 0.5
    quiet = replace(sourced.base, weight=0 * sourced.base.weight)
    alone, before = (held_out_skill(f, held)["r2"] for f in (replace(sourced, share=1.0), quiet))
    assert alone > before + 0.05


def test_a_fit_is_the_same_again_and_another_with_another_seed(sourced, plain, trials):
    again, other = (fit_ieeg_sourced(plain, trials, circuits=2, steps=15, seed=seed) for seed in (0, 1))
    assert all(torch.equal(again.sources.own[n], v) for n, v in sourced.sources.own.items())
    assert again.share == sourced.share
    assert not torch.equal(other.sources.own["place"], sourced.sources.own["place"])


def test_a_share_of_none_is_the_blend(sourced, plain, trials):
    held = TRUTH.trials(TRUTH.random_stimuli(3, 5), 5)
    same = replace(sourced, share=0.0, narrower=1.0).forecast(held.context, held.stimulus)
    torch.testing.assert_close(same.mean, fit_ieeg_blended(plain, trials).forecast(held.context, held.stimulus).mean)


def test_more_trials_than_a_context_holds_are_all_learned_from():
    trials = TRUTH.trials(TRUTH.random_stimuli(MOST_PAST + 8, 1), 1)
    made = fit_ieeg_sourced(unlearned(trials), trials, circuits=1, steps=2)
    assert len(made.base.plain.past.numbers) == MOST_PAST
    assert made.sources.own["place"].isfinite().all()


def test_what_reaches_the_senses_is_left_to_the_blend(sourced):
    """Row by row: of a flash circuits know nothing, and nothing is no half of an answer."""
    held = TRUTH.trials(TRUTH.random_stimuli(2, 6), 6)
    some = torch.tensor([0.0, 1.0], dtype=torch.float64)
    none = torch.zeros_like(some)
    flash = Sensory("visual", some, none, torch.full_like(some, 0.1), none, none.new_zeros(2, 0))
    stimulus = replace(held.stimulus, sensory=flash)
    mean, blended = (f.forecast(held.context, stimulus).mean for f in (replace(sourced, share=0.5), sourced.base))
    assert torch.equal(mean[1], blended[1])
    assert not torch.equal(mean[0], blended[0])


def test_where_circuits_disagree_the_blend_has_the_say(sourced):
    """Of two circuits with the same answer half a say is theirs; where one turns its sign nothing is."""
    held, sources = TRUTH.trials(TRUTH.random_stimuli(4, 8), 8), sourced.sources
    twice = {name: value[:1].expand(2, *value.shape[1:]) for name, value in sources.own.items()}
    agreeing = replace(sourced, share=0.5, sources=replace(sources, own=twice))
    turned = twice["reading"].clone()
    turned[1] = -turned[1] - 2 * sources.model.shared["reading"]
    against = replace(agreeing, sources=replace(sources, own=twice | {"reading": turned}))
    mean, doubted, blended = (f.forecast(held.context, held.stimulus).mean for f in (agreeing, against, sourced.base))
    torch.testing.assert_close(doubted, blended)
    assert (mean - blended).abs().amax() > 1e-3 * blended.abs().amax()


def lost(trials, *names):
    """The same trials on a montage where nobody knows where these contacts are."""
    montage = trials.response.montage
    contacts = tuple(replace(c, position_mm=(math.nan,) * 3) if c.name in names else c for c in montage.contacts)
    montage = replace(montage, contacts=contacts)
    parts = (replace(part, montage=montage) for part in (trials.context, trials.stimulus, trials.response))
    return Trials(*parts)


def test_a_contact_without_a_place_is_left_to_the_blend(trials):
    """Its currents and its channel; all else circuits answer as elsewhere."""
    name = TRUTH.montage.contacts[0].name
    some = lost(trials, name)
    made = fit_ieeg_sourced(unlearned(some), some, circuits=2, steps=10)
    assert made.sources.own["place"].isfinite().all()
    held = lost(TRUTH.trials(TRUTH.random_stimuli(12, 7), 7), name)
    there = held.stimulus.amplitude_ma[:, 0] != 0
    assert 0 < int(there.sum()) < 12
    mean, blended = (f.forecast(held.context, held.stimulus).mean for f in (replace(made, share=0.5), made.base))
    assert torch.equal(mean[there], blended[there])
    assert torch.equal(mean[:, 0], blended[:, 0])
    assert not (mean[~there, 1:] == blended[~there, 1:]).all(-1).any()


def test_sources_need_places(plain, trials):
    nowhere = lost(trials, *(contact.name for contact in TRUTH.montage.contacts))
    with pytest.raises(DataError, match="position_mm: 8 without a missing sample, or fewer"):
        fit_ieeg_sourced(plain, nowhere)


@pytest.fixture(scope="module")
def tissue_trials():
    """What a circuit of sources answers on top of a patient's ongoing activity, five trials and a dozen others."""
    circuit = replace(patient(load_sources(), montage=TRUTH.montage), unit=torch.full((6,), 3.0))
    made = []
    for count, seed in ((5, 1), (12, 4)):
        stimulus = TRUTH.random_stimuli(count, seed)
        calm = TRUTH.trials(no_stimulus(TRUTH.montage, (count,)), seed)
        signal = calm.response.signal_uv
        added = circuit.effect(stimulus, 250.0, signal.shape[-1]) * signal.std((0, 2)).unsqueeze(-1)
        made.append(replace(calm, stimulus=stimulus, response=replace(calm.response, signal_uv=signal + added)))
    return made


@pytest.fixture(scope="module")
def few(tissue_trials):
    """Five of them, the network told of these, and the patient's own forecast of ongoing activity."""
    return tissue_trials[0], *shipped(tissue_trials[0])


def test_a_few_trials_are_learned_from_too(few, tissue_trials):
    """Beside the network's effects on ongoing activity; without held-out trials the share is what their number says."""
    trials, plain, ongoing = few
    made = fit_ieeg_sourced(plain, trials, circuits=2, steps=60, ongoing=ongoing)
    assert isinstance(made.base, OngoingForecaster)
    assert made.share == pytest.approx(0.5 * 5 / 7)
    assert made.narrower == 1.0
    held = tissue_trials[1]
    same = replace(made, share=0.0).forecast(held.context, held.stimulus)
    without = fit_ieeg_ongoing(plain, ongoing).forecast(held.context, held.stimulus)
    assert torch.equal(same.mean, without.mean)
    assert torch.equal(same.total_scale_uv, without.total_scale_uv)
    told, before = (held_out_skill(f, held)["r2"] for f in (made, made.base))
    assert told > before + 0.01


def test_circuits_that_explain_no_trial_are_given_no_share(trials):
    """Of a patient whose neighbouring channels answer with opposite signs, however far away the current enters."""
    few = trials[~trials.stimulus.silent][:5]
    plain, ongoing = shipped(few)
    assert fit_ieeg_sourced(plain, few, circuits=2, steps=20, ongoing=ongoing).share == 0.0


def test_what_a_few_trials_taught_can_be_saved(few, tmp_path):
    trials, plain, ongoing = few
    made = fit_ieeg_sourced(plain, trials, circuits=1, steps=2, ongoing=ongoing)
    check_forecaster(made, trials.context, trials.stimulus, differentiable=True)
    save_checkpoint(tmp_path / "model", FOUNDATION, made, CARD)
    again = load_checkpoint(tmp_path / "model", {FOUNDATION: SavedFoundation})
    one, other = (f.forecast(trials.context, trials.stimulus) for f in (made, again))
    assert isinstance(again.base, OngoingForecaster)
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.total_scale_uv, other.total_scale_uv)


def test_a_few_trials_need_a_current_and_the_patients_own_forecast(few):
    trials, plain, ongoing = few
    silent = replace(trials, stimulus=no_stimulus(TRUTH.montage, (5,)))
    with pytest.raises(DataError, match="need trials of currents"):
        fit_ieeg_sourced(plain, silent, ongoing=ongoing)
    with pytest.raises(DataError, match="or fewer and `ongoing`; got 5 of 5"):
        fit_ieeg_sourced(plain, trials)


def test_a_search_that_runs_away_is_given_up(trials, monkeypatch):
    """With steps that are far too large circuits answer without end; what is kept answers all the same."""
    monkeypatch.setattr("stimopt.models.ieeg_sourced._RATE", 1e4)
    plain = unlearned(trials)
    wild = fit_ieeg_sourced(plain, trials, circuits=2, steps=6)
    forecast = wild.forecast(trials.context[:3], trials.stimulus[:3])
    assert bool(forecast.mean.isfinite().all() & forecast.total_scale_uv.isfinite().all())
    assert all(bool(value.isfinite().all()) for value in wild.sources.own.values())


def test_a_search_without_steps_is_refused(trials):
    with pytest.raises(ConfigError, match="steps is 0; give 1 or more"):
        ieeg_adapt.fit_ieeg_adapted(trials, adapt="sources", steps=0)
    with pytest.raises(ConfigError, match="1 step and 1 circuit or more, got 0 and 8"):
        fit_ieeg_sourced(unlearned(trials), trials, steps=0)


def test_sources_are_asked_for_by_name(trials, monkeypatch):
    """Where there is no trial, or no rest long enough to say what a few trials added to, there are none."""
    monkeypatch.setattr(ieeg_adapt, "fit_ieeg_sourced", partial(fit_ieeg_sourced, circuits=1))
    rest = TRUTH.trials(no_stimulus(TRUTH.montage, (8,)), 9).context
    made, few = (ieeg_adapt.fit_ieeg_adapted(trials[:n], adapt="sources", steps=2, rest=rest) for n in (10, 5))
    assert isinstance(made, SourcedForecaster)
    assert made.sources.model.size == load_sources().size
    assert isinstance(few, SourcedForecaster)
    assert isinstance(ieeg_adapt.fit_ieeg_adapted(trials[:0], adapt="sources", rest=rest), OngoingForecaster)
    assert isinstance(ieeg_adapt.fit_ieeg_adapted(trials[:1], adapt="sources", rest=rest[:1]), FoundationForecaster)


def test_the_shipped_sources_say_what_they_are():
    model = load_sources()
    assert model.size.sources >= 8
    assert math.isfinite(
        sum(float(v.sum()) for part in (model.shared, model.usual, model.spread) for v in part.values())
    )
    card = (Path(__file__).parent.parent / "models" / "checkpoints" / "ieeg-sources" / "README.md").read_text()
    assert "simulat" in card
    assert "wilson-cowan" not in card
