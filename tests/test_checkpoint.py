"""A checkpoint comes back exactly, or not at all."""

import json
import math

import pytest
import torch
from linear_truth import linear_truth

from stimopt.checkpoint import (
    checkpoint_card,
    load_checkpoint,
    save_checkpoint,
    space_from_dict,
    space_to_dict,
)  # fmt: skip
from stimopt.errors import CheckpointError
from stimopt.models import ArxForecaster, fit_arx, fit_no_effect
from stimopt.montage import NO_MONTAGE, Contact, monopolar, montage_from_dict, montage_to_dict
from stimopt.space import Parameter, StimulationSpace
from stimopt.stimulus import table_stimulus

KINDS = {"arx": ArxForecaster}
CARD = {"training_data": "Sixteen simulated trials.", "metrics": {"r2": 0.5}, "simulated": True}


@pytest.fixture(scope="module")
def forecaster():
    truth = linear_truth(4)
    return fit_arx(truth.trials(truth.random_stimuli(16, 1), 1), lags=4)


@pytest.fixture
def folder(forecaster, tmp_path):
    return save_checkpoint(tmp_path / "model", "arx", forecaster, CARD)


def test_a_checkpoint_is_config_weights_and_card_and_nothing_else(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_the_card_says_that_training_was_on_simulations(folder):
    card = (folder / "README.md").read_text()
    assert "Trained on simulations" in card
    assert "r2 0.5" in card
    assert checkpoint_card(folder)["Training data"].endswith("Sixteen simulated trials.")


def test_every_tensor_comes_back_bit_for_bit(folder, forecaster):
    again = load_checkpoint(folder, KINDS)
    for name, value in forecaster.export()[1].items():
        assert torch.equal(again.export()[1][name], value)
    assert again.window == forecaster.window


def test_changed_weights_are_refused(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        load_checkpoint(folder, KINDS)


@pytest.mark.parametrize("change", [lambda t: t.pop("kernel"), lambda t: t.update(more=["float64", [1]])])
def test_a_tensor_too_many_or_too_few_is_refused(folder, change):
    path = folder / "config.json"
    header = json.loads(path.read_text())
    change(header["tensors"])
    path.write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match="too many"):
        load_checkpoint(folder, KINDS)


def test_an_unknown_kind_is_refused_by_name(folder):
    with pytest.raises(CheckpointError, match="'arx' model; this reader knows other"):
        load_checkpoint(folder, {"other": ArxForecaster})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder, KINDS)


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", '{"format": 2, "kind": "", "sha256": "", "tensors": {}, "card": {}, "config": {}}']
)
def test_a_config_that_is_none_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError):
        load_checkpoint(folder, KINDS)


def test_saving_again_replaces_a_checkpoint(folder):
    truth = linear_truth(4)
    other = fit_no_effect(truth.trials(truth.random_stimuli(8, 1), 1))
    save_checkpoint(folder, "none", other, {})
    assert torch.equal(load_checkpoint(folder, {"none": type(other)}).kept, other.kept)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_left_alone(tmp_path, forecaster):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        save_checkpoint(tmp_path, "arx", forecaster, CARD)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_failed_save_leaves_nothing(tmp_path, forecaster, monkeypatch):
    monkeypatch.setattr("stimopt.checkpoint.os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path / "model", "arx", forecaster, CARD)
    assert list(tmp_path.iterdir()) == []


def test_a_montage_with_unknown_places_survives_as_plain_values():
    montage = monopolar([Contact("A1"), Contact("A2", (1.0, 2.0, 3.5), 0.06, "subdural", "A")], "MNI")
    plain = json.loads(json.dumps(montage_to_dict(montage), allow_nan=False))
    assert montage_from_dict(plain) == montage
    assert math.isnan(montage_from_dict(plain).contacts[0].area_cm2)


def test_a_space_survives_as_plain_values():
    space = linear_truth(4).space
    again = space_from_dict(json.loads(json.dumps(space_to_dict(space), allow_nan=False)))
    unit = torch.rand(5, space.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.stimulus(unit).amplitude_ma, space.stimulus(unit).amplitude_ma)
    assert again.template.montage == space.template.montage
    assert [p.name for p in again.parameters] == [p.name for p in space.parameters]


def test_a_table_space_survives_as_plain_values():
    template = table_stimulus(NO_MONTAGE, torch.tensor([5.0], dtype=torch.float64), ("dose",))
    space = StimulationSpace((Parameter("dose", "ordinal", choices=(1.0, 5.0, 9.0)),), template)
    again = space_from_dict(json.loads(json.dumps(space_to_dict(space), allow_nan=False)))
    assert torch.equal(again.points(), space.points())
    assert again.template.sensory is not None
    assert again.template.sensory.feature_names == ("dose",)
