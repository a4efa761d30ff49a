"""Corticothalamic loop: published steady rates, the transfer function of the paper, alpha, integration by hand."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from stimopt.simulators import Network, simulate
from stimopt.simulators.corticothalamic import (
    AWAKE,
    EYES_CLOSED,
    RELAY,
    CorticothalamicWeights,
    corticothalamic,
)
from stimopt.simulators.step_check import half_step_error

ALPHA, BETA, GAMMA = 1 / 0.012, 1 / 0.0013, 116.0
RATES = {  # Q of excitatory (and inhibitory), reticular and relay cells in NFTsim's files, 1/s
    AWAKE: (5.248361515, 15.39601978, 8.789733431),
    EYES_CLOSED: (6.9858430745, 15.3466300572, 5.6382566040),
}


def network_of(weights: CorticothalamicWeights) -> Network:
    return corticothalamic(weights, input_hz=torch.ones((), dtype=torch.float64))


def steady(weights: CorticothalamicWeights) -> Tensor:
    """The state in which each population fires at the published rates: V from the inverse of the sigmoid."""
    e, r, s = RATES[weights]
    rates = torch.tensor([e, e, r, s], dtype=torch.float64)
    potential = 12.92 - 3.8 * torch.log(340 / rates - 1)
    still = torch.zeros_like(rates)
    field = torch.stack([rates[0], still[0], still[0], still[0]])
    return torch.stack([potential, still, field, still], -1)


@pytest.mark.parametrize("weights", RATES, ids=["awake", "eyes closed"])
def test_published_rates_are_steady(weights):
    """Sum of nu phi gives the V at which the sigmoid gives the rates; the files' weights carry 7 to 10 digits."""
    network, state = network_of(weights), steady(weights)
    played = simulate(network, state, dt_s=1e-3, steps=150)
    assert float((played.readings[:, 0] - state[:, :1]).abs().max()) < 1e-4  # mV


@pytest.mark.slow
def test_a_silent_brain_wakes_to_the_steady_rates():
    network = network_of(EYES_CLOSED)
    end = simulate(network, network.rest, dt_s=1e-3, steps=1000, every=1000).end
    expected = steady(EYES_CLOSED)[:, 0]
    torch.testing.assert_close(end[:, 0], expected, rtol=0, atol=0.2)  # mV; the alpha still rings


def by_hand(weights, start: np.ndarray, pulse_mv: float, seconds: float, dt_s: float) -> np.ndarray:
    """Heun's scheme on the paper's equations, a pulse of 5 ms into the relay cells; phi_e [time] from a still past."""
    w, back = weights, round(0.0425 / dt_s)
    steps = round(seconds / dt_s)
    sent = np.zeros((steps + 1, 3))  # phi_e, Q_i, Q_s; Q_r acts at once

    def fire(v):
        return 340 / (1 + np.exp((12.92 - v) / 3.8))

    def slope(x, n, pulse):
        ve, vi, vr, vs, due, dui, dur, dus, phi, dphi = x
        qe, qi, qr, qs = fire(np.array([ve, vi, vr, vs]))
        late_phi, _, late_s = sent[n - back] if n >= back else sent[0]
        cortex = w.e_to_e * phi + w.i_to_e * qi + w.s_to_e * late_s
        goals = (
            cortex,
            cortex,
            w.e_to_r * late_phi + w.s_to_r * qs,
            w.e_to_s * late_phi + w.r_to_s * qr + w.n_to_s + pulse,
        )
        forces = [
            ALPHA * BETA * (goal - v) - (ALPHA + BETA) * du
            for goal, v, du in zip(goals, (ve, vi, vr, vs), (due, dui, dur, dus), strict=True)
        ]
        return np.array([due, dui, dur, dus, *forces, dphi, GAMMA**2 * (qe - phi) - 2 * GAMMA * dphi])

    x = np.concatenate([start[:, 0], start[:, 1], start[0, 2:]])
    for n in range(steps + 1):
        sent[n] = x[8], fire(x[1]), fire(x[3])
        pulse = pulse_mv if n < round(5e-3 / dt_s) else 0.0
        first = slope(x, n, pulse)
        guess = x + dt_s * first
        if n < steps:
            sent[n + 1] = guess[8], fire(guess[1]), fire(guess[3])
        x = x + dt_s * (first + slope(guess, n + 1, pulse)) / 2
    return sent[:, 0]


def test_a_large_pulse_follows_a_hand_written_integration():
    """20 mV for 5 ms. Heun at 0.05 ms extrapolated once; RK4 at 0.5 ms is within 1e-4 of a swing of several 1/s."""
    start = steady(AWAKE)
    coarse, fine = (by_hand(AWAKE, start.numpy(), 20.0, 0.2, dt_s)[:: round(5e-4 / dt_s)] for dt_s in (1e-4, 5e-5))
    truth = fine + (fine - coarse) / 3
    drive = torch.zeros(400, 3, 4, 1, dtype=torch.float64)
    drive[:10, :, RELAY] = 20.0
    network = network_of(AWAKE)
    played = simulate(network, start, dt_s=5e-4, drive=drive, reading=lambda state: state[0, 2]).readings
    assert float(played.max() - played.min()) > 1.0
    np.testing.assert_allclose(played.numpy(), truth[:-1], rtol=0, atol=1e-3)


