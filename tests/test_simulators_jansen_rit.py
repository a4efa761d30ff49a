"""Jansen-Rit against the published bifurcations of its afferent drive and its alpha rhythm."""

from dataclasses import replace

import pytest
import torch

from stimopt.simulators import JansenRit, jansen_rit_patient, rk4
from stimopt.stimulus import pulse_train
from stimopt.tensors import generator


def equilibria(low: float, high: float, count: int) -> tuple[JansenRit, torch.Tensor]:
    """One uncoupled region per potential y1 - y2 between low and high, with the drive that makes it an equilibrium."""
    y = torch.linspace(low, high, count, dtype=torch.float64)

    def fire(v):
        return 5.0 / (1 + torch.exp(0.56 * (6.0 - v)))

    y0 = 3.25 / 100 * fire(y)
    y2 = 22.0 / 50 * 0.25 * 135 * fire(0.25 * 135 * y0)
    afferents = 100 / 3.25 * (y + y2) - 0.8 * 135 * fire(135 * y0)
    zero = torch.zeros_like(y)
    return JansenRit(afferents), torch.stack([y0, y + y2, y2, zero, zero, zero], -1)


def eigenvalues(circuit: JansenRit, state: torch.Tensor) -> torch.Tensor:
    state = state.clone().requires_grad_()
    drift = circuit.drift(state, torch.zeros(len(state), 2, dtype=torch.float64))
    rows = [torch.autograd.grad(drift[:, i].sum(), state, retain_graph=True)[0] for i in range(6)]
    return torch.linalg.eigvals(torch.stack(rows, -2))


def crossings(value: torch.Tensor, at: torch.Tensor) -> list[float]:
    """Where `value` changes sign along `at`, by straight lines between neighbours."""
    turns = (value[1:] * value[:-1] < 0).nonzero().flatten()
    share = value[turns] / (value[turns] - value[turns + 1])
    return (at[turns] + share * (at[turns + 1] - at[turns])).tolist()


def test_equilibria_of_the_equations_are_fixed_points_of_the_drift():
    circuit, state = equilibria(-5.0, 15.0, 201)
    still = circuit.drift(state, torch.zeros(201, 2, dtype=torch.float64))
    assert float(still.abs().max()) < 1e-8  # mV/s and mV/s^2, whose terms are up to 1e6


@pytest.mark.parametrize("published", [89.83, 315.70, -12.15])
def test_hopf_points_lie_where_they_were_published(published):
    """Grimbert and Faugeras 2006, Neural Computation 18:3052, figure 3: p at the Hopf bifurcations."""
    circuit, state = equilibria(-2.0, 14.0, 4001)
    values = eigenvalues(circuit, state)
    turning = torch.where(values.imag.abs() > 1e-3, values.real, -torch.inf).amax(-1)
    found = crossings(turning.clamp_min(-1e3), circuit.afferents_hz)
    assert min(abs(p - published) for p in found) < 0.01


def test_the_saddle_node_lies_where_it_was_published():
    """Grimbert and Faugeras 2006: p = 113.58, where the spike cycle begins; here p turns along the equilibria."""
    circuit, _ = equilibria(-2.0, 14.0, 4001)
    assert abs(float(circuit.afferents_hz[:2000].max()) - 113.59) < 0.01


def test_alpha_at_the_middle_of_the_papers_drive():
    circuit = JansenRit(torch.tensor([220.0], dtype=torch.float64))
    state, drive, readings = circuit.rest, torch.zeros(3, 1, 2, dtype=torch.float64), []
    for _ in range(4500):
        state = rk4(circuit.drift, state, drive, 2e-3)
        readings.append(circuit.potential_mv(state)[0])
    settled = torch.stack(readings[3500:])
    upward = crossings(settled - settled.mean(), torch.arange(1000, dtype=torch.float64) * 2e-3)
    upward = upward[::2]  # every second crossing goes the same way
    rate_hz = (len(upward) - 1) / (upward[-1] - upward[0])
    assert 8.0 < rate_hz < 13.0  # Jansen and Rit 1995: alpha
    assert (
        abs(rate_hz - 10.9375) < 0.01
    )  # the same equations by an adaptive integrator (Dormand-Prince 5(4), tolerance 1e-10)
    assert abs(float(settled.max() - settled.min()) - 2.946) < 0.01  # mV, peak to peak, by the same


def test_a_quiet_column_rests_and_a_flooded_one_rests_higher():
    circuit = JansenRit(torch.tensor([60.0, 220.0, 450.0], dtype=torch.float64))
    state, drive, readings = circuit.rest, torch.zeros(3, 3, 2, dtype=torch.float64), []
    for _ in range(2000):
        state = rk4(circuit.drift, state, drive, 1e-3)
        readings.append(circuit.potential_mv(state))
    swing = torch.stack(readings[1500:])
    low, alpha, high = (swing.amax(0) - swing.amin(0)).tolist()
    assert low < 0.05 < 3.0 < alpha
    assert high < 0.05
    assert float(swing[-1, 2]) > float(swing[-1, 0]) + 5.0


def test_the_step_of_the_patients_is_as_good_as_one_of_an_eighth():
    coarse = jansen_rit_patient(patient=1, window_s=0.1, noise=0.0)
    coarse = replace(coarse, settle_s=0.3)
    stimulus = pulse_train(coarse.montage, "B2-B3", amplitude_ma=3.0, frequency_hz=60.0, pulses=5, onset_s=0.0107)
    with torch.no_grad():
        state = coarse.start((), generator(0))
        readings = []
        for dt_s in (2e-3, 1e-3, 1.25e-4):
            response, _ = replace(coarse, dt_s=dt_s).respond(state, stimulus, generator(1))
            readings.append(response.signal_uv)
    largest, usual, fine = readings
    assert float((usual - fine).abs().max()) < 3.0  # uV, of 385: pulses of 200 us within steps of 1 ms
    assert float((largest - fine).abs().max()) < 12.0


def test_a_stimulus_enters_as_afferent_firing():
    one = JansenRit(torch.tensor([150.0], dtype=torch.float64))
    other = JansenRit(torch.tensor([190.0], dtype=torch.float64))
    state = torch.rand(1, 6, generator=generator(1), dtype=torch.float64)
    driven = one.drift(state, torch.tensor([[40.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(driven, other.drift(state, torch.zeros(1, 2, dtype=torch.float64)), rtol=1e-12, atol=0.0)
