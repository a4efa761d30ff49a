"""Ready populations: a kind of patient for each circuit whose ranges were published, to draw cohorts from.

    cohort(20, seed=1, population=POPULATIONS["epileptor"])
    cohort(20, seed=1, population=at_the_bedside(POPULATIONS["wendling"]))

Ranges, entries and gains are those of the ready patient of the same name; what differs from patient to patient
besides (head, lesions, electrodes, day) is that of `Population`. Wilson and Cowan's field is not among them: it
answers to trains as a mean rate, which a patient file does not say yet. All of it is simulated.
"""

from collections.abc import Mapping
from dataclasses import replace

from .circuit_patients import HOPF_RANGES, KURAMOTO_RANGES, MONTBRIO_RANGES
from .epileptor import Epileptor
from .hopf import StuartLandau
from .kuramoto import Kuramoto
from .montbrio import MontbrioPazoRoxin
from .population import Interval, Population
from .seizure_patients import EPILEPTOR_RANGES, WENDLING_RANGES
from .wendling import Wendling

_STILL: Interval = (0.0, 0.0)

POPULATIONS: Mapping[str, Population] = {
    "jansen-rit": Population(),
    "wendling": Population(
        circuit=Wendling, ranges=WENDLING_RANGES, entry={"afferents_hz": 2.0}, uv_per_mv=(30.0, 70.0),
        drift=(0.5, 2.0), vigilance=None,
    ),
    "epileptor": Population(
        circuit=Epileptor, ranges=EPILEPTOR_RANGES, constants={"noise_1": 0.004, "noise_2": 0.02, "unit_s": 0.02},
        entry={"current_1": 0.001}, tract_entry=((0.0, 0.0), (0.0, 0.0), (-1.0, 0.0)), diffusive=True,
        gain=(0.2, 0.6), speed_m_s=None, drift=_STILL, vigilance=None, dt_s=5e-4,
    ),
    "hopf": Population(
        circuit=StuartLandau, ranges=HOPF_RANGES, constants={"noise_size": 0.1, "unit_s": 0.1, "scale_mv": 3.0},
        entry={"x": 0.005}, tract_entry=((1.0, 0.0), (0.0, 1.0)), diffusive=True, gain=(0.1, 0.4), drift=_STILL,
        vigilance=None,
    ),
    "montbrio": Population(
        circuit=MontbrioPazoRoxin, ranges=MONTBRIO_RANGES, constants={"noise_potential": 1.0, "scale_mv": 2.0},
        entry={"current": 0.003}, gain=(0.5, 1.5), drift=(20.0, 45.0), vigilance=None, dt_s=1e-4,
    ),
    "kuramoto": Population(
        circuit=Kuramoto, ranges=KURAMOTO_RANGES,
        constants={"response_rad": 0.5, "response_sines_rad": (-1.0,), "noise_rad": 1.0, "amplitude_mv": 0.5},
        entry={"stimulus_per_s": 0.05}, tract_entry=((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)), gain=(14.0, 20.0),
        drift=_STILL, vigilance=None, more={"reach_mm": (12.0, 12.0)},
    ),
}  # fmt: skip


def at_the_bedside(population: Population, *, mains_hz: float = 50.0) -> Population:
    """The same patients behind a clinical amplifier and a stimulator that delivers unlike commanded.

    1/f background, artefact, mains, noise of 3 to 8 uV and rails; steps of 0.1 mA, trains up to 5 ms late, up to a
    tenth of the current missing, up to 2 % of trains broken off. All chosen.

    Args:
        population: Whose circuit and heads.
        mains_hz: 50 or 60.
    """
    return replace(
        population,
        amplifier={"mains_hz": (mains_hz, mains_hz), "noise_uv": population.noise_uv},
        device={
            "amplitude_step_ma": (0.1, 0.1), "delay_s": (0.0, 5e-3), "gain_error": (0.0, 0.1), "break_off": (0.0, 0.02)
        },
    )  # fmt: skip
