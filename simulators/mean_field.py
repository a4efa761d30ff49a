"""Regions coupled through a few common fields: a network whose weights are a product of thin matrices.

    field_f  = sum_j sending_fj emission_j
    drive_i += gain * sum_f receiving_if entry field_f

Every unit of an ensemble hears the mean of all: then one field does what a network would do
with a matrix of ones, for N multiplications instead of N * N. Kernels that fall smoothly with
distance need some tens of fields (`factored`). Coupling is evaluated at every stage of a
step and is never late; for delays or differences take a `Network`.
State and output are those of the circuit in the regions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ShapeError

from .dynamics import Drive, Dynamics, Parameter, State
from .joined import Joined


@dataclass(frozen=True)
class MeanField(Joined):
    """A circuit in every region, coupled through common fields.

    Equal to a `Network` of weights receiving @ sending without delays.

    Attributes:
        circuit: What lives in each region, uncoupled.
        sending: How much each region adds to each field, `[*batch, field, region]`; 1/N throughout makes a mean.
        receiving: How much of each field reaches each region, `[*batch, region, field]`.
        gain: Drive per field: a number, or a tensor [*batch] to run many gains at once.
        entry: How much of each output goes to each input; None sends the first output to the first input.

    Raises:
        ShapeError: If sending, receiving or entry do not fit the circuit.
    """

    circuit: Dynamics
    sending: Float[Tensor, "*sent field region"]
    receiving: Float[Tensor, "*received region field"]
    gain: Parameter = 1.0
    entry: Float[Tensor, "input output"] | None = None

    def __post_init__(self) -> None:
        regions, fields = self.circuit.rest.shape[-2], self.sending.shape[-2]
        for name, matrix, axes, shape in (
            ("sending", self.sending, "field, region", (fields, regions)),
            ("receiving", self.receiving, "region, field", (regions, fields)),
        ):
            if tuple(matrix.shape[-2:]) != shape:
                raise ShapeError(
                    f"{name} must end in [{axes}] = {list(shape)} for this circuit, got {list(matrix.shape)}; "
                    "make both with `mean_of_all` or `factored`."
                )
        expected = (len(self.circuit.inputs), len(self.circuit.outputs))
        if self.entry is not None and tuple(self.entry.shape) != expected:
            raise ShapeError(
                f"entry must be [input, output] = {list(expected)} ({', '.join(self.circuit.inputs)} from "
                f"{', '.join(self.circuit.outputs)}), got {list(self.entry.shape)}."
            )

    def fields(self, state: State) -> Float[Tensor, "*batch field output"]:
        """The common fields."""
        return self._fields(state).mT

    def _fields(self, state: State) -> Float[Tensor, "*batch output field"]:
        # matrices stand on the right, where one product serves a whole batch; on the left each row would take its own
        return self.circuit.emission(state).mT @ self.sending.mT

    def instant_drive(self, state: State) -> Drive:
        """What the fields give to each region."""
        fields = self._fields(state)
        if self.entry is None:
            entering = torch.nn.functional.pad(fields[..., :1, :], (0, 0, 0, len(self.inputs) - 1))
        else:
            entering = self.entry @ fields  # [*batch, input, field]
        gain = self.gain[..., None, None] if isinstance(self.gain, Tensor) else self.gain
        return gain * (entering @ self.receiving.mT).mT


def mean_of_all(circuit: Dynamics, gain: Parameter = 1.0, entry: Tensor | None = None) -> MeanField:
    """Every region receives `gain` times the mean of what all of them emit, itself included.

    Args:
        circuit: What lives in each region.
        gain: Drive per mean emission, a number or [*batch].
        entry: See `MeanField`.
    """
    regions = circuit.rest.shape[-2]
    ones = circuit.rest.new_ones(1, regions)
    return MeanField(circuit, ones / regions, ones.mT, gain, entry)


def factored(
    weights: Float[Tensor, "region region"], *, tolerance: float = 1e-9
) -> tuple[Float[Tensor, "field region"], Float[Tensor, "region field"]]:
    """Thin matrices `sending` and `receiving` whose product is a weight matrix, by its singular values.

    Args:
        weights: `[to, from]`.
        tolerance: Largest error of any sum of received weights, as a share of the largest singular value; smaller
            singular values are left out.

    Returns:
        sending and receiving, for `MeanField`.
    """
    left, values, right = torch.linalg.svd(weights)
    kept = max(1, int((values > tolerance * values[0]).sum()))
    root = values[:kept].sqrt()
    return root.unsqueeze(-1) * right[:kept], left[:, :kept] * root
