"""Trials of a randomised log: what was delivered, how it scored, how likely that choice was.

A log holds an arm (one of a list of stimuli) per trial, its score, and the propensity, the
probability with which that arm was chosen then. Without propensities nobody can say what
another policy would have scored, so a log without them is refused.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import DataError
from .statistics import Interval, bootstrap_interval
from .tensors import require_finite


@dataclass(frozen=True)
class LoggedTrials:
    """Trials of a randomised log, in the order they were delivered.

    Attributes:
        arms: Which stimulus of a list, 0 .. count - 1.
        scores: Higher is better.
        propensities: Probability with which the log chose that arm in that trial.
        count: How many arms there are, tried or not.
        units: Patient or session of each trial; intervals resample these. Each trial its own where None.
        contexts: A discrete state known before the trial, 0 where None. Scores are tabulated within it.
        blocks: What was randomised at once, such as a run of trials with one setting; each trial where None.

    Raises:
        DataError: If lengths differ, an arm is out of range, a score is not finite, a propensity is not in (0, 1], or
            a block changes arm.
    """

    arms: Int[Tensor, " trial"]
    scores: Float[Tensor, " trial"]
    propensities: Float[Tensor, " trial"]
    count: int
    units: Int[Tensor, " trial"] | None = None
    contexts: Int[Tensor, " trial"] | None = None
    blocks: Int[Tensor, " trial"] | None = None

    def __post_init__(self) -> None:
        own = torch.arange(len(self.arms))
        object.__setattr__(self, "scores", self.scores.double())
        object.__setattr__(self, "propensities", self.propensities.double())
        object.__setattr__(self, "units", own if self.units is None else _numbered(self.units))
        object.__setattr__(self, "blocks", own if self.blocks is None else _numbered(self.blocks))
        object.__setattr__(self, "contexts", torch.zeros_like(own) if self.contexts is None else self.contexts)
        _check_log(self)

    def __len__(self) -> int:
        return len(self.arms)


def marginal_propensities(arms: Int[Tensor, " trial"], count: int) -> Float[Tensor, " trial"]:
    """Propensities estimated as each arm's share of the log.

    Right only where the log drew arms independently of everything; say "estimated" wherever they are used.
    """
    return (torch.bincount(arms, minlength=count).double() / len(arms))[arms]


def drift_by_quarter(
    log: LoggedTrials, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[tuple[float, ...], Interval]:
    """Mean score in each quarter of every unit's trials, and the mean change from first to last, over units.

    Units with fewer than four trials are left out; where none is left, there are no quarters and the change is NaN.
    """
    assert log.units is not None  # set in __post_init__
    in_units = log.scores[torch.argsort(log.units, stable=True)]
    rows = in_units.split(torch.bincount(log.units).tolist())
    long = [row for row in rows if len(row) >= 4]
    if not long:
        return (), Interval(math.nan, math.nan, math.nan, level)
    pieces = [torch.tensor_split(row, 4) for row in long]
    quarters = tuple(float(torch.cat([piece[i] for piece in pieces]).mean()) for i in range(4))
    changes = [float(piece[3].mean() - piece[0].mean()) for piece in pieces]
    return quarters, bootstrap_interval(changes, "mean", level, draws, seed)


def _check_log(log: LoggedTrials) -> None:
    columns = (log.arms, log.scores, log.propensities, log.units, log.contexts, log.blocks)
    lengths = {len(column) for column in columns if column is not None}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(
            f"a log needs as many of everything as trials, and at least one; got lengths {sorted(lengths)}."
        )
    require_finite("scores", log.scores)
    assert log.contexts is not None  # set in __post_init__
    if int(log.arms.min()) < 0 or int(log.arms.max()) >= log.count or int(log.contexts.min()) < 0:
        raise DataError(f"arms must be 0 to {log.count - 1} and contexts 0 or more; number them from 0.")
    if not bool(((log.propensities > 0) & (log.propensities <= 1)).all()):
        raise DataError(
            "propensities must lie in (0, 1]. Where the log did not keep them, no off-policy estimate is possible; "
            "`marginal_propensities` serves only where arms were drawn independently."
        )
    assert log.blocks is not None  # set in __post_init__
    first = torch.zeros(int(log.blocks.max()) + 1, dtype=log.arms.dtype).scatter(0, log.blocks, log.arms)
    if not torch.equal(first[log.blocks], log.arms):
        raise DataError("a block holds trials of different arms; a block is what was randomised at once.")


def _numbered(names: Int[Tensor, " trial"]) -> Int[Tensor, " trial"]:
    numbers: Tensor = torch.unique(names, return_inverse=True)[1]
    return numbers
