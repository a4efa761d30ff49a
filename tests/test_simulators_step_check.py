"""The half-step check tells steps that are good enough from steps that are not."""

import pytest
import torch

from stimopt.errors import ConfigError
from stimopt.simulators import JansenRit, LinearOscillator, Network, heun, rk4
from stimopt.simulators.step_check import half_step_error, require_step
from stimopt.tensors import generator


def pair() -> Network:
    circuit = JansenRit(torch.tensor([150.0, 220.0], dtype=torch.float64))
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    return Network(circuit, weights, gain=8.0, delay_s=0.01 * weights)


def test_the_error_falls_with_the_order_of_the_scheme():
    large, small = (half_step_error(pair(), dt_s=dt_s, seconds=0.2) for dt_s in (2e-3, 1e-3))
    assert 10 < large / small < 24  # 16 for a fourth-order scheme


def test_heun_needs_a_smaller_step_than_rk4():
    assert half_step_error(pair(), dt_s=1e-3, seconds=0.2, scheme=heun) > 20 * half_step_error(
        pair(), dt_s=1e-3, seconds=0.2, scheme=rk4
    )


def test_noise_is_the_same_path_at_both_steps():
    error = half_step_error(pair(), dt_s=1e-3, seconds=0.3, source=generator(1))
    assert error < 0.1  # strong order one: 0.04 here; with fresh noise at the finer step it would be of order 1


def test_a_step_that_is_too_large_is_refused_with_the_tested_one_named():
    with pytest.raises(ConfigError, match=r"largest tested is 0\.002 s, with rk4"):
        require_step(pair(), dt_s=0.01, seconds=0.3)
    require_step(pair(), dt_s=2e-3, seconds=0.3)


def test_a_step_that_explodes_counts_as_infinitely_wrong():
    ringing = LinearOscillator(torch.tensor([300.0], dtype=torch.float64), 1.0)
    start = torch.ones(1, 2, dtype=torch.float64)
    assert half_step_error(ringing, dt_s=0.1, seconds=100.0, start=start) == float("inf")
