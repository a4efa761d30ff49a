"""The stop rule: an after-discharge, seen in the response, ends a session and locks it.

An after-discharge is rhythmic activity that outlasts the train. The signal after the train is read in short
windows; where line length, or power in a band if one is named, stays above its threshold on one channel for
a set time, the rule gives its reason. A short evoked potential raises a few windows and is over too soon.

The threshold is a multiple of the part before the train, so each channel is its own measure, or an absolute line
length, or both: then either is enough.

References: Esteller et al., Proc. IEEE EMBS 2001, 1707-1710 (line length as a seizure detector); Lesser et al.,
Electroencephalography and Clinical Neurophysiology 60 (1985) 69-75 (after-discharges in cortical stimulation).
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import DataError, ShapeError
from .features import band_power, line_length
from .response import Response
from .stimulus import Stimulus
from .tensors import require_finite
from .waveform import train_s

_FEWEST = 8  # samples from which a line length is taken; fewer say little about rest


@dataclass(frozen=True)
class AfterdischargeRule:
    """Called with a response and its stimulus, batch shape (): empty, or the reason to stop.

    Attributes:
        line_length_ratio: Multiple of the channel's own line length before the train.
        for_s: How long the threshold must be passed without a pause. Evoked potentials last to about half a second.
        window_s: Length of one reading; readings overlap by half.
        skip_s: Time after the train that is not read: artefact and the early evoked potential.
        band_hz: Where given, power in this band is watched too, as a multiple of the power before the train.
        band_power_ratio: That multiple; 16 in power is 4 in amplitude.
        line_length_uv_per_s: An absolute threshold on line length, for windows that begin with the train.

    Raises:
        ShapeError: If a setting is not positive, or a ratio not above 1.
    """

    line_length_ratio: float = 4.0
    for_s: float = 0.5
    window_s: float = 0.1
    skip_s: float = 0.1
    band_hz: tuple[float, float] | None = None
    band_power_ratio: float = 16.0
    line_length_uv_per_s: float = math.inf

    def __post_init__(self) -> None:
        if not (self.line_length_ratio > 1 and self.band_power_ratio > 1):
            raise ShapeError(
                f"line_length_ratio {self.line_length_ratio} and band_power_ratio {self.band_power_ratio} must be "
                "above 1: at 1, rest itself would stop the session."
            )
        if not (self.for_s > 0 and self.window_s > 0 and self.skip_s >= 0 and self.line_length_uv_per_s > 0):
            raise ShapeError("for_s, window_s and line_length_uv_per_s must be positive and skip_s not negative.")

    def __call__(self, response: Response, stimulus: Stimulus) -> str:
        """Why to stop; empty to go on.

        A window without current that has nothing before it to compare with is judged by the absolute threshold alone.

        Raises:
            DataError: If the window ends too soon after the train to hold `for_s`, or there is nothing before the
                train to compare with: the rule could then never fire, and says so.
            ShapeError: If it is a batch, or the signal is not finite.
        """
        if response.batch_shape != () or stimulus.batch_shape != ():
            raise ShapeError(
                f"the stop rule reads one response, got a batch of {list(response.batch_shape)}; pick one."
            )
        require_finite("signal_uv", response.signal_uv)
        silent = bool(stimulus.silent)
        onset_s = float(stimulus.onset_s)
        after = self._after(response, onset_s + (0.0 if silent else float(train_s(stimulus)) + self.skip_s))
        rest = self._before(response, onset_s)
        if rest is None and not silent and math.isinf(self.line_length_uv_per_s):
            raise DataError(
                f"the window has less than {_FEWEST} samples before the train at {onset_s} s, so the stop "
                "rule cannot know rest; begin the window earlier, set a later onset_s, or give line_length_uv_per_s."
            )
        with torch.no_grad():
            return self._line_length_reason(after, rest) or self._band_reason(after, rest)

    def _before(self, response: Response, onset_s: float) -> Response | None:
        samples = math.floor((onset_s - response.start_s) * response.rate_hz)
        if samples < _FEWEST:
            return None
        return replace(response, signal_uv=response.signal_uv[..., :samples])

    def _after(self, response: Response, from_s: float) -> Response:
        first = max(0, math.ceil((from_s - response.start_s) * response.rate_hz - 1e-6))
        needed = max(self.for_s, self.window_s)
        if (response.signal_uv.shape[-1] - first) / response.rate_hz < needed - 1e-9:
            end_s = response.start_s + response.signal_uv.shape[-1] / response.rate_hz
            raise DataError(
                f"the window ends at {end_s:.3g} s, and from {from_s:.3g} s the stop rule needs {needed:.3g} s to "
                "see an after-discharge; record longer windows, or shorten the train or for_s."
            )
        return replace(
            response, signal_uv=response.signal_uv[..., first:], start_s=response.start_s + first / response.rate_hz
        )

    def _line_length_reason(self, after: Response, rest: Response | None) -> str:
        found = line_length(self._pieces(after))  # [window, channel]
        limit = torch.full_like(found[0], self.line_length_uv_per_s)
        if rest is not None:
            limit = torch.minimum(limit, self.line_length_ratio * line_length(rest))
        return self._reason("line length", found, limit, after, "uV/s")

    def _band_reason(self, after: Response, rest: Response | None) -> str:
        if self.band_hz is None or rest is None:
            return ""
        found = band_power(self._pieces(after), self.band_hz)
        limit = self.band_power_ratio * band_power(rest, self.band_hz)
        return self._reason(f"power at {self.band_hz[0]:g}-{self.band_hz[1]:g} Hz", found, limit, after, "uV^2")

    def _size_and_step(self, rate_hz: float) -> tuple[int, int]:
        size = max(2, round(self.window_s * rate_hz))
        return size, max(1, size // 2)

    def _pieces(self, response: Response) -> Response:
        size, step = self._size_and_step(response.rate_hz)
        pieces = response.signal_uv.unfold(-1, size, step).movedim(-2, 0)  # [window, channel, time]
        return Response(response.montage, pieces, response.rate_hz)

    def _reason(
        self,
        what: str,
        found: Float[Tensor, "window channel"],
        limit: Float[Tensor, " channel"],
        after: Response,
        unit: str,
    ) -> str:
        size, step = self._size_and_step(after.rate_hz)
        needed = 1 + max(0, math.ceil((self.for_s * after.rate_hz - size) / step - 1e-9))
        longest = _longest_run(found > limit)  # [channel]
        channel = int(longest.argmax())
        if int(longest[channel]) < min(needed, len(found)):
            return ""
        lasted_s = (size + (int(longest[channel]) - 1) * step) / after.rate_hz
        name, peak = after.montage.channels[channel].name, float(found[:, channel].max())
        return (
            f"after-discharge on {name}: {what} stayed above {float(limit[channel]):.3g} {unit} for {lasted_s:.2g} s "
            f"after the train (up to {peak:.3g} {unit}; {self.for_s:g} s stop the session)"
        )


def _longest_run(above: Tensor) -> Tensor:
    """Longest run of True down the first axis, `[channel]`."""
    run = longest = torch.zeros_like(above[0], dtype=torch.int64)
    for row in above:
        run = (run + 1) * row
        longest = torch.maximum(longest, run)
    return longest
