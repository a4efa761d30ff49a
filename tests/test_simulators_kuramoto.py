"""Kuramoto oscillators: held to exact solutions, to an independent integrator and to a published table of doses."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq
from scipy.signal import butter, filtfilt
from torch import Tensor

from stimopt.errors import ShapeError
from stimopt.simulators import Network, simulate, white_waves
from stimopt.simulators.kuramoto import Kuramoto, kuramoto_network, order_parameter, sine_entry
from stimopt.simulators.kuramoto_grid import ENVIRONMENT_1, ENVIRONMENT_2_BEGINS, kuramoto_grid
from stimopt.simulators.mean_field import MeanField, factored, mean_of_all
from stimopt.simulators.step_check import half_step_error
from stimopt.tensors import generator


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def lorentzian(width_per_s: float, count: int) -> Tensor:
    """Evenly spaced quantiles of a Lorentzian distribution of half width `width_per_s`."""
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return width_per_s * torch.tan(math.pi * (share - 0.5))


def played_order(strengths: Tensor, seconds: float, dt_s: float = 0.01) -> Tensor:
    """Order parameter from unison, [strength, time], for a Lorentzian of half width 1 rad/s."""
    circuit = Kuramoto(lorentzian(1.0, 1000))
    ensemble = mean_of_all(circuit, strengths, sine_entry(circuit))
    start = circuit.rest.expand(len(strengths), -1, -1)
    played = simulate(
        ensemble, start, dt_s=dt_s, steps=round(seconds / dt_s), reading=lambda s: order_parameter(s[..., 0])
    )
    return played.readings


def test_unison_decays_as_ott_and_antonsen_solved_it():
    """Ott and Antonsen 2008, Chaos 18:037113: r' = (K/2 - width) r - (K/2) r^3; unison lies on their manifold."""
    strengths = numbers(0.0, 1.0, 3.0, 6.0).unsqueeze(-1)
    t = torch.arange(400, dtype=torch.float64) * 0.01
    grow, bend = strengths / 2 - 1, strengths / 2
    exact = (bend / grow + (1 - bend / grow) * torch.exp(-2 * grow * t)) ** -0.5
    error = (played_order(strengths[:, 0], 4.0) - exact).abs().amax(-1)
    assert float(error[0]) < 0.02  # uncoupled: all that is missing are the tails between 1000 quantiles
    assert float(error.max()) < 1.2 * float(error[0])


def test_the_critical_coupling_of_a_lorentzian_is_twice_its_width():
    """Kuramoto 1984: r = sqrt(1 - Kc / K) with Kc = 2 widths above, 0 below."""
    strengths = numbers(1.0, 2.5, 4.0, 8.0)
    settled = played_order(strengths, 16.0, dt_s=0.025)[:, -200:].mean(-1)
    exact = (1 - 2 / strengths).clamp_min(0).sqrt()
    torch.testing.assert_close(settled, exact, rtol=0.0, atol=0.01)  # of 1000 oscillators; 1 / sqrt(1000) is 0.03


@pytest.mark.parametrize("delay_s", [0.012, 0.0085])
def test_a_delayed_pair_locks_at_the_frequency_of_its_self_consistency(delay_s):
    """Schuster and Wagner 1989, Progress of Theoretical Physics 81:939: Omega = natural - K sin(Omega delay)."""
    natural, strength = 2 * math.pi * 10, 20.0
    swap = numbers(0.0, 1.0, 1.0, 0.0).reshape(2, 2)
    circuit = Kuramoto(numbers(natural, natural), start_rad=numbers(0.0, 0.4))
    network = kuramoto_network(circuit, swap, gain=strength, delay_s=delay_s * swap)
    phase = simulate(network, network.rest, dt_s=2e-3, steps=500).readings[:, 0]
    locked = brentq(lambda omega: omega - natural + strength * math.sin(omega * delay_s), 1.0, natural)
    found = (phase[:, -1] - phase[:, -2]) / 2e-3
    assert float((found - locked).abs().max()) < 1e-4  # rad/s of about 50; RK4 and Hermite reads at 2 ms
    assert abs(float(phase[0, -1] - phase[1, -1])) < 1e-6


def small_network(lag_rad: float = 0.3) -> Network:
    circuit = Kuramoto(
        2 * math.pi * numbers(8.0, 9.0, 10.0, 12.0, 7.0),
        conductance=numbers(1.0, 0.5, 0.0, 0.8, 0.3),
        response_rad=0.4,
        response_cosines_rad=(0.3, -0.2),
        response_sines_rad=(-1.0,),
        lag_rad=lag_rad,
        start_rad=numbers(0.0, 1.0, 2.0, -1.0, 0.5),
    )
    return kuramoto_network(circuit, torch.rand(5, 5, generator=generator(3), dtype=torch.float64), gain=7.0)


