"""Schemes keep their order in driven networks, their charge, and the variance of the noise."""

import math
from functools import cache, partial

import pytest
import torch

from stimopt.simulators import JansenRit, LinearOscillator, Network, euler, heun, rk4, stage_drive
from stimopt.simulators.dynamics import noisy_columns


def driven_network() -> Network:
    circuit = JansenRit(torch.tensor([150.0, 120.0, 180.0], dtype=torch.float64))
    weights = torch.tensor([[0.0, 0.6, 0.4], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], dtype=torch.float64)
    return Network(circuit, weights, gain=10.0)


@cache
def end_state(scheme, dt_s: float, until_s: float = 0.048) -> torch.Tensor:
    network = driven_network()
    state, steps = network.rest + 0.1, round(until_s / dt_s)
    for step in range(steps):
        stages = torch.tensor([step * dt_s, (step + 0.5) * dt_s, (step + 1) * dt_s], dtype=torch.float64)
        drive = (40.0 * torch.sin(2 * math.pi * 25.0 * stages)).reshape(3, 1, 1) * torch.tensor([1.0, 0.0])
        state = scheme(network.drift, state, drive, dt_s)
    return state


@pytest.mark.parametrize(("scheme", "order", "finest"), [(euler, 1, 5e-5), (heun, 2, 2e-4), (rk4, 4, 5e-4)])
def test_error_falls_with_the_order_of_the_scheme_in_a_driven_network(scheme, order, finest):
    truth = end_state(rk4, 5e-5)  # its own error is 1e-4 of that of rk4 at the finest step measured
    steps_s = [finest * 2, finest]
    errors = [float((end_state(scheme, dt_s) - truth).norm()) for dt_s in steps_s]
    slope = math.log(errors[0] / errors[1]) / math.log(2)
    assert abs(slope - order) < 0.15  # at these steps Euler reads 1.02, Heun 2.0, RK4 4.0


@pytest.mark.parametrize("scheme", [euler, heun, rk4])
def test_charge_that_enters_does_not_depend_on_the_scheme(scheme):
    halves = torch.tensor([[0.0, 7.0, 0.0, 0.0, 3.0, 1.0]], dtype=torch.float64)  # three steps of two halves
    state = torch.zeros(1, dtype=torch.float64)
    for drive in stage_drive(halves, 2):
        state = scheme(lambda _, drive: drive, state, drive, 0.5)
    torch.testing.assert_close(state, halves.sum(-1) * 0.25, rtol=1e-12, atol=0.0)


def oscillator() -> LinearOscillator:
    natural, damping = torch.tensor([60.0], dtype=torch.float64), torch.tensor([8.0], dtype=torch.float64)
    return LinearOscillator(natural, damping, noise_gain=30.0)


def stationary_variance(scheme, dt_s: float) -> float:
    """Variance of the displacement that the scheme's own recursion x' = M x + k w settles at."""
    circuit = oscillator()
    step = partial(scheme, circuit.drift, dt_s=dt_s)
    axes = torch.eye(2, dtype=torch.float64).unsqueeze(1)  # [row, region, state]
    still = torch.zeros(3, 2, 1, 1, dtype=torch.float64)
    move = step(state=axes, drive=still, kick=0.0).squeeze(1).mT
    push = step(
        state=axes[:1] * 0, drive=still[:, :1], kick=circuit.noise(axes[:1]) @ noisy_columns(circuit) * dt_s**0.5
    ).flatten()
    grown = torch.kron(move, move)
    flat = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - grown, torch.outer(push, push).flatten())
    return float(flat[0])


@pytest.mark.parametrize(("scheme", "dt_s", "off"), [(euler, 1e-5, 0.01), (heun, 1e-3, 0.01), (rk4, 1e-3, 0.001)])
def test_noise_gives_the_variance_of_the_equation(scheme, dt_s, off):
    exact = 30.0**2 / (4 * 8.0 * 60.0**2)  # mean square displacement of a damped oscillator under white noise
    assert abs(stationary_variance(scheme, dt_s) / exact - 1) < off


@pytest.mark.parametrize(("scheme", "dt_s"), [(heun, 5e-4), (rk4, 2e-3)])
def test_halving_the_step_keeps_the_variance(scheme, dt_s):
    assert abs(stationary_variance(scheme, dt_s) / stationary_variance(scheme, dt_s / 2) - 1) < 0.01
