"""The protocol of forecasters: splits keep their word, ceilings and slopes are right where they are known."""

import json
import math
from dataclasses import replace

import pytest
import torch

from stimopt import protocol
from stimopt.contenders import Contender, contender, contenders
from stimopt.errors import ConfigError, RunError
from stimopt.forecaster import Forecaster, GaussianForecast
from stimopt.gradient_fidelity import (
    KNOBS,
    PULSES,
    _ceiling,
    agreement,
    next_pair,
    slope_fidelity,
    slope_points,
    turned,
)
from stimopt.montage import Contact, monopolar
from stimopt.protocol import FIRST_PATIENT, ProtocolSettings, patient_system, read_protocol, run_protocol
from stimopt.protocol_bars import protocol_bars
from stimopt.protocol_readings import correlation, examined, noise_ceiling, responsive, single_ceiling
from stimopt.protocol_splits import Design, StimulusRanges, shaft_out, split_sites
from stimopt.protocol_table import SHOWN, protocol_table
from stimopt.protocol_trials import examination, past_trials, resting
from stimopt.recorded_protocol import CCEP, ccep_trials, leave_sites_out
from stimopt.response import Response
from stimopt.skill import r_squared
from stimopt.system import System
from stimopt.tensors import generator, row_keys, row_noise

TINY = ProtocolSettings(
    families=("linear",), patients=2, splits=("trials", "sites"), stimuli=2, repeats=2, states=3, slope_points=2,
    slope_states=2, slope_futures=2,
)  # fmt: skip
WAVE = (2 * math.pi * 10 * torch.arange(125, dtype=torch.float64) / 250).sin()


