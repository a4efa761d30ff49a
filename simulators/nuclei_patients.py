"""Virtual patients with deep electrodes: leads in nuclei, a shaft in the thalamus.

Subthalamic and pallidal nuclei, a corticothalamic loop, an ensemble of relaxation oscillators, the basal
ganglia as spiking cells. Where cortex patients differ by a ball of tissue, these differ by how the electrode
passed its target, by the circuit's parameters and by what axons follow. Axons of deep nuclei follow faster trains
than those of grey matter do here (`FOLLOW_HZ`, chosen: therapeutic rates of about 130 Hz must reach the circuit).
Leads are read 1000 times a second: samples are points, and at 500 Hz the fourth harmonic of 130 Hz would be read as
20 Hz, in the middle of beta.
Potentials are scaled to the tens to hundreds of uV that leads and shafts read. All of it is simulated.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.montage import Montage, monopolar
from stimopt.tensors import generator

from .basal_ganglia import BasalGanglia, scattered_cells
from .corticothalamic import AWAKE, FieldPopulations, corticothalamic
from .dynamics import Dynamics
from .entry import Entry
from .implanted import twin_in_head
from .implants import head_around, lead, two_shafts
from .integrate import exponential_euler
from .population import drawn
from .relaxation_ensemble import RelaxationOscillator, relaxation_ensemble
from .stn_gpe import HEALTHY, PARKINSONIAN, stn_gpe
from .twin import Twin

FOLLOW_HZ = (120.0, 200.0)
# chosen, rounded: external pallidum to the side of, in front of and above the subthalamic nucleus
_STN_GPE_MM = ((0.0, 0.0, 0.0), (9.0, 8.0, 7.0))
# cortex (both populations in one place), reticular nucleus and relay cells: chosen
_LOOP_MM = ((30.0, 0.0, 25.0), (30.0, 0.0, 25.0), (10.0, 3.0, 0.0), (5.0, 0.0, 0.0))
_CLOUD_MM = 1.5  # standard deviation of the units of an ensemble around their middle; chosen


def stn_gpe_patient(
    *,
    patient: int = 0,
    window_s: float = 0.5,
    noise: float = 2.0,
    drift: float = 5.0,
    dt_s: float | None = None,
    rate_hz: float = 1000.0,
    settle_s: float = 0.5,
) -> Twin:
    """A parkinsonian subthalamic nucleus that beats in beta with the external pallidum, and a lead of four contacts.

    A pulse makes cells fire by itself, outside the curve F, as in the paper: 0.3 for each 1/s of recruited firing, so
    that 18 spikes lift the subthalamic rate by 900 /s for some 6 ms. Slow trains pace the loop; fast ones hold the
    pallidum where its curve is flat. Patients stand at 80 to 100 % of the way from healthy to parkinsonian weights.

    Args:
        patient: Which patient; any whole number.
        window_s: Length of a window.
        noise: White noise on the nuclei's input, 1/s averaged over one second; chosen, the paper has none.
        drift: Standard deviation of the slow change of firing over a session, 1/s.
        dt_s: Integration step, at most 0.5 ms; the largest that fits unless told.
        rate_hz: Samples per second; see the head of this file before lowering it.
        settle_s: Silent time before a session starts.

    Raises:
        ConfigError: If times do not fit.
    """
    source = generator(patient, "stn-gpe", "parameters")
    weights = HEALTHY.towards(PARKINSONIAN, _number(drawn((0.8, 1.0), source)))
    network = stn_gpe(weights, noise_hz=noise)
    return _beside_lead(
        network, _places(_STN_GPE_MM), patient, "stn-gpe", {"firing_hz": 0.3}, uv_per_mv=2.0,
        window_s=window_s, drift=drift / 0.3, dt_s=dt_s, rate_hz=rate_hz, settle_s=settle_s,
    )  # fmt: skip


def corticothalamic_patient(
    *,
    patient: int = 0,
    contacts: int = 12,
    window_s: float = 0.5,
    noise: float = 0.1,
    drift: float = 0.0,
    dt_s: float | None = None,
    rate_hz: float = 500.0,
    settle_s: float = 1.0,
) -> Twin:
    """A waking loop of cortex and thalamus, with one shaft in the cortex and one in the thalamus.

    A pulse reaches dendrites as firing times the strength of a synapse, 0.01 mV s for all populations: 18 spikes raise
    the potential by about 10 mV for some ms, from rest to near the threshold. Contacts hear the firing of the field,
    as scalp potentials are read from it; the inhibitory cells, at the same place, are not heard.

    Args:
        patient: As in `stn_gpe_patient`, as all that is not named here.
        contacts: How many contacts, half on each shaft.
        window_s: Length of a window.
        noise: White noise on the sensory input, 1/s averaged over one second.
        drift: Standard deviation of the slow input to all dendrites, mV.
        dt_s: Integration step, at most 1 ms.
        rate_hz: Samples per second.
        settle_s: Silent time before a session starts.

    Raises:
        ConfigError: If there are fewer than 4 contacts, or times do not fit.
    """
    source = generator(patient, "corticothalamic", "parameters")
    weights = replace(AWAKE, n_to_s=AWAKE.n_to_s * _number(drawn((0.9, 1.1), source)))
    network = corticothalamic(weights, noise_hz=noise, thalamus_s=drawn((0.04, 0.045), source))
    populations = network.circuit
    assert isinstance(populations, FieldPopulations)
    heard = replace(
        network, circuit=replace(populations, scale_mv=torch.tensor([1.0, 0.0, 0.1, 0.1], dtype=torch.float64))
    )
    places = _places(_LOOP_MM)
    montage = two_shafts(places[[0, 3]], contacts, generator(patient, "corticothalamic", "electrodes"))
    entry = {"synaptic_mv": 0.01}
    return twin_in_head(
        heard, places, montage, entry=entry, follow_hz=drawn(FOLLOW_HZ, source), window_s=window_s,
        drift=drift / entry["synaptic_mv"], dt_s=dt_s, rate_hz=rate_hz, settle_s=settle_s,
    )  # fmt: skip


def relaxation_patient(
    *,
    patient: int = 0,
    units: int = 64,
    window_s: float = 0.5,
    noise: float = 0.02,
    drift: float = 0.0,
    dt_s: float | None = None,
    rate_hz: float = 1000.0,
    settle_s: float = 1.5,
) -> Twin:
    """A nucleus of relaxation oscillators that swing together through their mean field, with a lead inside.

    A unit of time is 1.5 ms, which puts the rhythm near 20 Hz. 1/s of recruited firing adds 0.0001 to its rate:
    18 spikes kick x by 1.2, a third of its swing. A contact hears the sum of the units near it.

    Args:
        patient: As in `stn_gpe_patient`, as all that is not named here.
        units: How many oscillators; 1000 in the paper.
        window_s: Length of a window.
        noise: White noise on x, per square root of a unit of time.
        drift: Standard deviation of a slow push on x, per unit of time.
        dt_s: Integration step, at most 0.3 ms.
        rate_hz: Samples per second.
        settle_s: Silent time before a session starts.

    Raises:
        ConfigError: If there is no unit, or times do not fit.
    """
    if units < 1:
        raise ConfigError(f"units is {units}; an ensemble needs at least 1.")
    source = generator(patient, "relaxation", "parameters")
    ensemble = relaxation_ensemble(source, units=units, coupling=drawn((0.03, 0.04), source), unit_s=1.5e-3)
    oscillators = ensemble.circuit
    assert isinstance(oscillators, RelaxationOscillator)
    noisy = replace(ensemble, circuit=replace(oscillators, noise_x=noise))
    places = _CLOUD_MM * torch.randn(units, 3, generator=source, dtype=torch.float64)
    entry = {"x_per_unit": 1e-4}
    return _beside_lead(
        noisy, places, patient, "relaxation", entry, uv_per_mv=100.0 / units, window_s=window_s,
        drift=drift / entry["x_per_unit"], dt_s=dt_s, rate_hz=rate_hz, settle_s=settle_s,
    )  # fmt: skip


def basal_ganglia_patient(
    *,
    patient: int = 0,
    window_s: float = 0.2,
    drift: float = 0.0,
    dt_s: float | None = None,
    rate_hz: float = 1000.0,
    settle_s: float = 0.2,
) -> Twin:
    """Basal ganglia and thalamus of forty spiking cells, parkinsonian, with a lead in the subthalamic nucleus. Slow.

    A pulse is a current into the subthalamic cells while a cathodic phase lasts: 0.005 uA/cm2 for each 1/s, which for
    a phase that recruits all axons carries the 90 uA ms/cm2 of the paper's pulses (300 for 0.3 ms). Cells
    follow or fail by their own equations, so trains of any rate reach them whole. The network has no noise; patients
    differ in the currents of their pallidal cells. Responses of cells that spike change abruptly with the stimulus, so
    gradients through long windows say little.

    Args:
        patient: As in `stn_gpe_patient`, as all that is not named here.
        window_s: Length of a window; 0.2 s are 4000 steps.
        drift: Standard deviation of a slow current into the subthalamic cells, uA/cm2.
        dt_s: Integration step, at most 0.05 ms, by exponential Euler.
        rate_hz: Samples per second.
        settle_s: Silent time before a session starts.

    Raises:
        ConfigError: If times do not fit.
    """
    source = generator(patient, "basal-ganglia", "parameters")
    circuit, _ = scattered_cells(BasalGanglia(torch.ones(1, dtype=torch.float64)), source)
    return _beside_lead(
        circuit, _places(_STN_GPE_MM[:1]), patient, "basal-ganglia", {"stn_ua_cm2": Entry(cathodic_hz=0.005)},
        follow_hz=(1e6, 1e6), uv_per_mv=10.0, scheme=exponential_euler(circuit.decay_per_s),
        window_s=window_s, drift=drift, dt_s=dt_s, rate_hz=rate_hz, settle_s=settle_s,
    )  # fmt: skip


def _beside_lead(
    circuit: Dynamics,
    places_mm: Tensor,
    patient: int,
    name: str,
    entry: Mapping[str, float | Entry],
    *,
    follow_hz: tuple[float, float] = FOLLOW_HZ,
    **options: Any,
) -> Twin:
    """A twin of nuclei, with a lead of four contacts aimed at the first, or at the middle of many units."""
    source = generator(patient, name, "electrodes")
    return twin_in_head(
        circuit, places_mm, _lead(places_mm, source), entry=entry, follow_hz=drawn(follow_hz, source), **options
    )


def _lead(places_mm: Tensor, source: torch.Generator) -> Montage:
    target = places_mm[0] if len(places_mm) <= len(_STN_GPE_MM) else places_mm.mean(0)
    return monopolar(lead("L", target, head_around(places_mm), source), frame="virtual")


def _places(rows: tuple[tuple[float, float, float], ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
