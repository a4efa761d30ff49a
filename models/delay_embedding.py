"""Hankel dynamic mode decomposition with control: linear dynamics of delayed signals, in few modes.

    h[t] = (y[t], y[t-1], .. y[t-d+1]),   z = U' h,   z[t+1] = A z[t] + B v[t+1],   y = rest + C z

U holds the leading principal directions of the delayed signals (Hankel matrix), v the
rectified current filtered by a few delays, which stand for the delays of the input. A and
B are one ridge regression over every pair of neighbouring samples. The number of delays,
of modes, and the ridge on the input are what forecast whole held-out windows best.

References: Proctor, Brunton and Kutz, SIAM J Appl Dyn Syst 15 (2016) 142-161 (with control);
Arbabi and Mezic, ibid. 16 (2017) 2096-2126 (Hankel matrices).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.stimulus import Stimulus

from .felt import at_rest_uv, unit_uv
from .folds import folds_of
from .impulse import delay_basis, filtered
from .residuals import noisy_forecast, residual_noise
from .window import Window, contiguous, in_double, window_from_dict, window_of

_MODES = (4, 8, 16, 32, 64)
_INPUT_RIDGES = (1e-4, 1e-2, 1.0)  # of the mean squared input
_MODE_RIDGE = 1e-9  # of the mean squared mode: only against singularity, the number of modes is the choice
_INPUT_S = 0.1  # what lasts longer is carried by the modes
_INPUT_BASIS = 6
_FOLDS = 3
_CHUNK = 16  # trials whose delayed signals are held at once


@dataclass(frozen=True)
class DelayEmbeddingForecaster(Forecaster):
    """Modes of the delayed context, run forward. Linear, so differentiable in the stimulus.

    Attributes:
        window: What it was fitted on.
        rest_uv: Mean of each channel.
        embedding: Modes from the last context samples, newest first, per uV.
        transition: A.
        entry: B, per mA of rectified current, cathodic of all contacts, then anodic, at each delay.
        readout: C, in uV.
        scale_uv: Independent noise.
        factors_uv: Shared noise.
    """

    window: Window
    rest_uv: Float[Tensor, " channel"]
    embedding: Float[Tensor, "mode past channel"]
    transition: Float[Tensor, "mode mode"]
    entry: Float[Tensor, "mode input delay"]
    readout: Float[Tensor, "channel mode"]
    scale_uv: Float[Tensor, "channel time"]
    factors_uv: Float[Tensor, "factor channel time"]

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        signal = self.window.context_signal(context, stimulus)
        mean = _run(self.window, self._modes, signal, _delayed(self.window, stimulus))
        return noisy_forecast(self.window, mean, self.scale_uv, self.factors_uv)

    @property
    def _modes(self) -> "_Modes":
        return _Modes(self.rest_uv, self.embedding, self.transition, self.entry, self.readout)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        names = ("rest_uv", "embedding", "transition", "entry", "readout", "scale_uv", "factors_uv")
        return {"window": self.window.to_dict()}, {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "DelayEmbeddingForecaster":
        """See Saveable."""
        return cls(window=window_from_dict(config["window"]), **tensors)


def fit_delay_embedding(
    trials: Trials, *, seed: int = 0, delays: int = 24, factors: int = 12
) -> DelayEmbeddingForecaster:
    """Hankel dynamic mode decomposition with rectified stimulation current as control.

    Args:
        trials: Recorded trials with signals.
        seed: Of the folds on which the choices are made and the noise is measured.
        delays: Most samples of the past that are embedded; a third of them is tried too.
        factors: How many shared noise factors at most.

    Raises:
        DataError: If there are fewer than four trials, or no signals.
    """
    window, trials = window_of(trials), in_double(trials)
    delays = max(1, min(delays, window.context_samples - 1, window.samples // 2))
    parts = folds_of(len(trials), _FOLDS, seed)
    inputs = _delayed(window, trials.stimulus)
    scale = _Scale(at_rest_uv(trials), unit_uv(trials), inputs.shape[-2], delays)
    scaled = scale.applied(trials)
    moments = [_moments(window, scaled[part], inputs[part], delays) for part in parts]
    best, lowest, left = _Choice(delays, _MODES[0], _INPUT_RIDGES[-1]), math.inf, trials.response.signal_uv
    for tried in sorted({max(1, delays // 3), delays}):
        folds = [_embedded(_sum(moments, i), scale, tried) for i in range(len(parts))]
        for choice in (_Choice(tried, *pair) for pair in product(_MODES, _INPUT_RIDGES)):
            residual = torch.empty_like(trials.response.signal_uv)
            for part, fold in zip(parts, folds, strict=True):
                run = _run(window, fold.fitted(choice), trials.context.signal_uv[part], inputs[part])
                residual[part] = trials.response.signal_uv[part] - run
            size = float((residual / scale.unit_uv.unsqueeze(-1)).square().mean().nan_to_num(nan=math.inf))
            if size < lowest:  # modes that explode count as infinite
                best, lowest, left = choice, size, residual
    noise = residual_noise(left, window.rate_hz, factors)
    modes = _embedded(_sum(moments, None), scale, best.delays).fitted(best)
    fitted = (modes.rest_uv, modes.embedding, modes.transition, modes.entry, modes.readout)
    return contiguous(DelayEmbeddingForecaster(window, *fitted, *noise))


@dataclass(frozen=True)
class _Scale:
    """Middle and unit of each channel, how many delays an input has, and how many samples the moments reach back."""

    rest_uv: Float[Tensor, " channel"]
    unit_uv: Float[Tensor, " channel"]
    input_delays: int
    delays: int

    def applied(self, trials: Trials) -> Trials:
        """The trials with signals in units about their rest."""
        rest, unit = self.rest_uv.unsqueeze(-1), self.unit_uv.unsqueeze(-1)
        context = replace(trials.context, signal_uv=(trials.context.signal_uv - rest) / unit)
        response = replace(trials.response, signal_uv=(trials.response.signal_uv - rest) / unit)
        return Trials(context, trials.stimulus, response)


@dataclass(frozen=True)
class _Choice:
    """What held-out windows decide."""

    delays: int
    modes: int
    ridge: float


@dataclass(frozen=True)
class _Modes:
    """A fitted decomposition; see DelayEmbeddingForecaster."""

    rest_uv: Float[Tensor, " channel"]
    embedding: Float[Tensor, "mode past channel"]
    transition: Float[Tensor, "mode mode"]
    entry: Float[Tensor, "mode input delay"]
    readout: Float[Tensor, "channel mode"]


def _delayed(window: Window, stimulus: Stimulus) -> Float[Tensor, "*batch input delay time"]:
    """The drive filtered by each delay, from the window's start."""
    drive = window.drive_ma(stimulus)
    reach = max(2, min(round(_INPUT_S * window.rate_hz), window.samples))
    return filtered(delay_basis(_INPUT_BASIS, reach, drive), drive)


