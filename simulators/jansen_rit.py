"""Jansen-Rit cortical column: three populations, one evoked potential.

Afferent firing goes in; the difference of two postsynaptic potentials, which is what an
electrode on the cortex sees, comes out. Rests near a fixed point for low drive, turns to
alpha rhythm as drive grows, and is silent again, at a higher potential, beyond it. A
stimulus is extra afferent firing: it recruits the axons that end on the pyramidal cells'
excitatory synapses, so it is added to p(t) in the equation of y1.

State   [*batch, region, 6]   y0, y1, y2 in mV, then their rates in mV/s
Drive   [*batch, region]      afferent firing rate on top of `afferents_hz`, 1/s
Emits   [*batch, region]      firing rate of the pyramidal cells, 1/s
Output  [*batch, region]      y1 - y2, the pyramidal potential, mV

Reference: Jansen and Rit, Biological Cybernetics 73 (1995) 357-366. Defaults are theirs.
Bifurcations: Grimbert and Faugeras, Neural Computation 18 (2006) 3052-3068.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .dynamics import Dynamics

# shares of `connectivity` in C1, C2, C3, C4: Jansen and Rit 1995, after Braitenberg and Schuez
_SHARES = (1.0, 0.8, 0.25, 0.25)


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
        half_rate_hz: e0, half of the largest firing rate.
        threshold_mv: v0, potential at half of the largest rate.
        slope_per_mv: r, steepness of the sigmoid.
    """

    afferents_hz: Float[Tensor, " region"]
    noise_hz: float = 1.83
    excitation_mv: float = 3.25
    inhibition_mv: float = 22.0
    excitation_per_s: float = 100.0
    inhibition_per_s: float = 50.0
    connectivity: float = 135.0
    half_rate_hz: float = 2.5
    threshold_mv: float = 6.0
    slope_per_mv: float = 0.56

    # RK4 under pulses: 1 ms stays within 0.03 mV of 0.125 ms, this within 0.12 mV, see the tests
    largest_dt_s: ClassVar[float] = 2e-3

    @property
    def rest(self) -> Float[Tensor, "region state"]:
        """All potentials zero, as in the paper."""
        return self.afferents_hz.new_zeros(self.afferents_hz.shape[0], 6)

    @cached_property
    def _inputs(self) -> Tensor:
        """Slope times the potential that each population's sigmoid reads, as weights of (y0, y1, y2)."""
        c1, c3 = _SHARES[0] * self.connectivity, _SHARES[2] * self.connectivity
        reads = [[0.0, c1, c3], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]  # columns: S(y1 - y2), S(C1 y0), S(C3 y0)
        return self.slope_per_mv * self.afferents_hz.new_tensor(reads)

    @cached_property
    def _gains(self) -> Tensor:
        """Size times inverse time constant of the three synapses, mV/s."""
        excitation = self.excitation_mv * self.excitation_per_s
        return self.afferents_hz.new_tensor([excitation, excitation, self.inhibition_mv * self.inhibition_per_s])

    @cached_property
    def _firing_gains(self) -> Tensor:
        """What each population's sigmoid, 0 to 1, adds to the second derivatives of y0, y1, y2."""
        c2, c4 = _SHARES[1] * self.connectivity, _SHARES[3] * self.connectivity
        return 2 * self.half_rate_hz * self._gains * self.afferents_hz.new_tensor([1.0, c2, c4])

    @cached_property
    def _rates(self) -> Tensor:
        rates = [self.excitation_per_s, self.excitation_per_s, self.inhibition_per_s]
        return self.afferents_hz.new_tensor(rates)

    @cached_property
    def _afferent_gain(self) -> Tensor:
        return self._gains * self.afferents_hz.new_tensor([0.0, 1.0, 0.0])

    @cached_property
    def _noise(self) -> Tensor:
        size = self.noise_hz * self.excitation_mv * self.excitation_per_s
        return self.afferents_hz.new_tensor([0.0, 0.0, 0.0, 0.0, size, 0.0])

    def drift(
        self, state: Float[Tensor, "*batch region state"], drive: Float[Tensor, "*batch region"]
    ) -> Float[Tensor, "*batch region state"]:
        """Equation 6 of the paper; the three sigmoids are read side by side."""
        y, y_rate = state[..., :3], state[..., 3:]
        firing = torch.sigmoid(y @ self._inputs - self.slope_per_mv * self.threshold_mv)
        afferents = (drive + self.afferents_hz).unsqueeze(-1)
        forcing = firing * self._firing_gains + afferents * self._afferent_gain
        acceleration = forcing - self._rates * (2 * y_rate + self._rates * y)
        return torch.cat([y_rate, acceleration], -1)

    def noise(self, state: Float[Tensor, "*batch region state"]) -> Float[Tensor, "*batch region state"]:
        """The noise of p, through the excitatory synapse; additive."""
        return self._noise.expand(*state.shape)

    def emission(self, state: Float[Tensor, "*batch region state"]) -> Float[Tensor, "*batch region"]:
        """Firing rate of the pyramidal cells, S(y1 - y2)."""
        above = self.slope_per_mv * (state[..., 1] - state[..., 2] - self.threshold_mv)
        return 2 * self.half_rate_hz * torch.sigmoid(above)

    def potential_mv(self, state: Float[Tensor, "*batch region state"]) -> Float[Tensor, "*batch region"]:
        """The pyramidal potential y1 - y2."""
        return state[..., 1] - state[..., 2]
