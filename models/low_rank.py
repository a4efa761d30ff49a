"""Small changes of a network's weights, kept apart from them: of low rank for matrices, plain for vectors.

A patient's own weights are the shipped ones plus these, summed before use; so an adapted network is again a plain
network, and costs what it cost before. All changes begin at zero.

    W' = W + up @ down          up [out, rank] starts at zero, down [rank, in] at random

A change of the vector that every channel's token begins with is the patient's embedding.

Reference: Hu et al., ICLR 2022 (arXiv 2106.09685), equation 3; their factor alpha / rank is 1 here.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stimopt.errors import ConfigError

LAYERS = ("through_trials", "through_channels", "maps", "head")
"""Parts of the network whose matrices change: all of the trial stage, where a patient's trials are read."""
EMBEDDING = ("where.down.bias",)
"""Added to the token of every channel."""


def low_rank_changes(
    weights: Mapping[str, Tensor], rank: int, source: torch.Generator,
    layers: Sequence[str] = LAYERS, vectors: Sequence[str] = EMBEDDING,
) -> dict[str, Tensor]:  # fmt: skip
    """Changes of low rank that are still zero.

    Args:
        weights: Of the network, by name.
        rank: Of each matrix's change.
        source: Stream of the random halves.
        layers: First words of the names of the matrices that change.
        vectors: Whole names of the weights that change by as many numbers as they have.

    Raises:
        ConfigError: If the rank is below 1, or nothing is so named.
    """
    chosen = [n for n, w in weights.items() if w.ndim == 2 and n.endswith(".weight") and n.startswith(tuple(layers))]
    plain = [n for n in vectors if n in weights]
    if rank < 1 or not chosen or len(plain) != len(vectors):
        raise ConfigError(
            f"rank is {rank}, {len(chosen)} matrices are in {', '.join(layers)} and {len(plain)} of {len(vectors)} "
            "vectors were found; give a rank of 1 or more and names of the network."
        )
    changes = {f"{name}:plain": torch.zeros_like(weights[name]) for name in plain}
    for name in chosen:
        out, inputs = weights[name].shape
        down = torch.randn(rank, inputs, generator=source) / math.sqrt(inputs)
        changes |= {f"{name}:up": weights[name].new_zeros(out, rank), f"{name}:down": down.to(weights[name])}
    return changes


def full_changes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A change of every weight, still zero."""
    return {f"{name}:plain": torch.zeros_like(value) for name, value in weights.items()}


def changed(weights: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with their changes, differentiable in the changes."""
    whole = dict(weights)
    for key, value in changes.items():
        name, kind = key.rsplit(":", 1)
        if kind == "plain":
            whole[name] = whole[name] + value
        elif kind == "up":
            whole[name] = whole[name] + value @ changes[f"{name}:down"]
    return whole
