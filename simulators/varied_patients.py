"""Patients of a corpus who are unlike their own kind: another pace, another recruitment, another way in.

Circuits agree on more than brains do: all of one family take a pulse in the same way and answer within the same time.
A model that learns from them alone is sure of what it should read off a patient's own trials. So here a patient of a
family is changed in what no circuit decides: how fast each region is, which axons a field recruits and how fast they
follow, whether pulses count one by one or as the mean rate of their train, which population they reach and with which
sign, how strong tracts, noise and potentials are. All bounds are chosen, wider than what was published of any of them.
All of it is simulated.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from stimopt.tensors import generator

from .corpus_patients import (
    RATE_HZ,
    cohort_corpus_patient,
    hopf_corpus_patient,
    jansen_rit_corpus_patient,
    kuramoto_corpus_patient,
    linear_corpus_patient,
    wendling_corpus_patient,
)
from .drive import PointSourceDrive, train_shares
from .dynamics import Dynamics
from .hopf import StuartLandau
from .jansen_rit import JansenRit
from .kuramoto import Kuramoto
from .linear import LinearOscillator, exact_step
from .network import Network
from .population import drawn
from .twin import Twin
from .wendling import Wendling

FAST_HZ = 500.0
PACE, REGION_SPREAD = (0.4, 1.6), 0.15  # of a patient, and the spread of the logarithm between regions
SPIKES, HALF_MV, FOLLOW_HZ = (0.5, 1.8), (15.0, 60.0), (25.0, 150.0)  # the first beside the family's own number
CHRONAXIE_US, ANODIC_GAIN = (120.0, 450.0), (0.1, 0.8)
TRACTS, NOISE, SCALE, DAMPING = (0.5, 1.4), (0.5, 1.6), (0.4, 2.5), (0.5, 8.0)
EVEN_SHARE, REVERSED_SHARE, OTHER_SHARE = 0.5, 0.3, 0.3  # trains as a mean rate; less in place of more; another input
_POLARISING = 0.004  # mV for each 1/s of recruited firing: a train of 50 Hz moves a membrane by some mV

# What a circuit's speed goes with, by the power in which it does
_PACES: Mapping[type[Dynamics], Mapping[str, float]] = {
    JansenRit: {"excitation_mv": 1, "inhibition_mv": 1, "excitation_per_s": 1, "inhibition_per_s": 1},
    Wendling: {
        "excitation_mv": 1, "slow_inhibition_mv": 1, "fast_inhibition_mv": 1, "excitation_per_s": 1,
        "slow_inhibition_per_s": 1, "fast_inhibition_per_s": 1,
    },
    StuartLandau: {"unit_s": -1},
    Kuramoto: {"natural_per_s": 1},
    LinearOscillator: {"natural_per_s": 1, "damping_per_s": 1, "drive_gain": 2},
}  # fmt: skip
_NOISES: Mapping[type[Dynamics], str] = {
    JansenRit: "noise_hz", Wendling: "noise_hz", StuartLandau: "noise_size", Kuramoto: "noise_rad",
    LinearOscillator: "noise_gain",
}  # fmt: skip
_OTHER_ENTRY: Mapping[type[Dynamics], Mapping[str, float]] = {
    JansenRit: {"pyramidal_mv": _POLARISING},
    Wendling: {"slow_interneurons_mv": _POLARISING},
    StuartLandau: {"y": 0.005},
}
_KINDS: tuple[tuple[Callable[..., Twin], float], ...] = (
    (jansen_rit_corpus_patient, 0.2),
    (cohort_corpus_patient, 0.15),
    (wendling_corpus_patient, 0.2),
    (hopf_corpus_patient, 0.15),
    (linear_corpus_patient, 0.2),
    (kuramoto_corpus_patient, 0.1),
)


def varied_corpus_patient(*, patient: int = 0, connectomes: str | None = None, rate_hz: float = RATE_HZ) -> Twin:
    """A Jansen-Rit, Wendling, Hopf, Kuramoto or linear patient unlike its kind; the number chooses the kind, too.

    Args:
        patient: Any whole number.
        connectomes: As in `cohort_corpus_patient`.
        rate_hz: Samples per second.

    Raises:
        DataError: If a file there is no connectome.
    """
    source = generator(patient, "varied")
    shares = torch.tensor([share for _, share in _KINDS])
    make = _KINDS[int(torch.multinomial(shares, 1, generator=source))][0]
    own = {"connectomes": connectomes} if make is cohort_corpus_patient else {}
    return varied(make(patient=patient, **own), source, rate_hz)


def varied_fast_corpus_patient(*, patient: int = 0, connectomes: str | None = None) -> Twin:
    """A `varied_corpus_patient` read at 500 Hz, so that a model learns that forecasts do not hang on the rate.

    Args:
        patient: Any whole number.
        connectomes: As in `cohort_corpus_patient`.

    Raises:
        DataError: If a file there is no connectome.
    """
    return varied_corpus_patient(patient=patient, connectomes=connectomes, rate_hz=FAST_HZ)


def varied(twin: Twin, source: torch.Generator, rate_hz: float = RATE_HZ) -> Twin:
    """The same head with another circuit's pace, another recruitment, entry, noise and scale.

    Args:
        twin: Of a Jansen-Rit, Wendling, Hopf, Kuramoto or linear network, without delays.
        source: Draws what it is like.
        rate_hz: Samples per second.
    """
    like, twin = twin.circuit.rest, twin.to(torch.zeros((), dtype=torch.float64))
    network = twin.circuit
    assert isinstance(network, Network)
    pace = _paces(twin.regions, source)
    circuit = _with_damping(_paced(network.circuit, pace), source)
    noise = _NOISES[type(circuit)]
    circuit = _with(circuit, {noise: getattr(circuit, noise) * _log_drawn(NOISE, source)})
    gain = network.gain * _log_drawn(TRACTS, source)
    network = replace(network, circuit=circuit, gain=gain * float(pace.mean()) if _in_rates(circuit) else gain)
    even = _chance(EVEN_SHARE, source)
    dt_s = twin.dt_s / 2 if float(pace.max()) > 1 else twin.dt_s
    dt_s = 1 / (rate_hz * math.ceil(1 / (rate_hz * dt_s) - 1e-9))  # a whole number of steps a sample
    scheme = exact_step(network, dt_s) if isinstance(circuit, LinearOscillator) else twin.scheme
    scale = _log_drawn(SCALE, source) * (-1.0 if _chance(0.5, source) else 1.0)
    return replace(
        twin,
        circuit=network,
        drive=_recruiting(twin.drive, even, source),
        entry=_entering(twin, circuit, even, source),
        sensing=replace(twin.sensing, uv_per_mv=scale * twin.sensing.uv_per_mv),
        rate_hz=rate_hz,
        dt_s=dt_s,
        scheme=scheme,
    ).to(like)


def _paces(regions: int, source: torch.Generator) -> Tensor:
    """How fast each region is beside its kind."""
    scatter = (REGION_SPREAD * torch.randn(regions, generator=source, dtype=torch.float64)).exp()
    return (_log_drawn(PACE, source) * scatter).clamp(*PACE)


def _paced(circuit: Dynamics, pace: Tensor) -> Dynamics:
    fast = {name: getattr(circuit, name) * pace**power for name, power in _PACES[type(circuit)].items()}
    return _with(circuit, fast)


def _with(circuit: Dynamics, values: Mapping[str, Any]) -> Dynamics:
    changed: Dynamics = replace(cast(Any, circuit), **values)
    return changed


def _with_damping(circuit: Dynamics, source: torch.Generator) -> Dynamics:
    """Linear regions from ringing to slow; what is damped more is driven more, or it would hardly answer."""
    if not isinstance(circuit, LinearOscillator):
        return circuit
    more = _log_drawn(DAMPING, source)
    stronger = max(1.0, math.sqrt(more))
    return replace(
        circuit, damping_per_s=more * circuit.damping_per_s, drive_gain=stronger * circuit.drive_gain,
        noise_gain=stronger * circuit.noise_gain,
    )  # fmt: skip


def _in_rates(circuit: Dynamics) -> bool:
    """Whether what tracts bring is a rate of change, so that a slower circuit would be ruled by them."""
    return isinstance(circuit, Kuramoto)


def _recruiting(drive: PointSourceDrive, even: bool, source: torch.Generator) -> PointSourceDrive:
    return replace(
        drive,
        spikes=drive.spikes * _log_drawn(SPIKES, source),
        half_mv=_log_drawn(HALF_MV, source),
        follow_hz=_log_drawn(FOLLOW_HZ, source),
        chronaxie_us=_log_drawn(CHRONAXIE_US, source),
        anodic_gain=_log_drawn(ANODIC_GAIN, source),
        shares=train_shares if even else drive.shares,
    )


def _entering(twin: Twin, circuit: Dynamics, even: bool, source: torch.Generator) -> dict[str, Any]:
    """Where firing goes: another input only for trains as a mean rate, since a single pulse would saturate it."""
    usual: Mapping[str, Any] = {circuit.inputs[0]: 1.0} if twin.entry is None else twin.entry
    other = _chance(OTHER_SHARE, source) and even
    entry = _OTHER_ENTRY.get(type(circuit), usual) if other else usual
    sign = -1.0 if _chance(REVERSED_SHARE, source) else 1.0
    return {name: sign * weight for name, weight in entry.items()}


def _log_drawn(bounds: tuple[float, float], source: torch.Generator) -> float:
    low, high = bounds
    return float(low * (high / low) ** drawn((0.0, 1.0), source))


def _chance(share: float, source: torch.Generator) -> bool:
    return drawn((0.0, 1.0), source) < share
