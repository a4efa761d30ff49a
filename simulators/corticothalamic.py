"""Cortex and thalamus as one loop of fields: the alpha rhythm from the time a round trip takes.

    V'' / (alpha beta) + (1/alpha + 1/beta) V' + V = sum_b nu_ab phi_b(t - tau_ab) + background + drive
    Q = Qmax / (1 + exp(-(V - theta) / sigma))
    phi'' / gamma^2 + 2 phi' / gamma + phi = Q          along cortical axons; phi = Q where axons are short

Each region is one population: excitatory and inhibitory cells of the cortex, the reticular nucleus
and the relay cells of the thalamus. Dendrites smooth what comes in, a sigmoid makes it firing, and
long cortical axons smooth that once more; the equations are those of the whole cortex moving
together (no waves across it). What tracts carry is the work of a `Network`: weights are nu, in mV s,
and the way between cortex and thalamus is late. `corticothalamic` is that network. Sensory input and
thalamic stimulation enter the relay cells, cortical stimulation the excitatory ones.

State   [*batch, region, 4]   V in mV and its rate in mV/s; phi in 1/s and its rate in 1/s^2, 0 where axons are short
Drive   [*batch, region, 1]   synaptic input to the dendrites, mV: nu times a firing rate; held, it moves V by as much
Emits   [*batch, region, 1]   firing that arrives at the far ends: phi, or Q where axons are short, 1/s
Output  [*batch, region]      the emission times `scale_mv`: scalp potentials follow phi of the excitatory cells

Reference: Robinson, Rennie and Rowe, Physical Review E 65 (2002) 041924. Default parameters are those of Abeysuriya,
Rennie and Robinson, Journal of Neuroscience Methods 253 (2015) 55-69, as configured in NFTsim (Sanz-Leon et al., PLoS
Computational Biology 14 (2018) e1006387; eirs-corticothalamic.conf), whose steady firing rates the tests meet.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .dynamics import Drive, Dynamics, Emission, Parameter, Potential, State, step_at_pace
from .network import Network
from .stn_gpe import tract_table

EXCITATORY, INHIBITORY, RETICULAR, RELAY = range(4)
THALAMUS_S = 0.0425  # t0 / 2; NFTsim's file has 42.48 ms, this on a grid of 2^-13 s


@dataclass(frozen=True)
class FieldPopulations(Dynamics):
    """A population in each region, uncoupled.

    Attributes:
        background_mv: Constant input to the dendrites, nu_sn phi_n in the relay cells.
        axons: 1 where axons are long and phi follows a damped wave equation, 0 where they are short; by region.
        decay_per_s: alpha, of the dendritic response.
        rise_per_s: beta.
        axon_per_s: gamma, damping of the cortical field: speed of conduction over range.
        largest_hz: Qmax.
        threshold_mv: theta.
        width_mv: sigma' in the sigmoid; the standard deviation of thresholds times sqrt(3) / pi.
        noise_mv: White noise on the dendritic input: standard deviation of its mean over one second.
        scale_mv: Potential of a region that sends 1/s.
    """

    background_mv: Float[Tensor, "*batch region"]
    axons: Float[Tensor, "*#batch region"]
    decay_per_s: Parameter = 1 / 0.012
    rise_per_s: Parameter = 1 / 0.0013
    axon_per_s: Parameter = 116.0
    largest_hz: Parameter = 340.0
    threshold_mv: Parameter = 12.92
    width_mv: Parameter = 3.8
    noise_mv: Parameter = 0.0
    scale_mv: Parameter = 1.0

    states: ClassVar[tuple[str, ...]] = ("potential_mv", "potential_rate", "field_hz", "field_rate")
    inputs: ClassVar[tuple[str, ...]] = ("synaptic_mv",)
    outputs: ClassVar[tuple[str, ...]] = ("arriving_hz",)
    noisy: ClassVar[tuple[str, ...]] = ("potential_rate",)
    source: ClassVar[str] = "Robinson, Rennie and Rowe 2002, Phys Rev E 65:041924"
    noise_convention: ClassVar[str] = (
        "white noise on the dendritic input, given as the standard deviation of its mean over 1 s, in mV; a noise on "
        "phi_n of s (1/s averaged over 1 s) is nu_sn s on the relay cells"
    )

    @property
    def largest_dt_s(self) -> float:
        """1 ms at the paper's beta: halving it changes RK4's response to a pulse by less than 1e-3 of its size."""
        return step_at_pace(1e-3, 1 / 0.0013, self.decay_per_s, self.rise_per_s, self.axon_per_s)

    @property
    def rest(self) -> State:
        """No potential and no field."""
        return self.background_mv.new_zeros(*self.background_mv.shape, 4)

    def firing_hz(self, potential_mv: Float[Tensor, "*batch region"]) -> Float[Tensor, "*batch region"]:
        """Q of a potential: equation 1 of the paper."""
        return self.largest_hz * torch.sigmoid((potential_mv - self.threshold_mv) / self.width_mv)

    def drift(self, state: State, drive: Drive) -> State:
        """Equations 1 to 4 of the paper, without space and without what the tracts bring."""
        potential, potential_rate, field, field_rate = state.unbind(-1)
        alpha, beta, gamma = self.decay_per_s, self.rise_per_s, self.axon_per_s
        received = self.background_mv + drive[..., 0] - potential
        potential_force = alpha * beta * received - (alpha + beta) * potential_rate
        fired = self.firing_hz(potential) - field
        field_force = self.axons * (gamma**2 * fired - 2 * gamma * field_rate)
        return torch.stack([potential_rate, potential_force, self.axons * field_rate, field_force], -1)

    def noise(self, state: State) -> Float[Tensor, "*batch region noisy"]:
        """The noise of the input, through the dendrites; additive."""
        size = self.noise_mv * self.decay_per_s * self.rise_per_s
        return (torch.zeros_like(state[..., 0]) + size).unsqueeze(-1)

    def emission(self, state: State) -> Emission:
        """The field phi where axons are long, else Q."""
        firing = self.firing_hz(state[..., 0])
        return torch.where(self.axons > 0, state[..., 2], firing).unsqueeze(-1)

    def emission_rate(self, state: State, rate: State) -> Emission:
        """The slope phi', or Q' = Q (1 - Q / Qmax) V' / sigma."""
        firing = self.firing_hz(state[..., 0])
        steepness = firing * (1 - firing / self.largest_hz) / self.width_mv
        return torch.where(self.axons > 0, rate[..., 2], steepness * rate[..., 0]).unsqueeze(-1)

    def potential_mv(self, state: State) -> Potential:
        """The emission, scaled."""
        return self.scale_mv * self.emission(state)[..., 0]


