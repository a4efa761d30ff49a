import json
import shutil
from dataclasses import replace

import pytest
import torch
import xarray as xr

from stimopt.errors import DataError, ShapeError
from stimopt.montage import Channel, Contact, Montage, monopolar
from stimopt.netcdf import read_netcdf
from stimopt.recording import Recording, from_dataset, read_recording, write_recording
from stimopt.stimulus import no_stimulus, pulse_train, table_stimulus
from stimopt.tensors import concatenate, map_tensors

CONTACTS = [
    Contact("A1", (1 / 3, -67.8, 1e-17), 0.0503, "depth", "A"),
    Contact("A2", (3.8, -67.7, 0.4), 0.0503, "depth", "A"),
    Contact("A3", (7.3, -67.6, 0.8), 0.0503, "depth", "A"),
    Contact("G1"),
]
MONTAGE = monopolar(CONTACTS, "ACPC")


def batch(*amplitudes_ma):
    one = [map_tensors(pulse_train(MONTAGE, "A1-A2", amplitude_ma=a), lambda t: t.unsqueeze(0)) for a in amplitudes_ma]
    return concatenate(one)


def recording(onsets_s=(1.0, 2.0, 3.0), seconds=5.0, rate_hz=100.0, dtype=torch.float64):
    """Channel c holds the sample number plus 1000 c, so a window shows where it was cut."""
    steps = torch.arange(round(seconds * rate_hz), dtype=dtype)
    signal_uv = steps + 1000 * torch.arange(4, dtype=dtype).unsqueeze(-1)
    onsets = torch.tensor(onsets_s, dtype=torch.float64)
    return Recording(MONTAGE, signal_uv, rate_hz, batch(*range(1, len(onsets_s) + 1)), onsets, {"subject": "2e114"})


def same(a, b):
    assert repr(a.montage) == repr(b.montage)  # repr, because an unknown place is NaN and equals nothing
    assert torch.equal(a.signal_uv, b.signal_uv)
    assert a.signal_uv.dtype == b.signal_uv.dtype
    assert torch.equal(a.onsets_s, b.onsets_s)
    assert (a.rate_hz, dict(a.metadata)) == (b.rate_hz, dict(b.metadata))
    for name in ("amplitude_ma", "frequency_hz", "pulse_width_us", "pulses", "onset_s", "interphase_us"):
        assert torch.equal(getattr(a.stimuli, name), getattr(b.stimuli, name)), name


