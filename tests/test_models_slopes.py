"""Slopes of forecasts in the stimulus are those of a step that means something, whatever the model.

Not along the onset: how large an answer is does not depend on it where a model is the same at all times, and a slope
of nothing is that of what the grid leaves, a thousandth of the answer. Distance decay knows no frequency.
"""

from dataclasses import replace

import pytest
import torch
from linear_truth import linear_truth
from slopes import slope_and_step
from untrained import untrained

from stimopt.models import (
    fit_arx,
    fit_basis_functions,
    fit_delay_embedding,
    fit_distance_decay,
    fit_impulse_regression,
    fit_state_space,
)
from stimopt.models.distance_decay import DistanceDecayForecaster
from stimopt.models.ieeg_sourced import fit_ieeg_sourced

TRUTH = linear_truth(6)
TRIALS = TRUTH.trials(TRUTH.random_stimuli(32, 1), 1)


def sourced(trials):
    """Circuits alone, beside a network that was never trained."""
    plain = untrained().for_patient(TRUTH.montage, trials.context, trials, samples=125)
    return replace(fit_ieeg_sourced(plain, trials, circuits=2, steps=20), share=1.0)


FITS = {
    "arx": lambda trials: fit_arx(trials, folds=2),
    "impulse responses": fit_impulse_regression,
    "state space": lambda trials: fit_state_space(trials, order=4, lags=4, folds=2),
    "distance decay": fit_distance_decay,
    "delay embedding": lambda trials: fit_delay_embedding(trials, delays=6),
    "basis functions": lambda trials: fit_basis_functions(trials, steps=16),
    "sources": sourced,
}


@pytest.fixture(scope="module", params=FITS, ids=lambda name: name.replace(" ", "-"))
def model(request):
    return FITS[request.param](TRIALS)


@pytest.mark.parametrize(("knob", "step"), [("frequency_hz", 0.03), ("amplitude_ma", 0.05), ("pulse_width_us", 0.05)])
def test_slopes_of_forecasts_are_those_of_a_step_that_means_something(model, knob, step):
    """Of how large effects are; a slope that is right at a point alone may be a ripple's, and search climbs slopes."""
    slope, apart = slope_and_step(model, TRIALS.context[0], knob, step)
    if isinstance(model, DistanceDecayForecaster) and knob == "frequency_hz":
        assert float(slope.abs().max()) < 1e-9
        return
    assert float(torch.cosine_similarity(slope, apart, dim=0)) > 0.97  # sources along frequency: 0.982, all else 0.99
