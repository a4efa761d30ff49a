"""Regions coupled along tracts: what each emits, weighted and late, is added to the drive of the others.

    drive_i(t) += gain * sum_j weights_ij entry emission_j(t - delay_ij)            additive
    drive_i(t) += gain * sum_j weights_ij entry (emission_j(t - delay_ij) - emission_i(t))   diffusive

Coupling enters at every stage of a step, so a scheme keeps its order in a network. What is
not delayed is part of `drift`; what is delayed comes from the past, which `simulate` keeps,
and reaches `drift` through the drive. State and output are those of the circuit in the regions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stimopt.errors import ShapeError

from .dynamics import Drive, Dynamics, Emission, Parameter, State
from .joined import Joined


@dataclass(frozen=True)
class Network(Joined):
    """A circuit in every region, coupled over a connectome.

    Attributes:
        circuit: What lives in each region, uncoupled.
        weights: Tract weights, `[*batch, to, from]`: row i weighs what region i receives.
        gain: Drive per emission at weight 1: a number, or a tensor [*batch] to run many gains at once.
        delay_s: Conduction delay of each tract, `[to, from]`; None where nothing is late.
        entry: How much of each output goes to each input; None sends the first output to the first input.
        diffusive: Whether a region receives differences to its own emission.

    Raises:
        ShapeError: If weights, delays or entry do not fit the circuit, or a delay is negative or not finite.
    """

    circuit: Dynamics
    weights: Float[Tensor, "*weighted region region"]
    gain: Parameter = 1.0
    delay_s: Float[Tensor, "region region"] | None = None
    entry: Float[Tensor, "input output"] | None = None
    diffusive: bool = False

    def __post_init__(self) -> None:
        regions = self.circuit.rest.shape[-2]
        for name, matrix in (("weights", self.weights), ("delay_s", self.delay_s)):
            if matrix is not None and tuple(matrix.shape[-2:]) != (regions, regions):
                raise ShapeError(
                    f"{name} must be [region, region] = [{regions}, {regions}] for this circuit, "
                    f"got {list(matrix.shape)}; make both from one connectome."
                )
        if self.delay_s is not None and not bool((self.delay_s.isfinite() & (self.delay_s >= 0)).all()):
            raise ShapeError("delay_s holds negative or unknown delays; give every tract a time of 0 s or more.")
        expected = (len(self.circuit.inputs), len(self.circuit.outputs))
        if self.entry is not None and tuple(self.entry.shape) != expected:
            raise ShapeError(
                f"entry must be [input, output] = {list(expected)} ({', '.join(self.circuit.inputs)} from "
                f"{', '.join(self.circuit.outputs)}), got {list(self.entry.shape)}."
            )

    @property
    def late(self) -> Bool[Tensor, "region region"] | None:
        """Which tracts carry something late, as a mask [to, from]; None where none does."""
        if self.delay_s is None:
            return None
        used = (self.weights != 0).flatten(0, -3).any(0) if self.weights.ndim > 2 else self.weights != 0
        late = used & (self.delay_s > 0)
        return late if bool(late.any()) else None

    @property
    def instant_weights(self) -> Float[Tensor, "*weighted region region"]:
        """Weights of what is not late, a region's own share of differences on the diagonal."""
        late = self.late
        instant = self.weights if late is None else torch.where(late, torch.zeros_like(self.weights), self.weights)
        return instant - torch.diag_embed(self.weights.sum(-1)) if self.diffusive else instant

    def entering(self, received: Emission) -> Drive:
        """The drive that weighted emissions make."""
        if self.entry is not None:
            spread = received @ self.entry.mT
        elif len(self.inputs) == 1:
            spread = received[..., :1]
        else:
            nothing = torch.zeros_like(received[..., 0])
            spread = torch.stack([received[..., 0]] + [nothing] * (len(self.inputs) - 1), -1)
        gain = self.gain[..., None, None] if isinstance(self.gain, Tensor) else self.gain
        return spread * gain

    def instant_drive(self, state: State) -> Drive:
        """The drive through tracts that are not late."""
        return self.entering(self.instant_weights @ self.circuit.emission(state))