@pytest.mark.parametrize("name", ["patient.nc", "patient.zarr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_recording_comes_back_bit_for_bit(tmp_path, name, dtype):
    kept = recording(rate_hz=999.4121, dtype=dtype)
    kept = replace(kept, signal_uv=kept.signal_uv / 3)
    write_recording(kept, tmp_path / name)
    same(read_recording(tmp_path / name), kept)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing half-written stays


@pytest.mark.parametrize("name", ["patient.nc", "patient.zarr"])
def test_writing_again_replaces_the_recording(tmp_path, name):
    write_recording(recording(), tmp_path / name)
    write_recording(recording(onsets_s=(1.5,)), tmp_path / name)
    assert len(read_recording(tmp_path / name).onsets_s) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["patient.nc", "patient.zarr"])
def test_bipolar_channels_silence_and_features_come_back(tmp_path, name):
    pair = Montage(tuple(CONTACTS), (Channel("A1-A2", "A1", "A2"),), "MNI")
    features = torch.tensor([[5.0, 0.1], [7.0, 0.2]], dtype=torch.float64)
    stimuli = table_stimulus(pair, features, ("dose", "s since 2020-01-01"))
    kept = Recording(pair, torch.ones(1, 10), 1.0, stimuli, torch.tensor([1.0, 2.0]))
    write_recording(kept, tmp_path / name)
    back = read_recording(tmp_path / name)
    same(back, kept)
    assert torch.equal(back.stimuli.sensory.features, features)
    assert back.stimuli.sensory.feature_names == ("dose", "s since 2020-01-01")
    rest = Recording(MONTAGE, torch.ones(4, 10), 1.0, no_stimulus(MONTAGE, (0,)), torch.zeros(0))
    write_recording(rest, tmp_path / name)
    assert len(read_recording(tmp_path / name).onsets_s) == 0


def test_a_failed_write_leaves_the_old_recording(tmp_path, monkeypatch):
    path = tmp_path / "patient.nc"
    write_recording(recording(), path)

    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", broken)
    with pytest.raises(OSError, match="disk full"):
        write_recording(recording(onsets_s=(1.5,)), path)
    monkeypatch.undo()
    same(read_recording(path), recording())
    assert [p.name for p in tmp_path.iterdir()] == ["patient.nc"]


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_truncated_file_is_one_sentence(tmp_path, share):
    path = tmp_path / "patient.nc"
    write_recording(recording(seconds=50.0), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"patient.nc is no complete netCDF") as caught:
        read_recording(path)
    assert "\n" not in str(caught.value)


def test_a_zarr_with_a_lost_chunk_is_refused(tmp_path):
    path = tmp_path / "patient.zarr"
    write_recording(recording(), path)
    shutil.rmtree(path / "signal_uv" / "c")
    with pytest.raises(DataError, match=r"patient.zarr: signal_uv has 2000 of 2000 samples"):
        read_recording(path)


def test_a_missing_file_another_suffix_and_a_missing_folder_are_named(tmp_path):
    for name in ("none.nc", "none.zarr"):
        with pytest.raises(DataError, match="does not exist"):
            read_recording(tmp_path / name)
    with pytest.raises(DataError, match="must end in"):
        read_recording(tmp_path / "patient.mat")
    with pytest.raises(DataError, match="create it first"):
        write_recording(recording(), tmp_path / "no" / "patient.nc")


def test_missing_variables_are_named():
    data = recording().to_dataset()
    with pytest.raises(DataError, match=r"onsets_s, stimulus_pulses missing"):
        from_dataset(data.drop_vars(["onsets_s", "stimulus_pulses"]))
    spoiled = data.assign_attrs(montage=json.dumps({"contacts": []}))
    with pytest.raises(DataError, match="cannot be read"):
        from_dataset(spoiled)


def test_a_signal_of_nan_names_its_channels():
    signal_uv = torch.ones(4, 10)
    signal_uv[2, 3:] = torch.nan
    with pytest.raises(DataError, match=r"7 of 40 samples .* in A3;"):
        Recording(MONTAGE, signal_uv, 1.0, no_stimulus(MONTAGE, (0,)), torch.zeros(0))


def test_one_onset_per_stimulus():
    with pytest.raises(ShapeError, match="one onset per stimulus"):
        Recording(MONTAGE, torch.ones(4, 10), 1.0, batch(1.0, 2.0), torch.zeros(1))


def test_windows_lie_before_and_after_the_onset():
    trials = recording().trials(0.2, 0.3)
    assert trials.context.signal_uv[:, 0].tolist() == [list(range(s - 20, s)) for s in (100, 200, 300)]
    assert trials.response.signal_uv[:, 0].tolist() == [list(range(s, s + 30)) for s in (100, 200, 300)]
    assert trials.response.signal_uv[1, 3, 0] == 3200
    assert trials.response.start_s == 0.0
    assert trials.stimulus.amplitude_ma[:, 1].tolist() == [1.0, 2.0, 3.0]


def test_trials_come_in_time_order():
    trials = recording(onsets_s=(3.0, 1.0, 2.0)).trials(0.2, 0.3)
    assert trials.response.signal_uv[:, 0, 0].tolist() == [100.0, 200.0, 300.0]
    assert trials.stimulus.amplitude_ma[:, 1].tolist() == [2.0, 3.0, 1.0]


def test_an_onset_between_samples_moves_into_the_stimulus_and_never_into_the_context():
    trials = recording(onsets_s=(1.0, 2.0079, 3.0000000001)).trials(0.2, 0.3)
    assert trials.response.signal_uv[:, 0, 0].tolist() == [100.0, 200.0, 300.0]
    assert trials.stimulus.onset_s.tolist() == pytest.approx([0.0, 0.0079, 0.0], abs=1e-9)
    # 0.3 s at 10 Hz is 2.9999999999999996 samples in floating point
    assert recording(onsets_s=(0.3,), rate_hz=10.0).trials(0.2, 0.2).response.signal_uv[0, 0, 0] == 3


def test_cut_and_overlapping_windows_are_refused_or_dropped():
    kept = recording(onsets_s=(0.1, 1.0, 1.3, 2.0, 4.9))
    with pytest.raises(DataError, match=r"2 trials are cut .* 1 overlap the trial before, of 5"):
        kept.trials(0.2, 0.3)
    trials = kept.trials(0.2, 0.3, unfit="drop")
    assert trials.response.signal_uv[:, 0, 0].tolist() == [100.0, 200.0]
    with pytest.raises(DataError, match="no trial has"):
        kept.trials(3.0, 3.0, unfit="drop")
    with pytest.raises(DataError, match="must each hold a sample"):
        kept.trials(0.001, 0.3)


def test_touching_windows_do_not_overlap():
    assert len(recording(onsets_s=(1.0, 1.5, 2.0)).trials(0.2, 0.3)) == 3


def test_bipolar_reads_neighbours_of_a_shaft():
    pairs = recording().bipolar()
    assert [c.name for c in pairs.montage.channels] == ["A1-A2", "A2-A3"]
    assert torch.equal(pairs.signal_uv, torch.full((2, 500), -1000.0, dtype=torch.float64))
    with pytest.raises(DataError, match="pairs already"):
        pairs.bipolar()


def test_a_unit_of_time_does_not_become_a_date(tmp_path):
    numbers = xr.Dataset(
        {
            "latency": ("trial", [0.1, 0.2], {"units": "s since 2020-01-01"}),
            "wait": ("trial", [1.0, 2.0], {"units": "s"}),
        }
    )
    numbers.to_netcdf(tmp_path / "times.nc", engine="scipy")  # netCDF 3, to read that too
    back = read_netcdf(tmp_path / "times.nc")
    assert back["latency"].values.tolist() == [0.1, 0.2]
    assert back["wait"].values.tolist() == [1.0, 2.0]
