"""What is implanted, and where: sEEG shafts, subdural strips and leads for deep stimulation, in any head.

A model of electrode is its data sheet: how many contacts, how far apart, how large. The head
is the smallest upright ellipsoid around the regions. A shaft enters from the side, passes its target a
little beside it, as shafts do, and carries as many contacts as fit under the skull; a strip
bends with the surface; a lead comes down from above and ends just below its target. No
contact lies outside the head.

References: van der Loo et al. 2017, Acta Neurochir 159:1733-1746 (902 sEEG electrodes; how far they miss);
data sheets named with each model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stimopt.errors import ConfigError, MontageError
from stimopt.montage import Contact, ContactKind, Montage, monopolar

PITCH_MM = 3.5  # centre to centre on common sEEG electrodes (2 mm contacts, 1.5 mm between)
AREA_CM2 = 0.05  # 0.8 mm x 2 mm cylinder
MM2_PER_CM2 = 100.0
MISS_MM = 2.93  # van der Loo et al. 2017: median distance of an sEEG electrode from its planned target
MISS_LOG_SPREAD = 0.5  # chosen: two thirds of the shafts miss by 1.8 to 4.8 mm
LEAD_MISS_MM = 1.0  # chosen; leads are placed with microelectrodes and images in the theatre
MARGIN_MM = 3.0  # chosen: from the outermost region's centre to the surface, about the thickness of cortex
_ATTEMPTS = 50
SMALLEST_SEMI_MM = 15.0  # chosen: a few regions stand for a part of a head, and the shortest electrodes have to fit


@dataclass(frozen=True)
class ElectrodeModel:
    """A product as its data sheet gives it.

    Attributes:
        kind: As a `Contact` has it.
        counts: Numbers of contacts it is sold with, rising.
        pitch_mm: From the centre of one contact to the next.
        diameter_mm: Of the cylinder, or of the part of a disc that touches the tissue.
        length_mm: Of the cylinder; 0 for a disc.
        source: Where the numbers stand.
    """

    kind: ContactKind
    counts: tuple[int, ...]
    pitch_mm: float
    diameter_mm: float
    length_mm: float
    source: str

    @property
    def area_cm2(self) -> float:
        """Surface of one contact: the side of a cylinder, or one face of a disc."""
        round_mm = math.pi * self.diameter_mm
        return round_mm * (self.length_mm or self.diameter_mm / 4) / MM2_PER_CM2


SEEG_SHAFT = ElectrodeModel(
    "depth", (5, 8, 10, 12, 15, 18), PITCH_MM, 0.8, 2.0, "DIXI Medical Microdeep D08: 0.8 mm, 2 mm long, 1.5 mm between"
)
ECOG_STRIP = ElectrodeModel(
    "subdural", (4, 6, 8), 10.0, 2.3, 0.0, "Ad-Tech subdural strips: 4 mm discs, 2.3 mm exposed, 10 mm apart"
)
DBS_LEAD = ElectrodeModel("dbs", (4,), 2.0, 1.27, 1.5, "Medtronic 3389 implant manual: 1.27 mm, 1.5 mm, 0.5 mm between")


@dataclass(frozen=True)
class Head:
    """An ellipsoid with upright axes.

    Attributes:
        centre_mm: Its middle.
        semi_mm: Half of its width, depth and height.
    """

    centre_mm: Float[Tensor, "3"]
    semi_mm: Float[Tensor, "3"]

    def inside(self, place_mm: Float[Tensor, "place 3"]) -> Bool[Tensor, " place"]:
        """Which places lie within, the surface included to a millionth."""
        within: Tensor = ((place_mm - self.centre_mm) / self.semi_mm).norm(dim=-1) <= 1 + 1e-6
        return within

    def reach_mm(self, place_mm: Tensor, along: Tensor) -> float:
        """How far it is from a place inside to the surface, along a unit vector."""
        at, way = (place_mm - self.centre_mm) / self.semi_mm, along / self.semi_mm
        square, half = float(way @ way), float(at @ way)
        return (-half + math.sqrt(max(half**2 - square * (float(at @ at) - 1), 0.0))) / square

    def surface(self, place_mm: Tensor) -> Tensor:
        """The place on the surface in the same direction from the middle."""
        away = place_mm - self.centre_mm
        outer: Tensor = self.centre_mm + away / (away / self.semi_mm).norm()
        return outer


def head_around(centre_mm: Float[Tensor, "region 3"], *, margin_mm: float = MARGIN_MM) -> Head:
    """The head of regions at these places: shaped like their extent, large enough for each, plus a margin.

    No half axis is shorter than `SMALLEST_SEMI_MM`.

    Raises:
        MontageError: If the place of a region is not known.
    """
    if bool(centre_mm.isnan().any()):
        raise MontageError("electrodes need to know where regions are; this connectome has no centres.")
    low, high = centre_mm.amin(0), centre_mm.amax(0)
    middle, shape = (low + high) / 2, ((high - low) / 2).clamp_min(1.0)
    stretch = ((centre_mm - middle) / shape).norm(dim=-1).amax().clamp_min(1.0)
    return Head(middle, (shape * stretch + margin_mm).clamp_min(SMALLEST_SEMI_MM))


def implant(
    centre_mm: Float[Tensor, "region 3"],
    targets: Sequence[int],
    source: torch.Generator,
    *,
    strips: int = 0,
    leads: int = 0,
) -> Montage:
    """Electrodes in a head, read against a common reference.

    Args:
        centre_mm: Places of the regions.
        targets: Regions that sEEG shafts aim at, one shaft for each: A, B, C and on.
        source: Draws directions and misses.
        strips: How many strips lie over the outermost regions: SA, SB and on.
        leads: How many leads aim at the innermost regions: LA, LB and on.

    Raises:
        ConfigError: If nothing is implanted, or more than 26 of one kind, or more strips or leads than regions.
        MontageError: If an electrode does not fit into so small a head.
    """
    most = max(len(targets), strips, leads)
    if not 1 <= most <= 26 or max(strips, leads) > len(centre_mm):
        raise ConfigError(
            f"{len(targets)} shafts, {strips} strips and {leads} leads were asked in {len(centre_mm)} regions; "
            "implant at least one electrode, at most 26 of a kind, and no more strips or leads than regions."
        )
    head = head_around(centre_mm)
    depth = ((centre_mm - head.centre_mm) / head.semi_mm).norm(dim=-1).argsort().tolist()
    placed = [shaft(_letter(i), centre_mm[target], head, source) for i, target in enumerate(targets)]
    placed += [strip("S" + _letter(i), centre_mm[depth[-1 - i]], head, source) for i in range(strips)]
    placed += [lead("L" + _letter(i), centre_mm[depth[i]], head, source) for i in range(leads)]
    return monopolar([contact for electrode in placed for contact in electrode], frame="virtual")


def shaft(
    name: str, target_mm: Tensor, head: Head, source: torch.Generator, *, model: ElectrodeModel = SEEG_SHAFT
) -> list[Contact]:
    """One shaft from the side, contact 1 deepest; the target lies beside its second or third one where the head allows.

    Raises:
        MontageError: If not even the shortest one fits.
    """
    sideways = torch.tensor([_side(target_mm, head), 0.0, 0.0], dtype=torch.float64)
    missed = MISS_MM * math.exp(MISS_LOG_SPREAD * float(_normal(source, 1)))
    below = model.pitch_mm * (1 + float(torch.rand((), generator=source, dtype=torch.float64)))
    for attempt in range(_ATTEMPTS):  # the more have failed, the further from sideways: as a surgeon would turn it
        along = _unit(sideways + (0.3 + 0.1 * attempt) * _normal(source, 3))
        made = _row(model, name, _beside(target_mm, along, missed, head, source), along, below, head)
        if made:
            return made
    raise MontageError(f"shaft {name} needs {_span_mm(model):g} mm of tissue and found no such way; use a larger head.")


def lead(
    name: str, target_mm: Tensor, head: Head, source: torch.Generator, *, model: ElectrodeModel = DBS_LEAD
) -> list[Contact]:
    """One lead from above and a little to the side and the front; the target lies in the middle of its contacts.

    Raises:
        MontageError: If it does not fit.
    """
    tilted = torch.tensor(
        [0.3 * _side(target_mm, head), 0.4, 1.0], dtype=torch.float64
    )  # chosen: 17 and 22 degrees from upright
    along = _unit(tilted + 0.05 * _normal(source, 3))
    passing = _beside(target_mm, along, LEAD_MISS_MM, head, source)
    made = _row(model, name, passing, along, _span_mm(model) / 2, head)
    if not made:
        raise MontageError(f"lead {name} needs {_span_mm(model):g} mm of tissue along its way; aim deeper.")
    return made


def strip(
    name: str, target_mm: Tensor, head: Head, source: torch.Generator, *, model: ElectrodeModel = ECOG_STRIP
) -> list[Contact]:
    """One strip whose middle lies on the surface over the target; neighbours are a pitch apart in a straight line.

    Raises:
        MontageError: If even the shortest one would reach half round the head.
    """
    room_mm = 2 * float(head.semi_mm.amin())  # of the half round of 3.1
    counts = [count for count in model.counts if (count - 1) * model.pitch_mm <= room_mm]
    if not counts:
        raise MontageError(f"strip {name} does not fit on a head {room_mm:.0f} mm wide; choose a shorter model.")
    middle = head.surface(target_mm)
    heading = _unit(torch.linalg.cross(middle - head.centre_mm, _normal(source, 3)))
    ahead = counts[-1] // 2
    forth = _walk(middle, heading, ahead, model.pitch_mm, head)
    back = _walk(middle, -heading, counts[-1] - 1 - ahead, model.pitch_mm, head)
    return _contacts(model, name, [*reversed(back), middle, *forth])


def two_shafts(
    targets_mm: Float[Tensor, "2 3"], contacts: int, source: torch.Generator, *, miss_mm: float = 2.0
) -> Montage:
    """Two sEEG electrodes, A and B, each passing `miss_mm` beside its target, monopolar; no skull is in their way.

    Directions are random and nearly sideways, as electrodes are implanted; the target lies beside any contact but the
    first and the last.

    Raises:
        ConfigError: If there are fewer than 4 contacts.
    """
    if contacts < 4:
        raise ConfigError(f"contacts is {contacts}; two shafts need at least 4, two on each.")
    made: list[Contact] = []
    for name, target, count in zip("AB", targets_mm, (contacts - contacts // 2, contacts // 2), strict=True):
        along = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64) + 0.4 * _normal(source, 3)
        along = along / along.norm()
        beside = torch.linalg.cross(along, _normal(source, 3))
        beside = beside / beside.norm()
        nearest = 1 + (count - 3) * torch.rand((), generator=source, dtype=torch.float64)
        for i in range(count):
            place = target + miss_mm * beside + (i - nearest) * PITCH_MM * along
            made.append(Contact(f"{name}{i + 1}", tuple(place.tolist()), AREA_CM2, "depth", name))
    return monopolar(made, frame="virtual")


def _row(model: ElectrodeModel, name: str, passing: Tensor, along: Tensor, below: float, head: Head) -> list[Contact]:
    """As many contacts as fit on a straight line that starts `below` mm before a place; none where too few do."""
    deepest, skull = -head.reach_mm(passing, -along), head.reach_mm(passing, along)
    if skull - deepest < _span_mm(model):
        return []
    first = min(max(-below, deepest), skull - _span_mm(model))
    count = max(c for c in model.counts if (c - 1) * model.pitch_mm <= skull - first + 1e-9)
    return _contacts(model, name, [passing + (first + i * model.pitch_mm) * along for i in range(count)])


def _walk(start: Tensor, heading: Tensor, steps: int, pitch_mm: float, head: Head) -> list[Tensor]:
    """Places on the surface, each a pitch from the one before."""
    places, here = [], start
    for _ in range(steps):
        stride = pitch_mm
        for _ in range(40):  # each turn shrinks the error of the chord tenfold or more
            there = head.surface(here + stride * heading)
            stride *= pitch_mm / float((there - here).norm())
        places.append(there)
        heading, here = _unit(there - here), there
    return places


def _contacts(model: ElectrodeModel, name: str, places: Sequence[Tensor]) -> list[Contact]:
    """Contacts on one electrode, numbered from 1, placed to a billionth of a millimetre."""
    rounded = [tuple(place.round(decimals=9).tolist()) for place in places]
    return [Contact(f"{name}{i + 1}", place, model.area_cm2, model.kind, name) for i, place in enumerate(rounded)]


def _beside(target_mm: Tensor, along: Tensor, missed_mm: float, head: Head, source: torch.Generator) -> Tensor:
    """A place `missed_mm` from the target, square to the electrode, or less where the head ends there."""
    aside = _unit(torch.linalg.cross(along, _normal(source, 3)))
    return target_mm + min(missed_mm, 0.9 * head.reach_mm(target_mm, aside)) * aside


def _side(target_mm: Tensor, head: Head) -> float:
    """1 on the right, -1 on the left."""
    return 1.0 if float(target_mm[0]) >= float(head.centre_mm[0]) else -1.0


def _span_mm(model: ElectrodeModel) -> float:
    """From the first to the last contact of the shortest one sold."""
    return (model.counts[0] - 1) * model.pitch_mm


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm()
    return unit


def _normal(source: torch.Generator, count: int) -> Tensor:
    return torch.randn(count, generator=source, dtype=torch.float64)
