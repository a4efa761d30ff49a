"""A parkinsonian cube of phase oscillators with a stimulating electrode inside.

Oscillators stand on a cube and couple all to all, less with distance. Their own frequencies
follow a density with a theta and a beta peak; in a locus they all lie in low beta, lock to each
other and make the field swing. Stimuli reach an oscillator less the farther it is from the electrode.

The stimulus has a constant phase response: a positive one only makes oscillators faster. It
does not scatter the locus, it moves the rhythm; power in a narrow band falls because the peak
leaves it, and a score of such a band should be read beside a wide one.

Reference: Kuzmina, Kriukov, Lebedev and Dylov 2025, arXiv 2505.09624, and their released code (DBS-Gym), in which 100
units of time are a second, so rates per unit of time are 100 times larger here. By default the cube is that of their
environment 0. Environment 1 moves electrode and locus, see `ENVIRONMENT_1`; a recording electrode that only the agent
sees is not in it, since they score the mean of all. Environment 2 lets both drift, by a program that stops at its own
check and so was not what made its published row; only where it begins is given, see `ENVIRONMENT_2_BEGINS`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .kuramoto import Kuramoto, sine_entry
from .mean_field import MeanField, factored

UNITS_PER_S = 100.0
RAD_PER_UNIT_PER_HZ = 0.065  # theirs; a turn per second would be 0.0628, so a nominal 17 Hz is 17.6 Hz
COUPLING_PER_UNIT = 0.52
START_RAD = (torch.pi, 0.6)  # mean and standard deviation
LOCUS_HZ = (16.0, 18.0)
LOCUS_RADIUS = 1 / 0.55  # in spacings of the cube
SPACING = 0.1  # of neighbours, in the distance whose cosine weighs the coupling
CONDUCTANCE_FALL = 0.1  # per spacing between oscillator and electrode
HIGHEST_HZ = 30.0
# electrode and middle of the locus in each of the five cubes on which they score; in spacings, from a corner
ENVIRONMENT_1 = (
    ((5, 2, 3), (1, 2, 3)),
    ((4, 3, 1), (2, 1, 4)),
    ((4, 3, 6), (4, 3, 2)),
    ((5, 2, 1), (5, 2, 5)),
    ((1, 3, 2), (4, 5, 4)),
)
ENVIRONMENT_2_BEGINS = (
    ((4, 3, 6), (5, 1, 4)),
    ((2, 4, 6), (2, 5, 1)),
    ((1, 6, 1), (3, 2, 3)),
    ((5, 5, 1), (4, 2, 1)),
    ((3, 2, 4), (4, 4, 2)),
)
# frequencies in Hz and relative density there; a polynomial of degree 10 is fitted through them
_DENSITY_HZ = (0, 1.8, 2.5, 3.3, 4.5, 5.5, 8, 12.5, 18, 20, 22, 25, 30, 35, 40, 45, 50, 55, 60)
_DENSITY = (6, 7.7, 6, 7.7, 4, 3.5, 4, 5, 5.7, 10, 5.7, 4.9, 2.3, 1.2, 0.8, 0.75, 0.7, 0.7, 0.68)
_DEGREE = 10


def kuramoto_grid(
    source: torch.Generator,
    *,
    batch_shape: tuple[int, ...] = (),
    side: int = 8,
    electrode: Float[Tensor, "*#batch 3"] | None = None,
    locus: Float[Tensor, "*#batch 3"] | None = None,
) -> MeanField:
    """The cube of 8 x 8 x 8 oscillators, with frequencies and starting phases drawn from `source`.

    A stimulus of amplitude u in the paper's units is a drive of u on the first input. Simulate 2 s before reading
    anything, as they do.

    Args:
        source: Draws frequencies and phases.
        batch_shape: How many cubes.
        side: Oscillators along an edge.
        electrode: Where it stands, in spacings from a corner; None is one oscillator beside the middle.
        locus: Its middle, likewise; None is the middle of the cube.

    Returns:
        Oscillators coupled by the cosine of their distance, in float64.
    """
    places = torch.cartesian_prod(*[torch.arange(side, dtype=torch.float64)] * 3)
    middle = places.new_tensor([side // 2] * 3)
    locus = middle if locus is None else locus
    electrode = middle - places.new_tensor([0.0, 1.0, 0.0]) if electrode is None else electrode
    shape = (*batch_shape, side**3)
    natural_hz = _everywhere_hz(torch.rand(shape, generator=source, dtype=torch.float64))
    low, high = LOCUS_HZ
    locus_hz = low + (high - low) * torch.rand(shape, generator=source, dtype=torch.float64)
    inside = _spacings(places, locus) <= LOCUS_RADIUS
    mean, deviation = START_RAD
    circuit = Kuramoto(
        torch.where(inside, locus_hz, natural_hz) * RAD_PER_UNIT_PER_HZ * UNITS_PER_S,
        conductance=(1 - CONDUCTANCE_FALL * _spacings(places, electrode)).clamp_min(0),
        response_rad=UNITS_PER_S,
        start_rad=mean + deviation * torch.randn(shape, generator=source, dtype=torch.float64),
    )
    distance = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist") * SPACING
    sending, receiving = factored(torch.cos(distance) / side**3)
    return MeanField(circuit, sending, receiving, gain=COUPLING_PER_UNIT * UNITS_PER_S, entry=sine_entry(circuit))


def _spacings(places: Tensor, place: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch oscillator"]:
    """How far every oscillator is from a place."""
    away: Tensor = (places - place.unsqueeze(-2)).norm(dim=-1)
    return away


def _everywhere_hz(share: Tensor) -> Tensor:
    """Frequencies outside the locus: where the cumulative density reaches each share."""
    at_hz, summed = _cumulative(share)
    right = torch.searchsorted(summed, share).clamp(1, len(summed) - 1)
    left = right - 1
    between = ((share - summed[left]) / (summed[right] - summed[left])).clamp(0, 1)
    return at_hz[left] + between * (at_hz[right] - at_hz[left])


def _cumulative(like: Tensor) -> tuple[Float[Tensor, " point"], Float[Tensor, " point"]]:
    """Frequencies up to the highest, and the share of oscillators below each."""
    nodes = like.new_tensor(_DENSITY_HZ)
    powers = torch.arange(_DEGREE + 1, device=like.device)

    def basis(at_hz: Tensor) -> Tensor:
        return (at_hz / nodes[-1]).unsqueeze(-1) ** powers

    fit = torch.linalg.lstsq(basis(nodes), like.new_tensor(_DENSITY).unsqueeze(-1)).solution
    at_hz = torch.linspace(0.0, HIGHEST_HZ, 1000, dtype=like.dtype, device=like.device)
    summed = (basis(at_hz) @ fit)[:, 0].clamp_min(0).cumsum(0)
    return at_hz, summed / summed[-1]
