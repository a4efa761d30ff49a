"""Lead fields: the voltage that one mV of a region's potential makes at each place of reading.

| function | law | for |
| --- | --- | --- |
| distance_lead_field | 1 / (1 + (r / reach)^2) | contacts among regions whose orientation is not known |
| monopole_lead_field | I / (4 pi sigma r) | a net source, such as the sink of a synapse seen from near |
| dipole_lead_field | p . r / (4 pi sigma r^3) | a patch of cortex with a known direction |
| read_lead_field | as in the file | scalp EEG, from a head model computed elsewhere |

Both current sources lie in an endless homogeneous medium of conductivity sigma; the skull is
not in it, so scalp EEG needs a lead field from a head model. What a model calls mV is turned
into current by a number that is the user's to choose, for no mean field gives it.

References: Plonsey and Heppner 1967, Bull Math Biophys 29:657-664 (tissue is quasi-static);
Nunez and Srinivasan, Electric Fields of the Brain, Oxford 2006 (monopole and dipole).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import DataError, MontageError
from stimopt.montage import Montage

from .drive import CONDUCTIVITY_S_M, SMALLEST_DISTANCE_MM

REACH_MM = 3.0  # chosen; published reach runs from 0.25 mm (Katzner 2009) to 1 cm (Kajikawa and Schroeder 2011)
UV_PER_MV = 100.0  # extracellular uV per mV of postsynaptic potential; gives the tens to hundreds of uV of sEEG
_UV_PER_NA_MM = 1.0  # 1 nA at 1 mm in 1 S/m: 1e-9 A / 1e-3 m = 1e-6 V
_UV_PER_NAM_MM2 = 1e3  # 1 nA m at 1 mm: 1e-9 A m / 1e-6 m2 = 1e-3 V


def contact_places(montage: Montage, like: Tensor) -> Float[Tensor, "contact 3"]:
    """Places of the contacts in mm, in dtype and on the device of `like`.

    Raises:
        MontageError: If the place of a contact is not known.
    """
    places = montage.contact_position_mm.to(like)
    lost = [c.name for c, place in zip(montage.contacts, places, strict=True) if bool(place.isnan().any())]
    if lost:
        raise MontageError(f"a lead field needs position_mm of every contact; {', '.join(lost)} have none.")
    return places


def distance_lead_field(
    place_mm: Float[Tensor, "place 3"],
    region_mm: Float[Tensor, "region 3"],
    *,
    reach_mm: float = REACH_MM,
    uv_per_mv: float = UV_PER_MV,
) -> Float[Tensor, "place region"]:
    """Voltages that fall with distance alone, uv_per_mv / (1 + (r / reach)^2), in uV per mV.

    Args:
        place_mm: Where voltage is read.
        region_mm: Places of the regions, in the same frame.
        reach_mm: Distance at which half of the voltage is left; farther off it falls like a dipole's.
        uv_per_mv: Voltage at the region itself per mV of its potential.
    """
    return uv_per_mv / (1 + (torch.cdist(place_mm, region_mm) / reach_mm).square())


def monopole_lead_field(
    place_mm: Float[Tensor, "place 3"],
    region_mm: Float[Tensor, "region 3"],
    *,
    na_per_mv: float,
    conductivity_s_m: float = CONDUCTIVITY_S_M,
    smallest_mm: float = SMALLEST_DISTANCE_MM,
) -> Float[Tensor, "place region"]:
    """Voltages of point sources, I / (4 pi sigma r), in uV per mV.

    Args:
        place_mm: Where voltage is read.
        region_mm: Places of the sources.
        na_per_mv: Net current of a region in nA per mV of its potential.
        conductivity_s_m: Of the tissue.
        smallest_mm: Nearer places read as this distance; a contact is no point.
    """
    distance_mm = torch.cdist(place_mm, region_mm).clamp_min(smallest_mm)
    return _UV_PER_NA_MM * na_per_mv / (4 * math.pi * conductivity_s_m * distance_mm)


def dipole_lead_field(
    place_mm: Float[Tensor, "place 3"],
    region_mm: Float[Tensor, "region 3"],
    moment_nam_per_mv: Float[Tensor, "region 3"],
    *,
    conductivity_s_m: float = CONDUCTIVITY_S_M,
    smallest_mm: float = SMALLEST_DISTANCE_MM,
) -> Float[Tensor, "place region"]:
    """Voltages of current dipoles, p . r / (4 pi sigma r^3), in uV per mV; positive where the moment points.

    Nearer than `smallest_mm` the direction counts as it is and the distance as `smallest_mm`, with the voltage going
    to zero at the dipole itself. Cortex yields moments of up to 1 to 2 nA m per mm2 (Murakami and Okada 2015,
    NeuroImage 111:49-58).

    Args:
        place_mm: Where voltage is read.
        region_mm: Places of the dipoles.
        moment_nam_per_mv: Dipole moment of each region, nA m per mV of its potential, pointing out of the cortex.
        conductivity_s_m: Of the tissue.
        smallest_mm: Distance below which the law is not followed.
    """
    away_mm = place_mm.unsqueeze(-2) - region_mm  # [place, region, 3]
    distance_mm = away_mm.norm(dim=-1).clamp_min(smallest_mm)
    along = (away_mm * moment_nam_per_mv).sum(-1)
    field: Tensor = _UV_PER_NAM_MM2 * along / (4 * math.pi * conductivity_s_m * distance_mm**3)
    return field


def average_reference(uv_per_mv: Float[Tensor, "place region"]) -> Float[Tensor, "place region"]:
    """The same lead field against the mean of all places, as scalp EEG is read."""
    return uv_per_mv - uv_per_mv.mean(0, keepdim=True)


def read_lead_field(path: Path | str, places: Sequence[str], regions: Sequence[str]) -> Float[Tensor, "place region"]:
    """A lead field from netCDF: variable `lead_field` over `sensor` and `region`, both with names (float64).

    Rows and columns are picked by name and put in the order asked for; others in the file are left out.

    Args:
        path: A file whose `lead_field` has the attribute `units` "uV/mV".
        places: Names of the sensors wanted, such as those of a montage's contacts.
        regions: Names of the regions wanted, such as a connectome's.

    Raises:
        DataError: If the file is missing or no netCDF, has no such variable, states another unit or none, lacks a name
            asked for, or holds a value that is not finite.
    """
    from stimopt.netcdf import read_netcdf  # here, since xarray is slow to import and only files need it

    file = read_netcdf(Path(path))
    if "lead_field" not in file.variables or set(file["lead_field"].dims) != {"sensor", "region"}:
        raise DataError(f"lead field file {path} has no variable 'lead_field' over sensor and region; name it so.")
    unit = file["lead_field"].attrs.get("units")
    if unit != "uV/mV":
        raise DataError(f"lead field file {path} has units {unit!r}; convert it and set the attribute to 'uV/mV'.")
    matrix = torch.from_numpy(file["lead_field"].transpose("sensor", "region").values.astype("float64"))
    picked = matrix[_picked(file, "sensor", places, path)][:, _picked(file, "region", regions, path)]
    if not bool(picked.isfinite().all()):
        raise DataError(f"lead field file {path} has values that are not finite; leave those sensors or regions out.")
    return picked


def _picked(file: Any, axis: str, wanted: Sequence[str], path: Path | str) -> list[int]:
    """Where each name wanted stands along an axis of the file."""
    names = [str(name) for name in file[axis].values] if axis in file.variables else []
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DataError(
            f"lead field file {path} has no {axis} named {', '.join(missing)}; it has {', '.join(names) or 'no names'}."
        )
    return [names.index(name) for name in wanted]
