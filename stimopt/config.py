"""Experiment and study files: YAML in, checked before anything is created.

A file says what answers (`system`, or `montage` for a person at a device), what may vary
(`space` over a `stimulus`), what is safe (`envelope`), what is wanted (`objective`), who
chooses (`policy`, or `policies` in a study). Every mistake is one sentence with the file,
the line and the key.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import ConfigError, StimoptError
from .plugins import check_options
from .safety_profiles import PROFILES
from .units import quantity

Quantity = float | str
File = TypeVar("File", bound="Strict")


class Strict(BaseModel):
    """A part of a file: unknown keys are refused, and nothing changes it afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Named(BaseModel):
    """A name and its options, as in `{name: bayesian, startup: 8}`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class ParameterSpec(Strict):
    """One knob: `{kind: log, low: 5 Hz, high: 130 Hz}` or `{choices: [A1-A2, A2-A3]}`."""

    kind: Literal["continuous", "log", "integer", "ordinal", "categorical", "site"] = "continuous"
    low: Quantity | None = None
    high: Quantity | None = None
    choices: list[Quantity] | Literal["neighbours"] | None = None


class ContactSpec(Strict):
    """One contact of a live montage."""

    name: str
    position_mm: tuple[float, float, float] | None = None
    area_cm2: float | None = Field(default=None, gt=0)
    kind: Literal["depth", "subdural", "dbs", "micro"] = "depth"
    shaft: str = ""


class MontageSpec(Strict):
    """The contacts of a person at a device."""

    contacts: list[ContactSpec] = Field(min_length=1)
    frame: str = "unknown"
    read: Literal["monopolar", "bipolar"] = "bipolar"


class EnvelopeSpec(Strict):
    """A safety profile, tightened."""

    profile: str
    forbidden: list[str] = []
    limits: dict[str, Quantity] = {}

    @field_validator("profile")
    @classmethod
    def _known(cls, profile: str) -> str:
        if profile not in PROFILES:
            raise ValueError(f"profile {profile!r} is not known; there are {', '.join(PROFILES)}")
        return profile


class ModelSpec(Named):
    """A response model: fitted on calibration trials of the simulated system before the search."""

    calibration_trials: int = Field(default=60, ge=8)

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name and the number of calibration trials."""
        return dict(self.model_extra or {})


class StopSpec(Strict):
    """The after-discharge rule that ends and locks a session; see `stimopt.stop_rule`."""

    line_length_ratio: float = Field(default=4.0, gt=1)
    for_s: float = Field(default=0.5, gt=0)
    window_s: float = Field(default=0.1, gt=0)
    skip_s: float = Field(default=0.1, ge=0)


class _Search(Strict):
    """What an experiment and a study have in common."""

    name: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0)
    system: Named | None = None
    stimulus: dict[str, Quantity] = {}
    space: dict[str, ParameterSpec] = Field(min_length=1)
    envelope: EnvelopeSpec
    objective: Named
    model: ModelSpec | None = None
    stop: StopSpec | None = None
    trials: int = Field(ge=1, le=100_000)
    interval_s: Quantity = 5.0

    @field_validator("interval_s")
    @classmethod
    def _seconds(cls, value: Quantity) -> float:
        return quantity("interval_s", value)

    @field_validator("stimulus")
    @classmethod
    def _stimulus_units(cls, stimulus: dict[str, Quantity]) -> dict[str, Quantity]:
        return {key: value if key == "contacts" else quantity(key, value) for key, value in stimulus.items()}


class Experiment(_Search):
    """One search: `stimopt search EXPERIMENT.yaml`."""

    policy: Named
    montage: MontageSpec | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "Experiment":
        if (self.system is None) == (self.montage is None):
            raise ValueError(
                "give either 'system' (simulated) or 'montage' (a person at a device), not both, not neither"
            )
        return self


