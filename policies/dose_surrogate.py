"""The searches' Gaussian process as a dose model: what a Bayesian policy would believe, judged on recorded trials.

The spread of one trial is the doubt of the surface and the process's own noise, both together.
"""

import torch
from torch import Tensor

from stimopt.dose_trials import DoseCurve, DoseForecast, DoseTrials
from stimopt.montage import NO_MONTAGE
from stimopt.stimulus import table_stimulus

from .surrogate import fit_surrogate


def fit_dose_surrogate(trials: DoseTrials) -> DoseCurve:
    """A Gaussian process over all parameters, the surrogate of the Bayesian policy."""
    names = tuple(parameter.name for parameter in trials.space.parameters)

    def points(settings: Tensor) -> Tensor:
        return trials.space.locate(table_stimulus(NO_MONTAGE, settings, names))

    known = points(trials.settings)
    surrogate = fit_surrogate(trials.space, known, known.new_zeros(len(known), 0), trials.outcome)
    noise = surrogate.scale.square() * len(trials) / (1 / surrogate.noise).sum()  # of a row: noise of a trial / trials

    def forecast(settings: Tensor) -> DoseForecast:
        asked, rows = torch.unique(settings, dim=0, return_inverse=True)
        mean, doubt = surrogate.posterior(points(asked), asked.new_zeros(len(asked), 0))
        return DoseForecast(mean[rows], (doubt.square() + noise).clamp_min(1e-18).sqrt()[rows])

    return forecast
