"""One line per thing that keeps a contract: what a contributor adds here, test_contracts holds to its word.

A line names what makes the thing and the parts it is made from; parts and things are made
when a test first asks for them, and once.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from stimopt.forecaster import Context, Forecaster, Trials
from stimopt.history import History, empty_history
from stimopt.landscape import calibrate
from stimopt.models import (
    ImaginedSystem,
    fit_arx,
    fit_basis_functions,
    fit_delay_embedding,
    fit_distance_decay,
    fit_gaussian_process,
    fit_ieeg_adapted,
    fit_ieeg_network,
    fit_impulse_regression,
    fit_mean_evoked,
    fit_nearest,
    fit_no_effect,
    fit_other_sites,
    fit_persistence,
    fit_recurrent,
    fit_residual_mlp,
    fit_state_space,
)
from stimopt.objective import BandPower, Charge, EvokedAmplitude, LineLength, Objective, Outcome, WeightedSum
from stimopt.policies import (
    BayesianPolicy,
    ConstantPolicy,
    GradientPolicy,
    GridPolicy,
    NoStimulationPolicy,
    RandomPolicy,
    SobolPolicy,
)
from stimopt.replay import ReplaySystem
from stimopt.response import Response
from stimopt.safety import Envelope
from stimopt.safety_profiles import PROFILES
from stimopt.simulators import (
    Population,
    StuartLandau,
    Twin,
    VirtualPatient,
    basal_ganglia_patient,
    cohort,
    corticothalamic_patient,
    epileptor_patient,
    hopf_patient,
    implanted,
    jansen_rit_patient,
    kuramoto_patient,
    linear_patient,
    montbrio_patient,
    relaxation_patient,
    stn_gpe_patient,
    wendling_patient,
    wilson_cowan_patient,
)
from stimopt.space import Parameter, StimulationSpace, contact_site
from stimopt.stimulus import Stimulus, no_stimulus, pulse_train
from stimopt.system import System
from stimopt.tensors import concatenate, generator, map_tensors
from stimopt.trial_table import TrialTable, read_trial_table

FEW = {"patient": 1, "regions": 4, "contacts": 6, "window_s": 0.05, "settle_s": 0.05}
LEAD = {"patient": 1, "window_s": 0.05, "settle_s": 0.05}
SMALL = {"patient": 1, "regions": 4, "contacts": 6, "window_s": 0.2}


@dataclass(frozen=True)
class Instance:
    """What makes a thing, from which parts, and whether it claims gradients in the stimulus."""

    maker: Callable[..., Any]
    parts: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    differentiable: bool = False

    @cached_property
    def made(self) -> Any:
        """The thing; parts that are functions of this file are called first."""
        return self.maker(*(part() if part in PARTS else part for part in self.parts), **self.options)


def smooth(maker: Callable[..., Any], *parts: Any, **options: Any) -> Instance:
    """A thing that claims gradients with respect to the stimulus's current."""
    return Instance(maker, parts, options, differentiable=True)


def plain(maker: Callable[..., Any], *parts: Any, **options: Any) -> Instance:
    """A thing that claims none."""
    return Instance(maker, parts, options)


def name_of(instance: Instance) -> str:
    """Of a test's id."""
    return instance.maker.__name__


@cache
def patient() -> Twin:
    """The brain that everything here was recorded from (simulated)."""
    return replace(linear_patient(**SMALL), settle_s=0.1, rate_hz=250.0)


@cache
def virtual_patient() -> VirtualPatient:
    """One of a cohort, with delays, lesions and drowsiness (simulated)."""
    return cohort(1, 8, population=Population(window_s=0.05))[0]


@cache
def rhythms() -> StuartLandau:
    """Four oscillators, one of them past its bifurcation."""
    growth = torch.tensor([5.0, -8.0, -8.0, -8.0], dtype=torch.float64)
    return StuartLandau(torch.full((4,), 62.8, dtype=torch.float64), bifurcation=growth)


@cache
def space() -> StimulationSpace:
    """Pairs x current x frequency, trains of four pulses."""
    template = pulse_train(patient().montage, "A1-A2", amplitude_ma=2.0, pulses=4, frequency_hz=40.0, onset_s=0.02)
    parameters = (
        contact_site(template, patient().montage.neighbour_pairs()),
        Parameter("amplitude_ma", "continuous", 0.5, 4.0, unit="mA"),
        Parameter("frequency_hz", "log", 25.0, 80.0, unit="Hz"),
    )
    return StimulationSpace(parameters, template)


@cache
def envelope() -> Envelope:
    """A real profile, with a dose limit so that the past matters."""
    return PROFILES["mapping-50hz-seeg"].with_limits(dose_minute_uc=40.0, contact_current_ma=3.5)


@cache
def trials() -> Trials:
    """Forty calibration trials."""
    return calibrate(patient(), space(), PROFILES["mapping-50hz-seeg"], trials=40, seed=1)


@cache
def at_rest() -> Context:
    """One window before a stimulus, batch shape ()."""
    return map_tensors(trials().context, lambda tensor: tensor[0])


@cache
def arx() -> Forecaster:
    """A forecaster for what is built on one."""
    return fit_arx(trials(), lags=4, folds=2)


@cache
def evoked() -> Objective:
    """An objective for what is built on one."""
    return EvokedAmplitude((0.03, 0.2))


@cache
def setting() -> dict[str, Any]:
    """A point of the space."""
    return {"contacts": "A1-A2", "amplitude_ma": 1.0, "frequency_hz": 50.0}


