"""A fitted model on disk: `config.json`, `model.safetensors` and a model card, in one folder.

The layout is the one that `huggingface_hub` loads and uploads. Nothing is ever pickled. A
folder appears whole or not at all, and is read strictly: every tensor that the config
names must be there with its shape, no other may be, and the weights must have the
sha256 that the config states.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from . import __version__
from .errors import CheckpointError
from .forecaster import Forecaster
from .montage import montage_from_dict, montage_to_dict, nan_for_none, none_for_nan
from .space import Parameter, StimulationSpace
from .stimulus import Sensory, Stimulus

FORMAT = 1  # of config.json; a reader refuses any other

_FILES = ("config.json", "model.safetensors", "README.md")


@runtime_checkable
class Saveable(Protocol):
    """A model that can be taken apart into plain values and tensors, and put together again exactly."""

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain values that JSON can hold, and named tensors."""

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Saveable":
        """The model that `export` took apart."""


def save_checkpoint(folder: Path, kind: str, model: Forecaster | Saveable, card: Mapping[str, Any]) -> Path:
    """Write a forecaster, or a model that makes some, as a checkpoint folder.

    An older checkpoint there is replaced, other folders are not.

    Args:
        folder: Where; its parents are created.
        kind: Name under which `load_checkpoint` finds the class, such as "arx".
        model: Must be `Saveable`.
        card: For the reader: "title", "training_data", "metrics" (name -> number), "limits", and "simulated",
            true where any training data came from a simulator.

    Returns:
        The folder.

    Raises:
        CheckpointError: If the model cannot be saved, or the folder holds something else.
    """
    if not isinstance(model, Saveable):
        raise CheckpointError(f"{type(model).__name__} has no export and restore, so it cannot be saved.")
    if folder.exists() and not (folder / "config.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is no checkpoint; choose an empty or new folder.")
    said, (config, tensors) = _card(kind, card), model.export()
    weights = save_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    header = {
        "format": FORMAT, "kind": kind, "stimopt": __version__, "sha256": hashlib.sha256(weights).hexdigest(),
        "tensors": {name: [str(v.dtype).removeprefix("torch."), list(v.shape)] for name, v in tensors.items()},
        "card": said, "config": config,
    }  # fmt: skip
    text = json.dumps(header, indent=1, allow_nan=False)
    _write_whole(folder, (text.encode(), weights, _readme(kind, said).encode()))
    return folder


