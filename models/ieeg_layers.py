"""Layers of the networks here: maps and attention, whose first weights come from a stream of one's own.

References: Vaswani et al. 2017 (attention); Dehghani et al., ICML 2023 (normalised queries and keys); Press et al.,
ICLR 2022 (attention that fades with distance in time).
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name


class Linear(nn.Module):
    """A linear map; torch's own draws its first weights from the global stream."""

    def __init__(self, inputs: int, outputs: int, source: torch.Generator, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(gain * torch.randn(outputs, inputs, generator=source) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The map of the last axis."""
        return F.linear(x, self.weight, self.bias)


class Map(nn.Module):
    """Two linear maps with a bend between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, source: torch.Generator) -> None:
        super().__init__()
        self.up, self.down = Linear(inputs, hidden, source), Linear(hidden, outputs, source, gain=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The map of the last axis."""
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


class Attention(nn.Module):
    """Queries and keys of tokens, each normalised, and how much one listens to another."""

    def __init__(self, width: int, heads: int, source: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = Linear(width, width, source), Linear(width, width, source)
        self.sharpness = nn.Parameter(torch.zeros(heads, 1, 1))

    def asks(self, tokens: Float[Tensor, "*batch to width"]) -> Float[Tensor, "*batch head to feature"]:
        """Queries."""
        return normed(_by_head(self.query(normed(tokens)), self.heads)) * self.sharpness.exp()

    def keys(self, tokens: Float[Tensor, "*batch from width"]) -> Float[Tensor, "*batch head from feature"]:
        """Keys."""
        return normed(_by_head(self.key(normed(tokens)), self.heads))

    def shares(self, asks: Tensor, told: Tensor, bias: Tensor) -> Float[Tensor, "*batch head to from"]:
        """How much each token listens to each other one; the shares of one sum to 1."""
        query, key = self.asks(asks), self.keys(told)
        return (query @ key.mT / math.sqrt(key.shape[-1]) + bias).softmax(-1)


class Mixer(Attention):
    """Attention of some tokens to others, to be added to the first."""

    def __init__(self, width: int, heads: int, source: torch.Generator) -> None:
        super().__init__(width, heads, source)
        self.value, self.out = Linear(width, width, source), Linear(width, width, source, gain=0.5)

    def told(self, tokens: Float[Tensor, "*batch from width"]) -> tuple[Tensor, Tensor]:
        """Keys and values, which may be kept: `[*batch, head, from, feature]`."""
        return self.keys(tokens), _by_head(self.value(normed(tokens)), self.heads)

    def hear(
        self, asks: Float[Tensor, "*batch to width"], key: Tensor, value: Tensor, bias: Tensor | None
    ) -> Float[Tensor, "*batch to width"]:
        """What tokens take from keys and values, biased by head."""
        heard = F.scaled_dot_product_attention(self.asks(asks), key, value, attn_mask=bias)
        mixed: Tensor = self.out(heard.transpose(-3, -2).flatten(-2))
        return mixed

    def forward(
        self, asks: Float[Tensor, "*batch to width"], told: Float[Tensor, "*batch from width"], bias: Tensor | None
    ) -> Float[Tensor, "*batch to width"]:
        """The same from tokens."""
        return self.hear(asks, *self.told(told), bias)


def normed(tokens: Tensor) -> Tensor:
    """Tokens of one size, whatever theirs was; without weights of its own."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def only(there: Bool[Tensor, "*shape"], like: Tensor) -> Float[Tensor, "*shape"]:
    """A bias that lets attention hear nothing but what is there."""
    return torch.zeros(there.shape, dtype=like.dtype, device=like.device).masked_fill(~there, -math.inf)


def lateness(asked: int, told: int, heads: int, longest: int, like: Tensor) -> Float[Tensor, "head to from"]:
    """A bias that hears the past alone, the newest `longest`, weaker the further back, at another pace in each head.

    Args:
        asked: How many ask; they are the newest of those told.
        told: How many are heard.
        heads: Of the attention.
        longest: How many are looked back on, one's own place included.
        like: For dtype and device.
    """
    order = torch.arange(told, device=like.device)
    back = order[told - asked :].unsqueeze(-1) - order
    pace = 2.0 ** -(2.0 * torch.arange(heads, dtype=like.dtype, device=like.device))
    return torch.where((back < 0) | (back >= longest), -math.inf, -pace.reshape(-1, 1, 1) * back)


def _by_head(tokens: Tensor, heads: int) -> Tensor:
    apart: Tensor = tokens.unflatten(-1, (heads, -1))
    return apart.transpose(-3, -2)
