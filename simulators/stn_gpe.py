"""Nuclei that excite and hold back each other: firing rates, a sigmoid each, and what their axons delay.

    tau S' = F(background + synaptic drive) - S + direct drive
    F(x) = M / (1 + (M - B) / B exp(-4 x / M))

Each region is one nucleus. With no input it fires at B, and at most at M; the sigmoid's
steepest slope is 1. What other nuclei send is a rate, times the weight of the tract, late by its
delay: that is the work of a `Network`. `stn_gpe` is the network of subthalamic nucleus and external
pallidum, which rests with healthy weights and beats at about 20 Hz with parkinsonian ones. A
stimulus may enter as an input to the cells, inside F, or as firing it causes by itself, outside F
as in the paper, where 4600 1/s per mA was fitted to the healthy animals.

State   [*batch, region, 1]   firing rate, 1/s
Drive   [*batch, region, 2]   synaptic input, 1/s, inside F; firing caused directly, 1/s, outside
Emits   [*batch, region, 1]   firing rate, 1/s
Output  [*batch, region]      firing rate times `scale_mv`

Reference: Nevado Holgado, Terry and Bogacz, Journal of Neuroscience 30 (2010) 12340-12352, equations 1 to 5, tables 1
and 3. Delays and stability: Pasillas-Lepine, Biological Cybernetics 107 (2013) 289-308.
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ShapeError

from .dynamics import Drive, Dynamics, Emission, Parameter, Potential, State, step_at_pace
from .network import Network

STN, GPE = range(2)
CORTEX_HZ = 27.0  # Ctx, table 1
STRIATUM_HZ = 2.0  # Str, table 1


@dataclass(frozen=True)
class RateNuclei(Dynamics):
    """A nucleus in each region, uncoupled.

    Attributes:
        background_hz: Constant synaptic input, weighted, 1/s; negative where it inhibits.
        largest_hz: M, the largest firing rate.
        resting_hz: B, the rate without input.
        time_constant_s: tau, how fast cells answer.
        noise_hz: White noise on the rate of firing: standard deviation of the synaptic input averaged over one
            second, as far as F has slope 1. Rates can then fall below 0.
        scale_mv: Potential of a region that fires at 1/s.
    """

    background_hz: Float[Tensor, "*batch region"]
    largest_hz: Parameter = 300.0
    resting_hz: Parameter = 17.0
    time_constant_s: Parameter = 6e-3
    noise_hz: Parameter = 0.0
    scale_mv: Parameter = 1.0

    states: ClassVar[tuple[str, ...]] = ("firing_hz",)
    inputs: ClassVar[tuple[str, ...]] = ("synaptic_hz", "firing_hz")
    outputs: ClassVar[tuple[str, ...]] = ("firing_hz",)
    noisy: ClassVar[tuple[str, ...]] = ("firing_hz",)
    source: ClassVar[str] = "Nevado Holgado, Terry and Bogacz 2010, J Neurosci 30:12340-12352"
    noise_convention: ClassVar[str] = (
        "white noise outside the sigmoid, given as the standard deviation of its mean over 1 s; none in the paper"
    )

    @property
    def largest_dt_s(self) -> float:
        """0.5 ms at the paper's 6 ms: RK4 is within 0.02 1/s, though 0.4 ms of the rhythm cross all of F."""
        return step_at_pace(5e-4, 1 / 6e-3, 1 / torch.as_tensor(self.time_constant_s))

    @property
    def rest(self) -> State:
        """No firing, where the paper's simulations begin."""
        return self.background_hz.new_zeros(*self.background_hz.shape, 1)

    def firing_hz(self, input_hz: Float[Tensor, "*batch region"]) -> Float[Tensor, "*batch region"]:
        """F, equation 4 of the paper: the rate at which nuclei fire under a steady input."""
        odds = (self.largest_hz - self.resting_hz) / self.resting_hz * torch.ones_like(input_hz)
        return self.largest_hz * torch.sigmoid(4 * input_hz / self.largest_hz - odds.log())

    def drift(self, state: State, drive: Drive) -> State:
        """Equations 1 and 2 of the paper, without what the tracts bring."""
        synaptic, direct = drive.unbind(-1)
        goal = self.firing_hz(self.background_hz + synaptic) + direct
        return ((goal - state[..., 0]) / self.time_constant_s).unsqueeze(-1)

    def noise(self, state: State) -> Float[Tensor, "*batch region noisy"]:
        """Additive."""
        return (torch.zeros_like(state[..., 0]) + self.noise_hz / self.time_constant_s).unsqueeze(-1)

    def emission(self, state: State) -> Emission:
        """The firing rate."""
        return state

    def emission_rate(self, state: State, rate: State) -> Emission:
        """Its own rate of change."""
        return rate

    def potential_mv(self, state: State) -> Potential:
        """The firing rate, scaled."""
        return self.scale_mv * state[..., 0]


