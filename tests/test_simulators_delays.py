"""Networks with delays: held to solutions by hand, to the order of the scheme, and to themselves played in parts."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import ClassVar

import numpy as np
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
from stimopt.simulators.epileptor import Epileptor
from stimopt.simulators.hopf import StuartLandau
from stimopt.simulators.montbrio import MontbrioPazoRoxin
from stimopt.simulators.wilson_cowan import WilsonCowan
from stimopt.tensors import generator

FOUR = torch.ones(4, dtype=torch.float64)


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


def test_rk4_keeps_the_fourth_order_through_delays_that_fall_between_steps():
    """From true rest through a push that begins as t^6, so no bend in the past falls within a step. Delays are a third
    of a step off at every step tried, one way or the other, so that Hermite reads err alike.
    """
    tracts = jansen_rit_network()
    delay_s = torch.where(tracts.delay_s > 0, (1e3 * tracts.delay_s).round() + 1 / 3, 0.0) / 1e3
    network = Network(WilsonCowan(0 * FOUR), tracts.weights, gain=6.0, delay_s=delay_s)

    def end(dt_s: float) -> Tensor:
        at_s = (torch.arange(round(0.056 / dt_s), dtype=torch.float64).unsqueeze(-1) + torch.tensor([0, 0.5, 1])) * dt_s
        push = 4.0 * torch.sin(math.pi * at_s / 0.08) ** 6
        drive = push.reshape(-1, 3, 1, 1) * torch.tensor([1.0, 0.5])
        return simulate(network, network.rest, dt_s=dt_s, drive=drive, every=10**9).end

    truth = end(6.25e-5)
    errors = [float((end(dt_s) - truth).norm()) for dt_s in (5e-4, 2.5e-4)]
    assert abs(math.log2(errors[0] / errors[1]) - 4) < 0.2  # reads 4.07


def test_holding_the_coupling_makes_any_scheme_first_order():
    truth = end_state(rk4, 1e-4)
    errors = [float((end_state(rk4, dt_s, hold=True) - truth).norm()) for dt_s in (4e-4, 2e-4)]
    assert abs(math.log2(errors[0] / errors[1]) - 1) < 0.25
    assert errors[1] > 100 * float((end_state(rk4, 2e-4) - truth).norm())


def fire(v):
    return 5 / (1 + np.exp(0.56 * (6 - v)))


def jansen_rit_rate(x, u):
    y0, y1, y2, v0, v1, v2 = x
    excited = 3.25 * (150 + u[0] + 108 * fire(135 * y0))
    forces = (3.25 * fire(y1 - y2), excited, 22 * 33.75 * fire(33.75 * y0))
    return [v0, v1, v2] + [
        k * (force - 2 * v - k * y) for k, force, v, y in zip((100, 100, 50), forces, x[3:], x[:3], strict=True)
    ]


def wilson_cowan_rate(x, u):
    def response(received, a, b):
        return 1 / (1 + np.exp(-a * (received - b))) - 1 / (1 + np.exp(a * b))

    e, i = x
    to_e = (1 - e) * response(12 * e - 4 * i + 1.25 + u[0], 1.2, 2.8)
    return [(to_e - e) / 0.01, ((1 - i) * response(13 * e - 11 * i + u[1], 1.0, 4.0) - i) / 0.01]


def stuart_landau_rate(z, u):
    growth = 5 - z[0] ** 2 - z[1] ** 2
    return [growth * z[0] - 60 * z[1] + u[0], growth * z[1] + 60 * z[0] + u[1]]


def montbrio_rate(x, u):
    r, v = x
    return [(1 / np.pi + 2 * r * v) / 0.01, (v**2 - (np.pi * r) ** 2 + 15 * r - 5 + u[0]) / 0.01]


def epileptor_rate(x, u):
    x1, y1, z, x2, y2, g = x
    f1 = np.where(x1 < 0, x1**3 - 3 * x1**2, (x2 - 0.6 * (z - 4) ** 2) * x1)
    f2 = np.where(x2 < -0.25, 0, 6 * (x2 + 0.25))
    x2_rate = -y2 + x2 - x2**3 + 0.45 + 2 * g - 0.3 * (z - 3.5) + u[1]
    z_rate = (4 * (x1 + 1.6) - z + u[2]) / 2857
    return [y1 - z + 3.1 + u[0] - f1, 1 - 5 * x1**2 - y1, z_rate, x2_rate, (f2 - y2) / 10, -0.01 * (g - 0.1 * x1)]


@dataclass(frozen=True)
class Held:
    """A circuit and its right-hand side in numpy, x as [state, region] and u as [input, region]."""

    circuit: Dynamics
    rate: Callable
    start: tuple[float, ...]
    dt_s: float
    entry: tuple[tuple[float, ...], ...]
    emits: tuple[int, ...] | None = None  # states that are sent; None for the firing of Jansen and Rit
    diffusive: bool = False

    def network(self, steps_late: np.ndarray) -> Network:
        weights = jansen_rit_network().weights
        entry, delay_s = torch.tensor(self.entry, dtype=torch.float64), torch.as_tensor(steps_late * self.dt_s)
        return Network(self.circuit, weights, gain=0.7, delay_s=delay_s, entry=entry, diffusive=self.diffusive)

    def sent(self, x):
        return fire(x[1] - x[2])[None] if self.emits is None else x[list(self.emits)]


HELD = {
    "jansen-rit": Held(JansenRit(150 * FOUR), jansen_rit_rate, (0.1, 18.0, 12.0, 1.0, 9.0, 4.0), 5e-4, ((15,), (0,))),
    "wilson-cowan": Held(WilsonCowan(1.25 * FOUR), wilson_cowan_rate, (0.2, 0.1), 5e-4, ((2, -1), (1, 0.5)), (0, 1)),
    "hopf": Held(StuartLandau(60 * FOUR, 5.0), stuart_landau_rate, (2, -1), 5e-4, ((9, 1), (2, 8)), (0, 1), True),
    "montbrio": Held(MontbrioPazoRoxin(-5 * FOUR), montbrio_rate, (0.3, -1.0), 1e-4, ((1, 0.3),), (0, 1)),
    "epileptor": Held(
        Epileptor(-1.6 * FOUR, unit_s=1.0), epileptor_rate, (0.3, -2.0, 3.1, -0.4, 0.6, -0.05), 0.04,
        ((0.4, 0), (0, 0.25), (-0.8, 0)), (0, 3), True,
    ),
}  # fmt: skip


def euler_by_hand(f, x, h):
    return x + h * f(x)


def heun_by_hand(f, x, h):
    return x + h / 2 * (f(x) + f(x + h * f(x)))


def rk4_by_hand(f, x, h):
    a = f(x)
    b = f(x + h / 2 * a)
    c = f(x + h / 2 * b)
    return x + h / 6 * (a + 2 * b + 2 * c + f(x + h * c))


def held_by_hand(held: Held, scheme: Callable, path: list[np.ndarray], steps_late: np.ndarray, steps: int) -> list:
    """The path goes on, one state [state, region] after the other; the past is read along straight lines."""
    weights = jansen_rit_network().weights.numpy()
    for _ in range(steps):
        arriving = np.zeros((len(held.entry[0]), 4))
        for to, source in zip(*weights.nonzero(), strict=True):
            whole, part = divmod(steps_late[to, source], 1)
            older, newer = (held.sent(path[-1 - int(back)]) for back in (whole + (part > 0), whole))
            read = part * older + (1 - part) * newer
            own = held.sent(path[-1])[:, to] if held.diffusive else 0
            arriving[:, to] += weights[to, source] * (read[:, source] - own)
        u = 0.7 * np.array(held.entry) @ arriving
        path.append(scheme(lambda x, u=u: np.stack(held.rate(x, u)), path[-1], held.dt_s))
    return path


STEPS_LATE = np.array([[0, 0, 32, 50], [22, 0, 0, 25], [30, 24, 0, 0], [0, 3, 28, 0.0]])  # from 1 to 0 nothing is late


def disagreement_when_held(name: str, scheme, by_hand, steps_late: np.ndarray) -> float:
    """Largest difference of any state over its largest size, after 150 steps from a ragged past."""
    held = HELD[name]
    spread = 1 + 0.2 * np.random.default_rng(1).uniform(-1, 1, (52, len(held.start), 4))
    path = list(spread * np.array(held.start)[:, None])
    states = torch.as_tensor(np.stack(path, -1)).transpose(0, 1)  # [region, state, time]
    network = held.network(steps_late)
    past = past_of_states(network, states, held.dt_s, smooth=False)
    played = simulate(network, states[..., -1], dt_s=held.dt_s, steps=150, past=past, scheme=scheme, hold_coupling=True)
    ours = torch.cat([played.readings, played.end.unsqueeze(-1)], -1).numpy()
    theirs = np.stack(held_by_hand(held, by_hand, path, steps_late, 150)[51:], -1).swapaxes(0, 1)
    return float((np.abs(ours - theirs).max((0, 2)) / np.abs(theirs).max((0, 2))).max())


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize(("scheme", "by_hand"), [(euler, euler_by_hand), (heun, heun_by_hand), (rk4, rk4_by_hand)])
def test_held_coupling_is_what_a_hand_written_loop_gives(name, scheme, by_hand):
    """The convention of other simulators: the coupling of the step's start, delays in whole steps, any past."""
    assert disagreement_when_held(name, scheme, by_hand, STEPS_LATE) < 1e-9


