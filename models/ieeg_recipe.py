"""A recipe: everything that a pretraining run of the foundation network depends on, besides its corpus."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from stimopt.errors import ConfigError

from .ieeg_batches import Draw
from .ieeg_losses import Weights
from .ieeg_transformer import TransformerSize

Part = TypeVar("Part")


@dataclass(frozen=True)
class Recipe:
    """Everything that a pretraining run depends on, besides its corpus.

    Attributes:
        steps: Of AdamW.
        seed: Of weights and batches.
        rate: Highest learning rate.
        rise: Steps until it is reached.
        decay: Weight decay.
        average: How much of the averaged weights is kept at each step.
        hubs_only: Share of steps in which channels hear each other through hubs alone.
        every: Steps between saved states and reports.
        joining: How many patients there are at first, and how many more come at each step, in their order; None for
            all of them from the start. So a run may begin while a corpus is still being made, and a later one with
            the whole corpus makes the same steps.
        start_from: Folder of a checkpoint whose weights the run begins with, and their sha256; None for new weights.
        kept: Share of these in the checkpoint that the run becomes, see `checkpoint_of`.
        size: Of the network.
        draw: Of batches.
        weights: Of losses.
    """

    steps: int = 2000
    seed: int = 0
    rate: float = 1.5e-3
    rise: int = 60
    decay: float = 0.03
    average: float = 0.995
    hubs_only: float = 0.2
    every: int = 50
    joining: tuple[int, float] | None = None
    start_from: tuple[str, str] | None = None
    kept: float = 0.0
    size: TransformerSize = field(default_factory=TransformerSize)
    draw: Draw = field(default_factory=Draw)
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.every < 1:
            raise ConfigError(f"steps is {self.steps} and every {self.every}; both must be 1 or more.")
        if self.joining is not None and (self.joining[0] < 1 or self.joining[1] < 0):
            raise ConfigError(f"joining is {self.joining}; give 1 patient or more, and 0 or more at each step.")
        if not 0 <= self.kept < 1 or (self.kept and self.start_from is None):
            raise ConfigError(f"kept is {self.kept}; give less than 1, and above 0 only with start_from.")

    def joined(self, step: int) -> int | None:
        """How many patients there are at a step; None for all."""
        return None if self.joining is None else int(self.joining[0] + self.joining[1] * step)


def recipe_of(plain: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values, such as a file's; what is left out has its default.

    Raises:
        ConfigError: If a key is unknown or a value of another type.
    """
    parts = {"size": TransformerSize, "draw": Draw, "weights": Weights}
    return checked(Recipe, {key: checked(parts[key], part) if key in parts else part for key, part in plain.items()})


def checked(kind: type[Part], plain: Mapping[str, Any]) -> Part:
    """A dataclass of plain values.

    Raises:
        ConfigError: If a key is unknown or a value of another type.
    """
    known = [f.name for f in fields(cast(Any, kind))]
    for key in plain:
        if key not in known:
            raise ConfigError(f"{kind.__name__.lower()}: {key!r} is not known; there are {', '.join(known)}.")
    try:
        made: Part = TypeAdapter(kind).validate_python(dict(plain))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{kind.__name__.lower()}: {key} {first['msg'].lower()}; correct it.") from error
    return made