def _moments(
    window: Window, trials: Trials, inputs: Float[Tensor, "trial input delay time"], delays: int
) -> Float[Tensor, "entry entry"]:
    """Products of `delays` + 1 samples, newest first, then the input of the newest, summed over trials and time.

    Signals are in units about their rest. Context and response are read as one stretch where they touch.
    """
    size = (delays + 1) * window.channels + inputs.shape[1] * inputs.shape[2]
    total = inputs.new_zeros(size, size)
    for start in range(0, len(trials), _CHUNK):
        some = slice(start, start + _CHUNK)
        before, after = trials.context.signal_uv[some], trials.response.signal_uv[some]
        v = inputs[some].flatten(1, 2)[..., window.lead :]
        quiet = v.new_zeros(*v.shape[:-1], before.shape[-1])
        stretches = [(before, quiet), (after, v)]
        if window.lead == 0:
            stretches = [(torch.cat([before, after], -1), torch.cat([quiet, v], -1))]
        for y, u in stretches:
            past = [y[..., delays - lag : y.shape[-1] - lag] for lag in range(delays + 1)]
            rows = torch.cat([*past, u[..., delays:]], 1).movedim(1, 0).flatten(1)
            total = total + rows @ rows.mT
    return total


def _sum(moments: list[Tensor], held: int | None) -> Tensor:
    return torch.stack([part for i, part in enumerate(moments) if i != held]).sum(0)


