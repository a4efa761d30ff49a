"""A forecaster with an objective, as a BoTorch Model over the unit cube of a stimulation space.

A point of the cube becomes a stimulus, the stimulus a forecast, drawn responses are
scored, and the scores are the posterior: any acquisition function of BoTorch runs on it,
with gradients through forecast and objective. Draws use common random numbers: the same
noise for every point and every call, so differences between points are not noise.

The forecaster is not refitted by `condition_on_observations`; fit it anew instead.

Reference: Balandat et al., BoTorch, NeurIPS 33 (2020), section 3: acquisition by fixed base samples.
"""

from typing import Any

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.posteriors import Posterior
from botorch.posteriors.ensemble import EnsemblePosterior
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stimopt.errors import ShapeError
from stimopt.forecaster import Context, Forecaster
from stimopt.objective import Objective
from stimopt.space import StimulationSpace
from stimopt.tensors import generator, require_shape

_NUMBERS = 2**24  # drawn samples held at once: 128 MB in float64


class ScoreModel(Model):  # type: ignore[misc]  # BoTorch ships without types
    """Posterior over the score of the stimulus at each point.

    Args:
        forecaster: Answers for any stimulus of the space.
        objective: Judges; higher is better.
        space: Turns points into stimuli.
        context: One window before the stimulus, batch shape () or [1].
        samples: Responses drawn for each point.
        seed: Names the common random numbers.

    Raises:
        ShapeError: If the context holds more than one window.
    """

    def __init__(
        self, forecaster: Forecaster, objective: Objective, space: StimulationSpace, context: Context,
        samples: int = 64, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if context.signal_uv.shape[:-2].numel() != 1:
            raise ShapeError(f"context has batch {list(context.signal_uv.shape[:-2])}; give the one window of now.")
        self.forecaster, self.objective, self.space = forecaster, objective, space
        self.context = context.expand() if context.signal_uv.ndim == 2 else context[0]
        self.samples, self.seed = samples, seed

    @property
    def num_outputs(self) -> int:
        """One score."""
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        """No batch of models."""
        return torch.Size()

    def posterior(
        self,
        X: Float[Tensor, "*batch q dimension"],
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
        **_: Any,
    ) -> Posterior:
        """Scores at each point, joint over all points.

        Args:
            X: Points of the unit cube. Differentiable along continuous and log axes.
            output_indices: For BoTorch; there is one output.
            observation_noise: For BoTorch; a forecast already holds the noise of a single trial.
            posterior_transform: Applied to the posterior.

        Raises:
            ShapeError: If the last axis is not the space's dimension.
        """
        require_shape("X", X, (self.space.dimension,), "dimension")
        posterior = EnsemblePosterior(self.scores(X).movedim(0, -2).unsqueeze(-1))  # [*batch, sample, q, 1]
        return posterior_transform(posterior) if posterior_transform is not None else posterior

    def scores(self, X: Float[Tensor, "*batch dimension"]) -> Float[Tensor, "sample *batch"]:
        """Drawn scores of each point, without BoTorch's wrapping."""
        points = X.reshape(-1, X.shape[-1])
        size = max(1, _NUMBERS // (self.samples * self._window_size(points[:1])))
        if torch.is_grad_enabled() and X.requires_grad:
            parts = points.split(size)
            if len(parts) == 1:
                return self._scored(points).reshape(self.samples, *X.shape[:-1])
            kept = [checkpoint(self._scored, part, use_reentrant=False) for part in parts]
            return torch.cat(kept, -1).reshape(self.samples, *X.shape[:-1])
        # acquisition functions repeat their baseline beside every candidate: each point is forecast once
        points, where = torch.unique(points, dim=0, return_inverse=True)
        drawn = torch.cat([self._scored(part) for part in points.split(size)], -1)
        return drawn[:, where].reshape(self.samples, *X.shape[:-1])

    def _scored(self, points: Float[Tensor, "point dimension"]) -> Float[Tensor, "sample point"]:
        stimulus = self.space.stimulus(points)
        forecast = self.forecaster.forecast(self.context, stimulus)
        responses = forecast.responses(self.samples, generator(self.seed, "score"))
        return self.objective(responses, stimulus).expand(self.samples, len(points))

    @torch.no_grad()
    def _window_size(self, point: Float[Tensor, "1 dimension"]) -> int:
        template = self.forecaster.forecast(self.context, self.space.stimulus(point)).template
        return template.signal_uv.numel()
