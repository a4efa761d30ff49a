"""Networks with delays: held to solutions by hand, to the order of the scheme, and to themselves played in parts."""

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from stimopt.errors import ConfigError, ShapeError
from stimopt.simulators import (
    Dynamics,
    JansenRit,
    Network,
    euler,
    heun,
    mean_of_all,
    past_of_states,
    rk4,
    simulate,
    still_past,
    white_waves,
)
from stimopt.tensors import generator


@dataclass(frozen=True)
class Leak(Dynamics):
    """x' = -decay x + drive: with its own output as input this is the textbook's delay equation."""

    decay_per_s: Tensor

    states: ClassVar[tuple[str, ...]] = ("x",)
    inputs: ClassVar[tuple[str, ...]] = ("drive",)
    outputs: ClassVar[tuple[str, ...]] = ("x",)
    largest_dt_s: ClassVar[float] = 1.0

    @property
    def rest(self) -> Tensor:
        return torch.zeros_like(self.decay_per_s).unsqueeze(-1)

    def drift(self, state, drive):
        return -self.decay_per_s.unsqueeze(-1) * state + drive

    def emission(self, state):
        return state

    def potential_mv(self, state):
        return state[..., 0]


def echo(delay_s: float, weight: float = -1.0, decay: float = 0.0) -> Network:
    one = torch.ones(1, 1, dtype=torch.float64)
    return Network(Leak(decay * one[0]), weight * one, delay_s=delay_s * one)


@pytest.mark.parametrize("scheme", [heun, rk4])
def test_a_delayed_echo_follows_the_polynomials_of_the_method_of_steps(scheme):
    """x' = -x(t - 1), x = 1 before 0: 1 - t, then 1 - t + (t - 1)^2 / 2, then minus (t - 2)^3 / 6."""
    played = simulate(echo(1.0), torch.ones(1, 1, dtype=torch.float64), dt_s=0.01, steps=300, scheme=scheme)
    t = torch.arange(300, dtype=torch.float64) * 0.01
    exact = 1 - t + (t - 1).clamp_min(0) ** 2 / 2 - (t - 2).clamp_min(0) ** 3 / 6
    error = float((played.readings[0, 0] - exact).abs().max())
    assert error < (1e-13 if scheme is rk4 else 1e-5)  # cubics are exact for RK4 and Hermite reads, not for Heun


@cache
def jansen_rit_network() -> Network:
    afferents_hz = torch.tensor([150.0, 120.0, 180.0, 210.0], dtype=torch.float64)
    weights = torch.tensor(
        [[0.0, 0.6, 0.4, 0.2], [1.0, 0.0, 0.0, 0.3], [0.5, 0.5, 0.0, 0.0], [0.0, 0.4, 0.4, 0.0]], dtype=torch.float64
    )
    delay_s = torch.tensor(
        [[0.0, 0.008, 0.0128, 0.02], [0.0088, 0.0, 0.0, 0.01], [0.012, 0.0096, 0.0, 0.0], [0.0, 0.0, 0.0112, 0.0]],
        dtype=torch.float64,
    )
    return Network(JansenRit(afferents_hz), weights, gain=10.0, delay_s=delay_s)


@cache
def end_state(scheme, dt_s: float, hold: bool = False) -> Tensor:
    network = jansen_rit_network()
    steps = round(0.0576 / dt_s)
    at_s = (torch.arange(steps, dtype=torch.float64).unsqueeze(-1) + torch.tensor([0.0, 0.5, 1.0])) * dt_s
    drive = 40.0 * torch.sin(2 * math.pi * 25.0 * at_s).reshape(steps, 3, 1, 1)
    drive = drive * torch.tensor([1.0, 0.0])
    settled = settled_past()
    start = settled[..., -1]
    past = past_of_cubic(network, dt_s)
    return simulate(
        network, start, dt_s=dt_s, drive=drive, past=past, scheme=scheme, hold_coupling=hold, every=steps
    ).end


