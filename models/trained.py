"""Small networks trained on one patient's trials: the loop, and what its held-out trials decide.

Every candidate (a strength of weight decay) and every fold is a member, and all members
are trained at once: each weight has a leading member axis. Each trial is held out by one
fold; the candidate and the number of steps are those that forecast the held-out trials
best, the untrained network among them. The folds' members of that candidate answer
together, as their mean; the noise comes from the trials each of them did not see.

Reference: Loshchilov and Hutter, ICLR 2019, for Adam with decoupled weight decay.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stimopt.tensors import generator

Weights = Mapping[str, Tensor]
"""Named weights; all begin with the member axis. Those called "...weight" decay."""
Inputs = Mapping[str, Tensor]
"""Named inputs; all begin with the member axis (of length 1 where shared), then the row."""
Network = Callable[[Weights, Inputs], Float[Tensor, "member row channel time"]]

_CHECKS = 16  # how often held-out trials are forecast during training
_EPSILON = 1e-8


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        steps: Of Adam, at most.
        rate: Its highest learning rate.
        decays: Candidates of weight decay per unit of rate.
        rows: Trials in a step.
        folds: In how many parts the trials are cut.
    """

    steps: int
    rate: float
    decays: tuple[float, ...]
    rows: int
    folds: int


@dataclass(frozen=True)
class Trained:
    """The members that answer together.

    Attributes:
        weights: One member for each fold.
        residual: Target less the forecast of the member that did not see the trial.
        loss: Mean square of that.
    """

    weights: dict[str, Tensor]
    residual: Float[Tensor, "trial channel time"]
    loss: float


def train(
    network: Network, first: Callable[[torch.Generator], Weights], inputs: Inputs,
    target: Float[Tensor, "trial channel time"], recipe: Recipe, seed: int,
) -> Trained:  # fmt: skip
    """Train all candidates on all folds and keep what forecasts held-out trials best.

    Args:
        network: Forecast from weights and inputs; members must not see each other.
        first: Weights of one member to begin with, the member axis left out.
        inputs: Beginning with the trial.
        target: What to forecast, channels in units that count alike.
        recipe: How.
        seed: Of folds, first weights and batches.
    """
    order = torch.randperm(len(target), generator=generator(seed, "folds"))
    held = [part.sort().values for part in order.chunk(recipe.folds)]
    kept = [_without(len(target), part) for part in held]
    starts = [first(generator(seed, "weights", i)) for i in range(len(held))]
    many = len(recipe.decays)
    weights = {name: torch.stack([s[name] for s in starts] * many).requires_grad_() for name in starts[0]}
    decay = target.new_tensor(recipe.decays).repeat_interleave(len(held))  # candidates, then folds within
    source = generator(seed, "batches")
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in weights.items()}
    best = _Best(network, inputs, target, held, many)
    best.look(weights)
    every = max(1, recipe.steps // _CHECKS)
    for step in range(recipe.steps):
        rows = _batch(kept, recipe.rows, source).repeat(many, 1)  # [member, row]
        answer = network(weights, {name: value[rows] for name, value in inputs.items()})
        loss = (answer - target[rows]).square().mean((1, 2, 3)).sum()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        rate = recipe.rate * _pace(step, recipe.steps)
        with torch.no_grad():
            _update(weights, gradients, moments, step, rate, decay)
        if (step + 1) % every == 0:
            best.look(weights)
    return best.trained()


class _Best:
    """The best candidate and step so far."""

    def __init__(
        self, network: Network, inputs: Inputs, target: Tensor, held: Sequence[Tensor], candidates: int
    ) -> None:
        self._network, self._inputs, self._target = network, inputs, target
        self._held, self._candidates = held, candidates
        self._trained: Trained | None = None

    @torch.no_grad()
    def look(self, weights: Weights) -> None:
        """Forecast the held-out trials of every member, and remember the candidate that does best."""
        residual = self._target.new_empty(self._candidates, *self._target.shape)
        for fold, rows in enumerate(self._held):
            members = slice(fold, None, len(self._held))
            some = {name: value[members] for name, value in weights.items()}
            answer = self._network(some, {name: value[rows].unsqueeze(0) for name, value in self._inputs.items()})
            residual[:, rows] = self._target[rows] - answer
        losses = residual.square().mean((1, 2, 3)).nan_to_num(nan=math.inf)
        index = int(losses.argmin())
        if self._trained is None or float(losses[index]) < self._trained.loss:
            own = slice(index * len(self._held), (index + 1) * len(self._held))
            chosen = {name: value[own].detach().clone() for name, value in weights.items()}
            self._trained = Trained(chosen, residual[index].clone(), float(losses[index]))

    def trained(self) -> Trained:
        """What was best."""
        assert self._trained is not None  # look is called before the first step
        return self._trained


def dense(weights: Weights, name: str, x: Float[Tensor, "one *row feature"]) -> Float[Tensor, "member *row out"]:
    """A linear map by each member's own weights; the member axis of `x` may have length 1."""
    weight, bias = weights[f"{name}.weight"].to(x), weights[f"{name}.bias"].to(x)
    flat = x.flatten(1, -2).expand(len(weight), -1, -1)
    mapped: Tensor = torch.baddbmm(bias.unsqueeze(1), flat, weight).unflatten(1, x.shape[1:-1])
    return mapped


def dense_start(source: torch.Generator, name: str, inputs: int, outputs: int, gain: float = 1.0) -> dict[str, Tensor]:
    """First weights of one member's linear map, which keeps the size of its input times `gain`."""
    weight = gain / math.sqrt(max(1, inputs)) * torch.randn(inputs, outputs, generator=source)
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(outputs)}


def _without(count: int, part: Tensor) -> Int[Tensor, " trial"]:
    kept = torch.ones(count, dtype=torch.bool)
    kept[part] = False
    return kept.nonzero().squeeze(-1)


def _batch(kept: Sequence[Tensor], rows: int, source: torch.Generator) -> Int[Tensor, "fold row"]:
    """Different trials for each fold, as many for all."""
    count = min(rows, *(len(part) for part in kept))
    return torch.stack([part[torch.randperm(len(part), generator=source)[:count]] for part in kept])


def _update(
    weights: Weights, gradients: Sequence[Tensor], moments: Mapping[str, tuple[Tensor, Tensor]], step: int,
    rate: float, decay: Float[Tensor, " member"],
) -> None:  # fmt: skip
    """One step of Adam in place, decay apart (algorithm 2), each member with its own decay."""
    mean_keep, square_keep = 0.9, 0.98
    bias = math.sqrt(1 - square_keep ** (step + 1)) / (1 - mean_keep ** (step + 1))
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        mean, square = moments[name]
        mean.mul_(mean_keep).add_(gradient, alpha=1 - mean_keep)
        square.mul_(square_keep).addcmul_(gradient, gradient, value=1 - square_keep)
        if name.endswith("weight"):
            weight.mul_((1 - rate * decay).clamp_min(0).reshape(-1, *(1,) * (weight.ndim - 1)))
        weight.addcdiv_(mean, square.sqrt().add_(_EPSILON), value=-rate * bias)


def _pace(step: int, steps: int) -> float:
    """Learning rate's share: a short rise, then half a cosine."""
    rise = max(1, min(20, steps // 10))
    return min(1.0, (step + 1) / rise) * (1 + math.cos(math.pi * step / steps)) / 2
