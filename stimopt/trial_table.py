"""A table of recorded trials: what was set and what was measured, one row a trial.

Read from netCDF (a `trial` axis, or a full grid with a `repetition` axis), CSV or Parquet
by its card (`trial_card`). Rows that no outcome counts are left out. Names stay names: a
patient called 2e114 is no number.

Parameters  [trial, parameter]  numbers; for sites and categories the index into their choices
Outcomes    [trial]             NaN exactly where `valid` is False
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .errors import DataError
from .montage import NO_MONTAGE
from .space import Parameter, StimulationSpace
from .stimulus import Stimulus, table_stimulus
from .trial_card import CARD_NAME, ParameterCard, TrialCard, read_card, table_file
from .trial_columns import Columns, read_columns

NAMED_KINDS = ("categorical", "site")


@dataclass(frozen=True)
class TrialTable:
    """Recorded trials. Rows keep the order of the file; `order` says when each was delivered.

    Attributes:
        card: What the columns mean.
        values: What was set.
        choices: Names of each parameter that has names.
        places: Place of the site in each trial, for each parameter that is a site.
        outcomes: What was measured, by name.
        valid: Which trials count, per outcome.
        groups: "patient", "session", "block", "channel" of each trial, where the card names them.
        order: Rank of each trial in time; the row number where the card names no order.
        context: What was known before each stimulus, by name.
        recorded_propensity: Probability with which each trial's stimulus was chosen, where a column holds it.
    """

    card: TrialCard
    values: Float[Tensor, "trial parameter"]
    choices: Mapping[str, tuple[str, ...]]
    places: Mapping[str, Float[Tensor, "trial _"]]
    outcomes: Mapping[str, Float[Tensor, " trial"]]
    valid: Mapping[str, Bool[Tensor, " trial"]]
    groups: Mapping[str, tuple[str, ...]]
    order: Int[Tensor, " trial"]
    context: Mapping[str, Tensor] = field(default_factory=dict)
    recorded_propensity: Float[Tensor, " trial"] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def space(self) -> StimulationSpace:
        """The space of what was recorded: listed values for ordinal, categorical and site, else the range.

        Raises:
            DataError: If two sites share a place, or one site lies at two.
        """
        names = tuple(self.card.parameters)
        template = table_stimulus(NO_MONTAGE, torch.zeros(len(names), dtype=torch.float64), names)
        knobs = (self._knob(i, name, card) for i, (name, card) in enumerate(self.card.parameters.items()))
        return StimulationSpace(tuple(knobs), template)

    @property
    def stimuli(self) -> Stimulus:
        """What each trial delivered, batch `[trial]`, as the space's stimuli are written."""
        return table_stimulus(NO_MONTAGE, self.values, tuple(self.card.parameters))

    @property
    def propensity(self) -> Float[Tensor, " trial"] | None:
        """Probability with which each trial's stimulus was chosen, as the card says: the column, one over the number of
        stimuli, or each one's share of these trials; None where nobody knows.
        """
        if self.card.propensity in (None, "uniform", "estimated"):
            _, cell, counts = torch.unique(self.values, dim=0, return_inverse=True, return_counts=True)
            even = torch.full((len(self),), 1 / max(len(counts), 1), dtype=torch.float64)
            shares = {"uniform": even, "estimated": (counts.double() / max(len(self), 1))[cell]}
            return shares.get(str(self.card.propensity))
        return self.recorded_propensity

    @property
    def patients(self) -> tuple[str, ...]:
        """Names of the patients, in order of appearance; empty where the card names none."""
        return tuple(dict.fromkeys(self.groups.get("patient", ())))

    def better(self, outcome: str) -> str:
        """Which way an outcome is good, "higher" or "lower"."""
        return self.card.outcomes[self.outcome_of(outcome)].better

    def outcome_of(self, outcome: str) -> str:
        """The card's key behind an outcome: "gamma" for "gamma_CA1", one of its labels.

        Raises:
            DataError: If the table has no such outcome.
        """
        if outcome not in self.outcomes:
            raise DataError(f"outcome {outcome!r} is not in {self.card.name!r}; it has {_some(self.outcomes)}.")
        stems = [name for name in self.card.outcomes if outcome == name or outcome.startswith(f"{name}_")]
        return max(stems, key=len)

    def select(
        self,
        *,
        patient: str | None = None,
        session: str | None = None,
        block: str | None = None,
        channel: str | None = None,
        outcome: str | None = None,
    ) -> "TrialTable":
        """The trials of one patient, session, block or channel; with `outcome`, that one and its valid trials only.

        The space shrinks to what is left.

        Raises:
            DataError: If a name is unknown, the card has no such group, or no trial is left.
        """
        keep = torch.ones(len(self), dtype=torch.bool)
        asked = {"patient": patient, "session": session, "block": block, "channel": channel}
        for group, name in asked.items():
            if name is not None:
                keep &= self._members(group, name)
        table = self
        if outcome is not None:
            self.outcome_of(outcome)
            table = replace(self, outcomes={outcome: self.outcomes[outcome]}, valid={outcome: self.valid[outcome]})
            keep &= self.valid[outcome]
        if not bool(keep.any()):
            what = ", ".join(f"{k} {v!r}" for k, v in {**asked, "outcome": outcome}.items() if v is not None)
            raise DataError(f"{self.card.name!r} has no valid trial for {what}; choose another.")
        return table._rows(keep)

    def _members(self, group: str, name: str) -> Bool[Tensor, " trial"]:
        if group not in self.groups:
            raise DataError(f"{self.card.name!r} names no {group} column; add it under groups in its card.")
        known = self.groups[group]
        if name not in known:
            raise DataError(f"{group} {name!r} is not in {self.card.name!r}; it has {_some(dict.fromkeys(known))}.")
        return torch.tensor([item == name for item in known])

    def _rows(self, keep: Bool[Tensor, " trial"]) -> "TrialTable":
        values, choices = self.values[keep], dict(self.choices)
        for axis, name in enumerate(self.card.parameters):
            if name in choices:
                used, index = torch.unique(values[:, axis].long(), return_inverse=True)
                values[:, axis] = index.double()
                choices[name] = tuple(self.choices[name][int(i)] for i in used)
        rows = keep.nonzero().squeeze(-1)
        return replace(
            self,
            values=values,
            choices=choices,
            places={name: place[keep] for name, place in self.places.items()},
            outcomes={name: value[keep] for name, value in self.outcomes.items()},
            valid={name: value[keep] for name, value in self.valid.items()},
            groups={name: tuple(labels[int(i)] for i in rows) for name, labels in self.groups.items()},
            order=self.order[keep].argsort(stable=True).argsort(stable=True),
            context={name: value[keep] for name, value in self.context.items()},
            recorded_propensity=None if self.recorded_propensity is None else self.recorded_propensity[keep],
        )

    def _knob(self, axis: int, name: str, card: ParameterCard) -> Parameter:
        unit = card.unit or ""
        if card.kind == "site":
            return Parameter(
                name, "site", choices=self.choices[name], coordinates=self._site_places(axis, name), unit=unit
            )
        if card.kind == "categorical":
            return Parameter(name, "categorical", choices=self.choices[name], unit=unit)
        numbers = torch.unique(self.values[:, axis]).tolist()
        if card.kind == "ordinal" or len(numbers) == 1:  # one value has no range to search
            return Parameter(name, "ordinal", choices=tuple(numbers), unit=unit)
        return Parameter(name, card.kind, numbers[0], numbers[-1], unit=unit)

    def _site_places(self, axis: int, name: str) -> tuple[tuple[float, ...], ...]:
        points: dict[tuple[float, ...], str] = {}
        for index, site in enumerate(self.choices[name]):
            found = torch.unique(self.places[name][self.values[:, axis] == index], dim=0)
            if len(found) != 1:
                raise DataError(f"{name} {site!r} has {len(found)} places; select one patient, or give it one place.")
            point = tuple(found[0].tolist())
            if point in points:
                raise DataError(
                    f"{name} {points[point]!r} and {site!r} have the same place {list(point)}; correct the "
                    "coordinates, or give them one name, or declare the parameter categorical."
                )
            points[point] = site
        return tuple(points)


