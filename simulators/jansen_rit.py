"""Jansen-Rit cortical column: three populations, one evoked potential.

Afferent firing goes in; the difference of two postsynaptic potentials, which is what an
electrode on the cortex sees, comes out. Rests near a fixed point for low drive, turns to
alpha rhythm as drive grows, and is silent again, at a higher potential, beyond it. A
stimulus is extra afferent firing: it recruits the axons that end on the pyramidal cells'
excitatory synapses, so it is added to p(t) in the equation of y1.

State   [*batch, region, 6]   y0, y1, y2 in mV, then their rates in mV/s
Drive   [*batch, region, 2]   afferent firing rate on top of `afferents_hz`, 1/s, on the pyramidal cells' excitatory
                              synapses; polarisation of the pyramidal cells, mV
Emits   [*batch, region, 1]   firing rate of the pyramidal cells, 1/s
Output  [*batch, region]      y1 - y2, the pyramidal potential, mV

Reference: Jansen and Rit, Biological Cybernetics 73 (1995) 357-366. Defaults are theirs.
Bifurcations: Grimbert and Faugeras, Neural Computation 18 (2006) 3052-3068.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .dynamics import Drive, Dynamics, Emission, Parameter, Potential, State, step_at_pace


@dataclass(frozen=True)
class JansenRit(Dynamics):
    """A Jansen-Rit column in each region, uncoupled.

    Attributes:
        afferents_hz: Mean background firing p that reaches each region, 1/s; 120 to 320 in the paper.
        noise_hz: White noise on p: its standard deviation when averaged over one second, in 1/s. The paper draws p
            evenly from 120 to 320 for each 1 ms step, which is 1.83.
        excitation_mv: A, size of the excitatory postsynaptic potential.
        inhibition_mv: B, size of the inhibitory one.
        excitation_per_s: a, inverse time constant of excitation.
        inhibition_per_s: b, inverse time constant of inhibition.
        connectivity: C, mean number of synapses between pyramidal cells and excitatory interneurons.
        shares: Shares of C in C1, C2, C3 and C4 (Jansen and Rit 1995, after Braitenberg and Schuez).
        half_rate_hz: e0, half of the largest firing rate.
        threshold_mv: v0, potential at half of the largest rate.
        slope_per_mv: r, steepness of the sigmoid.
        sending_threshold_mv: Threshold of the sigmoid that makes the emission; None for v0, as in the paper's two
            coupled columns. Some simulators give it a value of its own.
    """

    afferents_hz: Float[Tensor, "*batch region"]
    noise_hz: Parameter = 1.83
    excitation_mv: Parameter = 3.25
    inhibition_mv: Parameter = 22.0
    excitation_per_s: Parameter = 100.0
    inhibition_per_s: Parameter = 50.0
    connectivity: Parameter = 135.0
    shares: tuple[float, float, float, float] = (1.0, 0.8, 0.25, 0.25)
    half_rate_hz: Parameter = 2.5
    threshold_mv: Parameter = 6.0
    slope_per_mv: Parameter = 0.56
    sending_threshold_mv: Parameter | None = None

    states: ClassVar[tuple[str, ...]] = ("y0", "y1", "y2", "y0_rate", "y1_rate", "y2_rate")
    inputs: ClassVar[tuple[str, ...]] = ("afferents_hz", "pyramidal_mv")
    outputs: ClassVar[tuple[str, ...]] = ("firing_hz",)
    noisy: ClassVar[tuple[str, ...]] = ("y1_rate",)
    source: ClassVar[str] = "Jansen and Rit 1995, Biol Cybern 73:357-366"
    noise_convention: ClassVar[str] = (
        "white noise on p, given as its standard deviation averaged over 1 s; a paper's draw of standard deviation s "
        "at every step of dt is s * sqrt(dt)"
    )

    @property
    def largest_dt_s(self) -> float:
        """2 ms up to 150 1/s, where halving it moves a quiet path by 0.2 % of its deviation.

        At the paper's 100 1/s RK4 then stays within 0.12 mV of 0.125 ms under pulses, 1 ms within 0.03 mV.
        """
        return step_at_pace(2e-3, 150.0, self.excitation_per_s, self.inhibition_per_s)

    @property
    def rest(self) -> State:
        """All potentials zero, as in the paper."""
        return self.afferents_hz.new_zeros(*self.afferents_hz.shape, 6)

    def drift(self, state: State, drive: Drive) -> State:
        """Equation 6 of the paper; constants are multiplied first, which halves the work on small networks."""
        y0, y1, y2, y0_rate, y1_rate, y2_rate = state.unbind(-1)
        afferents, polarised = drive.unbind(-1)
        c1, c2, c3, c4 = (share * self.connectivity for share in self.shares)
        r, above, largest_hz = self.slope_per_mv, self.slope_per_mv * self.threshold_mv, 2 * self.half_rate_hz
        a, b = self.excitation_per_s, self.inhibition_per_s
        excitation, inhibition = self.excitation_mv * a, self.inhibition_mv * b
        pyramidal = torch.sigmoid(r * (y1 - y2 + polarised) - above)  # shares of the largest rate
        excited = torch.sigmoid((r * c1) * y0 - above)
        inhibited = torch.sigmoid((r * c3) * y0 - above)
        received = excitation * _less(self.afferents_hz + afferents, -largest_hz * c2, excited)
        y0_force = _less(_less((excitation * largest_hz) * pyramidal, 2 * a, y0_rate), a * a, y0)
        y1_force = _less(_less(received, 2 * a, y1_rate), a * a, y1)
        y2_force = _less(_less((inhibition * largest_hz * c4) * inhibited, 2 * b, y2_rate), b * b, y2)
        return torch.stack([y0_rate, y1_rate, y2_rate, y0_force, y1_force, y2_force], -1)

    def noise(self, state: State) -> Float[Tensor, "*batch region noisy"]:
        """The noise of p, through the excitatory synapse; additive."""
        size = self.noise_hz * self.excitation_mv * self.excitation_per_s
        return (torch.zeros_like(state[..., 0]) + size).unsqueeze(-1)

    def emission(self, state: State) -> Emission:
        """Firing rate of the pyramidal cells, S(y1 - y2)."""
        own = self.threshold_mv if self.sending_threshold_mv is None else self.sending_threshold_mv
        above = self.slope_per_mv * (state[..., 1] - state[..., 2]) - self.slope_per_mv * own
        return (2 * self.half_rate_hz * torch.sigmoid(above)).unsqueeze(-1)

    def emission_rate(self, state: State, rate: State) -> Emission:
        """S'(v) v'; the sigmoid's slope is r S (1 - S / 2 e0)."""
        firing = self.emission(state)[..., 0]
        steepness = self.slope_per_mv * firing * (1 - firing / (2 * self.half_rate_hz))
        return (steepness * (rate[..., 1] - rate[..., 2])).unsqueeze(-1)

    def potential_mv(self, state: State) -> Potential:
        """The pyramidal potential y1 - y2."""
        return state[..., 1] - state[..., 2]


def _less(value: Tensor, factor: Parameter, other: Tensor) -> Tensor:
    """Value - factor * other, in one operation where the factor is a number."""
    return value - factor * other if isinstance(factor, Tensor) else torch.sub(value, other, alpha=factor)