def load_checkpoint(folder: Path, kinds: Mapping[str, type[Any]]) -> Forecaster | Saveable:
    """The forecaster or model kept in a checkpoint folder.

    Args:
        folder: Written by `save_checkpoint`.
        kinds: Classes that may be restored, by the kind written in the config.

    Raises:
        CheckpointError: If a file is missing or damaged, the kind is unknown, or the tensors are not exactly those
            that the config names.
    """
    header = read_config(folder)
    if header["kind"] not in kinds:
        raise CheckpointError(f"{folder} holds a {header['kind']!r} model; this reader knows {', '.join(kinds)}.")
    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no model.safetensors; copy the whole folder again.")
    weights = path.read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    if digest != header["sha256"]:
        raise CheckpointError(f"{path} has sha256 {digest[:12]}.., its config says {str(header['sha256'])[:12]}..; "
                              "it was changed or cut: copy it again.")  # fmt: skip
    tensors = _read_tensors(path, weights)
    _require_same_tensors(path, header["tensors"], tensors)
    try:
        return cast(Forecaster | Saveable, kinds[header["kind"]].restore(header["config"], tensors))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} has a config that this version cannot restore ({error!r}).") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The checked header of a checkpoint: its kind, version, sha256, tensors and config.

    Raises:
        CheckpointError: If it is missing, is no JSON, lacks a key, or has another format.
    """
    path = folder / "config.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no config.json, so it is no checkpoint; give its folder.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no valid JSON ({error}); copy it again.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} holds no mapping; copy it again.")
    missing = {"format", "kind", "sha256", "tensors", "card", "config"} - header.keys()
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}; it was not written by stimopt.")
    if header["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {header['format']}; this version of stimopt reads {FORMAT}.")
    return header


def checkpoint_card(folder: Path) -> dict[str, str]:
    """What a checkpoint says of itself, text by heading.

    Raises:
        CheckpointError: If the folder is no checkpoint.
    """
    return {str(heading): str(text) for heading, text in read_config(folder)["card"].items()}


def _card(kind: str, card: Mapping[str, Any]) -> dict[str, str]:
    """What it was trained on, how well it forecasts, and where it must not be used; text by heading."""
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in card.get("metrics", {}).items())
    source = "Trained on simulations, not on recordings of people. " if card.get("simulated") else ""
    limits = card.get("limits", "Valid for the montage and the range of stimuli that it was fitted on, and no others.")
    return {
        "Model": str(card.get("title", f"A {kind} response model")),
        "Training data": source + str(card.get("training_data", "Not stated.")),
        "Held-out metrics": metrics or "None was measured.",
        "Limits": f"{limits} For research; not a medical device.",
    }


def _readme(kind: str, card: Mapping[str, str]) -> str:
    head = f"---\nlibrary_name: stimopt\ntags: [stimulation, ieeg, {kind}]\n---\n# {card['Model']}\n"
    return head + "".join(f"\n## {heading}\n{text}\n" for heading, text in card.items() if heading != "Model")


def space_to_dict(space: StimulationSpace) -> dict[str, Any]:
    """A stimulation space with its template, as plain values."""
    parameters = [
        {**asdict(p), "low": none_for_nan(p.low), "high": none_for_nan(p.high)} for p in space.parameters
    ]  # fmt: skip
    template, sensory = _numbers(space.template), space.template.sensory
    if sensory is not None:
        names = list(sensory.feature_names)
        template["sensory"] = {**_numbers(sensory), "modality": sensory.modality, "feature_names": names}
    return {
        "parameters": parameters,
        "template": template,
        "montage": montage_to_dict(space.template.montage),
        "duration_s": space.duration_s,
    }


def space_from_dict(plain: Mapping[str, Any]) -> StimulationSpace:
    """The space that `space_to_dict` wrote."""
    numbers = dict(plain["template"])
    sensory = numbers.pop("sensory", None)
    if sensory is not None:
        tensors = {k: _tensor(v) for k, v in sensory.items() if k not in ("modality", "feature_names")}
        sensory = Sensory(modality=sensory["modality"], feature_names=tuple(sensory["feature_names"]), **tensors)
    tensors = {name: _tensor(value) for name, value in numbers.items()}
    template = Stimulus(montage=montage_from_dict(plain["montage"]), sensory=sensory, **tensors)
    parameters = [
        Parameter(**{
            **p, "low": nan_for_none(p["low"]), "high": nan_for_none(p["high"]), "choices": tuple(p["choices"]),
            "coordinates": tuple(tuple(point) for point in p["coordinates"]),
        })
        for p in plain["parameters"]
    ]  # fmt: skip
    return StimulationSpace(tuple(parameters), template, plain["duration_s"])


def _write_whole(folder: Path, contents: tuple[bytes, ...]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, content in zip(_FILES, contents, strict=True):
            with open(draft / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():  # a directory cannot be replaced in one step: the old one waits beside it
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            os.replace(folder, old / "old")
            try:
                os.replace(draft, folder)
            except OSError:
                os.replace(old / "old", folder)
                raise
            finally:
                shutil.rmtree(old)
        else:
            os.replace(draft, folder)
        folder.chmod(0o755)  # mkdtemp makes folders that only the owner can read
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _read_tensors(path: Path, weights: bytes) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_tensors(weights)
        return tensors
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file ({error}); copy it again.") from error


def _require_same_tensors(path: Path, stated: Mapping[str, Any], found: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(stated.keys() - found.keys()), sorted(found.keys() - stated.keys())
    if missing or extra:
        raise CheckpointError(
            f"{path} lacks {missing} and has {extra} too many; its config names {len(stated)} tensors."
        )
    for name, value in found.items():
        kept = [str(value.dtype).removeprefix("torch."), list(value.shape)]
        if kept != list(stated[name]):
            raise CheckpointError(f"{path}: {name} is {kept}, its config says {stated[name]}; copy it again.")


def _numbers(noun: Stimulus | Sensory) -> dict[str, Any]:
    values = {f.name: getattr(noun, f.name) for f in fields(noun)}
    return {name: value.detach().double().tolist() for name, value in values.items() if isinstance(value, Tensor)}


def _tensor(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