class KnownBrain(System):
    """Adds a wave of known size to noise of its own: white, and a level that stays. Quick, and its slopes are known."""

    window_s = 0.5

    def __init__(self, contacts=8):
        shafts = [(name, i) for name in "AB" for i in range(contacts // 2)]
        places = [Contact(f"{name}{i}", (30.0 * (name == "B"), 3.5 * i, 0.0), shaft=name) for name, i in shafts]
        self.montage = monopolar(places)

    def start(self, batch_shape, source):
        return {"key": row_keys(batch_shape, source)}

    def size(self, stimulus):
        place = torch.arange(len(self.montage.contacts), dtype=torch.float64)
        current = (stimulus.amplitude_ma.abs() * (1 + place)).sum(-1)
        size = current * stimulus.frequency_hz.log() * stimulus.pulse_width_us.sqrt() / 100
        return torch.where(stimulus.pulses > 0, size, torch.zeros_like(size))

    def respond(self, state, stimulus, source):
        salt, channels = int(torch.randint(2**40, (), generator=source)), len(self.montage.channels)
        white = row_noise(state["key"], (channels, 125), salt, WAVE)
        level = row_noise(state["key"], (channels, 1), 0, WAVE)
        signal = self.size(stimulus)[..., None, None] * WAVE + 2 * white + 2 * level
        return Response(self.montage, signal, 250.0), state


@pytest.fixture(scope="module")
def patient():
    return KnownBrain()


@pytest.fixture(scope="module")
def design(patient):
    return Design(patient.montage, split_sites(patient.montage, 3))


@pytest.fixture(scope="module")
def exam(patient, design):
    return examination(patient, design, splits=("trials", "sites"), stimuli=4, repeats=6, states=12, seed=1)


class Oracle(Forecaster):
    """Plays the patient itself, from the same states and with the noise of the first two futures: all that is true."""

    def __init__(self, exam):
        self.exam = exam

    def forecast(self, context, stimulus):
        means = [self._answer(row, stimulus[i]) for i, row in enumerate(context.signal_uv)]
        template = replace(self.exam.template, signal_uv=torch.stack(means), outcomes={})
        scale = torch.full_like(template.signal_uv, 5.0)
        return GaussianForecast(template, scale, scale.unsqueeze(-3)[..., :0, :, :])

    def _answer(self, context_uv, stimulus):
        pool = self.exam.pool
        state = int((pool.contexts.signal_uv - context_uv).abs().sum((-1, -2)).argmin())
        if bool(stimulus.silent):
            return pool.silent_uv[:, state].mean(0)
        for repeats in self.exam.splits.values():
            for i in range(repeats.state.shape[0]):
                here = (repeats.state[i] == state).nonzero()
                if torch.equal(repeats.stimulus[i].amplitude_ma, stimulus.amplitude_ma) and len(here):
                    return repeats.answer_uv[:, i, int(here[0])].mean(0)
        return pool.silent_uv[:, state].mean(0)


def of_site(montage, row):
    return {montage.contacts[int(i)].name for i in row.nonzero()}


# Splits


def test_unseen_sites_share_no_contact_with_any_past_trial(patient):
    for seed in range(20):
        design = Design(patient.montage, split_sites(patient.montage, seed))
        past = design.past(40, generator(seed))
        stimulated = {name for row in past.amplitude_ma for name in of_site(patient.montage, row)}
        test = design.test("sites", 8, generator(seed, "test"))
        assert design.sites.contacts_unseen
        assert all(not of_site(patient.montage, row) & stimulated for row in test.amplitude_ma)


def test_touching_sites_share_one_contact_with_seen_and_one_with_unseen_pairs(patient):
    for seed in range(20):
        sites = split_sites(patient.montage, seed)
        seen, unseen = ({c for pair in pairs for c in pair.split("-")} for pairs in (sites.seen, sites.unseen))
        assert len(sites.seen) >= 2
        assert sites.unseen
        assert all(set(pair.split("-")) & unseen and not set(pair.split("-")) <= seen for pair in sites.touching)
        assert sorted((*sites.seen, *sites.touching, *sites.unseen)) == sorted(patient.montage.neighbour_pairs())


def test_unseen_sites_are_spread_over_the_shafts():
    shafts = [Contact(f"{s}{i}", (10.0 * j, 3.5 * i, 0.0), shaft=s) for j, s in enumerate("AB") for i in range(6)]
    for seed in range(10):
        assert {pair[0] for pair in split_sites(monopolar(shafts), seed).unseen} == {"A", "B"}


def test_a_shaft_that_is_held_out_meets_no_past_trial():
    shafts = [Contact(f"{s}{i}", (10.0 * j, 3.5 * i, 0.0), shaft=s) for j, s in enumerate("ABC") for i in range(4)]
    montage, held = monopolar(shafts), set()
    for seed in range(12):
        sites = shaft_out(montage, seed)
        (name,) = {pair[0] for pair in sites.unseen}
        past = Design(montage, sites).past(30, generator(seed))
        stimulated = {contact[0] for row in past.amplitude_ma for contact in of_site(montage, row)}
        assert stimulated == set("ABC") - {name}
        assert len(sites.unseen) == 3
        held.add(name)
    assert held == set("ABC")


def test_one_shaft_cannot_be_held_out():
    lead = monopolar([Contact(f"D{i}", (0.0, 0.0, 2.0 * i), shaft="D") for i in range(6)])
    with pytest.raises(ConfigError, match="0 of this montage's 5 pairs lie beside shaft D"):
        shaft_out(lead, 0)


def test_a_lead_too_short_for_unseen_contacts_says_so():
    lead = monopolar([Contact(f"D{i}", (0.0, 0.0, 2.0 * i), shaft="D") for i in range(4)])
    sites = split_sites(lead, 0)
    assert not sites.contacts_unseen
    assert (len(sites.seen), sites.touching, len(sites.unseen)) == (2, (), 1)
    assert Design(lead, sites).test("sites-touching", 4, generator(0)) is None


def test_a_montage_with_one_pair_is_refused():
    with pytest.raises(ConfigError, match="takes two or more"):
        split_sites(monopolar([Contact("A1", shaft="A"), Contact("A2", shaft="A")]), 0)


@pytest.mark.parametrize(
    ("split", "field", "low", "high"),
    [("amplitude-inside", "amplitude", 0.4, 0.6), ("amplitude-beyond", "amplitude", 0.8, 1.0),
     ("frequency", "frequency", 0.4, 0.6), ("width", "width", 0.4, 0.6)],
)  # fmt: skip
def test_each_split_opens_one_band_that_past_trials_never_enter(design, split, field, low, high):
    def shares(stimulus):
        ranges = StimulusRanges()
        a, b = ranges.frequency_hz
        loud = stimulus[(~stimulus.silent).nonzero().squeeze(-1)]
        return {
            "amplitude": (loud.amplitude_ma.abs().amax(-1) - ranges.amplitude_ma[0]) / 5.5,
            "frequency": (loud.frequency_hz / a).log() / math.log(b / a),
            "width": (loud.pulse_width_us - 100) / 300,
        }

    past, test = shares(design.past(200, generator(1))), shares(design.test(split, 200, generator(2)))
    within = {name: ((value >= low) & (value <= high)) for name, value in test.items()}
    assert bool(within[field].all())
    assert not bool(((past[field] > low) & (past[field] < high)).any())
    assert not any(bool(within[name].all()) for name in test if name != field)
    others = [name for name in test if name != field]
    assert all(
        bool((((test[n] <= 0.4) | (test[n] >= 0.6)) & ((n != "amplitude") | (test[n] <= 0.8))).all()) for n in others
    )


def test_every_fifth_past_trial_is_silent_and_fewer_trials_are_the_first_of_many(patient, design):
    trials = past_trials(patient, design, 10, seed=4)
    assert trials.stimulus.silent.tolist() == [False, False, False, False, True] * 2
    again = past_trials(patient, design, 10, seed=4)
    assert torch.equal(trials.response.signal_uv, again.response.signal_uv)
    assert trials.context.signal_uv.shape[-1] == 250
    assert trials.response.signal_uv.shape[-1] == 125


# Truth


def test_silence_and_stimuli_share_state_and_noise(patient, design):
    still = Design(design.montage, design.sites, replace(design.ranges, amplitude_ma=(1e-9, 2e-9)))
    exam = examination(patient, still, splits=("trials",), stimuli=2, repeats=3, states=4, seed=1)
    repeats = exam.splits["trials"]
    silent = exam.pool.silent_uv[:, repeats.state]
    assert torch.allclose(repeats.answer_uv, silent, atol=1e-6)  # uV; the signal is a few uV
    assert (silent[0] - silent[1]).abs().max() > 1.0  # two futures differ


def test_no_context_is_shared_by_past_trials_tests_and_rest(patient, design, exam):
    past, rest = past_trials(patient, design, 5, seed=1), resting(patient, 1)
    every = torch.cat([x.signal_uv.flatten(1) for x in (exam.pool.contexts, past.context, rest)])
    apart = torch.cdist(every, every) + 1e9 * torch.eye(len(every))
    assert float(apart.min()) > 1.0


def test_the_ceiling_is_the_share_of_variance_that_draws_have_in_common():
    source = generator(0)
    mean = torch.randn(400, 2, 50, generator=source, dtype=torch.float64)
    noise_sd = torch.tensor([0.5, 2.0], dtype=torch.float64)
    draws = mean + noise_sd[:, None] * torch.randn(2, *mean.shape, generator=source, dtype=torch.float64)
    known = 1 / (1 + noise_sd.square() / 2)  # unit variance of the truth, noise of a mean of two draws
    assert torch.allclose(noise_ceiling(draws), known, atol=0.02)  # 20,000 samples a channel
    assert abs(r_squared(mean[:, :1], draws.mean(0)[:, :1]) - float(known[0])) < 0.02
    assert torch.allclose(single_ceiling(draws), 1 / (1 + noise_sd.square()), atol=0.02)


def test_draws_of_nothing_but_noise_have_a_ceiling_of_zero():
    draws = torch.randn(2, 2000, 1, 50, generator=generator(1), dtype=torch.float64)
    assert abs(float(noise_ceiling(draws))) < 0.03


def test_correlation_is_that_of_each_channel():
    one = torch.randn(3, 4, 2, 50, generator=generator(2), dtype=torch.float64)
    other = torch.stack([2 * one[..., 0, :] + 5, -one[..., 1, :]], -2)
    assert correlation(one, other) == pytest.approx(0.0)
    assert correlation(one[..., :1, :], other[..., :1, :]) == pytest.approx(1.0)


def test_who_knows_the_truth_reaches_the_ceiling_and_no_stimulus_of_another(exam):
    for row in examined(Oracle(exam), exam).values():
        assert row["r2_effect"] == pytest.approx(1.0)
        assert row["r_effect"] == pytest.approx(1.0)
        assert row["r2_mean"] == pytest.approx(1.0)  # it knows the very draws, so more than any forecast could
        assert row["r2_mean_ceiling"] < 1.0
        assert row["r2_ceiling"] < row["r2"]
        assert row["r2_shuffled"] < row["r2"]
        assert row["coverage_50"] <= row["coverage_80"] <= row["coverage_90"] <= row["coverage_95"]


def test_no_effect_has_no_effect_and_does_not_use_the_stimulus(patient, design, exam):
    from stimopt.models import fit_no_effect

    forecaster = fit_no_effect(past_trials(patient, design, 10, seed=1))
    for row in examined(forecaster, exam).values():
        assert row["r2_effect"] < 1e-9
        assert row["r_effect"] == 0
        assert row["r2_mean_share"] == pytest.approx(row["r2_mean"] / row["r2_mean_ceiling"])


def test_channels_respond_where_the_effect_is_large(exam):
    def deaf_first(repeats):
        silent_uv = exam.pool.silent_uv[:, repeats.state]
        return replace(repeats, answer_uv=torch.cat([silent_uv[..., :1, :], repeats.answer_uv[..., 1:, :]], -2))

    quiet = replace(exam, splits={name: deaf_first(repeats) for name, repeats in exam.splits.items()})
    assert not bool(responsive(quiet)[0])
    assert bool(responsive(exam).any())


# Slopes


class Knowing(Forecaster):
    """Forecasts a KnownBrain, times `sign`."""

    def __init__(self, brain, sign=1.0):
        self.brain, self.sign = brain, sign

    def forecast(self, context, stimulus):
        wave = self.sign * self.brain.size(stimulus)[..., None, None] * WAVE
        response = Response(self.brain.montage, wave.expand(*stimulus.batch_shape, 8, 125), 250.0)
        scale = torch.ones_like(response.signal_uv)
        return GaussianForecast(response, scale, scale.unsqueeze(-3)[..., :0, :, :])


@pytest.fixture(scope="module")
def known(patient, design):
    return patient, slope_points(patient, design, points=12, states=3, seed=2, futures=2)


def test_slopes_of_a_known_brain_are_its_derivatives(known):
    brain, points = known
    size = brain.size(points.trains)
    rms = size * (WAVE - WAVE.mean()).square().mean().sqrt()
    slope = points.slope["evoked"]
    assert torch.allclose(slope["amplitude"], rms, rtol=1e-6)  # linear: exact but for rounding
    assert torch.allclose(slope["width"], rms / 2, rtol=1e-3)  # of a square root, step 5 %
    assert torch.allclose(slope["frequency"], rms / points.trains.frequency_hz.log(), rtol=1e-3)
    assert float(points.trains.pulses.min()) >= PULSES[0]


def test_the_ceiling_of_slopes_is_what_the_truth_reaches_beside_a_mean_of_two_noisy_halves(known):
    source = generator(3, "halves")
    truth, *errors = torch.randn(3, 200_000, generator=source)
    one, other = (truth + 1.5 * error for error in errors)
    reached = agreement(truth, (one + other) / 2)["cosine"]
    assert _ceiling(one, other) == pytest.approx(reached, abs=0.01)
    assert math.isnan(_ceiling(one, -one))
    assert min(value for part in known[1].ceiling.values() for value in part.values()) > 0.999  # its noise cancels


def test_a_forecaster_that_knows_has_every_slope_right_and_a_constant_one_has_none(known, design):
    brain, points = known
    for row in slope_fidelity(Knowing(brain), points):
        assert row["sign"] == 1.0
        assert row["cosine"] > 0.999  # central differences bend a little
    assert {row["knob"] for row in slope_fidelity(Knowing(brain), points)} == set(KNOBS)
    # the size of an effect does not tell its sign: a mirrored forecast has the same slopes
    assert all(row["sign"] == 1.0 for row in slope_fidelity(Knowing(brain, -1.0), points))
    from stimopt.models import fit_no_effect

    deaf = fit_no_effect(past_trials(brain, design, 5, seed=0))
    assert all(math.isnan(row["sign"]) for row in slope_fidelity(deaf, points))


def test_agreement_counts_signs_on_the_larger_half():
    truth = torch.tensor([4.0, -3.0, 0.1, -0.1])
    assert agreement(torch.tensor([1.0, 1.0, -1.0, 1.0]), truth)["sign"] == 0.5
    assert agreement(-truth, truth) == {"sign": 0.0, "cosine": pytest.approx(-1.0)}


def test_place_moves_a_quarter_of_the_current_and_keeps_its_sum(design):
    trains, names = design.anywhere(4, (2, 4), generator(0))
    pairs = design.montage.neighbour_pairs()
    from stimopt.stimulus import contact_weights

    beside = torch.stack([contact_weights(design.montage, next_pair(pairs, name)) for name in names])
    moved = turned(trains, beside, "place", 0.75)  # a quarter and the rest: all of it
    size = trains.amplitude_ma.abs().amax(-1, keepdim=True)
    assert torch.allclose(moved.amplitude_ma, size * beside)
    assert turned(trains, beside, "place", 0.0).amplitude_ma.sum(-1).abs().max() < 1e-12
    assert next_pair(("A1-A2", "A2-A3", "B1-B2"), "A2-A3") == "A1-A2"


# The run


@pytest.fixture
def quick_patients(monkeypatch):
    """Known brains in the place of simulated patients, which are not what is tested here."""
    monkeypatch.setattr(protocol, "patient_system", lambda family, number, options: KnownBrain())


def test_a_run_resumes_to_the_same_numbers_and_takes_later_contenders(tmp_path, quick_patients):
    models = [Contender("no-effect", {}, (0, 5)), Contender("mean-evoked", {}, (5,))]
    seen = []
    table = run_protocol(tmp_path / "run", TINY, models[:1], progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)]
    assert set(table.refused.trials) == {0}  # four trials at least
    assert "4 trials" in table.refused.reason.iloc[0]
    file = tmp_path / "run" / "patients" / f"linear-{FIRST_PATIENT}.json"
    before = json.loads(file.read_text())["rows"]
    both = run_protocol(tmp_path / "run", TINY, models, resume=True)
    assert json.loads(file.read_text())["rows"][: len(before)] == before
    assert list(dict.fromkeys(both.rows.model)) == ["no-effect", "mean-evoked"]
    assert len(both.rows) == 2 * 2 * 2  # contenders, patients, splits
    assert len(read_protocol(tmp_path / "run").rows) == len(both.rows)
    assert "linear, sites" in both.text()
    assert json.dumps(both.to_dict(), allow_nan=False)


def test_a_folder_is_not_overwritten_nor_mixed(tmp_path, quick_patients):
    few = replace(TINY, patients=1, splits=("trials",), slope_points=0)
    one = [Contender("no-effect", {}, (5,))]
    run_protocol(tmp_path / "run", few, one)
    with pytest.raises(RunError, match="add --resume"):
        run_protocol(tmp_path / "run", few, one)
    with pytest.raises(RunError, match="begun with other stimuli"):
        run_protocol(tmp_path / "run", replace(few, stimuli=3), one, resume=True)
    assert len(run_protocol(tmp_path / "run", replace(few, patients=2), one, resume=True).rows) == 2
    with pytest.raises(RunError, match=r"holds no protocol\.json"):
        read_protocol(tmp_path)


def test_patients_are_played_at_250_hz_in_windows_of_half_a_second():
    for family in ("linear", "jansen-rit"):  # one takes rate_hz as an option, the other does not
        system = patient_system(family, FIRST_PATIENT, {"regions": 4, "contacts": 6})
        assert (system.rate_hz, system.window_s) == (250.0, 0.5)
        assert len(system.montage.contacts) == 6


@pytest.mark.slow
def test_processes_give_the_numbers_of_one(tmp_path):
    models = [Contender("arx", {}, (5,))]
    few = replace(TINY, system_options={"regions": 6, "contacts": 8})
    tables = [run_protocol(tmp_path / str(n), few, models, workers=n).rows for n in (1, 2)]
    timeless = [t.drop(columns=["fit_cpu_s", "ms_per_forecast"]) for t in tables]
    assert timeless[0].equals(timeless[1])


def test_contenders_are_read_from_words():
    one = contender("arx {lags: 4}", (0, 5))
    assert (one.model, one.options, one.label) == ("arx", {"lags": 4}, "arx {lags: 4}")
    with pytest.raises(ConfigError, match="did you mean"):
        contender("arxx", (5,))
    with pytest.raises(ConfigError, match="no mapping"):
        contender("arx 4", (5,))
    with pytest.raises(ConfigError, match="not an option"):
        contender("arx {order: 4}", (5,))
    assert [c.label for c in contenders(["arx"], (20,), ["arx", "no-effect"])] == ["arx", "no-effect"]
    assert contenders(["arx"], (20,))[1].label == "no-effect"


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="no more than states"):
        ProtocolSettings(repeats=9, states=8)
    with pytest.raises(ConfigError, match="splits days are not known"):
        ProtocolSettings(splits=("days",))
    with pytest.raises(ConfigError, match="unseen is 'heads'; there are sites, shaft"):
        ProtocolSettings(unseen="heads")
    assert len(ProtocolSettings(families=("a", "b"), patients=3).cases) == 6


