"""Virtual patients of cortex that hums: Wilson-Cowan, Hopf, Montbrio-Pazo-Roxin and Kuramoto; a number fixes each.

Each is the circuit in a ball of tissue with two sEEG shafts. A pulse recruits axons, at most 18 spikes a phase, and
every circuit takes them in its own unit: the `entry` of each is chosen so that a pulse of 2 mA near a contact moves
it about as much as its own rhythm does, and the largest that envelopes allow for hours does not break it.
Potentials are scaled to the tens to hundreds of uV that sEEG reads. Patients with seizures are in
`seizure_patients`, those with deep electrodes in `nuclei_patients`. All of it is simulated.
"""

import math
from dataclasses import replace

import torch

from .drive import train_shares
from .hopf import StuartLandau
from .kuramoto import Kuramoto, sine_entry
from .montbrio import MontbrioPazoRoxin
from .population import Range
from .tissue import drawn_circuit, in_tissue
from .twin import Twin
from .wilson_cowan import WilsonCowan

_TVB = "domains of that model in The Virtual Brain"
_TURN = 2 * math.pi
_KUZMINA = "0 to 60 Hz: Kuzmina et al. 2025, arXiv 2505.09624"
# Wilson and Cowan 1972, figure 11: the cycle; P is 1.25 there
_CYCLE = {
    "weight_e_to_e": 16.0, "weight_i_to_e": 12.0, "weight_e_to_i": 15.0, "weight_i_to_i": 3.0,
    "slope_e": 1.3, "midpoint_e": 4.0, "slope_i": 2.0, "midpoint_i": 3.7,
}  # fmt: skip

WILSON_COWAN_RANGES = (
    Range("input_e", 0.3, 0.6, "region", (0.0, 20.0), _TVB),
    Range("input_e", 1.1, 1.4, "focus", (0.0, 20.0), _TVB),
    Range("tau_e_s", 0.012, 0.016, "patient", (0.0, 0.15), _TVB),
    Range("tau_i_s", 0.012, 0.016, "patient", (0.0, 0.15), _TVB),
)
HOPF_RANGES = (
    Range("omega", 0.2 * math.pi * 8.0, 0.2 * math.pi * 12.0, "region", (0.05, 630.0), _TVB),
    Range("bifurcation", -1.0, -0.4, "region", (-10.0, 10.0), _TVB),
    Range("bifurcation", 0.5, 1.0, "focus", (-10.0, 10.0), _TVB),
)
MONTBRIO_RANGES = (
    Range("excitability", -5.4, -5.0, "region", (-10.0, 10.0), _TVB),
    Range("excitability", -4.6, -4.2, "focus", (-10.0, 10.0), _TVB),
    Range("weight", 14.5, 15.5, "patient", (-25.0, 25.0), _TVB),
    Range("spread", 0.9, 1.1, "patient", (0.0, 10.0), _TVB),
)
KURAMOTO_RANGES = (
    Range("natural_per_s", _TURN * 15.0, _TURN * 19.0, "region", (0.0, _TURN * 60.0), _KUZMINA),
    Range("natural_per_s", _TURN * 16.0, _TURN * 18.0, "focus", (0.0, _TURN * 60.0), _KUZMINA),
)


def wilson_cowan_patient(
    *,
    patient: int = 0,
    regions: int = 8,
    contacts: int = 12,
    window_s: float = 0.5,
    noise: float = 0.05,
    drift: float = 0.05,
    dt_s: float | None = None,
    rate_hz: float = 500.0,
    settle_s: float = 1.0,
) -> Twin:
    """Cortex whose focus walks the paper's cycle (figure 11) while the other regions rest below it.

    The unit of input is that of the paper's P, of which 1.25 makes the cycle: 1/s of recruited firing adds 0.01 to the
    excitatory and half as much to the inhibitory cells. Input is inside the response, which would saturate for as
    long as a pulse lasts and no longer count its charge; these populations are averages over longer times, so trains
    enter as their mean rate (`train_shares`).

    Args:
        patient: Which patient; any whole number.
        regions: How many regions.
        contacts: How many contacts, half on each shaft.
        window_s: Length of a window.
        noise: White noise on E and I, per square root of a second.
        drift: Standard deviation of the slow excitability, in units of P.
        dt_s: Integration step, at most a tenth of the shorter time constant.
        rate_hz: Samples per second.
        settle_s: Silent time before a session starts.

    Raises:
        ConfigError: If there is no region, fewer than 4 contacts, or times do not fit.
    """
    circuit = drawn_circuit(
        WilsonCowan,
        WILSON_COWAN_RANGES,
        patient,
        regions,
        contacts,
        **_CYCLE,
        noise_e=noise,
        noise_i=noise,
        scale_mv=20.0,
    )
    entry = {"excitatory": 0.01, "inhibitory": 0.005}
    drift = drift / entry["excitatory"]
    twin = in_tissue(
        circuit,
        patient,
        contacts,
        entry,
        gain=(0.3, 0.8),
        window_s=window_s,
        drift=drift,
        dt_s=dt_s,
        rate_hz=rate_hz,
        settle_s=settle_s,
    )
    return replace(twin, drive=replace(twin.drive, shares=train_shares))


