"""Bayesian optimisation: learn the score over the space, try next what is worth most, inside the envelope.

The first trials spread over the space (scrambled Sobol). Then a Gaussian process is fitted to
all trials and an acquisition function chooses among points that the envelope allows: all
of them where the space can be listed, else many drawn ones and the neighbours of the best,
refined along the continuous axes by gradient. What is recommended is the tried setting
with the best posterior mean, which borrows from its neighbours what single noisy trials
lack (Bonizzato et al. 2023, Cell Reports Medicine 4:101008).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.history import History
from stimopt.policy import Policy
from stimopt.safety import Envelope
from stimopt.space import StimulationSpace
from stimopt.stimulus import Stimulus

from .acquisition import Acquisition, posterior_draw, upper_bound
from .candidates import (
    allowed,
    allowed_points,
    located,
    neighbours,
    now_s,
    reachable_points,
    sobol_points,
    uniform_points,
    visits,
)
from .surrogate import Surrogate, fit_surrogate

_LISTABLE = 2048  # points of a discrete space that are all looked at
_DRAWN, _NEAR = 384, 128  # candidates elsewhere: even draws, and neighbours of the best tried
_REFINED, _REFINE_STEPS, _REFINE_RATE = 4, 10, 0.03  # points, Adam steps, share of the axis
_BASELINE = 24  # tried points that may be the best, by upper bound; more cost time and change nothing
_DRAW_LIMIT = 512  # joint draws cost the cube of the number of points


@dataclass(frozen=True)
class _Known:
    """What the trials say: the surrogate, the points it learnt from, and where on the trend the next trial lies."""

    surrogate: Surrogate
    tried: Tensor  # [trial, dimension]
    kept: Tensor  # [trial] index into the history
    trend: Tensor  # [trend]

    def bound(self, points: Tensor, kappa: float) -> Tensor:
        """Posterior mean plus kappa standard deviations at the next trial."""
        with torch.no_grad():
            return upper_bound(self.surrogate, self.trend, kappa)(points)


@dataclass(frozen=True)
class BayesianPolicy(Policy):
    """Gaussian process with noisy expected improvement over any mixed space.

    Attributes:
        space: What may vary.
        envelope: What is safe; every candidate is checked against it.
        seed: Names the Sobol sequence of the first trials.
        startup: Trials before the model chooses.
        acquisition: "log_nei" (log noisy expected improvement), "ucb" (upper bound) or "thompson" (one posterior draw).
        samples: Posterior draws of "log_nei".
        kappa: Standard deviations of "ucb".
        drift: "linear" adds a straight trend over session time, so that fatigue is not taken for an effect.
        recommend_among: "tried" settings, or all of the "space" (its Sobol points where it cannot be listed).

    Raises:
        ConfigError: If startup or samples are below 1 or kappa is negative.
    """

    space: StimulationSpace
    envelope: Envelope
    seed: int = 0
    startup: int = 6
    acquisition: Literal["log_nei", "ucb", "thompson"] = "log_nei"
    samples: int = 64
    kappa: float = 2.0
    drift: Literal["none", "linear"] = "none"
    recommend_among: Literal["tried", "space"] = "tried"

    def __post_init__(self) -> None:
        if self.startup < 1 or self.samples < 1 or not self.kappa >= 0:
            raise ConfigError(
                f"startup {self.startup} and samples {self.samples} must be 1 or more, kappa {self.kappa} 0 or more."
            )

    def propose(self, history: History, generator: torch.Generator) -> Stimulus:
        """See Policy.

        Raises:
            EnvelopeError: If the envelope allows nothing that was found.
            ShapeError: If a score of the history is not finite.
        """
        tried, kept = located(self.space, history)
        if len(tried) < self.startup:
            return self.space.stimulus(self._spread_out(history))
        known = self._known(tried, kept, history)
        points = self._candidates(known, history, generator)
        acquisition = self._acquisition(known, generator)
        with torch.no_grad():
            worth = acquisition(points)
        if self._listed is not None or self.acquisition == "thompson" or not bool(self._free.any()):
            return self.space.stimulus(points[int(worth.argmax())])
        best = worth.topk(min(_REFINED, len(worth)))
        return self.space.stimulus(self._refined(points[best.indices], best.values, acquisition, history))

    def recommend(self, history: History, generator: torch.Generator) -> Stimulus:
        """The setting with the best posterior mean at the time of the next window.

        Raises:
            RunError: If nothing has been tried.
            ShapeError: If a score of the history is not finite.
        """
        tried, kept = located(self.space, history)
        if len(tried) == 0:
            return history.best_tried()
        known, points = self._known(tried, kept, history), tried
        if self.recommend_among == "space":
            everywhere = self._listed if self._listed is not None else sobol_points(self.space, _LISTABLE, self.seed)
            points = torch.cat([tried, allowed_points(self.space, self.envelope, everywhere, history)])
        best = int(known.bound(points, 0.0).argmax())
        return history.stimuli[int(kept[best])] if best < len(kept) else self.space.stimulus(points[best])

    def beliefs(self, history: History) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        """Mean and standard deviation of the score at cube points `[*batch, dimension]`, at the time of the next
        window; None before anything of the space has been tried. For pictures and reports.
        """
        tried, kept = located(self.space, history)
        if len(tried) == 0:
            return None
        known = self._known(tried, kept, history)

        def posterior(points: Tensor) -> tuple[Tensor, Tensor]:
            flat = points.reshape(-1, points.shape[-1])
            with torch.no_grad():
                mean, sd = known.surrogate.posterior(flat, known.trend.expand(len(flat), -1))
            return mean.reshape(points.shape[:-1]), sd.reshape(points.shape[:-1])

        return posterior

    @cached_property
    def _listed(self) -> Float[Tensor, "point dimension"] | None:
        """Every point of a space that is discrete and small enough, else None."""
        if not self.space.discrete or math.prod(len(p.values()) for p in self.space.parameters) > _LISTABLE:
            return None
        return self.space.points()

    @cached_property
    def _free(self) -> Tensor:
        """Which axes of the cube have a gradient, boolean `[dimension]`."""
        return torch.tensor([not p.discrete for p in self.space.parameters for _ in range(p.width)])

    def _spread_out(self, history: History) -> Float[Tensor, " dimension"]:
        """The first Sobol point that is allowed and new; where none is new, the first allowed."""
        points = sobol_points(self.space, max(256, 4 * self.startup), self.seed)
        found = reachable_points(self.space, self.envelope, points, history)
        return found[int(visits(self.space, found, history).argmin())]

    def _known(self, tried: Tensor, kept: Tensor, history: History) -> _Known:
        seen_s, now = history.times_s[kept].double(), torch.tensor([now_s(history)], dtype=torch.float64)
        trend, then = self._trend(seen_s, seen_s), self._trend(now, seen_s)[0]
        with torch.no_grad():
            return _Known(fit_surrogate(self.space, tried, trend, history.scores[kept].double()), tried, kept, then)

    def _trend(self, times_s: Tensor, seen_s: Tensor) -> Float[Tensor, "time trend"]:
        """Times in standard deviations about the mean time of the trials; 0 wide without drift."""
        if self.drift == "none":
            return times_s.new_zeros(len(times_s), 0)
        spread = seen_s.std(correction=0)
        return ((times_s - seen_s.mean()) / torch.where(spread > 0, spread, 1.0)).unsqueeze(-1)

    def _acquisition(self, known: _Known, generator: torch.Generator) -> Acquisition:
        if self.acquisition == "ucb":
            return upper_bound(known.surrogate, known.trend, self.kappa)
        if self.acquisition == "thompson":
            return posterior_draw(known.surrogate, known.trend, generator)
        from .improvement import log_noisy_improvement  # loads BoTorch

        settings = torch.unique(known.tried, dim=0)
        promising = settings[known.bound(settings, 2.0).topk(min(_BASELINE, len(settings))).indices]
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        return log_noisy_improvement(known.surrogate, promising, known.trend, self.samples, seed)

    def _candidates(
        self, known: _Known, history: History, generator: torch.Generator
    ) -> Float[Tensor, "point dimension"]:
        """Allowed points to choose among.

        Raises:
            EnvelopeError: If there are none.
        """
        points = self._listed
        if points is None:
            order = known.bound(known.tried, 0.0).argsort(descending=True, stable=True)
            best = torch.unique_consecutive(known.tried[order], dim=0)[:_REFINED]
            centres = torch.cat([best, known.tried[-1:]])  # the last one too: a ramp limit allows its neighbours
            drawn = uniform_points(self.space, _DRAWN, generator)
            points = torch.cat([centres, drawn, neighbours(self.space, centres, _NEAR, generator)])
        found = reachable_points(self.space, self.envelope, points, history)
        if self.acquisition == "thompson" and len(found) > _DRAW_LIMIT:
            found = found[known.bound(found, 3.0).topk(_DRAW_LIMIT).indices]
        return found

    def _refined(
        self, points: Tensor, worth: Tensor, acquisition: Acquisition, history: History
    ) -> Float[Tensor, " dimension"]:
        """The best allowed point seen while climbing from `points` along the continuous axes."""
        seen, values = [points], [worth]
        climbing = points.clone().requires_grad_()
        optimiser = torch.optim.Adam([climbing], lr=_REFINE_RATE, maximize=True)
        for _ in range(_REFINE_STEPS):
            value = acquisition(climbing)
            (slope,) = torch.autograd.grad(value.sum(), climbing)
            seen.append(climbing.detach().clone())
            values.append(value.detach())
            climbing.grad = slope * self._free
            optimiser.step()
            with torch.no_grad():
                climbing.clamp_(0.0, 1.0)
        path, heights = self.space.snap(torch.cat(seen)), torch.cat(values)
        safe = allowed(self.space, self.envelope, path, history)
        return path[int(torch.where(safe, heights, -torch.inf).argmax())]
