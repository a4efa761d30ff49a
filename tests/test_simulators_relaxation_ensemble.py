"""Bonhoeffer-van der Pol units: their equation, their common rhythm, and what kicks by feedback make of it."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from stimopt.simulators import Network, simulate
from stimopt.simulators.mean_field import MeanField, mean_of_all
from stimopt.simulators.relaxation_ensemble import (
    Feedback,
    RelaxationOscillator,
    kicked_feedback,
    relaxation_ensemble,
)
from stimopt.simulators.step_check import half_step_error
from stimopt.tensors import generator

STEP_S = 2e-4  # 0.2 units of 1 ms, the paper's


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_driven_ensemble_follows_an_independent_integrator():
    ensemble = relaxation_ensemble(generator(1), units=6, coupling=0.2)
    current, steps, dt_s = ensemble.circuit.current.numpy(), 1000, 5e-5

    def slope(t, state):
        x, y = state.reshape(6, 2).T
        push = 0.3 * np.sin(0.4 * t)
        rates = x - x**3 / 3 - y + current + 0.2 * x.mean() + push, 0.1 * (x - 0.8 * y + 0.7) - 0.1 * push
        return np.stack(rates, 1).ravel()

    at = (torch.arange(steps, dtype=torch.float64).unsqueeze(-1) + numbers(0.0, 0.5, 1.0)) * dt_s / 1e-3
    drive = (0.3 * torch.sin(0.4 * at))[..., None, None] * numbers(1.0, -0.1)
    ours = simulate(ensemble, ensemble.rest, dt_s=dt_s, drive=drive, every=steps).end
    start = ensemble.rest.numpy().ravel()
    theirs = solve_ivp(slope, (0, steps * dt_s / 1e-3), start, "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(ours.numpy().ravel(), theirs, rtol=0.0, atol=1e-6)


def test_a_unit_starts_to_oscillate_where_its_trace_vanishes():
    """At rest 1 - x^2 = 0.1 * 0.8, so x = -sqrt(0.92), and I = y - x + x^3 / 3 with y = (x + 0.7) / 0.8."""
    x = -math.sqrt(0.92)
    y = (x + 0.7) / 0.8
    critical = y - x + x**3 / 3
    circuit = RelaxationOscillator(numbers(critical), unit_s=1.0)
    still, drive = numbers(x, y).reshape(1, 2), torch.zeros(1, 2, dtype=torch.float64)
    assert float(circuit.drift(still, drive).abs().max()) < 1e-15
    slopes = torch.autograd.functional.jacobian(lambda s: circuit.drift(s, drive), still)[0, :, 0]
    assert abs(float(slopes.trace())) < 1e-15
    assert abs(float(torch.linalg.eigvals(slopes)[0].imag.abs()) - math.sqrt(0.1 - 0.08**2)) < 1e-12


def test_a_unit_of_time_only_sets_the_pace():
    ends = []
    for unit_s in (1.0, 1e-3):
        ensemble = relaxation_ensemble(generator(1), units=5, unit_s=unit_s)
        ends.append(simulate(ensemble, ensemble.rest, dt_s=0.2 * unit_s, steps=100, every=100).end)
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


def test_noise_is_given_per_root_of_a_unit_of_time():
    circuit = RelaxationOscillator(numbers(0.6, 0.6), noise_x=numbers(0.2, 0.4), unit_s=0.01)
    torch.testing.assert_close(circuit.noise(circuit.rest), numbers(2.0, 4.0).unsqueeze(-1))


def test_the_ensemble_is_a_network_of_equal_weights():
    ensemble = relaxation_ensemble(generator(2), units=7, coupling=0.3)
    network = Network(ensemble.circuit, torch.full((7, 7), 1 / 7, dtype=torch.float64), gain=0.3)
    paths = [simulate(one, one.rest, dt_s=STEP_S, steps=200).readings for one in (ensemble, network)]
    torch.testing.assert_close(*paths, rtol=1e-10, atol=1e-10)


def test_the_paper_s_step_is_good_enough():
    ensemble = relaxation_ensemble(generator(2), units=64)
    assert half_step_error(ensemble, dt_s=ensemble.largest_dt_s, seconds=0.05) < 1e-3  # 4e-4 measured over 100 units


def test_gradients_match_finite_differences_through_two_windows():
    current = 0.6 + 0.1 * torch.randn(4, generator=generator(3), dtype=torch.float64)

    def end(gain: Tensor, coupling: Tensor, rate: Tensor, dose: Tensor) -> Tensor:
        ensemble = mean_of_all(RelaxationOscillator(current, recovery_rate=rate, start_x=1.0), coupling)
        drive = (dose * numbers(1.0, 0.0)).expand(20, 3, 1, 2)
        first = simulate(ensemble, ensemble.rest, dt_s=STEP_S, drive=drive).end
        return kicked_feedback(ensemble, first, gain=gain, steps=20, dt_s=STEP_S, delay_steps=2).end.sum()

    at = [x.requires_grad_() for x in numbers(0.3, 0.2, 0.1, 0.5).unbind()]
    assert torch.autograd.gradcheck(end, tuple(at), eps=1e-6, rtol=1e-5, atol=1e-7)


def test_rows_with_their_own_gain_and_delay_are_what_each_is_alone():
    ensemble = relaxation_ensemble(generator(4), units=8)
    gains, delays = numbers(0.2, 0.5, 1.0), torch.tensor([0, 3, 1])
    together = kicked_feedback(
        ensemble, ensemble.rest.expand(3, 8, 2), gain=gains, steps=60, dt_s=STEP_S, delay_steps=delays
    )
    for row in range(3):
        alone = kicked_feedback(
            ensemble, ensemble.rest, gain=float(gains[row]), steps=60, dt_s=STEP_S, delay_steps=int(delays[row])
        )
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(many[row], one, rtol=1e-12, atol=1e-12)


def test_feedback_can_go_in_parts():
    ensemble = relaxation_ensemble(generator(4), units=8)
    whole = kicked_feedback(ensemble, ensemble.rest, gain=0.5, steps=60, dt_s=STEP_S)
    half = kicked_feedback(ensemble, ensemble.rest, gain=0.5, steps=30, dt_s=STEP_S)
    rest = kicked_feedback(ensemble, half.end, gain=0.5, steps=30, dt_s=STEP_S, mean=half.mean)
    torch.testing.assert_close(torch.cat([half.kick, rest.kick]), whole.kick, rtol=1e-12, atol=1e-12)


def test_a_kick_is_the_clipped_deviation_and_shifts_x_at_once():
    ensemble = mean_of_all(RelaxationOscillator(numbers(0.6, 0.6), recovery_rate=0.0, cubic=0.0, unit_s=1e9), 0.0)
    start = numbers(2.0, 0.0, 4.0, 0.0).reshape(2, 2)
    kicked = kicked_feedback(
        ensemble, start, gain=0.5, steps=1, dt_s=1e-3, mean=numbers(1.0)[0], memory_steps=4.0, largest_kick=0.6
    )
    assert float(kicked.field[0]) == 3.0
    assert float(kicked.mean) == 1.5  # a quarter of the way from 1 to 3
    assert float(kicked.kick[0]) == -0.6  # 0.5 * (3 - 1.5), clipped
    torch.testing.assert_close(kicked.end[:, 0], numbers(1.4, 3.4))


def swinging(units: int, seeds: int, cycles: int) -> tuple[MeanField, Tensor, Feedback]:
    """Ensembles, where their published environment hands them over, and some cycles of their free rhythm."""
    ensemble = relaxation_ensemble(generator(2), batch_shape=(seeds,), units=units)
    handed = simulate(ensemble, ensemble.rest, dt_s=STEP_S, steps=250, every=250).end
    synchronous = simulate(ensemble, handed, dt_s=STEP_S, steps=2500, every=2500).end
    return ensemble, handed, kicked_feedback(ensemble, synchronous, gain=0.0, steps=162 * cycles, dt_s=STEP_S)


def suppression(
    ensemble: MeanField, starts: Tensor, free: Feedback, gains: Tensor, delays: Tensor, settle: int, watch: int
) -> tuple[Tensor, Feedback]:
    """How many times smaller kicks make the field's deviation, [setting, seed], and the kicked run."""
    shape = starts.shape[:2]
    kicked = kicked_feedback(
        ensemble, starts, gain=gains.unsqueeze(-1).expand(shape), steps=settle + watch, dt_s=STEP_S,
        mean=free.field.mean(-1).expand(shape), delay_steps=delays.unsqueeze(-1).expand(shape),
    )  # fmt: skip
    return free.field.std(-1) / kicked.field[..., settle:].std(-1), kicked


