"""Trajectories held to The Virtual Brain's, same equations, parameters, start, scheme and step, without noise.

That simulator holds the coupling of a step's start over its stages, so ours is asked to do the
same. It keeps weights and history in single precision, so networks agree to 1e-4 of the signal
at most; single regions, which have neither, to 1e-6 over a second.

Run: pip install "stimopt[peers]", then pytest -m peers -n 0 tests/test_peers_tvb.py
"""

import numpy as np
import pytest
import torch

from stimopt.simulators import JansenRit, Network, heun, rk4, simulate
from stimopt.simulators.epileptor import Epileptor, coupling_entry
from stimopt.simulators.hopf import StuartLandau
from stimopt.simulators.montbrio import MontbrioPazoRoxin
from stimopt.simulators.wilson_cowan import WilsonCowan

pytestmark = pytest.mark.peers
DT_MS = 0.1


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


WEIGHTS = np.array([[0.0, 0.5, 0.25, 0.0], [0.5, 0.0, 0.0, 1.0], [0.25, 0.0, 0.0, 0.5], [0.75, 0.5, 0.0, 0.0]])
LENGTHS_MM = np.array([[0.0, 12.0, 30.0, 0.0], [12.0, 0.0, 0.0, 21.0], [30.0, 0.0, 0.0, 9.0], [15.0, 6.0, 0.0, 0.0]])


def theirs(model, start, *, coupling=None, weights=None, speed_m_s=3.0, scheme="HeunDeterministic", ms=1000.0):
    """States [state, region, time] of a TVB simulation, its start included; `start` is [state, region]."""
    lab = pytest.importorskip("tvb.simulator.lab", reason="needs the peers extra: pip install 'stimopt[peers]'")
    regions = start.shape[1]
    weights = np.zeros((regions, regions)) if weights is None else weights
    lengths = LENGTHS_MM[:regions, :regions] if np.isfinite(speed_m_s) else np.zeros((regions, regions))
    connectivity = lab.connectivity.Connectivity(
        weights=weights, tract_lengths=lengths, speed=np.array([speed_m_s if np.isfinite(speed_m_s) else 1.0]),
        region_labels=np.array([f"R{i}" for i in range(regions)]), centres=np.zeros((regions, 3)),
    )  # fmt: skip
    connectivity.configure()
    model.variables_of_interest = model.state_variables
    simulator = lab.simulator.Simulator(
        model=model, connectivity=connectivity, conduction_speed=connectivity.speed.item(),
        coupling=coupling or lab.coupling.Linear(a=np.array([0.0])),
        integrator=getattr(lab.integrators, scheme)(dt=DT_MS), monitors=(lab.monitors.Raw(),), simulation_length=ms,
    )  # fmt: skip
    simulator.configure()
    horizon = round(lengths.max() / connectivity.speed.item() / DT_MS) + 2
    simulator.initial_conditions = np.repeat(start[None, :, :, None], horizon, 0)
    simulator.configure()
    ((_, states),) = simulator.run()
    return np.concatenate([start[:, :, None], states[..., 0].transpose(1, 2, 0)], -1)


def ours(dynamics, start, steps, *, scheme=heun, hold=True):
    """The same of ours, from a start [region, state]."""
    played = simulate(dynamics, tensor(start), dt_s=DT_MS * 1e-3, steps=steps, scheme=scheme, hold_coupling=hold)
    return torch.cat([played.readings, played.end.unsqueeze(-1)], -1).movedim(0, 1).numpy()  # [state, region, time]


def disagreement(one, two) -> float:
    """Largest difference of any state over the largest size of that state."""
    count = min(one.shape[-1], two.shape[-1])
    one, two = one[..., :count], two[..., :count]
    size = np.abs(two).max((1, 2)).clip(1e-12)
    return float((np.abs(one - two).max((1, 2)) / size).max())


def delays_s(speed_m_s: float) -> torch.Tensor:
    """Delays rounded to steps, as that simulator rounds them."""
    return tensor(np.rint(LENGTHS_MM / speed_m_s / DT_MS) * DT_MS * 1e-3)


JR_START = np.array([[0.1, 18.0, 12.0, -0.02, 0.1, 0.05]] * 4).T * np.array([1.0, 0.9, 1.1, 0.8])
JR_UNITS = np.array([1.0, 1.0, 1.0, 1e3, 1e3, 1e3])[:, None, None]  # their rates are per ms


def jansen_rit() -> JansenRit:
    return JansenRit(torch.full((4,), 220.0, dtype=torch.float64), threshold_mv=5.52, sending_threshold_mv=6.0)


def their_jansen_rit():
    from tvb.simulator.lab import models

    return models.JansenRit(mu=np.array([0.22]), v0=np.array([5.52]))


