"""Virtual patients with epilepsy: a hippocampus that spikes (Wendling) and tissue that seizes (Epileptor).

Made as those of `circuit_patients`: a ball of tissue, two sEEG shafts, a focus near one of them. All of it is
simulated.
"""

from .epileptor import Epileptor, coupling_entry
from .population import Range
from .tissue import drawn_circuit, in_tissue
from .twin import Twin
from .wendling import Wendling

_TVB = "domains of that model in The Virtual Brain"
_SIX_TYPES = "gains of the six types of activity in Wendling et al. 2002, Eur J Neurosci 15:1499-1508"

WENDLING_RANGES = (
    Range("afferents_hz", 85.0, 95.0, "region", (60.0, 120.0), "p of 90 +- 30 /s, Wendling et al. 2002"),
    Range("slow_inhibition_mv", 44.0, 50.0, "region", (5.0, 50.0), _SIX_TYPES),
    Range("slow_inhibition_mv", 20.0, 25.0, "focus", (5.0, 50.0), _SIX_TYPES),
    Range("fast_inhibition_mv", 14.0, 16.0, "patient", (0.0, 25.0), _SIX_TYPES),
)
EPILEPTOR_RANGES = (
    Range("excitability", -2.5, -2.2, "region", (-3.0, -1.0), _TVB),
    Range("excitability", -1.8, -1.5, "focus", (-3.0, -1.0), _TVB),
    Range("current_1", 3.0, 3.2, "patient", (1.5, 5.0), _TVB),
)


def wendling_patient(
    *,
    patient: int = 0,
    regions: int = 8,
    contacts: int = 12,
    window_s: float = 0.5,
    noise: float = 30.0 / 512**0.5,
    drift: float = 3.0,
    dt_s: float | None = None,
    rate_hz: float = 500.0,
    settle_s: float = 1.0,
) -> Twin:
    """A hippocampus whose focus spikes without end (type 3) for want of slow inhibition, among tissue that does not.

    A pulse brings spikes to the pyramidal cells, two for each that is recruited. Single pulses and slow trains make
    any column spike; above about 700 /s the focus stays quiet, while its neighbours begin to swing from 150 /s on.

    Args:
        patient: Which patient; any whole number.
        regions: How many regions.
        contacts: How many contacts, half on each shaft.
        window_s: Length of a window.
        noise: White noise on the afferents, 1/s averaged over one second; the paper's.
        drift: Standard deviation of the slow excitability over a session, 1/s of afferent firing.
        dt_s: Integration step, at most 2 ms and the shortest delay; the largest that fits unless told.
        rate_hz: Samples per second.
        settle_s: Silent time before a session starts.

    Raises:
        ConfigError: If there is no region, fewer than 4 contacts, or times do not fit.
    """
    circuit = drawn_circuit(Wendling, WENDLING_RANGES, patient, regions, contacts, noise_hz=noise)
    entry = {"afferents_hz": 2.0}
    drift = drift / entry["afferents_hz"]
    return in_tissue(
        circuit, patient, contacts, entry, gain=(5.0, 10.0), uv_per_mv=50.0, window_s=window_s, drift=drift, dt_s=dt_s,
        rate_hz=rate_hz, settle_s=settle_s,
    )  # fmt: skip


def epileptor_patient(
    *,
    patient: int = 0,
    regions: int = 8,
    contacts: int = 12,
    window_s: float = 0.5,
    noise: float = 0.02,
    drift: float = 0.0,
    dt_s: float | None = None,
    rate_hz: float = 500.0,
    settle_s: float = 1.0,
) -> Twin:
    """An epileptogenic zone of two regions that seize again and again, among tissue that they can recruit.

    A unit of time is 20 ms, so that seizures of about 1000 units last some 20 s. 1/s of recruited firing adds 0.001 to
    the current of the fast discharges: 18 spikes kick x1 by 0.9, about half of the way over the border of a seizure.
    More would not be safe to simulate: permittivity grows under a lasting current, and beyond some size nothing in the
    equations holds x1.

    Args:
        patient: As in `wendling_patient`, as all that is not named here.
        regions: How many regions.
        contacts: How many contacts.
        window_s: Length of a window.
        noise: White noise on x2 and y2, per square root of 20 ms; a fifth of it on x1 and y1.
        drift: Standard deviation of a slow change of the current into x1.
        dt_s: Integration step, at most 0.9 ms.
        rate_hz: Samples per second.
        settle_s: Silent time before a session starts.

    Raises:
        ConfigError: If there is no region, fewer than 4 contacts, or times do not fit.
    """
    circuit = drawn_circuit(
        Epileptor, EPILEPTOR_RANGES, patient, regions, contacts, noise_1=0.2 * noise, noise_2=noise, unit_s=0.02
    )
    entry = {"current_1": 0.001}
    drift = drift / entry["current_1"]
    recruiting = coupling_entry(circuit.rest, permittivity=-1.0)
    return in_tissue(
        circuit, patient, contacts, entry, gain=(0.2, 0.6), speed_m_s=None, tract_entry=recruiting, diffusive=True,
        window_s=window_s, drift=drift, dt_s=dt_s, rate_hz=rate_hz, settle_s=settle_s,
    )  # fmt: skip