# The tables


def files(better):
    """Twelve patients, two models; the first better by `better`."""

    def rows(i):
        shared = {"trials": 20, "seed": 0, "fit_cpu_s": 0.0, "split": "sites"}
        numbers = dict.fromkeys(SHOWN, 0.5 + 0.01 * i)
        own = {**numbers, "r2_mean": numbers["r2_mean"] + better, "crps_uv": numbers["crps_uv"] - better}
        return [
            {**shared, "model": "new", **own, "coverage_90": 0.9},
            {**shared, "model": "arx", **numbers, "coverage_90": 0.7},
        ]

    slope = {
        "model": "new",
        "trials": 20,
        "seed": 0,
        "objective": "evoked",
        "knob": "amplitude",
        "sign": 0.95,
        "cosine": 0.7,
        "ceiling": 0.9,
    }
    return [{"family": "linear", "patient": i, "rows": rows(i), "slopes": [slope], "refused": []} for i in range(12)]


def test_differences_are_paired_and_turned_so_that_more_is_better():
    gap = protocol_table(files(0.2)).differences("new", 20).set_index("metric")
    assert gap.loc["r2_mean", "difference"] == pytest.approx(0.2)
    assert gap.loc["crps_uv", "difference"] == pytest.approx(0.2)
    assert bool(gap.loc["crps_uv", "ahead"])
    assert not bool(gap.loc["r2_effect", "ahead"])  # equal is not ahead


