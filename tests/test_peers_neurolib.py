"""Trajectories held to neurolib's Wilson-Cowan model: Euler's scheme, delays in whole steps, without noise.

Run: pip install "stimopt[peers]", then pytest -m peers -n 0 tests/test_peers_neurolib.py
"""

import numpy as np
import pytest
import torch

from stimopt.simulators import Network, euler, simulate
from stimopt.simulators.wilson_cowan import WilsonCowan

pytestmark = pytest.mark.peers
DT_MS, STEPS = 0.1, 10_000
WEIGHTS = np.array([[0.0, 0.7, 0.3], [0.5, 0.0, 0.0], [0.2, 0.9, 0.0]])
LENGTHS_MM = np.array([[0.0, 40.0, 90.0], [40.0, 0.0, 0.0], [90.0, 60.0, 0.0]])


def theirs(delays: bool):
    """E and I [state, region, time], the start included."""
    wc = pytest.importorskip("neurolib.models.wc", reason="needs the peers extra: pip install 'stimopt[peers]'")
    model = wc.WCModel(Cmat=WEIGHTS, Dmat=LENGTHS_MM if delays else np.zeros((3, 3)))
    model.params.update(
        dt=DT_MS, duration=STEPS * DT_MS, sigma_ou=0.0, exc_ext=0.9, inh_ext=0.0, K_gl=1.5, signalV=20.0,
        exc_ou_mean=0.0, inh_ou_mean=0.0, sampling_dt=DT_MS,
    )  # fmt: skip
    longest = round(LENGTHS_MM.max() / 20.0 / DT_MS) + 2
    model.params["exc_init"] = np.tile([[0.05], [0.1], [0.2]], (1, longest))
    model.params["inh_init"] = np.tile([[0.02], [0.06], [0.1]], (1, longest))
    model.run()
    start = np.array([[0.05, 0.1, 0.2], [0.02, 0.06, 0.1]])[..., None]
    return np.concatenate([start, np.stack([model.exc, model.inh])], -1), model.params


def ours(params, delays: bool):
    circuit = WilsonCowan(
        torch.full((3,), params["exc_ext"], dtype=torch.float64), input_i=params["inh_ext"],
        tau_e_s=params["tau_exc"] * 1e-3, tau_i_s=params["tau_inh"] * 1e-3,
        weight_e_to_e=params["c_excexc"], weight_i_to_e=params["c_inhexc"],
        weight_e_to_i=params["c_excinh"], weight_i_to_i=params["c_inhinh"],
        slope_e=params["a_exc"], slope_i=params["a_inh"], midpoint_e=params["mu_exc"], midpoint_i=params["mu_inh"],
        shifted=False,
    )  # fmt: skip
    weights = torch.as_tensor(WEIGHTS)
    late = torch.as_tensor(np.rint(LENGTHS_MM / 20.0 / DT_MS) * DT_MS * 1e-3) if delays else None
    network = Network(circuit, weights, gain=params["K_gl"], delay_s=late)
    start = torch.tensor([[0.05, 0.02], [0.1, 0.06], [0.2, 0.1]], dtype=torch.float64)
    played = simulate(network, start, dt_s=DT_MS * 1e-3, steps=STEPS, scheme=euler)
    return torch.cat([played.readings, played.end.unsqueeze(-1)], -1).movedim(0, 1).numpy()


@pytest.mark.parametrize("delays", [False, True])
def test_a_wilson_cowan_network_agrees_to_a_millionth_over_a_second(delays):
    reference, params = theirs(delays)
    mine = ours(params, delays)
    count = min(reference.shape[-1], mine.shape[-1])
    size = np.abs(reference).max((1, 2))
    difference = np.abs(reference[..., :count] - mine[..., :count]).max((1, 2))
    assert float((difference / size).max()) < 1e-6
