"""Bonhoeffer-van der Pol relaxation oscillators: an ensemble that swings together, and feedback that silences it.

    x' = x - x^3 / 3 - y + I + u          the fast variable, as a membrane's potential
    y' = 0.1 (x - 0.8 y + 0.7)            the slow one, as its recovery

Each region is one unit. Coupled by its mean field, eps times the mean of x, the ensemble passes from a still
mean to a collective rhythm between eps 0.015 and 0.03. Kicks that shift x of all units against the mean
field's swing hold it still, with almost nothing left to do once it is; the same kicks a few steps late feed it.

State   [*batch, region, 2]   x and y, dimensionless
Drive   [*batch, region, 2]   added to x' and to y', per unit of time
Emits   [*batch, region, 2]   x and y
Output  [*batch, region]      x, as mV

Time has no unit in the paper; `unit_s` gives it one.

Reference: Krylov, Dylov and Rosenblum, Chaos 30 (2020) 033126, and their released code (RL-DBS): 1000 units, currents
0.6 with deviation 0.1, eps 0.03, starts even in -1 to 1, Runge-Kutta steps of 0.2, one kick before each.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .dynamics import Drive, Dynamics, Emission, Parameter, Potential, State
from .integrate import Scheme, rk4
from .mean_field import MeanField, mean_of_all

STEP_UNITS = 0.2  # Krylov et al. 2020


@dataclass(frozen=True)
class RelaxationOscillator(Dynamics):
    """A Bonhoeffer-van der Pol unit in each region, uncoupled.

    Attributes:
        current: I of each unit; sets whether and how fast it spikes.
        cubic: Factor of -x^3.
        recovery_rate: Rate of y against that of x.
        recovery_decay: Factor of -y within the slow equation.
        recovery_offset: Constant within it.
        noise_x: White noise on x, per square root of a unit of time.
        start_x: x where a simulation begins.
        start_y: y there.
        unit_s: Seconds in a unit of time. The paper has none; a millisecond puts the ensemble's rhythm at 31 Hz.
        mv_per_x: Potential at x = 1.
    """

    current: Float[Tensor, "*batch region"]
    cubic: Parameter = 1 / 3
    recovery_rate: Parameter = 0.1
    recovery_decay: Parameter = 0.8
    recovery_offset: Parameter = 0.7
    noise_x: Parameter = 0.0
    start_x: Parameter = 0.0
    start_y: Parameter = 0.0
    unit_s: float = 1e-3
    mv_per_x: Parameter = 1.0

    states: ClassVar[tuple[str, ...]] = ("x", "y")
    inputs: ClassVar[tuple[str, ...]] = ("x_per_unit", "y_per_unit")
    outputs: ClassVar[tuple[str, ...]] = ("x", "y")
    noisy: ClassVar[tuple[str, ...]] = ("x",)
    source: ClassVar[str] = "Krylov, Dylov and Rosenblum 2020, Chaos 30:033126"
    noise_convention: ClassVar[str] = "white on x, given per square root of a unit of time, not of a second"

    @property
    def largest_dt_s(self) -> float:
        """The paper's step of 0.2 units; halving it moves potentials by 4e-4 of their deviation in 100 units."""
        return STEP_UNITS * self.unit_s

    @property
    def rest(self) -> State:
        """Where a simulation starts; most units never rest."""
        still = torch.zeros_like(self.current)
        return torch.stack([still + self.start_x, still + self.start_y], -1)

    def drift(self, state: State, drive: Drive) -> State:
        """The two equations, per second."""
        x, y = state.unbind(-1)
        to_x, to_y = drive.unbind(-1)
        fast = x - self.cubic * x**3 - y + self.current + to_x
        slow = self.recovery_rate * (x - self.recovery_decay * y + self.recovery_offset) + to_y
        return torch.stack([fast, slow], -1) / self.unit_s

    def noise(self, state: State) -> Float[Tensor, "*batch region noisy"]:
        """Additive, on x."""
        return (torch.zeros_like(state[..., 0]) + self.noise_x / math.sqrt(self.unit_s)).unsqueeze(-1)

    def emission(self, state: State) -> Emission:
        """The state itself."""
        return state

    def emission_rate(self, state: State, rate: State) -> Emission:
        """The state's own rate."""
        return rate

    def potential_mv(self, state: State) -> Potential:
        """The fast variable."""
        return self.mv_per_x * state[..., 0]