def test_bars_are_met_or_not_and_say_why():
    bars = protocol_bars(protocol_table(files(0.2)), "new").set_index("bar")
    assert list(bars.family.unique()) == ["linear"]
    met = bars.met.to_dict()
    assert not met["new sites, 20 trials: R2 of the mean response over its ceiling"]
    assert met["sites, 20 trials: r2_mean better than every baseline on 20"]
    assert met["sites: coverage of 90 % intervals"]
    assert met["slope in amplitude: sign"]
    assert not met["slope in amplitude: cosine"]
    assert not any("5 trials" in bar for bar in met)  # nobody asked
    worse = protocol_bars(protocol_table(files(-0.2)), "new").set_index("bar")
    behind = worse.loc["sites, 20 trials: r2_mean better than every baseline on 20"]
    assert not behind.met
    assert behind.value == pytest.approx(-0.2)
    assert behind.needed == "interval above 0: 0 of 1, not arx; differences to -0.20"


def test_a_value_that_is_not_defined_is_left_out():
    some = files(0.1)
    some[0]["rows"][0]["r2_mean_share_responsive"] = None
    summary = protocol_table(some).summary().set_index("model")
    assert summary.loc["new", "patients"] == 12
    assert math.isfinite(summary.loc["new", "r2_mean_share_responsive"])


