"""The card beside a trial table, `dataset.yaml`: what was set, what was measured, where it came from.

A card names columns (or variables) of one file and says what they mean. Anything else
worth keeping may stand beside the known keys; a key that looks like a misspelt known one
is refused, because a card that is half understood replays the wrong experiment.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import DataError

CARD_NAME = "dataset.yaml"
_FILES = (".nc", ".csv", ".csv.gz", ".tsv", ".parquet")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ParameterCard(_Strict):
    """One knob that the experimenter set.

    Attributes:
        kind: As in a stimulation space; numbers for ordinal, continuous, log and integer, names for the others.
        unit: Of the numbers, or of the coordinates of a site; shown to people, never converted.
        coordinates: Columns with the place of a site.
        variable: Column that holds it, where that is not the parameter's name.
    """

    kind: Literal["ordinal", "continuous", "log", "integer", "categorical", "site"]
    unit: str | None = ""
    coordinates: list[str] = []
    variable: str | None = None

    @model_validator(mode="after")
    def _placed(self) -> "ParameterCard":
        if (self.kind == "site") != bool(self.coordinates):
            raise ValueError("a site needs 'coordinates', the columns with its place; no other kind has them")
        return self


class OutcomeCard(_Strict):
    """One measurement. A variable with one axis beyond the trials gives one outcome per label, `name_label`.

    Attributes:
        better: Which way is good.
        unit: As shown to people.
        variable: Column that holds it, where that is not the outcome's name.
        select: Labels to pick, axis by axis, before anything else, such as `{region: CA1}`.
        derive: How to compute it: `kind` names a derivation of `trial_table`, the rest are its arguments.
        true_zero: Whether zero means nothing happened; a replay then reports shares of the best.
    """

    better: Literal["higher", "lower"] = "higher"
    unit: str | None = ""
    variable: str | None = None
    select: dict[str, str | int | float] = {}
    derive: dict[str, Any] = {}
    true_zero: bool = False


class GroupsCard(_Strict):
    """Columns that say which trials belong together, and their order; null where there is none."""

    patient: str | None = None
    session: str | None = None
    block: str | None = None
    channel: str | None = None
    order: str | None = None


class DoseCard(_Strict):
    """How forecasts of a dose's effect are judged on the table.

    Attributes:
        parameter: The dose, a parameter with numbers.
        outcomes: What it should move.
        controls: What it should not.
        same: Context columns that blocks share where one may teach about the other, such as the stimulated pair.
    """

    parameter: str
    outcomes: list[str] = Field(min_length=1)
    controls: list[str] = []
    same: list[str] = []


class Provenance(_Strict):
    """Where a data set came from.

    Attributes:
        source: URL at a pinned commit or version.
        licence: Of the data.
        citation: What to cite.
        folder: Folder below `STIMOPT_DATA` or a server's root.
        sha256: Checksum of each file, by its path inside the folder.
        traps: What has misled people before.
        download: URL of the folder's files, where anyone serves them.
    """

    source: str
    licence: str
    citation: str
    folder: str
    sha256: dict[str, str]
    traps: list[str] = []
    download: str | None = None


class TrialCard(BaseModel):
    """A trial table's card.

    Attributes:
        name: Of the data set.
        title: One line about it.
        file: The table, beside the card; may be left out where only one table lies there.
        parameters: What was set, by name.
        outcomes: What was measured, by name.
        context: Columns known before the stimulus.
        groups: Patient, session, block, channel and order of each trial.
        propensity: "uniform" (drawn evenly), "estimated" (from the shares in the table), a column of probabilities, or
            null where nobody knows.
        valid: A 0/1 column or mask (-1 counts as 0), "finite" where a missing outcome marks a rejected trial, or
            null where every trial counts.
        dose: How dose models are judged on it; null where nothing in it is a dose.
        used_up: Whether a stimulus whose repetitions are used up is refused or drawn anew in a replay.
        provenance: Where it came from.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(min_length=1)
    title: str = ""
    file: str | None = None
    parameters: dict[str, ParameterCard] = Field(min_length=1)
    outcomes: dict[str, OutcomeCard] = Field(min_length=1)
    context: list[str] = []
    groups: GroupsCard = GroupsCard()
    propensity: str | None = None
    valid: str | None = None
    dose: DoseCard | None = None
    used_up: Literal["refuse", "redraw"] = "refuse"
    provenance: Provenance | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, content: Any) -> Any:
        """`outcomes: {speed: null}` and `context: null` mean the defaults."""
        if not isinstance(content, Mapping):
            return content
        for key in content:
            close = get_close_matches(str(key), cls.model_fields, 1, 0.8)
            if key not in cls.model_fields and close:
                raise ValueError(f"{key!r} is not a known key; did you mean {close[0]!r}?")
        plain = {key: value for key, value in content.items() if value is not None}
        for key in ("parameters", "outcomes"):
            if isinstance(plain.get(key), Mapping):
                plain[key] = {str(name): {} if item is None else item for name, item in plain[key].items()}
        return plain

    @model_validator(mode="after")
    def _dosed(self) -> "TrialCard":
        if self.dose is None:
            return self
        knob = self.parameters.get(self.dose.parameter)
        if knob is None or knob.kind in ("categorical", "site"):
            raise ValueError(f"dose: parameter {self.dose.parameter!r} must be a parameter with numbers")
        for key, asked, known in (
            ("outcomes", self.dose.outcomes, self.outcomes), ("controls", self.dose.controls, self.outcomes),
            ("same", self.dose.same, self.context),
        ):  # fmt: skip
            for name in asked:
                if name not in known:
                    raise ValueError(f"dose: {key}: {name!r} is not in the card; it has {', '.join(known) or 'none'}")
        return self


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        DataError: If the file is missing, is not YAML or holds no mapping.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; give the path of a {CARD_NAME}, or its folder.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise DataError(f"{path}{where}: this is not YAML: {getattr(error, 'problem', error)}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no keys; a card has at least name, parameters and outcomes.")
    return content


def parse_card(content: Mapping[str, Any], where: str) -> TrialCard:
    """A checked card; `where` is named in the sentence of a mistake.

    Raises:
        DataError: With the key of the first mistake.
    """
    try:
        return TrialCard.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the card"
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{where}: {key}: {message[:1].lower()}{message[1:]}.") from error


def read_card(path: Path) -> TrialCard:
    """The card at `path`, a `dataset.yaml`.

    Raises:
        DataError: If the file is missing or a key is wrong.
    """
    return parse_card(read_yaml(path), str(path))


def table_file(card: TrialCard, folder: Path) -> Path:
    """The file that a card describes, in its folder.

    Raises:
        DataError: If it is missing, or the card names none and not exactly one lies there.
    """
    if card.file is not None:
        if not (folder / card.file).is_file():
            raise DataError(f"{folder / card.file} does not exist; {card.name!r} names it as its file.")
        return folder / card.file
    found = sorted(p for p in folder.iterdir() if p.name.endswith(_FILES) and not p.name.startswith("."))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise DataError(f"{card.name!r} names no file and {folder} has {names}; add 'file:' to the card.")
    return found[0]
