"""Wendling's hippocampal column: a Jansen-Rit column with fast somatic inhibition beside the slow dendritic one.

The balance of three synaptic gains (A excitation, B slow dendritic, G fast somatic inhibition)
decides what it shows: background, spikes, a train of spikes, a slow rhythm, low-voltage fast
activity as at the onset of a temporal lobe seizure, or a quasi-sinusoid. Slow interneurons
also hold back the fast ones. Stimulation is extra afferent firing, or a polarisation of
pyramidal cells or interneurons, added to their potential before it becomes firing.

State   [*batch, region, 10]  y0 to y4 in mV, then their rates in mV/s. y0: excitation by pyramidal cells; y1: of them;
                              y2, y3: their slow and fast inhibition; y4: slow inhibition of the fast interneurons
Drive   [*batch, region, 4]   afferent firing on top of `afferents_hz`, 1/s; polarisation of pyramidal cells, of slow
                              and of fast interneurons, mV
Emits   [*batch, region, 1]   firing rate of the pyramidal cells, 1/s
Output  [*batch, region]      y1 - y2 - y3, the pyramidal potential, mV

Reference: Wendling, Bartolomei, Bellanger and Chauvel, European Journal of Neuroscience 15 (2002) 1499-1508.
Polarisation: Mina et al., Frontiers in Computational Neuroscience 7 (2013) 94; Koksal Ersoz et al., PLoS
Computational Biology 16 (2020) e1008430.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .dynamics import Drive, Dynamics, Emission, Parameter, Potential, State, step_at_pace


@dataclass(frozen=True)
class Wendling(Dynamics):
    """A Wendling column in each region, uncoupled.

    The gains (A, B, G) in mV of the paper's six types of activity: 1 background (5, 50, 15), 2 sporadic spikes
    (5, 40, 15), 3 sustained spikes (5, 25, 15), 4 slow rhythm (5, 10, 15), 5 low-voltage fast activity (5, 5, 25),
    6 quasi-sinusoidal activity (5, 15, 0). Defaults are the first.

    Attributes:
        afferents_hz: Mean background firing p that reaches each region, 1/s; 90 in the paper.
        noise_hz: White noise on p: its standard deviation when averaged over one second, in 1/s. The authors draw p
            with standard deviation 30 at each of 512 Euler steps a second, which is 30 / sqrt(512).
        excitation_mv: A, gain of the excitatory synapses.
        slow_inhibition_mv: B, gain of the slow dendritic inhibitory ones.
        fast_inhibition_mv: G, gain of the fast somatic inhibitory ones.
        excitation_per_s: a, inverse time constant of excitation.
        slow_inhibition_per_s: b, of slow inhibition.
        fast_inhibition_per_s: g, of fast inhibition.
        connectivity: C, mean number of synapses between pyramidal cells and excitatory interneurons.
        shares: Shares of C in C1 to C7.
        half_rate_hz: e0, half of the largest firing rate.
        threshold_mv: v0, potential at half of the largest rate.
        slope_per_mv: r, steepness of the sigmoid.
    """

    afferents_hz: Float[Tensor, "*batch region"]
    noise_hz: Parameter = 30.0 / 512**0.5
    excitation_mv: Parameter = 5.0
    slow_inhibition_mv: Parameter = 50.0
    fast_inhibition_mv: Parameter = 15.0
    excitation_per_s: Parameter = 100.0
    slow_inhibition_per_s: Parameter = 50.0
    fast_inhibition_per_s: Parameter = 500.0
    connectivity: Parameter = 135.0
    shares: tuple[float, float, float, float, float, float, float] = (1.0, 0.8, 0.25, 0.25, 0.3, 0.1, 0.8)
    half_rate_hz: Parameter = 2.5
    threshold_mv: Parameter = 6.0
    slope_per_mv: Parameter = 0.56

    states: ClassVar[tuple[str, ...]] = (
        "y0", "y1", "y2", "y3", "y4", "y0_rate", "y1_rate", "y2_rate", "y3_rate", "y4_rate"
    )  # fmt: skip
    inputs: ClassVar[tuple[str, ...]] = ("afferents_hz", "pyramidal_mv", "slow_interneurons_mv", "fast_interneurons_mv")
    outputs: ClassVar[tuple[str, ...]] = ("firing_hz",)
    noisy: ClassVar[tuple[str, ...]] = ("y1_rate",)
    source: ClassVar[str] = "Wendling et al. 2002, Eur J Neurosci 15:1499-1508"
    noise_convention: ClassVar[str] = (
        "white noise on p, given as its standard deviation averaged over 1 s; the authors' draw of standard deviation "
        "s at every Euler step of dt is s * sqrt(dt), and they step 512 times a second: how often sporadic spikes come "
        "follows that size"
    )

    @property
    def largest_dt_s(self) -> float:
        """2 ms at the paper's g: RK4 then stays within 3 % of half of it in all six types, 1 ms within 0.1 %."""
        return step_at_pace(2e-3, 500.0, self.excitation_per_s, self.slow_inhibition_per_s, self.fast_inhibition_per_s)

    @property
    def rest(self) -> State:
        """All potentials zero."""
        return self.afferents_hz.new_zeros(*self.afferents_hz.shape, 10)

    def _firing_hz(self, potential_mv: Tensor) -> Tensor:
        return 2 * self.half_rate_hz * torch.sigmoid(self.slope_per_mv * (potential_mv - self.threshold_mv))

    def drift(self, state: State, drive: Drive) -> State:
        """The ten equations of the paper's appendix."""
        y0, y1, y2, y3, y4 = state[..., :5].unbind(-1)
        afferents, pyramidal_mv, slow_mv, fast_mv = drive.unbind(-1)
        c1, c2, c3, c4, c5, c6, c7 = (share * self.connectivity for share in self.shares)
        pyramidal = self._firing_hz(y1 - y2 - y3 + pyramidal_mv)
        slow = self._firing_hz(c3 * y0 + slow_mv)
        fast = self._firing_hz(c5 * y0 - c6 * y4 + fast_mv)
        afferent = self.afferents_hz + afferents + c2 * self._firing_hz(c1 * y0)
        A, B, G = self.excitation_mv, self.slow_inhibition_mv, self.fast_inhibition_mv
        a, b, g = self.excitation_per_s, self.slow_inhibition_per_s, self.fast_inhibition_per_s
        arriving = (A * pyramidal, A * afferent, B * c4 * slow, G * c7 * fast, B * slow)
        rates = state[..., 5:]
        forces = [
            pace * (size - 2 * rate - pace * y)
            for pace, size, rate, y in zip(
                (a, a, b, g, b), arriving, rates.unbind(-1), (y0, y1, y2, y3, y4), strict=True
            )
        ]
        return torch.cat([rates, torch.stack(forces, -1)], -1)

    def noise(self, state: State) -> Float[Tensor, "*batch region noisy"]:
        """The noise of p, through the excitatory synapse; additive."""
        size = self.noise_hz * self.excitation_mv * self.excitation_per_s
        return (torch.zeros_like(state[..., 0]) + size).unsqueeze(-1)

    def emission(self, state: State) -> Emission:
        """Firing rate of the pyramidal cells, S(y1 - y2 - y3)."""
        return self._firing_hz(self.potential_mv(state)).unsqueeze(-1)

    def emission_rate(self, state: State, rate: State) -> Emission:
        """S'(v) v'; the sigmoid's slope is r S (1 - S / 2 e0)."""
        firing = self.emission(state)[..., 0]
        steepness = self.slope_per_mv * firing * (1 - firing / (2 * self.half_rate_hz))
        return (steepness * self.potential_mv(rate)).unsqueeze(-1)

    def potential_mv(self, state: State) -> Potential:
        """The pyramidal potential y1 - y2 - y3."""
        return state[..., 1] - state[..., 2] - state[..., 3]
