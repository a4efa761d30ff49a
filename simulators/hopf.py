"""Stuart-Landau oscillators: the normal form of a Hopf bifurcation, the simplest region that can hum.

    x' = (a - x^2 - y^2) x - omega y + drive_x
    y' = (a - x^2 - y^2) y + omega x + drive_y

Below a = 0 noise rings at omega and dies away; above it a circle of radius sqrt(a) is walked at
omega. Deco et al. couple regions by differences in both states: `Network(circuit, weights,
entry=torch.eye(2), diffusive=True)`; without `entry` only x is coupled.

State   [*batch, region, 2]   x, y, without unit
Drive   [*batch, region, 2]   added to x' and y', per unit of time
Emits   [*batch, region, 2]   x and y
Output  [*batch, region]      x times `scale_mv`

Reference: Deco, Kringelbach, Jirsa and Ritter, Scientific Reports 7 (2017) 3095.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .dynamics import Drive, Dynamics, Emission, Parameter, Potential, State

_LARGEST_PHASE = 0.2  # rad, or e-folds, in one step; RK4 then errs by 3e-6 a step, see the tests


@dataclass(frozen=True)
class StuartLandau(Dynamics):
    """A Stuart-Landau oscillator in each region, uncoupled.

    Attributes:
        omega: Angular frequency, rad per unit of time; 2 pi f for f in Hz while the unit is a second. In the paper 2 pi
            times the peak of each region's own band of 0.04 to 0.07 Hz.
        bifurcation: a, 1 per unit of time; each region's is fitted in the paper, around 0, where the bifurcation is.
        noise_size: beta, white noise on x and on y, per square root of a unit of time.
        unit_s: Seconds in one unit of time; 1 in the paper, 0.001 where omega is given in rad per ms.
        scale_mv: Potential of a region in which x is 1.
    """

    omega: Float[Tensor, "*batch region"]
    bifurcation: Parameter = 0.0
    noise_size: Parameter = 0.02
    unit_s: Parameter = 1.0
    scale_mv: Parameter = 1.0

    states: ClassVar[tuple[str, ...]] = ("x", "y")
    inputs: ClassVar[tuple[str, ...]] = ("x", "y")
    outputs: ClassVar[tuple[str, ...]] = ("x", "y")
    noisy: ClassVar[tuple[str, ...]] = ("x", "y")
    source: ClassVar[str] = "Deco et al. 2017, Sci Rep 7:3095"
    noise_convention: ClassVar[str] = (
        "white noise added to x and y, per square root of a unit of time (beta in the paper, whose unit is a second)"
    )

    @property
    def rest(self) -> State:
        """In the middle, which is a fixed point."""
        return self.omega.new_zeros(*self.omega.shape, 2)

    @property
    def largest_dt_s(self) -> float:
        """A fifth of a radian, turned or decayed, of the fastest region; tested within radius 1 and its circle."""
        growth = torch.as_tensor(self.bifurcation).to(self.omega).abs()
        pace = self.omega.abs() + growth + 3.0  # 3 for the decay of 3 r^2 at radius 1
        return _LARGEST_PHASE / float((pace / self.unit_s).detach().max())

    def drift(self, state: State, drive: Drive) -> State:
        """The paper's equations in Cartesian form, without their coupling."""
        x, y = state.unbind(-1)
        drive_x, drive_y = drive.unbind(-1)
        growth = self.bifurcation - x.square() - y.square()
        x_rate = growth * x - self.omega * y + drive_x
        y_rate = growth * y + self.omega * x + drive_y
        return torch.stack([x_rate / self.unit_s, y_rate / self.unit_s], -1)

    def noise(self, state: State) -> Float[Tensor, "*batch region noisy"]:
        """Additive."""
        size = torch.zeros_like(state[..., 0]) + self.noise_size / self.unit_s**0.5
        return torch.stack([size, size], -1)

    def emission(self, state: State) -> Emission:
        """Both states as they are."""
        return state

    def emission_rate(self, state: State, rate: State) -> Emission:
        """Their own rates of change."""
        return rate

    def potential_mv(self, state: State) -> Potential:
        """The first state, scaled."""
        return self.scale_mv * state[..., 0]