@pytest.mark.parametrize("name", HELD)
def test_held_coupling_reads_straight_lines_where_delays_fall_between_steps(name):
    late = np.where(STEPS_LATE > 0, STEPS_LATE + 0.3, 0.0)
    assert disagreement_when_held(name, heun, heun_by_hand, late) < 1e-9


def test_two_halves_are_the_whole():
    network, dt_s = jansen_rit_network(), 7e-4
    start, waves = network.rest + 0.1, white_waves(network, (), 60, 7e-4, generator(1))
    whole = simulate(network, start, dt_s=dt_s, steps=60, waves=waves)
    half = simulate(network, start, dt_s=dt_s, steps=23, waves=waves[:23])
    rest = simulate(network, half.end, dt_s=dt_s, steps=37, waves=waves[23:], past=half.past)
    torch.testing.assert_close(rest.end, whole.end, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([half.readings, rest.readings], -1), whole.readings, rtol=1e-12, atol=1e-12)


def played_with(checkpoint: bool, reads: str, at: dict[str, Tensor]) -> Tensor:
    """A number that depends on readings, end and past of 40 steps, through everything that may be differentiated."""
    tracts = jansen_rit_network()
    circuit = JansenRit(at["afferents"], excitation_mv=at["size"])
    delay_s = tracts.delay_s * at["stretch"]
    network = Network(circuit, tracts.weights * at["weights"], gain=at["gain"], delay_s=delay_s)
    readings = {"potential": network.potential_mv, "rate": lambda x: x[..., 4], "own": lambda x: at["size"] * x[..., 1]}
    played = simulate(
        network, at["start"], dt_s=1e-3, drive=at["drive"], waves=at["waves"], scheme=heun, reading=readings[reads],
        every=3, checkpoint=checkpoint,
    )  # fmt: skip
    return played.readings.square().mean() + played.end[..., 1].sum() + played.past.slope_end.square().mean()


