"""The protocol on dose tables: nothing of what was left out is learnt from, and measures are right where known."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import yaml
from typer.testing import CliRunner

from stimopt import cli
from stimopt.datasets import load_table
from stimopt.dose_protocol import DOSE_MODELS, dose_models, judge_doses
from stimopt.dose_splits import LEAST_TRIALS, block_parts, setting_parts
from stimopt.dose_trials import DoseForecast
from stimopt.errors import ConfigError, DataError, StimoptError
from stimopt.trial_table import read_trial_table

DOSES = (1.0, 2.0, 4.0, 8.0)
REPEATS = 30
BLOCKS = {
    "file": "trials.nc",
    "name": "strip",
    "parameters": {"current": {"unit": "mA", "kind": "ordinal"}},
    "outcomes": {"size": {}},
    "context": ["pair"],
    "groups": {"patient": "sid", "block": "block"},
    "valid": "finite",
    "dose": {"parameter": "current", "outcomes": ["size"], "same": ["pair"]},
}
SETTINGS = {
    "file": "trials.csv",
    "name": "grid",
    "parameters": {"hz": {"kind": "ordinal"}, "current": {"kind": "ordinal"}},
    "outcomes": {"gain": {}, "other": {}},
    "groups": {"order": "clock"},
    "dose": {"parameter": "current", "outcomes": ["gain"], "controls": ["other"]},
}


def hill(dose):
    return 1 + 2 * dose**2 / (9 + dose**2)


def read(folder, card, data):
    folder.mkdir(exist_ok=True)
    if isinstance(data, pd.DataFrame):
        data.to_csv(folder / card["file"], index=False)
    else:
        data.to_netcdf(folder / card["file"], engine="scipy")
    (folder / "dataset.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    return read_trial_table(folder)


def strip(patients=3, blocks=3, drift=0.0, pairs=None, seed=0):
    """Channel 1 of each patient follows a saturating curve, channel 2 nothing; block b is higher by b times drift."""
    rng, rows = np.random.default_rng(seed), []
    for patient in range(patients):
        for block in range(blocks):
            for dose in np.repeat(DOSES, REPEATS):
                level = drift * block
                rows.append((f"p{patient}", block, dose, (pairs or [0] * blocks)[block],
                             hill(dose) + level + 0.3 * rng.normal(), 1 + level + 0.3 * rng.normal()))  # fmt: skip
    sid, block, dose, pair, one, two = zip(*rows, strict=True)
    return xr.Dataset(
        {"size": (("trial", "channel"), np.stack([one, two], -1)), "sid": ("trial", list(sid)),
         "block": ("trial", list(block)), "current": ("trial", list(dose)), "pair": ("trial", list(pair))},
        {"channel": [1, 2]},
    )  # fmt: skip


def grid(repeats=4, seed=0):
    """Two frequencies x four currents; `gain` follows both, `other` neither."""
    rng = np.random.default_rng(seed)
    rows = [(hz, dose) for _ in range(repeats) for hz in (5.0, 20.0) for dose in DOSES]
    table = pd.DataFrame(rows, columns=["hz", "current"])
    table["gain"] = hill(table.current) * (1 + table.hz / 20) + 0.2 * rng.normal(size=len(table))
    table["other"] = rng.normal(size=len(table))
    return table.assign(clock=rng.permutation(len(table)))


def parts_of(table, patient="p0"):
    return list(block_parts(table.select(patient=patient), table.card.dose, patient))


def with_block(data, block, change):
    """The same recording, other outcomes in one block of every patient."""
    data = data.copy(deep=True)
    here = data["block"].values == block
    data["size"].values[here] = change(data["size"].values[here])
    return data


# Leaks


def test_the_outcomes_of_a_block_left_out_reach_no_model_and_no_choice_of_channel(tmp_path):
    """In the other recording block 1 rises steeply in channel 2 and falls in channel 1: who peeks chooses channel 2."""
    data = strip(blocks=2)
    other = with_block(data, 1, lambda size: np.stack([-size[:, 0], 10 * size[:, 0]], -1))
    before = parts_of(read(tmp_path / "a", BLOCKS, data))
    after = parts_of(read(tmp_path / "b", BLOCKS, other))
    first, second = [3 * ["size, all channels"] for _ in range(2)]
    first[1] = second[2] = "size, chosen channel"  # it follows the part of the channel that was chosen
    assert [p.rows["outcome"] for p in before] == [*first, *first]
    assert [p.rows["outcome"] for p in after] == [*second, *first]  # block 0 left out leaves block 1; then the other
    assert all(torch.equal(a.past.outcome, b.past.outcome) for a, b in zip(before[3:], after[3:], strict=True))
    assert [torch.equal(a.outcome, b.outcome) for a, b in zip(before[3:], after[3:], strict=True)] == [False] * 3


def test_forecasts_of_a_block_do_not_change_when_its_outcomes_are_dealt_out_anew(tmp_path):
    data, rng = strip(patients=1), np.random.default_rng(1)
    dealt = with_block(data, 2, lambda size: size[rng.permutation(len(size))])
    for name, fit in dose_models(DOSE_MODELS).items():
        means = [
            [fit(p.past)(p.settings).mean for p in parts_of(read(tmp_path / folder, BLOCKS, which))]
            for folder, which in (("a", data), ("b", dealt))
        ]
        same = [torch.equal(a, b) for a, b in zip(*means, strict=True)]
        assert same[6:] == [True] * 3, name
        assert name == "no-dose" or not any(same[:6]), name  # a mean does not mind how outcomes are dealt out


def test_the_channel_is_chosen_by_its_rise_with_the_dose_in_the_blocks_learnt_from(tmp_path):
    parts = parts_of(read(tmp_path, BLOCKS, strip()))
    chosen = [p for p in parts if p.rows["outcome"] == "size, chosen channel"]
    first = [p for p in parts if p.rows["channel"] == "size_1"]
    assert len(chosen) == 3
    assert all(torch.equal(a.past.outcome, b.past.outcome) for a, b in zip(chosen, first, strict=True))


def test_a_block_teaches_only_about_blocks_with_its_stimulated_pair(tmp_path):
    data = strip(patients=1, blocks=4, pairs=[0, 1, 0, 1])
    table = read(tmp_path, BLOCKS, data)
    values = table.outcomes["size_1"].reshape(4, -1)
    for block, part in enumerate(p for p in parts_of(table) if p.rows["channel"] == "size_1"):
        assert torch.equal(part.past.outcome, values[(block + 2) % 4])
        assert torch.equal(part.outcome, values[block])


def test_a_setting_left_out_is_not_among_the_past_and_a_repetition_is_that_of_every_setting(tmp_path):
    table = read(tmp_path, SETTINGS, grid())
    parts = list(setting_parts(table.select(outcome="gain"), table.card.dose, "gain", "gain"))
    unseen = [p for p in parts if p.rows["split"] == "unseen settings"]
    others = [p for p in parts if p.rows["split"] == "unseen trials"]
    assert (len(unseen), len(others)) == (8, 4)
    for part in unseen:
        assert len(part.settings.unique(dim=0)) == 1
        assert not bool((part.past.settings.unsqueeze(1) == part.settings[:1]).all(-1).any())
        assert len(set(part.rows["unit"])) == 1
    for part in others:
        assert len(part.past.settings.unique(dim=0)) == len(part.settings.unique(dim=0)) == len(part.outcome) == 8
        assert len(part.past.outcome) == 24
    assert unseen[0].rows["unit"][0] == "hz 5, current 1"


def test_repetitions_follow_the_order_recorded(tmp_path):
    data = grid()
    table = read(tmp_path, SETTINGS, data)
    parts = setting_parts(table.select(outcome="gain"), table.card.dose, "gain", "gain")
    first = next(p for p in parts if p.rows["split"] == "unseen trials")
    earliest = data.sort_values("clock").groupby(["hz", "current"]).first().gain
    assert sorted(first.outcome.tolist()) == pytest.approx(sorted(earliest))


# Measures


def test_a_saturating_truth_is_forecast_up_to_its_ceiling_and_no_dose_is_zero(tmp_path):
    table = judge_doses(read(tmp_path, BLOCKS, strip(patients=4)), dose_models(["saturating", "no-dose"]))
    rows = table.rows[table.rows.outcome == "size, chosen channel"].set_index(["model", "unit"])
    own = rows.loc["saturating"]
    truth = hill(np.array(DOSES)).var() / (hill(np.array(DOSES)).var() + 0.3**2)  # 0.81 of the variance is the curve
    assert own.ceiling.to_numpy() == pytest.approx(truth, abs=0.05)
    assert (own.ceiling - own.r2).between(-0.02, 0.03).all()
    assert (own.effect_ceiling - own.effect_r2).between(-0.02, 0.03).all()
    assert own.coverage_90.between(0.85, 0.95).all()  # 360 trials a patient: 1.6 % each way
    assert rows.loc["no-dose"].r2.to_numpy() == pytest.approx(0, abs=1e-12)
    assert rows.loc["no-dose"].effect_r2.to_numpy() == pytest.approx(0, abs=1e-12)


def test_the_noise_of_a_setting_is_the_unbiased_variance_of_its_trials(tmp_path):
    data = grid(repeats=3)
    table = read(tmp_path, SETTINGS, data)
    parts = list(setting_parts(table.select(outcome="gain"), table.card.dose, "gain", "gain"))
    variances = data.groupby(["hz", "current"]).gain.var()
    assert [float(p.noise.mean()) for p in parts[:8]] == pytest.approx(list(variances))
    assert float(sum(p.noise.sum() for p in parts[8:])) == pytest.approx(3 * variances.sum())


def test_all_channels_count_a_patient_once_by_the_mean_of_its_channels(tmp_path):
    table = judge_doses(read(tmp_path, BLOCKS, strip()), dose_models(["setting-means"]))
    every = table.rows[table.rows.outcome == "size, all channels"]
    assert sorted(every.channel.unique()) == ["size_1", "size_2"]
    summary = table.summary().set_index("outcome").loc["size, all channels"]
    assert summary.units == 3
    assert summary.r2 == pytest.approx(every.groupby("unit").r2.mean().median())
    assert summary.r2_low <= summary.r2 <= summary.r2_high


def test_a_drift_between_blocks_costs_r2_but_not_the_effect_of_the_dose(tmp_path):
    models = dose_models(["setting-means"])
    still, drifting = (
        judge_doses(read(tmp_path / str(drift), BLOCKS, strip(drift=drift)), models).rows.set_index("outcome")
        for drift in (0.0, 1.0)
    )
    one, other = (rows.loc["size, chosen channel"] for rows in (still, drifting))
    assert (other.r2 < one.r2 - 0.3).all()
    assert other.effect_r2.to_numpy() == pytest.approx(one.effect_r2.to_numpy(), abs=1e-9)


def test_the_mean_over_settings_is_r2_of_all_trials_together(tmp_path):
    data = grid()
    table = judge_doses(read(tmp_path, SETTINGS, data), dose_models(["setting-means", "no-dose"]))
    ranks = data.sort_values("clock").groupby(["hz", "current"]).cumcount().reindex(data.index)
    error = size = 0.0
    for rank in range(4):
        past, held = data[ranks != rank], data[ranks == rank]
        means = past.groupby(["hz", "current"]).gain.mean().rename("mean").reset_index()
        error += float(((held.merge(means, on=["hz", "current"]).eval("gain - mean")) ** 2).sum())
        size += float(((held.gain - past.gain.mean()) ** 2).sum())
    summary = table.summary().set_index(["split", "outcome", "model"]).r2
    assert summary["unseen trials", "gain", "setting-means"] == pytest.approx(1 - error / size)
    assert summary["unseen trials", "gain", "no-dose"] == pytest.approx(0, abs=1e-12)
    assert summary["unseen trials", "other (control)", "setting-means"] < 0.1


def test_differences_are_paired_over_units_and_say_who_is_ahead(tmp_path):
    table = judge_doses(read(tmp_path, BLOCKS, strip(patients=5)), dose_models(["saturating", "no-dose"]))
    gaps = table.differences("saturating").set_index(["outcome", "measure"])
    chosen = gaps.loc["size, chosen channel", "r2"]
    assert (chosen.against, chosen.ahead) == ("no-dose", True)
    own = table.rows[(table.rows.outcome == "size, chosen channel") & (table.rows.model == "saturating")]
    assert chosen.difference == pytest.approx(own.r2.median())  # no-dose is zero everywhere
    assert not table.differences("no-dose").ahead.any()


def test_a_model_that_refuses_is_named_with_its_reason(tmp_path):
    def refuses(past):
        raise DataError("too few doses; record more.")

    def wide(past):
        return lambda s: DoseForecast(torch.zeros_like(s[:, 0]), torch.full_like(s[:, 0], 100.0))

    table = judge_doses(read(tmp_path, BLOCKS, strip(patients=1)), {"refuses": refuses, "wide": wide})
    assert table.refused.to_dict("records") == [
        {"model": "refuses", "unit": "p0", "reason": "too few doses; record more."}
    ]
    assert "refuses, p0: not judged: too few doses" in table.text()
    assert set(table.rows.model) == {"wide"}
    assert (table.rows.coverage_90 == 1).all()


def test_a_model_that_refuses_one_block_is_not_judged_on_the_others_alone(tmp_path):
    table = read(tmp_path, BLOCKS, strip(patients=2))
    first = next(p for p in parts_of(table, "p1") if p.rows["channel"] == "size_1")

    def picky(past):
        if torch.equal(past.outcome, first.past.outcome):
            raise DataError("not these; choose others.")
        return lambda s: DoseForecast(torch.zeros_like(s[:, 0]), torch.ones_like(s[:, 0]))

    rows = judge_doses(table, {"picky": picky, **dose_models(["no-dose"])}).rows
    judged = rows[rows.model == "picky"].groupby("unit").channel.apply(set).to_dict()
    assert judged == {"p0": {"", "size_1", "size_2"}, "p1": {"size_2"}}  # the chosen channel of p1 is size_1


def test_a_channel_that_never_varies_has_no_measures(tmp_path):
    data = strip()
    data["size"].values[:, 1] = 2.0
    table = judge_doses(read(tmp_path, BLOCKS, data), dose_models(["saturating", "no-dose"]))
    assert set(table.rows.channel) == {"", "size_1"}
    assert table.summary().r2.notna().all()
    flat = {**SETTINGS, "dose": {"parameter": "current", "outcomes": ["gain"]}}
    with pytest.raises(DataError, match="'gain' of 'grid' is the same in all trials"):
        judge_doses(read(tmp_path / "flat", flat, grid().assign(gain=1.0)), dose_models(["no-dose"]))


def test_a_control_is_judged_by_blocks_as_well(tmp_path):
    data = strip().rename({"size": "gain"})
    data["size"] = data.gain.isel(channel=1)
    card = {**BLOCKS, "outcomes": {"gain": {}, "size": {}}}
    card["dose"] = {"parameter": "current", "outcomes": ["gain"], "controls": ["size"]}
    summary = judge_doses(read(tmp_path, card, data), dose_models(["monotone"])).summary().set_index("outcome")
    assert list(summary.index) == ["gain, all channels", "gain, chosen channel", "size (control)"]
    assert summary.r2["gain, chosen channel"] > 0.5
    assert abs(summary.r2["size (control)"]) < 0.05


# Refusals


def test_a_patient_with_one_block_is_named_and_a_table_of_such_patients_refused(tmp_path):
    data = strip(patients=2)
    few = data.isel(trial=(data["sid"].values == "p0") | (data["block"].values == 0))
    table = judge_doses(read(tmp_path / "some", BLOCKS, few), dose_models(["no-dose"]))
    assert "all, p1: not judged: there is one block, and leaving one out takes two" in table.text()
    assert set(table.rows.unit) == {"p0"}
    with pytest.raises(DataError, match="no block of 'strip' can be left out: p0: there is one block"):
        judge_doses(read(tmp_path / "none", BLOCKS, strip(blocks=1)), dose_models(["no-dose"]))
    with pytest.raises(DataError, match="none of 2 blocks has others with the same pair that hold 50 valid trials"):
        judge_doses(read(tmp_path / "pairs", BLOCKS, strip(blocks=2, pairs=[0, 1])), dose_models(["no-dose"]))


def test_a_channel_with_few_trials_to_learn_from_is_not_judged(tmp_path):
    data = strip(patients=1, blocks=2)
    data["size"].values[LEAST_TRIALS - 1 : 4 * REPEATS, 0] = np.nan  # block 0 of channel 1 keeps one trial too few
    rows = judge_doses(read(tmp_path, BLOCKS, data), dose_models(["no-dose"])).rows
    kept = rows[rows.outcome == "size, all channels"].set_index("channel").trials
    assert kept["size_1"] == LEAST_TRIALS - 1  # tested, but not learnt from
    assert kept["size_2"] == 8 * REPEATS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dose": None}, "does not say what its dose is; add 'dose: "),
        ({"groups": {"block": "block"}}, "names blocks but no patient"),
        ({"groups": {"patient": "sid"}}, "has 3 patients and no blocks"),
        ({"dose": {"parameter": "size", "outcomes": ["size"]}}, "'size' must be a parameter with numbers"),
        ({"dose": {"parameter": "current", "outcomes": ["sise"]}}, "outcomes: 'sise' is not in the card; it has size"),
        ({"dose": {"parameter": "current", "outcomes": ["size"], "same": ["sid"]}}, "same: 'sid' is not in the card"),
    ],
)
def test_a_table_that_cannot_be_judged_is_one_sentence(tmp_path, change, words):
    with pytest.raises(DataError, match=words) as caught:
        judge_doses(read(tmp_path, {**BLOCKS, **change}, strip()), dose_models(["no-dose"]))
    assert "\n" not in str(caught.value)


def test_two_settings_are_too_few_to_leave_one_out(tmp_path):
    data = grid()
    with pytest.raises(DataError, match="2 settings of 4 trials or more for 'gain'; leaving a setting out takes three"):
        judge_doses(read(tmp_path, SETTINGS, data[data.current == 1]), dose_models(["no-dose"]))


def test_a_forecaster_of_waveforms_is_refused_by_name():
    with pytest.raises(ConfigError, match="'arx' forecasts waveforms, and a dose table has none; choose a dose model"):
        dose_models(["arx"])
    with pytest.raises(ConfigError, match="did you mean 'saturating'"):
        dose_models(["saturatin"])


# The command line


def printed_by(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False).stdout


def test_the_command_judges_a_table_by_its_path(tmp_path):
    read(tmp_path, BLOCKS, strip())
    asked = ("skill-recorded", "saturating", "--data", tmp_path, "--against", "no-dose", "--against", "monotone")
    printed = printed_by(*asked)
    assert "no waveforms and no coordinates: forecasters of waveforms (ARX, the foundation model) cannot" in printed
    assert "size, chosen channel, unseen blocks:" in printed
    assert "How much higher saturating is, paired over units:" in printed
    found = json.loads(printed_by(*asked, "--json"))
    assert found["model"] == "saturating"
    assert {row["model"] for row in found["summary"]} == {"saturating", "no-dose", "monotone"}
    assert {row["against"] for row in found["differences"]} == {"no-dose", "monotone"}
    assert found["refused"] == []


def test_the_command_takes_the_gaussian_process_where_no_model_is_named(tmp_path):
    read(tmp_path, SETTINGS, grid())
    found = json.loads(printed_by("skill-recorded", "--data", tmp_path, "--json"))
    assert found["model"] == "gaussian-process"
    assert {row["model"] for row in found["summary"]} == set(DOSE_MODELS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "ep-dose"), "did you mean 'ep-dose-ecog'"),
        (("--data", "no/such/dataset.yaml"), "no/such/dataset.yaml does not exist"),
        (("arx", "--data", "ep-dose-ecog"), "'arx' forecasts waveforms"),
        (("saturating",), "'saturating' is a dose model and ccep-seeg-bids holds signals; add --data"),
        ((), "name the model to judge on ccep-seeg-bids"),
    ],
)
def test_the_command_says_what_cannot_be_judged(arguments, words):
    result = CliRunner().invoke(cli.app, ["skill-recorded", *arguments])
    assert isinstance(result.exception, StimoptError)  # which `main` turns into exit code 2
    assert words in str(result.exception)
    assert "\n" not in str(result.exception)


# Recorded data


def test_the_gain_in_gamma_is_forecast_for_unseen_settings_and_theta_is_not(recordings):
    table = judge_doses(load_table("opto-septohippocampal"), dose_models(["gaussian-process", "setting-means"]))
    r2 = table.summary().set_index(["split", "outcome", "model"]).r2
    for region in ("ca1", "ca3"):
        # leave-one-out R2 of the cell's mean with all 8 repetitions: .50 and .57; 6 of the 8 are here
        known = r2["unseen trials", f"gamma_log_ratio_{region}", "setting-means"]
        assert known == pytest.approx({"ca1": 0.50, "ca3": 0.57}[region], abs=0.06)
        assert r2["unseen settings", f"gamma_log_ratio_{region}", "gaussian-process"] > 0.4
        assert r2["unseen trials", f"theta_log_ratio_{region} (control)", "setting-means"] < 0
        assert r2["unseen settings", f"theta_log_ratio_{region} (control)", "gaussian-process"] < 0.1


@pytest.mark.slow
def test_most_channels_of_a_strip_carry_no_dose_response_and_the_chosen_one_does(recordings):
    table = judge_doses(load_table("ep-dose-ecog"), dose_models(["setting-means", "no-dose"]))
    found = table.summary().set_index(["outcome", "model"])
    assert (found.units == 9).all()  # 46c2a has one block
    assert table.refused.unit.tolist() == ["46c2a"]
    # the data set's own check, 14 patients: median leave-one-block-out R2 over all usable channels .06
    assert found.loc[("log10_pp, all channels", "setting-means")].r2 == pytest.approx(0.06, abs=0.05)
    assert found.loc[("log10_pp, chosen channel", "setting-means")].r2 > 0.2
    assert found.loc[("log10_pp, chosen channel", "no-dose")].r2 == pytest.approx(0, abs=1e-9)
