"""Trials cut into parts that are held out in turn."""

import torch
from jaxtyping import Int
from torch import Tensor

from stimopt.stimulus import Stimulus
from stimopt.tensors import generator

_FEWEST = 4  # trials outside a part


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


def site_parts(stimulus: Stimulus, folds: int, seed: int) -> list[Tensor]:
    """Trials in parts such that no site is in two of them; silent trials are dealt out.

    Where the other parts would leave too few trials to learn from, or there is one site, parts are by trial instead.
    """
    used, site = torch.unique(stimulus.amplitude_ma != 0, dim=0, return_inverse=True)
    silent, count = ~used.any(-1), len(site)
    order = torch.randperm(len(used), generator=generator(seed, "site parts"))
    part = torch.empty(len(used), dtype=torch.long)
    part[order[~silent[order]]] = torch.arange(int((~silent).sum())) % folds
    each = part[site]
    quiet = silent[site].nonzero().squeeze(-1)
    each[quiet] = torch.arange(len(quiet)) % folds
    parts = [(each == i).nonzero().squeeze(-1) for i in range(folds)]
    parts = [one for one in parts if len(one)]
    if len(parts) < 2 or count - max(len(one) for one in parts) < _FEWEST:
        parts = folds_of(count, folds, seed, "trial parts")
    return parts