@pytest.mark.parametrize("reads", ["potential", "rate", "own"])
def test_checkpoints_change_no_gradient_forwards_or_backwards(reads):
    network, source = jansen_rit_network(), generator(1)
    at = {
        "start": network.rest + 0.1,
        "drive": torch.rand(40, 3, 4, 2, generator=source, dtype=torch.float64),
        "waves": white_waves(network, (), 40, 1e-3, source),
        "afferents": network.circuit.afferents_hz,
        **{name: torch.tensor(value, dtype=torch.float64)
           for name, value in (("size", 3.25), ("gain", 10.0), ("weights", 1.1), ("stretch", 1.031))},
    }  # fmt: skip
    gradients = []
    for checkpoint in (False, True):
        moved = {name: value.clone().requires_grad_() for name, value in at.items()}
        value = played_with(checkpoint, reads, moved)
        gradients.append((value.detach(), *torch.autograd.grad(value, list(moved.values()))))
    for plain, replayed in zip(*gradients, strict=True):
        assert bool((plain != 0).any())
        torch.testing.assert_close(replayed, plain, rtol=1e-11, atol=1e-13)
    slope = torch.func.jvp(
        lambda g: played_with(True, reads, at | {"gain": g}), (at["gain"],), (torch.ones_like(at["gain"]),)
    )[1]
    torch.testing.assert_close(slope, gradients[0][1 + list(at).index("gain")], rtol=1e-9, atol=1e-12)


