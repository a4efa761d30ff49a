"""Stuart-Landau oscillators against their exact solution, their stationary law, and published amplitude death."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from stimopt.simulators import Network, simulate, white_waves
from stimopt.simulators.dynamics import Dynamics
from stimopt.simulators.hopf import StuartLandau
from stimopt.simulators.step_check import half_step_error
from stimopt.tensors import generator

OMEGA = np.array([6.0, 9.0, 7.5])
GROWTH = np.array([-0.4, 0.8, 0.3])
WEIGHTS = np.array([[0.0, 0.8, 0.3], [0.5, 0.0, 0.0], [0.4, 0.9, 0.0]])
START = np.array([[0.5, 0.1], [-0.3, 0.6], [0.2, -0.7]])
TOLERANCE = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
BOTH = torch.eye(2, dtype=torch.float64)


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def own(state):
    """The normal form z' = (a + i omega - |z|^2) z of each region, written for complex z."""
    z = state[0::2] + 1j * state[1::2]
    return (GROWTH + 1j * OMEGA - abs(z) ** 2) * z


def flat(z):
    return np.stack([z.real, z.imag], -1).ravel()


def test_each_oscillator_spirals_as_the_exact_solution():
    """r^2 = a / (1 + (a / r0^2 - 1) exp(-2 a t)), at the angle omega t: a Bernoulli equation."""
    growth = tensor([[-0.5], [0.25], [1.0]])
    circuit = StuartLandau(tensor([6.0] * 3), bifurcation=growth[:, 0])
    played = simulate(circuit, tensor([[0.3, 0.0]] * 3), dt_s=5e-3, steps=400).readings  # [region, state, time]
    t = torch.arange(400, dtype=torch.float64) * 5e-3
    radius = (growth / (1 + (growth / 0.09 - 1) * torch.exp(-2 * growth * t))).sqrt()
    exact = radius.unsqueeze(1) * torch.stack([torch.cos(6 * t), torch.sin(6 * t)])
    torch.testing.assert_close(played, exact, rtol=0, atol=1e-6)  # RK4: (omega dt)^5 / 120 a step is 1e-7 in all


@pytest.mark.parametrize("diffusive", [False, True])
def test_a_network_without_delays_follows_the_papers_equations(diffusive):
    """Deco et al. 2017: differences in x and in y; and the additive form."""
    circuit = StuartLandau(tensor(OMEGA), bifurcation=tensor(GROWTH))
    network = Network(circuit, tensor(WEIGHTS), gain=0.7, entry=BOTH, diffusive=diffusive)
    at_s = (np.arange(300)[:, None] + np.array([0.0, 0.5, 1.0])) * 5e-3
    drive = np.stack([0.5 * np.sin(3 * at_s), 0.2 * np.cos(5 * at_s)], -1)[:, :, None]
    end = simulate(network, tensor(START), dt_s=5e-3, drive=tensor(drive)).end

    def coupled(t, state):
        z = state[0::2] + 1j * state[1::2]
        arriving = 0.7 * (WEIGHTS @ z - diffusive * WEIGHTS.sum(1) * z)
        return flat(own(state) + arriving + 0.5 * np.sin(3 * t) + 0.2j * np.cos(5 * t))

    true = solve_ivp(coupled, (0, 1.5), START.ravel(), **TOLERANCE).y[:, -1]
    np.testing.assert_allclose(end.numpy().ravel(), true, rtol=0, atol=1e-6)


def test_differences_with_delays_follow_the_method_of_steps():
    """The other region is seen late, the region itself now."""
    delay_s, state, before = 0.1, START.ravel(), lambda t: START.ravel()
    for number in range(5):

        def coupled(t, state, before=before):
            late = before(t - delay_s)
            z = state[0::2] + 1j * state[1::2]
            return flat(own(state) + 0.7 * (WEIGHTS @ (late[0::2] + 1j * late[1::2]) - WEIGHTS.sum(1) * z))

        span = (number * delay_s, (number + 1) * delay_s)
        solved = solve_ivp(coupled, span, state, dense_output=True, max_step=delay_s / 10, **TOLERANCE)
        state, before = solved.y[:, -1], solved.sol
    circuit = StuartLandau(tensor(OMEGA), bifurcation=tensor(GROWTH))
    late = tensor(np.full((3, 3), delay_s))
    network = Network(circuit, tensor(WEIGHTS), gain=0.7, delay_s=late, entry=BOTH, diffusive=True)
    end = simulate(network, tensor(START), dt_s=5e-3, steps=100).end
    np.testing.assert_allclose(end.numpy().ravel(), state, rtol=0, atol=1e-6)


