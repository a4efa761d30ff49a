"""Ready tasks: Gymnasium finds them by name and is content, trains end with their window, and some stimuli help."""

import importlib
import shutil
import warnings
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from itertools import product

import pytest
import torch

from stimopt.rollout import begin, decide
from stimopt.simulators.compiled import compiled_simulate
from stimopt.simulators.tasks import (
    basal_ganglia_task,
    column_task,
    corticothalamic_task,
    epileptor_task,
    hopf_task,
    jansen_rit_task,
    kuramoto_task,
    linear_task,
    montbrio_task,
    relaxation_task,
    stn_gpe_task,
    wendling_task,
    wilson_cowan_task,
)
from stimopt.task import Task
from stimopt.tensors import generator
from stimopt.waveform import train_s

IN_TISSUE = (
    jansen_rit_task, linear_task, wendling_task, wilson_cowan_task, hopf_task, montbrio_task, epileptor_task,
    kuramoto_task,
)  # fmt: skip
TASKS = (*IN_TISSUE, column_task, corticothalamic_task, stn_gpe_task, relaxation_task, basal_ganglia_task)
QUICK = (column_task, linear_task)


@cache
def small(make) -> Task:
    """Few regions, hardly any settling, windows just long enough for the task's band."""
    beta = (montbrio_task, stn_gpe_task, relaxation_task, basal_ganglia_task)
    options = {} if make is column_task else {"window_s": 0.04 if make in beta else 0.1}
    options |= {"regions": 4, "contacts": 4} if make in IN_TISSUE else {}
    options |= {"units": 12} if make is relaxation_task else {}
    task = make(horizon=2, **options)
    return replace(task, system=replace(task.system, settle_s=0.01))


def name_of(make) -> str:
    return make.__name__.removesuffix("_task").replace("_", "-")


def test_every_task_has_a_name_and_every_name_a_task():
    named = {point.name: point for point in entry_points(group="stimopt.tasks")}
    assert {*named} == {name_of(make) for make in TASKS}
    assert all(named[name_of(make)].load() is make for make in TASKS)


@pytest.mark.parametrize("make", TASKS, ids=name_of)
def test_trains_of_every_decision_end_with_their_window(make):
    task = small(make)
    corners = torch.tensor([*product((0.0, 1.0), repeat=task.space.dimension)], dtype=torch.float64)
    assert bool((train_s(task.space.stimulus(corners)) <= task.system.window_s).all())


@pytest.mark.parametrize("make", TASKS, ids=name_of)
def test_most_decisions_are_allowed_and_no_current_is_silence(make):
    """A uniform draw: 0.70 to 1 of it lies inside the envelope."""
    task = small(make)
    unit = torch.rand(200, task.space.dimension, generator=generator(0), dtype=torch.float64)
    assert float(task.envelope.allowed(task.space.stimulus(unit)).double().mean()) > 0.6
    unit[:, task.space.slices()["amplitude_ma"]] = 0.0
    assert bool(task.space.stimulus(unit).silent.all())


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, marks=() if make in QUICK else pytest.mark.slow) for make in TASKS],
    ids=name_of,
)
def test_gymnasiums_own_checker_is_content_with_every_task(make):
    pytest.importorskip("gymnasium", reason="needs the gym extra: pip install 'stimopt[gym]'")
    from gymnasium.utils.env_checker import check_env

    from stimopt.environment import StimulationEnv

    check_env(StimulationEnv(small(make)), skip_render_check=True)


def registered():
    gymnasium = pytest.importorskip("gymnasium", reason="needs the gym extra: pip install 'stimopt[gym]'")
    importlib.import_module("stimopt.environments")  # registers
    return gymnasium


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("Column", {"patient": 2}, (2, 10)),
        pytest.param("StnGpe", {"patient": 3, "window_s": 0.1}, (4, 100), marks=pytest.mark.slow),
    ],
)
def test_gymnasium_makes_one_environment_by_name_with_the_patients_options(name, options, shape):
    env = registered().make(f"stimopt/{name}-v0", horizon=2, **options)
    observation, _ = env.reset(seed=1)
    assert observation.shape == shape
    _, _, terminated, truncated, info = env.step(env.action_space.sample())
    assert not terminated
    assert not truncated
    assert {"charge_uc", "violation", "asked"} <= {*info}


def test_gymnasium_makes_the_native_batch_by_name():
    from stimopt.environment import StimulationVectorEnv

    env = registered().make_vec("stimopt/Column-v0", num_envs=16)
    assert isinstance(env.unwrapped, StimulationVectorEnv)
    env.reset(seed=0)
    observation, reward, *_ = env.step(env.action_space.sample())
    assert observation.shape == (16, 2, 10)
    assert reward.shape == (16,)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here, so nothing can be compiled")
def test_a_batch_played_by_compiled_steps_sees_and_earns_the_same():
    plain, compiled = (registered().make_vec("stimopt/Column-v0", num_envs=3, compiled=c) for c in (False, True))
    assert compiled.unwrapped.task.system.play is compiled_simulate
    for env in (plain, compiled):
        env.reset(seed=0)
        env.action_space.seed(1)
    actions = plain.action_space.sample()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*could not be compiled")
        (seen, earned, *_), (same, as_much, *_) = (env.step(actions) for env in (plain, compiled))
    torch.testing.assert_close(torch.as_tensor(same), torch.as_tensor(seen), rtol=1e-4, atol=1e-2)  # uV, float32
    torch.testing.assert_close(torch.as_tensor(as_much), torch.as_tensor(earned), rtol=1e-4, atol=1e-4)


def scores(task: Task, units: list[list[float]], skipped: int, counted: int) -> list[float]:
    """Mean score of constant decisions, one row each, after some windows that do not count."""
    unit = torch.tensor(units, dtype=torch.float64)
    stimuli, situation, kept = task.space.stimulus(unit), begin(task, len(units), generator(0)), []
    with torch.no_grad():
        for number in range(skipped + counted):
            judged, situation = decide(task, situation, stimuli, generator(1, number))
            assert not bool(judged.refused.any())
            kept.append(judged.score)
    means: list[float] = torch.stack(kept[skipped:]).mean(0).tolist()
    return means


@pytest.mark.parametrize("patient", range(2))
def test_a_column_is_calmed_best_by_a_current_inside_the_bounds(patient):
    """Simulated: line lengths of 3600, 1200, 1000 and 1100 uV/s at 0, 1, 2 and 8 mA in patient 0."""
    none, weak, medium, strong = scores(
        column_task(patient=patient), [[0.0, 1.0], [1 / 8, 1.0], [0.25, 1.0], [1.0, 1.0]], 50, 100
    )
    assert none < weak < medium
    assert medium > strong


@pytest.mark.slow
def test_a_fast_train_in_the_subthalamic_nucleus_suppresses_its_beta_and_a_beta_train_feeds_it():
    """3 mA, 90 us at the contact beside the nucleus: 0.9 decades less at 130 Hz, 1.3 more at 20 Hz (simulated)."""
    task = stn_gpe_task()

    def at(current_ma: float, frequency_hz: float) -> list[float]:
        values = {"contacts": "L2", "amplitude_ma": current_ma, "frequency_hz": frequency_hz, "pulse_width_us": 90.0}
        return task.space.encode(values).tolist()

    none, fast, beta = scores(task, [at(0.0, 130.0), at(3.0, 130.0), at(3.0, 20.0)], 1, 3)
    assert fast > none + 0.5
    assert beta < none - 0.5