@dataclass(frozen=True)
class _Embedded:
    """Products of the delayed signals along their principal directions: of old with old and new, and with the input."""

    scale: _Scale
    directions: Float[Tensor, "delayed mode"]
    past: Float[Tensor, "mode mode"]
    cross: Float[Tensor, "mode input"]
    input: Float[Tensor, "input input"]
    next_past: Float[Tensor, "mode mode"]
    next_input: Float[Tensor, "mode input"]

    def fitted(self, choice: _Choice) -> _Modes:
        """The leading modes and their dynamics, embedding and readout in uV."""
        scale, count = self.scale, min(choice.modes, self.directions.shape[-1])
        past, cross = self.past[:count, :count], self.cross[:count]
        gram = torch.cat([torch.cat([past, cross], 1), torch.cat([cross.mT, self.input], 1)])
        target = torch.cat([self.next_past[:count, :count], self.next_input[:count]], 1)
        size = gram.diagonal()
        ridge = torch.cat([_MODE_RIDGE * size[:count].mean().expand(count),
                           choice.ridge * _mean_used(size[count:]).expand(len(size) - count)])  # fmt: skip
        weight = torch.linalg.solve(gram + torch.diag(ridge + 1e-12), target.mT).mT
        directions = self.directions[:, :count]
        delayed = directions.mT.unflatten(-1, (choice.delays, -1)) / scale.unit_uv
        entry = weight[:, count:].unflatten(-1, (-1, scale.input_delays))
        readout = scale.unit_uv.unsqueeze(-1) * directions[: len(scale.unit_uv)]
        return _Modes(scale.rest_uv, delayed, weight[:, :count], entry, readout)


def _embedded(moments: Float[Tensor, "entry entry"], scale: _Scale, delays: int) -> _Embedded:
    """Principal directions of `delays` delayed samples, as many as any choice has modes."""
    channels = len(scale.rest_uv)
    newer, older = slice(0, delays * channels), slice(channels, (delays + 1) * channels)
    input_ = slice((scale.delays + 1) * channels, None)
    u = torch.linalg.eigh(moments[older, older]).eigenvectors.flip(-1)[:, : max(_MODES)]
    past, following = u.mT @ moments[older, older] @ u, u.mT @ moments[newer, older] @ u
    cross, following_input = u.mT @ moments[older, input_], u.mT @ moments[newer, input_]
    return _Embedded(scale, u, past, cross, moments[input_, input_], following, following_input)


def _mean_used(diagonal: Tensor) -> Tensor:
    """Mean of the entries that are not zero: inputs never delivered do not loosen the ridge on the others."""
    used = diagonal > 1e-9 * diagonal.max().clamp_min(1e-30)
    return diagonal[used].mean() if bool(used.any()) else diagonal.new_ones(())


def _run(
    window: Window, modes: _Modes, context: Float[Tensor, "*batch channel past"],
    inputs: Float[Tensor, "*rows input delay time"],
) -> Float[Tensor, "*rows channel time"]:  # fmt: skip
    """Embed the context, then run on with the input."""
    rest, past = modes.rest_uv.to(context).unsqueeze(-1), modes.embedding.shape[1]
    newest = context[..., -past:].flip(-1) - rest
    state = torch.einsum("mlc,...cl->...m", modes.embedding.to(context), newest)
    push = torch.einsum("mid,...idt->...tm", modes.entry.to(context), inputs)
    move, steps = modes.transition.to(context).mT, []
    for step in range(window.lead + window.samples):
        state = state @ move + push[..., step, :]
        steps.append(state)
    run = torch.stack(steps[window.lead :], -1)  # [*rows, mode, time]
    answer: Tensor = rest + modes.readout.to(context) @ run
    return answer
