"""Ready tasks, one for each virtual patient: what to search or learn with nothing left to choose.

A decision is where, how strong, how fast and how wide; its train fills the window and ends with it. 0 mA is silence.
Ranges are those of clinical stimulators and go beyond the envelope at places: what the envelope refuses is
not delivered. Options such as `patient` and `window_s` go to the patient; `compiled=True` plays it by compiled steps
(`compiled_simulate`), which many rows are worth. Under Gymnasium a task is `stimopt/<Name>-v0`, such as
`gymnasium.make("stimopt/StnGpe-v0", patient=3)`. All of it is simulated.

| task | better is | envelope |
| --- | --- | --- |
| column, jansen-rit, hopf, corticothalamic | less alpha | mapping-50hz-seeg |
| linear | more alpha | mapping-50hz-seeg |
| wilson-cowan, kuramoto | less of the focus's rhythm | mapping-50hz-seeg |
| montbrio | more of the active state's ringing, for little charge | mapping-50hz-seeg |
| wendling | less of the spikes' rhythm | rns |
| epileptor | less line length: fewer and shorter seizures | rns |
| stn-gpe, relaxation, basal-ganglia | less beta | dbs-chronic |
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

import torch

from stimopt.montage import Contact, monopolar
from stimopt.objective import BandPower, Charge, LineLength, Objective, WeightedSum
from stimopt.safety_profiles import PROFILES
from stimopt.space import Parameter, StimulationSpace, contact_site
from stimopt.stimulus import pulse_train
from stimopt.task import Task
from stimopt.tensors import generator

from .circuit_patients import hopf_patient, kuramoto_patient, montbrio_patient, wilson_cowan_patient
from .cohort import jansen_rit_patient, linear_patient
from .compiled import compiled_simulate
from .drive import train_shares
from .implanted import twin_in_head
from .implants import AREA_CM2, PITCH_MM
from .integrate import heun
from .jansen_rit import JansenRit
from .nuclei_patients import basal_ganglia_patient, corticothalamic_patient, relaxation_patient, stn_gpe_patient
from .population import drawn
from .seizure_patients import epileptor_patient, wendling_patient
from .twin import Twin

_LARGEST_MA = 8.0
_WIDTH_US = {"mapping-50hz-seeg": (100.0, 450.0), "rns": (60.0, 450.0), "dbs-chronic": (60.0, 450.0)}
_FASTEST_HZ = {"mapping-50hz-seeg": 100.0, "rns": 200.0, "dbs-chronic": 180.0}
_LONGEST_PULSE_S = 1e-3  # both phases of 450 us, and a little: the last pulse ends before the next window begins
_PER_UC = 0.01  # chosen: ten times the power is worth 100 uC
_BESIDE_MM = 2.0  # of the single column's electrode


def _ready(make: Callable[..., Task]) -> Callable[..., Task]:
    """With the option `compiled`."""

    @wraps(make)
    def made(*, compiled: bool = False, **options: Any) -> Task:
        task = make(**options)
        if not compiled or not isinstance(task.system, Twin):
            return task
        return replace(task, system=replace(task.system, play=compiled_simulate))

    return made


@_ready
def jansen_rit_task(*, horizon: int = 100, **patient: Any) -> Task:
    """Silence the alpha of a Jansen-Rit patient's focus.

    Args:
        horizon: Decisions in one episode.
        patient: Options of `jansen_rit_patient`.
    """
    return _task(jansen_rit_patient(**patient), BandPower((8.0, 13.0)), "mapping-50hz-seeg", horizon)


@_ready
def linear_task(*, horizon: int = 100, **patient: Any) -> Task:
    """Make a linear patient ring at 8 to 13 Hz; options are those of `linear_patient`."""
    return _task(linear_patient(**patient), BandPower((8.0, 13.0), better="higher"), "mapping-50hz-seeg", horizon)


@_ready
def wendling_task(*, horizon: int = 100, **patient: Any) -> Task:
    """Stop the spikes of a hippocampal focus, at 2 to 12 Hz; options are those of `wendling_patient`."""
    return _task(wendling_patient(**patient), BandPower((2.0, 12.0)), "rns", horizon)


@_ready
def wilson_cowan_task(*, horizon: int = 100, **patient: Any) -> Task:
    """Leave a focus of Wilson and Cowan's cycle, at 10 to 20 Hz; options are those of `wilson_cowan_patient`."""
    return _task(wilson_cowan_patient(**patient), BandPower((10.0, 20.0)), "mapping-50hz-seeg", horizon)


@_ready
def hopf_task(*, horizon: int = 100, **patient: Any) -> Task:
    """Stop an oscillating focus at 8 to 13 Hz; options are those of `hopf_patient`."""
    return _task(hopf_patient(**patient), BandPower((8.0, 13.0)), "mapping-50hz-seeg", horizon)


@_ready
def montbrio_task(*, horizon: int = 100, **patient: Any) -> Task:
    """Switch silent populations on, at 20 to 60 Hz, for little charge; options are those of `montbrio_patient`."""
    objective = WeightedSum((BandPower((20.0, 60.0), better="higher"), Charge()), (1.0, _PER_UC))
    return _task(montbrio_patient(**patient), objective, "mapping-50hz-seeg", horizon)


@_ready
def epileptor_task(*, horizon: int = 200, **patient: Any) -> Task:
    """Keep a patient out of seizures; options are those of `epileptor_patient`.

    Seizures last some 20 s and come once a minute or so, so episodes are long; a decision may end one or bring it on.
    """
    return _task(epileptor_patient(**patient), LineLength(), "rns", horizon)