@cache
def table() -> TrialTable:
    """Two doses, four repetitions each."""
    with tempfile.TemporaryDirectory() as folder:
        rows = ["dose,gain", *(f"{dose},{dose * 10 + i}" for dose in (1, 2) for i in range(4))]
        card = "name: tiny\nparameters:\n  dose: {kind: ordinal}\noutcomes:\n  gain: null\n"
        Path(folder, "dataset.yaml").write_text(card, encoding="utf-8")
        Path(folder, "rows.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        return read_trial_table(Path(folder))


PARTS = (space, envelope, trials, at_rest, arx, evoked, setting, table, virtual_patient, rhythms)

SYSTEMS = (
    smooth(jansen_rit_patient, **{**SMALL, "window_s": 0.1}),
    smooth(linear_patient, **SMALL),
    smooth(VirtualPatient.twin, virtual_patient),
    smooth(implanted, rhythms, gain=2.0, speed_m_s=3.0, entry={"x": 0.05}, contacts=4, window_s=0.1, settle_s=0.1),
    smooth(wendling_patient, **FEW),
    smooth(epileptor_patient, **FEW),
    smooth(wilson_cowan_patient, **FEW),
    smooth(hopf_patient, **FEW),
    smooth(montbrio_patient, **{**FEW, "window_s": 0.016, "settle_s": 0.01}),
    smooth(kuramoto_patient, **FEW),
    smooth(stn_gpe_patient, **LEAD),
    smooth(corticothalamic_patient, **LEAD, contacts=6),
    smooth(relaxation_patient, **LEAD, units=12),
    smooth(basal_ganglia_patient, **{**LEAD, "window_s": 0.016, "settle_s": 0.002}),
    smooth(ImaginedSystem, arx, at_rest),
    plain(ReplaySystem, table, "gain"),
)

FORECASTERS = (
    plain(fit_no_effect, trials),
    plain(fit_persistence, trials),
    plain(fit_mean_evoked, trials),
    smooth(fit_arx, trials, lags=4, folds=2),
    smooth(fit_state_space, trials, order=4, lags=4, folds=2),
    smooth(fit_gaussian_process, trials, space, components=3),
    smooth(fit_ieeg_network, trials, steps=4, members=2, width=16, layers=1),
    smooth(fit_ieeg_adapted, trials, adapt="context"),
    smooth(fit_ieeg_adapted, trials, adapt="ongoing"),
    smooth(fit_ieeg_adapted, trials, adapt="residual"),
    smooth(fit_ieeg_adapted, trials, adapt="blended"),
    smooth(fit_ieeg_adapted, trials, adapt="sources", steps=20),
    plain(fit_nearest, trials),
    plain(fit_other_sites, trials),
    smooth(fit_distance_decay, trials),
    smooth(fit_impulse_regression, trials),
    smooth(fit_delay_embedding, trials, delays=6),
    smooth(fit_basis_functions, trials, steps=16),
    smooth(fit_residual_mlp, trials, steps=16),
    smooth(fit_recurrent, trials, steps=16),
)

POLICIES = (
    plain(RandomPolicy, space, envelope),
    plain(SobolPolicy, space, envelope, seed=1),
    plain(GridPolicy, space, envelope, levels=3),
    plain(BayesianPolicy, space, envelope, startup=3, samples=16),
    plain(GradientPolicy, space, envelope, arx, evoked, at_rest, starts=2, steps=2, samples=2),
    plain(ConstantPolicy, space, setting),
    plain(NoStimulationPolicy, space),
)

OBJECTIVES = (
    plain(BandPower, (8.0, 30.0)),
    plain(EvokedAmplitude, (0.03, 0.2)),
    plain(LineLength),
    plain(Outcome, "size"),
    plain(Charge),
    plain(WeightedSum, (LineLength(), Charge()), (1.0, 0.1)),
)


def stimuli_for(system: System) -> Stimulus:
    """Three stimuli that matter to a system, along one batch axis: two that differ, and silence where it is known."""
    if isinstance(system, ReplaySystem):
        return system.space.stimulus(system.space.points())
    pairs = system.montage.neighbour_pairs()
    trains = [
        pulse_train(system.montage, pairs[0], amplitude_ma=2.0, frequency_hz=60.0, pulses=5, onset_s=0.013),
        pulse_train(system.montage, pairs[-1], amplitude_ma=3.0, frequency_hz=25.0, pulses=2, onset_s=0.021),
        no_stimulus(system.montage),
    ]
    return concatenate([map_tensors(train, lambda tensor: tensor.unsqueeze(0)) for train in trains])


def new_stimuli(count: int) -> Stimulus:
    """Points of the space that no trial was recorded at."""
    unit = torch.rand(count, space().dimension, generator=generator(5, "new"), dtype=torch.float64)
    return space().stimulus(0.1 + 0.8 * unit)


def windows(count: int) -> tuple[Response, Stimulus]:
    """Recorded windows with an outcome, and their stimuli."""
    some = trials()[:count]
    return replace(some.response, outcomes={"size": some.response.signal_uv.abs().mean((-1, -2))}), some.stimulus


def searched(count: int) -> History:
    """A history of `count` trials that the envelope allowed, five seconds apart."""
    history = empty_history(space().template)
    random = RandomPolicy(space(), envelope())
    for number in range(count):
        history = replace(history, next_time_s=5.0 * number)
        stimulus = random.propose(history, generator(2, number))
        score = float(-(stimulus.amplitude_ma.abs().amax() - 2.0).square())
        history = history.with_trial(stimulus, score, 5.0 * number, None)
    return replace(history, next_time_s=5.0 * count)
