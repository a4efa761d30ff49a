"""Trials cut into parts that are held out in turn."""

import torch
from jaxtyping import Int
from torch import Tensor

from stimopt.tensors import generator


def folds_of(count: int, folds: int, seed: int, stream: str = "folds") -> list[Int[Tensor, " trial"]]:
    """Numbers of trials in parts of about one size, drawn at random, in order within a part.

    Args:
        count: How many trials.
        folds: How many parts at most.
        seed: Of the draw.
        stream: Names it.
    """
    order = torch.randperm(count, generator=generator(seed, stream))
    return [part.sort().values for part in order.chunk(folds)]


def others_of(count: int, held: Int[Tensor, " trial"]) -> Int[Tensor, " other"]:
    """Numbers of all trials but those held out, in order."""
    kept = torch.ones(count, dtype=torch.bool, device=held.device)
    kept[held] = False
    return kept.nonzero().squeeze(-1)
