"""Past trials of a dose table and what is made of them: a forecast of one number for each setting.

A dose model is a function of `DoseTrials` that returns a `DoseCurve`; names on the command line are
entry points of `stimopt.dose_models`.

Settings  [trial, parameter]  what was set; one column is the dose, the others the condition
Outcome   [trial]             one number a trial, finite
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .space import StimulationSpace


@dataclass(frozen=True)
class DoseForecast:
    """A Gaussian for the outcome of each trial, its standard deviation that of a single trial."""

    mean: Float[Tensor, " trial"]
    scale: Float[Tensor, " trial"]


@dataclass(frozen=True)
class DoseTrials:
    """Trials that a dose model may learn from.

    Attributes:
        space: In which all settings lie, those still to be forecast as well.
        settings: What was set.
        outcome: What came back.
        dose: Which column of `settings` is the dose.
    """

    space: StimulationSpace
    settings: Float[Tensor, "trial parameter"]
    outcome: Float[Tensor, " trial"]
    dose: int = 0

    def __len__(self) -> int:
        return len(self.outcome)

    def conditions_of(self, settings: Float[Tensor, "row parameter"]) -> Float[Tensor, "row condition"]:
        """The parameters beside the dose; a column of zeros where there is none."""
        others = [column for column in range(settings.shape[-1]) if column != self.dose]
        return settings[:, others] if others else torch.zeros_like(settings[:, :1])


DoseCurve = Callable[[Float[Tensor, "trial parameter"]], DoseForecast]
FitDose = Callable[[DoseTrials], DoseCurve]


def setting_means(
    settings: Float[Tensor, "trial parameter"], outcome: Float[Tensor, " trial"]
) -> tuple[
    Float[Tensor, "setting parameter"], Float[Tensor, " setting"], Int[Tensor, " setting"], Int[Tensor, " trial"]
]:
    """Distinct settings in ascending order, the mean outcome and number of trials of each, and each trial's setting."""
    levels, group, counts = torch.unique(settings, dim=0, return_inverse=True, return_counts=True)
    sums = outcome.new_zeros(len(levels)).index_add(0, group, outcome)
    return levels, sums / counts, counts, group