def read_trial_table(path: Path) -> TrialTable:
    """The table that a card describes.

    Args:
        path: A `dataset.yaml`, or a folder that holds one.

    Raises:
        DataError: If a file is missing, a column is missing or of a wrong kind, or a trial that counts has no number.
    """
    place = path / CARD_NAME if path.is_dir() else path
    card = read_card(place)
    return build_table(card, table_file(card, place.parent))


def build_table(card: TrialCard, file: Path) -> TrialTable:
    """The table in `file`, read by `card`.

    Raises:
        DataError: As `read_trial_table`.
    """
    columns = read_columns(card, file)
    values, choices = _parameters(card, columns)
    outcomes, valid = _measured(card, columns)
    groups = card.groups.model_dump(exclude={"order"})
    table = TrialTable(
        card, values, choices,
        {name: _places(spec, columns) for name, spec in card.parameters.items() if spec.kind == "site"},
        outcomes, valid,
        {name: tuple(columns.texts(column)) for name, column in groups.items() if column is not None},
        torch.arange(len(values)) if card.groups.order is None else _ranks(columns.numbers(card.groups.order)),
        {name: columns.numbers(name) for name in card.context},
        _recorded_propensity(card, columns),
    )  # fmt: skip
    counted = torch.stack(list(valid.values())).any(0)
    if not bool(counted.any()):
        raise DataError(f"{file} has no valid trial among {len(counted)}; check 'valid' in its card.")
    table = table._rows(counted)
    _require_numbers(table, file)
    return table


