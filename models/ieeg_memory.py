"""The ongoing stage of the network patch by patch: what it knows of the past is kept, so a new patch costs one patch.

Keys and values over time of each layer are all that the next patch needs of those before. Attention looks back on 16
patches, itself included.

Reference: Shazeer 2019, arXiv:1911.02150 (kept keys and values).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from .ieeg_foundation import FoundationForecaster
from .ieeg_subject import joined_subjects
from .ieeg_transformer import LONGEST, IeegTransformer


@dataclass(frozen=True)
class Memory:
    """Keys and values over time, one pair a layer, oldest patch first: all that the next patch needs of the past."""

    keys: tuple[Float[Tensor, "row channel head patch feature"], ...] = ()
    values: tuple[Float[Tensor, "row channel head patch feature"], ...] = ()


def follow(
    network: IeegTransformer,
    where: Float[Tensor, "#row channel width"],
    patch: Float[Tensor, "row channel patch wave"],
    share: Float[Tensor, "row channel patch 1"],
    memory: Memory | None = None,
    there: Bool[Tensor, "#row channel"] | None = None,
) -> tuple[Float[Tensor, "row channel patch width"], Memory]:
    """Tokens of patches that follow those in memory, and the memory after them.

    As the network's own ongoing stage while there are no more than 16 patches; beyond, each layer looks back on 16.

    Args:
        network: Whose ongoing stage it is.
        where: What is known of each channel, see `standing`.
        patch: New patches in cosines.
        share: How much of each is good, in its first cosine.
        memory: Of what went before; None where nothing did.
        there: Which channels are no padding; all by default.
    """
    token: Tensor = network.patch(torch.cat([patch, share], -1)) + where.unsqueeze(2)
    hubs = network.hubs_ongoing.expand(token.shape[0], token.shape[2], -1, -1)  # [row, patch, hub, width]
    padding = None if there is None else _hidden(~there, token)[:, None, None, None, :]
    before, keys, values = memory or Memory(), [], []
    stages: Iterable[tuple[Any, Any, Any]] = zip(
        network.through_time, network.through_hubs, network.patch_maps, strict=True
    )
    for layer, (time, space, change) in enumerate(stages):
        query, key = time.pairs(token, token)
        value = time.value(_normed(token)).unflatten(-1, (network.size.heads, -1)).transpose(-3, -2)
        if before.keys:
            key = torch.cat([before.keys[layer], key], -2)
            value = torch.cat([before.values[layer], value], -2)
        heard = F.scaled_dot_product_attention(query, key, value, attn_mask=_lateness(query, key))
        token = token + time.out(heard.transpose(-3, -2).flatten(-2))
        by_patch = token.transpose(1, 2)
        hubs = hubs + space(hubs, by_patch, padding)
        token = token + space(by_patch, hubs, None).transpose(1, 2)
        token = token + change(_normed(token))
        keys.append(key[..., max(0, key.shape[-2] - LONGEST + 1) :, :])
        values.append(value[..., max(0, value.shape[-2] - LONGEST + 1) :, :])
    return token, Memory(tuple(keys), tuple(values))


def standing(network: IeegTransformer, forecaster: FoundationForecaster) -> Float[Tensor, "1 channel width"]:
    """What the ongoing stage knows of a patient's channels before any signal: place, kind and rest."""
    subject = joined_subjects([forecaster.subject])
    where: Tensor = network.where_ongoing(network._where(subject).to(network.hubs_ongoing))
    return where


def _lateness(query: Tensor, key: Tensor) -> Float[Tensor, "head to from"]:
    """The network's attention back in time, over 16 patches and no more."""
    late = torch.arange(key.shape[-2], device=key.device)
    back = late[late.shape[0] - query.shape[-2] :].unsqueeze(-1) - late
    pace = 2.0 ** -(2.0 * torch.arange(query.shape[-3], dtype=query.dtype, device=query.device))
    return torch.where((back < 0) | (back >= LONGEST), -math.inf, -pace.reshape(-1, 1, 1) * back)


def _hidden(hidden: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill(hidden, -math.inf)


def _normed(token: Tensor) -> Tensor:
    return F.layer_norm(token, token.shape[-1:])
