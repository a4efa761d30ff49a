"""Montbrio-Pazo-Roxin against the closed forms of its paper, an integration of its equations, and its cells."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from stimopt.simulators import Network, simulate
from stimopt.simulators.dynamics import Dynamics
from stimopt.simulators.montbrio import MontbrioPazoRoxin
from stimopt.simulators.step_check import half_step_error
from stimopt.tensors import generator

ETA = np.array([-5.0, -4.5, -6.0])
WEIGHTS = np.array([[0.0, 0.8, 0.3], [0.5, 0.0, 0.0], [0.4, 0.9, 0.0]])
START = np.array([[0.9, -0.2], [0.2, -1.5], [0.5, 0.3]])
TOLERANCE = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
CUSP_RATE = (3 / (4 * math.pi**4)) ** 0.25  # where both ends of the range of two states meet, for Delta = 1


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def slope(state, current, *, tau=1.0, delta=1.0, weight=15.0, gamma=0.0):
    """The paper's equations per unit of time; state [region, 2] flat, current with eta in it [region]."""
    r, v = state[0::2], state[1::2]
    r_rate = (delta / (np.pi * tau) + gamma * r / np.pi + 2 * r * v) / tau
    v_rate = (v**2 - (np.pi * tau * r) ** 2 + weight * tau * r + current) / tau
    return np.stack([r_rate, v_rate], -1).ravel()


def eta_at(rate, weight=15.0, delta=1.0):
    """The excitability that makes `rate` an equilibrium, where v = -Delta / (2 pi r)."""
    return (math.pi * rate) ** 2 - weight * rate - (delta / (2 * math.pi * rate)) ** 2


def end_of_range(low: float, high: float) -> float:
    """Rate at which the curve of equilibria turns: J = 2 pi^2 r + Delta^2 / (2 pi^2 r^3)."""
    return brentq(lambda r: 2 * math.pi**2 * r + 1 / (2 * math.pi**2 * r**3) - 15.0, low, high)


def eigenvalues(rate: float) -> torch.Tensor:
    circuit = MontbrioPazoRoxin(tensor([eta_at(rate)]), unit_s=1.0)
    still = torch.zeros(1, 1, dtype=torch.float64)
    at = tensor([[rate, -1 / (2 * math.pi * rate)]])
    assert float(circuit.drift(at, still).abs().max()) < 1e-12  # the closed form is an equilibrium
    jacobian = torch.autograd.functional.jacobian(lambda x: circuit.drift(x, still), at)
    return torch.linalg.eigvals(jacobian.reshape(2, 2))


def test_a_driven_population_follows_the_papers_equations():
    """Every constant off its default, in ms."""
    dt_s, steps = 2e-5, 1000
    at_ms = (np.arange(steps)[:, None] + np.array([0.0, 0.5, 1.0])) * dt_s * 1e3
    drive = (2.0 * np.sin(at_ms))[:, :, None, None]
    circuit = MontbrioPazoRoxin(
        tensor([-5.0]), current=0.7, spread=0.8, weight=13.0, weight_spread=0.3, tau=1.5, unit_s=1e-3
    )
    end = simulate(circuit, tensor(START[:1]), dt_s=dt_s, drive=tensor(drive)).end

    def driven(t, state):
        return slope(state, -4.3 + 2.0 * np.sin(t), tau=1.5, delta=0.8, weight=13.0, gamma=0.3)

    true = solve_ivp(driven, (0, 20), START[0], **TOLERANCE).y[:, -1]
    np.testing.assert_allclose(end.numpy().ravel(), true, rtol=0, atol=1e-7)


def test_a_network_through_rates_and_potentials_follows_the_equations():
    """cr = 1 and cv = 0.2 of The Virtual Brain as the entry matrix."""
    circuit = MontbrioPazoRoxin(tensor(ETA))
    network = Network(circuit, tensor(WEIGHTS), gain=2.0, entry=tensor([[1.0, 0.2]]))
    end = simulate(network, tensor(START), dt_s=1e-4, steps=1000).end  # ten membrane time constants

    def coupled(_, state):
        return slope(state, ETA + 2.0 * WEIGHTS @ (state[0::2] + 0.2 * state[1::2]))

    true = solve_ivp(coupled, (0, 10), START.ravel(), **TOLERANCE).y[:, -1]
    np.testing.assert_allclose(end.numpy().ravel(), true, rtol=0, atol=1e-7)


