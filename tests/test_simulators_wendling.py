"""Wendling's column against the paper's equations integrated here, and its six types of activity."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.signal import welch
from scipy.special import expit

from stimopt.simulators import Network, euler, rk4, simulate, white_waves
from stimopt.simulators.dynamics import Dynamics
from stimopt.simulators.step_check import half_step_error
from stimopt.simulators.wendling import Wendling
from stimopt.tensors import generator

TYPES = np.array(
    [[5, 50, 15], [5, 40, 15], [5, 25, 15], [5, 10, 15], [5, 5, 25], [5, 15, 0]], dtype=float
)  # A, B, G mV
WEIGHTS = np.array([[0.0, 0.8, 0.3], [0.5, 0.0, 0.0], [0.4, 0.9, 0.0]])
AFFERENTS = np.array([90.0, 120.0, 60.0])
TOLERANCE = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-10}


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def columns(rows=TYPES, afferents_hz=90.0) -> Wendling:
    """One region for each row of gains."""
    gains = dict(zip(("excitation_mv", "slow_inhibition_mv", "fast_inhibition_mv"), tensor(rows).T, strict=True))
    return Wendling(tensor(np.broadcast_to(afferents_hz, len(rows)).copy()), **gains)


def fire(v):
    return 5.0 * expit(0.56 * (v - 6.0))


def slope(state, p, gains, polarised=(0.0, 0.0, 0.0)):
    """The ten equations of the paper, one at a time; state [10, ...], gains [3, ...]."""
    y0, y1, y2, y3, y4, y5, y6, y7, y8, y9 = state
    A, B, G = gains
    a, b, g, c = 100.0, 50.0, 500.0, 135.0
    py, slow, fast = polarised
    return np.stack(
        [
            y5, y6, y7, y8, y9,
            A * a * fire(y1 - y2 - y3 + py) - 2 * a * y5 - a**2 * y0,
            A * a * (p + 0.8 * c * fire(c * y0)) - 2 * a * y6 - a**2 * y1,
            B * b * 0.25 * c * fire(0.25 * c * y0 + slow) - 2 * b * y7 - b**2 * y2,
            G * g * 0.8 * c * fire(0.3 * c * y0 - 0.1 * c * y4 + fast) - 2 * g * y8 - g**2 * y3,
            B * b * fire(0.25 * c * y0 + slow) - 2 * b * y9 - b**2 * y4,
        ]
    )  # fmt: skip


def test_a_driven_column_follows_the_papers_equations():
    """Afferent firing and all three polarisations, each with its own sine."""
    dt_s, steps = 5e-4, 250
    at_s = (np.arange(steps)[:, None] + np.array([0.0, 0.5, 1.0])) * dt_s
    sizes, paces = np.array([40.0, 1.0, 2.0, 1.5]), np.array([60.0, 90.0, 40.0, 130.0])
    drive = (sizes * np.sin(paces * at_s[..., None]))[:, :, None]
    played = simulate(columns(TYPES[2:3]), torch.zeros(1, 10, dtype=torch.float64), dt_s=dt_s, drive=tensor(drive))

    def driven(t, state):
        afferent, *polarised = sizes * np.sin(paces * t)
        return slope(state, 90.0 + afferent, TYPES[2], polarised)

    true = solve_ivp(driven, (0, dt_s * steps), np.zeros(10), **TOLERANCE).y[:, -1]
    size = played.readings[0].abs().amax(-1).numpy()
    assert bool((abs(played.end[0].numpy() - true) < 1e-5 * size).all())  # a sixteenth at half the step


def test_a_network_follows_the_papers_equations():
    """Three regions of three types; firing of pyramidal cells is added to the afferents of the others."""
    network = Network(columns(TYPES[[0, 2, 5]], AFFERENTS), tensor(WEIGHTS), gain=20.0)
    played = simulate(network, torch.zeros(3, 10, dtype=torch.float64), dt_s=5e-4, steps=250)

    def coupled(_, flat):
        state = flat.reshape(10, 3)
        arriving = 20.0 * WEIGHTS @ fire(state[1] - state[2] - state[3])
        return slope(state, AFFERENTS + arriving, TYPES[[0, 2, 5]].T).ravel()

    true = solve_ivp(coupled, (0, 0.125), np.zeros(30), **TOLERANCE).y[:, -1].reshape(10, 3)
    size = played.readings.abs().amax((0, 2)).numpy()[:, None]
    assert bool((abs(played.end.numpy().T - true) < 1e-5 * size).all())


def test_the_default_noise_is_the_authors_draw_at_512_euler_steps_a_second():
    """p = 90 + 30 n at every step, their program's convention (ModelDB 97983): the same path, draw by draw."""
    dt_s, steps = 1 / 512, 512
    draws = torch.randn(steps, 6, 1, generator=generator(3), dtype=torch.float64)
    circuit = columns()
    played = simulate(circuit, circuit.rest, dt_s=dt_s, waves=draws * dt_s**0.5, steps=steps, scheme=euler)
    state = np.zeros((10, 6))
    for draw in draws[..., 0].numpy():
        state = state + dt_s * slope(state, 90.0 + 30.0 * draw, TYPES.T)
    np.testing.assert_allclose(played.end.numpy().T, state, rtol=1e-9, atol=1e-9)


