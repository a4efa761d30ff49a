"""Tasks as environments: Gymnasium's own checks, costs beside the reward, nothing outside the envelope delivered."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium", reason="needs the gym extra: pip install 'stimopt[gym]'")

from gymnasium.utils.env_checker import check_env  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from stimopt.environment import StimulationEnv, StimulationVectorEnv  # noqa: E402
from stimopt.errors import ConfigError  # noqa: E402
from stimopt.objective import LineLength  # noqa: E402
from stimopt.rollout import begin, decide, play  # noqa: E402
from stimopt.safety_profiles import PROFILES  # noqa: E402
from stimopt.simulators import linear_patient  # noqa: E402
from stimopt.space import Parameter, StimulationSpace  # noqa: E402
from stimopt.stimulus import no_stimulus, pulse_train  # noqa: E402
from stimopt.task import Task  # noqa: E402
from stimopt.tensors import generator  # noqa: E402


@cache
def task(horizon: int = 4, **limits: float) -> Task:
    twin = replace(linear_patient(patient=1, regions=4, contacts=4, window_s=0.1), settle_s=0.1)
    template = pulse_train(twin.montage, "A1-A2", amplitude_ma=1.0, frequency_hz=50.0, pulses=3.0)
    space = StimulationSpace(
        (Parameter("frequency_hz", "continuous", 25.0, 80.0), Parameter("amplitude_ma", "continuous", 0.0, 8.0)),
        template,
    )
    return Task(twin, LineLength(), space, PROFILES["mapping-50hz-seeg"].with_limits(**limits), horizon)


def test_gymnasiums_own_checker_is_content():
    check_env(StimulationEnv(task()), skip_render_check=True)


def test_the_same_seed_and_actions_give_the_same_episode():
    runs = []
    for _ in range(2):
        env = StimulationEnv(task())
        seen = [env.reset(seed=3)[0]]
        for action in ([0.1, -0.5], [-0.9, 0.2]):
            observation, reward, *_ = env.step(np.array(action, dtype=np.float32))
            seen += [observation, np.array([reward])]
        runs.append(np.concatenate([part.ravel() for part in seen]))
    np.testing.assert_array_equal(*runs)


def test_the_horizon_truncates_and_never_terminates():
    env = StimulationEnv(task())
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]
    with pytest.raises(gymnasium.error.ResetNeeded, match="over"):
        env.step(env.action_space.sample())


def test_a_stop_rule_terminates():
    env = StimulationEnv(replace(task(), stop_rule=lambda response, stimulus: "after-discharge"))
    env.reset(seed=0)
    _, _, terminated, truncated, _ = env.step(env.action_space.sample())
    assert terminated
    assert not truncated


def test_costs_are_beside_the_reward_and_a_refused_stimulus_is_not_delivered():
    limited = task(contact_current_ma=2.0)
    env = StimulationEnv(limited)
    env.reset(seed=0)
    _, strong_score, _, _, strong = env.step(np.array([-1.0, 1.0], dtype=np.float32))
    env.reset(seed=0)
    _, silent_score, _, _, silent = env.step(np.array([-1.0, -1.0], dtype=np.float32))
    assert strong["violation"] == 1
    assert strong["margin"] < 0
    assert strong["charge_uc"] == 0.0
    assert strong_score == silent_score
    assert silent["violation"] == 0


def test_charge_and_energy_are_those_of_the_train():
    env = StimulationEnv(task())
    env.reset(seed=0)
    *_, info = env.step(np.array([-1.0, -0.5], dtype=np.float32))  # 2 mA, 200 us, 3 pulses through two contacts
    assert info["charge_uc"] == pytest.approx(2 * 2.0 * 0.2 * 3)
    assert info["energy_uj_per_kohm"] == pytest.approx(2 * (2.0**2 + 2.0**2) * 3 * 200e-3)


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_nothing_outside_the_envelope_is_ever_delivered(actions, seed):
    limited = task(contact_current_ma=3.0, ramp_ma=1.5, dose_minute_uc=6.0)
    situation = begin(limited, 3, generator(seed))
    for number, action in enumerate(actions):
        unit = torch.tensor([action] * 3, dtype=torch.float64).clamp(-1, 1) * 0.5 + 0.5
        before = situation.ledger
        judged, situation = decide(limited, situation, limited.space.stimulus(unit), generator(seed, number))
        assert bool(limited.envelope.allowed(judged.delivered, before).all())


def test_a_row_of_the_vector_environment_restarts_on_the_step_after_it_ended():
    env = StimulationVectorEnv(task(), num_envs=3)
    env.reset(seed=1)
    flags = []
    for _ in range(6):
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        flags.append((bool(terminated.any()), bool(truncated.all()), float(np.abs(reward).max())))
        assert info["charge_uc"].shape == (3,)
    assert [truncated for _, truncated, _ in flags] == [False, False, False, True, False, False]
    assert not any(terminated for terminated, *_ in flags)
    assert flags[4][2] == 0.0  # the restart: no decision was made, none is scored


def test_the_vector_environment_answers_as_single_loops_do():
    """Rows differ by their own random streams, so the comparison is of what no noise touches: costs and shapes."""
    many, one = StimulationVectorEnv(task(), num_envs=2), StimulationEnv(task())
    seen, _ = many.reset(seed=2)
    assert seen.shape == (2, *one.observation_space.shape)
    action = np.array([[0.3, 0.1], [0.9, -0.4]], dtype=np.float32)
    *_, info = many.step(action)
    for row in range(2):
        one.reset(seed=row)
        *_, alone = one.step(action[row])
        assert alone["charge_uc"] == pytest.approx(info["charge_uc"][row])


def test_scores_pass_gradients_through_two_decisions():
    amplitude_ma = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    montage = task().system.montage
    train = pulse_train(montage, "A1-A2", amplitude_ma=1.0, frequency_hz=50.0, pulses=3.0).reshape(1)
    silence = no_stimulus(montage, (1,))
    chosen = iter([replace(train, amplitude_ma=train.amplitude_ma * amplitude_ma), silence])
    outcomes = play(replace(task(), horizon=2), lambda last: next(chosen), 1, generator(0))
    (slope,) = torch.autograd.grad(outcomes[-1].score.sum(), amplitude_ma)
    assert float(slope.abs()) > 0  # the second window remembers the first


def test_windows_that_would_overlap_are_refused():
    with pytest.raises(ConfigError, match="may not overlap"):
        replace(task(), interval_s=0.05)


def test_stable_baselines_trains_on_the_native_batch():
    pytest.importorskip("stable_baselines3", reason="needs the sb3 extra: pip install 'stimopt[sb3]'")
    from stable_baselines3 import PPO

    from stimopt.environment_sb3 import StimulationVecEnv

    rooms = StimulationVecEnv(task(), 4, observe=lambda response: response.signal_uv.std(-1))
    with torch.random.fork_rng():  # that library seeds the global generator
        agent = PPO("MlpPolicy", rooms, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")
        agent.learn(32)
    rooms.reset()
    for _ in range(3):
        *_, done, infos = rooms.step(np.zeros((4, 2), dtype=np.float32))
        assert not done.any()
    *_, done, infos = rooms.step(np.zeros((4, 2), dtype=np.float32))
    assert done.all()
    assert infos[0]["TimeLimit.truncated"]
    assert infos[0]["terminal_observation"].shape == (4,)
