"""Gradient ascent through a forecaster: climb what the model expects, correct it by what came back.

    expected score(point) = forecaster's score + level + slope . forecaster's score + f(point)

The forecaster stays as it was fitted. A Gaussian process learns the rest from the trials: where
the model is right it keeps its word, where it is wrong the slope takes it back and f replaces it.
Many starts climb the upper bound of that sum along the continuous axes, each held to its own
values on the listed axes and projected into the envelope; the best allowed point seen is proposed.

Gradients pass where forecaster, objective and space pass them; elsewhere only the starts compete.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError, ShapeError
from stimopt.forecaster import Context, Forecaster
from stimopt.history import History
from stimopt.objective import Objective
from stimopt.policy import Policy
from stimopt.safety import Envelope
from stimopt.space import StimulationSpace
from stimopt.stimulus import Stimulus
from stimopt.tensors import generator as named_generator

from .candidates import (
    allowed,
    deliverable,
    located,
    neighbours,
    projected,
    reachable_points,
    sobol_points,
    uniform_points,
)
from .surrogate import fit_surrogate

_TRUST_SD = 0.5  # prior doubt about the forecaster's slope: useless (-1) is two of these away
_FORECAST_WEIGHT = 2.0  # trials that the forecasts' own spread counts for, as the unit of the residuals
_SURVEY = 8  # points looked at per start that climbs
_LISTABLE = 256  # points of a discrete space that are all forecast
_BLOCK = 32  # stimuli forecast at once: samples x channels x time of each are held in memory

Bound = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GradientPolicy(Policy):
    """Multi-start projected gradient ascent on a forecaster's expected score, corrected by the trials.

    Attributes:
        space: What may vary.
        envelope: What is safe; starts and climbing points are projected into it.
        forecaster: Says what would come back; stays as it is.
        objective: Judges it.
        context: The signal before the stimulus, batch shape ().
        seed: Names the starts and the forecaster's noise, which all points share.
        starts: Points that climb.
        steps: Adam steps of each.
        rate: Length of a step, as a share of an axis.
        samples: Windows drawn from each forecast.
        kappa: Standard deviations of doubt added to the expected score, to explore.

    Raises:
        ConfigError: If starts or samples are below 1, or steps, rate or kappa are negative.
        ShapeError: If the context has a batch.
    """

    space: StimulationSpace
    envelope: Envelope
    forecaster: Forecaster
    objective: Objective
    context: Context
    seed: int = 0
    starts: int = 8
    steps: int = 20
    rate: float = 0.05
    samples: int = 8
    kappa: float = 1.0

    def __post_init__(self) -> None:
        if self.starts < 1 or self.samples < 1 or self.steps < 0 or not self.rate >= 0 or not self.kappa >= 0:
            raise ConfigError(
                f"starts {self.starts} and samples {self.samples} must be 1 or more; "
                f"steps {self.steps}, rate {self.rate} and kappa {self.kappa} 0 or more."
            )
        if self.context.signal_uv.ndim != 2:
            raise ShapeError(
                f"context must be one window [channel, time], got {list(self.context.signal_uv.shape)}; "
                "pick one, context[i]."
            )

    def propose(self, history: History, generator: torch.Generator) -> Stimulus:
        """See Policy.

        Raises:
            EnvelopeError: If the envelope allows nothing that was found.
            ShapeError: If a score of the history is not finite.
        """
        tried, kept = located(self.space, history)
        bound = self._upper_bound(tried, history.scores[kept].double(), self.kappa)
        points = self._survey(tried, history, generator)
        with torch.no_grad():
            heights = bound(points)
        best = heights.topk(min(self.starts, len(points)))
        path, climbed = self._climb(points[best.indices], bound, history)
        return self.space.stimulus(torch.cat([points, path])[int(torch.cat([heights, climbed]).argmax())])

    def recommend(self, history: History, generator: torch.Generator) -> Stimulus:
        """The tried setting with the best expected score.

        Raises:
            RunError: If nothing has been tried.
            ShapeError: If a score of the history is not finite.
        """
        tried, kept = located(self.space, history)
        if len(tried) == 0:
            return history.best_tried()
        with torch.no_grad():
            expected = self._upper_bound(tried, history.scores[kept].double(), 0.0)(tried)
        return history.stimuli[int(kept[int(expected.argmax())])]

    def forecast_score(self, points: Float[Tensor, "point dimension"]) -> Float[Tensor, " point"]:
        """The forecaster's expected score at each point, over the same drawn noise for all (float64)."""
        return torch.cat([self._forecast_block(block) for block in points.split(_BLOCK)])

    def _forecast_block(self, points: Tensor) -> Tensor:
        stimuli = self.space.stimulus(points.to(self.context.signal_uv))
        forecast = self.forecaster.forecast(self.context.expand(len(points)), stimuli)
        responses = forecast.responses(self.samples, named_generator(self.seed, "forecast"))
        return self.objective(responses, stimuli).mean(0).to(points)

    def _upper_bound(self, tried: Tensor, scores: Tensor, kappa: float) -> Bound:
        """Forecaster's score, corrected by the trials, plus kappa standard deviations of the correction."""
        if len(tried) == 0:
            return self.forecast_score
        with torch.no_grad():
            told = self.forecast_score(tried)
            zero, unit = self._standard(tried, scores - told)
            correction = fit_surrogate(self.space, tried, self._trust(told, unit), scores - told, (zero, unit))

        def bound(points: Tensor) -> Tensor:
            forecast = self.forecast_score(points)
            mean, sd = correction.posterior(points, self._trust(forecast, unit))
            return forecast + mean + kappa * sd

        return bound

    def _standard(self, tried: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
        """Residual that counts as zero, and difference that counts as one.

        After one setting a constant bias cannot be told from an error there, so the residual stands; the more
        settings, the more of their mean is bias. The forecasts' own spread is the first measure of differences.
        """
        settings, group = torch.unique(tried, dim=0, return_inverse=True)
        count = len(settings)
        means = residuals.new_zeros(count).index_add(0, group, residuals) / torch.bincount(group)
        zero = means.mean() * (1 - 1 / count)
        scatter = (means - zero).square().sum() + _FORECAST_WEIGHT * self._forecasts.var(correction=0)
        unit = (scatter / (_FORECAST_WEIGHT + count)).sqrt()
        return zero, torch.where(unit > 0, unit, 1.0)

    def _trust(self, forecast: Tensor, unit: Tensor) -> Float[Tensor, "point trend"]:
        """The forecasts as a trend of the residuals: a slope of -1 in raw scores takes their word away."""
        return (_TRUST_SD * (forecast - self._forecasts.mean()) / unit).unsqueeze(-1)

    @cached_property
    def _forecasts(self) -> Float[Tensor, " point"]:
        """The forecaster's scores over the space: their centre and spread."""
        with torch.no_grad():
            points = sobol_points(self.space, 16 * _BLOCK, self.seed)  # more than needed: some may be undeliverable
            return self.forecast_score(points[deliverable(self.space, points)][: 2 * _BLOCK])

    def _survey(self, tried: Tensor, history: History, generator: torch.Generator) -> Float[Tensor, "point dimension"]:
        """Allowed points to start from: spread out, or the whole of a short list, and around the last trials.

        Raises:
            EnvelopeError: If there are none.
        """
        parameters = self.space.parameters
        if self.space.discrete and math.prod(len(p.values()) for p in parameters) <= _LISTABLE:
            return reachable_points(self.space, self.envelope, self.space.points(), history)
        points = uniform_points(self.space, _SURVEY * self.starts, generator)
        if len(tried):
            near = neighbours(self.space, tried[-1:], _SURVEY * self.starts, generator)
            points = torch.cat([points, torch.unique(tried, dim=0), near])
        return reachable_points(self.space, self.envelope, points, history)

    def _climb(self, points: Tensor, bound: Bound, history: History) -> tuple[Tensor, Tensor]:
        """Allowed points visited while climbing the continuous axes from `points`, and their heights."""
        free = torch.tensor([not p.discrete for p in self.space.parameters for _ in range(p.width)])
        climbing, seen, heights = points.clone().requires_grad_(), [points], []
        optimiser = torch.optim.Adam([climbing], lr=self.rate, maximize=True)
        for _ in range(self.steps if bool(free.any()) else 0):
            height = bound(climbing)
            heights.append(height.detach())
            if not height.requires_grad:
                break
            (slope,) = torch.autograd.grad(height.sum(), climbing, materialize_grads=True, allow_unused=True)
            climbing.grad = torch.nan_to_num(slope) * free
            optimiser.step()
            with torch.no_grad():
                climbing.copy_(self._held(climbing.clamp(0.0, 1.0), seen[-1], history))
            seen.append(climbing.detach().clone())
        with torch.no_grad():
            heights.append(bound(seen[-1]))
        return torch.cat(seen), torch.cat(heights[: len(seen)])

    def _held(self, moved: Tensor, before: Tensor, history: History) -> Tensor:
        """Moved points where allowed, else their projections where those are, else the points before."""
        safe = allowed(self.space, self.envelope, moved, history)
        if bool(safe.all()):
            return moved
        back = torch.where(safe[:, None], moved, projected(self.space, self.envelope, moved, history))
        safe = allowed(self.space, self.envelope, back, history)
        return torch.where(safe[:, None], back, before)
