"""STN-GPe: published rest and rhythm, the onset between them, feedback against its delay, integration by hand.

Anchors are those of the equations with the weights of table 3, measured once at a step of 0.01 ms.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from stimopt.errors import ShapeError
from stimopt.simulators import Network, simulate
from stimopt.simulators.step_check import half_step_error
from stimopt.simulators.stn_gpe import HEALTHY, PARKINSONIAN, RateNuclei, StnGpeWeights, stn_gpe, with_feedback


def between(share) -> StnGpeWeights:
    return HEALTHY.towards(PARKINSONIAN, torch.as_tensor(share, dtype=torch.float64))


def play(network: Network, seconds: float, dt_s: float = 1e-3) -> Tensor:
    """Rates [*batch, nucleus, time] from silence; the rhythm's range and rate at 1 ms and 0.5 ms agree to 1e-3."""
    batch = network.weights.shape[:-2]
    with torch.no_grad():
        start = network.rest.expand(*batch, 2, 1)
        steps = round(seconds / dt_s)
        return simulate(network, start, dt_s=dt_s, steps=steps, reading=lambda state: state[..., 0]).readings


def rhythm_hz(rates: Tensor, dt_s: float = 1e-3) -> float:
    """From upward crossings of the mean, by straight lines."""
    wave = rates - rates.mean()
    at = ((wave[:-1] < 0) & (wave[1:] >= 0)).nonzero().flatten()
    times = at - wave[at] / (wave[at + 1] - wave[at])
    return float((len(times) - 1) / (times[-1] - times[0]) / dt_s)


def by_hand(weights: StnGpeWeights, seconds: float, dt_s: float, k: float = 0.0, delay_s: float = 0.0):
    """Heun's scheme on the paper's equations 1 to 5, delays in whole steps, from silence."""
    w_sg, w_gs, w_gg, w_cs, w_xg = (
        float(w) for w in (weights.stn_to_gpe, weights.gpe_to_stn, weights.gpe_to_gpe, weights.cortex_to_stn,
                           weights.striatum_to_gpe)
    )  # fmt: skip

    def f(x, m, b):
        return m / (1 + (m - b) / b * np.exp(-4 * x / m))

    steps, d_sg, d_gg, d_f = (round(t / dt_s) for t in (seconds, 6e-3, 4e-3, delay_s))
    s, g = np.zeros(steps + 1), np.zeros(steps + 1)

    def slopes(s_now, g_now, n):
        def past(x, back):
            return x[n - back] if n >= back else 0.0

        s_felt = past(s, d_f) if d_f else s_now
        s_goal = f(w_cs * 27 - w_gs * past(g, d_sg) - k * s_felt, 300, 17)
        g_goal = f(w_sg * past(s, d_sg) - w_gg * past(g, d_gg) - w_xg * 2, 400, 75)
        return (s_goal - s_now) / 6e-3, (g_goal - g_now) / 14e-3

    for n in range(steps):
        s1, g1 = slopes(s[n], g[n], n)
        s2, g2 = slopes(s[n] + dt_s * s1, g[n] + dt_s * g1, n + 1)
        s[n + 1], g[n + 1] = s[n] + dt_s * (s1 + s2) / 2, g[n] + dt_s * (g1 + g2) / 2
    return np.stack([s, g])


def test_one_nucleus_charges_exactly():
    """tau S' = F - S from 0: F (1 - exp(-t / tau)); RK4 at tau / 12 is off by 1e-7 of it."""
    nuclei = RateNuclei(torch.tensor([0.0, 40.0, -200.0], dtype=torch.float64))
    assert float(nuclei.firing_hz(nuclei.background_hz)[0]) == pytest.approx(17.0)
    end = simulate(nuclei, nuclei.rest, dt_s=5e-4, steps=20, every=20).end[:, 0]
    goal = 300 / (1 + (283 / 17) * torch.exp(-4 * nuclei.background_hz / 300))
    torch.testing.assert_close(end, goal * (1 - np.exp(-10 / 6)), rtol=1e-6, atol=1e-9)


def test_current_enters_inside_and_direct_firing_outside_the_sigmoid():
    nuclei = RateNuclei(torch.zeros(1, dtype=torch.float64))
    silent, drive = nuclei.rest, torch.tensor([[0.0, 50.0]], dtype=torch.float64)
    assert float(nuclei.drift(silent, drive)) == pytest.approx((17 + 50) / 6e-3)
    flooded = float(nuclei.drift(silent, torch.tensor([[1e6, 0.0]], dtype=torch.float64)))
    assert flooded == pytest.approx(300 / 6e-3)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_network_follows_a_hand_written_integration(share):
    """Heun at 0.02 ms, extrapolated once, is within 1e-4 1/s of rates up to 65; RK4 at 0.25 ms 3e-4 from it."""
    coarse, fine = (by_hand(between(share), 0.15, dt_s)[:, :: round(1e-3 / dt_s)] for dt_s in (4e-5, 2e-5))
    truth = fine + (fine - coarse) / 3
    rates = play(stn_gpe(between(share)), 0.15, 2.5e-4)[..., ::4].numpy()
    np.testing.assert_allclose(rates, truth[:, :-1], rtol=0, atol=1e-3)


