"""Weights to go on from: a checkpoint's, in a network that may have grown since.

Strict as loading is: the checkpoint has the sha256 that was asked for, every weight of it has its place and shape, and
what the network has beside them is zero at first. So the run begins with the forecasts that these weights make.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stimopt.checkpoint import load_checkpoint, read_config
from stimopt.errors import CheckpointError

from .ieeg_foundation import KIND


@dataclass(frozen=True)
class _Weights:
    """Those of a checkpoint, whatever network they are of."""

    tensors: Mapping[str, Tensor]

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        return {}, dict(self.tensors)

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "_Weights":
        """See Saveable."""
        return cls(tensors)


@torch.no_grad()
def go_on_from(network: nn.Module, folder: Path, sha256: str) -> None:
    """Put a checkpoint's weights into a network.

    Args:
        network: Newly made; its weights are replaced.
        folder: Of the checkpoint, of a foundation model.
        sha256: Of its weights, as its config states it.

    Raises:
        CheckpointError: If it is no such checkpoint or another one, a weight of it has no place, or what it lacks is
            not zero in the network.
    """
    stated = str(read_config(folder)["sha256"])
    if stated != sha256:
        raise CheckpointError(f"{folder} has weights of sha256 {stated[:12]}.., asked was {sha256[:12]}..; give those.")
    loaded = load_checkpoint(folder, {KIND: _Weights})
    tensors = dict(loaded.tensors) if isinstance(loaded, _Weights) else {}
    own = network.state_dict()
    placed = [name for name, value in tensors.items() if name in own and own[name].shape == value.shape]
    grown = [name for name in own if name not in tensors and bool(own[name].any())]
    if len(placed) < len(tensors) or grown:
        raise CheckpointError(
            f"{len(placed)} of {len(tensors)} weights of {folder} have a place in this network, and {len(grown)} of "
            f"its own that they lack are not zero at first ({', '.join(grown[:3]) or 'none'}); start from a checkpoint "
            "of the same size, or from none."
        )
    network.load_state_dict({**own, **tensors})
