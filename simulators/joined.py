"""CONTRACT Joined: a circuit in every region and something between the regions.

Says everything of the circuit that lives in the regions, except how they drive each other.
A `Network` joins by tracts, a `MeanField` by a few fields that all feel.
"""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from .dynamics import Drive, Dynamics, Emission, Potential, State


class Joined(Dynamics):
    """A circuit whose regions drive each other.

    Attributes:
        circuit: What lives in each region, uncoupled.
    """

    circuit: Dynamics

    @abstractmethod
    def instant_drive(self, state: State) -> Drive:
        """What regions receive from each other at once."""

    def drift(self, state: State, drive: Drive) -> State:
        """See Dynamics; what is late must already be part of `drive`, as `simulate` sees to."""
        return self.circuit.drift(state, drive + self.instant_drive(state))

    @property
    def states(self) -> tuple[str, ...]:
        """See Dynamics."""
        return self.circuit.states

    @property
    def inputs(self) -> tuple[str, ...]:
        """See Dynamics."""
        return self.circuit.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Dynamics."""
        return self.circuit.outputs

    @property
    def noisy(self) -> tuple[str, ...]:
        """See Dynamics."""
        return self.circuit.noisy

    @property
    def source(self) -> str:
        """See Dynamics."""
        return self.circuit.source

    @property
    def noise_convention(self) -> str:
        """See Dynamics."""
        return self.circuit.noise_convention

    @property
    def rest(self) -> State:
        """See Dynamics."""
        return self.circuit.rest

    @property
    def tested_schemes(self) -> tuple[str, ...]:
        """See Dynamics."""
        return self.circuit.tested_schemes

    @property
    def largest_dt_s(self) -> float:
        """See Dynamics."""
        return self.circuit.largest_dt_s

    def noise(self, state: State) -> Float[Tensor, "*batch region noisy"]:
        """See Dynamics."""
        return self.circuit.noise(state)

    def emission(self, state: State) -> Emission:
        """See Dynamics."""
        return self.circuit.emission(state)

    def emission_rate(self, state: State, rate: State) -> Emission:
        """See Dynamics."""
        return self.circuit.emission_rate(state, rate)

    def potential_mv(self, state: State) -> Potential:
        """See Dynamics."""
        return self.circuit.potential_mv(state)