def test_two_detuned_oscillators_die_where_it_was_published():
    """Aronson, Ermentrout and Kopell 1990, Physica D 41:403: death for K > 1 and detuning > 2 sqrt(2 K - 1)."""
    gains, margin = tensor([0.9, 1.5, 1.5, 3.0, 3.0]), tensor([0.0, -0.3, 0.3, -0.3, 0.3])
    detuning = 2 * (2 * gains - 1).sqrt() + margin
    detuning[0] = 10.0  # far enough, but coupled too weakly
    omega = 8.0 + torch.stack([-detuning / 2, detuning / 2], -1)
    weights = tensor([[0.0, 1.0], [1.0, 0.0]])
    circuit = StuartLandau(omega, bifurcation=1.0)
    network = Network(circuit, weights, gain=gains, entry=BOTH, diffusive=True)

    def growth(row: int) -> float:
        alone = Network(StuartLandau(omega[row], bifurcation=1.0), weights, gains[row], entry=BOTH, diffusive=True)
        still = torch.zeros(2, 2, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda x: alone.drift(x, still), still)
        return float(torch.linalg.eigvals(jacobian.reshape(4, 4)).real.max())

    assert [growth(row) < 0 for row in range(5)] == [False, False, True, False, True]
    end = simulate(network, tensor(START[:2]).expand(5, 2, 2), dt_s=2e-2, steps=800, every=800).end
    assert bool((end.norm(dim=-1).amax(-1) > 0.2)[[0, 1, 3]].all())
    assert float(end[[2, 4]].norm(dim=-1).max()) < 0.03


def test_noise_spreads_it_as_the_stationary_law():
    """The Fokker-Planck equation is solved by exp((a r^2 / 2 - r^4 / 4) 2 / beta^2): rotation does not change it."""
    growth, beta = tensor([-0.5, 0.0, 0.5]), 0.4
    circuit = StuartLandau(torch.full((3,), 6.0, dtype=torch.float64), bifurcation=growth, noise_size=beta)
    waves = white_waves(circuit, (2000,), 400, 0.03, generator(2))
    end = simulate(circuit, tensor([[0.3, 0.0]] * 3).expand(2000, 3, 2), dt_s=0.03, waves=waves, steps=400).end
    found = end.square().sum(-1).mean(0)
    for a, mean in zip(growth.tolist(), found.tolist(), strict=True):

        def weight(s, a=a):
            return math.exp((a * s / 2 - s * s / 4) * 2 / beta**2)

        exact = quad(lambda s, w=weight: s * w(s), 0, 10)[0] / quad(weight, 0, 10)[0]
        assert abs(mean / exact - 1) < 0.08  # 2000 rows: a standard error of 2 % and the step's 0.3 %


def test_the_unit_of_time_scales_everything():
    """omega in rad per ms, noise per square root of a ms: the same path, a thousand times as fast."""
    slow = StuartLandau(tensor(OMEGA), bifurcation=0.2)
    fast = StuartLandau(tensor(OMEGA), bifurcation=0.2, unit_s=1e-3)
    drive, state = tensor([[0.3, -0.1]] * 3), tensor(START)
    torch.testing.assert_close(fast.drift(state, drive), 1000 * slow.drift(state, drive))
    torch.testing.assert_close(fast.noise(state), math.sqrt(1000) * slow.noise(state))
    assert math.isclose(fast.largest_dt_s, slow.largest_dt_s / 1000)


def test_gradients_in_parameters_match_finite_differences():
    def end(omega, growth, gain, pulse):
        network = Network(StuartLandau(omega, bifurcation=growth), tensor(WEIGHTS), gain, entry=BOTH, diffusive=True)
        drive = pulse * tensor([1.0, 0.3]).expand(8, 3, 3, 2)
        half = simulate(network, tensor(START), dt_s=2e-2, drive=drive)
        return simulate(network, half.end, dt_s=2e-2, steps=8).end

    at = tuple(tensor(x).requires_grad_() for x in (OMEGA, GROWTH, 0.7, 0.4))
    assert torch.autograd.gradcheck(end, at, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("omega", "growth"), [(0.3, -0.02), (62.8, 1.0), (1.0, 4.0)])
def test_the_largest_step_is_as_good_as_half_of_it(omega, growth):
    circuit = StuartLandau(tensor([omega]), bifurcation=growth)
    start = tensor([[max(1.0, math.sqrt(abs(growth))), 0.1]])
    dt_s = circuit.largest_dt_s
    assert half_step_error(circuit, dt_s=dt_s, seconds=100 * dt_s, start=start) < 1e-3


def test_readings_are_what_they_say():
    circuit = StuartLandau(tensor(OMEGA), scale_mv=3.0)
    state = torch.rand(4, 3, 2, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(circuit.noise(state), torch.full((4, 3, 2), 0.02, dtype=torch.float64))
    torch.testing.assert_close(circuit.potential_mv(state), 3 * state[..., 0])
    torch.testing.assert_close(
        circuit.emission_rate(state, 2 * state), Dynamics.emission_rate(circuit, state, 2 * state)
    )