@pytest.mark.parametrize(("scheme", "name"), [(heun, "HeunDeterministic"), (rk4, "RungeKutta4thOrderDeterministic")])
def test_single_jansen_rit_columns_agree_to_a_millionth_over_a_second(scheme, name):
    pytest.importorskip("tvb.simulator.lab", reason="needs the peers extra")
    reference = theirs(their_jansen_rit(), JR_START, scheme=name) * JR_UNITS
    start = (JR_START * JR_UNITS[..., 0]).T
    assert disagreement(ours(jansen_rit(), start, 10_000, scheme=scheme), reference) < 1e-6


@pytest.mark.parametrize("speed_m_s", [np.inf, 3.0])
def test_a_jansen_rit_network_agrees_within_their_single_precision(speed_m_s):
    lab = pytest.importorskip("tvb.simulator.lab", reason="needs the peers extra")
    coupling = lab.coupling.SigmoidalJansenRit(a=np.array([10.0]))
    reference = theirs(their_jansen_rit(), JR_START, coupling=coupling, weights=WEIGHTS, speed_m_s=speed_m_s)
    delays = None if np.isinf(speed_m_s) else delays_s(speed_m_s)
    network = Network(jansen_rit(), tensor(WEIGHTS), gain=10.0, delay_s=delays)
    start = (JR_START * JR_UNITS[..., 0]).T
    assert disagreement(ours(network, start, 10_000), reference * JR_UNITS) < 1e-4


def their_and_our_circuit(name: str):
    """A model of theirs, ours with the same constants, a start [state, region] and the coupling both use."""
    lab = pytest.importorskip("tvb.simulator.lab", reason="needs the peers extra")
    difference = lab.coupling.Difference(a=np.array([1.0]))
    four, spread = torch.ones(4, dtype=torch.float64), np.array([1.0, 0.9, 1.1, 0.8])
    if name == "wilson-cowan":
        model = lab.models.WilsonCowan(P=np.array([1.25]))
        ours = WilsonCowan(1.25 * four)
        return (
            model,
            ours,
            {"gain": 0.8},
            np.array([[0.2] * 4, [0.1] * 4]) * spread,
            lab.coupling.Linear(a=np.array([0.8])),
        )
    if name == "hopf":
        model = lab.models.SupHopf(a=np.array([0.1]), omega=np.array([0.06]))
        ours = StuartLandau(0.06 * four, bifurcation=0.1, unit_s=1e-3)
        entry = {"entry": torch.eye(2, dtype=torch.float64), "diffusive": True}
        return model, ours, entry, np.array([[0.3] * 4, [-0.2] * 4]) * spread, difference
    if name == "montbrio":
        model = lab.models.MontbrioPazoRoxin(cr=np.array([1.0]), cv=np.array([0.3]))
        ours = MontbrioPazoRoxin(-5.0 * four, unit_s=1e-3)
        entry = {"entry": tensor([[1.0, 0.3]])}
        return model, ours, entry, np.array([[0.3] * 4, [-1.0] * 4]) * spread, lab.coupling.Linear(a=np.array([1.0]))
    model = lab.models.Epileptor(Kvf=np.array([0.1]), Kf=np.array([0.05]), Ks=np.array([-0.2]), x0=np.array([-1.6]))
    ours = Epileptor(-1.6 * four, permittivity_rate=0.00035, return_gain=0.1, unit_s=1e-3)
    start = np.array([[-1.6] * 4, [-11.0] * 4, [3.1] * 4, [-1.0] * 4, [0.01] * 4, [-0.1] * 4]) * spread
    entry = {"entry": coupling_entry(tensor(WEIGHTS), 0.1, 0.05, -0.2), "diffusive": True}
    return model, ours, entry, start, difference


CIRCUITS = ("wilson-cowan", "hopf", "montbrio", "epileptor")


@pytest.mark.parametrize("name", CIRCUITS)
def test_single_circuits_agree_to_a_millionth_over_a_second(name):
    model, circuit, _, start, _ = their_and_our_circuit(name)
    assert disagreement(ours(circuit, start.T, 10_000), theirs(model, start)) < 1e-6


@pytest.mark.parametrize("speed_m_s", [np.inf, 3.0])
@pytest.mark.parametrize("name", CIRCUITS)
def test_networks_agree_within_their_single_precision(name, speed_m_s):
    model, circuit, joined, start, coupling = their_and_our_circuit(name)
    delays = None if np.isinf(speed_m_s) else delays_s(speed_m_s)
    network = Network(circuit, tensor(0.2 * WEIGHTS), delay_s=delays, **joined)
    reference = theirs(model, start, coupling=coupling, weights=0.2 * WEIGHTS, speed_m_s=speed_m_s)
    assert disagreement(ours(network, start.T, 10_000), reference) < 1e-4