def hopf_patient(
    *,
    patient: int = 0,
    regions: int = 8,
    contacts: int = 12,
    window_s: float = 0.5,
    noise: float = 0.1,
    drift: float = 0.0,
    dt_s: float | None = None,
    rate_hz: float = 500.0,
    settle_s: float = 1.0,
) -> Twin:
    """Cortex of Stuart-Landau oscillators at 8 to 12 Hz, the focus on its circle, the others ringing with noise.

    The unit of time is 0.1 s, so that rhythms come and go within tenths of a second. 18 spikes move x by 0.9, about
    the radius of the focus's circle: whether a pulse feeds or stops it depends on the phase at which it comes.

    Args:
        patient: As in `wilson_cowan_patient`, as all that is not named here.
        regions: How many regions.
        contacts: How many contacts.
        window_s: Length of a window.
        noise: White noise on x and y, per square root of 0.1 s.
        drift: Standard deviation of a slow constant push, in units of x per 0.1 s.
        dt_s: Integration step, at most a fifth of a radian.
        rate_hz: Samples per second.
        settle_s: Silent time before a session starts.

    Raises:
        ConfigError: If there is no region, fewer than 4 contacts, or times do not fit.
    """
    circuit = drawn_circuit(
        StuartLandau, HOPF_RANGES, patient, regions, contacts, noise_size=noise, unit_s=0.1, scale_mv=3.0
    )
    entry, both = {"x": 0.005}, torch.eye(2, dtype=torch.float64)
    drift = drift / entry["x"]
    return in_tissue(
        circuit, patient, contacts, entry, gain=(0.1, 0.4), tract_entry=both, diffusive=True,
        window_s=window_s, drift=drift, dt_s=dt_s, rate_hz=rate_hz, settle_s=settle_s,
    )  # fmt: skip


def montbrio_patient(
    *,
    patient: int = 0,
    regions: int = 6,
    contacts: int = 12,
    window_s: float = 0.5,
    noise: float = 1.0,
    drift: float = 0.1,
    dt_s: float | None = None,
    rate_hz: float = 500.0,
    settle_s: float = 0.3,
) -> Twin:
    """Cortex with a silent and an active state side by side, the focus nearer to the active one.

    The input is a current in the unit of the cells' excitability; time constants are 10 ms. 1/s of recruited firing
    adds 0.003 of it: 18 spikes kick the mean potential by 5.4, from the silent to the active state, where it rings.

    Args:
        patient: As in `wilson_cowan_patient`, as all that is not named here.
        regions: How many regions.
        contacts: How many contacts.
        window_s: Length of a window.
        noise: White noise on the mean potential, per square root of 10 ms.
        drift: Standard deviation of the slow excitability, in its own unit.
        dt_s: Integration step, at most 0.1 ms.
        rate_hz: Samples per second.
        settle_s: Silent time before a session starts.

    Raises:
        ConfigError: If there is no region, fewer than 4 contacts, or times do not fit.
    """
    circuit = drawn_circuit(
        MontbrioPazoRoxin, MONTBRIO_RANGES, patient, regions, contacts, noise_potential=noise, scale_mv=2.0
    )
    entry = {"current": 0.003}
    drift = drift / entry["current"]
    return in_tissue(
        circuit, patient, contacts, entry, gain=(0.5, 1.5), window_s=window_s, drift=drift, dt_s=dt_s,
        rate_hz=rate_hz, settle_s=settle_s,
    )  # fmt: skip


def kuramoto_patient(
    *,
    patient: int = 0,
    regions: int = 16,
    contacts: int = 12,
    window_s: float = 0.5,
    noise: float = 1.0,
    drift: float = 0.0,
    dt_s: float | None = None,
    rate_hz: float = 500.0,
    settle_s: float = 1.0,
) -> Twin:
    """Phase oscillators of 15 to 19 Hz that pull at each other along late tracts, with a focus at 16 to 18 Hz.

    1/s of recruited firing advances the phase at 0.05 Z(phase) rad/s with Z(phase) = 0.5 - sin(phase): 18 spikes move
    it by up to 1.35 rad, mostly towards its peak, as a stimulus that resets does (Tass 2003), and fast trains make it
    faster than those that they do not reach. A phase oscillator's amplitude never
    changes, so what falls is the power of phases that no longer agree; contacts hear oscillators up to 12 mm away.

    Args:
        patient: As in `wilson_cowan_patient`, as all that is not named here.
        regions: How many oscillators.
        contacts: How many contacts.
        window_s: Length of a window.
        noise: White noise on the phase, rad per square root of a second.
        drift: Standard deviation of a slow push, rad/s at the most sensitive phase.
        dt_s: Integration step, at most 2 ms and the shortest delay.
        rate_hz: Samples per second.
        settle_s: Silent time before a session starts.

    Raises:
        ConfigError: If there is no region, fewer than 4 contacts, or times do not fit.
    """
    circuit = drawn_circuit(
        Kuramoto, KURAMOTO_RANGES, patient, regions, contacts,
        response_rad=0.5, response_sines_rad=(-1.0,), noise_rad=noise, amplitude_mv=0.5,
    )  # fmt: skip
    assert isinstance(circuit, Kuramoto)
    entry = {"stimulus_per_s": 0.05}
    drift = drift / entry["stimulus_per_s"]
    return in_tissue(
        circuit, patient, contacts, entry, gain=(14.0, 20.0), tract_entry=sine_entry(circuit), reach_mm=12.0,
        window_s=window_s, drift=drift, dt_s=dt_s, rate_hz=rate_hz, settle_s=settle_s,
    )  # fmt: skip
