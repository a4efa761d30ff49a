"""Gaussian process through a few landmarks: a smooth function of many features, from rows that come in blocks.

The process has a squared exponential kernel, as wide as the features are large, and is known
through its values at some of the rows; where all rows are landmarks it is exact. In
directions that are independent of each other everything is closed: what leaving out whole
blocks would give, the ridge that forecasts them best, and the doubt, which far from all
landmarks is the prior's.

    known(x) = k(x, landmarks) whiten          known . known' = k between rows, as the landmarks see it
    size     = known . weight                  weight = (G + ridge)^-1 sum over rows of known' size

References: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), section 8.3.2, for the mean, and
8.3.4 for the doubt with the prior's own variance; Cook, Technometrics 19 (1977) 15-18, for leaving rows out, here
blocks of rows; Liang and Zeger, Biometrika 73 (1986) 13-22, for noise that the rows of a block share.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.tensors import generator

MOST_LANDMARKS = 256  # 128 forecast nearly as well; doubt costs their square
_NUGGET = 1e-4  # of the kernel at landmarks, so that float32 can invert it
_RIDGES = tuple(10.0 ** (power / 2) for power in range(-6, 5))  # as a share of a row's mean weight


@dataclass(frozen=True)
class Landmarks:
    """Directions in which the process is independent.

    Attributes:
        middle: Of each feature over all rows.
        spread: The same; zero where a feature never varied, which then counts for nothing.
        place: Of each landmark, in units of the kernel's width.
        whiten: From the kernel with each landmark to directions.
        moment: Of each direction over all rows, each row weighted.
    """

    middle: Float[Tensor, " feature"]
    spread: Float[Tensor, " feature"]
    place: Float[Tensor, "landmark feature"]
    whiten: Float[Tensor, "landmark direction"]
    moment: Float[Tensor, " direction"]

    def known(self, feature: Float[Tensor, "*row feature"]) -> Float[Tensor, "*row direction"]:
        """Rows in these directions; their squares sum to 1 at a landmark, and to 0 far from all."""
        return _kernel(_standard(feature, self.middle, self.spread), self.place) @ self.whiten


def landmarks_of(
    feature: Float[Tensor, "block row feature"], weight: Float[Tensor, "block row"], seed: int
) -> Landmarks:
    """Landmarks among some rows.

    Args:
        feature: Of all rows.
        weight: Of each row; the inverse of its noise's standard deviation.
        seed: Of the choice, where there are more rows than landmarks.
    """
    middle, spread = feature.mean((0, 1)), feature.std((0, 1))
    spread = torch.where(spread > 1e-6, spread, 0.0)
    place = _standard(feature, middle, spread).flatten(0, 1)
    chosen = torch.randperm(len(place), generator=generator(seed, "landmarks"))[:MOST_LANDMARKS].sort().values
    nugget = _NUGGET * torch.eye(len(chosen), dtype=place.dtype)
    root = torch.linalg.cholesky(_kernel(place[chosen], place[chosen]) + nugget)
    half = torch.linalg.solve_triangular(root, _kernel(place, place[chosen]).mT, upper=False).mT
    weighted = half * weight.reshape(-1, 1)
    moment, direction = torch.linalg.eigh(weighted.mT @ weighted)
    whiten = torch.linalg.solve_triangular(root.mT, direction, upper=True)
    return Landmarks(middle, spread, place[chosen], whiten, moment.clamp_min(0))


def best_ridge(
    known: Float[Tensor, "block row direction"], moment: Float[Tensor, " direction"],
    size: Float[Tensor, "block row wave"],
) -> tuple[float, Float[Tensor, "block row wave"]]:  # fmt: skip
    """The ridge whose left-out blocks are forecast best, and what is left of them.

    Args:
        known: Rows in the landmarks' directions, weighted.
        moment: Of each direction over these rows.
        size: To forecast, weighted.
    """
    unit = float(known.square().sum(-1).mean())
    tried = [(share * unit, left_out(known, moment, size, share * unit)) for share in _RIDGES]
    return min(tried, key=lambda pair: float(pair[1].square().sum()))


def left_out(
    known: Float[Tensor, "block row direction"], moment: Float[Tensor, " direction"],
    size: Float[Tensor, "block row wave"], ridge: float,
) -> Float[Tensor, "block row wave"]:  # fmt: skip
    """What is left of each block by a fit on the others: (1 - H_ii)^-1 times what is left by one on all."""
    pulled = known / (moment + ridge)
    fitted = known @ torch.einsum("brd,brw->dw", pulled, size)
    hat = pulled @ known.mT  # [block, row, row]
    remainder: Tensor = torch.linalg.solve(torch.eye(hat.shape[-1], dtype=hat.dtype) - hat, size - fitted)
    return remainder


def shared_noise(
    known: Float[Tensor, "block row direction"], moment: Float[Tensor, " direction"],
    left: Float[Tensor, "block row wave"], ridge: float,
) -> Float[Tensor, " wave"]:  # fmt: skip
    """Variance of the noise as the fit feels it, larger than a row's where rows of a block share theirs."""
    felt = torch.einsum("brd,brw->bwd", known, left).square().sum(0)
    return (felt / (moment + ridge)).sum(-1) / (moment / (moment + ridge)).sum().clamp_min(1e-12)


def _standard(feature: Tensor, middle: Tensor, spread: Tensor) -> Tensor:
    """Features that vary about 0, in units of the kernel's width: two rows are then about one width apart."""
    varied = spread > 0
    scaled = torch.where(varied, (feature - middle) / torch.where(varied, spread, 1.0), 0.0)
    return scaled / math.sqrt(max(1, int(varied.sum())))


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    """Squared exponential; the square written out, since the slope of a distance is not known at zero."""
    apart = one.square().sum(-1, keepdim=True) + other.square().sum(-1) - 2 * one @ other.mT
    return (-apart.clamp_min(0) / 2).exp()
