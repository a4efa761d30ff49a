"""Schemes keep their order in driven networks, on paths of noise and in memory, their charge, and their variance."""

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from stimopt.simulators import (
    Dynamics,
    JansenRit,
    LinearOscillator,
    Network,
    euler,
    exponential_euler,
    heun,
    rk4,
    simulate,
    stage_drive,
    white_waves,
)
from stimopt.simulators.dynamics import noisy_columns
from stimopt.tensors import generator

JANSEN_RIT_DECAY = torch.tensor([0.0, 0.0, 0.0, 200.0, 200.0, 100.0], dtype=torch.float64)  # 2a, 2a, 2b of the rates
DECAY = torch.tensor([2.0], dtype=torch.float64)
NAMES = ("euler", "heun", "rk4", "exponential_euler")
SCHEMES = dict(zip(NAMES, (euler, heun, rk4, exponential_euler(DECAY)), strict=True))


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


@pytest.mark.parametrize(
    ("scheme", "order", "finest"),
    [(euler, 1, 5e-5), (heun, 2, 2e-4), (rk4, 4, 5e-4), (exponential_euler(JANSEN_RIT_DECAY), 1, 5e-5)],
    ids=NAMES,
)
def test_error_falls_with_the_order_of_the_scheme_in_a_driven_network(scheme, order, finest):
    truth = end_state(rk4, 5e-5)  # its own error is 1e-4 of that of rk4 at the finest step measured
    steps_s = [finest * 2, finest]
    errors = [float((end_state(scheme, dt_s) - truth).norm()) for dt_s in steps_s]
    slope = math.log(errors[0] / errors[1]) / math.log(2)
    assert abs(slope - order) < 0.15  # at these steps Euler reads 1.02, Heun 2.0, RK4 4.0, exponential Euler 1.04


def test_exponential_euler_is_exact_where_all_is_decay():
    """x' = 6 - decay x, however stiff, in one step; a decay of 0 is Euler's scheme."""
    decay = torch.tensor([0.0, 1e-9, 2.0, 5000.0], dtype=torch.float64)
    start, drive = torch.ones(4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    after = exponential_euler(decay)(lambda x, _: 6.0 - decay * x, start, drive, 0.5)
    growth = torch.tensor([0.5, 0.5, -math.expm1(-1.0) / 2, 1 / 5000], dtype=torch.float64)  # of what comes in
    torch.testing.assert_close(after, torch.exp(-0.5 * decay) + 6.0 * growth, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("scheme", [euler, heun, rk4, exponential_euler(torch.zeros(1, dtype=torch.float64))])
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


@dataclass(frozen=True)
class Walk(Dynamics):
    """x' = -decay x + (size + share x) noise: Ornstein-Uhlenbeck, or geometric Brownian motion."""

    decay_per_s: Tensor
    size: float = 0.0
    share: float = 0.0

    states: ClassVar[tuple[str, ...]] = ("x",)
    inputs: ClassVar[tuple[str, ...]] = ("drive",)
    outputs: ClassVar[tuple[str, ...]] = ("x",)
    noisy: ClassVar[tuple[str, ...]] = ("x",)
    largest_dt_s: ClassVar[float] = 1.0

    @property
    def rest(self) -> Tensor:
        return torch.ones_like(self.decay_per_s).unsqueeze(-1)

    def drift(self, state, drive):
        return -self.decay_per_s.unsqueeze(-1) * state + drive

    def noise(self, state):
        return self.size + self.share * state

    def emission(self, state):
        return state

    def potential_mv(self, state):
        return state[..., 0]


def ends_at_one_second(circuit: Walk, scheme, path: Tensor, steps: int) -> Tensor:
    """State after 1 s of `steps` steps along the same Wiener paths, [path, 1, 1]."""
    start = circuit.rest.expand(path.shape[1], 1, 1)
    waves = path.unflatten(0, (steps, -1)).sum(1)
    return simulate(circuit, start, dt_s=1 / steps, steps=steps, waves=waves, scheme=scheme, every=steps).end


def strong_order(circuit: Walk, scheme, path: Tensor, exact: Tensor, steps: tuple[int, int]) -> float:
    errors = [(ends_at_one_second(circuit, scheme, path, count) - exact).square().mean().sqrt() for count in steps]
    return math.log(float(errors[0] / errors[1])) / math.log(steps[1] / steps[0])


@pytest.mark.parametrize("name", NAMES)
def test_additive_noise_is_followed_path_by_path_to_the_first_order(name):
    """Ornstein-Uhlenbeck: x(1) = exp(-2) + integral of exp(-2 (1 - t)) dW, summed at 1/4096 s; 4000 paths."""
    circuit = Walk(DECAY, size=1.0)
    path = white_waves(circuit, (4000,), 4096, 1 / 4096, generator(1))
    left_s = 1 - (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    exact = math.exp(-2) + torch.einsum("t,t...->...", torch.exp(-2 * left_s), path)
    assert abs(strong_order(circuit, SCHEMES[name], path, exact, (16, 64)) - 1) < 0.1  # reads 1.02, Euler 1.04


@pytest.mark.parametrize("name", NAMES)
def test_noise_that_depends_on_the_state_converges_to_the_ito_solution(name):
    """Geometric Brownian motion dx = -x dt + x dW: exp(-1.5 + W) after Ito, mean exp(-1); exp(-1 + W) after
    Stratonovich, mean exp(-0.5). Path by path the order is a half.
    """
    circuit = Walk(DECAY / 2, share=1.0)
    path = white_waves(circuit, (4000,), 1024, 1 / 1024, generator(1))
    scheme = exponential_euler(DECAY / 2) if name == "exponential_euler" else SCHEMES[name]
    ito, stratonovich = torch.exp(path.sum(0) - 1.5), torch.exp(path.sum(0) - 1.0)
    end = ends_at_one_second(circuit, scheme, path, 1024)
    assert abs(float(end.mean() / ito.mean()) - 1) < 0.01
    assert abs(float(ito.mean() / math.exp(-1)) - 1) < 0.06  # 4000 paths: 2 % standard error
    assert float((end - ito).abs().mean()) < 0.1 * float((end - stratonovich).abs().mean())
    assert abs(strong_order(circuit, scheme, path, ito, (64, 1024)) - 0.5) < 0.1  # reads 0.51 to 0.52


GRADIENT = r"""
import re
from pathlib import Path
import torch
from stimopt.simulators import JansenRit, Network, simulate

torch.set_num_threads(1)
ring, gain = torch.roll(torch.eye(4), 1, 0), torch.linspace(5.0, 15.0, 256).requires_grad_()

def gradient(steps):
    moved = Network(JansenRit(torch.full((4,), 150.0)), ring, gain=gain)
    end = simulate(moved, moved.rest.expand(256, 4, 6), dt_s=2e-3, steps=steps, every=steps, checkpoint=True).end
    torch.autograd.grad(end.sum(), gain)

def peak_mb():
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

gradient(40)
for steps in (300, 1200):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_mb()
    gradient(steps)
    print(peak_mb() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux gives it")
def test_memory_of_a_gradient_with_checkpoints_grows_with_the_root_of_time(tmp_path):
    """In a process whose allocator gives back what is freed, so that gaps in its heap are not counted."""
    (tmp_path / "gradient.py").write_text(GRADIENT)
    ran = subprocess.run(
        [sys.executable, "gradient.py"], cwd=tmp_path, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "8192"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    short, long = (float(line) for line in ran.stdout.split())
    assert long < 2.6 * short, (short, long)  # the root gives 2, a straight line 4