def test_checkpoints_let_a_past_be_differentiated_forwards():
    network = jansen_rit_network()
    past = still_past(network, network.rest, 1e-3)

    def end(checkpoint: bool, size: Tensor) -> Tensor:
        before = replace(past, emission=size * past.emission)
        return simulate(network, network.rest, dt_s=1e-3, steps=30, past=before, checkpoint=checkpoint).end.sum()

    one = torch.ones((), dtype=torch.float64)
    plain, stretched = (torch.func.jvp(partial(end, c), (one,), (one,))[1] for c in (False, True))
    assert float(plain.abs()) > 0
    torch.testing.assert_close(stretched, plain, rtol=1e-12, atol=1e-12)


def test_checkpoints_change_no_path():
    network = jansen_rit_network()
    whole, stretched = (simulate(network, network.rest + 0.1, dt_s=1e-3, steps=41, checkpoint=c) for c in (False, True))
    assert torch.equal(whole.readings, stretched.readings)
    assert torch.equal(whole.end, stretched.end)


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


def rows_under_noise() -> tuple[Tensor, Tensor]:
    """Starts [row, region, state] and waves [step, row, region, 1] of five rows, 100 steps of 1 ms."""
    network = jansen_rit_network()
    spread = torch.randn(5, 4, 6, generator=generator(2), dtype=torch.float64)
    return network.rest + 0.1 * spread, white_waves(network, (5,), 100, 1e-3, generator(3))


def test_a_row_does_not_see_what_other_rows_hold():
    """To the bit, noise and delays included."""
    network, (start, waves) = jansen_rit_network(), rows_under_noise()
    shaken = torch.ones(5, dtype=torch.float64)
    shaken[[0, 1, 3, 4]] = 7.0
    played, other = (
        simulate(network, start * by.reshape(5, 1, 1), dt_s=1e-3, waves=waves * by.reshape(5, 1, 1), steps=100).readings
        for by in (torch.ones_like(shaken), shaken)
    )
    assert torch.equal(played[2], other[2])
    assert float((played[1] - other[1]).abs().max()) > 1.0


def test_a_row_under_noise_gives_what_it_gives_alone():
    """Not to the bit: sums over tracts and exponentials are done some numbers at a time, whose last digit depends on
    how many there are. After 100 steps 1e-14 was measured.
    """
    network, (start, waves) = jansen_rit_network(), rows_under_noise()
    together = simulate(network, start, dt_s=1e-3, waves=waves, steps=100)
    for row in range(5):
        alone = simulate(network, start[row], dt_s=1e-3, waves=waves[:, row], steps=100)
        torch.testing.assert_close(alone.readings, together.readings[row], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.end, together.end[row], rtol=1e-12, atol=1e-12)


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
