"""A virtual patient as data: every number that makes one, in a small file that makes the same one again.

The file holds what was drawn, not how: electrodes, circuit parameters, noise, the day's
drift, schedule, what hurts. Only tracts are kept as a recipe (seed, spreads, lesions), since
they are many, with the sha256 of what comes out; a group connectome read from a file is named
by its sha256 and has to be given again. A file that was changed, or makes other tracts, is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from stimopt.errors import DataError
from stimopt.montage import Montage, montage_from_dict, montage_to_dict
from stimopt.provenance import write_atomically
from stimopt.tensors import generator, stream_seed

from .actuator import Actuator
from .connectome import Connectome, ball_connectome, perturbed, without_regions, without_tracts
from .dynamics import Dynamics
from .epileptor import Epileptor
from .hopf import StuartLandau
from .implanted import joined_by, twin_in_head
from .jansen_rit import JansenRit
from .kuramoto import Kuramoto
from .linear import LinearOscillator
from .montbrio import MontbrioPazoRoxin
from .sensing import clinical_amplifier
from .single_pulses import PulseSchedule
from .twin import Twin
from .vigilance import Vigilance
from .wendling import Wendling
from .wilson_cowan import WilsonCowan

FORMAT = "stimopt virtual patient"
VERSION = 2  # of the file; what has none of `_LATER` is written as 1, as before they were there
_LATER = ("tract_entry", "diffusive", "amplifier", "device")
BALL = "ball"  # a connectome made at run time

_OWN: Mapping[str, type[Dynamics]] = {
    kind.__name__: kind
    for kind in (
        JansenRit, Wendling, WilsonCowan, Epileptor, StuartLandau, MontbrioPazoRoxin, Kuramoto, LinearOscillator
    )
}  # fmt: skip

Parameters = Mapping[str, float | tuple[float, ...]]


@dataclass(frozen=True)
class Anatomy:
    """How a head's connectome is made.

    Attributes:
        group: `BALL`, or the fingerprint of the group connectome.
        regions: How many the group has.
        seed: Of the ball and of the perturbation.
        weight_log_spread: See `perturbed`.
        length_log_spread: See `perturbed`.
        lost_tracts: Pairs of regions whose tract was cut.
        lost_regions: Regions that were removed, numbered as in the group.
        fingerprint: Of the connectome that comes out; "" before it was made.
    """

    group: str
    regions: int
    seed: int
    weight_log_spread: float
    length_log_spread: float
    lost_tracts: tuple[tuple[int, int], ...] = ()
    lost_regions: tuple[int, ...] = ()
    fingerprint: str = ""

    def connectome(self, group: Connectome | None = None) -> Connectome:
        """The head's own connectome.

        Raises:
            DataError: If the group connectome is missing or another one, or other tracts come out than were saved.
        """
        whole = perturbed(
            self._group(group),
            generator(self.seed, "head"),
            weight_log_spread=self.weight_log_spread,
            length_log_spread=self.length_log_spread,
        )
        made = without_regions(without_tracts(whole, self.lost_tracts), self.lost_regions)
        if self.fingerprint not in ("", made.fingerprint):
            raise DataError(
                f"this patient's tracts come out as {made.fingerprint[:12]}, {self.fingerprint[:12]} was saved; "
                "use the version of stimopt that the file names."
            )
        return made

    def _group(self, group: Connectome | None) -> Connectome:
        if self.group == BALL:
            ball = ball_connectome(self.regions, stream_seed(self.seed, "anatomy"))
            rounded = {name: getattr(ball, name).round(decimals=9) for name in ("centre_mm", "weights", "tract_mm")}
            return replace(ball, **rounded)
        if group is None or group.fingerprint != self.group:
            given = "none was given" if group is None else f"{group.fingerprint[:12]} was given"
            raise DataError(
                f"this patient varies the group connectome {self.group[:12]} of {self.regions} regions, {given}; "
                "pass `group`, read from the same file."
            )
        return group


@dataclass(frozen=True)
class VirtualPatient:
    """One simulated patient.

    Attributes:
        name: For people.
        anatomy: How the connectome is made.
        montage: Contacts, and the channels that are recorded.
        circuit: What lives in the regions.
        parameters: Of the circuit: a number, or one for each region that is left.
        gain: Drive per emission.
        speed_m_s: Conduction speed; None for no delays.
        twin_options: Everything else that `twin_in_head` takes, such as noise_uv, drift, window_s, dt_s.
        tract_entry: Where what tracts bring enters, as in `Network`, a row for each input; None for the first.
        diffusive: Whether tracts bring differences.
        amplifier: Numbers of `clinical_amplifier`; None for white noise alone.
        device: Numbers of an `Actuator`; None for one that delivers what is commanded.
        vigilance: Numbers of a `Vigilance`: how drowsiness comes, goes, and what it does; None for none.
        side_effect_ma: Current at each contact from which it is felt as a side effect; hidden from policies.
        schedule: Single-pulse mapping, as it would be run.
        group: The group connectome, where the anatomy varies one. Not saved.
    """

    name: str
    anatomy: Anatomy
    montage: Montage
    circuit: type[Dynamics]
    parameters: Parameters
    gain: float
    speed_m_s: float | None
    twin_options: Mapping[str, Any]
    vigilance: Mapping[str, float] | None
    side_effect_ma: tuple[float, ...]
    schedule: PulseSchedule
    group: Connectome | None = field(default=None, repr=False, compare=False)
    tract_entry: tuple[tuple[float, ...], ...] | None = None
    diffusive: bool = False
    amplifier: Mapping[str, float] | None = None
    device: Mapping[str, float] | None = None

    @property
    def connectome(self) -> Connectome:
        """The head's own, lesions and all. Raises as `Anatomy.connectome`."""
        return self.anatomy.connectome(self.group)

    def twin(self) -> Twin:
        """The patient, ready to be stimulated; float64 on the CPU.

        Raises:
            DataError: If the connectome cannot be made again.
        """
        connectome = self.connectome
        values = {name: self._parameter(name, value) for name, value in self.parameters.items()}
        joined = joined_by(
            self.circuit(**values),
            connectome,
            self.gain,
            speed_m_s=self.speed_m_s,
            shortest_s=self.twin_options["dt_s"],
            tract_entry=_as_tensor(self.tract_entry),
            diffusive=self.diffusive,
        )
        twin = twin_in_head(
            joined,
            connectome.centre_mm,
            self.montage,
            vigilance=None if self.vigilance is None else Vigilance(**self.vigilance),
            side_effect_ma=_as_tensor(self.side_effect_ma),
            actuator=None if self.device is None else Actuator(**dict[str, Any](self.device)),
            **self.twin_options,
        )
        if self.amplifier is None:
            return twin
        parts = clinical_amplifier(self.montage, **self.amplifier)
        return replace(twin, sensing=replace(twin.sensing, noise_uv=0.0, parts=parts))

    def _parameter(self, name: str, value: float | tuple[float, ...]) -> Any:
        """As the circuit takes it; a tuple is a value for each region, unless the circuit's own default is one."""
        return value if isinstance(getattr(self.circuit, name, None), tuple) else _as_tensor(value)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, the group connectome left out."""
        usual = {one.name: one.default for one in fields(self) if one.name in _LATER}
        later = {name: getattr(self, name) for name in _LATER if getattr(self, name) != usual[name]}
        return later | {
            "name": self.name,
            "anatomy": {one.name: getattr(self.anatomy, one.name) for one in fields(Anatomy)},
            "montage": montage_to_dict(self.montage),
            "circuit": self.circuit.__name__,
            "parameters": dict(self.parameters),
            "gain": self.gain,
            "speed_m_s": self.speed_m_s,
            "twin_options": dict(self.twin_options),
            "vigilance": None if self.vigilance is None else dict(self.vigilance),
            "side_effect_ma": list(self.side_effect_ma),
            "schedule": self.schedule.to_dict(),
        }

    def save(self, path: Path | str) -> Path:
        """Write the patient as JSON, whole or not at all.

        Returns:
            The file.
        """
        plain = self.to_dict()
        version = VERSION if plain.keys() & set(_LATER) else 1
        sealed = {"format": FORMAT, "version": version, "sha256": _seal(plain), "patient": plain}
        write_atomically(Path(path), json.dumps(sealed) + "\n")
        return Path(path)


def load_patient(
    path: Path | str, *, circuit: type[Dynamics] | None = None, group: Connectome | None = None
) -> VirtualPatient:
    """The patient that `VirtualPatient.save` wrote; its twin answers the same to the bit.

    Args:
        path: The file.
        circuit: The class of the circuit that the file names; needed for circuits that are not stimopt's own.
        group: The group connectome, where the patient varies one.

    Raises:
        DataError: If there is no such file, it is no patient, was written by another version or changed since, names
            another circuit, or its connectome is missing or comes out differently.
    """
    plain = _unsealed(Path(path))
    circuit = circuit or _OWN.get(plain["circuit"])
    if circuit is None or plain["circuit"] != circuit.__name__:
        given = "no class of that name is known here" if circuit is None else f"{circuit.__name__} was given"
        raise DataError(f"{path} is a patient of {plain['circuit']}, {given}; pass circuit={plain['circuit']}.")
    made = _from_dict(plain, circuit, group)
    made.anatomy.connectome(group)
    return made


def _from_dict(plain: Mapping[str, Any], circuit: type[Dynamics], group: Connectome | None) -> VirtualPatient:
    anatomy = dict(plain["anatomy"])
    lost = {"lost_tracts": tuple(map(tuple, anatomy["lost_tracts"])), "lost_regions": tuple(anatomy["lost_regions"])}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in plain["parameters"].items()}
    later = {name: plain[name] for name in _LATER if name in plain}
    if "tract_entry" in later:
        later["tract_entry"] = tuple(map(tuple, later["tract_entry"]))
    return VirtualPatient(
        name=plain["name"],
        anatomy=Anatomy(**{**anatomy, **lost}),
        montage=montage_from_dict(plain["montage"]),
        circuit=circuit,
        parameters=values,
        gain=plain["gain"],
        speed_m_s=plain["speed_m_s"],
        twin_options=plain["twin_options"],
        vigilance=plain["vigilance"],
        side_effect_ma=tuple(plain["side_effect_ma"]),
        schedule=PulseSchedule.from_dict(plain["schedule"]),
        group=group,
        **later,
    )


def _unsealed(path: Path) -> dict[str, Any]:
    """What a file holds, once its format, version and hash were found right."""
    if not path.is_file():
        raise DataError(f"patient file {path} does not exist; check the path.")
    try:
        sealed = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"patient file {path} is no complete JSON ({error}); save the patient again.") from error
    if not isinstance(sealed, dict) or sealed.get("format") != FORMAT:
        raise DataError(f"{path} is not a {FORMAT}; give a file that VirtualPatient.save wrote.")
    if sealed.get("version") not in (1, VERSION):
        raise DataError(
            f"{path} has version {sealed.get('version')}, this stimopt reads 1 to {VERSION}; use the one that wrote it."
        )
    plain = sealed.get("patient")
    if not isinstance(plain, dict) or sealed.get("sha256") != _seal(plain):
        raise DataError(f"{path} was changed after it was saved: its sha256 does not fit; take an untouched copy.")
    return plain


def _seal(plain: Mapping[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _as_tensor(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, tuple) else value
