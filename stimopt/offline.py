"""A policy judged on trials that another policy chose: what would its scores have been?

A log holds which arm (one of a list of stimuli) each trial delivered, the score, and the
probability with which it was chosen. Four estimators read it, and disagree where the log
is thin:

| name | estimate of the policy's mean score | trusts |
| --- | --- | --- |
| DM | its probabilities times the mean score of each arm | that context and arm explain the score |
| IPS | logged scores, weighted by how much more likely the policy is to choose them | the propensities |
| SNIPS | the same, divided by the mean weight | the propensities up to a factor |
| DR | DM, corrected by the weighted residuals | either of the two |

A policy that would choose what the log never tried is UNEVALUABLE: no number is given.
Intervals resample whole units (patients, sessions), never trials.

References: Horvitz and Thompson, JASA 47 (1952) 663-685 (IPS); Swaminathan and Joachims,
NeurIPS 28 (2015) (SNIPS); Dudik, Langford and Li, ICML 28 (2011) 1097-1104 (DR); Li, Chu,
Langford and Wang, WSDM 4 (2011) 297-306 (replay).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import DataError
from .logged import LoggedTrials, drift_by_quarter
from .statistics import Interval
from .tensors import generator, require_finite

ESTIMATORS = ("DM", "IPS", "SNIPS", "DR")
Chooser = Callable[[Sequence[int], Sequence[float], torch.Generator], int]

_FEW_TRIALS = 30.0  # fewer effective trials than this and an estimate hangs on single trials; a caution, not a limit
_COUNTS_AT_ONCE = 4_000_000  # of units in resamples, held in memory together: 32 MB
_TOLERANCE = 1e-6  # probabilities read back from files carry rounding


@dataclass(frozen=True)
class Diagnostics:
    """How far a log can carry a policy.

    Attributes:
        trials: In the log.
        units: In the log.
        coverage: Share of the policy's choices that the log has tried, in the same context; 1 or nothing is given.
        matched_share: Mean probability that the policy makes the logged choice.
        effective_trials: Kish's number, (sum w)^2 / sum w^2.
        max_weight: The largest weight.
        mean_weight: Should be 1; elsewhere the propensities are wrong.
        min_propensity: The smallest propensity in the log.
        quarters: Mean logged score in each quarter of every unit's trials.
        drift: Last quarter minus first, over units.
    """

    trials: int
    units: int
    coverage: float
    matched_share: float
    effective_trials: float
    max_weight: float
    mean_weight: float
    min_propensity: float
    quarters: tuple[float, ...]
    drift: Interval


@dataclass(frozen=True)
class OfflineEvaluation:
    """What a log says of a policy.

    Attributes:
        verdict: "UNEVALUABLE" where the policy would choose what the log never tried.
        reason: Why it is unevaluable; empty otherwise.
        estimates: Mean score of the policy by "DM", "IPS", "SNIPS" and "DR"; empty where unevaluable.
        logged: Mean score of the log itself.
        gains: The estimates minus the log's mean, resampled together; empty where unevaluable.
        diagnostics: Always there.
        cautions: What a reader must know, in sentences.
    """

    verdict: Literal["EVALUATED", "UNEVALUABLE"]
    reason: str
    estimates: Mapping[str, Interval]
    logged: Interval
    gains: Mapping[str, Interval]
    diagnostics: Diagnostics
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class ReplayedScores:
    """Trials where a learning policy chose what the log had chosen. `share` is of the log's trials."""

    scores: Float[Tensor, " match"]
    share: float


