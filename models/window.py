"""The window that a forecaster was fitted on: which channels, how fast, how long, how much context.

Every forecaster of this wing carries one. It refuses signals that do not fit, brings
the context to the batch and dtype of the stimulus, and dresses numbers as a Response.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import DataError, ShapeError
from stimopt.forecaster import Context, Forecaster, Trials
from stimopt.montage import Montage, montage_from_dict, montage_to_dict
from stimopt.response import Response
from stimopt.stimulus import Stimulus
from stimopt.tensors import map_tensors, require_finite

from .drive import Tiring, leading_current_ma, tired_current_ma

Fitted = TypeVar("Fitted", bound=Forecaster)


@dataclass(frozen=True)
class Window:
    """Montage, rate and lengths.

    Attributes:
        montage: Contacts and channels.
        rate_hz: Samples per second of context and response.
        start_s: Time of the first forecast sample after the window's start.
        context_samples: How much context was seen; longer contexts are cut to their end.
        samples: How many samples are forecast.
        tiring: How pulses count in the drive; None for all alike.
    """

    montage: Montage
    rate_hz: float
    start_s: float
    context_samples: int
    samples: int
    tiring: Tiring | None = None

    @property
    def lead(self) -> int:
        """Samples between the window's start, where stimuli begin, and the first forecast sample."""
        return round(self.start_s * self.rate_hz)

    @property
    def channels(self) -> int:
        """How many channels."""
        return len(self.montage.channels)

    def context_signal(self, context: Context, stimulus: Stimulus) -> Float[Tensor, "*batch channel time"]:
        """The last `context_samples` of the context in the stimulus's dtype; its batch broadcasts, unexpanded.

        Raises:
            ShapeError: If montage, rate or length are not those fitted on, or the batches do not broadcast.
        """
        for name, montage in (("context", context.montage), ("stimulus", stimulus.montage)):
            if not _same(montage, self.montage):
                raise ShapeError(f"the {name}'s montage is not the one this model was fitted on; fit one for it.")
        if context.rate_hz != self.rate_hz:
            raise ShapeError(f"context has rate_hz {context.rate_hz}, the model {self.rate_hz}; resample the context.")
        if context.signal_uv.shape[-1] < self.context_samples:
            raise ShapeError(
                f"context has {context.signal_uv.shape[-1]} samples; the model needs {self.context_samples}."
            )
        batch = context.signal_uv.shape[:-2]
        if torch.broadcast_shapes(batch, stimulus.batch_shape) != stimulus.batch_shape:
            raise ShapeError(f"context batch {list(batch)} does not broadcast to stimuli {list(stimulus.batch_shape)}.")
        start = context.signal_uv.shape[-1] - self.context_samples
        return context.signal_uv[..., start:].to(stimulus.amplitude_ma)

    def drive_ma(self, stimulus: Stimulus) -> Float[Tensor, "*batch input time"]:
        """Rectified current of first phases, mA, from the window's start: `lead` samples, then the forecast ones.

        Cathodic current of all contacts, then anodic. Pulses count alike, or as `tiring` says.
        """
        samples = self.lead + self.samples
        if self.tiring is None:
            return leading_current_ma(stimulus, self.rate_hz, samples)
        return tired_current_ma(stimulus, self.rate_hz, samples, self.tiring)

    def response(self, signal_uv: Float[Tensor, "*batch channel time"]) -> Response:
        """These numbers as a Response of this window."""
        return Response(self.montage, signal_uv, self.rate_hz, self.start_s)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in ("rate_hz", "start_s", "context_samples", "samples")}
        tiring = None if self.tiring is None else asdict(self.tiring)
        return {**plain, "montage": montage_to_dict(self.montage), "tiring": tiring}


def window_of(trials: Trials) -> Window:
    """The window that these trials were recorded in.

    Raises:
        DataError: If there are fewer than four trials, no signal, or context and response differ in rate.
        ShapeError: If a signal is not finite.
    """
    context, response = trials.context, trials.response
    if len(trials) < 4:
        raise DataError(f"a model needs at least 4 trials, got {len(trials)}; record more.")
    if response.signal_uv.shape[-1] < 2:
        raise DataError("these trials kept no response signals; a model of signals cannot be fitted to outcomes alone.")
    if context.rate_hz != response.rate_hz:
        raise DataError(f"context has {context.rate_hz} Hz and response {response.rate_hz} Hz; resample one of them.")
    require_finite("context", context.signal_uv)
    require_finite("response", response.signal_uv)
    lengths = context.signal_uv.shape[-1], response.signal_uv.shape[-1]
    return Window(response.montage, response.rate_hz, response.start_s, *lengths)


def in_double(trials: Trials) -> Trials:
    """The same trials in float64, in which fits are computed."""
    return map_tensors(trials, lambda tensor: tensor.double())


def contiguous(forecaster: Fitted) -> Fitted:
    """The same forecaster, tensors laid out as a file keeps them, so that a saved one is equal to the last bit."""
    return map_tensors(forecaster, torch.Tensor.contiguous)


def window_from_dict(plain: Mapping[str, Any]) -> Window:
    """The window that `Window.to_dict` wrote."""
    tiring = plain.get("tiring")
    told = {"montage": montage_from_dict(plain["montage"]), "tiring": None if tiring is None else Tiring(**tiring)}
    return Window(**{**plain, **told})


def _same(one: Montage, other: Montage) -> bool:
    """Same contacts and channels by name; places may carry rounding from a file."""
    return one is other or (
        one.channels == other.channels and [c.name for c in one.contacts] == [c.name for c in other.contacts]
    )
