"""Damped linear oscillators, coupled: the circuit whose solution is known.

Each region is a resonance. It rings when pushed, at its own frequency, and what the others
send is their displacement. Being linear, a window has an exact solution by the matrix
exponential, against which integration, gradients and models can be held.

State   [*batch, region, 2]   displacement in mV, its rate in mV/s
Drive   [*batch, region, 1]   force, in mV/s^2 per `drive_gain`
Emits   [*batch, region, 1]   displacement, mV
Output  [*batch, region]      displacement, mV
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ShapeError
from stimopt.tensors import map_tensors

from .dynamics import Drive, Dynamics, Emission, Parameter, Potential, State, step_at_pace
from .integrate import END, START, Slope
from .network import Network


@dataclass(frozen=True)
class LinearOscillator(Dynamics):
    """x'' = drive_gain * drive - 2 damping x' - natural^2 x + noise, in each region, uncoupled.

    Attributes:
        natural_per_s: Undamped angular frequency, rad/s.
        damping_per_s: Decay of the envelope.
        drive_gain: Force per unit of drive, mV/s^2.
        noise_gain: Size of the random force, mV/s per square root of a second.
    """

    natural_per_s: Float[Tensor, "*batch region"]
    damping_per_s: Parameter
    drive_gain: Parameter = 1.0
    noise_gain: Parameter = 0.0

    states: ClassVar[tuple[str, ...]] = ("displacement_mv", "rate_mv_per_s")
    inputs: ClassVar[tuple[str, ...]] = ("force",)
    outputs: ClassVar[tuple[str, ...]] = ("displacement_mv",)
    noisy: ClassVar[tuple[str, ...]] = ("rate_mv_per_s",)
    tested_schemes: ClassVar[tuple[str, ...]] = ("rk4", "ExactStep")
    source: ClassVar[str] = "the damped harmonic oscillator; solved exactly by Van Loan 1978, IEEE TAC 23:395-404"

    @property
    def largest_dt_s(self) -> float:
        """2 ms at 30 Hz, where RK4 loses 0.016 rad of phase in half a second."""
        return step_at_pace(2e-3, 2 * math.pi * 30.0, self.natural_per_s, self.damping_per_s)

    @property
    def rest(self) -> State:
        """At rest in the middle."""
        return self.natural_per_s.new_zeros(*self.natural_per_s.shape, 2)

    def drift(self, state: State, drive: Drive) -> State:
        """See Dynamics."""
        place, rate = state.unbind(-1)
        force = self.drive_gain * drive[..., 0] - 2 * self.damping_per_s * rate - self.natural_per_s**2 * place
        return torch.stack([rate, force], -1)

    def noise(self, state: State) -> Float[Tensor, "*batch region noisy"]:
        """Additive, on the rate."""
        return torch.zeros_like(state[..., :1]) + self.noise_gain

    def emission(self, state: State) -> Emission:
        """The displacement."""
        return state[..., :1]

    def emission_rate(self, state: State, rate: State) -> Emission:
        """The displacement's own rate of change."""
        return rate[..., :1]

    def potential_mv(self, state: State) -> Potential:
        """The displacement."""
        return state[..., 0]