def settled_past() -> Tensor:
    """A smooth past with known slopes: a slow sine in the potentials."""
    return cubic_states(torch.zeros(1, dtype=torch.float64))


def cubic_states(at_s: Tensor) -> Tensor:
    network = jansen_rit_network()
    wave = torch.sin(40.0 * at_s)
    base = network.rest + torch.tensor([0.1, 15.0, 10.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    swing = torch.tensor([0.0, 1.0, 0.2, 0.0, 0.0, 0.0], dtype=torch.float64)
    return base.unsqueeze(-1) + swing.unsqueeze(-1) * wave


def past_of_cubic(network: Network, dt_s: float):
    steps = round(0.02 / dt_s)
    at_s = torch.arange(-steps, 1, dtype=torch.float64) * dt_s
    return past_of_states(network, cubic_states(at_s), dt_s)


@pytest.mark.parametrize(("scheme", "order", "finest"), [(euler, 1, 5e-5), (heun, 2, 1e-4)])
def test_a_network_with_delays_keeps_the_order_of_its_scheme(scheme, order, finest):
    truth = end_state(rk4, 1e-4)
    errors = [float((end_state(scheme, dt_s) - truth).norm()) for dt_s in (2 * finest, finest)]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.15


def test_rk4_keeps_the_fourth_order_through_delays_that_are_whole_steps():
    """From a still past, whose bend at zero comes back on the edges of steps when delays are whole steps."""
    network = jansen_rit_network()
    start = network.rest + 0.1

    def end(dt_s: float) -> Tensor:
        steps = round(0.0576 / dt_s)
        return simulate(network, start, dt_s=dt_s, steps=steps, every=steps).end

    truth = end(5e-5)
    errors = [float((end(dt_s) - truth).norm()) for dt_s in (8e-4, 4e-4)]
    assert abs(math.log2(errors[0] / errors[1]) - 4) < 0.3


def test_holding_the_coupling_makes_any_scheme_first_order():
    truth = end_state(rk4, 1e-4)
    errors = [float((end_state(rk4, dt_s, hold=True) - truth).norm()) for dt_s in (4e-4, 2e-4)]
    assert abs(math.log2(errors[0] / errors[1]) - 1) < 0.25
    assert errors[1] > 100 * float((end_state(rk4, 2e-4) - truth).norm())


def test_held_coupling_is_what_a_hand_written_loop_gives():
    """Heun with the coupling of the step's start, delays in whole steps: the convention of other simulators."""
    network, dt_s, steps = jansen_rit_network(), 4e-4, 120
    start = network.rest + torch.linspace(0.0, 1.0, 6, dtype=torch.float64)
    back = (network.delay_s / dt_s).round().long()
    seen, state = [network.emission(start)[:, 0]] * 51, start
    for _ in range(steps):
        late = torch.stack([torch.stack([seen[-1 - int(back[i, j])][j] for j in range(4)]) for i in range(4)])
        coupled = (network.gain * network.weights * late).sum(-1)
        drive = torch.stack([coupled, torch.zeros_like(coupled)], -1)
        state = heun(network.circuit.drift, state, drive.expand(3, 4, 2), dt_s)
        seen.append(network.emission(state)[:, 0])
    played = simulate(network, start, dt_s=dt_s, steps=steps, scheme=heun, hold_coupling=True)
    torch.testing.assert_close(played.end, state, rtol=1e-12, atol=1e-12)


def test_two_halves_are_the_whole():
    network, dt_s = jansen_rit_network(), 7e-4
    start, waves = network.rest + 0.1, white_waves(network, (), 60, 7e-4, generator(1))
    whole = simulate(network, start, dt_s=dt_s, steps=60, waves=waves)
    half = simulate(network, start, dt_s=dt_s, steps=23, waves=waves[:23])
    rest = simulate(network, half.end, dt_s=dt_s, steps=37, waves=waves[23:], past=half.past)
    torch.testing.assert_close(rest.end, whole.end, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([half.readings, rest.readings], -1), whole.readings, rtol=1e-12, atol=1e-12)


def test_checkpoints_change_neither_path_nor_gradient():
    network, results = jansen_rit_network(), []
    for checkpoint in (False, True):
        start = (network.rest + 0.1).requires_grad_()
        end = simulate(network, start, dt_s=1e-3, steps=40, checkpoint=checkpoint).end
        results.append((end.detach(), *torch.autograd.grad(end.sum(), start)))
    for plain, replayed in zip(*results, strict=True):
        torch.testing.assert_close(replayed, plain, rtol=1e-13, atol=1e-13)


def test_gradients_in_coupling_and_delay_match_finite_differences():
    circuit = jansen_rit_network()
    start = circuit.rest + 0.1

    def end(gain: Tensor, stretch: Tensor) -> Tensor:
        network = Network(circuit.circuit, circuit.weights, gain=gain, delay_s=circuit.delay_s * stretch)
        return simulate(network, start, dt_s=1e-3, steps=50).end[:, 1].sum()

    at = (torch.tensor(10.0, dtype=torch.float64), torch.tensor(1.031, dtype=torch.float64))
    assert torch.autograd.gradcheck(end, tuple(x.requires_grad_() for x in at), rtol=1e-5, atol=1e-8)


def test_gains_in_a_batch_give_what_each_gives_alone():
    network = jansen_rit_network()
    gains = torch.tensor([2.0, 8.0, 15.0], dtype=torch.float64)
    many = Network(network.circuit, network.weights, gain=gains, delay_s=network.delay_s)
    together = simulate(many, network.rest.expand(3, 4, 6), dt_s=1e-3, steps=60).end
    for gain, end in zip(gains, together, strict=True):
        alone = Network(network.circuit, network.weights, gain=float(gain), delay_s=network.delay_s)
        torch.testing.assert_close(simulate(alone, network.rest, dt_s=1e-3, steps=60).end, end, rtol=1e-12, atol=1e-12)


def test_differences_vanish_where_regions_agree():
    still = Leak(torch.zeros(3, dtype=torch.float64))
    weights = torch.rand(3, 3, generator=generator(4), dtype=torch.float64)
    network = Network(still, weights, delay_s=0.05 * (weights > 0.5), diffusive=True)
    alike = torch.full((3, 1), 0.7, dtype=torch.float64)
    torch.testing.assert_close(simulate(network, alike, dt_s=0.01, steps=50).end, alike, rtol=1e-12, atol=1e-12)
    apart = torch.tensor([[1.0], [0.0], [-1.0]], dtype=torch.float64)
    assert float(simulate(network, apart, dt_s=0.01, steps=500).end.std()) < 0.05


def test_a_delay_shorter_than_the_step_is_refused_by_name():
    with pytest.raises(ConfigError, match="shortest delay 0\\.004 s"):
        simulate(echo(0.004), torch.ones(1, 1, dtype=torch.float64), dt_s=0.01, steps=3)


def test_a_past_too_short_for_the_longest_delay_is_refused():
    with pytest.raises(ShapeError, match="needs 101"):
        past_of_states(echo(1.0), torch.ones(1, 1, 50, dtype=torch.float64), 0.01)


def test_a_still_past_is_constant_and_long_enough():
    past = still_past(echo(0.1), torch.full((1, 1), 2.0, dtype=torch.float64), 0.01)
    assert past.steps == 10
    assert bool((past.emission == 2.0).all())
    assert bool((past.slope_end == 0.0).all())


def test_a_mean_field_can_be_held_over_a_step_too():
    circuit = jansen_rit_network().circuit
    joined = (mean_of_all(circuit, 10.0), Network(circuit, torch.full((4, 4), 0.25, dtype=torch.float64), gain=10.0))
    ends = [
        simulate(one, circuit.rest, dt_s=1e-3, steps=40, scheme=heun, hold_coupling=hold).end
        for one in joined
        for hold in (True, False)
    ]
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-10, atol=1e-12)
    assert float((ends[0] - ends[1]).abs().max()) > 1e-6