def test_feedback_is_one_more_late_tract_inside_the_sigmoid():
    """Against Heun at 0.02 ms, which is within 0.02 1/s."""
    truth = by_hand(between(1.0), 0.1, 2e-5, k=3.0, delay_s=5e-3)[:, ::50]
    rates = play(with_feedback(stn_gpe(between(1.0)), 3.0, 5e-3), 0.1, 2.5e-4)[..., ::4].numpy()
    np.testing.assert_allclose(rates, truth[:, :-1], rtol=0, atol=2e-2)


def test_rest_rhythm_and_what_lies_between():
    """Healthy: STN 18.1, GPe 53.7 1/s. Parkinsonian: STN from 1.8 to 65.5 1/s at 21 Hz, the highest line of a
    second's spectrum; by crossings it is 20.57 Hz, as in an explicit Euler run at 0.01 ms.

    On the straight line between them the rhythm begins between K = 0.2, where swings die out, and 0.3, near 27 Hz.
    """
    healthy, below, above, ill = play(stn_gpe(between([0.0, 0.2, 0.3, 1.0])), 2.0)[..., 1000:]
    assert float(healthy.std(-1).max()) < 1e-6
    assert healthy[:, -1].tolist() == pytest.approx([18.1, 53.7], abs=0.05)
    assert float(below[0].std()) < 1e-3
    assert float(above[0].std()) > 0.3
    assert rhythm_hz(above[0]) == pytest.approx(27.0, abs=0.6)
    assert [float(ill[0].min()), float(ill[0].max())] == pytest.approx([1.8, 65.5], abs=0.1)
    assert int(torch.fft.rfft(ill[0] - ill[0].mean()).abs().argmax()) == 21  # lines of 1 s lie at whole Hz
    assert rhythm_hz(ill[0]) == pytest.approx(20.57, abs=0.05)


FEEDBACK = {  # standard deviation of STN over that without feedback, at gains 0.5, 1, 2, 5, 10, 20
    0.0: (0.82, 0.70, 0.53, 0.16, 0.0, 0.0),
    2e-3: (0.84, 0.73, 0.56, 0.23, 0.0, 0.0),
    5e-3: (0.88, 0.79, 0.64, 0.35, 0.0, 0.0),
    10e-3: (0.96, 0.91, 0.82, 0.66, 0.53, 0.45),
}


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", FEEDBACK)
def test_feedback_calms_less_the_later_it_comes(delay_s):
    """Tolerance 0.02: the table's own rounding and windows of 1 s that do not hold whole periods."""
    gains = torch.tensor([0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0], dtype=torch.float64)
    network = with_feedback(stn_gpe(between(1.0)), gains, delay_s)
    spread = play(network, 1.5)[:, 0, 500:].std(-1)
    assert (spread[1:] / spread[0]).tolist() == pytest.approx(FEEDBACK[delay_s], abs=0.02)


def test_gradients_match_finite_differences():
    drive = torch.zeros(40, 3, 2, 2, dtype=torch.float64)
    drive[5:15, :, 0] = 1.0

    def end(w_gs: Tensor, amplitude: Tensor, gain: Tensor) -> Tensor:
        weights = StnGpeWeights(20.0, w_gs, 12.3, 9.2, 139.4)
        network = with_feedback(stn_gpe(weights), gain, 7.3e-3)
        played = simulate(network, network.rest + 20.0, dt_s=1e-3, drive=amplitude * drive)
        return played.end.sum()

    at = tuple(torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (10.7, 30.0, 2.0))
    assert torch.autograd.gradcheck(end, at, rtol=1e-5, atol=1e-7)


def test_half_of_the_largest_step_gives_the_same_rhythm():
    """Over 0.2 s from silence, as a share of the swing's standard deviation; at 1 ms it is 0.03."""
    network = stn_gpe(between(1.0))
    assert half_step_error(network, dt_s=network.largest_dt_s, seconds=0.2) < 2e-3


def test_weights_as_numbers_make_a_network_too():
    network = stn_gpe(HEALTHY)
    assert network.weights.shape == (2, 2)
    assert network.weights.dtype == torch.get_default_dtype()
    assert float(network.weights[0, 1]) == pytest.approx(-1.12)


def test_feedback_on_something_else_is_refused():
    with pytest.raises(ShapeError, match="stn_gpe"):
        with_feedback(with_feedback(stn_gpe(HEALTHY), 1.0, 1e-3), 1.0, 1e-3)
