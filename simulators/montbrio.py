"""Montbrio-Pazo-Roxin: firing rate and mean potential of a population, exact for quadratic integrate-and-fire cells.

    tau r' = Delta / (pi tau) + Gamma r / pi + 2 r V
    tau V' = V^2 - (pi tau r)^2 + eta + J tau r + I + drive

All cells receive all others; excitability and weights are spread over them as Lorentzians, the
only assumption. With strong recurrent excitation a silent and an active state stand side by
side, and a pulse of current switches between them; the active one rings when pushed.
The Virtual Brain's coupling through both states is `Network(circuit, weights, entry=[[cr, cv]])`.

State   [*batch, region, 2]   r in firings per unit of time and cell, V without unit
Drive   [*batch, region, 1]   current, added to I
Emits   [*batch, region, 2]   r and V; a network sends r unless told
Output  [*batch, region]      V times `scale_mv`

Reference: Montbrio, Pazo and Roxin, Physical Review X 5 (2015) 021028; spread weights: its appendix.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .dynamics import Drive, Dynamics, Emission, Parameter, Potential, State

_LARGEST_SHARE = 0.01  # of tau: RK4 then stays within 1 % of half the step through a pulse, see the tests


@dataclass(frozen=True)
class MontbrioPazoRoxin(Dynamics):
    """A population of quadratic integrate-and-fire cells in each region, uncoupled.

    Attributes:
        excitability: eta, centre of the cells' excitability; -5 in the paper's figure of pulses into a population
            with two states, and in The Virtual Brain.
        current: I, what all cells receive.
        spread: Delta, half width of the excitability over cells.
        weight: J, mean synaptic weight.
        weight_spread: Gamma, half width of the weights over cells.
        tau: Membrane time constant, in units of time; 1 in the paper.
        unit_s: Seconds in one unit of time. The paper's is the membrane time constant, here 10 ms; The Virtual
            Brain's is 1 ms.
        noise_rate: White noise on r, per square root of a unit of time; it can drive r below 0, which means nothing.
        noise_potential: White noise on V.
        scale_mv: Potential of a region in which V is 1.
    """

    excitability: Float[Tensor, "*batch region"]
    current: Parameter = 0.0
    spread: Parameter = 1.0
    weight: Parameter = 15.0
    weight_spread: Parameter = 0.0
    tau: Parameter = 1.0
    unit_s: Parameter = 0.01
    noise_rate: Parameter = 0.0
    noise_potential: Parameter = 0.0
    scale_mv: Parameter = 1.0

    states: ClassVar[tuple[str, ...]] = ("firing_per_unit", "potential")
    inputs: ClassVar[tuple[str, ...]] = ("current",)
    outputs: ClassVar[tuple[str, ...]] = ("firing_per_unit", "potential")
    noisy: ClassVar[tuple[str, ...]] = ("firing_per_unit", "potential")
    source: ClassVar[str] = "Montbrio, Pazo and Roxin 2015, Phys Rev X 5:021028"
    noise_convention: ClassVar[str] = (
        "white noise added to r and V, per square root of a unit of time; the paper has none. The Virtual Brain's "
        "nsig is noise^2 / 2"
    )

    @property
    def rest(self) -> State:
        """No firing and V = -2, from where the quiet state is reached."""
        still = torch.zeros_like(self.excitability)
        return torch.stack([still, still - 2.0], -1)

    @property
    def largest_dt_s(self) -> float:
        """A hundredth of the shortest membrane time constant."""
        tau_s = torch.as_tensor(self.tau * self.unit_s, dtype=torch.float64).detach()
        return _LARGEST_SHARE * float(tau_s.min())

    def drift(self, state: State, drive: Drive) -> State:
        """The paper's firing rate equations, with its term for spread weights."""
        r, v = state.unbind(-1)
        fired = self.tau * r  # per membrane time constant
        current = self.excitability + self.current + drive[..., 0]
        r_rate = (self.spread / math.pi + self.weight_spread * fired / math.pi + 2 * fired * v) / self.tau**2
        v_rate = (v.square() - (math.pi * fired).square() + self.weight * fired + current) / self.tau
        return torch.stack([r_rate / self.unit_s, v_rate / self.unit_s], -1)

    def noise(self, state: State) -> Float[Tensor, "*batch region noisy"]:
        """Additive."""
        still = torch.zeros_like(state[..., 0])
        size = torch.stack([still + self.noise_rate, still + self.noise_potential], -1)
        root_s = self.unit_s**0.5
        return size / (root_s.unsqueeze(-1) if isinstance(root_s, Tensor) else root_s)

    def emission(self, state: State) -> Emission:
        """Both states as they are."""
        return state

    def emission_rate(self, state: State, rate: State) -> Emission:
        """Their own rates of change."""
        return rate

    def potential_mv(self, state: State) -> Potential:
        """V, scaled."""
        return self.scale_mv * state[..., 1]
