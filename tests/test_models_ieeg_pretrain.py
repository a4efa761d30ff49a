"""Pretraining: batches that repeat, runs that survive SIGKILL, processes that train as one, checkpoints that say so."""

import importlib.util
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stimopt import plugins, pretraining
from stimopt.checkpoint import read_config, save_checkpoint
from stimopt.errors import CheckpointError, ConfigError, DataError, RunError
from stimopt.forecaster import Context, Trials
from stimopt.models import ieeg_pretrain
from stimopt.models.ieeg_batches import Draw, draw_batch, patient_of
from stimopt.models.ieeg_checkpoint import checkpoint_of, trainable
from stimopt.models.ieeg_corpus import PatientRecord, save_record
from stimopt.models.ieeg_foundation import KIND, FoundationModel, foundation_card, load_foundation
from stimopt.models.ieeg_judging import coverage_apart, error_ratios, fitted_temper, judged
from stimopt.models.ieeg_losses import Weights, change_loss, losses, size_loss, total
from stimopt.models.ieeg_pretrain import Machine, begun, pace, pretrain, read_run
from stimopt.models.ieeg_recipe import Recipe, checked, recipe_of
from stimopt.models.ieeg_transformer import IeegTransformer, TransformerSize
from stimopt.montage import Channel, Contact, Montage
from stimopt.pretraining import pretrain_from, progress_bars, read_pretraining
from stimopt.response import Response
from stimopt.stimulus import Stimulus, no_stimulus
from stimopt.tensors import generator, stream_seed

TINY = TransformerSize(
    width=16, layers=1, ongoing_width=16, ongoing_layers=1, heads=2, hubs=2, rhythms=2, factors=2
)  # fmt: skip
DRAW = Draw(patients=2, asked=3, past=(0, 1, 2, 4), channels=3, patches=(3, 5))
RECIPE = Recipe(steps=8, seed=3, rise=3, every=2, hubs_only=0.5, size=TINY, draw=DRAW)
EXAMPLE = Path(__file__).parents[1] / "examples" / "pretrain.yaml"
RUN = """
import sys, time, torch
from pathlib import Path
from stimopt.models.ieeg_batches import patient_of
from stimopt.models.ieeg_corpus import read_record, records_in
from stimopt.models.ieeg_pretrain import Machine, pretrain
from stimopt.models.ieeg_recipe import checked, recipe_of
import json
torch.set_num_threads(1)
corpus, recipe, folder, slow, machine = sys.argv[1:]
patients = [patient_of(read_record(path)) for path in records_in(Path(corpus))]
pretrain(patients, recipe_of(json.loads(recipe)), Path(folder), tick=lambda step: time.sleep(float(slow)),
         machine=checked(Machine, json.loads(machine)))
"""
needs_fabric = pytest.mark.skipif(
    importlib.util.find_spec("lightning_fabric") is None, reason="Lightning Fabric is not installed: stimopt[pretrain]"
)


