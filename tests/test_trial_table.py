import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import yaml

from stimopt.datasets import load_table
from stimopt.errors import DataError
from stimopt.trial_table import read_trial_table

CARD = {
    "name": "arm",
    "file": "arm.csv",
    "parameters": {"amplitude_ma": {"unit": "mA", "kind": "ordinal"}, "site": {"kind": "categorical"}},
    "outcomes": {"emg": {"better": "higher"}},
    "groups": {"patient": "sid", "order": "clock"},
}
ROWS = pd.DataFrame({
    "sid": ["2e114", "2e114", "8e907", "8e907", "007"], "amplitude_ma": [1.0, 2.0, 2.0, 4.0, 1.0],
    "site": ["10", "9", "10", "1e5", "9"], "emg": [0.1, 0.2, 0.3, 0.4, 0.5], "clock": [50, 40, 30, 20, 10],
})  # fmt: skip


def table(tmp_path, rows=ROWS, file="arm.csv", **changes):
    card = {**CARD, "file": file, **changes}
    if file.endswith(".parquet"):
        rows.to_parquet(tmp_path / file)
    elif file.endswith(".nc"):
        rows.to_netcdf(tmp_path / file, engine="scipy")
    else:
        rows.to_csv(tmp_path / file, index=False, sep="\t" if file.endswith("tsv") else ",")
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    return read_trial_table(tmp_path / "dataset.yaml")


@pytest.mark.parametrize("file", ["arm.csv", "arm.csv.gz", "arm.tsv", "arm.parquet"])
def test_names_that_look_like_numbers_stay_names(tmp_path, file):
    read = table(tmp_path, file=file)
    assert read.patients == ("2e114", "8e907", "007")
    assert read.choices["site"] == ("9", "10", "1e5")
    assert read.values[:, 0].tolist() == [1.0, 2.0, 2.0, 4.0, 1.0]
    assert read.outcomes["emg"].tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert read.order.tolist() == [4, 3, 2, 1, 0]


def test_the_space_holds_what_was_recorded_and_finds_each_trial_again(tmp_path):
    read = table(tmp_path)
    amplitude, site = read.space.parameters
    assert (amplitude.name, amplitude.choices, amplitude.unit) == ("amplitude_ma", (1.0, 2.0, 4.0), "mA")
    assert site.choices == ("9", "10", "1e5")
    unit = read.space.locate(read.stimuli)
    assert torch.equal(read.space.stimulus(unit).sensory.features, read.values)
    assert [read.space.describe(u) for u in unit][3] == {"amplitude_ma": 4.0, "site": "1e5"}
    assert bool((read.stimuli.amplitude_ma.sum(-1) == 0).all())  # a recorded current is not delivered again


