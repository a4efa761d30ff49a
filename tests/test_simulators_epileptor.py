"""Epileptor: the border of seizing by equations and by simulation, seizures ended and begun by pulses, recruitment.

Anchors: the fold of the fast subsystem at x1 = -4/3 puts the border at x0 = -2.0620; periods and shares of time in
seizure were measured once with Euler's scheme at 0.01 units over 15000 units, without noise.
"""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from stimopt.simulators import Dynamics, Network, simulate
from stimopt.simulators.epileptor import Epileptor, coupling_entry
from stimopt.simulators.step_check import half_step_error

START = (0.3, -2.0, 3.1, -0.4, 0.6, -0.05)  # within a seizure


def tensor(values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def in_units(excitability, **parameters) -> Epileptor:
    """An epileptor whose unit of time is a second, so that steps read in units."""
    return Epileptor(tensor(excitability), unit_s=1.0, **parameters)


def by_hand(x, x0, coupled_1=0.0, coupled_2=0.0, coupled_z=0.0, current_1=0.0, *, sigmoid=False, returning=0.0, tt=1.0):
    """Right-hand side written from the paper and The Virtual Brain's documentation, x as [state, region]."""
    x1, y1, z, x2, y2, g = x
    f1 = np.where(x1 < 0, x1**3 - 3 * x1**2, (x2 - 0.6 * (z - 4) ** 2) * x1)
    f2 = np.where(x2 < -0.25, 0.0, 6 * (x2 + 0.25))
    h = x0 + 3 / (1 + np.exp(-(x1 + 0.5) / 0.1)) if sigmoid else 4 * (x1 - x0) + np.where(z < 0, -returning * z**7, 0.0)
    return tt * np.stack(
        [
            y1 - f1 - z + 3.1 + current_1 + coupled_1,
            1 - 5 * x1**2 - y1,
            (h - z + coupled_z) / 2857,
            -y2 + x2 - x2**3 + 0.45 + 2 * g - 0.3 * (z - 3.5) + coupled_2,
            (-y2 + f2) / 10,
            -0.01 * (g - 0.1 * x1),
        ]
    )


@pytest.mark.parametrize("changes", [{}, {"sigmoid": True}, {"return_gain": 0.1}, {"speed": 0.4}])
def test_the_drift_is_that_of_the_paper_and_its_variants(changes):
    state = np.random.default_rng(1).normal(0.0, 1.5, (6, 40))
    x0 = np.linspace(-2.4, -1.0, 40)
    circuit = in_units(x0, **changes)
    drive = torch.zeros(40, 3, dtype=torch.float64)
    expected = by_hand(
        state, x0, sigmoid=changes.get("sigmoid", False), returning=changes.get("return_gain", 0.0),
        tt=changes.get("speed", 1.0),
    )  # fmt: skip
    torch.testing.assert_close(circuit.drift(tensor(state.T), drive), tensor(expected.T), rtol=1e-12, atol=1e-12)


def test_a_seizing_region_follows_an_adaptive_integrator():
    """Tolerance: RK4 crosses the bends of f1 and f2 within steps; 0.005 units leave 1e-6, 0.02 ten times that."""
    start = np.array(START)
    exact = solve_ivp(
        lambda _, x: by_hand(x, -1.6), (0, 6), start, method="DOP853", rtol=1e-11, atol=1e-12, max_step=0.05
    )
    end = simulate(in_units([-1.6]), tensor(start[None]), dt_s=0.005, steps=1200, every=1200).end
    np.testing.assert_allclose(end[0].numpy(), exact.y[:, -1], rtol=0, atol=3e-6)


WEIGHTS = np.array([[0.0, 0.7, 0.2], [0.5, 0.0, 1.0], [0.3, 0.0, 0.0]])
KVF, KF, KS = 0.4, 0.25, -0.8


def coupled_by_hand(_, flat, x0):
    x = flat.reshape(6, 3)
    total = WEIGHTS.sum(1)
    d1, d2 = WEIGHTS @ x[0] - total * x[0], WEIGHTS @ x[3] - total * x[3]
    return by_hand(x, x0, KVF * d1, KF * d2, KS * d1).ravel()


def test_a_network_follows_an_adaptive_integrator():
    """All three couplings of The Virtual Brain; at 0.005 units the bends leave 5e-6, at 0.02 1e-4."""
    x0 = np.array([-1.6, -2.1, -2.3])
    start = np.array(START)[:, None] * np.array([1.0, 0.8, 1.2])
    exact = solve_ivp(
        coupled_by_hand, (0, 6), start.ravel(), args=(x0,), method="DOP853", rtol=1e-11, atol=1e-12, max_step=0.05
    )
    weights = tensor(WEIGHTS)
    network = Network(in_units(x0), weights, diffusive=True, entry=coupling_entry(weights, KVF, KF, KS))
    end = simulate(network, tensor(start.T), dt_s=0.005, steps=1200, every=1200).end
    np.testing.assert_allclose(end.numpy().T, exact.y[:, -1].reshape(6, 3), rtol=0, atol=1.5e-5)


def equilibrium(x1: float) -> tuple[Epileptor, Tensor]:
    """The fixed point with this x1 below 0, and the x0 that makes it one."""
    z = 4.1 - 2 * x1**2 - x1**3
    roots = np.roots([1.0, 0.0, -1.0, -(0.45 + 0.2 * x1 - 0.3 * (z - 3.5))])  # y2 = 0, g = 0.1 x1
    x2 = float(roots[np.abs(roots.imag) < 1e-9].real.min())
    return in_units([x1 - z / 4]), tensor([[x1, 1 - 5 * x1**2, z, x2, 0.0, 0.1 * x1]])


def growth(circuit: Epileptor, state: Tensor) -> float:
    """Largest real part of the eigenvalues of the drift."""
    silent = torch.zeros(1, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda s: circuit.drift(s, silent).flatten(), state)
    return float(torch.linalg.eigvals(jacobian.reshape(6, 6)).real.max())


def test_the_fold_lies_at_the_border_of_seizing():
    """Where z = 4.1 - 2 x^2 - x^3 turns back, x = -4/3, x0 is -2.0620."""
    circuit, state = equilibrium(-4 / 3)
    assert abs(float(circuit.excitability[0]) + 2.0620) < 5e-5
    still = circuit.drift(state, torch.zeros(1, 3, dtype=torch.float64))
    assert float(still.abs().max()) < 1e-12


def test_rest_is_lost_between_2_065_and_2_060():
    """Eigenvalues along the fixed points: stable at x0 = -2.065, unstable at -2.060."""
    points = [equilibrium(x1) for x1 in np.linspace(-1.36, -1.30, 301)]
    border = [float(c.excitability[0]) for c, s in points if growth(c, s) < 0]
    assert -2.065 < max(border) < -2.060


def seizing(readings: Tensor) -> Tensor:
    """Which samples, one per unit, come within 40 units after x1 was above -0.5."""
    up = (readings > -0.5).to(readings).reshape(-1, 1, readings.shape[-1])
    held = torch.nn.functional.pad(up, (40, 0))
    return torch.nn.functional.max_pool1d(held, 41, 1).reshape(readings.shape)


def play_x1(circuit: Dynamics, start: Tensor, units: float, drive: Tensor | None = None) -> Tensor:
    """x1 once per unit, at a step of 0.1 units."""
    with torch.no_grad():
        steps = None if drive is not None else round(units / 0.1)
        return simulate(
            circuit, start, dt_s=0.1, steps=steps, drive=drive, reading=lambda state: state[..., 0], every=10
        ).readings


@pytest.mark.slow
def test_onset_periods_and_shares_of_seizures_by_simulation():
    """RK4 at 0.1 units, which is stable (0.15 is not), over 2100 units: an onset at -2.060, none at -2.065.

    At x0 = -1.6 the period was measured as 1937 units, 0.509 of the time in seizure (15000 units, the last period cut
    short). Tolerances: 1 % since onsets are read to a unit and Euler's scheme is first order; 0.03 for that cut.
    """
    circuit = in_units([-2.065, -2.060, -1.6])
    start = circuit.rest * tensor([1.0, 1.0, 2.95 / 3.1, 1.0, 1.0, 1.0])
    ictal = seizing(play_x1(circuit, start, 2100))
    onsets = [(row.diff() > 0).nonzero().flatten().tolist() for row in ictal]
    assert [len(times) for times in onsets] == [0, 1, 2]
    first, second = onsets[2]
    assert second - first == pytest.approx(1937, rel=0.01)
    assert float(ictal[2, first:second].mean()) == pytest.approx(0.509, abs=0.03)


def test_a_pulse_ends_a_seizure_and_a_weak_one_does_not():
    """10 units of current into x1, in mid seizure."""
    amplitudes = tensor([0.0, -0.25, -1.0, -3.0])
    circuit = in_units([-2.0])
    start = tensor([0.8, -0.5, 3.3, -0.8, 0.0, -0.08]).expand(4, 1, 6)
    drive = torch.zeros(900, 3, 4, 1, 3, dtype=torch.float64)
    drive[:100, ..., 0] = amplitudes.unsqueeze(-1)
    after = (play_x1(circuit, start, 90, drive)[:, 0, 50:] > -0.5).double().mean(-1)
    assert after.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_a_kick_starts_a_seizure_where_none_would_come():
    circuit, rest = equilibrium(-1.36)
    assert float(circuit.excitability[0]) < -2.0620
    drive = torch.zeros(800, 3, 3, 1, 3, dtype=torch.float64)
    drive[:50, ..., 0] = tensor([0.0, 0.2, 3.0]).unsqueeze(-1)
    x1 = play_x1(circuit, rest.expand(3, 1, 6), 80, drive)[:, 0]
    assert (x1[:, 40:].amax(-1) > 0).tolist() == [False, False, True]


@pytest.mark.slow
def test_more_is_not_better_when_pulses_answer_seizures():
    """10 units of inhibition as soon as x1 passes -0.5, and again when they are over, x0 = -2, over 4150 units.

    A pulse of 3 is followed by a rebound that brings the next one, so it is worse than one of 1, and from 2000 units on
    worse than none: here shares of time in seizure are 0.33, 0.17 and 0.66 for 0, 1 and 3. By Euler's scheme over 15000
    units they are 0.30, 0.13 and 0.91; an independent run, whose detector is not known in every detail, has 0.285,
    0.186 and 1.0. The length is that of examples/published_nuclei.py.
    Published relatives: Koksal Ersoz et al., PLoS Computational Biology 16 (2020) e1008430.
    """
    amplitudes = tensor([0.0, 1.0, 3.0])
    circuit = in_units([-2.0])
    state = circuit.rest.expand(3, 1, 6) * tensor([1.0, 1.0, 2.95 / 3.1, 1.0, 1.0, 1.0])
    left, peaks = torch.zeros(3, dtype=torch.float64), []
    with torch.no_grad():
        for _ in range(4150):
            drive = torch.zeros(1, 1, 3, 1, 3, dtype=torch.float64)
            drive[..., 0] = -(amplitudes * (left > 0)).unsqueeze(-1)
            played = simulate(circuit, state, dt_s=0.1, drive=drive.expand(10, 3, 3, 1, 3), reading=lambda s: s[..., 0])
            highest = played.readings[:, 0].amax(-1)
            state, left = played.end, torch.where((left <= 1) & (highest > -0.5), 10.0, left - 1)
            peaks.append(highest)
    none, middle, large = seizing(torch.stack(peaks, -1)).mean(-1).tolist()
    assert middle < none - 0.1, (none, middle)
    assert large > 1.5 * none, (none, large)


def test_a_seizing_neighbour_recruits_through_the_permittivity():
    """Ks = -4: the second region, healthy by itself, is drawn into the seizure of the first."""
    weights, gains = tensor([[0.0, 1.0], [1.0, 0.0]]), tensor([0.0, 1.0])
    circuit = in_units([-1.6, -2.2])
    start = torch.stack([tensor(START), equilibrium(-1.463)[1][0]]).expand(2, 2, 6)
    entry = coupling_entry(weights, permittivity=-4.0)
    x1 = play_x1(Network(circuit, weights, gain=gains, diffusive=True, entry=entry), start, 120)
    alone, joined = x1[:, 1].amax(-1).tolist()
    assert alone < -1.4
    assert joined > 0


def test_gradients_match_finite_differences():
    weights = tensor(WEIGHTS)
    start = tensor(START).expand(3, 6) * tensor([[1.0], [0.8], [1.2]])

    def end(x0: Tensor, amplitude: Tensor, ks: Tensor) -> Tensor:
        circuit = Epileptor(x0 + tensor([0.0, -0.3, -0.5]), unit_s=1.0)
        network = Network(circuit, weights, diffusive=True, entry=coupling_entry(weights, 0.2, 0.1, ks))
        drive = amplitude * torch.ones(30, 3, 3, 1, dtype=torch.float64) * tensor([1.0, 0.3, 0.0])
        return 1e3 * simulate(network, start, dt_s=0.05, drive=drive).end[:, 2].sum()  # z moves by thousandths

    at = tuple(tensor(value).requires_grad_() for value in (-1.6, 0.5, -0.8))
    assert torch.autograd.gradcheck(end, at, rtol=1e-5, atol=1e-7)


def test_half_of_the_largest_step_gives_the_same_seizure():
    """Over 20 units of a seizure, by its standard deviation; over 40 it is 0.0017, and 0.006 at 0.1 units."""
    circuit = in_units([-1.6])
    error = half_step_error(circuit, dt_s=circuit.largest_dt_s, seconds=20.0, start=tensor([START]))
    assert circuit.largest_dt_s == 0.045
    assert error < 3e-3


def test_the_unit_of_time_stretches_everything():
    fast, slow = Epileptor(tensor([-1.6])), Epileptor(tensor([-1.6]), unit_s=0.02)
    one = simulate(fast, tensor([START]), dt_s=5e-5, steps=20).end
    two = simulate(slow, tensor([START]), dt_s=1e-3, steps=20).end
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    assert slow.largest_dt_s == pytest.approx(0.9e-3)
