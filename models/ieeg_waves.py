"""Signals in cosines, so that one set of weights reads and writes any sampling rate.

A patch of ongoing signal and the window after an onset are each written in the slowest cosines of their length. Time is
in seconds: the same wave has the same number at any rate that can show it.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

PATCH_S = 0.1
HORIZON_S = 0.5  # the longest window that is forecast at once
WHOLE = 2.0  # first cosine of how much of a patch is good, where all of it is: the mean is counted twice
PATCH_WAVES = 16  # of a patch, to 80 Hz
_FAINTEST = 0.01  # of mixtures of cosines, beside the clearest: what a rate shows no better is not read
_AHEAD_S = 0.002  # half a sample at 250 Hz, the rate of pretraining, where cosines are then orthogonal


def slowest_cosines(count: int, samples: int, like: Tensor) -> Float[Tensor, "wave time"]:
    """The slowest cosines of a window, orthogonal over its samples (discrete cosine transform, type 2)."""
    return _rows(min(count, samples), samples, samples, 0.5, like)


def cosines(count: int, samples: int, like: Tensor, rate_hz: float) -> Float[Tensor, "wave time"]:
    """Cosines of the horizon at the samples of a window that begins with it."""
    return _rows(count, round(HORIZON_S * rate_hz), samples, _AHEAD_S * rate_hz, like)


def written(signal: Float[Tensor, "*batch time"], count: int, rate_hz: float) -> Float[Tensor, "*batch wave"]:
    """A window in the cosines of the horizon, such that their sum gives it back as far as they reach."""
    waves = cosines(count, signal.shape[-1], signal, rate_hz)
    return signal @ waves.mT * (2 / round(HORIZON_S * rate_hz)) * _once(waves)


def patch_samples(rate_hz: float) -> int:
    """Length of a patch."""
    return max(2, round(PATCH_S * rate_hz))


def patches(signal: Float[Tensor, "*batch time"], rate_hz: float, longest: int) -> Float[Tensor, "*batch patch wave"]:
    """The newest whole patches of a signal, each in cosines; those beyond the rate's reach are zero.

    By least squares: at rates other than that of pretraining cosines are not orthogonal, and products with them leak.
    Below 160 Hz, where samples are fewer than numbers, by products all the same: there is nothing to tell them apart.
    """
    length = patch_samples(rate_hz)
    count = min(longest, signal.shape[-1] // length)
    cut = signal[..., signal.shape[-1] - count * length :].unflatten(-1, (count, length))
    numbers: Tensor = cut @ _back(length, rate_hz).to(cut)
    return numbers


def unpatched(patch: Float[Tensor, "*batch wave"], rate_hz: float) -> Float[Tensor, "*batch time"]:
    """The samples of a patch."""
    waves = _of_patch(patch_samples(rate_hz), rate_hz, patch)
    return (patch * _once(waves)) @ waves


@lru_cache(maxsize=8)
def _back(length: int, rate_hz: float) -> Float[Tensor, "time wave"]:
    """From samples of a patch to its numbers, in double precision."""
    with torch.inference_mode(False):
        waves = _of_patch(length, rate_hz, torch.zeros((), dtype=torch.float64))
        if length < PATCH_WAVES:
            return waves.mT * (2 / length)
        back: Tensor = torch.linalg.pinv(_once(waves).unsqueeze(-1) * waves, rtol=_FAINTEST)
        return back


def _of_patch(length: int, rate_hz: float, like: Tensor) -> Float[Tensor, "wave time"]:
    return _rows(PATCH_WAVES, length, length, _AHEAD_S * rate_hz, like)


def _once(waves: Float[Tensor, "wave time"]) -> Float[Tensor, " wave"]:
    """A half for the first cosine, the mean, whose square is twice as large as the others'."""
    halves = waves.new_ones(len(waves))
    halves[0] = 0.5
    return halves


def _rows(count: int, whole: int, samples: int, ahead: float, like: Tensor) -> Float[Tensor, "wave time"]:
    """Cosines of a length of `whole` samples; the first sample lies `ahead` samples after its beginning."""
    time = (torch.arange(samples, dtype=like.dtype, device=like.device) + ahead) / whole
    order = torch.arange(count, dtype=like.dtype, device=like.device)
    rows = (math.pi * order.unsqueeze(-1) * time).cos()
    return rows * (order < whole).unsqueeze(-1)  # beyond the Nyquist frequency nothing can be read