@dataclass(frozen=True)
class CorticothalamicWeights:
    """nu, mV s: mean potential per firing rate of what each population sends to another. Numbers, or tensors [*batch].

    Negative where it inhibits. Inhibitory cells of the cortex receive what excitatory ones do (synapses at random, as
    in the paper). Defaults are a waking state.

    Attributes:
        e_to_e: nu_ee, within the cortex.
        i_to_e: nu_ei.
        s_to_e: nu_es, relay cells to the cortex.
        e_to_r: nu_re, cortex to the reticular nucleus.
        s_to_r: nu_rs.
        e_to_s: nu_se, cortex to the relay cells.
        r_to_s: nu_sr.
        n_to_s: nu_sn, sensory input to the relay cells.
    """

    e_to_e: Parameter = 1.525377176
    i_to_e: Parameter = -3.022754434
    s_to_e: Parameter = 0.5674779589
    e_to_r: Parameter = 0.1695899041
    s_to_r: Parameter = 0.05070036187
    e_to_s: Parameter = 3.447358203
    r_to_s: Parameter = -1.465128967
    n_to_s: Parameter = 3.593330094


AWAKE = CorticothalamicWeights()  # NFTsim, eirs-corticothalamic.conf; its spectrum peaks at 8.9 Hz
EYES_CLOSED = CorticothalamicWeights(  # NFTsim, eirs_eyes_closed.conf; strong alpha at 9.6 Hz
    1.5316368, -9.6390641, 9.7322420, 0.1428004, 0.0577027, 1.1354746, -1.2216477, 8.2218638
)


def corticothalamic(
    weights: CorticothalamicWeights = AWAKE,
    *,
    input_hz: Parameter = 1.0,
    noise_hz: Parameter = 0.0,
    thalamus_s: float = THALAMUS_S,
    decay_per_s: Parameter = 1 / 0.012,
    rise_per_s: Parameter = 1 / 0.0013,
    axon_per_s: Parameter = 116.0,
    largest_hz: Parameter = 340.0,
    threshold_mv: Parameter = 12.92,
    width_mv: Parameter = 3.8,
) -> Network:
    """Excitatory and inhibitory cortex, reticular nucleus and relay cells (regions 0 to 3), with their delays.

    Differentiable in everything that is a tensor. Dtype and device are those of the tensors among weights, `input_hz`
    and `noise_hz`; torch's defaults where all are numbers.

    Args:
        weights: Of the tracts.
        input_hz: phi_n, mean firing of the sensory input, 1/s.
        noise_hz: White noise on it: standard deviation of its mean over one second.
        thalamus_s: t0 / 2, one way between cortex and thalamus.
        decay_per_s: See FieldPopulations, as the rest.
        rise_per_s: beta.
        axon_per_s: gamma.
        largest_hz: Qmax.
        threshold_mv: theta.
        width_mv: sigma'.
    """
    w = weights
    rows = (
        (w.e_to_e, w.i_to_e, 0.0, w.s_to_e),
        (w.e_to_e, w.i_to_e, 0.0, w.s_to_e),
        (w.e_to_r, 0.0, 0.0, w.s_to_r),
        (w.e_to_s, 0.0, w.r_to_s, 0.0),
        (0.0, 0.0, 0.0, w.n_to_s * input_hz),
        (0.0, 0.0, 0.0, w.n_to_s * noise_hz),
    )
    table = tract_table(rows)  # [*batch, 6, region]
    background = table[..., 4, :]
    populations = FieldPopulations(
        background,
        axons=background.new_tensor([1.0, 0.0, 0.0, 0.0]),
        decay_per_s=decay_per_s,
        rise_per_s=rise_per_s,
        axon_per_s=axon_per_s,
        largest_hz=largest_hz,
        threshold_mv=threshold_mv,
        width_mv=width_mv,
        noise_mv=table[..., 5, :],
    )
    far = background.new_tensor([[0, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0]])
    return Network(populations, table[..., :4, :], delay_s=far * thalamus_s)
