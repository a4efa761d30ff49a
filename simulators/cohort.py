"""Virtual patients: the same circuits in other heads, other places, other days.

A patient is a number. It fixes the anatomy (regions and tracts made at run time, two sEEG
shafts near two of the regions), the circuit's parameters within published ranges, and so
the best place and dose, which differ between patients. All of it is simulated.

What to search for in each, with a train that fills the window (onset 0, as long as the
window): a train that begins or ends inside it adds slow waves of its own to the band.

jansen_rit_patient: `BandPower((8, 13), better="lower")`. Enough current at the right pair
silences the alpha of the focus. More makes quiet neighbours oscillate, other pairs do not
reach it, trains near 10 Hz entrain it, and fast ones are not followed; so the best place,
current and frequency lie inside the bounds.
linear_patient: `BandPower((8, 13), better="higher")`. The right frequency at the right pair
rings. More current always rings more, up to saturation; price it with `Charge`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.montage import Contact, Montage, monopolar
from stimopt.tensors import generator, stream_seed

from .connectome import Connectome, ball_connectome
from .drive import point_source_drive
from .jansen_rit import JansenRit
from .linear import LinearOscillator, exact_step
from .network import Network
from .sensing import distance_sensing
from .twin import Twin

PITCH_MM = 3.5  # centre to centre on common sEEG electrodes (2 mm contacts, 1.5 mm between)
AREA_CM2 = 0.05  # 0.8 mm x 2 mm cylinder
SENSOR_NOISE_UV = 5.0  # standard deviation per sample, as of a clinical amplifier with its leads


def jansen_rit_patient(
    *,
    patient: int = 0,
    regions: int = 16,
    contacts: int = 12,
    window_s: float = 0.5,
    noise: float = 1.83,
    drift: float = 6.0,
    dt_s: float = 1e-3,
    rate_hz: float = 500.0,
) -> Twin:
    """A virtual patient of Jansen-Rit columns with an alpha focus near the first shaft.

    The focus and its strongest neighbour receive afferents in the alpha range (120 to 200 /s, between the Hopf points
    of 89.8 and 315.7 /s), the others rest just below it. Time constants and synaptic sizes are scaled together by 0.9
    to 1.1, which moves the rhythm between about 9.5 and 12 Hz and leaves the fixed points where they are.

    Args:
        patient: Which patient; any whole number.
        regions: How many regions.
        contacts: How many contacts, half on each shaft.
        window_s: Length of a window.
        noise: White noise on the afferents of every region, 1/s averaged over one second; as large as the paper's.
        drift: Standard deviation of the slow excitability over a session, 1/s.
        dt_s: Integration step, at most 2 ms.
        rate_hz: Samples per second of the recorded signal.

    Raises:
        ConfigError: If there are fewer than 4 contacts or regions.
    """
    source = generator(patient, "jansen-rit", "parameters")
    connectome, montage, focus = _anatomy(patient, regions, contacts)
    strongest = int(connectome.weights[focus].argmax())
    afferents_hz = _uniform(source, 40.0, 75.0, regions)
    afferents_hz[[focus, strongest]] = _uniform(source, 120.0, 200.0, 2)
    pace = float(_uniform(source, 0.9, 1.1, 1))
    circuit = JansenRit(
        afferents_hz,
        noise_hz=noise,
        excitation_mv=3.25 * pace,
        inhibition_mv=22.0 * pace,
        excitation_per_s=100.0 * pace,
        inhibition_per_s=50.0 * pace,
    )
    return Twin(
        circuit=Network(circuit, connectome.received, gain=float(_uniform(source, 5.0, 10.0, 1))),
        drive=point_source_drive(montage, connectome.centre_mm, follow_hz=float(_uniform(source, 45.0, 90.0, 1))),
        sensing=distance_sensing(montage, connectome.centre_mm, noise_uv=SENSOR_NOISE_UV),
        montage=montage,
        window_s=window_s,
        dt_s=dt_s,
        rate_hz=rate_hz,
        drift=drift,
    )


def linear_patient(
    *,
    patient: int = 0,
    regions: int = 16,
    contacts: int = 12,
    window_s: float = 0.5,
    noise: float = 200.0,
    drift: float = 6.0,
) -> Twin:
    """A virtual patient of damped linear oscillators at 7 to 14 Hz, integrated exactly.

    Args:
        patient: Which patient; any whole number.
        regions: How many regions.
        contacts: How many contacts, half on each shaft.
        window_s: Length of a window.
        noise: Random force on every region, mV/s per square root of a second.
        drift: Standard deviation of a slow constant force over a session, in drive units (1/s).

    Raises:
        ConfigError: If there are fewer than 4 contacts or regions.
    """
    source = generator(patient, "linear", "parameters")
    connectome, montage, _ = _anatomy(patient, regions, contacts)
    circuit = LinearOscillator(
        natural_per_s=2 * math.pi * _uniform(source, 7.0, 14.0, regions),
        damping_per_s=_uniform(source, 4.0, 10.0, regions),
        drive_gain=12.0,
        noise_gain=noise,
    )
    network = Network(circuit, connectome.received, gain=float(_uniform(source, 4.0, 8.0, 1)))
    dt_s = 1e-3
    return Twin(
        circuit=network,
        drive=point_source_drive(montage, connectome.centre_mm, follow_hz=float(_uniform(source, 45.0, 90.0, 1))),
        sensing=distance_sensing(montage, connectome.centre_mm, noise_uv=SENSOR_NOISE_UV),
        montage=montage,
        window_s=window_s,
        dt_s=dt_s,
        scheme=exact_step(network, dt_s),
        drift=drift,
    )


def two_shafts(
    targets_mm: Float[Tensor, "2 3"], contacts: int, source: torch.Generator, *, miss_mm: float = 2.0
) -> Montage:
    """Two sEEG electrodes, A and B, each passing `miss_mm` beside its target, monopolar.

    Directions are random and nearly sideways, as electrodes are implanted; the target lies beside any contact but the
    first and the last.

    Raises:
        ConfigError: If there are fewer than 4 contacts.
    """
    if contacts < 4:
        raise ConfigError(f"contacts is {contacts}; two shafts need at least 4, two on each.")
    made: list[Contact] = []
    for shaft, target, count in zip("AB", targets_mm, (contacts - contacts // 2, contacts // 2), strict=True):
        along = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64) + 0.4 * _normal(source, 3)
        along = along / along.norm()
        beside = torch.linalg.cross(along, _normal(source, 3))
        beside = beside / beside.norm()
        nearest = 1 + (count - 3) * torch.rand((), generator=source, dtype=torch.float64)
        for i in range(count):
            place = target + miss_mm * beside + (i - nearest) * PITCH_MM * along
            made.append(Contact(f"{shaft}{i + 1}", tuple(place.tolist()), AREA_CM2, "depth", shaft))
    return monopolar(made, frame="virtual")


def _anatomy(patient: int, regions: int, contacts: int) -> tuple[Connectome, Montage, int]:
    """Regions and tracts, electrodes, and the focus: the innermost region, which one of the shafts aims at."""
    if regions < 4:
        raise ConfigError(f"regions is {regions}; a virtual patient needs at least 4.")
    connectome = ball_connectome(regions, stream_seed(patient, "anatomy"))
    source = generator(patient, "electrodes")
    order = connectome.centre_mm.norm(dim=-1).argsort()
    focus, other = int(order[0]), int(order[1 + int(torch.randint(regions // 2, (), generator=source))])
    first_hits = float(torch.rand((), generator=source)) < 0.5
    targets = [focus, other] if first_hits else [other, focus]
    return connectome, two_shafts(connectome.centre_mm[targets], contacts, source), focus


def _uniform(source: torch.Generator, low: float, high: float, count: int) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=source, dtype=torch.float64)


def _normal(source: torch.Generator, count: int) -> Tensor:
    return torch.randn(count, generator=source, dtype=torch.float64)
