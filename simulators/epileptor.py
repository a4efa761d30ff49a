"""Epileptor: seizures that begin, run their course and end by themselves, as their own slow permittivity moves.

    x1' = y1 - z + Iext + drive - f1(x1, x2, z)            fast discharges
    y1' = c - d x1^2 - y1
    z'  = r (s (x1 - x0) - z + drive)                      permittivity: rises while it seizes, falls between
    x2' = -y2 + x2 - x2^3 + Iext2 + bb g - 0.3 (z - 3.5) + drive        spikes and waves
    y2' = (-y2 + f2(x2)) / tau
    g'  = -0.01 (g - 0.1 x1)
    f1  = a x1^3 - b x1^2 for x1 < 0, else (x2 - 0.6 (z - 4)^2 - slope) x1
    f2  = 0 for x2 < -0.25, else aa (x2 + 0.25)

How close a region is to seizing is x0: below -2.06 it rests, above it seizes again and again. A
stimulus is a current into x1 or x2: a kick moves the state across the border of the seizure,
early or out of it. Coupling through the permittivity recruits neighbours: a seizing region
lowers z of the others. The Virtual Brain's coupling is

    Network(circuit, weights, diffusive=True, entry=coupling_entry(weights, Kvf, Kf, Ks))

State   [*batch, region, 6]   x1, y1, z, x2, y2, g, without unit
Drive   [*batch, region, 3]   current added to Iext, to Iext2, and what is added to the permittivity's own goal
Emits   [*batch, region, 2]   x1 and x2
Output  [*batch, region]      x2 - x1 times `scale_mv`

Reference: Jirsa, Stacey, Quilichini, Ivanov and Bernard, Brain 137 (2014) 2210-2230. Coupling through z: Proix,
Bartolomei, Chauvel, Bernard and Jirsa, Journal of Neuroscience 34 (2014) 15009-15021. Bifurcations: El Houssaini,
Bernard and Jirsa, eNeuro 7 (2020) ENEURO.0485-18.2019. Further constants: The Virtual Brain's model of that name.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .dynamics import Drive, Dynamics, Emission, Parameter, Potential, State

_LARGEST_UNITS = 0.045  # of a unit of time; at 0.05 a half step moves the answer to a pulse by 2.6 %


@dataclass(frozen=True)
class Epileptor(Dynamics):
    """An epileptor in each region, uncoupled. Symbols in brackets are the paper's and The Virtual Brain's.

    Attributes:
        excitability: x0. -1.6 in the paper, which seizes; -2.06 is the border, -2.4 healthy tissue.
        current_1: Iext (I_rest1), into the fast discharges.
        current_2: Iext2 (I_rest2), into spikes and waves.
        cubic: a, of f1.
        square: b, of f1.
        recovery_level: c (y0).
        recovery_gain: d.
        permittivity_rate: r, 1 / tau_0. The Virtual Brain rounds it to 0.00035.
        permittivity_gain: s; 4 is fixed in The Virtual Brain's code, whatever its parameter says.
        slope: Extra input to x1 while it seizes; 0 in the paper.
        mixing_gain: 0.6, how much the permittivity drives x1 while it seizes.
        mixing_centre: 4, permittivity at which it does so least.
        spike_time: tau (tau_2), of y2.
        spike_gain: aa, of f2.
        spike_threshold: 0.25, minus the x2 at which f2 begins.
        spike_permittivity: 0.3, how much the permittivity holds back spikes and waves.
        spike_centre: 3.5, permittivity from which it does.
        filter_gain: bb, what the filtered x1 gives to x2; with the next two the paper's 0.002 g(x1).
        filter_rate: 0.01 (gamma).
        filter_share: 0.1.
        speed: tt, factor on all rates.
        sigmoid: Whether z follows x0 + 3 / (1 + exp(-(x1 + 0.5) / 0.1)) in place of s (x1 - x0); "modification" in The
            Virtual Brain.
        sigmoid_height: 3.
        sigmoid_centre: 0.5, minus the x1 at half of it.
        sigmoid_width: 0.1.
        return_gain: How strongly a negative z is driven back, times z^7; 0 in the paper, 0.1 in The Virtual Brain,
            which leaves it out where `sigmoid` is true. A seizing region does not come near.
        unit_s: Seconds in one unit of time. The Virtual Brain reads it as 1 ms; 0.02 makes its seizures of about 1000
            units last 20 s, with a step of 1 ms.
        noise_1: White noise on x1 and y1, per square root of a unit of time.
        noise_2: White noise on x2 and y2.
        scale_mv: Potential of a region in which x2 - x1 is 1.
    """

    excitability: Float[Tensor, "*batch region"]
    current_1: Parameter = 3.1
    current_2: Parameter = 0.45
    cubic: Parameter = 1.0
    square: Parameter = 3.0
    recovery_level: Parameter = 1.0
    recovery_gain: Parameter = 5.0
    permittivity_rate: Parameter = 1 / 2857
    permittivity_gain: Parameter = 4.0
    slope: Parameter = 0.0
    mixing_gain: Parameter = 0.6
    mixing_centre: Parameter = 4.0
    spike_time: Parameter = 10.0
    spike_gain: Parameter = 6.0
    spike_threshold: Parameter = 0.25
    spike_permittivity: Parameter = 0.3
    spike_centre: Parameter = 3.5
    filter_gain: Parameter = 2.0
    filter_rate: Parameter = 0.01
    filter_share: Parameter = 0.1
    speed: Parameter = 1.0
    sigmoid: bool = False
    sigmoid_height: Parameter = 3.0
    sigmoid_centre: Parameter = 0.5
    sigmoid_width: Parameter = 0.1
    return_gain: Parameter = 0.0
    unit_s: Parameter = 1e-3
    noise_1: Parameter = 0.0
    noise_2: Parameter = 0.0
    scale_mv: Parameter = 1.0

    states: ClassVar[tuple[str, ...]] = ("x1", "y1", "z", "x2", "y2", "g")
    inputs: ClassVar[tuple[str, ...]] = ("current_1", "current_2", "permittivity")
    outputs: ClassVar[tuple[str, ...]] = ("x1", "x2")
    noisy: ClassVar[tuple[str, ...]] = ("x1", "y1", "x2", "y2")
    source: ClassVar[str] = "Jirsa et al. 2014, Brain 137:2210-2230"
    noise_convention: ClassVar[str] = (
        "white noise added to x1 and y1, and to x2 and y2, per square root of a unit of time; none by default. The "
        "Virtual Brain's nsig, per its ms, is noise^2 / 2"
    )

    @property
    def rest(self) -> State:
        """Between seizures, near where a region at the border of seizing would stay."""
        still = torch.zeros_like(self.excitability)
        return torch.stack([still + value for value in (-1.6, -11.8, 3.1, -1.0, 0.0, -0.16)], -1)

    @property
    def largest_dt_s(self) -> float:
        """Somewhat less than a twentieth of a unit of time."""
        unit_s = torch.as_tensor(self.unit_s / self.speed).detach().double()
        return _LARGEST_UNITS * float(unit_s.min())

    def drift(self, state: State, drive: Drive) -> State:
        """Equations of the paper's appendix, with The Virtual Brain's further constants."""
        x1, y1, z, x2, y2, g = state.unbind(-1)
        into_1, into_2, into_z = drive.unbind(-1)
        x1_rate = y1 - z + self.current_1 + into_1 - self._discharge(x1, x2, z)
        y1_rate = self.recovery_level - self.recovery_gain * x1.square() - y1
        z_rate = self.permittivity_rate * (self._goal(x1, z) - z + into_z)
        held = self.spike_permittivity * (z - self.spike_centre)
        x2_rate = -y2 + x2 - x2**3 + self.current_2 + into_2 + self.filter_gain * g - held
        y2_rate = (-y2 + self.spike_gain * (x2 + self.spike_threshold).clamp_min(0.0)) / self.spike_time
        g_rate = -self.filter_rate * (g - self.filter_share * x1)
        pace = self.speed / self.unit_s
        return torch.stack([pace * rate for rate in (x1_rate, y1_rate, z_rate, x2_rate, y2_rate, g_rate)], -1)

    def _discharge(self, x1: Tensor, x2: Tensor, z: Tensor) -> Tensor:
        """f1: what pulls x1 back, before and during a seizure."""
        quiet = self.cubic * x1**3 - self.square * x1.square()
        seizing = (x2 - self.mixing_gain * (z - self.mixing_centre).square() - self.slope) * x1
        return torch.where(x1 < 0, quiet, seizing)

    def _goal(self, x1: Tensor, z: Tensor) -> Tensor:
        """Where the permittivity goes."""
        if self.sigmoid:
            return self.excitability + self.sigmoid_height * torch.sigmoid(
                (x1 + self.sigmoid_centre) / self.sigmoid_width
            )
        return self.permittivity_gain * (x1 - self.excitability) - self.return_gain * z.clamp_max(0.0) ** 7

    def noise(self, state: State) -> Float[Tensor, "*batch region noisy"]:
        """Additive."""
        unit = torch.zeros_like(state[..., 0]) + 1 / self.unit_s**0.5
        return torch.stack([unit * self.noise_1] * 2 + [unit * self.noise_2] * 2, -1)

    def emission(self, state: State) -> Emission:
        """x1 and x2 as they are."""
        return torch.stack([state[..., 0], state[..., 3]], -1)

    def emission_rate(self, state: State, rate: State) -> Emission:
        """Their own rates of change."""
        return self.emission(rate)

    def potential_mv(self, state: State) -> Potential:
        """x2 - x1, scaled: the field potential of the paper."""
        return self.scale_mv * (state[..., 3] - state[..., 0])


def coupling_entry(
    weights: Float[Tensor, "..."], fast: Parameter = 0.0, spikes: Parameter = 0.0, permittivity: Parameter = 0.0
) -> Float[Tensor, "3 2"]:
    """Where x1 and x2 of other regions enter, for a `Network` of epileptors with `diffusive=True`.

    Args:
        weights: The network's, for their dtype and device.
        fast: Kvf, of differences in x1 to x1.
        spikes: Kf, of differences in x2 to x2.
        permittivity: Ks, of differences in x1 to the goal of z; negative values recruit neighbours. The 2014 papers
            subtract it: their K is -Ks.
    """
    entry: Tensor = weights.new_zeros(6)
    places = {0: fast, 3: spikes, 4: permittivity}
    for place, value in places.items():
        entry = entry + value * torch.nn.functional.one_hot(torch.tensor(place, device=entry.device), 6).to(entry)
    return entry.reshape(3, 2)