@dataclass(frozen=True)
class StnGpeWeights:
    """How strong the tracts are, all as positive numbers; table 3 of the paper. Numbers, or tensors [*batch].

    Attributes:
        stn_to_gpe: w_SG, excites.
        gpe_to_stn: w_GS, inhibits.
        gpe_to_gpe: w_GG, inhibits.
        cortex_to_stn: w_CS, excites.
        striatum_to_gpe: w_XG, inhibits.
    """

    stn_to_gpe: Parameter
    gpe_to_stn: Parameter
    gpe_to_gpe: Parameter
    cortex_to_stn: Parameter
    striatum_to_gpe: Parameter

    def towards(self, other: "StnGpeWeights", share: Parameter) -> "StnGpeWeights":
        """Weights on the straight line from these (share 0) to others (share 1); the paper's K, health to disease."""
        mixed = {}
        for field in fields(self):
            own, goal = getattr(self, field.name), getattr(other, field.name)
            mixed[field.name] = own + share * (goal - own)
        return StnGpeWeights(**mixed)


HEALTHY = StnGpeWeights(19.0, 1.12, 6.60, 2.42, 15.1)  # table 3
PARKINSONIAN = StnGpeWeights(20.0, 10.7, 12.3, 9.2, 139.4)  # table 3


def stn_gpe(
    weights: StnGpeWeights = PARKINSONIAN,
    *,
    cortex_hz: Parameter = CORTEX_HZ,
    striatum_hz: Parameter = STRIATUM_HZ,
    largest_hz: tuple[float, float] = (300.0, 400.0),
    resting_hz: tuple[float, float] = (17.0, 75.0),
    time_constant_s: tuple[float, float] = (6e-3, 14e-3),
    stn_to_gpe_s: float = 6e-3,
    gpe_to_stn_s: float = 6e-3,
    gpe_to_gpe_s: float = 4e-3,
    noise_hz: Parameter = 0.0,
) -> Network:
    """Subthalamic nucleus (region 0) and external pallidum (region 1), with their delays. Defaults are the paper's.

    Differentiable in weights and in the rates of cortex and striatum. Dtype and device are those of the tensors among
    them; torch's defaults where all are numbers.

    Args:
        weights: Of the tracts; `HEALTHY.towards(PARKINSONIAN, share)` for any in between, a batch of them for tensors.
        cortex_hz: Firing rate of the cortex, Ctx.
        striatum_hz: Firing rate of the striatum, Str.
        largest_hz: M of STN and GPe; numbers, as all that follow.
        resting_hz: B of both.
        time_constant_s: tau of both.
        stn_to_gpe_s: Delay of the tract.
        gpe_to_stn_s: Delay of the tract.
        gpe_to_gpe_s: Delay between pallidal cells.
        noise_hz: See RateNuclei.
    """
    table = tract_table(
        (
            (0.0, -weights.gpe_to_stn),
            (weights.stn_to_gpe, -weights.gpe_to_gpe),
            (weights.cortex_to_stn * cortex_hz, -(weights.striatum_to_gpe * striatum_hz)),
        )
    )  # [*batch, 3, region]
    background = table[..., 2, :]
    nuclei = RateNuclei(
        background,
        largest_hz=background.new_tensor(largest_hz),
        resting_hz=background.new_tensor(resting_hz),
        time_constant_s=background.new_tensor(time_constant_s),
        noise_hz=noise_hz,
    )
    delay_s = background.new_tensor([[0.0, gpe_to_stn_s], [stn_to_gpe_s, gpe_to_gpe_s]])
    return Network(nuclei, table[..., :2, :], delay_s=delay_s)


def with_feedback(network: Network, gain: Parameter, delay_s: float) -> Network:
    """The same network under proportional stimulation of the STN: it receives -gain times its own rate, after a delay.

    The loop of a device that senses the STN and drives it, without noise or steps. The input enters cells, inside F.

    Args:
        network: From `stn_gpe`, without another feedback.
        gain: Synaptic input per firing rate; a tensor [*batch] to run many gains at once.
        delay_s: From sensing to stimulation.

    Raises:
        ShapeError: If the network is not one of two nuclei with delays, or its STN hears itself already.
    """
    if network.delay_s is None or network.weights.shape[-1] != 2 or bool((network.weights[..., STN, STN] != 0).any()):
        raise ShapeError(
            f"feedback goes to a network of STN and GPe, with delays and no tract from STN to STN; this one has "
            f"{network.weights.shape[-1]} regions. Build it with stn_gpe."
        )
    place = torch.zeros_like(network.weights[..., :2, :2]).reshape(-1, 2, 2)[0]
    place[STN, STN] = 1.0
    size = torch.as_tensor(gain, dtype=place.dtype, device=place.device)
    return replace(
        network, weights=network.weights - size[..., None, None] * place, delay_s=network.delay_s + delay_s * place
    )


def tract_table(rows: tuple[tuple[Parameter, ...], ...]) -> Float[Tensor, "*batch row region"]:
    """Numbers and tensors [*batch] in one tensor, of the dtype of the first tensor among them; weights of tracts."""
    given = [value for row in rows for value in row if isinstance(value, Tensor)]
    model = given[0] if given else torch.tensor(0.0)
    made = (torch.as_tensor(value, dtype=model.dtype, device=model.device) for row in rows for value in row)
    flat: Tensor = torch.stack(torch.broadcast_tensors(*made), -1)
    return flat.reshape(*flat.shape[:-1], len(rows), len(rows[0]))
