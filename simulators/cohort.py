"""Virtual patients: the same circuits in other heads, other places, other days.

Two ready ones are a number each: it fixes the anatomy (regions and tracts made at run time, two sEEG
shafts near two of the regions), the circuit's parameters within published ranges, and so
the best place and dose, which differ between patients. `cohort` draws patients from a whole population,
with wiring, lesions, electrodes, delays, noise and side effects of their own, and keeps each as data. All of it is
simulated.

What to search for in the ready ones, with a train that fills the window (onset 0, as long as the
window): a train that begins or ends inside it adds slow waves of its own to the band.

jansen_rit_patient: `BandPower((8, 13), better="lower")`. Enough current at the right pair
silences the alpha of the focus. More makes quiet neighbours oscillate, other pairs do not
reach it, trains near 10 Hz entrain it, and fast ones are not followed; so the best place,
current and frequency lie inside the bounds.
linear_patient: `BandPower((8, 13), better="higher")`. The right frequency at the right pair
rings. More current always rings more, up to saturation; price it with `Charge`.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.montage import Channel, Montage
from stimopt.tensors import generator, stream_seed

from .connectome import Connectome
from .implanted import ball_anatomy, twin_in_head
from .implants import implant
from .jansen_rit import JansenRit
from .linear import LinearOscillator, exact_step
from .network import Network
from .patient import BALL, Anatomy, VirtualPatient
from .population import Interval, Population, drawn, drawn_count, drawn_parameters
from .single_pulses import single_pulse_schedule
from .twin import Twin


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
    connectome, montage, focus = _checked_anatomy(patient, regions, contacts)
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
    return twin_in_head(
        Network(circuit, connectome.received, gain=float(_uniform(source, 5.0, 10.0, 1))),
        connectome.centre_mm,
        montage,
        follow_hz=float(_uniform(source, 45.0, 90.0, 1)),
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
    connectome, montage, _ = _checked_anatomy(patient, regions, contacts)
    circuit = LinearOscillator(
        natural_per_s=2 * math.pi * _uniform(source, 7.0, 14.0, regions),
        damping_per_s=_uniform(source, 4.0, 10.0, regions),
        drive_gain=12.0,
        noise_gain=noise,
    )
    network = Network(circuit, connectome.received, gain=float(_uniform(source, 4.0, 8.0, 1)))
    dt_s = 1e-3
    return twin_in_head(
        network,
        connectome.centre_mm,
        montage,
        follow_hz=float(_uniform(source, 45.0, 90.0, 1)),
        window_s=window_s,
        dt_s=dt_s,
        scheme=exact_step(network, dt_s),
        drift=drift,
    )


def cohort(
    n: int, seed: int, *, group: Connectome | None = None, regions: int = 16, population: Population | None = None
) -> tuple[VirtualPatient, ...]:
    """Patients drawn from a population; patient i is the same in a cohort of any size.

    Args:
        n: How many.
        seed: Of the cohort.
        group: A connectome with places, such as `read_connectome` gives, that every head varies; without one, every
            patient has a ball of tissue of its own, made at run time.
        regions: How many regions a ball has.
        population: What is drawn from; Jansen-Rit patients by default.

    Raises:
        ConfigError: If n is negative, or lesions would leave fewer than 4 regions.
        MontageError: If the group connectome has no places.
    """
    if n < 0:
        raise ConfigError(f"n is {n}; ask for 0 patients or more.")
    kind = Population() if population is None else population
    whole = regions if group is None else len(group.names)
    if whole - kind.lost_regions[1] < 4:
        raise ConfigError(
            f"{whole} regions, of which a lesion may remove {kind.lost_regions[1]}, leave fewer than 4; "
            "give more regions or spare some."
        )
    return tuple(_patient(number, seed, group, whole, kind) for number in range(n))


def _patient(number: int, seed: int, group: Connectome | None, regions: int, kind: Population) -> VirtualPatient:
    def source(part: str) -> torch.Generator:
        return generator(seed, "patient", number, part)

    anatomy = _drawn_anatomy(stream_seed(seed, "patient", number, "head"), group, regions, kind, source("lesion"))
    connectome = anatomy.connectome(group)
    foci, targets = _aims(connectome, drawn_count(kind.shafts, source("shafts")), source("targets"))
    counts = {name: drawn_count(getattr(kind, name), source(name)) for name in ("strips", "leads")}
    montage = _with_dropped(implant(connectome.centre_mm, targets, source("implant"), **counts), kind, source("drop"))
    tract, day = source("tracts"), source("day")
    median_ma, log_spread = kind.side_effect_ma
    scatter = torch.randn(len(montage.contacts), generator=source("side effects"), dtype=torch.float64)
    pairs = len(montage.neighbour_pairs())
    return VirtualPatient(
        name=f"{kind.circuit.__name__}-{seed}-{number}",
        anatomy=Anatomy(**{**vars(anatomy), "fingerprint": connectome.fingerprint}),
        montage=montage,
        circuit=kind.circuit,
        parameters={
            **kind.constants,
            **drawn_parameters(kind.ranges, len(connectome.names), foci, source("parameters")),
        },
        gain=drawn(kind.gain, tract),
        speed_m_s=None if kind.speed_m_s is None else drawn(kind.speed_m_s, tract),
        twin_options={
            **{name: drawn(getattr(kind, name), day) for name in _OF_THE_DAY},
            **{name: getattr(kind, name) for name in ("window_s", "rate_hz", "dt_s")},
            **{name: drawn(interval, source(name)) for name, interval in kind.more.items()},
            **({} if kind.entry is None else {"entry": dict(kind.entry)}),
        },
        tract_entry=kind.tract_entry,
        diffusive=kind.diffusive,
        amplifier=_drawn_numbers(kind.amplifier, source("amplifier")),
        device=_drawn_numbers(kind.device, source("device")),
        vigilance=_drawn_numbers(kind.vigilance, day),
        side_effect_ma=tuple(median_ma * math.exp(log_spread * z) for z in scatter.tolist()),
        schedule=single_pulse_schedule(
            montage, source("schedule"), protocol=kind.protocol, sites=min(kind.sites, pairs)
        ),
        group=group,
    )


def _drawn_numbers(of: Mapping[str, Interval] | None, source: torch.Generator) -> dict[str, float] | None:
    return None if of is None else {name: drawn(interval, source) for name, interval in of.items()}


_OF_THE_DAY = ("follow_hz", "uv_per_mv", "noise_uv", "drift", "drift_windows")


def _drawn_anatomy(
    seed: int, group: Connectome | None, regions: int, kind: Population, source: torch.Generator
) -> Anatomy:
    """Wiring, and a lesion of some of the tracts and regions."""
    whole = Anatomy(
        BALL if group is None else group.fingerprint, regions, seed, kind.weight_log_spread, kind.length_log_spread
    )
    weights = whole.connectome(group).weights
    tracts = (weights + weights.mT).triu(1).nonzero().tolist()
    lost = round(drawn(kind.lost_tract_share, source) * len(tracts))
    cut = sorted(torch.randperm(len(tracts), generator=source)[:lost].tolist())
    gone = torch.randperm(regions, generator=source)[: drawn_count(kind.lost_regions, source)]
    lesion = {
        "lost_tracts": tuple((i, j) for i, j in (tracts[k] for k in cut)),
        "lost_regions": tuple(sorted(gone.tolist())),
    }
    return Anatomy(**{**vars(whole), **lesion})


def _aims(connectome: Connectome, shafts: int, source: torch.Generator) -> tuple[list[int], list[int]]:
    """The focus with the region that sends most to it, and what the shafts aim at, the focus first."""
    focus = int(torch.randint(len(connectome.names), (), generator=source))
    order = torch.randperm(len(connectome.names), generator=source).tolist()
    others = [region for region in order if region != focus]
    return [focus, int(connectome.weights[focus].argmax())], [focus, *others][:shafts]


def _with_dropped(montage: Montage, kind: Population, source: torch.Generator) -> Montage:
    """Without the channels that are not recorded; one at least stays. Current still enters through their contacts."""
    lost = torch.rand(len(montage.channels), generator=source, dtype=torch.float64) < kind.dropped_share
    kept: list[Channel] = [c for c, gone in zip(montage.channels, lost.tolist(), strict=True) if not gone]
    return Montage(montage.contacts, tuple(kept or montage.channels[:1]), montage.frame)


def _checked_anatomy(patient: int, regions: int, contacts: int) -> tuple[Connectome, Montage, int]:
    if regions < 4:
        raise ConfigError(f"regions is {regions}; a virtual patient needs at least 4.")
    return ball_anatomy(patient, regions, contacts)


def _uniform(source: torch.Generator, low: float, high: float, count: int) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=source, dtype=torch.float64)
