"""Records of patients, the stimuli they get, the virtual patients behind them, and corpora on disk."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from linear_truth import shafts

from stimopt import plugins
from stimopt.errors import ConfigError, DataError, MontageError
from stimopt.models.ieeg_corpus import (
    PatientRecord,
    corpus_hash,
    read_in_pairs,
    read_record,
    records_in,
    save_record,
    simulate_record,
)
from stimopt.models.ieeg_stimuli import (
    AMPLITUDE_MA,
    LONGEST_S,
    PULSE_WIDTH_US,
    draw_stimuli,
    nearby,
    site_weights,
    with_shares,
    with_silence,
)
from stimopt.montage import Contact, monopolar
from stimopt.response import Response
from stimopt.simulators import linear_patient
from stimopt.simulators.corpus_patients import MOST_CHANNELS
from stimopt.system import System
from stimopt.tensors import generator, map_tensors
from stimopt.virtual_corpus import FIRST, HELD_OUT, TRAINING_MIX, build_corpus, interleaved

FAMILIES = (*TRAINING_MIX, "varied", "varied-fast", "corticothalamic", HELD_OUT)


def linear_twin(**options):
    return replace(linear_patient(patient=3, regions=4, contacts=4, **options), rate_hz=250.0, settle_s=0.1)


@pytest.fixture(scope="module")
def record():
    return simulate_record(linear_twin(), name="linear-3", family="linear", seed=5, trials=7, rest_windows=5)


class Broken(System):
    """Answers with one number everywhere."""

    def __init__(self, value: float, rate_hz: float = 250.0, window_s: float = 0.5) -> None:
        self.montage, self.value, self.rate_hz, self.window_s = shafts(4), value, rate_hz, window_s

    def start(self, batch_shape: Sequence[int], generator: torch.Generator):
        return {"nothing": torch.zeros(tuple(batch_shape))}

    def respond(self, state, stimulus, generator):
        samples = round(self.window_s * self.rate_hz)
        signal_uv = torch.full((*stimulus.batch_shape, 4, samples), self.value)
        return Response(self.montage, signal_uv, self.rate_hz), state


# stimuli


def test_drawn_stimuli_lie_in_their_bounds_and_end_within_the_window():
    stimulus = draw_stimuli(shafts(12), 3000, generator(0))
    current_ma = stimulus.amplitude_ma.abs().amax(-1)
    for value, (low, high) in ((current_ma, AMPLITUDE_MA), (stimulus.pulse_width_us, PULSE_WIDTH_US)):
        assert low <= float(value.min()) < 1.02 * low
        assert 0.98 * high < float(value.max()) <= high
        middle = math.sqrt(low * high)  # the median of an even draw on a logarithmic scale
        assert float(value.median()) == pytest.approx(middle, rel=0.1)
    train = stimulus.pulses > 1
    assert float(stimulus.duration_s[train].max()) <= LONGEST_S + 1e-9
    assert float(stimulus.frequency_hz[train].min()) >= 2.0
    assert float(stimulus.frequency_hz[train].max()) <= 120.0


def test_a_third_of_drawn_stimuli_and_slow_trains_are_single_pulses():
    pulses = draw_stimuli(shafts(12), 3000, generator(0)).pulses
    assert 0.33 < float((pulses == 1).double().mean()) < 0.5
    assert float(pulses.max()) > 40


def test_every_site_is_drawn_as_often_and_both_ways():
    montage = shafts(12)
    weights = site_weights(montage)
    stimulus = draw_stimuli(montage, 40 * len(weights), generator(1))
    at = stimulus.amplitude_ma @ weights.mT
    sites, sign = at.abs().argmax(-1), at.gather(-1, at.abs().argmax(-1, keepdim=True))[:, 0].sign()
    assert sites.bincount().tolist() == [40] * len(weights)
    assert abs(float(sign.mean())) < 0.15
    assert float(stimulus.amplitude_ma.sum(-1).abs().max()) == 0.0


def test_contacts_without_a_neighbour_are_refused():
    lone = monopolar([Contact("A1", shaft="A"), Contact("B1", shaft="B")])
    with pytest.raises(MontageError, match="no pair to stimulate"):
        draw_stimuli(lone, 3, generator(0))


def test_the_silent_share_is_exact_and_an_explicit_zero():
    stimulus = with_silence(draw_stimuli(shafts(4), 40, generator(0)), 0.25, generator(1))
    assert int(stimulus.silent.sum()) == 10
    assert float(stimulus.pulses[stimulus.silent].sum()) == 0.0
    assert float(stimulus.amplitude_ma[stimulus.silent].abs().sum()) == 0.0


def test_a_neighbour_differs_in_one_thing_by_no_more_than_its_ratio():
    stimulus = draw_stimuli(shafts(12), 2000, generator(2))
    other = nearby(stimulus, generator(3))
    size = (other.amplitude_ma * stimulus.amplitude_ma).sum(-1) / stimulus.amplitude_ma.square().sum(-1)
    moved = ((other.amplitude_ma - size.unsqueeze(-1) * stimulus.amplitude_ma).abs() > 1e-9).any(-1)
    ratios = torch.stack([
        torch.where(moved, 1.0, size), other.frequency_hz / stimulus.frequency_hz,
        other.pulse_width_us / stimulus.pulse_width_us,
    ])  # fmt: skip
    differs = torch.cat([(ratios - 1).abs() > 1e-9, moved.unsqueeze(0)])
    assert differs.sum(0).tolist() == [1] * 2000
    assert (differs.double().mean(-1) > 0.1).all()  # all four kinds come
    for ratio, (low, high) in zip(ratios, ((0.6, 1.6), (0.7, 1 / 0.7), (0.6, 1.6)), strict=True):
        assert low - 1e-9 <= float(ratio.min()) < low + 0.05
        assert high - 0.05 < float(ratio.max()) <= high + 1e-9
    assert float((other.pulses / other.frequency_hz)[other.pulses > 1].max()) <= LONGEST_S + 1e-9
    assert torch.equal(other.pulses, stimulus.pulses)


def test_a_moved_neighbour_shares_a_contact():
    stimulus = draw_stimuli(shafts(12), 500, generator(4))
    other = nearby(stimulus, generator(5))
    moved = ((stimulus.amplitude_ma == 0) != (other.amplitude_ma == 0)).any(-1)
    entered = (other.amplitude_ma != 0).sum(-1)
    assert bool(moved.any())
    whole, part = moved & (entered == 2), moved & (entered != 2)
    shared = ((stimulus.amplitude_ma != 0) & (other.amplitude_ma != 0)).sum(-1)
    assert shared[whole].unique().tolist() == [1]
    assert entered[part].unique().tolist() == [3]  # the contact that both sites share keeps some of its own current
    assert 0.3 < float(whole.sum() / moved.sum()) < 0.7
    assert float(other.amplitude_ma.sum(-1).abs().max()) < 1e-12


def test_a_shared_current_is_whole_and_split_between_neighbours():
    montage, whole = shafts(12), draw_stimuli(shafts(12), 400, generator(11))
    shared = with_shares(whole, 0.25, generator(12))
    changed = (shared.amplitude_ma != whole.amplitude_ma).any(-1)
    assert int(changed.sum()) == 100
    part = shared.amplitude_ma[changed] @ torch.linalg.pinv(site_weights(montage))
    kept, moved = part.abs().topk(2, -1).values.unbind(-1)
    current_ma = whole.amplitude_ma[changed].abs().amax(-1)
    torch.testing.assert_close(kept + moved, current_ma)
    torch.testing.assert_close(part.abs().sum(-1), current_ma)
    assert float((moved / current_ma).min()) < 0.05  # any share, from none to half in the lesser of both
    assert float((moved / current_ma).max()) > 0.45


def test_a_neighbour_of_a_shared_current_has_as_much_of_it():
    shared = with_shares(draw_stimuli(shafts(12), 400, generator(13)), 1.0, generator(14))
    beside = nearby(shared, generator(15), changes=(0.0, 0.0, 0.0, 1.0))
    back = torch.linalg.pinv(site_weights(shafts(12)))
    whole, moved = ((x.amplitude_ma @ back).sum(-1).abs() for x in (shared, beside))
    torch.testing.assert_close(moved, whole)
    assert bool((beside.amplitude_ma != shared.amplitude_ma).any(-1).all())


def test_without_shares_stimuli_and_their_stream_are_as_they_were():
    stimulus, source = draw_stimuli(shafts(12), 20, generator(16)), generator(17)
    assert with_shares(stimulus, 0.0, source) is stimulus
    assert torch.equal(torch.rand(3, generator=source), torch.rand(3, generator=generator(17)))


def test_a_silent_stimulus_is_beside_one_with_a_current():
    silent = with_silence(draw_stimuli(shafts(4), 20, generator(0)), 1.0, generator(1))
    assert not bool(nearby(silent, generator(2)).silent.any())


# simulated records


def test_a_simulated_record_has_rest_trials_and_both_counterfactuals(record):
    channels = len(record.rest.montage.channels)
    assert record.rest.signal_uv.shape == (5, channels, 250)
    assert record.trials.context.signal_uv.shape == (7, channels, 250)
    for signal_uv in (record.trials.response.signal_uv, record.silent_uv, record.other_uv):
        assert signal_uv.shape == (7, channels, 125)
    assert record.simulated
    assert int(record.trials.stimulus.silent.sum()) == 2  # a quarter of 7


def test_a_trial_without_a_stimulus_is_its_own_silent_branch(record):
    silent = record.trials.stimulus.silent
    answer = record.trials.response.signal_uv
    assert torch.equal(answer[silent], record.silent_uv[silent])
    assert bool((answer[~silent] != record.silent_uv[~silent]).any(-1).any(-1).all())


def test_the_effect_of_a_stimulus_on_linear_tissue_is_free_of_noise():
    loud, quiet = (
        simulate_record(
            linear_twin(noise=noise, drift=0.0), name="a", family="linear", seed=1, trials=6, rest_windows=1
        )
        for noise in (200.0, 0.0)
    )
    effects = [r.trials.response.signal_uv - r.silent_uv for r in (loud, quiet)]
    assert float(effects[1].abs().max()) > 1.0
    assert torch.allclose(*effects, atol=1e-2)  # float32 of signals of some 100 uV is good to 1e-5
    assert torch.allclose(loud.other_uv - loud.silent_uv, quiet.other_uv - quiet.silent_uv, atol=1e-2)


def test_the_same_seed_makes_the_same_record_and_another_one_another():
    one, again, other = (
        simulate_record(linear_twin(), name="a", family="linear", seed=seed, trials=1, rest_windows=0)
        for seed in (5, 5, 6)
    )
    assert torch.equal(one.trials.response.signal_uv, again.trials.response.signal_uv)
    assert not torch.equal(one.trials.stimulus.amplitude_ma, other.trials.stimulus.amplitude_ma)
    assert not torch.equal(one.trials.context.signal_uv, other.trials.context.signal_uv)


@pytest.mark.parametrize("wrong", [{"rate_hz": 300.0}, {"window_s": 0.4}])
def test_other_windows_and_rates_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"windows of 0.5 s at 250.0 or 500.0 Hz"):
        simulate_record(Broken(0.0, **wrong), name="a", family="b", seed=0)


def test_a_record_at_twice_the_rate_has_twice_the_samples_and_is_read_back(tmp_path):
    fast = simulate_record(replace(linear_twin(), rate_hz=500.0), name="a", family="linear", seed=5, trials=3)
    again = read_record(save_record(fast, tmp_path / "a.safetensors"))
    assert again.rest.rate_hz == again.trials.response.rate_hz == 500.0
    assert again.trials.context.signal_uv.shape[-1] == 500
    assert again.other_uv.shape[-1] == again.trials.response.signal_uv.shape[-1] == 250


def test_a_patient_that_does_not_stay_finite_is_refused():
    with pytest.raises(DataError, match="'a' did not stay finite"):
        simulate_record(Broken(math.nan), name="a", family="b", seed=0, trials=4)


def test_a_record_refuses_counterfactuals_of_another_shape(record):
    with pytest.raises(DataError, match="silent_uv"):
        replace(record, silent_uv=record.silent_uv[..., 1:], other=None, other_uv=None)
    with pytest.raises(DataError, match="both or neither"):
        replace(record, other=None)


# on disk


def test_a_saved_record_is_read_as_it_was(record, tmp_path):
    read = read_record(save_record(record, tmp_path / "deep" / "a.safetensors"))
    assert (read.name, read.family, read.simulated) == ("linear-3", "linear", True)
    assert read.rest.montage == record.rest.montage
    for one, other in zip(_tensors(read), _tensors(record), strict=True):
        assert torch.equal(one, other)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.safetensors"]


def test_a_recorded_patient_needs_no_counterfactuals(record, tmp_path):
    recorded = PatientRecord("sub-1", "recorded", False, record.rest, record.trials)
    read = read_record(save_record(recorded, tmp_path / "b.safetensors"))
    assert (read.silent_uv, read.other, read.other_uv, read.simulated) == (None, None, None, False)


def test_a_cut_missing_or_foreign_file_is_refused(record, tmp_path):
    path = save_record(record, tmp_path / "a.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(DataError, match="is cut"):
        read_record(path)
    path.write_bytes(whole.replace(b"corpus record 1", b"corpus record 9"))
    with pytest.raises(DataError, match="corpus record 9"):
        read_record(path)
    path.write_bytes(whole.replace(b'"rest_uv"', b'"zest_uv"'))
    with pytest.raises(DataError, match="rest_uv"):
        read_record(path)
    with pytest.raises(DataError, match="there is no record"):
        read_record(tmp_path / "c.safetensors")


def test_the_hash_of_a_corpus_follows_its_numbers_and_not_its_files(record, tmp_path):
    folders = [tmp_path / name for name in "abc"]
    louder = replace(record, silent_uv=record.silent_uv + 1e-3)
    for folder, kept in zip(folders, (record, record, louder), strict=True):
        save_record(kept, folder / "p.safetensors")
    hashes = [corpus_hash(folder) for folder in folders]
    assert hashes[0] == hashes[1] != hashes[2]


def test_records_come_in_order_of_patients(record, tmp_path):
    for name in ("linear-000010", "hopf-000002", "linear-000001"):
        save_record(record, tmp_path / f"{name}.safetensors")
    assert [path.stem for path in records_in(tmp_path)] == ["linear-000001", "hopf-000002", "linear-000010"]


def test_a_patient_read_in_pairs_has_the_differences_of_neighbours(record):
    eight = simulate_record(
        replace(linear_patient(patient=3, regions=4, contacts=8), rate_hz=250.0, settle_s=0.1),
        name="linear-3", family="linear", seed=5, trials=3, rest_windows=2,
    )  # fmt: skip
    pairs = read_in_pairs(eight)
    assert [c.name for c in pairs.rest.montage.channels] == list(eight.rest.montage.neighbour_pairs())
    read = eight.rest.montage.bipolar().channel_matrix.float()
    for name in ("silent_uv", "other_uv"):
        torch.testing.assert_close(getattr(pairs, name), read @ getattr(eight, name))
    torch.testing.assert_close(pairs.rest.signal_uv, read @ eight.rest.signal_uv)
    torch.testing.assert_close(pairs.trials.context.signal_uv, read @ eight.trials.context.signal_uv)
    torch.testing.assert_close(pairs.trials.response.signal_uv, read @ eight.trials.response.signal_uv)
    assert torch.equal(pairs.trials.stimulus.amplitude_ma, eight.trials.stimulus.amplitude_ma)
    assert read_in_pairs(pairs) is None  # pairs already
    assert read_in_pairs(record) is None  # four contacts on two shafts have two pairs


def test_an_empty_folder_is_no_corpus(tmp_path):
    with pytest.raises(DataError, match="holds no records"):
        records_in(tmp_path)


def _tensors(record):
    found = []
    for part in (record.rest, record.trials.context, record.trials.stimulus, record.trials.response, record.other):
        map_tensors(part, lambda tensor: found.append(tensor) or tensor)
    return [*found, record.silent_uv, record.other_uv]


# virtual patients and corpora of them


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_makes_patients_by_number(family):
    one, again, other = (plugins.build("corpus_patients", family, {"patient": n}, {}) for n in (4, 4, 5))
    assert (one.window_s, one.rate_hz) == (0.5, 500.0 if family == "varied-fast" else 250.0)
    assert 4 <= len(one.montage.channels) <= MOST_CHANNELS
    assert one.card()["parameters_sha256"] == again.card()["parameters_sha256"] != other.card()["parameters_sha256"]


def test_only_the_test_corpus_may_hold_the_family_that_is_held_out(tmp_path):
    for purpose in ("training", "validation"):
        with pytest.raises(ConfigError, match="held out"):
            build_corpus(tmp_path, families=(HELD_OUT,), patients=1, first=FIRST[purpose], seed=0)
    assert HELD_OUT not in TRAINING_MIX


def test_families_take_turns_in_proportion():
    order = interleaved(TRAINING_MIX, 100)
    assert {family: order.count(family) for family in TRAINING_MIX} == {
        family: round(100 * share) for family, share in TRAINING_MIX.items()
    }
    for so_far in range(1, 101):
        for family, share in TRAINING_MIX.items():
            assert abs(order[:so_far].count(family) - share * so_far) <= 1.0


def test_a_corpus_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "build", lambda *_: Broken(1.0))
    make = {"families": ("linear",), "patients": 2, "first": 0, "seed": 0, "trials": 4}
    paths = build_corpus(tmp_path, **make)
    assert [path.name for path in paths] == ["linear-000000.safetensors", "linear-000001.safetensors"]
    before = corpus_hash(tmp_path)
    kept = paths[0].stat().st_mtime_ns
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    seen = []
    build_corpus(tmp_path, **make, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 2)]
    assert paths[0].stat().st_mtime_ns == kept
    assert corpus_hash(tmp_path) == before


def test_a_patient_that_is_refused_is_left_out_with_a_warning(tmp_path, monkeypatch):
    find = plugins.find

    def found(kind, name):
        return (lambda **_: Broken(math.nan)) if kind == "corpus_patients" else find(kind, name)

    monkeypatch.setattr(plugins, "find", found)
    monkeypatch.setattr(plugins, "build", lambda kind, name, options, parts: found(kind, name)())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert build_corpus(tmp_path, families=("linear",), patients=1, first=0, seed=0, trials=2) == ()
    assert "did not stay finite" in str(caught[0].message)


def test_an_unknown_family_or_an_empty_share_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        build_corpus(tmp_path, families=("linaer",), patients=1, first=0, seed=0)
    with pytest.raises(ConfigError, match="share"):
        build_corpus(tmp_path, families={"linear": 0.0}, patients=1, first=0, seed=0)


@pytest.mark.slow
def test_a_corpus_does_not_depend_on_the_number_of_processes(tmp_path):
    make = {"families": TRAINING_MIX, "patients": 5, "first": 0, "seed": 0, "trials": 32}
    for name, workers in (("one", 1), ("two", 2)):
        build_corpus(tmp_path / name, **make, workers=workers)
    assert corpus_hash(tmp_path / "one") == corpus_hash(tmp_path / "two")


@pytest.mark.slow
def test_heads_vary_the_group_connectomes_at_hand(recordings):
    options = {"connectomes": str(recordings / "connectomes")}
    regions = {
        plugins.build("corpus_patients", "jansen-rit-cohort", {"patient": n, **options}, {}).regions for n in range(8)
    }
    assert regions <= {67, 68, 99, 100}
    assert len(regions) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_patients_of_every_family_answer(family):
    twin = plugins.build("corpus_patients", family, {"patient": 0}, {})
    made = simulate_record(twin, name=family, family=family, seed=0, trials=24)
    effect = (made.trials.response.signal_uv - made.silent_uv).abs().amax(-1) / made.rest.signal_uv.std((0, 2))
    answered = effect[~made.trials.stimulus.silent].amax(-1) > 0.2
    assert float(answered.double().mean()) > 0.4
