"""How far the foundation model is bent to a patient, decided by trials of that patient which no bending saw.

Levels, cheapest first; "residual", "low-rank" and "full" build on "context":

    rest        the patient's scales and places alone
    context     past trials are read, the weights as they are shipped (frozen); from 4 trials on, noise is as wide as
                each of them asks for when the others are read
    ongoing     and what happens without a stimulus is also told by a linear forecast of the patient's own
    residual    the context, and a closed-form correction of what they leave over
    blended     what "ongoing" is, and a linear model of the patient's beside the network, each weighed by trials at
                other sites
    sources     and circuits of sources in the patient's tissue beside these, by gradient steps (a minute or two)
    low-rank    or small changes of some weights, and an embedding of the patient, by gradient steps
    full        or changes of every weight

Trials are cut into parts; every level forecasts each part from the others. The frozen model with
its context stays unless the best level beats it by more than the standard error of their
difference. Gradient steps on 20 trials can hurt, so they are taken only when asked for, start
from the shipped weights, and stop where trials held out of them are forecast best; that may
be before the first step.

Reference: Breiman et al., Classification and Regression Trees (1984), section 3.4.3, for the rule of one standard
error; there the cheapest model stays, here the frozen one, since what is left out of it costs nothing either.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError, DataError
from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.montage import Montage
from stimopt.skill import crps
from stimopt.tensors import generator

from .folds import folds_of, others_of
from .ieeg_blended import blendable, fit_ieeg_blended
from .ieeg_foundation import FoundationForecaster, FoundationModel, load_foundation
from .ieeg_judging import patient_temper
from .ieeg_losses import forecast_loss, joint_loss
from .ieeg_ongoing import LinearOngoing, fit_ongoing
from .ieeg_parts import fit_ieeg_ongoing
from .ieeg_residual import MOST_PAST, answered, fit_ieeg_residual
from .ieeg_sourced import STEPS as SOURCE_STEPS
from .ieeg_sourced import fit_ieeg_sourced, sourceable
from .ieeg_subject import Shots
from .low_rank import changed, full_changes, low_rank_changes

LEVELS = ("rest", "context", "ongoing", "residual", "low-rank", "full")
CLOSED_FORM = LEVELS[:4]
"""Levels that take no gradient step."""
_BLENDS = ("blended", "sources")
_FEWEST = {"rest": 0, "context": 0, "ongoing": 0, "residual": 4, "low-rank": 4, "full": 4}  # trials to learn from
_FEWEST_TEMPERED = 4
_RATES = {"low-rank": 1e-3, "full": 3e-5}  # of Adam; a fiftieth of pretraining's for all weights at once
_STEPS = 60  # of gradient descent, at most
_JOINT = 0.2  # as in pretraining
_PATIENCE = 4  # looks at held-out trials without a better one


@dataclass(frozen=True)
class LevelScore:
    """How a level did on held-out trials.

    Attributes:
        crps: Continuous ranked probability score in units of each channel's spread at rest; mean over trials.
        behind: How much larger that is than the best level's.
        error: Standard error of `behind`, over trials.
    """

    crps: float
    behind: float
    error: float


@dataclass(frozen=True)
class Adapted:
    """A patient's forecaster, how it was made, and what else was tried.

    Attributes:
        forecaster: Fitted on all trials.
        level: Which of `LEVELS` it is.
        scores: Of each level that was tried; none where there were too few trials to hold any out. The chosen level's
            is optimistic by having been chosen: judge the forecaster on further trials.
        trials: How many there were.
    """

    forecaster: Forecaster
    level: str
    scores: Mapping[str, LevelScore]
    trials: int

    def __str__(self) -> str:
        if not self.scores:
            return f"{self.level}: {self.trials} trials are too few to hold any out, nothing was compared"
        rows = [
            f"{'*' if name == self.level else ' '} {name:9} {score.crps:8.4f} {score.behind:+9.4f} {score.error:8.4f}"
            for name, score in self.scores.items()
        ]
        head = f"  {'level':9} {'CRPS':>8} {'behind':>9} {'error':>8}   held-out trials of {self.trials}, * chosen"
        return "\n".join([head, *rows])


def adapt(
    model: FoundationModel, montage: Montage, rest: Context, trials: Trials, *,
    levels: Sequence[str] = CLOSED_FORM, seed: int = 0, folds: int = 4, steps: int = _STEPS, rank: int = 4,
) -> Adapted:  # fmt: skip
    """The level of adaptation that held-out trials of the patient ask for, fitted on all of them.

    Args:
        model: The shipped weights.
        montage: The patient's.
        rest: Windows without stimulation.
        trials: Of the patient, in time order.
        levels: To choose among. "context", which is the frozen model, is always tried and scored beside them.
        seed: Of parts, first changes and order of steps.
        folds: In how many parts trials are cut to score the levels.
        steps: Gradient steps of "low-rank" and "full", at most.
        rank: Of the changes of "low-rank".

    Raises:
        ConfigError: If a level is unknown, or there are fewer than 2 folds.
        DataError: If trials are on another montage or rate than the rest.
    """
    unknown = [level for level in levels if level not in LEVELS]
    if unknown or folds < 2:
        raise ConfigError(f"levels {unknown} are not known and folds is {folds}; levels are {', '.join(LEVELS)}, and 2 "
                          "folds or more score them.")  # fmt: skip
    response = trials.response
    whole = model.for_patient(montage, rest, trials, samples=response.signal_uv.shape[-1], start_s=response.start_s)
    ongoing = fit_ongoing(whole, rest, seed=seed) if "ongoing" in levels else None
    tried = [level for level in LEVELS if level in {"context", *levels} and (level != "ongoing" or ongoing is not None)]
    if len(trials) < max(4, folds):
        return Adapted(at_level(whole, "context"), "context", {}, len(trials))
    tried = [level for level in tried if len(trials) - math.ceil(len(trials) / folds) >= _FEWEST[level]]
    each = {level: torch.empty(len(trials), dtype=torch.float64) for level in tried}
    for fold, held in enumerate(folds_of(len(trials), folds, seed, "parts")):
        some = replace(whole, past=whole.past.pick(others_of(len(trials), held)))
        for level in tried:
            forecaster = at_level(some, level, seed=seed + fold, steps=steps, rank=rank, ongoing=ongoing)
            each[level][held] = _scores(forecaster, whole, trials[held])
    level, scores = _chosen(each)
    chosen = at_level(whole, level, seed=seed, steps=steps, rank=rank, ongoing=ongoing)
    return Adapted(chosen, level, scores, len(trials))


def at_level(
    whole: FoundationForecaster, level: str, *, seed: int = 0, steps: int = _STEPS, rank: int = 4,
    ongoing: LinearOngoing | None = None,
) -> Forecaster:  # fmt: skip
    """One level of adaptation to a forecaster's own past trials, without asking whether it helps.

    Args:
        whole: The shipped weights with the patient's trials in context, as many as there are.
        level: One of `LEVELS`.
        seed: Of parts, first changes and order of steps.
        steps: Gradient steps, at most.
        rank: Of low-rank changes.
        ongoing: Of the patient, for the level of that name; without one it is "context".

    Raises:
        ConfigError: If the level is unknown.
        DataError: If it needs more trials than there are.
    """
    if level not in LEVELS:
        raise ConfigError(f"level {level!r} is not known; levels are {', '.join(LEVELS)}.")
    count = len(whole.past.numbers)
    if count < _FEWEST[level]:
        raise DataError(f"{level} adaptation needs at least {_FEWEST[level]} trials, got {count}; use 'context'.")
    if level == "ongoing" and ongoing is not None:
        return fit_ieeg_ongoing(whole, ongoing, seed=seed)
    if level == "residual":
        return fit_ieeg_residual(whole, seed=seed)
    if level in _RATES:
        whole = _tuned(whole, level, seed, steps, rank)
    kept = 0 if level == "rest" else min(count, MOST_PAST)
    bent = replace(whole, past=whole.past.pick(slice(count - kept, None)))
    return replace(bent, temper=own_temper(bent, seed)) if kept >= _FEWEST_TEMPERED else bent


@torch.no_grad()
def own_temper(forecaster: FoundationForecaster, seed: int = 0) -> float:
    """Factor on the noise such that 90 % intervals hold 90 % of the patient's own trials, each forecast from others.

    Args:
        forecaster: Whose past trials decide.
        seed: Of the parts that are held out in turn.
    """
    past, count, ratios = forecaster.past, len(forecaster.past.numbers), []
    for held in folds_of(count, 4, seed, "parts"):
        answer = answered(forecaster, forecaster.model.weights, past.pick(others_of(count, held)), past.pick(held))
        mean, scale, factors = (part[0] for part in forecaster.told(answer))
        lead, wide = forecaster.window.lead, (scale.square() + factors.square().sum(1)).sqrt()
        ratio, good = (past.response[held][..., lead:] - mean).abs() / wide, past.good[held][..., lead:]
        ratios += [row[here] for row, here in zip(ratio, good, strict=True) if bool(here.any())]
    return forecaster.temper * patient_temper(ratios, count)


def fit_ieeg_adapted(
    trials: Trials, *, seed: int = 0, rest: Context | None = None, checkpoint: str = "ieeg-tiny",
    adapt: str = "blended", steps: int | None = None,
) -> Forecaster:  # fmt: skip
    """The shipped foundation model, bent to the patient as far as held-out trials ask for.

    Args:
        trials: Past trials of the patient.
        seed: Of parts, first changes and order of steps.
        rest: Windows without stimulation; the trials' own contexts by default.
        checkpoint: Name or folder.
        adapt: "blended", which with fewer than eight trials, or missing samples, is "ongoing"; "sources", which is
            "blended" where no trial, or of eight or more fewer than eight, is of a current at a known place; a level
            of `LEVELS`; or "auto", which chooses among those in closed form.
        steps: Gradient steps: of "sources", by default 200; of "low-rank" and "full", at most and by default 60.

    Raises:
        ConfigError: If `adapt` is unknown, or there is no step.
        DataError: If the windows are longer than the model's horizon, or there are too few trials for the level.
    """
    if adapt not in ("auto", *_BLENDS, *LEVELS):
        raise ConfigError(f"adapt is {adapt!r}; give auto, {', '.join((*_BLENDS, *LEVELS[:-1]))} or {LEVELS[-1]}.")
    if steps is not None and steps < 1:
        raise ConfigError(f"steps is {steps}; give 1 or more, or a level that takes none, such as blended.")
    model, response = load_foundation(checkpoint), trials.response
    montage, rest = response.montage, rest or trials.context
    if adapt == "auto":
        return _adapt(model, montage, rest, trials, seed=seed).forecaster
    samples = response.signal_uv.shape[-1]
    whole = model.for_patient(montage, rest, trials, samples=samples, start_s=response.start_s)
    ongoing = fit_ongoing(whole, rest, seed=seed) if adapt in ("ongoing", *_BLENDS) else None
    if adapt == "sources" and sourceable(trials, ongoing):
        return fit_ieeg_sourced(whole, trials, seed=seed, steps=steps or SOURCE_STEPS, ongoing=ongoing)
    if adapt not in _BLENDS or not blendable(trials):
        level = "ongoing" if adapt in _BLENDS else adapt
        return at_level(whole, level, seed=seed, steps=steps or _STEPS, ongoing=ongoing)
    return fit_ieeg_blended(whole, trials, seed=seed, ongoing=ongoing)


_adapt = adapt  # an option of the function above has its name


@torch.no_grad()
def _scores(forecaster: Forecaster, plain: FoundationForecaster, trials: Trials) -> Float[Tensor, " trial"]:
    """Of each trial, over its good samples, in units of spread."""
    truth = trials.response.signal_uv
    each = crps(forecaster.forecast(trials.context, trials.stimulus), truth) / plain.subject.spread_uv.unsqueeze(-1)
    return torch.where(truth.isfinite(), each, math.nan).double().flatten(1).nanmean(-1)


def _chosen(each: Mapping[str, Tensor]) -> tuple[str, dict[str, LevelScore]]:
    """The frozen context, unless the best level is ahead of it by more than the standard error of that."""
    best = min(each.values(), key=lambda score: float(score.nanmean()))
    scores = {}
    for name, score in each.items():
        apart = (score - best)[(score - best).isfinite()]
        error = float(apart.std()) / math.sqrt(max(1, len(apart)))
        scores[name] = LevelScore(float(score.nanmean()), float(apart.mean()), error)
    plain = scores["context"]
    return "context" if plain.behind <= plain.error else min(scores, key=lambda name: scores[name].crps), scores


def _tuned(whole: FoundationForecaster, level: str, seed: int, steps: int, rank: int) -> FoundationForecaster:
    """The forecaster with changed weights, as they were when trials held out of the steps were forecast best."""
    weights, past, source = whole.model.weights, whole.past, generator(seed, level)
    changes = full_changes(weights) if level == "full" else low_rank_changes(weights, rank, source)
    held, *_ = folds_of(len(past.numbers), 4, seed, "parts")
    others = others_of(len(past.numbers), held)
    parameters = {name: value.requires_grad_() for name, value in changes.items()}
    search = torch.optim.Adam(parameters.values(), lr=_RATES[level], betas=(0.9, 0.98))
    best, kept, waited = _held_out(whole, weights, past.pick(others[-MOST_PAST:]), past.pick(held)), weights, 0
    every = max(1, steps // 12)
    for step in range(1, steps + 1):
        order = others[torch.randperm(len(others), generator=source)]
        count = max(1, len(order) // 3)
        search.zero_grad()
        _loss(whole, changed(weights, parameters), past.pick(order[count:][:MOST_PAST]), past.pick(order[:count]))
        search.step()
        if step % every == 0:
            now = {name: value.detach() for name, value in changed(weights, parameters).items()}
            score = _held_out(whole, now, past.pick(others[-MOST_PAST:]), past.pick(held))
            best, kept, waited = (score, now, 0) if score < best else (best, kept, waited + 1)
            if waited == _PATIENCE:
                break
    return replace(whole, model=FoundationModel(whole.model.size, kept, whole.model.temper))


def _loss(whole: FoundationForecaster, weights: Mapping[str, Tensor], past: Shots, asked: Shots) -> None:
    """What pretraining rewards, on this patient; its slope is left on the changes."""
    with torch.enable_grad():
        answer = answered(whole, weights, past, asked)
        truth, good = asked.response.unsqueeze(0), asked.good.unsqueeze(0)
        (forecast_loss(answer, truth, good) + _JOINT * joint_loss(answer, truth, good)).backward()


@torch.no_grad()
def _held_out(whole: FoundationForecaster, weights: Mapping[str, Tensor], past: Shots, held: Shots) -> float:
    """Score of held-out windows in units of spread, smaller is better."""
    answer = answered(whole, weights, past, held)
    mean, scale, factors = (part[0] for part in whole.told(answer))
    lead, forecast = whole.window.lead, GaussianForecast(whole.window.response(mean), scale, factors)
    return float(crps(forecast, held.response[..., lead:])[held.good[..., lead:]].mean())