def system_matrices(dynamics: Dynamics) -> tuple[Float[Tensor, "size size"], Float[Tensor, "size region"]]:
    """The matrices of x' = A x + B u, with region and state flattened into one axis, region first.

    Read off the drift itself, which for a linear circuit is exact; any coupling is included.

    Raises:
        ShapeError: If the drift is not linear, has more than one input, or hears the past.
    """
    regions, states = dynamics.rest.shape
    if len(dynamics.inputs) != 1 or (isinstance(dynamics, Network) and dynamics.late is not None):
        raise ShapeError("an exact solution needs a circuit with one input and a network without delays; integrate it.")
    axes = torch.eye(regions * states, dtype=dynamics.rest.dtype, device=dynamics.rest.device)
    pushes = torch.eye(regions, dtype=axes.dtype, device=axes.device).unsqueeze(-1)
    a = dynamics.drift(axes.reshape(-1, regions, states), axes.new_zeros(len(axes), regions, 1)).flatten(1).mT
    b = dynamics.drift(axes.new_zeros(regions, regions, states), pushes).flatten(1).mT
    probe = torch.linspace(-1, 2, regions * states, dtype=axes.dtype, device=axes.device)
    true = dynamics.drift(probe.reshape(1, regions, states), pushes[:1]).flatten()
    if not torch.allclose(true, a @ probe + b[:, 0], rtol=1e-6, atol=1e-6 * float(a.abs().max())):
        raise ShapeError("this circuit's drift is not linear, so it has no system matrices; integrate it instead.")
    return a, b


_SINGLE = 1e-5  # what a map and a circuit that went through single precision may differ by


@dataclass(frozen=True)
class ExactStep:
    """A scheme without step error for a linear circuit whose input runs straight within a step.

    Built by `exact_step`, for one circuit and one step length; a kick enters by halves, as in `rk4`.

    Attributes:
        state_map: exp(A dt).
        start_map: What the input at the start of the step adds.
        end_map: What the input at its end adds.
    """

    state_map: Float[Tensor, "size size"]
    start_map: Float[Tensor, "size region"]
    end_map: Float[Tensor, "size region"]
    dt_s: float

    def __call__(self, slope: Slope, state: Tensor, drive: Tensor, dt_s: float, kick: Tensor | float = 0.0) -> Tensor:
        """One step; `slope` is not asked.

        Raises:
            ShapeError: If the step is not the one it was built for.
        """
        if dt_s != self.dt_s:
            raise ShapeError(f"this exact step was built for dt_s {self.dt_s}, not {dt_s}; build another one.")
        flat = (state + 0.5 * kick).flatten(-2)
        after: Tensor = (
            flat @ self.state_map.mT + drive[START, ..., 0] @ self.start_map.mT + drive[END, ..., 0] @ self.end_map.mT
        )
        return after.reshape(state.shape) + 0.5 * kick

    def solves(self, dynamics: Dynamics) -> bool:
        """Whether it is the exact step of this circuit."""
        linear = dynamics.circuit if isinstance(dynamics, Network) else dynamics
        if not isinstance(linear, LinearOscillator) or not isinstance(dynamics, LinearOscillator | Network):
            return False
        ours = self.state_map.detach().double()
        precise = map_tensors(dynamics, lambda tensor: tensor.detach().double())
        own = exact_step(precise, self.dt_s).state_map
        return own.shape == ours.shape and bool((own - ours).abs().max() <= _SINGLE * ours.abs().max())


def exact_step(dynamics: LinearOscillator | Network, dt_s: float) -> ExactStep:
    """The exact solution over one step, by one matrix exponential (Van Loan 1978, IEEE TAC 23:395).

    The input u0 + (u1 - u0) t / dt is made part of the state: exp([[A dt, B dt, 0], [0, 0, I], [0, 0, 0]]) then
    holds the maps of the state, of u0 and of u1 - u0 in its first rows.

    Args:
        dynamics: Linear, or a network of linear circuits.
        dt_s: Length of the step.

    Raises:
        ShapeError: If the drift is not linear.
    """
    a, b = system_matrices(dynamics)
    size, regions = b.shape
    block = a.new_zeros(size + 2 * regions, size + 2 * regions)
    block[:size, :size], block[:size, size : size + regions] = a * dt_s, b * dt_s
    block[size : size + regions, size + regions :] = torch.eye(regions, dtype=a.dtype, device=a.device)
    top = torch.linalg.matrix_exp(block)[:size]
    level, ramp = top[:, size : size + regions], top[:, size + regions :]
    return ExactStep(top[:, :size].contiguous(), (level - ramp).contiguous(), ramp.contiguous(), dt_s)
