"""Dose curves: one number a trial against how strongly was stimulated, the plainest first.

| name | mean of a trial at dose d |
| --- | --- |
| no-dose | mean of all past trials |
| setting-means | mean of past trials of this setting; of the nearest where it was never tried |
| log-linear | a + b log d; a dose of zero counts as half of the smallest |
| monotone | the rising step heights closest to the means at each dose, straight between them, flat outside |
| saturating | a + b d^h / (d50^h + d^h), rising or falling; d50 among the doses tried and h from 1 to 8 |

With further parameters (a frequency), each of their combinations has a curve of its own; one never tried gets the
curve of all trials. The spread is that of past trials about their curves, wider by the doubt of k parameters from n
trials, sqrt(1 + k / n). Trials of all blocks count alike: a drift between blocks is spread.

References: Barlow et al., Statistical Inference under Order Restrictions (1972), for `monotone`; Holford and
Sheiner, Clin Pharmacokinet 6 (1981) 429-453, for `saturating`.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import isotonic_regression
from torch import Tensor

from stimopt.dose_trials import DoseCurve, DoseForecast, DoseTrials, setting_means

Doses = Float[Tensor, " trial"]
Line = Callable[[Doses], Float[Tensor, " trial"]]
FitLine = Callable[[Doses, Float[Tensor, " trial"]], tuple[Line, int]]  # the line, and how many parameters it took

_STEEPEST = 8.0  # Hill coefficient; above, a step between two doses
_GRID = 40  # values of the half dose, and of the coefficient: steps of at most 6 % of a coefficient


def fit_no_dose(trials: DoseTrials) -> DoseCurve:
    """The mean of all past trials, whatever the dose."""
    mean, spread = trials.outcome.mean(), _spread(trials.outcome - trials.outcome.mean(), 1)
    return _curve(
        lambda settings: (mean.expand(len(settings)), mean.new_full((len(settings),), 1 / len(trials))), spread
    )


def fit_setting_means(trials: DoseTrials) -> DoseCurve:
    """The mean of past trials at each setting; at one never tried, of the nearest, those equally near averaged."""
    levels, means, counts, group = setting_means(trials.settings, trials.outcome)
    reach = (levels.amax(0) - levels.amin(0)).clamp_min(1e-12)

    def read(settings: Tensor) -> tuple[Tensor, Tensor]:
        apart = torch.cdist(settings / reach, levels / reach)
        near = (apart <= apart.amin(-1, keepdim=True) + 1e-9).double()  # [row, setting]
        weights = near / near.sum(-1, keepdim=True)
        return weights @ means, weights.square() @ (1 / counts.double())

    return _curve(read, _spread(trials.outcome - means[group], len(levels)))


def fit_log_linear(trials: DoseTrials) -> DoseCurve:
    """A straight line in the logarithm of the dose, for each condition."""
    doses = trials.settings[:, trials.dose]
    positive = doses[doses > 0]
    least = float(positive.min()) / 2 if len(positive) else 1.0

    def line(dose: Tensor, outcome: Tensor) -> tuple[Line, int]:
        x = dose.clamp_min(least).log()
        off = x - x.mean()
        slope = (off @ outcome) / off.square().sum().clamp_min(1e-12)  # 0 where there is one dose only
        return lambda at: outcome.mean() + slope * (at.clamp_min(least).log() - x.mean()), 2

    return _by_condition(trials, line)


def fit_monotone(trials: DoseTrials) -> DoseCurve:
    """A curve that never falls with the dose, for each condition (isotonic regression)."""
    return _by_condition(trials, _monotone)


def fit_saturating(trials: DoseTrials) -> DoseCurve:
    """A curve that saturates (Emax with a Hill coefficient), for each condition."""
    return _by_condition(trials, _saturating)


def _monotone(dose: Tensor, outcome: Tensor) -> tuple[Line, int]:
    levels, means, counts, _ = setting_means(dose.unsqueeze(-1), outcome)
    heights = isotonic_regression(means.numpy(), weights=counts.double().numpy(), increasing=True).x
    known = levels.squeeze(-1).numpy()
    return lambda at: torch.from_numpy(np.interp(at.numpy(), known, heights)), len(np.unique(heights))


def _saturating(dose: Tensor, outcome: Tensor) -> tuple[Line, int]:
    """Least squares; for every half dose and steepness of a grid, a and b have a closed form.

    A half dose outside those tried would let doses of almost equal answers stand for a rise that nobody saw: shams
    that were left out of one rodent's trials were then missed by orders of magnitude.
    """
    levels, means, counts, _ = setting_means(dose.unsqueeze(-1), outcome)
    at, weights = levels.squeeze(-1), counts.double() / counts.sum()
    least = float(at[at > 0].min()) if bool((at > 0).any()) else 1.0
    half = torch.logspace(math.log10(least), math.log10(max(float(at.max()), least)), _GRID, dtype=torch.float64)
    steep = torch.logspace(0, math.log10(_STEEPEST), _GRID, dtype=torch.float64)
    share = _share(at, half[:, None, None], steep[:, None])  # [half, steep, level]
    x, y = share - (share @ weights).unsqueeze(-1), means - means @ weights
    size, along = x.square() @ weights, (x * y) @ weights
    best = int((along.square() / size.clamp_min(1e-12)).argmax())
    height = along.flatten()[best] / size.flatten()[best].clamp_min(1e-12)
    level = means @ weights - height * (share.flatten(0, 1)[best] @ weights)
    row, column = divmod(best, _GRID)
    return lambda d: level + height * _share(d, half[row], steep[column]), min(4, len(levels))


def _share(dose: Tensor, half: Tensor, steep: Tensor) -> Tensor:
    power = (dose / half) ** steep
    return power / (1 + power)


def _by_condition(trials: DoseTrials, fit: FitLine) -> DoseCurve:
    """A line for each condition, one for all of them, and one spread."""
    doses, own = trials.settings[:, trials.dose], trials.conditions_of(trials.settings)
    conditions, group = torch.unique(own, dim=0, return_inverse=True)
    whole, used = fit(doses, trials.outcome)
    lines, residual, parameters = [], torch.empty_like(trials.outcome), 0
    for index in range(len(conditions)):
        here = group == index
        line, count = fit(doses[here], trials.outcome[here])
        residual[here] = trials.outcome[here] - line(doses[here])
        lines.append((line, count / int(here.sum())))
        parameters += count

    def read(settings: Tensor) -> tuple[Tensor, Tensor]:
        asked, dose = trials.conditions_of(settings), settings[:, trials.dose]
        mean, doubt = whole(dose), torch.full_like(dose, used / len(trials))
        for condition, (line, unsure) in zip(conditions, lines, strict=True):
            here = (asked == condition).all(-1)
            mean[here], doubt[here] = line(dose[here]), unsure
        return mean, doubt

    return _curve(read, _spread(residual, parameters))


def _curve(read: Callable[[Tensor], tuple[Tensor, Tensor]], spread: Tensor) -> DoseCurve:
    def forecast(settings: Tensor) -> DoseForecast:
        mean, doubt = read(settings)
        return DoseForecast(mean, spread * (1 + doubt).sqrt())

    return forecast


def _spread(residual: Float[Tensor, " trial"], parameters: int) -> Float[Tensor, ""]:
    """Standard deviation of one trial, the parameters counted."""
    return (residual.square().sum() / max(1, len(residual) - parameters)).sqrt().clamp_min(1e-9)
