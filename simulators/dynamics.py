"""CONTRACT Dynamics: how the state of coupled or single brain regions changes.

A stochastic differential equation, dx = drift(x, u) dt + noise(x) dW, with one independent
Wiener process per region. `drift` and `noise` are the equation; `emission` and
`potential_mv` are its two readings, what other regions receive and what a contact sees.

State   [*batch, region, state]   units are the circuit's own
Drive   [*batch, region]          input from outside, unit stated by the circuit
"""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor


class Dynamics(ABC):
    """The equation of a circuit. Pure: nothing is kept between calls. Differentiable in state and drive."""

    @property
    @abstractmethod
    def rest(self) -> Float[Tensor, "region state"]:
        """Where a simulation begins; its device and dtype are those of the circuit."""

    @property
    @abstractmethod
    def largest_dt_s(self) -> float:
        """The largest step that was tested against a finer one; larger ones are refused."""

    @abstractmethod
    def drift(
        self, state: Float[Tensor, "*batch region state"], drive: Float[Tensor, "*batch region"]
    ) -> Float[Tensor, "*batch region state"]:
        """Rate of change, per second."""

    @abstractmethod
    def noise(self, state: Float[Tensor, "*batch region state"]) -> Float[Tensor, "*batch region state"]:
        """Size of the random force on each state, state units per square root of a second (Ito).

        All states of a region share that region's one Wiener process.
        """

    @abstractmethod
    def emission(self, state: Float[Tensor, "*batch region state"]) -> Float[Tensor, "*batch region"]:
        """What each region sends along its tracts, in the circuit's own unit."""

    @abstractmethod
    def potential_mv(self, state: Float[Tensor, "*batch region state"]) -> Float[Tensor, "*batch region"]:
        """What a contact inside the region would follow, in mV."""