class Study(_Search):
    """Policies x virtual patients x seeds: `stimopt evaluate STUDY.yaml`."""

    system: Named
    patients: list[int] = Field(min_length=1)
    policies: list[Named] = Field(min_length=1)
    seeds: int = Field(default=3, ge=1)
    truth_points: int = Field(default=256, ge=16)
    truth_repeats: int = Field(default=8, ge=1)

    @field_validator("policies")
    @classmethod
    def _unique(cls, policies: list[Named]) -> list[Named]:
        seen = [policy.name for policy in policies]
        if len(set(seen)) != len(seen):
            raise ValueError("a policy is listed twice; list each once")
        return policies


def read_experiment(path: Path) -> Experiment:
    """A checked experiment.

    Raises:
        ConfigError: With the file, the line and the key of the first mistake.
    """
    return parse_experiment(text_of(path), str(path))


def parse_experiment(text: str, source: str) -> Experiment:
    """A checked experiment from YAML text; `source` names it in errors.

    Raises:
        ConfigError: With the source, the line and the key of the first mistake.
    """
    experiment = parsed(text, source, Experiment)
    _check_names(text, source, experiment, {"policy": experiment.policy})
    return experiment


def read_study(path: Path) -> Study:
    """A checked study.

    Raises:
        ConfigError: With the file, the line and the key of the first mistake.
    """
    text = text_of(path)
    study = parsed(text, str(path), Study)
    _check_names(text, str(path), study, {f"policies.{i}": policy for i, policy in enumerate(study.policies)})
    return study


def text_of(path: Path) -> str:
    """The text of a file.

    Raises:
        ConfigError: If there is none, or it is not text.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; give the path of a YAML file.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text; give a YAML file.") from error


def parsed(text: str, path: str, kind: type[File]) -> File:
    """A file's text as what it describes.

    Raises:
        ConfigError: With the file, the line and the key of the first mistake.
    """
    try:
        content = yaml.safe_load(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise ConfigError(f"{path}{line}: this is not YAML: {getattr(error, 'problem', error)}.") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds no keys; it must be a YAML mapping with at least {_required(kind)}.")
    try:
        return kind.model_validate(content)
    except (ValidationError, StimoptError) as error:
        raise ConfigError(_sentence(path, root, error, kind)) from error


def _sentence(path: str, root: Any, error: Exception, kind: type[BaseModel]) -> str:
    if not isinstance(error, ValidationError):
        return f"{path}: {error}"
    first = min(
        error.errors(), key=lambda found: found["type"] != "extra_forbidden"
    )  # a misspelt key explains a missing one
    location = [part for part in first["loc"] if not _is_branch(part)]
    key = ".".join(map(str, location)) or "the file"
    line = _line_of(root, location)
    if first["type"] == "extra_forbidden":
        reason = f"is not a known key here; the top-level keys are {', '.join(kind.model_fields)}"
        reason = reason if len(location) == 1 else "is not a known key here; remove or correct it"
    elif first["type"] == "missing":
        reason = "is missing; add it"
    else:
        reason = f"- {first['msg'].removeprefix('Value error, ')}"
    return f"{path}{f' line {line}' if line else ''}: {key} {reason}."


def _is_branch(part: object) -> bool:
    """Whether pydantic put the name of a union's branch into a location."""
    return isinstance(part, str) and ("[" in part or part in ("float", "str", "int"))


def _required(kind: type[BaseModel]) -> str:
    return ", ".join(name for name, field in kind.model_fields.items() if field.is_required())


def _line_of(node: Any, location: list[Any]) -> int | None:
    """Line of the deepest key of `location` that the file has."""
    line = None
    for part in location:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = (node.value[part], node.value[part])
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _check_names(text: str, path: str, search: _Search, policies: Mapping[str, Named]) -> None:
    named = {"systems": ("system", search.system), "objectives": ("objective", search.objective),
             "models": ("model", search.model)}  # fmt: skip
    checks = [(kind, key, value) for kind, (key, value) in named.items() if value is not None]
    checks += [("policies", key, value) for key, value in policies.items()]
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for kind, key, value in checks:
        try:
            check_options(kind, value.name, value.options)
        except ConfigError as error:
            line = _line_of(root, [int(part) if part.isdigit() else part for part in key.split(".")])
            raise ConfigError(f"{path} line {line}: {error}") from error
