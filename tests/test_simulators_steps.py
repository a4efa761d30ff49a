"""Steps: what a circuit's own pace allows, what another scheme allows, and what is said of a circuit that runs away."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.simulators import (
    Dynamics,
    Epileptor,
    JansenRit,
    LinearOscillator,
    Network,
    Twin,
    Wendling,
    basal_ganglia_patient,
    euler,
    heun,
    jansen_rit_patient,
    linear_patient,
    rk4,
)
from stimopt.simulators.corticothalamic import FieldPopulations
from stimopt.simulators.hopf import StuartLandau
from stimopt.simulators.kuramoto import Kuramoto
from stimopt.simulators.montbrio import MontbrioPazoRoxin
from stimopt.simulators.relaxation_ensemble import RelaxationOscillator
from stimopt.simulators.step_check import half_step_error
from stimopt.simulators.stn_gpe import RateNuclei
from stimopt.simulators.wilson_cowan import WilsonCowan
from stimopt.stimulus import no_stimulus
from stimopt.tensors import generator


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def at_pace(pace: float) -> dict[str, Dynamics]:
    """Every circuit of rates, all of its rates `pace` times as fast, so that a path is only played faster."""
    return {
        "Jansen-Rit": JansenRit(one(150.0), 0.0, excitation_per_s=150.0 * pace, inhibition_per_s=75.0 * pace),
        "Wendling": Wendling(
            one(90.0), 0.0, excitation_per_s=100.0 * pace, slow_inhibition_per_s=50.0 * pace,
            fast_inhibition_per_s=500.0 * pace,
        ),
        "Wilson-Cowan": WilsonCowan(one(1.25), tau_e_s=0.01 / pace, tau_i_s=0.01 / pace),
        "Epileptor": Epileptor(one(-1.6), unit_s=1e-3 / pace),
        "Hopf": StuartLandau(one(62.8 * pace), bifurcation=5.0 * pace),
        "Montbrio": MontbrioPazoRoxin(one(-5.0), tau=1.0 / pace, current=one(3.0)),
        "Kuramoto": Kuramoto(one(150.0 * pace)),
        "nuclei": RateNuclei(one(100.0), time_constant_s=6e-3 / pace),
        "relaxation": RelaxationOscillator(one(0.6), unit_s=1e-3 / pace),
        "corticothalamic": FieldPopulations(
            one(10.0), torch.ones(1, dtype=torch.float64), decay_per_s=83.0 * pace, rise_per_s=769.0 * pace,
            axon_per_s=116.0 * pace,
        ),
        "linear": LinearOscillator(one(180.0 * pace), 8.0 * pace),
    }  # fmt: skip


@pytest.mark.parametrize("name", at_pace(1.0))
def test_a_circuit_ten_times_as_fast_has_a_step_ten_times_as_short_and_as_good(name):
    usual, fast = at_pace(1.0)[name], at_pace(10.0)[name]
    assert fast.largest_dt_s == pytest.approx(usual.largest_dt_s / 10, rel=0.4)  # rounder where several rates count
    start = fast.rest + 0.1
    error = half_step_error(fast, dt_s=fast.largest_dt_s, seconds=100 * fast.largest_dt_s, start=start)
    assert error < 0.03
    slow = at_pace(0.1)[name]
    assert slow.largest_dt_s >= usual.largest_dt_s


def test_a_twin_with_fast_parameters_refuses_the_step_of_slow_ones():
    twin = jansen_rit_patient(regions=4, contacts=4, window_s=0.1)
    circuit = replace(twin.circuit.circuit, excitation_per_s=2000.0)
    with pytest.raises(ConfigError, match=r"largest step tested for JansenRit with these parameters is 0\.00015 s"):
        replace(twin, circuit=replace(twin.circuit, circuit=circuit), dt_s=2e-3)


def test_a_scheme_that_was_not_tested_is_tried_at_half_of_the_step():
    twin = jansen_rit_patient(regions=4, contacts=4, window_s=0.1)
    assert replace(twin, scheme=heun, dt_s=5e-4).scheme is heun
    with pytest.raises(
        ConfigError, match=r"too large for this circuit with euler: .* largest tested is 5e-05 s, with E"
    ):
        replace(basal_ganglia_patient(window_s=0.01, settle_s=0.0), scheme=euler)
    linear = linear_patient(regions=4, contacts=4, window_s=0.1)
    swinging = replace(
        linear.circuit, circuit=replace(linear.circuit.circuit, natural_per_s=torch.full((4,), 180.0).double())
    )
    with pytest.raises(ConfigError, match="with euler: halving it changes the potential by"):
        replace(linear, circuit=swinging, scheme=euler, dt_s=2e-3)


def test_a_circuit_that_runs_away_is_said_to_and_gives_no_numbers():
    twin: Twin = linear_patient(regions=4, contacts=4, window_s=0.5)
    network = twin.circuit
    assert isinstance(network, Network)
    coupled = network.weights.abs() + 1.0  # positive coupling far above each oscillator's own stiffness
    wild = replace(twin, settle_s=0.0, scheme=rk4, circuit=replace(network, weights=coupled, gain=3e7))
    with pytest.raises(ConfigError, match=r"regions 0, 1, 2, 3 of LinearOscillator left every bound .* weaken gain"):
        wild.respond(wild.start((), generator(0)), no_stimulus(wild.montage), generator(1))
    with pytest.raises(ConfigError, match="left every bound"):
        replace(wild, settle_s=1.0).start((), generator(0))


def test_an_exact_step_of_another_circuit_is_refused():
    twin = linear_patient(regions=4, contacts=4, window_s=0.1)
    network = twin.circuit
    assert isinstance(network, Network)
    assert replace(twin.to(torch.zeros(())), window_s=0.2).window_s == 0.2  # single precision is near enough
    with pytest.raises(ConfigError, match="exact step given is not that of this LinearOscillator"):
        replace(twin, circuit=replace(network, gain=2 * network.gain))