def activity(scheme, rows: int = 64, seconds: int = 5) -> np.ndarray:
    """Potential of the six types, [row, type, time] at 512 Hz, after a second from rest."""
    circuit, steps = columns(), 512 * (seconds + 1)
    waves = white_waves(circuit, (rows,), steps, 1 / 512, generator(1))
    start = circuit.rest.expand(rows, 6, 10)
    with torch.no_grad():
        played = simulate(
            circuit, start, dt_s=1 / 512, steps=steps, waves=waves, scheme=scheme, reading=circuit.potential_mv
        )
    return played.readings[..., 512:].numpy()


def features(signal: np.ndarray) -> dict[str, np.ndarray]:
    """What tells the types apart, one number for each type."""
    hz, power = welch(signal, 512, nperseg=2048)
    power = power.mean(0)[:, hz >= 1] / power.mean(0)[:, hz >= 1].sum(-1, keepdims=True)
    hz = hz[hz >= 1]
    above = signal > np.median(signal, -1, keepdims=True) + 8.0  # mV: three times the widest that is no spike
    apart = signal - signal.mean(-1, keepdims=True)
    return {
        "mean": signal.mean((0, 2)),
        "sd": signal.std(-1).mean(0),
        "kurtosis": (apart**4).mean((0, 2)) / (apart**2).mean((0, 2)) ** 2,
        "spikes": (~above[..., :-1] & above[..., 1:]).sum((0, 2)) / (signal.shape[0] * signal.shape[2] / 512),
        "peak": hz[power.argmax(-1)],
        "alpha": power[:, (hz >= 8) & (hz < 13)].sum(-1),
        "beta": power[:, (hz >= 13) & (hz < 30)].sum(-1),
    }


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [euler, rk4])
def test_the_gains_of_the_paper_give_its_six_types_of_activity(scheme):
    """Wendling et al. 2002, figure 4, as numbers; with the authors' scheme and with one that is exact enough.

    | type | paper | Euler, 512 Hz | RK4, any step |
    | --- | --- | --- | --- |
    | 1 | background | sd 0.36 mV, no spike, Gaussian | sd 0.34 |
    | 2 | sporadic spikes | 0.6 spikes/s, kurtosis 15 | 0.5 to 0.6 spikes/s, kurtosis 14 |
    | 3 | sustained spikes | 4.5 spikes/s, sd 6.2 | 4.5 spikes/s, sd 5.4 |
    | 4 | slow rhythm | peak 10.5 Hz, sd 0.44 | 10.5 Hz, sd 0.37 |
    | 5 | low-voltage fast | sd 0.30, half of it within 13 to 30 Hz | sd 0.26, the same |
    | 6 | quasi-sinusoid | 9.5 Hz, sd 4.9 | 11.0 Hz, sd 3.6 |
    """
    found = features(activity(scheme))
    spikes, sd, peak = found["spikes"], found["sd"], found["peak"]
    assert spikes[0] == spikes[3] == spikes[4] == 0
    assert sd[0] < 0.5
    assert abs(found["kurtosis"][0] - 3) < 0.2  # Gaussian: 0.03 is its standard error
    assert 0.35 < spikes[1] < 0.8  # 320 s: 170 spikes, a standard error of 8 %
    assert found["kurtosis"][1] > 10
    assert abs(spikes[2] - 4.5) < 0.3
    assert abs(peak[2] - 4.5) <= 0.25
    assert 9 <= peak[3] <= 12
    assert found["alpha"][3] > 0.5
    assert sd[3] < 0.5
    assert sd[4] == sd.min()
    assert found["beta"][4] == found["beta"].max()
    assert found["beta"][4] > 0.4
    assert abs(peak[5] - (9.5 if scheme is euler else 11.0)) <= 0.25  # Euler's own error slows the cycle
    assert found["alpha"][5] > 0.95
    assert sd[5] > 3
    assert found["kurtosis"][5] < 1.8  # a sine has 1.5


