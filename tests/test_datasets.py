import functools
import hashlib
import http.server
import math
import threading
from collections.abc import Iterator

import pytest
import torch
from scipy.stats import spearmanr

from stimopt.datasets import DatasetCard, dataset_names, fetch, find_dataset, load_table, locate
from stimopt.errors import DataError
from stimopt.recorded import RecordedStimuli
from stimopt.trial_card import Provenance

CONTENT = {"table.csv": b"dose,score\n1,2\n", "sub/other.txt": b"other"}


def card_of(content=CONTENT, **changes):
    checksums = {name: hashlib.sha256(text).hexdigest() for name, text in content.items()}
    source = {
        "source": "https://example.org/x",
        "licence": "CC0",
        "citation": "none",
        "folder": "tiny",
        "sha256": checksums,
    }
    return DatasetCard(name="tiny", title="Tiny", provenance=Provenance(**{**source, **changes}))


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    """A server of CONTENT on this machine alone."""
    for name, text in CONTENT.items():
        file = tmp_path / "served" / "tiny" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/tiny"
        listening.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STIMOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STIMOPT_DATA", raising=False)
    return tmp_path / "cache"


def test_fetched_files_are_checked_and_kept(server, cache):
    folder = fetch(card_of(), server)
    assert folder == cache / "tiny"
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
    fetch(card_of(), "http://127.0.0.1:9")  # nobody listens there, and nobody is asked again