def test_kicks_silence_a_small_ensemble_and_late_kicks_feed_it():
    """An independent implementation gives 10.5 to 14.2 for 100 units at a gain of 0.5, 0.59 for 1000 5 steps late."""
    ensemble, handed, free = swinging(100, 3, cycles=4)
    gains, delays = numbers(0.5, 0.5), torch.tensor([0, 5])
    factor, kicked = suppression(ensemble, handed.expand(2, 3, 100, 2), free, gains, delays, settle=300, watch=800)
    prompt, late = factor.median(-1).values.tolist()
    assert 8.0 < prompt < 18.0  # a quarter more than the range on either side, for 5 cycles instead of 120
    assert 0.4 < late < 0.8
    assert float(kicked.kick[0, :, 300:].abs().mean()) < 0.06


@pytest.mark.slow
def test_the_rhythm_appears_with_the_coupling():
    """Deviations of the field of 1000 units by an independent implementation; the paper couples by 0.03."""
    ensemble = relaxation_ensemble(generator(5), units=500, coupling=numbers(0.01, 0.03, 0.1))
    played = simulate(
        ensemble, ensemble.rest.expand(3, 500, 2), dt_s=STEP_S, steps=5500,
        reading=lambda state: ensemble.potential_mv(state).mean(-1),
    )  # fmt: skip
    deviation = played.readings[:, 3880:].std(-1)  # 10 cycles
    assert float(deviation[0]) < 0.15  # 0.074; half the units make it 1.4 times as much
    torch.testing.assert_close(deviation[1:], numbers(1.079, 1.38), rtol=0.05, atol=0.0)


