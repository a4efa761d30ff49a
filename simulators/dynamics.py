"""CONTRACT Dynamics: how the state of coupled or single brain regions changes.

A stochastic differential equation, dx = drift(x, u) dt + noise(x) dW, with an independent
Wiener process for every noisy state of every region. `drift` and `noise` are the equation;
`emission` and `potential_mv` are its two readings, what other regions receive and what a
contact sees. Inputs and outputs have names, with their units, so that a network and a
stimulus say where they enter.

State     [*batch, region, state]    units are the circuit's own; `states` names them
Drive     [*batch, region, input]    input from outside, one column for each of `inputs`
Emission  [*batch, region, output]   one column for each of `outputs`

Parameters of a circuit are numbers, or tensors that broadcast against [*batch, region]: one
value per region, or one per row of a batch of virtual patients. The first field of a circuit
is always a tensor [*batch, region]; it says how many regions there are, where and in which precision.
"""

from abc import ABC, abstractmethod
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ContractError

State = Float[Tensor, "*batch region state"]
Drive = Float[Tensor, "*#batch #region input"]  # broadcasts: one drive for all rows or regions will do
Emission = Float[Tensor, "*batch region output"]
Potential = Float[Tensor, "*batch region"]
Parameter: TypeAlias = Tensor | float


class Dynamics(ABC):
    """The equation of a circuit. Pure: nothing is kept between calls. Differentiable in state, drive and parameters."""

    @property
    @abstractmethod
    def states(self) -> tuple[str, ...]:
        """Names of the states, with their unit where they have one."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Names of the places where drive enters, each with its unit; a stimulus enters the first unless told."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Names of what a region sends along its tracts."""

    @property
    def noisy(self) -> tuple[str, ...]:
        """Which states a random force pushes; none by default."""
        return ()

    @property
    def source(self) -> str:
        """Where equations and default parameters were published."""
        return "not stated"

    @property
    def noise_convention(self) -> str:
        """What the noise parameter means; published results of some circuits change with it."""
        return "white; its size is given per square root of a second, so it does not depend on the step"

    @property
    @abstractmethod
    def rest(self) -> State:
        """Where a simulation begins, `[region, state]` or with a batch; its device and dtype are the circuit's."""

    @property
    def tested_schemes(self) -> tuple[str, ...]:
        """Schemes with which `largest_dt_s` was tested; with others a `Twin` halves its step once to see."""
        return ("rk4",)

    @property
    @abstractmethod
    def largest_dt_s(self) -> float:
        """The largest step that was tested against a finer one, for parameters like these; larger ones are refused."""

    @abstractmethod
    def drift(self, state: State, drive: Drive) -> State:
        """Rate of change, per second."""

    @abstractmethod
    def emission(self, state: State) -> Emission:
        """What each region sends along its tracts, in the circuit's own units."""

    @abstractmethod
    def potential_mv(self, state: State) -> Potential:
        """What a contact inside the region would follow, in mV."""

    def noise(self, state: State) -> Float[Tensor, "*batch region noisy"]:
        """Size of the random force on each noisy state, state units per square root of a second.

        Raises:
            ContractError: If the circuit names noisy states and does not say how they are pushed.
        """
        if self.noisy:
            raise ContractError(f"{type(self).__name__} names noisy states; give it a `noise` method too.")
        return state[..., :0]

    def emission_rate(self, state: State, rate: State) -> Emission:
        """How fast the emission changes while the state changes at `rate`: the slope that delayed reads need.

        By forward differentiation of `emission`; a circuit may give it in closed form.
        """
        slope: Tensor = torch.func.jvp(self.emission, (state,), (rate,))[1]
        return slope


def step_at_pace(largest_dt_s: float, tested_per_s: float, *rates_per_s: Parameter) -> float:
    """The step that was tested where a circuit's fastest rate was `tested_per_s`; shorter in proportion where faster.

    Args:
        largest_dt_s: The step that was tested.
        tested_per_s: The fastest of the circuit's rates in that test.
        rates_per_s: The rates now.
    """
    fastest = max(float(torch.as_tensor(rate).detach().abs().max()) for rate in rates_per_s)
    return largest_dt_s * min(1.0, tested_per_s / max(fastest, tested_per_s))


def noisy_columns(dynamics: Dynamics) -> Float[Tensor, "noisy state"]:
    """One row for each noisy state, 1 at its place: spreads the kicks over the state."""
    columns = dynamics.rest.new_zeros(len(dynamics.noisy), len(dynamics.states))
    for row, name in enumerate(dynamics.noisy):
        columns[row, dynamics.states.index(name)] = 1.0
    return columns