def montage_of(number):
    names = [f"{'AB'[i // 4]}{i % 4 + 1}" for i in range(8)]
    contacts = [Contact(n, (3.5 * (i % 4), 20.0 * (i // 4) + number, 0.0), shaft=n[0]) for i, n in enumerate(names)]
    pairs = [(a, b) for a, b in pairwise(names) if a[0] == b[0]]
    return Montage(tuple(contacts), tuple(Channel(f"{a}-{b}", a, b) for a, b in pairs[: 3 + number % 3]))


def pairs_on(montage, trials, source):
    """Single pairs at random places, every fourth trial silent."""
    amplitude_ma = torch.zeros(trials, 8)
    for trial in (t for t in range(trials) if t % 4 < 3):
        first = int(torch.randint(7, (), generator=source))
        amplitude_ma[trial, first : first + 2] = torch.tensor([-1.0, 1.0]) * (
            0.5 + 4 * torch.rand((), generator=source)
        )
    ones = torch.ones(trials)
    return Stimulus(montage, amplitude_ma, 20 * ones, 200 * ones, 3 * ones, 0 * ones, 0 * ones)


def record_of(number, *, twin=True, trials=16):
    """White noise, twins with branches or recordings without."""
    source, montage = generator(number, "record"), montage_of(number)

    def noise(rows, samples):
        return 10 * torch.randn(rows, len(montage.channels), samples, generator=source)

    played = Trials(
        Context(montage, noise(trials, 250), 250.0), pairs_on(montage, trials, source),
        Response(montage, noise(trials, 125), 250.0),
    )  # fmt: skip
    branches = (noise(trials, 125), pairs_on(montage, trials, source), noise(trials, 125)) if twin else ()
    family = "linear" if twin else "recorded"
    return PatientRecord(f"p{number}", family, twin, Context(montage, noise(6, 250), 250.0), played, *branches)


@pytest.fixture(scope="module")
def patients():
    return [patient_of(record_of(number)) for number in range(5)]


@pytest.fixture(scope="module")
def judges():
    return [patient_of(record_of(number)) for number in (7, 8)]


@pytest.fixture(scope="module")
def whole(patients, judges, tmp_path_factory):
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(patients, RECIPE, folder, validation=judges)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(5):
        save_record(record_of(number), folder / f"p{number}.safetensors")
    return folder


def lines_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- batches


def test_a_batch_depends_on_seed_step_and_rank_alone(patients):
    first, again = (draw_batch(patients, DRAW, 1, 5) for _ in range(2))
    assert torch.equal(first.truth, again.truth)
    for other in (
        draw_batch(patients, DRAW, 1, 6),
        draw_batch(patients, DRAW, 2, 5),
        draw_batch(patients, DRAW, 1, 5, 1),
    ):
        assert first.truth.shape != other.truth.shape or not torch.equal(first.truth, other.truth)


def test_processes_draw_other_patients_with_as_many_past_trials(patients):
    for step in range(4):
        batches = [draw_batch(patients, DRAW, 1, step, rank) for rank in (0, 1)]
        middles = [set(batch.subject.rest_uv.flatten().tolist()) - {0.0} for batch in batches]
        assert not middles[0] & middles[1]
        assert len({batch.past.charge.shape[1] for batch in batches}) == 1
        assert len({batch.asked.context.shape[-1] for batch in batches}) == 1


def test_pairs_of_contacts_are_read_either_way_round():
    paired = patient_of(record_of(0))  # its channels are pairs
    signs = set()
    for step in range(6):
        batch = draw_batch([paired], replace(DRAW, unheard=0.0), 1, step)
        which = [int((paired.subject.rest_uv == middle).nonzero()) for middle in batch.subject.rest_uv[0]]
        own = paired.branches[0].response[:, which]  # [trial, channel, time]
        here = torch.einsum("nct,kct->cnk", batch.truth[0], own) / own.square().sum(-1).mT.unsqueeze(1)
        sign = here.flatten(1).gather(-1, here.flatten(1).abs().sub(1).abs().argmin(-1, keepdim=True))[:, 0].round()
        ties = paired.subject.tie[which][:, which] * (sign.unsqueeze(-1) * sign).unsqueeze(-1)
        torch.testing.assert_close(batch.subject.tie[0], ties)
        signs |= set(sign.tolist())
    assert signs == {-1.0, 1.0}


def test_a_batch_holds_twins_or_recordings_and_never_both(patients):
    mixed = [*patients, *(patient_of(record_of(number, twin=False)) for number in range(10, 15))]
    branches = [draw_batch(mixed, DRAW, 1, step).branches for step in range(20)]
    assert {1, 3} == set(branches)  # 0.5 ** 19 to fail by chance, and the seed is fixed


def test_the_learning_rate_rises_and_falls_to_a_hundredth():
    recipe = replace(RECIPE, steps=100, rise=10)
    shares = [pace(step, recipe) for step in range(101)]
    assert shares[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert all(a >= b for a, b in pairwise(shares[10:]))
    assert shares[100] == pytest.approx(0.01)


# ---- runs


def test_a_run_killed_with_sigkill_and_resumed_ends_with_the_same_bits(patients, corpus, judges, whole, tmp_path):
    plain = json.loads((whole / "config.json").read_text())
    command = [sys.executable, "-c", RUN, str(corpus), json.dumps(plain), str(tmp_path / "run"), "0.2", "{}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "state.safetensors").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    time.sleep(0.5)  # some steps beyond the state that was saved
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert lines_of(tmp_path / "run")[-1]["step"] < RECIPE.steps
    pretrain(patients, RECIPE, tmp_path / "run", validation=judges, resume=True)
    states = [load_file(folder / "state.safetensors") for folder in (whole, tmp_path / "run")]
    assert same(*states)  # weights, averages, and the optimiser's steps and moments
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [2, 4, 6, 8]


def test_a_line_without_its_state_and_a_torn_line_are_dropped(patients, whole, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "state.safetensors"):
        (folder / name).write_bytes((whole / name).read_bytes())
    written = (whole / "log.jsonl").read_text()
    (folder / "log.jsonl").write_text(written + '{"step": 10, "loss": 1.0}\n{"step": 12, "lo')
    pretrain(patients, RECIPE, folder, resume=True)
    assert (folder / "log.jsonl").read_text() == written


def test_reports_hold_losses_throughput_and_what_validation_says(whole):
    last = lines_of(whole)[-1]
    assert {"forecast", "joint", "effect", "ongoing", "statistics", "loss"} <= last.keys()
    assert last["windows_per_second"] * last["seconds_per_step"] == pytest.approx(
        2 * 3 * 3
    )  # patients, asked, branches
    assert 0.8 < last["validation_coverage_90_5"] < 1.0  # noise of the spread at rest, which first weights forecast
    assert all(math.isfinite(value) for value in last.values())


def test_averaged_weights_are_what_a_run_gives(patients, whole, tmp_path):
    recipe, network, step = read_run(whole)
    assert (recipe, step) == (RECIPE, 8)
    assert same(network.state_dict(), pretrain(patients, RECIPE, tmp_path / "again").state_dict())
    assert not network.training


def test_patients_join_in_their_order(patients, tmp_path):
    joining = replace(RECIPE, joining=(3, 0.0))
    pretrain(patients, joining, tmp_path / "joining")
    pretrain(patients[:3], RECIPE, tmp_path / "first")
    assert same(*(load_file(tmp_path / name / "state.safetensors") for name in ("joining", "first")))
    assert [replace(RECIPE, joining=(3, 0.5)).joined(step) for step in (0, 1, 2, 5)] == [3, 3, 4, 5]
    with pytest.raises(ConfigError, match="give 1 patient or more"):
        replace(RECIPE, joining=(0, 1.0))


def test_a_run_of_another_recipe_or_of_other_processes_is_refused(patients, whole, tmp_path):
    with pytest.raises(CheckpointError, match="holds a run already"):
        pretrain(patients, RECIPE, whole)
    with pytest.raises(CheckpointError, match="another recipe"):
        pretrain(patients, replace(RECIPE, rate=1.0), whole, resume=True)
    (tmp_path / "config.json").write_bytes((whole / "config.json").read_bytes())
    state = load_file(whole / "state.safetensors")
    save_file(state, tmp_path / "state.safetensors", {"step": "8", "processes": "2"})
    with pytest.raises(CheckpointError, match="of 2 processes and 1 would go on"):
        pretrain(patients, RECIPE, tmp_path, resume=True)


@pytest.fixture(scope="module")
def older(whole, tmp_path_factory):
    """A checkpoint of a network that had no token yet for channels unheard, its folder and sha256."""
    folder = tmp_path_factory.mktemp("older") / "model"
    weights = {n: v for n, v in read_run(whole)[1].state_dict().items() if n != "unheard"}
    save_checkpoint(folder, KIND, FoundationModel(TINY, weights), {})
    return str(folder), read_config(folder)["sha256"]


def test_a_run_begins_with_the_weights_it_starts_from_and_nothing_beside_them(older, patients, tmp_path):
    recipe = replace(RECIPE, steps=2, rate=0.0, seed=11, start_from=older)
    pretrain(patients, recipe, tmp_path / "run")
    weights, old = read_run(tmp_path / "run")[1].state_dict(), load_file(Path(older[0]) / "model.safetensors")
    assert same({name: weights[name] for name in old}, old)
    added = [value for name, value in weights.items() if name not in old]
    assert added
    assert not any(bool(value.any()) for value in added)
    Path(older[0]).rename(tmp_path / "away")  # a run that has begun needs its start no more
    pretrain(patients, recipe, tmp_path / "run", resume=True)
    (tmp_path / "away").rename(older[0])


def test_a_checkpoint_keeps_a_share_of_the_weights_that_its_run_began_with(older, patients, tmp_path):
    recipe = replace(RECIPE, steps=2, start_from=older, kept=0.25)
    pretrain(patients, recipe, tmp_path / "run")
    checkpoint_of(tmp_path / "run", tmp_path / "model", patients)
    first, last = begun(recipe).state_dict(), read_run(tmp_path / "run")[1].state_dict()
    made = load_foundation(tmp_path / "model").weights
    for name, value in made.items():
        torch.testing.assert_close(value, 0.75 * last[name] + 0.25 * first[name])
    with pytest.raises(ConfigError, match="kept"):
        replace(RECIPE, kept=0.25)


def test_another_start_than_the_one_that_was_asked_for_is_refused(older):
    with pytest.raises(CheckpointError, match=r"asked was 000000000000\.\.; give those"):
        begun(replace(RECIPE, start_from=(older[0], "0" * 64)))
    with pytest.raises(CheckpointError, match="of its own that they lack are not zero"):
        begun(replace(RECIPE, size=replace(TINY, layers=2), start_from=older))
    with pytest.raises(CheckpointError, match="have a place in this network"):
        begun(replace(RECIPE, size=replace(TINY, width=32), start_from=older))


def test_recipes_are_read_strictly():
    assert recipe_of({"steps": 5, "draw": {"past": [0, 3]}}).draw.past == (0, 3)
    with pytest.raises(ConfigError, match="recipe: 'step' is not known; there are steps"):
        recipe_of({"step": 5})
    with pytest.raises(ConfigError, match="draw: asked input should be a valid integer"):
        recipe_of({"draw": {"asked": "many"}})
    with pytest.raises(ConfigError, match="must be 1 or more"):
        recipe_of({"steps": 0})


def test_a_machine_that_is_not_there_is_refused(patients, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 2"):
        checked(Machine, {"devices": 2})

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(ieeg_pretrain, "import_module", absent)
    with pytest.raises(ConfigError, match=r"pip install 'stimopt\[pretrain\]'"):
        pretrain(patients, RECIPE, tmp_path / "run", machine=Machine(precision="bf16-mixed"))
    assert not (tmp_path / "run").exists()


def test_small_changes_of_a_stimulus_count_as_much_as_large_ones():
    """One window's neighbour differs ten times as much as the other's; forecasts miss half of either."""
    truth, there = torch.zeros(1, 6, 2, 50), torch.ones(1, 1, 2, 50, dtype=torch.bool)
    truth[0, 1], truth[0, 4] = 100.0, 10.0  # the second of three branches, of two windows
    missed = []
    for window in (0, 1):
        mean = truth.clone()
        mean[0, 1 + 3 * window] /= 2
        missed.append(float(change_loss(mean, truth, there.expand_as(truth), 3)))
    assert float(change_loss(truth, truth, there.expand_as(truth), 3)) == 0
    assert missed == pytest.approx([math.log1p(0.25) / 2] * 2, rel=1e-3)


def test_how_much_larger_an_effect_is_counts_apart_from_when_it_comes():
    """Three branches: a wave, the same later and half as large, and silence, on ongoing activity that none sees."""
    wave = torch.randn(40, generator=generator(1)) * (torch.arange(40) < 20)
    ongoing, there = torch.randn(1, 1, 1, 40, generator=generator(2)), torch.ones(1, 3, 1, 40, dtype=torch.bool)
    truth = ongoing + torch.stack([wave, wave.roll(10) / 2, 0 * wave]).reshape(1, 3, 1, 40)
    early = ongoing + torch.stack([wave, wave / 2, 0 * wave]).reshape(1, 3, 1, 40)
    alike = ongoing + torch.stack([wave, wave, 0 * wave]).reshape(1, 3, 1, 40)
    assert float(size_loss(early, truth, there, 3)) < 1e-6 < float(change_loss(early, truth, there, 3))
    assert float(size_loss(alike, truth, there, 3)) == pytest.approx(math.log(2), abs=0.05)  # all of the share


@pytest.mark.parametrize("name", ["change", "size"])
def test_what_changes_between_neighbours_counts_where_its_weight_is_given(patients, name):
    network = IeegTransformer(TINY, generator(0, "weights"))
    _, found = losses(network, draw_batch(patients, DRAW, 0, 0))
    more = total(found, Weights(**{name: 2.0})) - total(found, Weights(**{name: 0.0}))
    assert float(more) == pytest.approx(2 * float(found[name]), rel=1e-4)


def together(patients, recipe, ranks):
    """Training with the batches of all ranks on one process, by the book: means of their gradients."""
    network = IeegTransformer(recipe.size, generator(recipe.seed, "weights"))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.decay, fused=True
    )
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = recipe.rate * pace(step, recipe)
        chance = float(torch.rand((), generator=generator(recipe.seed, "hubs", step)))
        optimizer.zero_grad()
        for rank in range(ranks):
            batch = draw_batch(patients, recipe.draw, recipe.seed, step, rank)
            own = stream_seed(recipe.seed, "own", step, rank)
            _, found = losses(network, batch, full=False if chance < recipe.hubs_only else None, seed=own)
            (total(found, recipe.weights) / ranks).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network


@pytest.mark.slow
@needs_fabric
def test_two_processes_train_as_one_with_twice_the_batch(patients, corpus, whole, tmp_path):
    (tmp_path / "train.py").write_text(RUN)
    plain = (whole / "config.json").read_text()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(tmp_path / "train.py"), str(corpus), plain, str(tmp_path / "run"), "0", '{"devices": 2}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    state = load_file(tmp_path / "run" / "state.safetensors")
    expected = together(patients, RECIPE, 2).state_dict()
    for name, value in expected.items():  # sums in another order; Adam makes of a rounding up to a step of 1.5e-3
        assert torch.allclose(state[f"network.{name}"], value, atol=1e-4), name
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [2, 4, 6, 8]
    with pytest.raises(CheckpointError, match="of 2 processes"):
        pretrain(patients, RECIPE, tmp_path / "run", resume=True)


@pytest.mark.slow
@needs_fabric
def test_half_precision_trains_nearly_alike(corpus, whole, tmp_path):
    plain = (whole / "config.json").read_text()
    command = [sys.executable, "-c", RUN, str(corpus), plain, str(tmp_path / "run"), "0", '{"precision": "bf16-mixed"}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    for half, single in zip(lines_of(tmp_path / "run"), lines_of(whole), strict=True):
        assert half["loss"] == pytest.approx(single["loss"], abs=0.05)  # bf16 has 8 bits; losses are near 1.4


# ---- from a run to a checkpoint


def test_temper_makes_intervals_cover_what_they_say():
    ratios = [2 * torch.randn(4000, generator=generator(1, "ratio", i)).abs() for i in range(4)]  # errors twice as wide
    assert fitted_temper(ratios) == pytest.approx(2.0, abs=0.05)  # three standard errors of a quantile of 16000
    assert coverage_apart(ratios) == pytest.approx(0.9, abs=0.015)
    assert fitted_temper(ratios, 0.5) == pytest.approx(2.0, abs=0.06)


def test_patients_with_few_trials_are_judged_with_what_they_have(whole):
    network = read_run(whole)[1]
    few = [patient_of(record_of(20, trials=6))]
    assert judged(network, few, 5) == {}  # one trial is left, whose variance is none
    assert "r2" in judged(network, few, 4)
    assert len(error_ratios(network, few)) == 1
    with pytest.raises(DataError, match="no validation patient"):
        error_ratios(network, [patient_of(record_of(20, trials=1))])


def test_patients_with_too_few_trials_are_left_out_of_training():
    with pytest.warns(UserWarning, match="1 of 2 patients were left out: batches take 7 trials"):
        assert len(trainable([record_of(1), record_of(2, trials=6)], DRAW)) == 1
    with pytest.warns(UserWarning, match="1 of 1"), pytest.raises(DataError, match="no patient has the 7 trials"):
        trainable([record_of(2, trials=6)], DRAW)


def test_a_run_becomes_a_checkpoint_that_says_what_it_is(whole, judges, tmp_path):
    metrics = checkpoint_of(whole, tmp_path / "model", judges, {"training_data": "Five virtual patients of noise."})
    model, card = load_foundation(tmp_path / "model"), foundation_card(tmp_path / "model")
    network = read_run(whole)[1]
    assert same(dict(model.weights), network.state_dict())
    assert model.temper == metrics["temper"] == fitted_temper(error_ratios(network, judges))
    for words in (
        "Trained on simulations",
        "Five virtual patients of noise.",
        "8 of 8 steps, seed 3",
        "never learned from",
    ):
        assert words in card["Training data"]
    assert "r2 with 5 trials" in card["Held-out metrics"]
    assert "no people" in card["Limits"]


# ---- the command


FILE = """
name: tiny
seed: 1
virtual: {patients: 2, trials: 8, families: [linear]}
validation: {patients: 1, trials: 8, families: [linear]}
recipe:
  steps: 4
  every: 2
  size: {width: 16, layers: 1, ongoing_width: 16, ongoing_layers: 1, heads: 2, hubs: 2, rhythms: 2, factors: 2}
  draw: {patients: 2, asked: 3, past: [0, 2], channels: 4}
"""
POINTS = (
    EntryPoint("ieeg-foundation", "stimopt.models.ieeg_checkpoint:train_ieeg_foundation", "stimopt.trainers"),
    EntryPoint("linear", "stimopt.simulators.corpus_patients:linear_corpus_patient", "stimopt.corpus_patients"),
    EntryPoint("ieeg", "stimopt.models.ieeg_corpus:write_simulated", "stimopt.corpora"),
)


@pytest.fixture
def named(monkeypatch):
    """The names that the command needs, also where an older version is installed."""

    def found(**wanted):
        known = list(entry_points(**wanted))
        more = [p for p in POINTS if all(getattr(p, key) == value for key, value in wanted.items())]
        return known + [p for p in more if p.name not in {k.name for k in known}]

    monkeypatch.setattr(plugins, "entry_points", found)


@pytest.fixture
def noise_for_patients(named, monkeypatch):
    """Corpora of white noise, since simulating and judging simulators is other tests' work."""

    def built(folder, *, patients, first, trials, families, progress, **_):
        for number in range(patients):
            save_record(
                record_of(first + number, trials=trials), folder / f"{families[0]}-{first + number}.safetensors"
            )
            progress(number + 1, patients)

    monkeypatch.setattr(pretraining, "build_corpus", built)


def test_the_command_builds_trains_and_writes_a_checkpoint(noise_for_patients, tmp_path):
    (tmp_path / "file.yaml").write_text(FILE)
    seen = []
    result = pretrain_from(
        tmp_path / "file.yaml", tmp_path / "model", seed=5, progress=lambda *told: seen.append(told)
    )  # fmt: skip
    card = foundation_card(tmp_path / "model")["Training data"]
    assert "stimopt pretrain file.yaml --out model --seed 5" in card
    assert "linear 2" in card
    assert "4 of 4 steps, seed 5" in card
    assert result["metrics"]["validation patients"] == 1
    assert [(what, done, total) for what, done, total, _ in seen if what == "training"][-1] == ("training", 4, 4)
    assert ("corpus patients", 2, 2, "") in seen
    assert {p.name for p in (tmp_path / "model").iterdir()} >= {"config.json", "run.json", "pretrain.yaml", "README.md"}
    with pytest.raises(RunError, match="exists; choose another --out"):
        pretrain_from(tmp_path / "file.yaml", tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / "first")
    with pytest.raises(RunError, match="go on with --resume"):
        pretrain_from(tmp_path / "file.yaml", tmp_path / "model", seed=5)
    with pytest.raises(RunError, match="another file or seed"):
        pretrain_from(tmp_path / "file.yaml", tmp_path / "model", seed=6, resume=True)
    again = pretrain_from(tmp_path / "file.yaml", tmp_path / "model", seed=5, resume=True)
    assert again["metrics"] == result["metrics"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("virtual: {patients: 2, trials: 8, families: [linear]}", "", "nothing to learn from"),
        ("families: [linear]}\nrecipe", "families: [linea]}\nrecipe", "did you mean 'linear'"),
        ("  steps: 4", "  seed: 4", "recipe has a seed"),
        ("  steps: 4", "  step: 4", "recipe: 'step' is not known"),
        ("name: tiny", "name: tiny\ntrainer: iee-foundation", "did you mean 'ieeg-foundation'"),
        ("name: tiny", "name: tiny\nmachine: {devices: 2}", "torchrun"),
        ("name: tiny", "nam: tiny", "nam is not a known key"),
        ("patients: 2", "patients: 2, after: -1", "after"),
    ],
)
def test_a_wrong_file_is_one_sentence_and_creates_nothing(named, tmp_path, old, new, sentence):
    assert old in FILE
    (tmp_path / "file.yaml").write_text(FILE.replace(old, new))
    with pytest.raises(ConfigError, match=sentence):
        pretrain_from(tmp_path / "file.yaml", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["file.yaml"]


@pytest.mark.slow
def test_the_example_trains_on_simulated_patients(named, tmp_path):
    result = pretrain_from(EXAMPLE, tmp_path / "model")
    card = foundation_card(tmp_path / "model")
    assert "linear 4" in card["Training data"]
    assert 0 < result["metrics"]["temper"] < 10


def test_patients_whom_the_start_has_met_are_passed_over(noise_for_patients, tmp_path):
    (tmp_path / "file.yaml").write_text(FILE.replace("patients: 2, trials", "patients: 2, after: 30, trials"))
    pretrain_from(tmp_path / "file.yaml", tmp_path / "model")
    made = {path.name for path in (tmp_path / "model.run" / "corpus").iterdir()}
    assert made == {"linear-30.safetensors", "linear-31.safetensors"}
    assert [p.name for p in (tmp_path / "model.run" / "validation").iterdir()] == ["linear-100000.safetensors"]


def test_a_start_that_is_not_there_is_refused_before_anything_is_simulated(named, tmp_path):
    (tmp_path / "file.yaml").write_text(
        FILE.replace("recipe:", f"recipe:\n  start_from: [{tmp_path}/none, {64 * 'a'}]")
    )
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        pretrain_from(tmp_path / "file.yaml", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["file.yaml"]


def test_the_example_is_read():
    plan = read_pretraining(EXAMPLE)
    assert recipe_of(plan.recipe).steps == 20
    assert checked(Machine, plan.machine) == Machine()


def test_bars_are_shown_on_standard_error(capsys):
    with progress_bars() as told:
        told("training", 3, 4, "loss 1.2")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "training" in shown.err
    assert "3/4" in shown.err


def test_silence_is_in_the_corpus_of_this_test(patients):
    """Every fourth trial: what is forecast at rest is part of every batch here."""
    montage = montage_of(0)
    assert bool(no_stimulus(montage, (1,)).silent.all())
    assert int((~patients[0].site.any(-1)).sum()) == 4
