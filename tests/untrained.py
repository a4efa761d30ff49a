"""A small foundation model with first weights: whatever is learnt with it is learnt from the patient."""

from stimopt.models.ieeg_foundation import FoundationModel
from stimopt.models.ieeg_transformer import IeegTransformer, TransformerSize
from stimopt.tensors import generator

SIZE = TransformerSize(
    width=32, layers=1, ongoing_width=16, ongoing_layers=1, heads=2, hubs=2, rhythms=2, factors=2
)  # fmt: skip


def untrained(size: TransformerSize = SIZE) -> FoundationModel:
    """Weights that nothing taught."""
    network = IeegTransformer(size, generator(3, "weights"))
    return FoundationModel(size, {name: value.detach() for name, value in network.state_dict().items()})