def _parameters(
    card: TrialCard, columns: Columns
) -> tuple[Float[Tensor, "trial parameter"], dict[str, tuple[str, ...]]]:
    values: list[Tensor] = []
    choices: dict[str, tuple[str, ...]] = {}
    for name, spec in card.parameters.items():
        column = spec.variable or name
        if spec.kind not in NAMED_KINDS:
            values.append(columns.numbers(column))
            continue
        texts = columns.texts(column)
        choices[name] = tuple(sorted(dict.fromkeys(texts), key=_by_number))
        index = {text: float(i) for i, text in enumerate(choices[name])}
        values.append(torch.tensor([index[text] for text in texts], dtype=torch.float64))
    return torch.stack(values, -1), choices


def _measured(card: TrialCard, columns: Columns) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    outcomes: dict[str, Tensor] = {}
    valid: dict[str, Tensor] = {}
    for name, spec in card.outcomes.items():
        for label, (value, at) in columns.outcomes(name, spec).items():
            outcomes[label], valid[label] = value, _counted(card, columns, label, value, at)
            outcomes[label][~valid[label]] = torch.nan
    return outcomes, valid


def _counted(
    card: TrialCard, columns: Columns, name: str, value: Float[Tensor, " trial"], at: Mapping[str, int]
) -> Bool[Tensor, " trial"]:
    if card.valid == "finite":
        return ~value.isnan()
    counts = torch.ones(len(value), dtype=torch.bool) if card.valid is None else columns.valid(card.valid, at)
    empty = int((value.isnan() & counts).sum())
    if empty:
        raise DataError(
            f"outcome {name!r} is NaN in {empty} of {int(counts.sum())} rows of {columns.file} that count as valid; "
            "mark them in the 'valid' column of the card, or write 'valid: finite' if NaN means rejected."
        )
    return counts


def _places(spec: ParameterCard, columns: Columns) -> Float[Tensor, "trial _"]:
    return torch.stack([columns.numbers(name) for name in spec.coordinates], -1)


def _ranks(numbers: Float[Tensor, " trial"]) -> Int[Tensor, " trial"]:
    return numbers.argsort(stable=True).argsort(stable=True)


def _recorded_propensity(card: TrialCard, columns: Columns) -> Float[Tensor, " trial"] | None:
    return columns.numbers(card.propensity) if card.propensity not in (None, "uniform", "estimated") else None


def _require_numbers(table: TrialTable, file: Path) -> None:
    """Parameters, places and probabilities of trials that count must be known."""
    checks = {name: table.values[:, axis] for axis, name in enumerate(table.card.parameters)}
    checks |= {f"place of {name}": place.sum(-1) for name, place in table.places.items()}
    checks |= {"propensity": table.recorded_propensity} if table.recorded_propensity is not None else {}
    for name, value in checks.items():
        empty = int(value.isnan().sum())
        if empty:
            raise DataError(
                f"{name} is NaN in {empty} of {len(value)} rows of {file} that count as valid; fill them in, or mark "
                "those trials in the 'valid' column of the card."
            )


def _by_number(text: str) -> tuple[int, int, str]:
    """Sorts site 2 before site 10; 2e114 is a name."""
    return (0, int(text), text) if text.isdecimal() else (1, 0, text)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