# The recording


def of_a_line(sites=4, per_site=6):
    """Trials of a brain whose answer is a wave of a size that falls with distance: known, and nearly free of noise."""
    from linear_truth import LinearTruth, shafts

    from stimopt.space import Parameter, StimulationSpace, contact_site
    from stimopt.stimulus import pulse_train
    from stimopt.tensors import concatenate, map_tensors

    montage = shafts(8)
    template = pulse_train(montage, "A1-A2", amplitude_ma=2.0)
    space = StimulationSpace(
        (contact_site(template, montage.neighbour_pairs()), Parameter("amplitude_ma", "continuous", 1.0, 3.0)), template
    )
    truth = LinearTruth(montage, space, gain_uv=30000.0)
    pairs = montage.neighbour_pairs()[:sites]
    each = [pulse_train(montage, pair, amplitude_ma=2.0) for pair in pairs for _ in range(per_site)]
    stimuli = concatenate([map_tensors(one, lambda x: x.unsqueeze(0)) for one in each])
    return truth.trials(stimuli, seed=3)


def test_a_site_left_out_is_not_among_the_trials_that_a_model_sees(monkeypatch):
    from stimopt import recorded_protocol

    trials, asked = of_a_line(), []

    def spy(one, past, rest, space, seed):
        asked.append(past)
        raise ConfigError("seen enough.")

    monkeypatch.setattr(recorded_protocol, "fitted", spy)
    table = leave_sites_out(trials, [Contender("no-effect")])
    assert len(table.refused) == 4
    for past in asked:
        sites = {tuple(row) for row in (past.stimulus.amplitude_ma != 0).int().tolist()}
        assert len(sites) == 3
        newest = {tuple(row) for row in (past.stimulus.amplitude_ma[-3:] != 0).int().tolist()}
        assert newest == sites  # sites in turns


def test_the_split_half_ceiling_of_a_recording_is_below_one_and_no_effect_is_zero():
    table = leave_sites_out(of_a_line(), [Contender("no-effect"), Contender("mean-evoked")])
    assert table.rows.ceiling.between(0.5, 1.05).all()  # an unbiased estimate may pass 1
    no_effect = table.rows[table.rows.model == "no-effect"].r2
    assert (no_effect.abs() < 0.3).all()
    assert set(table.differences("mean-evoked").against) == {"no-effect"}
    assert "unseen stimulation sites" in table.text()


@pytest.mark.slow
def test_recorded_ccep_is_judged_site_by_site(recordings):
    table = leave_sites_out(
        ccep_trials(recordings / "ccep_seeg_bids"), [Contender("no-effect"), Contender("mean-evoked")]
    )
    assert CCEP == "ccep-seeg-bids"
    assert len(table.rows) == 16  # 8 sites
    assert table.rows.ceiling.median() > 0.5
    assert (table.rows[table.rows.model == "no-effect"].r2.abs() < 0.2).all()
