"""The surrogate as a BoTorch model, and its log noisy expected improvement.

Kept apart from the other acquisition functions because BoTorch takes a second to import: only
a policy that needs it loads this file.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.models import SingleTaskGP
from botorch.sampling import SobolQMCNormalSampler
from botorch.settings import validate_input_scaling
from gpytorch.kernels import Kernel
from gpytorch.means import ZeroMean
from jaxtyping import Float
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from .acquisition import Acquisition
from .surrogate import Surrogate


def botorch_model(surrogate: Surrogate) -> SingleTaskGP:
    """The surrogate as a BoTorch model over `surrogate.columns(...)`, in standardised scores.

    Its posterior is the surrogate's. What BoTorch adds is every acquisition function that it has.
    """
    with validate_input_scaling(False):  # trend columns do not lie in a unit cube
        model = SingleTaskGP(
            surrogate.rows, surrogate.means.unsqueeze(-1), surrogate.noise.unsqueeze(-1),
            covar_module=_SurrogateKernel(surrogate), mean_module=ZeroMean(), outcome_transform=None,
        )  # fmt: skip
    return model.eval()


def log_noisy_improvement(
    surrogate: Surrogate,
    baseline: Float[Tensor, "tried dimension"],
    trend: Float[Tensor, " trend"],
    samples: int,
    seed: int,
) -> Acquisition:
    """Log of the expected improvement over the unknown best of `baseline` (Ament et al. 2023, NeurIPS; qLogNEI, q = 1).

    Args:
        surrogate: What is known.
        baseline: Tried points among which the best may be.
        trend: Where on the trend the next trial lies; baseline and candidates are compared there.
        samples: Quasi-random draws of the posterior, the same for every candidate.
        seed: Of these draws.
    """
    model, tried = botorch_model(surrogate), surrogate.columns(baseline, trend.expand(len(baseline), -1))
    sampler = SobolQMCNormalSampler(torch.Size([samples]), seed=seed)
    with torch.no_grad(), _quiet():
        function = qLogNoisyExpectedImprovement(model, tried, sampler=sampler, prune_baseline=False)

    def value(points: Tensor) -> Tensor:
        columns = surrogate.columns(points, trend.expand(len(points), -1))
        with _quiet():
            worth: Tensor = function(columns.unsqueeze(-2))
        return worth

    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """Repetitions of a setting make joint covariances singular; the jitter that mends them needs no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        yield


class _SurrogateKernel(Kernel):  # type: ignore[misc]
    """The surrogate's own covariance. GPyTorch's sum of a Matern and a linear kernel takes a low-rank path that fails
    on the nearly singular matrices of repeated settings.
    """

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__()
        self._surrogate = surrogate

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """Covariance between two lists of columns."""
        if diag:
            return self._surrogate.covariance(x1.unsqueeze(-2), x2.unsqueeze(-2)).flatten(-3)
        return self._surrogate.covariance(x1, x2)
