"""Regions coupled along tracts: the emission of each, weighted, is added to the drive of the others.

Coupling is instantaneous: it enters at every stage of a step, so a scheme keeps its order
in a network. Tract lengths are known to `Connectome`, but conduction delays are not
simulated.

State and output are those of the circuit that lives in the regions.
Drive   [*batch, region]   unit of the circuit, emission times `gain` times weight
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ShapeError

from .dynamics import Dynamics


@dataclass(frozen=True)
class Network(Dynamics):
    """A circuit in every region, coupled over a connectome.

    Attributes:
        circuit: What lives in each region, uncoupled.
        weights: Tract weights, `[to, from]`: row i weighs what region i receives.
        gain: Drive per emission at weight 1, in the circuit's units.

    Raises:
        ShapeError: If the weights do not fit the regions of the circuit.
    """

    circuit: Dynamics
    weights: Float[Tensor, "region region"]
    gain: float = 1.0

    def __post_init__(self) -> None:
        regions = self.circuit.rest.shape[0]
        if tuple(self.weights.shape) != (regions, regions):
            raise ShapeError(
                f"weights must be [region, region] = [{regions}, {regions}] for this circuit, "
                f"got {list(self.weights.shape)}; make both from one connectome."
            )

    @property
    def rest(self) -> Float[Tensor, "region state"]:
        """See Dynamics."""
        return self.circuit.rest

    @property
    def largest_dt_s(self) -> float:
        """See Dynamics."""
        return self.circuit.largest_dt_s

    def drift(
        self, state: Float[Tensor, "*batch region state"], drive: Float[Tensor, "*batch region"]
    ) -> Float[Tensor, "*batch region state"]:
        """See Dynamics."""
        received = self.circuit.emission(state) @ (self.gain * self.weights).mT
        return self.circuit.drift(state, drive + received)

    def noise(self, state: Float[Tensor, "*batch region state"]) -> Float[Tensor, "*batch region state"]:
        """See Dynamics."""
        return self.circuit.noise(state)

    def emission(self, state: Float[Tensor, "*batch region state"]) -> Float[Tensor, "*batch region"]:
        """See Dynamics."""
        return self.circuit.emission(state)

    def potential_mv(self, state: Float[Tensor, "*batch region state"]) -> Float[Tensor, "*batch region"]:
        """See Dynamics."""
        return self.circuit.potential_mv(state)
