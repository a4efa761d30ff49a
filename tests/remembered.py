"""Linear models that are fitted once on the same trials: they are most of the time of the blends that stand on them."""

import hashlib

from stimopt.models.impulse_regression import ImpulseForecaster, fit_impulse_regression
from stimopt.tensors import map_tensors

_FITTED: dict[tuple[int, str], ImpulseForecaster] = {}


def remembered(trials, *, seed=0):
    key = seed, digest(trials)
    if key not in _FITTED:
        _FITTED[key] = fit_impulse_regression(trials, seed=seed)
    return _FITTED[key]


def digest(trials):
    """Of every number in trials, and of their montage's names and places."""
    read = hashlib.sha256(repr(trials.response.montage).encode())
    for part in (trials.context, trials.stimulus, trials.response):
        map_tensors(part, lambda x: (read.update(str(x.dtype).encode() + x.detach().numpy().tobytes()), x)[1])
    return read.hexdigest()