def relaxation_ensemble(
    source: torch.Generator,
    *,
    batch_shape: tuple[int, ...] = (),
    units: int = 1000,
    coupling: Parameter = 0.03,
    spread: float = 0.1,
    unit_s: float = 1e-3,
) -> MeanField:
    """The ensemble of Krylov et al.: units with different currents, coupled by their mean x.

    Args:
        source: Draws currents and starts.
        batch_shape: How many ensembles.
        units: How many units in each.
        coupling: eps; the ensemble swings from about 0.02.
        spread: Standard deviation of the currents around 0.6.
        unit_s: Seconds in a unit of time.

    Returns:
        The ensemble, in float64; simulate 5000 steps before reading its rhythm.
    """
    shape = (*batch_shape, units)
    current = 0.6 + spread * torch.randn(shape, generator=source, dtype=torch.float64)
    start_x, start_y = 2 * torch.rand((2, *shape), generator=source, dtype=torch.float64) - 1
    return mean_of_all(RelaxationOscillator(current, start_x=start_x, start_y=start_y, unit_s=unit_s), coupling)


class Feedback(NamedTuple):
    """What kicked feedback did.

    Attributes:
        field: Mean of x before each step's kick, `[*batch, time]`.
        kick: What was added to x of every unit.
        end: State after the last step.
        mean: What the controller takes for the mean of the field there.
    """

    field: Float[Tensor, "*batch time"]
    kick: Float[Tensor, "*batch time"]
    end: Float[Tensor, "*batch region state"]
    mean: Float[Tensor, "*batch"]


def kicked_feedback(
    ensemble: MeanField,
    start: Float[Tensor, "*batch region state"],
    *,
    gain: Parameter,
    steps: int,
    dt_s: float,
    mean: Float[Tensor, "*batch"] | None = None,
    delay_steps: int | Int[Tensor, "*#batch"] = 0,
    memory_steps: float = 500.0,
    largest_kick: float = 1.0,
    scheme: Scheme = rk4,
) -> Feedback:
    """Kick x of all units against the deviation of the mean field from its running mean, once before each step.

    kick = -gain (X - mean X), clipped; the running mean forgets exponentially. No noise is played. Differentiable
    in start, gain and the ensemble's parameters, except where a kick is clipped.

    Args:
        ensemble: What is controlled.
        start: Where it stands; before, its mean field is taken to have stood still.
        gain: Of the feedback, a number or `[*batch]`; 0 only watches.
        steps: How many.
        dt_s: Step.
        mean: What the controller takes for the mean of the field at first; None for the field at the start. A strong
            gain holds the field where this is, and lets go of a wrong one only over many thousand steps: watch for
            some cycles with a gain of 0 and pass the `mean` that comes back.
        delay_steps: How late the mean field reaches the controller, a number or one for each row.
        memory_steps: Steps after which the running mean has forgotten 63 %.
        largest_kick: Kicks are held within plus and minus this.
        scheme: How a step is made.
    """
    state, drive = start, start.new_zeros(3, 1, len(ensemble.inputs))
    columns = torch.eye(len(ensemble.states), dtype=start.dtype, device=start.device)[0]
    still = start[..., 0].mean(-1)
    late = torch.as_tensor(delay_steps, device=start.device).expand(still.shape)
    reach = int(late.max()) + 1
    fields, kicks, running = [still] * (reach - 1), [], still if mean is None else mean
    for _ in range(steps):
        fields.append(state[..., 0].mean(-1))
        seen = torch.stack(fields[-reach:], -1).gather(-1, reach - 1 - late.unsqueeze(-1))[..., 0]
        running = running + (seen - running) / memory_steps
        kicks.append((-gain * (seen - running)).clamp(-largest_kick, largest_kick))
        state = scheme(ensemble.drift, state + kicks[-1][..., None, None] * columns, drive, dt_s, 0.0)
    return Feedback(torch.stack(fields[reach - 1 :], -1), torch.stack(kicks, -1), state, running)