def evaluate_offline(
    log: LoggedTrials,
    target: Float[Tensor, "trial arm"] | Float[Tensor, " arm"],
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> OfflineEvaluation:
    """Mean score that a policy would have had, from a log made by another.

    Args:
        log: The trials.
        target: The policy's probability of each arm, in each trial or in all.
        level: Share of resamples inside the ranges.
        draws: How many times the units are resampled.
        seed: Fixes the draws.

    Raises:
        DataError: If the probabilities are negative, do not sum to 1 or do not fit the log.
    """
    chances = _chances(log, target)
    sums = _Sums.of(log, chances)
    diagnostics = _diagnosed(log, chances, sums, level, draws, seed)
    point, drawn = sums.read(torch.ones(1, diagnostics.units, dtype=torch.float64)), _resampled(sums, draws, seed)
    spans = {name: _interval(point[name], drawn[name], level) for name in point}
    if diagnostics.coverage < 1 - _TOLERANCE:
        return OfflineEvaluation("UNEVALUABLE", _reason(log, chances), {}, spans["log"], {}, diagnostics, ())
    gains = {n: _interval(point[n] - point["log"], drawn[n] - drawn["log"], level) for n in ESTIMATORS}
    estimates = {name: spans[name] for name in ESTIMATORS}
    cautions = _cautions(diagnostics, gains["DR"], sums.mean_weight_error())
    return OfflineEvaluation("EVALUATED", "", estimates, spans["log"], gains, diagnostics, cautions)


def replay_learner(log: LoggedTrials, choose: Chooser, seed: int = 0) -> ReplayedScores:
    """Play a learning policy down the log, keeping the blocks where it chooses what the log had chosen.

    Where propensities differ, a matching block is kept with probability (smallest propensity / its own), so that the
    kept ones are distributed as under uniform choice. The policy sees only what was kept: `choose(arms, scores,
    generator)` gets the kept trials and returns an arm. A policy that explores little matches little: report `share`.

    Args:
        log: The trials; a block is chosen once and kept or skipped whole.
        choose: The policy. Called once a block.
        seed: Fixes the policy's draws and the thinning.

    Raises:
        DataError: If the policy returns an arm that does not exist.
    """
    assert log.blocks is not None  # set in __post_init__
    arms: list[int] = []
    scores: list[float] = []
    smallest = float(log.propensities.min())
    for number, block in enumerate(dict.fromkeys(log.blocks.tolist())):
        rows = (log.blocks == block).nonzero().squeeze(-1)
        source = generator(seed, "replay", number)
        wanted, tried = choose(tuple(arms), tuple(scores), source), int(log.arms[rows[0]])
        if not 0 <= wanted < log.count:
            raise DataError(f"the policy chose arm {wanted}; this log has arms 0 to {log.count - 1}.")
        kept = torch.rand((), generator=source) <= smallest / float(log.propensities[rows[0]])
        if wanted == tried and bool(kept):
            arms += [tried] * len(rows)
            scores += log.scores[rows].tolist()
    return ReplayedScores(torch.tensor(scores, dtype=torch.float64), len(scores) / len(log))


@dataclass(frozen=True)
class _Sums:
    """Everything the estimators need, summed per unit, so that resampling units is a matrix product.

    A cell is an arm in a context. A cell that a resample lost keeps the whole log's mean score.
    """

    size: Float[Tensor, " unit"]
    score: Float[Tensor, " unit"]
    weight: Float[Tensor, " unit"]
    weighted_score: Float[Tensor, " unit"]
    tried: Float[Tensor, "unit cell"]
    cell_score: Float[Tensor, "unit cell"]
    cell_weight: Float[Tensor, "unit cell"]
    wanted: Float[Tensor, "unit cell"]

    @staticmethod
    def of(log: LoggedTrials, chances: Float[Tensor, "trial arm"]) -> "_Sums":
        units, contexts = log.units, log.contexts
        assert units is not None  # this and the next are set in __post_init__
        assert contexts is not None
        first_cell = contexts * log.count
        cells, own = int(first_cell.max()) + log.count, torch.arange(len(log))
        weight = chances[own, log.arms] / log.propensities
        tried = torch.nn.functional.one_hot(first_cell + log.arms, cells).double()
        places = first_cell.unsqueeze(-1) + torch.arange(log.count)
        wanted = torch.zeros(len(log), cells, dtype=torch.float64).scatter(1, places, chances)
        score, weights = log.scores.unsqueeze(-1), weight.unsqueeze(-1)
        columns = (torch.ones_like(score), score, weights, weights * score)
        tables = (tried, tried * score, tried * weights, wanted)
        count = int(units.max()) + 1
        summed = [torch.zeros(count, v.shape[1], dtype=v.dtype).index_add(0, units, v) for v in (*columns, *tables)]
        return _Sums(*[column.squeeze(-1) for column in summed[:4]], *summed[4:])

    def read(self, times: Float[Tensor, "draw unit"]) -> dict[str, Float[Tensor, " draw"]]:
        """Every estimator, and the log's own mean, where each unit counts `times` times."""
        trials, weights = times @ self.size, times @ self.weight
        tried, sums = times @ self.tried, times @ self.cell_score
        whole = self.cell_score.sum(0) / self.tried.sum(0).clamp_min(1.0)
        table = torch.where(tried > 0, sums / tried.clamp_min(1.0), whole)  # [draw, cell], mean score
        weighted = times @ self.weighted_score
        direct = ((times @ self.wanted) * table).sum(-1) / trials
        residual = (weighted - ((times @ self.cell_weight) * table).sum(-1)) / trials
        normalised = weighted / torch.where(weights > 0, weights, math.nan)
        own = (times @ self.score) / trials
        return {"DM": direct, "IPS": weighted / trials, "SNIPS": normalised, "DR": direct + residual, "log": own}

    def mean_weight_error(self) -> float:
        """Standard error of the mean weight, over units (the linearised variance of a ratio)."""
        units = len(self.size)
        residual = self.weight - self.weight.sum() / self.size.sum() * self.size
        spread = residual.square().sum() * units / max(units - 1, 1)
        return float(spread.sqrt() / self.size.sum()) if units > 1 else math.inf


def _resampled(sums: _Sums, draws: int, seed: int) -> dict[str, Float[Tensor, " draw"]]:
    units, source = len(sums.size), generator(seed, "units")
    portion = max(1, _COUNTS_AT_ONCE // units)
    pieces = []
    for first in range(0, draws, portion):
        picked = torch.randint(units, (min(portion, draws - first), units), generator=source)
        times = torch.zeros(picked.shape, dtype=torch.float64)
        pieces.append(sums.read(times.scatter_add_(1, picked, torch.ones_like(times))))
    drawn = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    if units < 2:  # every resample was the log itself, and the range would claim certainty
        return {name: torch.full_like(values, math.nan) for name, values in drawn.items()}
    return drawn


def _interval(point: Float[Tensor, " one"], drawn: Float[Tensor, " draw"], level: float) -> Interval:
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.nanquantile(drawn, edges).tolist()
    return Interval(float(point), low, high, level)


def _diagnosed(
    log: LoggedTrials, chances: Tensor, sums: _Sums, level: float, draws: int, seed: int
) -> Diagnostics:  # fmt: skip
    logged_chance = chances[torch.arange(len(log)), log.arms]
    weight = logged_chance / log.propensities
    known = sums.tried.sum(0) > 0
    quarters, drift = drift_by_quarter(log, level, draws, seed)
    return Diagnostics(
        trials=len(log), units=len(sums.size), coverage=float(sums.wanted[:, known].sum() / len(log)),
        matched_share=float(logged_chance.mean()),
        effective_trials=float(weight.sum().square() / weight.square().sum().clamp_min(1e-300)),
        max_weight=float(weight.max()), mean_weight=float(weight.mean()),
        min_propensity=float(log.propensities.min()), quarters=quarters, drift=drift,
    )  # fmt: skip


def _cautions(diagnostics: Diagnostics, gain: Interval, error: float) -> tuple[str, ...]:
    found = []
    if abs(diagnostics.mean_weight - 1) > max(3 * error, _TOLERANCE):
        found.append(
            f"The mean weight is {diagnostics.mean_weight:.3g}, more than three standard errors from 1: "
            "the propensities do not describe how this log was made."
        )
    if diagnostics.effective_trials < _FEW_TRIALS:
        found.append(f"The estimates rest on {diagnostics.effective_trials:.1f} effective trials.")
    if diagnostics.drift.excludes_zero and abs(diagnostics.drift.estimate) > abs(gain.estimate):
        found.append(
            f"Scores drift by {diagnostics.drift.estimate:.2g} from the first to the last quarter, more than the "
            f"policy's gain of {gain.estimate:.2g}: time, not the stimulus, may be what is seen."
        )
    if diagnostics.units < 2:
        found.append("There is one unit, so no interval can be given.")
    return tuple(found)


def _reason(log: LoggedTrials, chances: Float[Tensor, "trial arm"]) -> str:
    assert log.contexts is not None  # set in __post_init__
    missing: dict[int, float] = {}
    for context in log.contexts.unique().tolist():
        rows = log.contexts == context
        tried = torch.bincount(log.arms[rows], minlength=log.count) > 0
        for arm in ((chances[rows].sum(0) > 0) & ~tried).nonzero().flatten().tolist():
            missing[arm] = missing.get(arm, 0.0) + float(chances[rows, arm].sum()) / len(log)
    named = ", ".join(f"arm {arm} ({share:.0%})" for arm, share in sorted(missing.items())[:5])
    return (
        f"the policy would choose what this log never tried there: {named}. Keep the policy to the logged arms, or "
        "record them; no estimate is given."
    )


def _chances(log: LoggedTrials, target: Tensor) -> Float[Tensor, "trial arm"]:
    if target.shape not in ((log.count,), (len(log), log.count)):
        raise DataError(
            f"target must be [arm] = [{log.count}] or [trial, arm] = [{len(log)}, {log.count}], "
            f"got {list(target.shape)}."
        )
    chances = target.detach().double().expand(len(log), log.count)
    require_finite("target", chances)
    if bool((chances < 0).any()) or bool(((chances.sum(-1) - 1).abs() > _TOLERANCE).any()):
        raise DataError("target must hold probabilities: none negative, each trial's summing to 1. Normalise them.")
    return chances
