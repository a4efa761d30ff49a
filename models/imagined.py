"""A forecaster played as a System: each drawn response is the context of the next window.

What such a system answers is what the model believes, not what a brain did; a report says
"imagined". Over many windows errors feed on themselves, so long runs drift from the truth.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stimopt.errors import ShapeError
from stimopt.forecaster import Context, Forecast, Forecaster, GaussianForecast
from stimopt.response import Response
from stimopt.stimulus import Stimulus, no_stimulus
from stimopt.system import State, System
from stimopt.tensors import row_keys, row_noise, stream_seed


class ImaginedSystem(System):
    """Draws each response from the forecast, with noise of each row's own.

    State: `signal_uv` [*batch, channel, time], the context of the next window; `key`, the row's noise; `windows`,
    how many have passed.

    Args:
        forecaster: Answers; window length and rate are those of its forecasts.
        context: Windows at rest to start from, `[*rest, channel, time]`; every row begins with one of them.

    Raises:
        ShapeError: If the forecaster does not take this context.
    """

    def __init__(self, forecaster: Forecaster, context: Context) -> None:
        self.forecaster, self.montage = forecaster, context.montage
        rest = context.signal_uv.reshape(-1, *context.signal_uv.shape[-2:])
        self._context = replace(context, signal_uv=rest)
        template = forecaster.forecast(self._context[:1], no_stimulus(context.montage, (1,))).template
        self.rate_hz = template.rate_hz
        self.window_s = template.start_s + template.signal_uv.shape[-1] / template.rate_hz

    def start(self, batch_shape: Sequence[int], generator: torch.Generator) -> State:
        """See System."""
        shape = tuple(batch_shape)
        rest = self._context.signal_uv
        index = torch.randint(0, len(rest), shape, generator=generator, device=generator.device)
        keys = row_keys(shape, generator)
        return {"signal_uv": rest[index], "key": keys, "windows": torch.zeros_like(keys)}

    def respond(self, state: State, stimulus: Stimulus, generator: torch.Generator) -> tuple[Response, State]:
        """See System. The noise is that of the state's rows; `generator` is not used."""
        if state["key"].shape != stimulus.batch_shape:
            raise ShapeError(f"state has batch {list(state['key'].shape)}, the stimulus {list(stimulus.batch_shape)}.")
        before = state["signal_uv"]
        forecast = self.forecaster.forecast(replace(self._context, signal_uv=before), stimulus)
        keys = _window_keys(state)
        drawn = _drawn_gaussian(forecast, keys) if isinstance(forecast, GaussianForecast) else _drawn(forecast, keys)
        after = torch.cat([before, drawn.to(before)], -1)[..., -before.shape[-1] :]
        response = replace(forecast.template, signal_uv=drawn)
        return response, {"signal_uv": after, "key": state["key"], "windows": state["windows"] + 1}


def _window_keys(state: State) -> Int[Tensor, "*batch"]:
    pairs = zip(state["key"].reshape(-1).tolist(), state["windows"].reshape(-1).tolist(), strict=True)
    keys = [stream_seed(key, "window", window) >> 1 for key, window in pairs]
    return torch.tensor(keys, dtype=torch.int64).reshape(state["key"].shape)


def _drawn_gaussian(forecast: GaussianForecast, keys: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch channel time"]:
    """One draw a row, all rows at once."""
    scale, factors = forecast.scale_uv, forecast.factors_uv
    shared = row_noise(keys, factors.shape[-3:-2], 0, scale)
    own = row_noise(keys, scale.shape[-2:], 1, scale)
    return forecast.mean + scale * own + torch.einsum("...k,...kct->...ct", shared, factors)


def _drawn(forecast: Forecast, keys: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch channel time"]:
    """One draw a row where only whole batches can be drawn: the row of the draw that its key names."""
    rows = [forecast.rsample(1, torch.Generator().manual_seed(int(key)))[0].flatten(0, -3) for key in keys.reshape(-1)]
    return torch.stack([row[i] for i, row in enumerate(rows)]).reshape(forecast.mean.shape)
