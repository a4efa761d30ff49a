"""What a candidate is worth as the next trial: an upper bound, or one posterior draw.

Each function returns a callable from cube points to values, higher is better. The one that
needs BoTorch, noisy expected improvement, is in `improvement`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .surrogate import Surrogate

Acquisition = Callable[[Tensor], Tensor]


def upper_bound(surrogate: Surrogate, trend: Float[Tensor, " trend"], kappa: float) -> Acquisition:
    """Posterior mean plus `kappa` standard deviations (Srinivas et al. 2010, ICML). Differentiable in the points."""

    def value(points: Tensor) -> Tensor:
        mean, sd = surrogate.posterior(points, trend.expand(len(points), -1))
        return mean + kappa * sd

    return value


def posterior_draw(surrogate: Surrogate, trend: Float[Tensor, " trend"], generator: torch.Generator) -> Acquisition:
    """One draw of the whole score function (Thompson 1933, Biometrika 25). A second call is another draw."""

    def value(points: Tensor) -> Tensor:
        return surrogate.sample(points, trend.expand(len(points), -1), generator)

    return value