def test_a_network_with_delays_follows_the_method_of_steps():
    delay, state, before = 1.2, START.ravel(), lambda t: START.ravel()
    for number in range(5):

        def coupled(t, state, before=before):
            return slope(state, ETA + 2.0 * WEIGHTS @ before(t - delay)[0::2])

        span = (number * delay, (number + 1) * delay)
        solved = solve_ivp(coupled, span, state, dense_output=True, max_step=delay / 20, **TOLERANCE)
        state, before = solved.y[:, -1], solved.sol
    late = tensor(np.full((3, 3), delay * 0.01))
    network = Network(MontbrioPazoRoxin(tensor(ETA)), tensor(WEIGHTS), gain=2.0, delay_s=late)
    end = simulate(network, tensor(START), dt_s=1e-4, steps=600).end
    np.testing.assert_allclose(end.numpy().ravel(), state, rtol=0, atol=1e-6)


def test_without_coupling_the_rate_is_the_papers_closed_form():
    """J = 0: r = sqrt(eta + sqrt(eta^2 + Delta^2)) / (sqrt(2) pi)."""
    eta = tensor([-3.0, 0.0, 2.0])
    circuit = MontbrioPazoRoxin(eta, weight=0.0)
    end = simulate(circuit, circuit.rest, dt_s=2e-4, steps=700, every=700).end
    torch.testing.assert_close(
        end[:, 0], (eta + (eta**2 + 1).sqrt()).sqrt() / (math.sqrt(2) * math.pi), rtol=1e-4, atol=0
    )


def test_two_states_stand_side_by_side_where_it_was_published():
    """J = 15, Delta = 1: saddle-nodes at eta = -pi^2 r^2 - 3 Delta^2 / (4 pi^2 r^2), here -5.7435 and -3.1361."""
    rates = [end_of_range(0.01, CUSP_RATE), end_of_range(CUSP_RATE, 3.0)]
    ends = [-((math.pi * r) ** 2) - 3 / (2 * math.pi * r) ** 2 for r in rates]
    np.testing.assert_allclose(ends, [-3.136134, -5.743527], atol=1e-6)
    for rate, eta in zip(rates, ends, strict=True):
        assert abs(eta_at(rate) - eta) < 1e-9
        assert float(eigenvalues(rate).abs().min()) < 1e-9  # and there the drift's slope vanishes along one direction
    eta = tensor([ends[1] - 0.1, ends[1] + 0.1, -5.0, ends[0] - 0.1, ends[0] + 0.1])
    quiet, active = [0.07, -2.2], [brentq(lambda r: eta_at(r) + 5.0, rates[1], 3.0), -0.15]
    circuit = MontbrioPazoRoxin(eta)
    ramp = torch.linspace(0, 1, 1000, dtype=torch.float64).reshape(-1, 1, 1, 1) * (eta + 5.0).reshape(-1, 1)
    slow = ramp.expand(1000, 3, 5, 1)  # from the active state of eta = -5 towards those of the others, without a kick
    at_five = MontbrioPazoRoxin(torch.full((5,), -5.0, dtype=torch.float64))
    carried = simulate(at_five, tensor([active] * 5), dt_s=2e-4, drive=slow, every=1000).end
    starts = torch.stack([tensor([quiet] * 5), carried])
    low, high = simulate(circuit, starts, dt_s=2e-4, steps=1000, every=1000).end[..., 0]
    assert ((high - low) > 0.3).tolist() == [False, True, True, True, False]


def test_the_cusp_lies_at_its_closed_form():
    """Two states need J > 8 pi^2 r / 3 at the cusp, 7.797 for Delta = 1, and eta < -sqrt(3)."""
    curve = tensor(np.linspace(0.05, 1.5, 20001))
    turns = {weight: int((eta_at(curve, weight).diff().sign().diff() != 0).sum()) for weight in (7.79, 7.81)}
    assert turns == {7.79: 0, 7.81: 2}
    assert abs(8 * math.pi**2 * CUSP_RATE / 3 - 7.797) < 1e-3
    assert abs(eta_at(CUSP_RATE, 8 * math.pi**2 * CUSP_RATE / 3) + math.sqrt(3)) < 1e-12


def test_the_active_state_is_a_focus_and_the_quiet_one_a_node():
    """Montbrio et al. 2015: at eta = -5, J = 15, Delta = 1 the active state rings and the quiet one does not."""
    turning = (end_of_range(0.01, CUSP_RATE), end_of_range(CUSP_RATE, 3.0))
    brackets = ((0.02, turning[0]), turning, (turning[1], 3.0))
    quiet, between, active = (eigenvalues(brentq(lambda r: eta_at(r) + 5.0, *ends)) for ends in brackets)
    assert bool((quiet.imag == 0).all() & (quiet.real < 0).all())
    assert float(between.real.max()) > 0 > float(between.real.min())
    assert bool((active.imag != 0).all() & (active.real < 0).all())


