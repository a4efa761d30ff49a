"""Linear state space with rectified charge as input: a few hidden states carry rhythm and response alike.

    x[t+1] = A x[t] + B u[t] + K e[t]        y[t] = C x[t] + D u[t] + e[t],  e ~ N(0, S)

Identified by observer/Kalman identification: a long vector autoregression with input
gives the answers to impulses of input and of noise, and the singular vectors of their
Hankel matrix give a realisation of few states. A Kalman filter over the context gives the
state before the stimulus; forecasts carry its doubt and the noise to come. Order and
ridges are what forecast whole held-out windows best.

References: Juang, Phan, Horta and Longman, J Guid Control Dyn 16 (1993) 320-329 (the observer and its Markov
parameters); Juang and Pappa, ibid. 8 (1985) 620-627 (the realisation).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.stimulus import Stimulus
from stimopt.tensors import generator

from .arx_regression import AutoRegression, autoregress, grid
from .impulse import convolve
from .realisation import Realisation, forecast_noise, kalman_gains, realisations
from .residuals import noisy_forecast
from .window import Window, contiguous, in_double, window_from_dict, window_of

_ORDERS = (2, 4, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class StateSpaceForecaster(Forecaster):
    """Filtered state, run forward. Linear, so differentiable in the stimulus.

    Attributes:
        window: What it was fitted on.
        rest_uv: Mean of each channel.
        transition: A.
        entry: B, per mA of rectified current, cathodic of all contacts, then anodic.
        readout: C, in uV.
        through: D.
        gain: Kalman gain at each context sample.
        scale_uv: Independent noise.
        factors_uv: Shared noise.
    """

    window: Window
    rest_uv: Float[Tensor, " channel"]
    transition: Float[Tensor, "state state"]
    entry: Float[Tensor, "state input"]
    readout: Float[Tensor, "channel state"]
    through: Float[Tensor, "channel input"]
    gain: Float[Tensor, "past state channel"]
    scale_uv: Float[Tensor, "channel time"]
    factors_uv: Float[Tensor, "factor channel time"]

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        signal = self.window.context_signal(context, stimulus)
        free = _run_on(self.filtered_state(signal), self.transition, self.readout, self.window)
        mean = self.rest_uv.to(signal).unsqueeze(-1) + free + self._driven(stimulus)
        return noisy_forecast(self.window, mean, self.scale_uv, self.factors_uv)

    def filtered_state(self, signal_uv: Float[Tensor, "*batch channel time"]) -> Float[Tensor, "*batch state"]:
        """Expected state after the context, given the context."""
        return _filtered(signal_uv, self.rest_uv, self.transition, self.readout, self.gain)

    def _driven(self, stimulus: Stimulus) -> Float[Tensor, "*batch channel time"]:
        drive = self.window.drive_ma(stimulus)
        kernel = _kernel(self.transition, self.entry, self.readout, self.through, drive.shape[-1])
        return convolve(kernel, drive)[..., self.window.lead :]

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        names = ("rest_uv", "transition", "entry", "readout", "through", "gain", "scale_uv", "factors_uv")
        return {"window": self.window.to_dict()}, {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "StateSpaceForecaster":
        """See Saveable."""
        return cls(window=window_from_dict(config["window"]), **tensors)


def fit_state_space(
    trials: Trials, *, seed: int = 0, order: int = 0, lags: int = 16, factors: int = 24, folds: int = 3
) -> StateSpaceForecaster:
    """Linear state space with polarity-rectified stimulation current as input.

    Args:
        trials: Recorded trials with signals.
        seed: Of the folds on which order and ridges are chosen.
        order: How many states; 0 chooses by held-out windows.
        lags: Samples of the past that the first autoregression uses.
        factors: How many shared noise factors at most.
        folds: In how many parts the trials are cut.

    Raises:
        DataError: If there are fewer than four trials, or no signals.
    """
    window, trials = window_of(trials), in_double(trials)
    cut = torch.randperm(len(trials), generator=generator(seed, "folds")).chunk(folds)
    parts = [part.sort().values for part in cut]
    regressions = [autoregress(window, trials[part], lags) for part in parts]
    orders = (order,) if order > 0 else _ORDERS
    choice, residual = _chosen(window, trials, parts, regressions, orders)
    rest = trials.context.signal_uv.mean((0, -1))
    model = _models(window, trials, regressions, choice[0], (choice[1],))[0]
    gain, doubt = kalman_gains(model, window.context_samples)
    scale, shared = forecast_noise(model, doubt, window.lead, window.samples, factors)
    predicted = (scale.square() + shared.square().sum(0)).mean(-1)
    factor = (residual.square().mean((0, -1)) / predicted).sqrt().unsqueeze(-1)  # noise as large as it was held out
    matrices = (model.transition, model.entry, model.readout, model.through, gain)
    return contiguous(StateSpaceForecaster(window, rest, *matrices, factor * scale, factor * shared))


_Choice = tuple[tuple[float, float], int]  # ridges and order


def _chosen(
    window: Window, trials: Trials, parts: list[Tensor], regressions: list[AutoRegression], orders: tuple[int, ...]
) -> tuple[_Choice, Float[Tensor, "trial channel time"]]:
    ridges = sorted({ridge for _, ridge in grid(regressions[0].lags)})
    residuals = {pair: torch.empty_like(trials.response.signal_uv) for pair in product(ridges, orders)}
    for (held, part), ridge in product(enumerate(parts), ridges):
        kept = [i for i in range(len(parts)) if i != held]
        train, test = trials[torch.cat([parts[i] for i in kept])], trials[part]
        models = _models(window, train, [regressions[i] for i in kept], ridge, orders)
        for order, model in zip(orders, models, strict=True):
            residuals[ridge, order][part] = test.response.signal_uv - _predicted(window, model, train, test)
    variance = trials.response.signal_uv.var((0, -1)).clamp_min(1e-12)
    losses = {
        c: float((r.square().mean((0, -1)) / variance).mean().nan_to_num(torch.inf)) for c, r in residuals.items()
    }
    best = min(losses, key=losses.__getitem__)
    return best, residuals[best]


def _models(
    window: Window, trials: Trials, regressions: list[AutoRegression], ridge: tuple[float, float], orders: Sequence[int]
) -> list[Realisation]:
    whole = regressions[0]
    for other in regressions[1:]:
        whole = whole + other
    size = window.drive_ma(trials.stimulus).square().mean().sqrt()
    return realisations(whole.solve(whole.lags, *ridge), orders, float(size))


def _predicted(window: Window, model: Realisation, train: Trials, test: Trials) -> Float[Tensor, "trial channel time"]:
    rest = train.context.signal_uv.mean((0, -1))
    gain, _ = kalman_gains(model, window.context_samples)
    state = _filtered(test.context.signal_uv, rest, model.transition, model.readout, gain)
    drive = window.drive_ma(test.stimulus)
    kernel = _kernel(model.transition, model.entry, model.readout, model.through, drive.shape[-1])
    driven = convolve(kernel, drive)[..., window.lead :]
    return rest.unsqueeze(-1) + _run_on(state, model.transition, model.readout, window) + driven


def _filtered(signal: Tensor, rest: Tensor, transition: Tensor, readout: Tensor, gain: Tensor) -> Tensor:
    move, read, gains, mean = (x.to(signal) for x in (transition, readout, gain, rest))
    state = signal.new_zeros(*signal.shape[:-2], move.shape[0])
    for step in range(signal.shape[-1]):
        surprise = signal[..., step] - mean - state @ read.mT
        state = state @ move.mT + surprise @ gains[step].mT
    return state


def _run_on(state: Tensor, transition: Tensor, readout: Tensor, window: Window) -> Float[Tensor, "*batch channel time"]:
    move, read = transition.to(state), readout.to(state)
    steps = []
    for _ in range(window.lead + window.samples):
        steps.append(state @ read.mT)
        state = state @ move.mT
    return torch.stack(steps[window.lead :], -1)


def _kernel(
    transition: Tensor, entry: Tensor, readout: Tensor, through: Tensor, samples: int
) -> Float[Tensor, "channel input lag"]:
    steps, state = [through], entry
    for _ in range(samples - 1):
        steps.append(readout @ state)
        state = transition @ state
    return torch.stack(steps, -1)
