"""The linear network against its exact solution: propagator, integration, twin and spectrum."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from stimopt.errors import ShapeError
from stimopt.simulators import (
    JansenRit,
    LinearOscillator,
    Network,
    exact_step,
    linear_patient,
    rk4,
    simulate,
    stage_drive,
    system_matrices,
)
from stimopt.stimulus import no_stimulus, pulse_train
from stimopt.tensors import generator


def network() -> Network:
    tensor = torch.tensor([[0.0, 0.7, 0.2], [0.4, 0.0, 0.0], [0.0, 0.9, 0.0]], dtype=torch.float64)
    natural = torch.tensor([50.0, 63.0, 80.0], dtype=torch.float64)
    damping = torch.tensor([5.0, 8.0, 3.0], dtype=torch.float64)
    return Network(LinearOscillator(natural, damping, drive_gain=40.0), tensor, gain=8.0)


def test_one_oscillator_rings_as_the_textbook_says():
    circuit = LinearOscillator(torch.tensor([60.0], dtype=torch.float64), torch.tensor([8.0], dtype=torch.float64))
    dt_s, steps = 1e-3, 137
    step, state = exact_step(circuit, dt_s), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    for _ in range(steps):
        state = step(circuit.drift, state, torch.zeros(3, 1, 1, dtype=torch.float64), dt_s)
    damped = math.sqrt(60.0**2 - 8.0**2)
    expected = math.exp(-8.0 * steps * dt_s) * math.sin(damped * steps * dt_s) / damped
    assert abs(float(state[0, 0]) - expected) < 1e-14  # displacement is 0.005


def test_the_exact_step_solves_a_constant_push_exactly():
    circuit = network()
    a, b = system_matrices(circuit)
    push = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    dt_s = 0.01
    after = exact_step(circuit, dt_s)(circuit.drift, circuit.rest, push.unsqueeze(-1).expand(3, 3, 1), dt_s).flatten()
    growth = torch.linalg.matrix_exp(a * dt_s) - torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(after, torch.linalg.solve(a, growth @ b @ push), rtol=1e-10, atol=1e-14)


def test_fine_integration_agrees_with_the_exact_solution_to_ten_digits():
    circuit, dt_s, steps = network(), 5e-5, 1000
    phase = torch.linspace(0.0, 6.0, 2 * steps, dtype=torch.float64)
    halves = 30.0 * torch.stack([phase.sin(), phase.cos(), (2 * phase).sin()])
    exact, stages = exact_step(circuit, dt_s), stage_drive(halves, 2)
    one = two = circuit.rest + 0.5
    for drive in stages.unsqueeze(-1):
        one, two = exact(circuit.drift, one, drive, dt_s), rk4(circuit.drift, two, drive, dt_s)
    assert float((one - two).abs().max() / one.abs().max()) < 1e-10


@pytest.mark.parametrize("circuit", [network().circuit, network()], ids=["single", "network"])
@pytest.mark.parametrize(("scheme", "dt_s"), [(rk4, 5e-5), (exact_step, 1e-3)], ids=["rk4", "exact"])
def test_simulate_agrees_with_the_exact_solution_through_a_pulse_to_ten_digits(circuit, scheme, dt_s):
    """20 ms of ringing, 4 ms of push, 26 ms of ringing, each by one matrix exponential of the equation as written."""
    start, push = circuit.rest + torch.tensor([0.2, -3.0], dtype=torch.float64), torch.tensor([5e3, -2e3, 3e3])
    bins = torch.zeros(3, round(0.05 / dt_s), 2, dtype=torch.float64)
    bins[:, round(0.02 / dt_s) : round(0.024 / dt_s)] = push.double().reshape(3, 1, 1)
    drive = stage_drive(bins.flatten(-2), 2).unsqueeze(-1)
    scheme = exact_step(circuit, dt_s) if scheme is exact_step else scheme
    played = simulate(circuit, start, dt_s=dt_s, drive=drive, scheme=scheme)
    exact = start.numpy().T.ravel()  # displacements, then rates
    for seconds, force in ((0.02, 0.0), (0.004, 40.0), (0.026, 0.0)):
        exact = pushed(exact, force * push.double().numpy(), seconds, coupled=isinstance(circuit, Network))
    size = float(played.readings.abs().amax((0, 2))[0])
    np.testing.assert_allclose(played.end.numpy().T[0], exact[:3], rtol=0, atol=1e-10 * size)
    np.testing.assert_allclose(played.end.numpy().T[1], exact[3:], rtol=0, atol=1e-10 * 80 * size)  # at 80 rad/s


def pushed(state: np.ndarray, force: np.ndarray, seconds: float, coupled: bool) -> np.ndarray:
    """The solution of x'' = force + 320 W x - 2 damping x' - natural^2 x after a constant force, by scipy."""
    weights = 40.0 * 8.0 * np.array([[0.0, 0.7, 0.2], [0.4, 0.0, 0.0], [0.0, 0.9, 0.0]])
    stiff = (weights if coupled else 0.0) - np.diag(np.array([50.0, 63.0, 80.0]) ** 2)
    a = np.block([[np.zeros((3, 3)), np.eye(3)], [stiff, -2 * np.diag([5.0, 8.0, 3.0])]])
    still = -np.linalg.solve(a, np.concatenate([np.zeros(3), force]))
    return expm(a * seconds) @ (state - still) + still