def test_holding_pyramidal_cells_down_stops_sustained_spikes():
    """The polarisation of Mina et al. 2013: -3 mV on the pyramidal cells silences type 3."""
    circuit = columns(TYPES[[2, 2]])
    polarised = tensor([0.0, -3.0]).reshape(2, 1) * tensor([0.0, 1.0, 0.0, 0.0])
    drive = polarised.expand(1000, 3, 2, 4)
    potential = simulate(circuit, circuit.rest, dt_s=1e-3, drive=drive, reading=circuit.potential_mv).readings[:, 500:]
    swing = (potential.amax(-1) - potential.amin(-1)).tolist()
    assert swing[0] > 10 > 1 > swing[1]


def test_gradients_in_gains_and_drive_match_finite_differences():
    def end(excitation, slow, fast, afferents, pulse):
        circuit = Wendling(afferents, excitation_mv=excitation, slow_inhibition_mv=slow, fast_inhibition_mv=fast)
        network = Network(circuit, tensor(WEIGHTS), gain=20.0)
        drive = pulse * tensor([40.0, 1.0, 2.0, 1.5]).expand(4, 3, 3, 4)
        half = simulate(network, network.rest + 0.1, dt_s=1e-3, drive=drive)
        return circuit.potential_mv(simulate(network, half.end, dt_s=1e-3, steps=4).end)

    at = tuple(tensor(x).requires_grad_() for x in (5.0, [25.0, 20.0, 30.0], 15.0, AFFERENTS, 1.0))
    assert torch.autograd.gradcheck(end, at, rtol=1e-5, atol=1e-8)


def test_the_largest_step_is_as_good_as_half_of_it():
    for gains in TYPES[[0, 4]]:
        assert half_step_error(columns(gains[None]), dt_s=columns(gains[None]).largest_dt_s, seconds=0.15) < 0.03
    assert half_step_error(columns(TYPES[:1]), dt_s=1e-3, seconds=0.15) < 0.001  # the worst of the six


def test_readings_are_what_they_say():
    circuit = columns()
    state, rate = torch.rand(2, 4, 6, 10, generator=generator(1), dtype=torch.float64)
    size = 30 / 512**0.5 * 5 * 100  # mV/s per square root of a second
    torch.testing.assert_close(circuit.noise(state), torch.full((4, 6, 1), size, dtype=torch.float64))
    torch.testing.assert_close(circuit.emission_rate(state, rate), Dynamics.emission_rate(circuit, state, rate))
    torch.testing.assert_close(circuit.potential_mv(state), state[..., 1] - state[..., 2] - state[..., 3])