def test_a_wrong_checksum_leaves_nothing(server, cache):
    with pytest.raises(DataError, match="its sha256 differs; nothing was kept"):
        fetch(card_of({"table.csv": b"something else"}), server)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_missing_file_and_a_silent_server_are_named(server, cache):
    with pytest.raises(DataError, match=r"nowhere.csv could not be fetched \(404"):
        fetch(card_of({"nowhere.csv": b""}), server)
    with pytest.raises(DataError, match="could not be fetched"):
        fetch(card_of({"other.csv": b""}), "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"nobody serves .* https://example.org/x"):
        fetch(card_of())


@pytest.mark.parametrize("name", dataset_names())
def test_every_card_says_where_its_data_come_from(name):
    card = find_dataset(name)
    source = card.provenance
    assert card.name == name
    assert source.source.startswith("https://")
    assert len(source.source.rpartition("/")[2]) >= 7
    assert source.licence
    assert source.citation
    assert source.traps
    assert source.sha256
    assert all(len(checksum) == 64 for checksum in source.sha256.values())


def test_data_that_are_not_here_say_what_to_set(cache):
    with pytest.raises(DataError, match=r"Set STIMOPT_DATA to the folder that holds rat_m1_score_maps/"):
        locate("rat-m1-maps")
    with pytest.raises(DataError, match="did you mean 'rat-m1-maps'"):
        locate("rat-m1-map")


def test_a_damaged_or_missing_file_is_refused(tmp_path, cache, monkeypatch):
    folder = tmp_path / "data" / "rat_m1_score_maps"
    folder.mkdir(parents=True)
    monkeypatch.setenv("STIMOPT_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError, match=r"rat_m1_score_maps.nc is missing"):
        locate("rat-m1-maps")
    (folder / "rat_m1_score_maps.nc").write_bytes(b"no map")
    with pytest.raises(DataError, match=r"differs from the card of 'rat-m1-maps' \(sha256 "):
        load_table("rat-m1-maps")


def test_signals_are_no_table(cache):
    with pytest.raises(DataError, match="holds signals, not a trial table"):
        load_table("ccep-seeg-bids")


@pytest.mark.parametrize("name", dataset_names())
def test_every_card_fits_its_recorded_data(recordings, name):
    folder = locate(name)
    assert folder.parent == recordings
    if find_dataset(name).table is not None:
        assert len(load_table(name)) > 200


def test_the_hippocampal_gain_peaks_at_35_hz_and_50(recordings):
    table = load_table("opto-septohippocampal")
    gamma = RecordedStimuli(table, "gamma_log_ratio_ca1")
    assert len(gamma.settings) == 48
    assert set(gamma.repetitions.tolist()) == {6}
    assert gamma.describe(int(gamma.means.argmax())) == "stim_frequency 35, stim_amplitude 50"
    # all 8 repetitions give 1.0 with a standard error of 0.09; 6 of the 8 are here
    assert float(gamma.means.max()) == pytest.approx(1.0, abs=0.2)
    assert table.context["psd_pre"].shape == (288, 2, 100)


def test_the_sham_is_flat_and_theta_cannot_be_controlled(recordings):
    table = load_table("opto-septohippocampal")
    gamma = table.outcomes["gamma_log_ratio_ca1"]
    sham = table.values[:, 1] == 0
    assert abs(float(gamma[sham].mean())) < 0.1  # 48 trials of SD 0.33
    assert leave_one_out_r2(table, "gamma_log_ratio_ca1") == pytest.approx(0.50, abs=0.06)  # with all 8 repetitions
    assert leave_one_out_r2(table, "gamma_log_ratio_ca3") == pytest.approx(0.57, abs=0.06)
    assert leave_one_out_r2(table, "theta_log_ratio_ca1") <= 0


def leave_one_out_r2(table, outcome):
    """How much of single trials the mean of the other repetitions explains."""
    known = RecordedStimuli(table, outcome)
    count = known.repetitions[known.cell].double()
    guess = (known.means[known.cell] * count - known.values) / (count - 1)
    spread = (known.values - known.values.mean()).square().sum()
    return 1 - float((known.values - guess).square().sum() / spread)


def test_evoked_amplitude_rises_with_current_in_most_patients(recordings):
    """Best channel chosen on a patient's first block, scored on the others: no selection on what is scored."""
    table = load_table("ep-dose-ecog")
    assert table.patients[0] == "01fee"
    assert "8e907" in table.patients
    scores = {}
    for patient in table.patients:
        blocks = [
            table.select(patient=patient, block=b) for b in dict.fromkeys(table.select(patient=patient).groups["block"])
        ]
        if len(blocks) > 1 and patient != "3d413":  # its stimulated pair changes
            rated = {name: dose_response(blocks[:1], name) for name in table.outcomes if name.startswith("log10_pp")}
            best = max((name for name in rated if math.isfinite(rated[name])), key=lambda name: rated[name])
            scores[patient] = dose_response(blocks[1:], best)
    # published for all 14 patients: median 0.71, above 0.4 in 12
    assert len(scores) == 8
    assert 0.55 < float(torch.tensor(list(scores.values())).median()) < 0.85
    assert sum(score > 0.4 for score in scores.values()) >= 5


def dose_response(blocks, outcome):
    """Spearman correlation of current and amplitude over the valid trials of some blocks; NaN below 50 trials."""
    parts = [block.select(outcome=outcome) for block in blocks if bool(block.valid[outcome].any())]
    if sum(map(len, parts)) < 50:
        return math.nan
    current = torch.cat([part.values[:, 0] for part in parts])
    return float(spearmanr(current, torch.cat([part.outcomes[outcome] for part in parts])).statistic)


def test_the_rat_maps_have_sites_with_places(recordings):
    table = load_table("rat-m1-maps")
    assert len(table.patients) == 12
    site = table.space.parameters[0]
    assert site.choices[:2] == ("0", "1")
    assert site.coordinates[:2] == ((8.0, 1.0), (4.0, 1.0))
    rat = RecordedStimuli(table.select(patient="11"), "score")
    assert float(rat.means.max()) == 8.0
    assert rat.describe(int(rat.means.argmax())) == "site '23'"
    assert RecordedStimuli(table.select(patient="3"), "score").flat


def test_conditions_keep_their_names_and_channels(recordings):
    table = load_table("closedloop-beta")
    assert table.choices["condition"] == ("Base", "Test 1", "Test 2", "Test 3")
    assert table.propensity is None
    own = table.select(patient="702d24")
    assert len(set(own.groups["channel"])) == 1
    assert 100 < float(own.outcomes["cep_uV"].median()) < 1000  # uV