def test_ten_exact_steps_are_one_exact_step_of_ten_times_the_length():
    circuit = network()
    small, large = exact_step(circuit, 1e-3), exact_step(circuit, 1e-2)
    zero, state = torch.zeros(3, 3, 1, dtype=torch.float64), circuit.rest + 0.3
    once = large(circuit.drift, state, zero, 1e-2)
    for _ in range(10):
        state = small(circuit.drift, state, zero, 1e-3)
    torch.testing.assert_close(state, once, rtol=1e-12, atol=1e-14)


def test_a_twin_integrated_numerically_answers_as_the_exact_one():
    exact = replace(linear_patient(patient=2, regions=6, contacts=8, window_s=0.2), settle_s=0.2)
    stimulus = pulse_train(exact.montage, "A2-A3", amplitude_ma=4.0, frequency_hz=47.0, pulses=6, onset_s=0.01)
    state = exact.start((), generator(0))
    one, _ = exact.respond(state, stimulus, generator(1))
    two, _ = replace(exact, scheme=rk4).respond(state, stimulus, generator(1))
    size = float(one.signal_uv.abs().max())
    assert float((one.signal_uv - two.signal_uv).abs().max()) < 1e-4 * size  # pulses of 200 us within steps of 1 ms


def test_the_largest_step_allowed_keeps_the_phase_of_a_thirty_hertz_rhythm():
    natural, damping = torch.tensor([2 * math.pi * 30], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    circuit = LinearOscillator(natural, damping)
    dt_s = circuit.largest_dt_s
    exact, zero = exact_step(circuit, dt_s), torch.zeros(3, 1, 1, dtype=torch.float64)
    one = two = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for _ in range(round(0.5 / dt_s)):
        one, two = exact(circuit.drift, one, zero, dt_s), rk4(circuit.drift, two, zero, dt_s)
    phases = [torch.atan2(-state[0, 1] / natural[0], state[0, 0]) for state in (one, two)]
    assert abs(float(phases[0] - phases[1])) < 0.02  # rad after 15 periods: (w dt)^5 / 120 a step


def test_a_circuit_that_is_not_linear_has_no_system_matrices():
    with pytest.raises(ShapeError, match="exact solution"):
        system_matrices(JansenRit(torch.tensor([220.0], dtype=torch.float64)))


def test_halving_the_step_of_a_twin_keeps_the_variance_of_its_signal():
    twin = replace(linear_patient(patient=0, regions=4, contacts=4, drift=0.0), window_s=0.05, settle_s=0.4)
    twin = replace(twin, sensing=replace(twin.sensing, noise_uv=0.0), scheme=rk4)
    variances = []
    for dt_s in (1e-3, 5e-4):
        finer = replace(twin, dt_s=dt_s)
        with torch.no_grad():
            state = finer.start((300,), generator(0))
            response, _ = finer.respond(state, no_stimulus(twin.montage, (300,)), generator(1))
        variances.append(float(response.signal_uv.var((0, -1)).mean()))
    assert abs(variances[0] / variances[1] - 1) < 0.2  # 300 rows: 8 % standard error each; a missing root gives 2
