"""Ridge autoregressions, run on freely; held-out pieces say how many lags, what ridge, and who hears whom.

    y[t] = sum over lags l of A[l] y[t - l]

References: Lutkepohl, New Introduction to Multiple Time Series Analysis (2005), sections 2.2 and 3.2 (free runs, least
squares); Hoerl and Kennard, Technometrics 12 (1970) 55-67 (ridge).
"""

import math
from dataclasses import dataclass, fields
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from .arx_regression import products
from .folds import folds_of

_LAGS = (4, 8, 16, 32, 64)
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the mean square of a sample
_MOST_REGRESSORS = 512  # of a channel; with more channels fewer lags hear all of them
_FOLDS = 4
_GROWN = 2.0  # how far a free run may leave what was seen
_LEAST = 1e-6  # of mean squares


def chosen_run(
    off: Float[Tensor, "piece channel time"], ahead: int, total: int, seed: int
) -> tuple[Float[Tensor, "channel lag other"], Float[Tensor, "piece channel ahead"]]:
    """The choice that leaves least of each piece's end, fitted to all, and the ends as the other parts forecast them.

    One whose free run grows beyond what was seen is none; without any, nothing is forecast.
    """
    parts = [part for part in folds_of(len(off), _FOLDS, seed, "rest") if len(part)]
    most = max(1, min(_LAGS[-1], off.shape[-1] - ahead))
    each = [_Equations.of(off[part], most) for part in parts]
    every = sum(each[1:], each[0])
    others = [every - own for own in each]
    truth, largest = off[..., -ahead:], _GROWN * float(off.abs().max())
    best, chosen = math.inf, (torch.zeros_like(every.solve(1, 1.0, False)), torch.zeros_like(truth))
    for lags, ridge, together in product(_LAGS, _RIDGES, (True, False)):
        if lags > most or (together and lags > every.lags):
            continue
        told = torch.empty_like(truth)
        for part, fitted in zip(parts, others, strict=True):
            told[part] = free_run(fitted.solve(lags, ridge, together), off[part][..., :-ahead], ahead)
        left = float(((told - truth).square().mean((0, 2)) / truth.square().mean((0, 2)).clamp_min(_LEAST)).mean())
        if left < best:  # false for one that is no number
            back = every.solve(lags, ridge, together)
            if float(free_run(back, off, total).abs().max()) < largest:
                best, chosen = left, (back, told)
    return chosen


@dataclass(frozen=True)
class _Equations:
    """Products of the past with itself and with the present: of all channels together, and of each alone.

    Attributes:
        gram: Of as many lags as there is room for, (lag, channel), newest first.
        target: With the present.
        gram_alone: Of each channel's own past.
        target_alone: With its present.
    """

    gram: Float[Tensor, "regressor regressor"]
    target: Float[Tensor, "regressor channel"]
    gram_alone: Float[Tensor, "channel lag lag"]
    target_alone: Float[Tensor, "channel lag 1"]

    @classmethod
    def of(cls, signal: Float[Tensor, "piece channel time"], most: int) -> "_Equations":
        """Over all pieces, up to so many lags."""
        together = max(1, min(most, _MOST_REGRESSORS // signal.shape[1]))
        gram, target, _ = products(signal, signal[:, :0], together)
        alone = [products(one, one[:, :0], most)[:2] for one in signal.split(1, 1)]
        return cls(gram, target, torch.stack([a for a, _ in alone]), torch.stack([b for _, b in alone]))

    @property
    def lags(self) -> int:
        """Of all channels together."""
        return len(self.gram) // self.target.shape[1]

    def __add__(self, other: "_Equations") -> "_Equations":
        return _Equations(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: "_Equations") -> "_Equations":
        return _Equations(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def solve(self, lags: int, ridge: float, together: bool) -> Float[Tensor, "channel lag other"]:
        """Weights of so many lags, of all channels or of each channel's own."""
        size = lags * self.target.shape[1]
        if together:
            weight: Tensor = _ridged(self.gram[:size, :size], self.target[:size], ridge)
            return weight.mT.reshape(-1, lags, self.target.shape[1])
        own: Tensor = _ridged(self.gram_alone[:, :lags, :lags], self.target_alone[:, :lags], ridge)
        return own


def _ridged(gram: Float[Tensor, "*_ row row"], target: Float[Tensor, "*_ row to"], ridge: float) -> Tensor:
    strength = ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) + _LEAST
    weight: Tensor = torch.linalg.solve(gram + torch.diag_embed(strength.expand(gram.shape[:-1])), target)
    return weight


def free_run(
    back: Float[Tensor, "channel lag other"], signal: Float[Tensor, "row channel past"], samples: int
) -> Float[Tensor, "row channel time"]:
    """The signal run on; what is older than it counts as nothing."""
    lags, alone = back.shape[1], back.shape[2] == 1
    newest = signal[..., -lags:].flip(-1)
    history = F.pad(newest, (0, lags - newest.shape[-1])).movedim(1, 2)  # [row, lag, channel]
    weight = back[..., 0].mT if alone else back.flatten(1).mT
    run = []
    for _ in range(samples):
        run.append((weight * history).sum(1) if alone else history.flatten(1) @ weight)
        history = torch.cat([run[-1].unsqueeze(1), history[:, :-1]], 1)
    return torch.stack(run, -1)
