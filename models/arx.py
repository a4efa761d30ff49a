"""Linear answer to rectified charge on top of a linear autoregression: the bar that any network must pass.

The context runs on freely through a vector autoregression, and the stimulus adds kernels
convolved with the cathodic and anodic current of each contact apart: a deflection keeps
its sign when the polarity turns, so an unrectified input averages to nothing.

The kernels are those of the ARX model (one-step ridge regression, Ljung 1999, section
4.2), or finite impulse responses fitted to whole windows, or the first mended by the
second; lags, ridges, this choice and whether later pulses count less (`drive.TIRINGS`) are what forecast whole held-out
windows best.

Reference: Ljung, System Identification (2nd ed., 1999). Rectified input: measured here, see the skill tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.stimulus import Stimulus

from .arx_regression import DIRECT_RIDGES, AutoRegression, DirectKernels, autoregress, grid
from .drive import TIRINGS, Tiring
from .folds import folds_of
from .impulse import convolve
from .residuals import noisy_forecast, residual_noise
from .window import Window, contiguous, in_double, window_from_dict, window_of

_FEWEST_LAGS, _MOST_REGRESSORS = 16, 512


@dataclass(frozen=True)
class ArxForecaster(Forecaster):
    """Free run of the context plus kernels on rectified current. Differentiable in the stimulus.

    Attributes:
        window: What it was fitted on, and how pulses count.
        rest_uv: Mean of each channel.
        free_run: Weight of each of the last context samples, newest first, on each forecast sample.
        kernel: uV per mA of rectified current (mean over one sample), cathodic of all contacts, then anodic.
        scale_uv: Independent noise.
        factors_uv: Shared noise.
    """

    window: Window
    rest_uv: Float[Tensor, " channel"]
    free_run: Float[Tensor, "channel time past channel"]
    kernel: Float[Tensor, "channel input lag"]
    scale_uv: Float[Tensor, "channel time"]
    factors_uv: Float[Tensor, "factor channel time"]

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        signal = self.window.context_signal(context, stimulus)
        mean = _free(signal, self.rest_uv, self.free_run) + _driven(self.window, self.kernel, stimulus)
        return noisy_forecast(self.window, mean, self.scale_uv, self.factors_uv)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        names = ("rest_uv", "free_run", "kernel", "scale_uv", "factors_uv")
        return {"window": self.window.to_dict()}, {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "ArxForecaster":
        """See Saveable."""
        return cls(window=window_from_dict(config["window"]), **tensors)


def fit_arx(
    trials: Trials, *, seed: int = 0, lags: int = 32, factors: int = 12, folds: int = 3,
    tirings: Sequence[Tiring | None] = TIRINGS,
) -> ArxForecaster:  # fmt: skip
    """Vector autoregression with polarity-rectified stimulation current as input.

    Args:
        trials: Recorded trials with signals.
        seed: Of the folds on which ridges are chosen and the noise is measured.
        lags: Most samples of the past that the autoregression may use; a half and a quarter of it are tried, too. With
            more than 16 channels fewer, but not below 16: `channels` times `lags` are regressors.
        factors: How many shared noise factors at most.
        folds: In how many parts the trials are cut.
        tirings: How pulses may count; the one that forecasts held-out trials best is kept.

    Raises:
        DataError: If there are fewer than four trials, or no signals.
    """
    plain, trials = window_of(trials), in_double(trials)
    lags = min(lags, max(_FEWEST_LAGS, _MOST_REGRESSORS // plain.channels))
    parts = folds_of(len(trials), folds, seed)
    tried = []
    for window in (replace(plain, tiring=tiring) for tiring in tirings):
        regressions = [autoregress(window, trials[part], lags) for part in parts]
        cuts = [_fold(window, trials[_without(parts, i)], _sum(regressions, i)) for i in range(len(parts))]
        choice, residual = _chosen(trials, parts, cuts)
        tried.append((_loss(trials, residual), choice, residual, window, _sum(regressions, None)))
    _, choice, residual, window, regression = min(tried, key=lambda one: one[0])
    whole = _fold(window, trials, regression)
    noise = residual_noise(residual, window.rate_hz, factors)
    return contiguous(ArxForecaster(window, whole.rest_uv, *whole.fitted(choice), *noise))


def _without(parts: list[Tensor], held: int) -> Tensor:
    return torch.cat([part for i, part in enumerate(parts) if i != held])


def _sum(parts: list[AutoRegression], held: int | None) -> AutoRegression:
    first, *others = [part for i, part in enumerate(parts) if i != held]
    for other in others:
        first = first + other
    return first


@dataclass(frozen=True)
class _Choice:
    """What held-out windows decided."""

    lags: int
    ridge: tuple[float, float]
    arx: bool = True
    direct_ridge: float | None = None


@dataclass(frozen=True)
class _Fold:
    """Trials to fit on and their normal equations, computed once for all choices."""

    window: Window
    trials: Trials
    regression: AutoRegression
    direct: DirectKernels
    rest_uv: Float[Tensor, " channel"]

    def fitted(self, choice: _Choice) -> tuple[Tensor, Tensor]:
        model = self.regression.solve(choice.lags, *choice.ridge)
        free_run, kernel = model.free_run(self.window), model.kernel(self.window.lead + self.window.samples)
        kernel = kernel if choice.arx else torch.zeros_like(kernel)
        if choice.direct_ridge is not None:
            left = self.trials.response.signal_uv - self.predict(self.trials, free_run, kernel)
            kernel = kernel + self.direct.solve(left, choice.direct_ridge)
        return free_run, kernel

    def predict(self, trials: Trials, free_run: Tensor, kernel: Tensor) -> Float[Tensor, "trial channel time"]:
        free = _free(trials.context.signal_uv, self.rest_uv, free_run)
        return free + _driven(self.window, kernel, trials.stimulus)


def _fold(window: Window, trials: Trials, regression: AutoRegression) -> _Fold:
    rest = trials.context.signal_uv.mean((0, -1))
    return _Fold(window, trials, regression, DirectKernels.of(window, trials.stimulus), rest)


def _chosen(trials: Trials, parts: list[Tensor], folds: list[_Fold]) -> tuple[_Choice, Tensor]:
    """The best choice and its held-out residuals: first the autoregression's, then the kernels'."""
    first = [_Choice(lags, ridge) for lags, ridge in grid(folds[0].regression.lags)]
    best = min(first, key=lambda choice: _loss(trials, _residual(trials, parts, folds, choice)))
    kernels = [(True, None), *[(arx, ridge) for arx in (True, False) for ridge in DIRECT_RIDGES]]
    second = [_Choice(best.lags, best.ridge, arx, ridge) for arx, ridge in kernels]
    residuals = [_residual(trials, parts, folds, choice) for choice in second]
    index = min(range(len(second)), key=lambda i: _loss(trials, residuals[i]))
    return second[index], residuals[index]


def _loss(trials: Trials, residual: Tensor) -> float:
    """Mean over channels of the share of variance left over; an exploding free run counts as infinite."""
    variance = trials.response.signal_uv.var((0, -1)).clamp_min(1e-12)
    return float((residual.square().mean((0, -1)) / variance).mean().nan_to_num(nan=torch.inf))


def _residual(trials: Trials, parts: list[Tensor], folds: list[_Fold], choice: _Choice) -> Tensor:
    residual = torch.empty_like(trials.response.signal_uv)
    for part, fold in zip(parts, folds, strict=True):
        test = trials[part]
        residual[part] = test.response.signal_uv - fold.predict(test, *fold.fitted(choice))
    return residual


def _free(context: Float[Tensor, "*batch channel time"], rest: Tensor, free_run: Tensor) -> Tensor:
    newest = context[..., -free_run.shape[-2] :].flip(-1) - rest.to(context).unsqueeze(-1)  # [*batch, channel, lag]
    return rest.to(context).unsqueeze(-1) + torch.einsum("ctlk,...kl->...ct", free_run.to(context), newest)


def _driven(window: Window, kernel: Tensor, stimulus: Stimulus) -> Float[Tensor, "*batch channel time"]:
    return convolve(kernel, window.drive_ma(stimulus))[..., window.lead :]
