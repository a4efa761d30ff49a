import shutil
import sys
from dataclasses import replace

import pytest
import torch

from stimopt.bids import read_bids, read_bids_runs, write_bids
from stimopt.datasets import locate
from stimopt.errors import DataError, MontageError, UnitError
from stimopt.montage import Contact, monopolar
from stimopt.recording import Recording
from stimopt.stimulus import pulse_train, table_stimulus
from stimopt.tensors import concatenate, map_tensors

SITES = ("A1-A2", "A2-A1", "B1")


def small(amplitudes_ma=(6.0, 4.0, 1.5)):
    contacts = [Contact(f"A{i}", (3.5 * i, -67.8, 0.1 * i), 0.0503, "depth", "A") for i in (1, 2, 3)]
    montage = monopolar([*contacts, Contact("B1", kind="depth", shaft="B")], "ACPC")
    one = [
        pulse_train(montage, s, amplitude_ma=a, pulse_width_us=150.0) for s, a in zip(SITES, amplitudes_ma, strict=True)
    ]
    stimuli = concatenate([map_tensors(s, lambda t: t.unsqueeze(0)) for s in one])
    signal_uv = 50 * torch.randn(4, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Recording(montage, signal_uv, 500.0, stimuli, torch.tensor([0.5, 0.9, 1.3004], dtype=torch.float64))


def edit(root, ending, old, new):
    (file,) = root.rglob(f"*{ending}")
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("bids")
    write_bids(small(), root, "7", "a", "1")
    return root


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written, tmp_path / "bids")


def test_what_was_written_comes_back(written):
    kept, back = small(), read_bids(written, "7", "a", "1")
    # BrainVision keeps float32: 200 uV to about 1e-5
    torch.testing.assert_close(back.signal_uv, kept.signal_uv, atol=3e-5, rtol=1e-6)
    assert repr(back.montage) == repr(kept.montage)
    assert back.rate_hz == 500.0
    assert torch.equal(back.onsets_s, kept.onsets_s)
    assert torch.equal(back.stimuli.amplitude_ma, kept.stimuli.amplitude_ma)
    assert torch.equal(back.stimuli.pulse_width_us, kept.stimuli.pulse_width_us)


def test_a_current_without_a_unit_is_refused(copied):
    edit(copied, "_events.tsv", "6.0 mA", "6.0")
    with pytest.raises(UnitError, match="not a number with a unit"):
        read_bids(copied, "7", "a", "1")


@pytest.mark.parametrize(("unit", "factor"), [("mA", 1.0), ("uA", 1e-3), ("A", 1e3)])
def test_currents_are_read_with_their_unit(copied, unit, factor):
    edit(copied, "_events.tsv", "6.0 mA", f"6.0 {unit}")
    assert float(read_bids(copied, "7", "a", "1").stimuli.amplitude_ma[0].abs().max()) == pytest.approx(6.0 * factor)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1.0), ("cm", 10.0), ("m", 1000.0)])
def test_places_are_millimetres_whatever_the_file_says(copied, unit, factor):
    edit(copied, "coordsystem.json", '"mm"', f'"{unit}"')
    assert read_bids(copied, "7", "a", "1").montage.contacts[0].position_mm[1] == pytest.approx(-67.8 * factor)


def test_places_in_pixels_are_refused(copied):
    edit(copied, "coordsystem.json", '"mm"', '"pixels"')
    with pytest.raises(UnitError, match="only m, cm and mm"):
        read_bids(copied, "7", "a", "1")


def test_bad_events_are_left_out_and_unknown_sites_named(copied):
    edit(copied, "_events.tsv", "A2-A1\t4.0 mA\t150.0 us\tgood", "A2-A1\t4.0 mA\t150.0 us\tbad")
    assert read_bids(copied, "7", "a", "1").onsets_s.tolist() == [0.5, 1.3004]
    edit(copied, "_events.tsv", "A1-A2", "A1-Z9")
    with pytest.raises(MontageError, match="'Z9' is not in the montage"):
        read_bids(copied, "7", "a", "1")


def test_a_missing_subject_a_vague_run_and_a_broken_file_are_one_sentence(copied):
    with pytest.raises(DataError, match="sub-9 does not exist"):
        read_bids(copied, "9")
    with pytest.raises(DataError, match="has 0 recordings for sub-7: none"):
        read_bids(copied, "7", "b")
    write_bids(small(), copied, "7", "a", "2")
    with pytest.raises(DataError, match="has 2 recordings for sub-7"):
        read_bids(copied, "7", "a")
    assert [r.metadata["run"] for r in read_bids_runs(copied, "7", "a")] == ["1", "2"]
    edit(copied, "run-1_ieeg.vhdr", "NumberOfChannels=4", "NumberOfChannels=x")
    with pytest.raises(DataError, match="cannot be read") as caught:
        read_bids(copied, "7", "a", "1")
    assert "\n" not in str(caught.value)


