"""Policies that do not learn: even draws, a grid in random order, one setting, nothing at all.

They are what a search is compared with. All but the last two recommend the tried setting with
the best mean score.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.history import History
from stimopt.policy import Policy
from stimopt.safety import Envelope
from stimopt.space import StimulationSpace, Value
from stimopt.stimulus import Stimulus
from stimopt.tensors import generator as named_generator

from .candidates import allowed_points, nothing_allowed, sobol_points, uniform_points, visits

_ROUNDS, _ROUND = 64, 64  # draws of a rejection, in batches
_GRID_LIMIT = 100_000  # points; a larger grid is never walked to its end


@dataclass(frozen=True)
class RandomPolicy(Policy):
    """Independent even draws from what the envelope allows.

    Attributes:
        space: What may vary.
        envelope: What is safe.
    """

    space: StimulationSpace
    envelope: Envelope

    def propose(self, history: History, generator: torch.Generator) -> Stimulus:
        """See Policy.

        Raises:
            EnvelopeError: If it allows none of 4096 draws.
        """
        for _ in range(_ROUNDS):
            drawn = uniform_points(self.space, _ROUND, generator)
            found = allowed_points(self.space, self.envelope, drawn, history)
            if len(found):
                return self.space.stimulus(found[0])
        raise nothing_allowed(_ROUNDS * _ROUND, history)


@dataclass(frozen=True)
class SobolPolicy(Policy):
    """Scrambled Sobol points in their order: fills the space more evenly than independent draws.

    The point of trial n is the n-th of the sequence. One that the envelope forbids is passed over, and
    delivered as soon as it is allowed.

    Attributes:
        space: What may vary.
        envelope: What is safe.
        seed: Names the sequence.
    """

    space: StimulationSpace
    envelope: Envelope
    seed: int = 0

    def propose(self, history: History, generator: torch.Generator) -> Stimulus:
        """See Policy. The generator is not used.

        Raises:
            EnvelopeError: If the envelope forbids the next 4096 points.
        """
        points = sobol_points(self.space, len(history) + _ROUNDS * _ROUND, self.seed)
        waiting = points[_occurrence(points) >= visits(self.space, points, history)]
        for block in waiting.split(_ROUND):
            found = allowed_points(self.space, self.envelope, block, history)
            if len(found):
                return self.space.stimulus(found[0])
        raise nothing_allowed(len(waiting), history)


@dataclass(frozen=True)
class GridPolicy(Policy):
    """Every point of a grid once, in an order that the seed fixes, then all again.

    Attributes:
        space: What may vary.
        envelope: What is safe; forbidden points are left out.
        seed: Names the order.
        levels: Values of each continuous or logarithmic axis, ends included; 1 is the middle. Listed axes keep theirs.

    Raises:
        ConfigError: If levels is below 1 or the grid has more than 100,000 points.
    """

    space: StimulationSpace
    envelope: Envelope
    seed: int = 0
    levels: int = 5

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ConfigError(f"levels is {self.levels}; a grid needs 1 or more.")
        size = math.prod(len(p.values()) if p.discrete else self.levels for p in self.space.parameters)
        if size > _GRID_LIMIT:
            raise ConfigError(
                f"a grid of {size} points is too large to walk; lower levels ({self.levels}) or list fewer values."
            )

    def propose(self, history: History, generator: torch.Generator) -> Stimulus:
        """See Policy. The generator is not used.

        Raises:
            EnvelopeError: If the envelope forbids the whole grid.
        """
        points = self.grid()
        order = torch.randperm(len(points), generator=named_generator(self.seed, "grid"))
        seen = visits(self.space, points, history)[order]
        ordered = points[order][seen.argsort(stable=True)]  # the least visited first
        for block in ordered.split(_ROUND):
            found = allowed_points(self.space, self.envelope, block, history)
            if len(found):
                return self.space.stimulus(found[0])
        raise nothing_allowed(len(ordered), history)

    def grid(self) -> Float[Tensor, "point dimension"]:
        """All its points, the last parameter running fastest (float64)."""
        like = torch.zeros(1, dtype=torch.float64)
        line = torch.linspace(0.0, 1.0, self.levels, dtype=torch.float64) if self.levels > 1 else like + 0.5
        cells = [p.grid_like(like) if p.discrete else line.unsqueeze(-1) for p in self.space.parameters]
        index = torch.cartesian_prod(*[torch.arange(len(cell)) for cell in cells]).reshape(-1, len(cells))
        return torch.cat([cell[column] for cell, column in zip(cells, index.unbind(-1), strict=True)], -1)


@dataclass(frozen=True)
class ConstantPolicy(Policy):
    """The same setting in every trial: what a clinic does without a search.

    Attributes:
        space: What could vary.
        setting: A value per parameter, in its canonical unit, such as {"amplitude_ma": 2.0, "contacts": "A1-A2"}.

    Raises:
        SpaceError: If a parameter is missing or a value lies outside the space.
    """

    space: StimulationSpace
    setting: Mapping[str, Value]

    def __post_init__(self) -> None:
        self.space.encode(dict(self.setting))

    def propose(self, history: History, generator: torch.Generator) -> Stimulus:
        """See Policy. The envelope behind it refuses a setting that is not allowed."""
        return self.space.stimulus(self.space.encode(dict(self.setting)))

    def recommend(self, history: History, generator: torch.Generator) -> Stimulus:
        """The setting itself."""
        return self.propose(history, generator)


@dataclass(frozen=True)
class NoStimulationPolicy(Policy):
    """Nothing in every trial: what the brain does on its own. Its stimulus lies outside most spaces, by intent.

    Attributes:
        space: Whose template is silenced: no current, no pulse, no sensory intensity, zero features.
    """

    space: StimulationSpace

    def propose(self, history: History, generator: torch.Generator) -> Stimulus:
        """See Policy."""
        template, sensory = self.space.template, self.space.template.sensory
        if sensory is not None:
            nothing = torch.zeros_like(sensory.intensity)
            sensory = replace(sensory, intensity=nothing, features=torch.zeros_like(sensory.features))
        current, pulses = torch.zeros_like(template.amplitude_ma), torch.zeros_like(template.pulses)
        return replace(template, amplitude_ma=current, pulses=pulses, sensory=sensory)

    def recommend(self, history: History, generator: torch.Generator) -> Stimulus:
        """Nothing."""
        return self.propose(history, generator)


def _occurrence(points: Float[Tensor, "point dimension"]) -> Float[Tensor, " point"]:
    """How many equal points come before each: 0 for the first of its kind."""
    _, group = torch.unique((points * 1e9).round(), dim=0, return_inverse=True)
    order = group.argsort(stable=True)
    first = torch.searchsorted(group[order], group[order])  # where each run of equals begins
    rank = torch.empty_like(group).index_copy(0, order, torch.arange(len(group)) - first)
    return rank.to(points)