@pytest.mark.slow
def test_suppression_by_feedback_against_gain_and_delay():
    """Krylov et al. 2020 report in their released notebook 27.27, for one run of a policy learned over 1e7 steps.

    The curve for proportional feedback is not theirs; an independent implementation gives over 20000 steps 6.8, 9.2
    and 12.9 at gains 0.1, 0.3 and 0.5, and 38 to 61 over seeds at 1; at 0.5, 11.3, 10.0 and 0.59 when 1, 3 and 5 steps
    late. Ours are medians over 3 seeds of 2500 steps, held to 20 %; at a gain of 1 they are 57 to 68. Controllers
    start where the published environment hands over, 250 steps after a random start. From full swing, one that is 3
    steps late reached either about 11 or, with clipped kicks that keep the swing up, 0.7, by when it was switched on.
    """
    ensemble, handed, free = swinging(1000, 3, cycles=12)
    gains = numbers(0.1, 0.3, 0.5, 1.0, 0.5, 0.5, 0.5)
    delays = torch.tensor([0, 0, 0, 0, 1, 3, 5])
    starts = handed.expand(7, 3, 1000, 2)
    factor, kicked = suppression(ensemble, starts, free, gains, delays, settle=1000, watch=2500)
    median = factor.median(-1).values
    expected = numbers(6.8, 9.2, 12.9, 11.3, 10.0, 0.59)
    torch.testing.assert_close(median[[0, 1, 2, 4, 5, 6]], expected, rtol=0.2, atol=0.0)
    assert 30.0 < float(median[3]) < 80.0  # a field this still is a few unlucky units: longer runs give less
    assert 0.01 < float(kicked.kick[3, :, 1000:].abs().mean()) < 0.03  # 0.015 to 0.023 by the same
