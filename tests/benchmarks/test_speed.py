"""Speed of what a search waits for. By hand: pytest tests/benchmarks -o addopts= --benchmark-only

Each benchmark stands beside a reference measured in the same run, so ratios hold where absolute times drift.
"""

from dataclasses import replace

import pytest
import torch

from stimopt.history import empty_history
from stimopt.policies import BayesianPolicy, RandomPolicy
from stimopt.safety_profiles import PROFILES
from stimopt.simulators import jansen_rit_patient
from stimopt.space import Parameter, StimulationSpace, contact_site
from stimopt.stimulus import pulse_train
from stimopt.tensors import generator

ENVELOPE = PROFILES["mapping-50hz-seeg"]


@pytest.fixture(scope="module")
def patient():
    return jansen_rit_patient(patient=5)


@pytest.fixture(scope="module")
def space(patient):
    template = pulse_train(patient.montage, "A1-A2", amplitude_ma=1.0, frequency_hz=50.0, pulse_width_us=200.0)
    knobs = (
        contact_site(template, patient.montage.neighbour_pairs()),
        Parameter("amplitude_ma", "continuous", 0.5, 5.0),
        Parameter("frequency_hz", "log", 20.0, 100.0),
    )
    return StimulationSpace(knobs, template, duration_s=0.5)


def history_of(space, trials):
    history, source = empty_history(space.template), generator(1, "scores")
    units = torch.rand(trials, space.dimension, generator=source, dtype=torch.float64)
    for number, stimulus in enumerate(space.stimulus(units)[i] for i in range(trials)):
        score = float(torch.randn((), generator=source, dtype=torch.float64))
        history = history.with_trial(stimulus, score, 30.0 * number, None)
    return replace(history, next_time_s=30.0 * trials)


@pytest.mark.benchmark(group="window")
@pytest.mark.parametrize("rows", [1, 64, 1024])
def test_a_window_of_a_jansen_rit_patient(benchmark, patient, space, rows):
    state = patient.start((rows,), generator(0, "start"))
    stimulus = space.stimulus(torch.full((rows, space.dimension), 0.5, dtype=torch.float64))
    with torch.no_grad():
        response, _ = benchmark(lambda: patient.respond(state, stimulus, generator(0, "respond")))
    assert response.batch_shape == (rows,)


@pytest.mark.benchmark(group="decision")
@pytest.mark.parametrize("make", [RandomPolicy, BayesianPolicy])  # random draws are the reference: the envelope's cost
@pytest.mark.parametrize("trials", [8, 48])
def test_a_decision(benchmark, space, make, trials):
    policy, history = make(space, ENVELOPE), history_of(space, trials)
    stimulus = benchmark(lambda: policy.propose(history, generator(0, "propose")))
    assert bool(ENVELOPE.allowed(stimulus))


@pytest.mark.benchmark(group="envelope")
@pytest.mark.parametrize("rows", [1, 2048])
def test_margins_of_candidates(benchmark, space, rows):
    history = history_of(space, 60)
    stimuli = space.stimulus(torch.rand(rows, space.dimension, dtype=torch.float64))
    assert benchmark(lambda: ENVELOPE.margins(stimuli, history, 3000.0)).values.shape[0] == rows