def test_a_patient_has_a_space_of_their_own(tmp_path):
    own = table(tmp_path).select(patient="8e907")
    assert own.space.parameters[0].choices == (2.0, 4.0)
    assert own.space.parameters[1].choices == ("10", "1e5")
    assert own.values.tolist() == [[2.0, 0.0], [4.0, 1.0]]
    assert own.order.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"patient '8' is not in 'arm'; it has 2e114, 8e907, 007"):
        table(tmp_path).select(patient="8")
    with pytest.raises(DataError, match="names no session"):
        table(tmp_path).select(session="1")
    with pytest.raises(DataError, match="outcome 'eeg' is not in 'arm'; it has emg"):
        table(tmp_path).select(outcome="eeg")


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    with pytest.raises(DataError, match=r"column 'emgs' is not in .*arm.csv; did you mean 'emg'"):
        table(tmp_path, outcomes={"emgs": {}})
    with pytest.raises(DataError, match="column 'visit' is not in"):
        table(tmp_path, groups={"session": "visit"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parameter": {}}, r"did you mean 'parameters'"),
        ({"outcomes": {"emg": {"better": "up"}}}, r"outcomes.emg.better: input should be 'higher' or 'lower'"),
        ({"parameters": {"site": {"kind": "site"}}}, "a site needs 'coordinates'"),
        ({"parameters": {"site": {"kind": "letters"}}}, "parameters.site.kind"),
        ({"file": "other.csv"}, "other.csv does not exist"),
        ({"used_up": "again"}, "'refuse' or 'redraw'"),
    ],
)
def test_a_wrong_card_is_one_sentence(tmp_path, change, words):
    table(tmp_path)
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({**CARD, **change}))
    with pytest.raises(DataError, match=words) as caught:
        read_trial_table(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_card_may_carry_notes_and_leave_the_file_to_be_found(tmp_path):
    table(tmp_path)
    card = {key: value for key, value in CARD.items() if key != "file"}
    (tmp_path / "dataset.yaml").write_text(
        yaml.safe_dump({**card, "paper": "Someone 2023", "valid": None, "context": None})
    )
    assert len(load_table(tmp_path)) == 5
    (tmp_path / "second.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match="add 'file:' to the card"):
        read_trial_table(tmp_path)


def test_nan_in_a_row_that_counts_is_refused_with_the_number_of_rows(tmp_path):
    rows = ROWS.assign(emg=[0.1, None, 0.3, None, 0.5])
    with pytest.raises(DataError, match=r"outcome 'emg' is NaN in 2 of 5 rows"):
        table(tmp_path, rows)
    assert len(table(tmp_path, rows, valid="finite")) == 3
    rows = ROWS.assign(amplitude_ma=[1.0, None, 2.0, 4.0, 1.0])
    with pytest.raises(DataError, match=r"amplitude_ma is NaN in 1 of 5 rows"):
        table(tmp_path, rows)
    assert len(table(tmp_path, rows.assign(ok=[1, 0, 1, 1, 1]), valid="ok")) == 4  # nothing is asked of a rejected row
    with pytest.raises(DataError, match=r"must hold numbers, but one cell is 'loud'"):
        table(tmp_path, ROWS.assign(emg=["0.1", "loud", "1", "2", "3"]))


@pytest.mark.parametrize(
    "flags", [[1, 0, 1, 1, 0], [1, -1, 1, 1, -1], [1.0, None, 1.0, 1.0, 0.0], [True, False, True, True, False]]
)
def test_a_mask_counts_rows(tmp_path, flags):
    read = table(tmp_path, ROWS.assign(ok=flags), valid="ok")
    assert read.outcomes["emg"].tolist() == [0.1, 0.3, 0.4]


def test_a_mask_of_other_numbers_is_refused(tmp_path):
    with pytest.raises(DataError, match="must hold 0 and 1 only; it goes from 0 to 5"):
        table(tmp_path, ROWS.assign(ok=[0, 1, 5, 1, 1]), valid="ok")
    with pytest.raises(DataError, match="has no valid trial among 5"):
        table(tmp_path, ROWS.assign(ok=[0, 0, 0, 0, 0]), valid="ok")


def test_equal_outcomes_are_allowed(tmp_path):
    assert table(tmp_path, ROWS.assign(emg=0.0)).outcomes["emg"].tolist() == [0.0] * 5


def test_propensities_follow_the_card_and_the_selection(tmp_path):
    assert table(tmp_path).propensity is None
    assert table(tmp_path, propensity="uniform").propensity.tolist() == [0.2] * 5
    shares = table(tmp_path, ROWS.assign(site="9"), propensity="estimated")
    assert shares.propensity.tolist() == pytest.approx([0.4, 0.4, 0.4, 0.2, 0.4])
    assert shares.select(patient="2e114").propensity.tolist() == pytest.approx([0.5, 0.5])
    drawn = table(tmp_path, ROWS.assign(p=[0.1, 0.2, 0.3, 0.4, 0.5]), propensity="p")
    assert drawn.select(patient="8e907").propensity.tolist() == [0.3, 0.4]


def array_map(rng, missing=(0, 9, 90, 99)):
    """A 10 x 10 array without its corners: 96 sites x 28 repetitions x 2 muscles, two repetitions rejected."""
    sites = [s for s in range(100) if s not in missing]
    emg = rng.normal(size=(2, 96, 28))
    ok = np.ones((2, 96, 28), dtype=np.int8)
    ok[0, 3, 5], ok[1, 3, 5], emg[:, 3, 5] = 0, 0, np.nan
    ok[1, 7, :], emg[1, 7, :] = -1, np.nan
    return xr.Dataset(
        {"emg": (("muscle", "site", "repetition"), emg), "ok": (("muscle", "site", "repetition"), ok)},
        {"site": sites, "site_x": ("site", [s % 10 for s in sites]), "site_y": ("site", [s // 10 for s in sites]),
         "muscle": ["biceps", "deltoid"]},
    )  # fmt: skip


def test_a_map_of_96_sites_and_28_repetitions_with_a_mask(tmp_path):
    data = array_map(np.random.default_rng(0))
    site = {"site": {"kind": "site", "coordinates": ["site_x", "site_y"], "unit": "mm"}}
    read = table(tmp_path, data, "map.nc", parameters=site, groups={}, valid="ok")
    assert list(read.outcomes) == ["emg_biceps", "emg_deltoid"]
    assert len(read) == 96 * 28 - 1
    assert int(read.valid["emg_deltoid"].sum()) == 95 * 28 - 1
    assert bool((read.outcomes["emg_deltoid"].isnan() == ~read.valid["emg_deltoid"]).all())
    assert read.space.parameters[0].choices[:3] == ("1", "2", "3")
    deltoid = read.select(outcome="emg_deltoid")
    assert len(deltoid.space.points()) == 95  # a site without a valid trial is no choice
    unit = read.space.encode({"site": "25"})
    row = read.values[:, 0] == read.choices["site"].index("25")
    assert read.space.parameters[0].coordinates[read.choices["site"].index("25")] == (5.0, 2.0)
    assert torch.equal(read.space.locate(read.stimuli)[row], unit.expand(28, 2))
    expected = data["emg"].sel(muscle="biceps", site=25).values
    assert read.outcomes["emg_biceps"][row].tolist() == expected.tolist()


def test_a_full_grid_pairs_every_cell_with_its_settings(tmp_path):
    grid = xr.Dataset(
        {"gain": (("amplitude", "frequency", "repetition"), np.arange(24.0).reshape(2, 3, 4))},
        {"frequency": [5.0, 20.0, 130.0], "amplitude": [1.0, 2.0]},
    )
    knobs = {"frequency": {"kind": "log", "unit": "Hz"}, "amplitude": {"kind": "continuous", "unit": "mA"}}
    read = table(tmp_path, grid, "grid.nc", parameters=knobs, outcomes={"gain": None}, groups={})
    assert len(read) == 24
    assert read.values[17].tolist() == [20.0, 2.0]  # frequency first, as in the card
    assert read.outcomes["gain"][17] == 17.0
    assert [(p.kind, p.low, p.high) for p in read.space.parameters] == [("log", 5.0, 130.0), ("continuous", 1.0, 2.0)]


def test_sites_that_share_a_place_are_refused(tmp_path):
    rows = ROWS.assign(x=[0, 1, 0, 1, 1], y=0)
    site = {"site": {"kind": "site", "coordinates": ["x", "y"]}}
    with pytest.raises(DataError, match=r"site '9' and '1e5' have the same place \[1.0, 0.0\]"):
        table(tmp_path, rows, parameters=site).space
    with pytest.raises(DataError, match="site '10' has 2 places"):
        table(tmp_path, rows.assign(x=[0, 1, 2, 3, 1]), parameters=site).space


@pytest.mark.parametrize(
    ("derive", "words"),
    [
        ({"kind": "cube"}, "write kind: log_band_ratio or log10"),
        ({"kind": "log10"}, "log10 takes variable"),
        ({"kind": "log10", "variable": "nothing"}, "column 'nothing' is not in"),
    ],
)
def test_a_wrong_derivation_is_one_sentence(tmp_path, derive, words):
    with pytest.raises(DataError, match=words):
        table(tmp_path, outcomes={"emg": {"derive": derive}})


def test_log10_has_no_value_at_zero(tmp_path):
    logs = {"log_emg": {"derive": {"kind": "log10", "variable": "emg"}}}
    read = table(tmp_path, ROWS.assign(emg=[1.0, 10.0, 1000.0, 0.0, 100.0]), outcomes=logs, valid="finite")
    assert read.outcomes["log_emg"].tolist() == pytest.approx([0.0, 1.0, 3.0, 2.0])


def test_a_band_ratio_is_the_mean_over_its_bins(tmp_path):
    power = np.ones((2, 6))
    power[0, 2:4] = [10.0, 1000.0]
    data = xr.Dataset(
        {"on": (("trial", "bin"), power), "off": (("trial", "bin"), np.ones((2, 6))), "dose": ("trial", [1.0, 2.0])}
    )
    derive = {
        "kind": "log_band_ratio",
        "numerator": "on",
        "denominator": "off",
        "axis": "bin",
        "band_hz": [9, 16],
        "bin_hz": 5.0,
    }
    knobs = {"dose": {"kind": "ordinal"}}
    read = table(
        tmp_path, data, "psd.nc", parameters=knobs, outcomes={"gain": {"derive": derive}}, groups={}, context=["off"]
    )
    assert read.outcomes["gain"].tolist() == pytest.approx([2.0, 0.0])  # bins 2 and 3, at 10 and 15 Hz
    assert read.context["off"].shape == (2, 6)
    with pytest.raises(DataError, match="holds no bin"):
        table(
            tmp_path,
            data,
            "psd.nc",
            parameters=knobs,
            outcomes={"gain": {"derive": {**derive, "band_hz": [40, 50]}}},
            groups={},
        )


@pytest.mark.parametrize("file", ["arm.nc", "arm.csv.gz", "arm.parquet"])
def test_a_damaged_file_is_one_sentence(tmp_path, file):
    (tmp_path / file).write_bytes(b"\x89HDF\r\n\x1a\nnothing more")
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({**CARD, "file": file}))
    with pytest.raises(DataError, match=rf"{file} (cannot be read|is no complete)") as caught:
        read_trial_table(tmp_path)
    assert "\n" not in str(caught.value)
