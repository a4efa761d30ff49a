"""Where current enters and where voltage is read: contacts and channels.

A contact is a piece of metal with a place in mm, a surface in cm2 and a kind, because
safety depends on the real area and the kind of electrode. A channel reads one contact
against a reference, or one contact against another (bipolar). A montage holds both and
the coordinate frame, and never rescales places: 1 mm is 1 mm in every patient.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import MontageError

ContactKind = Literal["depth", "subdural", "dbs", "micro", "scalp", "none"]

NOWHERE_MM = (math.nan, math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class Contact:
    """One piece of metal. Two contacts are equal where all that is known of them is, and the same is unknown.

    Attributes:
        name: Unique in its montage, such as "LA3".
        position_mm: x, y, z in the montage's frame; NaN where unknown.
        area_cm2: Geometric surface; NaN where unknown (limits on charge density then cannot be evaluated).
        kind: "depth" (sEEG), "subdural" (strip or grid), "dbs", "micro", "scalp", or "none".
        shaft: The electrode that carries it; bipolar pairs are formed within a shaft, in order.
    """

    name: str
    position_mm: tuple[float, float, float] = NOWHERE_MM
    area_cm2: float = math.nan
    kind: ContactKind = "depth"
    shaft: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contact) and self._known == other._known

    def __hash__(self) -> int:
        return hash(self._known)

    @property
    def _known(self) -> tuple[object, ...]:
        """Fields with None for NaN, which equals nothing, not even itself."""
        numbers = (*self.position_mm, self.area_cm2)
        return (self.name, self.kind, self.shaft, *(None if math.isnan(x) else x for x in numbers))

    def __post_init__(self) -> None:
        if not self.name or "-" in self.name:
            raise MontageError(f"contact name {self.name!r} is empty or has a '-', which joins pairs; rename it.")
        if self.area_cm2 <= 0:
            raise MontageError(
                f"contact {self.name!r} has area_cm2 {self.area_cm2}; give a positive area or leave it out."
            )


@dataclass(frozen=True)
class Channel:
    """One voltage: `plus` against `minus`, or against the recording reference when `minus` is None."""

    name: str
    plus: str
    minus: str | None = None


@dataclass(frozen=True)
class Montage:
    """Contacts, the channels read from them, and the frame of their places.

    Raises:
        MontageError: If a name is doubled or a channel reads a contact that is not there.
    """

    contacts: tuple[Contact, ...]
    channels: tuple[Channel, ...]
    frame: str = "unknown"
    _index: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {contact.name: i for i, contact in enumerate(self.contacts)})
        if len(self._index) != len(self.contacts):
            raise MontageError("two contacts have the same name; every contact needs its own.")
        if len({channel.name for channel in self.channels}) != len(self.channels):
            raise MontageError("two channels have the same name; every channel needs its own.")
        for channel in self.channels:
            for name in (channel.plus, channel.minus):
                if name is not None:
                    self.contact_index(name)

    def contact_index(self, name: str) -> int:
        """Place of a contact in `contacts`.

        Raises:
            MontageError: If there is no such contact.
        """
        if name not in self._index:
            raise MontageError(f"contact {name!r} is not in the montage; it has {', '.join(self._index) or 'none'}.")
        return self._index[name]

    def channel_index(self, name: str) -> int:
        """Place of a channel in `channels`.

        Raises:
            MontageError: If there is no such channel.
        """
        for i, channel in enumerate(self.channels):
            if channel.name == name:
                return i
        raise MontageError(
            f"channel {name!r} is not in the montage; it has {', '.join(c.name for c in self.channels)}."
        )

    @property
    def contact_position_mm(self) -> Float[Tensor, "contact 3"]:
        """Places of the contacts in mm, NaN where unknown (float64)."""
        return torch.tensor([c.position_mm for c in self.contacts], dtype=torch.float64).reshape(-1, 3)

    @property
    def area_cm2(self) -> Float[Tensor, " contact"]:
        """Surface of the contacts in cm2, NaN where unknown (float64)."""
        return torch.tensor([c.area_cm2 for c in self.contacts], dtype=torch.float64)

    @property
    def channel_position_mm(self) -> Float[Tensor, "channel 3"]:
        """Places of the channels in mm: the contact, or the middle of the pair (float64)."""
        ends = [(c.plus, c.minus or c.plus) for c in self.channels]
        places = self.contact_position_mm
        pairs = [(places[self.contact_index(a)] + places[self.contact_index(b)]) / 2 for a, b in ends]
        return torch.stack(pairs) if pairs else torch.zeros(0, 3, dtype=torch.float64)

    @property
    def channel_matrix(self) -> Float[Tensor, "channel contact"]:
        """Weights that turn contact potentials into channel voltages: +1 on `plus`, -1 on `minus` (float64)."""
        matrix = torch.zeros(len(self.channels), len(self.contacts), dtype=torch.float64)
        for row, channel in enumerate(self.channels):
            matrix[row, self.contact_index(channel.plus)] += 1.0
            if channel.minus is not None:
                matrix[row, self.contact_index(channel.minus)] -= 1.0
        return matrix

    def bipolar(self) -> "Montage":
        """The same contacts read as neighbouring pairs within each shaft."""
        pairs = [(a, b) for a, b in zip(self.contacts, self.contacts[1:], strict=False) if a.shaft == b.shaft]
        return replace(self, channels=tuple(Channel(f"{a.name}-{b.name}", a.name, b.name) for a, b in pairs))

    def read_in_pairs(self) -> tuple["Montage", list[int], list[int]]:
        """Pairs of neighbours that are both read here against the reference, and which channels are their two ends."""
        rows = {channel.plus: row for row, channel in enumerate(self.channels) if channel.minus is None}
        pairs = [c for c in self.bipolar().channels if c.plus in rows and c.minus in rows]
        ends = [rows[c.plus] for c in pairs], [rows[str(c.minus)] for c in pairs]
        return replace(self, channels=tuple(pairs)), *ends

    def neighbour_pairs(self) -> tuple[str, ...]:
        """Names of all neighbouring pairs on a shaft, "A1-A2" style, as used for bipolar stimulation."""
        return tuple(channel.name for channel in self.bipolar().channels)


def monopolar(contacts: Sequence[Contact], frame: str = "unknown") -> Montage:
    """A montage that reads each contact against the recording reference."""
    return Montage(tuple(contacts), tuple(Channel(c.name, c.name) for c in contacts), frame)


NO_MONTAGE = Montage((), (), "none")  # for tables of scores, where neither contacts nor signals were kept


def montage_to_dict(montage: Montage) -> dict[str, Any]:
    """A montage as plain values; unknown places and areas become None."""
    contacts = [
        {**asdict(c), "position_mm": [none_for_nan(x) for x in c.position_mm], "area_cm2": none_for_nan(c.area_cm2)}
        for c in montage.contacts
    ]
    channels = [[c.name, c.plus, c.minus] for c in montage.channels]
    return {"frame": montage.frame, "contacts": contacts, "channels": channels}


def montage_from_dict(plain: Mapping[str, Any]) -> Montage:
    """The montage that `montage_to_dict` wrote."""
    contacts = [
        Contact(**{**c, "position_mm": _place(c["position_mm"]), "area_cm2": nan_for_none(c["area_cm2"])})
        for c in plain["contacts"]
    ]
    return Montage(tuple(contacts), tuple(Channel(*c) for c in plain["channels"]), plain["frame"])


def none_for_nan(value: float) -> float | None:
    """A number as JSON can hold it: None where it is not known."""
    return None if math.isnan(value) else value


def nan_for_none(value: float | None) -> float:
    """What `none_for_nan` wrote."""
    return math.nan if value is None else value


def _place(values: Sequence[float | None]) -> tuple[float, float, float]:
    if None in values:
        return NOWHERE_MM
    x, y, z = (nan_for_none(value) for value in values)
    return (x, y, z)
