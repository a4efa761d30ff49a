"""The same code on a GPU: trajectories, tangents and reverse gradients there are those of the processor."""

import pytest
import torch
from torch import Tensor

from stimopt.simulators import JansenRit, Network, heun, jansen_rit_patient, rk4, simulate, white_waves
from stimopt.simulators.compiled import compiled_simulate
from stimopt.stimulus import pulse_train
from stimopt.tensors import generator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
WEIGHTS = torch.tensor([[0.0, 0.6, 0.4], [1.0, 0.0, 0.3], [0.0, 0.5, 0.0]], dtype=torch.float64)
DELAY_S = torch.tensor([[0.0, 0.004, 0.0064], [0.0088, 0.0, 0.003], [0.0, 0.0071, 0.0]], dtype=torch.float64)
AFFERENTS = torch.tensor([150.0, 120.0, 210.0], dtype=torch.float64)


def played(play, device: str, gain: Tensor, delays: bool, scheme) -> Tensor:
    """The mean potential over rows and regions at each step; noise is drawn on the processor."""
    delay_s = DELAY_S.to(device) if delays else None
    network = Network(JansenRit(AFFERENTS.to(device)), WEIGHTS.to(device), gain=gain.to(device), delay_s=delay_s)
    waves = white_waves(Network(JansenRit(AFFERENTS), WEIGHTS), (4,), 40, 1e-3, generator(1)).to(device)
    start = network.rest.expand(4, -1, -1).contiguous()
    path = play(network, start, dt_s=1e-3, steps=40, waves=waves, scheme=scheme, reading=network.potential_mv)
    return path.readings.mean((0, 1))


@pytest.mark.parametrize("play", [simulate, compiled_simulate])
@pytest.mark.parametrize(("delays", "scheme"), [(False, heun), (True, rk4)])
def test_paths_and_gradients_are_those_of_the_processor(play, delays, scheme):
    gain = torch.tensor(10.0, dtype=torch.float64)
    truth = played(simulate, "cpu", gain, delays, scheme)
    torch.testing.assert_close(played(play, "cuda", gain, delays, scheme).cpu(), truth, rtol=1e-9, atol=1e-9)
    slope = torch.func.jvp(lambda g: played(simulate, "cpu", g, delays, scheme), (gain,), (torch.ones_like(gain),))[1]
    forwards = torch.func.jvp(lambda g: played(play, "cuda", g, delays, scheme), (gain,), (torch.ones_like(gain),))[1]
    torch.testing.assert_close(forwards.cpu(), slope, rtol=1e-7, atol=1e-9)
    at = gain.clone().requires_grad_()
    backwards = torch.autograd.grad(played(play, "cuda", at, delays, scheme).sum(), at)[0]
    torch.testing.assert_close(backwards, slope.sum(), rtol=1e-7, atol=1e-9)


def test_a_twin_answers_on_the_gpu():
    twin = jansen_rit_patient(regions=4, contacts=4, window_s=0.1)
    there = twin.to(torch.zeros((), dtype=torch.float64, device="cuda"))
    train = pulse_train(there.montage, there.montage.neighbour_pairs()[0], amplitude_ma=2.0, pulses=3).expand(2)
    response, _ = there.respond(there.start((2,), generator(0)), train, generator(1))
    assert response.signal_uv.device.type == "cuda"
    assert bool(response.signal_uv.isfinite().all())