def transfer(weights: CorticothalamicWeights, frequency_hz: np.ndarray) -> np.ndarray:
    """phi_e / phi_n of the linearised equations: Robinson, Rennie and Rowe 2002, from gains G_ab = rho_a nu_ab."""
    e, r, s = (q * (1 - q / 340) / 3.8 for q in RATES[weights])
    i_omega = 2j * np.pi * frequency_hz
    smooth = 1 / ((1 + i_omega / ALPHA) * (1 + i_omega / BETA))
    trip = np.exp(-i_omega * 2 * 0.0425)
    w = weights
    g_ese, g_esre, g_srs = (
        e * w.s_to_e * s * w.e_to_s,
        e * w.s_to_e * s * w.r_to_s * r * w.e_to_r,
        s * w.r_to_s * r * w.s_to_r,
    )
    closed = 1 - smooth**2 * g_srs
    loops = smooth * e * w.e_to_e + trip * (smooth**2 * g_ese + smooth**3 * g_esre) / closed
    axons = (1 + i_omega / GAMMA) ** 2
    within = 1 - smooth * e * w.i_to_e
    half_trip = np.exp(-i_omega * 0.0425)
    forward = smooth**2 * e * w.s_to_e * s * w.n_to_s * half_trip / closed
    return forward / (axons * within - loops)


@cache
def simulated_transfer() -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and phi_e / phi_n from the response to a weak pulse of one step into the relay cells, eyes closed."""
    network, dt_s, steps, size = network_of(EYES_CLOSED), 1e-3, 3000, 1e-3
    drive = torch.zeros(steps, 3, 2, 4, 1, dtype=torch.float64)
    drive[0, :, 0, RELAY] = size * EYES_CLOSED.n_to_s
    with torch.no_grad():
        start = steady(EYES_CLOSED).expand(2, 4, 4)
        played = simulate(network, start, dt_s=dt_s, drive=drive, reading=lambda state: state[..., 0, 2]).readings
    echo = (played[0] - played[1]).numpy()
    frequency_hz = np.fft.rfftfreq(steps, dt_s)[1:]
    pulse = size * dt_s * np.sinc(frequency_hz * dt_s) * np.exp(-1j * np.pi * frequency_hz * dt_s)
    return frequency_hz, np.fft.rfft(echo)[1:] * dt_s / pulse


@pytest.mark.slow
def test_a_weak_pulse_gives_the_transfer_function_of_the_paper():
    """From 2 to 30 Hz, to 1 % of its largest value: what the end of the window at 3 s cuts off."""
    frequency_hz, found = simulated_transfer()
    band = (frequency_hz >= 2) & (frequency_hz <= 30)
    expected = transfer(EYES_CLOSED, frequency_hz[band])
    assert np.abs(found[band] - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.slow
def test_eyes_closed_shows_alpha_near_ten_hertz():
    """Robinson, Rennie and Rowe 2002: alpha near 10 Hz and beta at its double from the corticothalamic round trip."""
    frequency_hz, found = simulated_transfer()
    power = np.abs(found) ** 2
    peaks = [k for k in range(1, len(power) - 1) if power[k] > power[k - 1] and power[k] > power[k + 1]]
    peaks = [float(frequency_hz[k]) for k in peaks if 4 < frequency_hz[k] < 25 and power[k] > 1]
    assert len(peaks) == 2
    assert peaks[0] == pytest.approx(9.6, abs=0.3)
    assert peaks[1] == pytest.approx(2 * peaks[0], abs=1.0)


def test_gradients_match_finite_differences():
    start = steady(AWAKE)

    def end(s_to_e: Tensor, amplitude: Tensor, gamma: Tensor) -> Tensor:
        network = corticothalamic(CorticothalamicWeights(s_to_e=s_to_e), axon_per_s=gamma)
        drive = torch.zeros(55, 3, 4, 1, dtype=torch.float64)
        drive[:10, :, RELAY] = 1.0
        return simulate(network, start, dt_s=1e-3, drive=amplitude * drive).end[0, [0, 2]].sum()

    at = tuple(torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.57, 5.0, 116.0))
    assert torch.autograd.gradcheck(end, at, rtol=1e-5, atol=1e-7)


def test_half_of_the_largest_step_gives_the_same_waking():
    """From silence over 0.2 s, as a share of the standard deviation of what populations send."""
    network = network_of(EYES_CLOSED)
    assert half_step_error(network, dt_s=network.largest_dt_s, seconds=0.2) < 5e-3
