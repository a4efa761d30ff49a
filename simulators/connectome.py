"""Which regions there are, where, and how strongly tracts join them: made at run time, or read; then one head's own.

Tract weights fall exponentially with distance and spread lognormally around that, in
macaque and mouse cortex alike; one length suffices to describe the fall. One head differs
from the group by a lognormal factor on each tract, and by what a lesion took away.

References: Ercsey-Ravasz et al. 2013, Neuron 80:184-197 (the rule; 0.19 per mm in macaque);
Betzel and Bassett 2018, PNAS 115:E4880-E4889 (weights and their distances across species).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import DataError, ShapeError
from stimopt.tensors import generator
from stimopt.units import SECONDS_PER_MILLISECOND

DECAY_PER_MM = 0.19  # Ercsey-Ravasz et al. 2013, macaque cortex
LOG_SPREAD = 1.0  # weights span orders of magnitude at any distance (Ercsey-Ravasz et al. 2013); ours one, cautiously
WEIGHT_LOG_SPREAD = 0.3  # of one head around the group; chosen, no figure was found that fits every tractography
LENGTH_LOG_SPREAD = 0.05  # chosen: heads differ less in size than in wiring
_FACTOR_DECIMALS = 6  # factors are rounded, so that a last digit that differs between machines does not make two heads


@dataclass(frozen=True)
class Connectome:
    """Regions and the tracts between them.

    Attributes:
        names: One per region.
        centre_mm: Place of each region; NaN where a file has none.
        weights: `[to, from]`, zero on the diagonal, without unit.
        tract_mm: Length of each tract; the straight distance where no length was measured.

    Raises:
        ShapeError: If the parts do not fit each other.
    """

    names: tuple[str, ...]
    centre_mm: Float[Tensor, "region 3"]
    weights: Float[Tensor, "region region"]
    tract_mm: Float[Tensor, "region region"]

    def __post_init__(self) -> None:
        count = len(self.names)
        shapes = {"centre_mm": (count, 3), "weights": (count, count), "tract_mm": (count, count)}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ShapeError(
                    f"{name} must have shape {list(shape)} for {count} regions, got {list(getattr(self, name).shape)}."
                )

    @property
    def received(self) -> Float[Tensor, "region region"]:
        """Weights scaled so that every region receives 1 in all; a region without tracts receives 0."""
        total = self.weights.sum(-1, keepdim=True)
        return self.weights / torch.where(total > 0, total, 1.0)

    @property
    def fingerprint(self) -> str:
        """sha256 of names and numbers: two connectomes with the same one are the same to the bit."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        for part in (self.centre_mm, self.weights, self.tract_mm):
            digest.update(part.detach().to("cpu", torch.float64).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def delays_s(self, speed_m_s: float) -> Float[Tensor, "region region"]:
        """Conduction delays at a speed in m/s (which is mm/ms), 0 where there is no tract.

        Raises:
            ShapeError: If the speed is not positive, or the length of a tract is not known.
        """
        if not speed_m_s > 0:
            raise ShapeError(f"speed_m_s is {speed_m_s}; tracts conduct at a positive speed, about 1 to 10 m/s.")
        used = self.weights != 0
        if bool(self.tract_mm[used].isnan().any()):
            raise ShapeError("the length of some tract is not known, so neither is its delay; give tract_mm.")
        return torch.where(used, self.tract_mm / speed_m_s * SECONDS_PER_MILLISECOND, 0.0)


def exponential_distance_connectome(
    centre_mm: Float[Tensor, "region 3"],
    source: torch.Generator,
    *,
    decay_per_mm: float = DECAY_PER_MM,
    log_spread: float = LOG_SPREAD,
) -> Connectome:
    """Weights exp(-decay distance) times a lognormal, drawn for each pair and the same in both directions.

    Args:
        centre_mm: Places of the regions.
        source: Draws the spread.
        decay_per_mm: How fast weights fall.
        log_spread: Standard deviation of the natural logarithm around the rule; 0 gives the rule itself.
    """
    distance = _distance(centre_mm)
    draws = torch.randn(distance.shape, generator=source, dtype=centre_mm.dtype, device=centre_mm.device)
    spread = (draws.triu(1) + draws.triu(1).mT) * log_spread
    weights = (spread - decay_per_mm * distance).exp().fill_diagonal_(0.0)
    return Connectome(tuple(f"R{i + 1}" for i in range(len(distance))), centre_mm, weights, distance)


def _distance(centre_mm: Tensor) -> Tensor:
    exact = "donot_use_mm_for_euclid_dist"  # by products, distances would be uneven in the last digits
    return torch.cdist(centre_mm, centre_mm, compute_mode=exact)


def scattered_centres(
    regions: int, source: torch.Generator, *, radius_mm: float, apart_mm: float
) -> Float[Tensor, "region 3"]:
    """Places drawn evenly in a ball around the origin, none closer than `apart_mm` to another (float64).

    Raises:
        ShapeError: If so many regions do not fit.
    """
    kept = torch.zeros(0, 3, dtype=torch.float64)
    for _ in range(200 * regions):
        point = (2 * torch.rand(1, 3, generator=source, dtype=torch.float64) - 1) * radius_mm
        if float(point.norm()) <= radius_mm and bool((torch.cdist(point, kept) >= apart_mm).all()):
            kept = torch.cat([kept, point])
        if len(kept) == regions:
            return kept
    raise ShapeError(
        f"only {len(kept)} of {regions} regions {apart_mm} mm apart fit in a ball of {radius_mm} mm; "
        "ask for fewer regions or a larger ball."
    )


def ball_connectome(regions: int, seed: int, *, radius_mm: float = 15.0, apart_mm: float = 6.0) -> Connectome:
    """A connectome made at run time: `regions` places in a ball, joined by the exponential distance rule.

    The ball is the tissue that two electrodes reach, not a brain: regions 6 mm apart stand for patches of cortex.
    It grows where `regions` would be crowded.

    Raises:
        ShapeError: If so many regions do not fit.
    """
    radius_mm = max(radius_mm, 0.9 * apart_mm * regions ** (1 / 3))  # random packing fills about a tenth of a ball
    centre_mm = scattered_centres(regions, generator(seed, "centres"), radius_mm=radius_mm, apart_mm=apart_mm)
    return exponential_distance_connectome(centre_mm, generator(seed, "tracts"))


def perturbed(
    group: Connectome,
    source: torch.Generator,
    *,
    weight_log_spread: float = WEIGHT_LOG_SPREAD,
    length_log_spread: float = LENGTH_LOG_SPREAD,
) -> Connectome:
    """One head around a group: each tract's weight and length times a lognormal factor of median 1.

    A tract has the same factor in both directions; where there is no tract, none appears. Places stay.

    Args:
        group: The connectome to vary.
        source: Draws the factors, weights first.
        weight_log_spread: Standard deviation of the natural logarithm of the weights' factor; 0 leaves them.
        length_log_spread: The same of the lengths' factor.
    """
    weights = group.weights * _factors(group.weights, weight_log_spread, source)
    return replace(group, weights=weights, tract_mm=group.tract_mm * _factors(weights, length_log_spread, source))


def _factors(like: Tensor, log_spread: float, source: torch.Generator) -> Tensor:
    upper = torch.randn(like.shape, generator=source, dtype=like.dtype, device=source.device).triu(1)
    return ((upper + upper.mT) * log_spread).exp().round(decimals=_FACTOR_DECIMALS).to(like)


def without_tracts(connectome: Connectome, tracts: Sequence[tuple[int, int]]) -> Connectome:
    """The connectome after tracts between pairs of regions were cut, in both directions.

    Raises:
        ShapeError: If a pair names a region that is not there.
    """
    _require_regions(connectome, [region for pair in tracts for region in pair])
    weights = connectome.weights.clone()
    for one, other in tracts:
        weights[one, other] = weights[other, one] = 0.0
    return replace(connectome, weights=weights)


def without_regions(connectome: Connectome, regions: Sequence[int]) -> Connectome:
    """The connectome after regions were removed with all their tracts; the others keep their order.

    Raises:
        ShapeError: If a region is not there, or none would be left.
    """
    _require_regions(connectome, regions)
    kept = [i for i in range(len(connectome.names)) if i not in set(regions)]
    if not kept:
        raise ShapeError(f"all {len(connectome.names)} regions would be removed; leave at least one.")
    names = tuple(connectome.names[i] for i in kept)
    weights, tract_mm = (part[kept][:, kept] for part in (connectome.weights, connectome.tract_mm))
    return Connectome(names, connectome.centre_mm[kept], weights, tract_mm)


def _require_regions(connectome: Connectome, regions: Sequence[int]) -> None:
    missing = sorted({i for i in regions if not 0 <= i < len(connectome.names)})
    if missing:
        raise ShapeError(
            f"a lesion names regions {missing}; this connectome has regions 0 to {len(connectome.names) - 1}."
        )


def read_connectome(path: Path | str) -> Connectome:
    """A connectome from a netCDF file with `weights`, and `centre_xyz` and `tract_length` in mm where known.

    Weights are taken as they stand, `[to, from]`, with the diagonal set to zero. Where lengths are missing, straight
    distances are taken; where centres are missing too, both are NaN.

    Raises:
        DataError: If the file is missing, is no netCDF, has no weights, or has weights that are negative or not finite.
    """
    from stimopt.netcdf import read_netcdf  # here, since xarray is slow to import and only files need it

    file = read_netcdf(Path(path))
    if "region" not in file.variables:
        raise DataError(f"connectome file {path} has no variable 'region'; name the regions there.")
    names = tuple(str(name) for name in file["region"].values)
    found = {name: file[name].values.astype("float64") for name in _VARIABLES if name in file.variables}
    if "weights" not in found:
        raise DataError(f"connectome file {path} has no variable 'weights'; rename the one that holds them.")
    weights = torch.from_numpy(found["weights"])
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise DataError(
            f"connectome file {path} has weights that are negative or not finite; "
            "if they are logarithms, raise them to powers first."
        )
    unknown = torch.full((len(names), 3), torch.nan, dtype=torch.float64)
    centre_mm = torch.from_numpy(found["centre_xyz"]) if "centre_xyz" in found else unknown
    lengths = found.get("tract_length")
    tract_mm = _distance(centre_mm) if lengths is None else torch.from_numpy(lengths)
    return Connectome(names, centre_mm, weights.clone().fill_diagonal_(0.0), tract_mm)


_VARIABLES = ("weights", "centre_xyz", "tract_length")