def test_a_pulse_of_current_switches_it_on_and_a_negative_one_off():
    circuit = MontbrioPazoRoxin(tensor([-5.0]))
    drive = torch.zeros(1500, 3, 1, 1, dtype=torch.float64)
    drive[200:500], drive[1000:1200] = 3.0, -3.0  # the paper's pulse is of 3 as well
    rate = simulate(circuit, circuit.rest, dt_s=2e-4, drive=drive, every=100).readings[0, 0]
    np.testing.assert_allclose([rate[1], rate[9], rate[14]], [0.0811, 1.0306, 0.0811], atol=0.03)  # still ringing


@pytest.mark.slow
def test_it_is_the_rate_of_the_cells_it_stands_for():
    """10^4 quadratic integrate-and-fire cells, as in the paper's figure 3: rates through a pulse of 3 at eta = -5.

    The cells' excitabilities are quantiles of the Lorentzian. A cell beyond V = 100 fires, and waits 2 / V for
    infinity and back, as in the paper. Finite N, peak and step leave a few per cent: 5 % of the active state's rate.
    """
    cells, peak, dt, steps = 10_000, 100.0, 1e-3, 30_000
    eta = -5 + np.tan(np.pi / 2 * (2 * np.arange(1, cells + 1) - cells - 1) / (cells + 1))
    v, waits, rates, fired = np.full(cells, -2.0), np.zeros(cells), np.zeros(steps), 0.0
    waiting = np.zeros(cells, dtype=bool)  # of those waiting: still to fire
    for step in range(steps):
        pulse = 3.0 if 10_000 <= step < 20_000 else 0.0
        waits -= dt
        free = waits <= 0
        v = np.where(free, v + dt * (v * v + eta + 15.0 * fired + pulse), v)
        over = free & (v >= peak)
        waits = np.where(over, 2 / np.maximum(v, peak), waits)
        half = waits - 1 / peak
        spikes = waiting & (half <= 0)
        waiting = (waiting & ~spikes) | over
        v = np.where(over, -v, v)
        fired = spikes.sum() / cells / dt
        rates[step] = fired
        fired = rates[max(0, step - 9) : step + 1].mean()  # synapses of a hundredth of the membrane's time
    mean = rates.reshape(30, -1).mean(1)  # over each membrane time constant
    circuit = MontbrioPazoRoxin(tensor([-5.0]))
    drive = torch.zeros(3000, 3, 1, 1, dtype=torch.float64)
    drive[1000:2000] = 3.0
    expected = simulate(circuit, tensor([[0.0, -2.0]]), dt_s=1e-4, drive=drive).readings[0, 0].reshape(30, -1).mean(1)
    np.testing.assert_allclose(mean[[9, 19, 29]], expected.numpy()[[9, 19, 29]], atol=0.05)


def test_gradients_in_parameters_match_finite_differences():
    def end(eta, spread, weight, tau, pulse):
        network = Network(MontbrioPazoRoxin(eta, spread=spread, weight=weight, tau=tau), tensor(WEIGHTS), gain=2.0)
        half = simulate(network, tensor(START), dt_s=2e-4, drive=pulse * torch.ones(8, 3, 3, 1, dtype=torch.float64))
        return simulate(network, half.end, dt_s=2e-4, steps=8).end

    at = tuple(tensor(x).requires_grad_() for x in (ETA, 1.0, 15.0, 1.1, 0.4))
    assert torch.autograd.gradcheck(end, at, rtol=1e-5, atol=1e-8)


def test_the_largest_step_is_as_good_as_half_of_it():
    for eta, start in ((-5.0, [2.0, 0.0]), (1.0, [0.0, 1.5])):
        circuit = MontbrioPazoRoxin(tensor([eta]))
        assert half_step_error(circuit, dt_s=circuit.largest_dt_s, seconds=0.02, start=tensor([start])) < 0.01
    assert math.isclose(MontbrioPazoRoxin(tensor([0.0]), tau=tensor([2.0]), unit_s=1e-3).largest_dt_s, 2e-5)


def test_noise_and_readings_are_what_they_say():
    circuit = MontbrioPazoRoxin(tensor(ETA), noise_rate=0.1, noise_potential=0.2, unit_s=0.04, scale_mv=3.0)
    state = torch.rand(4, 3, 2, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(circuit.noise(state), tensor([0.5, 1.0]).expand(4, 3, 2))
    torch.testing.assert_close(circuit.potential_mv(state), 3 * state[..., 1])
    torch.testing.assert_close(
        circuit.emission_rate(state, 2 * state), Dynamics.emission_rate(circuit, state, 2 * state)
    )