def test_what_bids_has_no_place_for_is_not_written(tmp_path, written):
    kept = small()
    train = map_tensors(pulse_train(kept.montage, "A1-A2", amplitude_ma=1.0, pulses=5), lambda t: t.unsqueeze(0))
    with pytest.raises(DataError, match="no plain single pulse"):
        write_bids(Recording(kept.montage, kept.signal_uv, 500.0, train, torch.tensor([0.5])), tmp_path, "7")
    dose = table_stimulus(kept.montage, torch.ones(1, 1), ("dose",))
    with pytest.raises(DataError, match="no plain single pulse"):
        write_bids(Recording(kept.montage, kept.signal_uv, 500.0, dose, torch.tensor([0.5])), tmp_path, "7")
    with pytest.raises(DataError, match="channels read against the reference"):
        write_bids(kept.bipolar(), tmp_path, "7")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="this run already"):
        write_bids(kept, written, "7", "a", "1")
    moved = replace(
        kept,
        montage=replace(kept.montage, frame="MNI"),
        stimuli=replace(kept.stimuli, montage=replace(kept.montage, frame="MNI")),
    )
    write_bids(moved, tmp_path, "7")  # no session, no run, a frame that BIDS has no word for
    assert read_bids(tmp_path, "7").montage.frame == "MNI"
    other = [Contact(c.name, (0.0, 0.0, 0.0), c.area_cm2, c.kind, c.shaft) for c in kept.montage.contacts]
    elsewhere = replace(kept, montage=monopolar(other, "ACPC"))
    with pytest.raises(DataError, match="holds other contacts"):
        write_bids(elsewhere, written, "7", "a", "3")


def test_without_mne_bids_the_way_out_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mne_bids", None)
    with pytest.raises(DataError, match=r"pip install 'stimopt\[bids\]'"):
        read_bids(tmp_path, "7")


def test_the_human_seeg_is_read_in_mm_ma_and_microvolt(recordings):
    runs = read_bids_runs(locate("ccep-seeg-bids"), "01", "ieeg01")
    assert [len(run.onsets_s) for run in runs] == [24, 36, 36]
    first = runs[0]
    assert first.montage.frame == "ACPC"
    assert first.montage.contacts[0].position_mm == pytest.approx((4.9277, -67.7851, 1.6782), abs=1e-4)
    assert [c.name for c in first.montage.contacts if c.position_mm[0] != c.position_mm[0]] == ["ROC14", "ROC15"]
    assert first.metadata["bad_channels"] == ["ROC14", "ROC15"]
    assert len(first.montage.channels) == 13
    assert first.stimuli.amplitude_ma[0, :3].tolist() == [-6.0, 6.0, 0.0]
    assert first.stimuli.phase_charge_uc.abs().max().item() == pytest.approx(1.2)  # 6 mA for 200 us
    steps_mm = first.montage.contact_position_mm[:5].diff(dim=0).norm(dim=-1)
    assert bool(((steps_mm > 3.4) & (steps_mm < 3.6)).all())  # the shaft's spacing, 3.5 mm
    assert 50 < float(runs[1].signal_uv.std()) < 2000


def test_the_response_near_a_stimulated_pair_is_the_same_in_odd_and_even_trials(recordings):
    """Bipolar and from 50 ms on, as the data's traps ask; far contacts need not answer."""
    runs = read_bids_runs(locate("ccep-seeg-bids"), "01", "ieeg01")
    trials = concatenate([run.bipolar().trials(0.5, 1.0) for run in runs])
    assert len(trials) == 96
    sites = torch.unique(trials.stimulus.amplitude_ma, dim=0)
    assert len(sites) == 8
    late = trials.response.between(0.05, 0.5)
    best = []
    for site in sites:
        signal_uv = late.signal_uv[(trials.stimulus.amplitude_ma == site).all(-1)]
        assert len(signal_uv) == 12
        halves = [signal_uv[::2].mean(0), signal_uv[1::2].mean(0)]
        pairs = zip(*halves, strict=True)
        best.append(max(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs))
    assert min(best) > 0.95