def test_a_stimulated_network_follows_an_independent_integrator():
    network, dt_s, steps = small_network(), 5e-4, 600
    circuit, weights = network.circuit, network.weights.numpy()
    natural, reach = circuit.natural_per_s.numpy(), circuit.conductance.numpy()

    def slope(t, phase):
        pulled = 7.0 * (weights * np.sin(phase[None, :] - phase[:, None] - 0.3)).sum(1)
        gained = 0.4 + 0.3 * np.cos(phase) - 0.2 * np.cos(2 * phase) - np.sin(phase)
        return natural + pulled + reach * gained * 30 * np.sin(2 * np.pi * 20 * t)

    at_s = (torch.arange(steps, dtype=torch.float64).unsqueeze(-1) + numbers(0.0, 0.5, 1.0)) * dt_s
    drive = (30 * torch.sin(2 * math.pi * 20 * at_s))[..., None, None] * numbers(1.0, 0.0, 0.0)
    ours = simulate(network, network.rest, dt_s=dt_s, drive=drive, every=steps).end[:, 0]
    theirs = solve_ivp(slope, (0, steps * dt_s), circuit.rest[:, 0].numpy(), "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0.0, atol=1e-6)  # rad, after 30; both far finer


@pytest.mark.parametrize(("phase", "gathers"), [(0.0, True), (math.pi, False)])
def test_a_pulse_gathers_or_scatters_phases_by_when_it_comes(phase, gathers):
    """With Z = -sin, a pulse of charge q takes tan(theta / 2) to exp(-q) of itself."""
    cluster = phase + numbers(-0.01, 0.0, 0.01)
    circuit = Kuramoto(torch.zeros(3, dtype=torch.float64), 1.0, 0.0, (), (-1.0,), start_rad=cluster)
    drive = numbers(50.0, 0.0, 0.0).expand(20, 3, 1, 3)  # 20 ms of 50 / s: a charge of 1
    end = simulate(circuit, circuit.rest, dt_s=1e-3, drive=drive).end[:, 0]
    width = float(end[2] - end[0]) / 0.02
    assert abs(width - math.exp(-1 if gathers else 1)) < 1e-3  # the cluster's width enters squared


def test_under_a_constant_response_charge_is_phase():
    circuit = Kuramoto(numbers(10.0, 10.0), conductance=numbers(1.0, 0.25), response_rad=2.0)
    drive = torch.zeros(100, 3, 1, 3, dtype=torch.float64)
    drive[40:43, ..., 0] = 100.0  # 3 ms of 100 / s
    end = simulate(circuit, circuit.rest, dt_s=1e-3, drive=drive).end[:, 0]
    torch.testing.assert_close(end, 1.0 + 0.3 * numbers(2.0, 0.5), rtol=1e-12, atol=0.0)


def test_noise_spreads_phases_as_the_root_of_time():
    circuit = Kuramoto(torch.zeros(4000, dtype=torch.float64), noise_rad=3.0)
    waves = white_waves(circuit, (), 50, 2e-3, generator(5))
    end = simulate(circuit, circuit.rest, dt_s=2e-3, steps=50, waves=waves).end
    assert abs(float(end.std()) / (3.0 * math.sqrt(0.1)) - 1) < 0.05  # 4000 draws: 1.1 % standard error


def test_whole_turns_change_nothing_that_is_sent_or_read():
    network = small_network()
    turned = network.rest + 2 * math.pi * numbers(1.0, -2.0, 0.0, 5.0, 3.0).unsqueeze(-1)
    still = torch.zeros(5, 3, dtype=torch.float64)
    torch.testing.assert_close(network.drift(turned, still), network.drift(network.rest, still))
    torch.testing.assert_close(network.potential_mv(turned), network.potential_mv(network.rest))


def test_the_emission_s_rate_is_its_derivative():
    circuit, rate = small_network().circuit, torch.rand(5, 1, generator=generator(1), dtype=torch.float64)
    exact = torch.func.jvp(circuit.emission, (circuit.rest,), (rate,))[1]
    torch.testing.assert_close(circuit.emission_rate(circuit.rest, rate), exact)


def test_gradients_match_finite_differences_through_two_windows():
    base = small_network()

    def end(gain: Tensor, lag: Tensor, reach: Tensor, sine: Tensor, dose: Tensor, late: Tensor) -> Tensor:
        circuit = Kuramoto(base.circuit.natural_per_s, reach, 0.2, (), (sine,), lag, start_rad=base.circuit.start_rad)
        network = kuramoto_network(circuit, base.weights, gain=gain, delay_s=late * torch.ones_like(base.weights))
        drive = (dose * numbers(1.0, 0.0, 0.0)).expand(12, 3, 1, 3)
        first = simulate(network, network.rest, dt_s=2e-3, drive=drive)
        return torch.cos(simulate(network, first.end, dt_s=2e-3, steps=12, past=first.past).end).sum()

    reach = numbers(1.0, 0.5, 0.2, 0.8, 0.3)
    late = 9.3e-3  # off the halves of steps, where reads meet the bend that a still past has at its end
    at = [torch.as_tensor(x, dtype=torch.float64).requires_grad_() for x in (7.0, 0.3, reach, -1.0, 30.0, late)]
    assert torch.autograd.gradcheck(end, tuple(at), eps=1e-6, rtol=1e-5, atol=1e-7)


def test_the_largest_step_is_good_enough():
    cube = kuramoto_grid(generator(2), side=4)
    assert half_step_error(cube, dt_s=cube.largest_dt_s, seconds=0.2) < 1e-4  # 3e-5 measured over 0.4 s


def test_a_mean_field_is_a_network_of_its_product():
    network = small_network()
    sending, receiving = factored(network.weights)
    field = MeanField(network.circuit, sending, receiving, gain=network.gain, entry=network.entry)
    paths = [simulate(one, one.rest, dt_s=1e-3, steps=50).readings for one in (network, field)]
    torch.testing.assert_close(*paths, rtol=1e-10, atol=1e-10)
    alike = kuramoto_network(network.circuit, torch.full((5, 5), 0.2, dtype=torch.float64), gain=3.0)
    common = mean_of_all(network.circuit, 3.0, network.entry)
    drive = torch.zeros(5, 3, dtype=torch.float64)
    torch.testing.assert_close(common.drift(common.rest, drive), alike.drift(alike.rest, drive))


def test_a_mean_field_that_does_not_fit_is_refused():
    circuit = small_network().circuit
    with pytest.raises(ShapeError, match=r"sending must end in \[field, region\] = \[1, 5\]"):
        MeanField(circuit, torch.ones(1, 4), torch.ones(4, 1))
    with pytest.raises(ShapeError, match=r"entry must be \[input, output\] = \[3, 2\]"):
        mean_of_all(circuit, entry=torch.ones(2, 3))


def test_single_precision_stays_single():
    circuit = Kuramoto(torch.tensor([10.0, 20.0]))
    assert simulate(mean_of_all(circuit, 2.0, sine_entry(circuit)), circuit.rest, dt_s=1e-3, steps=3).end.dtype == (
        torch.float32
    )


def test_the_cube_is_the_published_one():
    """Kuzmina et al. 2025: a locus of 27 among 512 at 16 to 18 Hz, conductance falling by 0.1 a spacing."""
    cube = kuramoto_grid(generator(4), batch_shape=(40,))
    nominal_hz = cube.circuit.natural_per_s / 6.5
    steady = (nominal_hz.amin(0) >= 16) & (nominal_hz.amax(0) <= 18)
    assert int(steady.sum()) == 27
    assert float(cube.circuit.conductance.max()) == 1.0
    assert abs(float(cube.circuit.conductance.min()) - (1 - 0.1 * math.sqrt(48))) < 1e-12
    outside = nominal_hz[:, ~steady].flatten().numpy()
    torch.testing.assert_close(float(outside.mean()), density_mean_hz(), rtol=0.01, atol=0.0)  # 0.4 % standard error
    kernel = cube.receiving @ cube.sending * cube.gain
    assert abs(float(kernel[0, 511]) - 52 / 512 * math.cos(0.7 * math.sqrt(3))) < 1e-7


@pytest.mark.parametrize("places", [ENVIRONMENT_1, ENVIRONMENT_2_BEGINS], ids=["1", "2"])
def test_a_cube_has_its_locus_and_its_electrode_where_they_are_put(places):
    electrode, locus = torch.tensor(places, dtype=torch.float64).unbind(1)
    cube = kuramoto_grid(generator(4), batch_shape=(40, 5), electrode=electrode, locus=locus)
    nominal_hz = cube.circuit.natural_per_s / 6.5
    steady = (nominal_hz.amin(0) >= 16) & (nominal_hz.amax(0) <= 18)  # [cube, oscillator]
    assert steady.sum(-1).tolist() == [27] * 5
    grid = torch.cartesian_prod(*[torch.arange(8, dtype=torch.float64)] * 3)
    middles = torch.stack([grid[one].mean(0) for one in steady])
    torch.testing.assert_close(middles, locus)
    assert grid[cube.circuit.conductance.argmax(-1)].tolist() == electrode.tolist()
    at_locus = cube.circuit.conductance.gather(-1, (locus @ numbers(64.0, 8.0, 1.0)).long().unsqueeze(-1))[..., 0]
    torch.testing.assert_close(at_locus, 1 - 0.1 * (electrode - locus).norm(dim=-1))


def density_mean_hz() -> float:
    """Mean of the density the cube draws from, by other means: numpy's fit and adaptive quadrature."""
    at = [0, 1.8, 2.5, 3.3, 4.5, 5.5, 8, 12.5, 18, 20, 22, 25, 30, 35, 40, 45, 50, 55, 60]
    height = [6, 7.7, 6, 7.7, 4, 3.5, 4, 5, 5.7, 10, 5.7, 4.9, 2.3, 1.2, 0.8, 0.75, 0.7, 0.7, 0.68]
    fit = np.poly1d(np.polyfit(at, height, 10))
    moments = [quad(lambda f, n=n: max(fit(f), 0.0) * f**n, 0, 30, limit=200)[0] for n in (0, 1)]
    return moments[1] / moments[0]


@dataclass(frozen=True)
class Doses:
    """The field of cubes under pulses of several amplitudes, [dose, draw, time] at 1 kHz."""

    field: np.ndarray

    def power(self, low_hz: float, high_hz: float) -> np.ndarray:
        spectrum = 2 * np.abs(np.fft.rfft(self.field - self.field.mean(-1, keepdims=True)) / self.field.shape[-1]) ** 2
        at_hz = np.fft.rfftfreq(self.field.shape[-1], 1e-3)
        return spectrum[..., (at_hz > low_hz) & (at_hz < high_hz)].sum(-1)

    def peak_hz(self) -> np.ndarray:
        """Largest of the spectrum smoothed over 1 Hz."""
        tapered = (self.field - self.field.mean(-1, keepdims=True)) * np.hanning(self.field.shape[-1])
        width = round(self.field.shape[-1] / 1000) or 1
        smooth = np.apply_along_axis(np.convolve, -1, np.abs(np.fft.rfft(tapered)) ** 2, np.ones(width), "same")
        return np.fft.rfftfreq(self.field.shape[-1], 1e-3)[smooth.argmax(-1)]

    def scored(self) -> np.ndarray:
        """Their score: 12.5 to 21 Hz after a filter and a smoothing of gain 5.76, sampled at the times they sample.

        A step of theirs holds 17 samples at 0, 0.5, 1, 1, 1.5 ... 7.5 ms, one of them twice, and is read as 8.5 ms.
        """
        periods = self.field.shape[-1] // 8 - 1
        within_ms = np.concatenate([[0.0, 0.5, 1.0], 1.0 + 0.5 * np.arange(14)])
        at_ms = (8 * np.arange(periods)[:, None] + within_ms).ravel()
        clock_ms = np.arange(self.field.shape[-1])
        samples = np.apply_along_axis(lambda x: np.interp(at_ms, clock_ms, x), -1, self.field)
        passed = filtfilt(*butter(2, [12 / 1000, 30 / 1000], btype="band"), samples)
        spectrum = 2 * np.abs(np.fft.rfft(passed) / passed.shape[-1]) ** 2
        at_hz = np.fft.rfftfreq(passed.shape[-1], 5e-4)
        return filtfilt(np.ones(12), 5, spectrum)[..., (at_hz > 12.5) & (at_hz < 21)].sum(-1)


def dosed(cube: MeanField, doses: Tensor, pulses: int, transient: int) -> Doses:
    """The field while every 8 ms bring 1 ms of each dose, after a transient in silence."""
    start = simulate(cube, cube.rest, dt_s=1e-3, steps=transient, every=transient).end
    period = torch.zeros(8, 3, len(doses), 1, 1, 3, dtype=torch.float64)
    period[0, ..., 0] = doses.reshape(-1, 1, 1)
    played = simulate(
        cube, start.expand(len(doses), *start.shape), dt_s=1e-3, drive=period.repeat(pulses, 1, 1, 1, 1, 1),
        reading=lambda state: cube.potential_mv(state).mean(-1),
    )  # fmt: skip
    return Doses(played.readings.numpy())


def test_pulses_move_the_rhythm_of_a_small_cube_and_leave_its_power():
    small = kuramoto_grid(generator(3), batch_shape=(2,), side=4)
    doses = dosed(small, numbers(0.0, 5.0, -5.0), pulses=150, transient=300)
    peak_hz = doses.peak_hz().mean(-1)
    assert abs(peak_hz[0] - 17.4) < 1.0  # the locus: 17 nominal, 17.6 by their conversion, pulled down by the others
    added_hz = 5 * 100 * 0.125 / (2 * math.pi)  # all of the drive, an eighth of the time
    assert 0.75 * added_hz < peak_hz[1] - peak_hz[0] < added_hz
    wide, beta = doses.power(12.5, 35).mean(-1), doses.power(12.5, 21).mean(-1)
    assert beta[1] < 0.25 * beta[0]
    assert wide[1] > 0.7 * wide[0]
    assert wide[2] < 0.4 * wide[0]


@pytest.mark.slow
def test_the_published_table_of_doses_and_what_its_score_leaves_out():
    """Kuzmina et al. 2025, environment 0, their released table: OFF 11.83 (3.2) and 130 Hz pulses 2.34 (0.2), x 1e-3.

    Theirs are means (standard deviations) over 5 draws of frequencies, of 25 episodes each; ours 9 draws and one
    episode of 1111 pulses, so a mean of ours may lie a standard deviation of theirs away, and for pulses 0.6, as much
    as single episodes differ: a weak pulse moves the score of one draw by a factor of 0.56 to 1.36. The other numbers
    are not published; they were found with an independent implementation of the same equations, and are held loosely:
    the score falls because the peak leaves its band.
    """
    cube = kuramoto_grid(generator(1), batch_shape=(9,))
    doses = dosed(cube, numbers(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, -5.0), pulses=1111, transient=2000)
    each = doses.scored()
    scored = 1e3 * each.mean(-1)
    assert abs(scored[0] - 11.83) < 3.2
    assert abs(scored[5] - 2.34) < 0.6
    share = scored / scored[0]
    assert 0.16 < share[5] < 0.26  # 0.198 (0.019) published
    scatter = (each / each[0]).std(-1, ddof=1) * math.sqrt(1 / 9 + 1 / 3)  # of two means, ours and theirs of 3 draws
    independent = np.array([0.97, 0.77, 0.48, 0.28])
    assert (np.abs(share[1:5] - independent) < 2 * scatter[1:5]).all()
    assert share[4] < 0.40 < share[1]
    assert 0.15 < share[6] < 0.40
    wide = doses.power(12.5, 35).mean(-1)
    assert (wide[1:6] > 0.7 * wide[0]).all()
    assert wide[6] < 0.45 * wide[0]
    peak_hz = doses.peak_hz().mean(-1)
    assert (np.diff(peak_hz[:6]) > 0.5).all()
    assert abs(peak_hz[0] - 17.6) < 1.0  # 17 by their conversion
    assert abs(peak_hz[5] - 24.9) < 1.5
    assert peak_hz[6] < 11.0


def far_doses(places: tuple[tuple[tuple[int, ...], ...], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Scored and wide-band power under pulses of 0 and 5, [dose, draw]; three draws of each of five cubes."""
    electrode, locus = torch.tensor(places, dtype=torch.float64).repeat(3, 1, 1).unbind(1)
    cube = kuramoto_grid(generator(1), batch_shape=(15,), electrode=electrode, locus=locus)
    doses = dosed(cube, numbers(0.0, 5.0), pulses=1111, transient=2000)
    return doses.scored(), doses.power(12.5, 35)


@pytest.mark.slow
def test_the_published_score_with_the_electrode_farther_off():
    """Kuzmina et al. 2025, environment 1, their released table: pulses of 5 leave 0.340 (0.025) of the scored beta.

    Theirs is a mean (standard deviation) over five cubes of 25 episodes; ours three draws of each, one episode. Single
    cubes differ by 0.12, so means of 15 of ours and five of theirs by 0.06, of which twice is allowed.
    """
    scored, wide = far_doses(ENVIRONMENT_1)
    assert abs(scored[1].mean() / scored[0].mean() - 0.340) < 0.12
    assert 0.7 < wide[1].mean() / wide[0].mean() < 1.3


@pytest.mark.slow
def test_where_the_drifting_cubes_begin_the_score_leaves_its_band_too():
    """Environment 2, of which the table gives nothing before it drifts: 0.300 (0.057) is a mean over all episodes."""
    scored, wide = far_doses(ENVIRONMENT_2_BEGINS)
    assert 0.15 < scored[1].mean() / scored[0].mean() < 0.5
    assert 0.7 < wide[1].mean() / wide[0].mean() < 1.3