@_ready
def kuramoto_task(*, horizon: int = 100, **patient: Any) -> Task:
    """Scatter phases: less power from 12 to 25 Hz, wider than the rhythm; options are those of `kuramoto_patient`."""
    return _task(kuramoto_patient(**patient), BandPower((12.0, 25.0)), "mapping-50hz-seeg", horizon)


@_ready
def stn_gpe_task(*, horizon: int = 100, **patient: Any) -> Task:
    """Suppress the beta, 13 to 30 Hz, of a subthalamic nucleus; options are those of `stn_gpe_patient`."""
    return _task(stn_gpe_patient(**patient), BandPower((13.0, 30.0)), "dbs-chronic", horizon)


@_ready
def corticothalamic_task(*, horizon: int = 100, **patient: Any) -> Task:
    """Suppress the alpha of a corticothalamic loop; options are those of `corticothalamic_patient`."""
    return _task(corticothalamic_patient(**patient), BandPower((8.0, 13.0)), "mapping-50hz-seeg", horizon)


@_ready
def relaxation_task(*, horizon: int = 100, **patient: Any) -> Task:
    """Suppress the common rhythm, 13 to 30 Hz, of an ensemble; options are those of `relaxation_patient`."""
    return _task(relaxation_patient(**patient), BandPower((13.0, 30.0)), "dbs-chronic", horizon)


@_ready
def basal_ganglia_task(*, horizon: int = 100, **patient: Any) -> Task:
    """Suppress beta, 13 to 30 Hz, in spiking basal ganglia; options are those of `basal_ganglia_patient`. Slow."""
    return _task(basal_ganglia_patient(**patient), BandPower((13.0, 30.0)), "dbs-chronic", horizon)


@_ready
def column_task(*, patient: int = 0, horizon: int = 1000, window_s: float = 0.01, noise: float = 1.83) -> Task:
    """Calm the alpha of one Jansen-Rit column, window by window of 10 ms: made to be fast for reinforcement learning.

    One region, two contacts, no noise of the amplifier, steps of 1 ms (Heun), float32. A decision is the current and
    width of one pulse, whose firing is spread evenly over the window (`train_shares`); where, and 100 Hz, stay as they
    are. Score is minus the line length.

    Args:
        patient: Which patient; any whole number.
        horizon: Decisions in one episode.
        window_s: Time from one decision to the next: 10 ms or more.
        noise: White noise on the afferents, 1/s averaged over one second.
    """
    twin = _column(patient, window_s, noise)
    template = pulse_train(
        twin.montage, "A1-A2", amplitude_ma=1.0, frequency_hz=1 / window_s, pulse_width_us=200.0, pulses=1
    )
    low_us, high_us = _WIDTH_US["mapping-50hz-seeg"]
    parameters = (
        Parameter("amplitude_ma", "continuous", 0.0, _LARGEST_MA, unit="mA"),
        Parameter("pulse_width_us", "continuous", low_us, high_us, unit="us"),
    )
    return Task(twin, LineLength(), StimulationSpace(parameters, template), PROFILES["mapping-50hz-seeg"], horizon)


def _column(patient: int, window_s: float, noise: float) -> Twin:
    """A column in alpha, with one contact 2 mm beside it and the other a pitch further along."""
    source = generator(patient, "column", "parameters")
    pace = drawn((0.9, 1.1), source)  # as in jansen_rit_patient
    circuit = JansenRit(
        torch.tensor([drawn((120.0, 200.0), source)], dtype=torch.float64),
        noise_hz=noise,
        excitation_mv=3.25 * pace,
        inhibition_mv=22.0 * pace,
        excitation_per_s=100.0 * pace,
        inhibition_per_s=50.0 * pace,
    )
    contacts = [
        Contact(name, (along_mm, _BESIDE_MM, 0.0), AREA_CM2, "depth", "A")
        for name, along_mm in (("A1", 0.0), ("A2", PITCH_MM))
    ]
    twin = twin_in_head(
        circuit, circuit.rest.new_zeros(1, 3), monopolar(contacts, frame="virtual"), noise_uv=0.0, window_s=window_s,
        dt_s=1e-3, rate_hz=1000.0, scheme=heun,
    )  # fmt: skip
    return replace(twin, drive=replace(twin.drive, shares=train_shares)).to(torch.zeros(()))


def _task(twin: Twin, objective: Objective, envelope: str, horizon: int) -> Task:
    """Sites, current, rate and width of trains that fill the window; 1 / window_s is one pulse a window."""
    sites = _sites(twin)
    template = pulse_train(twin.montage, sites[0], amplitude_ma=1.0, frequency_hz=50.0)
    parameters = (
        contact_site(template, sites),
        Parameter("amplitude_ma", "continuous", 0.0, _LARGEST_MA, unit="mA"),
        Parameter("frequency_hz", "log", 1 / twin.window_s, _FASTEST_HZ[envelope], unit="Hz"),
        Parameter("pulse_width_us", "continuous", *_WIDTH_US[envelope], unit="us"),
    )
    space = StimulationSpace(parameters, template, duration_s=twin.window_s - _LONGEST_PULSE_S)
    return Task(twin, objective, space, PROFILES[envelope], horizon)


def _sites(twin: Twin) -> Sequence[str]:
    """Neighbouring pairs of shafts; single contacts of leads, whose current returns through the case."""
    contacts = twin.montage.contacts
    return [c.name for c in contacts] if contacts[0].kind == "dbs" else twin.montage.neighbour_pairs()
