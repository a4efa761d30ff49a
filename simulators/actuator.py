"""A stimulator as devices are: settings in steps, rises in ramps, trains late, delivered unlike commanded.

What is delivered is never more than what was commanded: every rounding goes towards zero, all currents of a
command shrink by one factor, so that a balanced pair stays balanced and the field keeps its shape, a rise is
ramped and a fall is obeyed at once, errors only take away, and pulses that do not fit into the window or would make the
train longer than commanded are left out whole. So of a command inside an envelope no limit from above is passed; two
things may go the other way: rounding may take a frequency or width under a limit from below that does not lie on a
device's step, and a delay ends a train later in its window, though never after it.

Gradients pass through the rounding as if it were not there (straight-through; Bengio, Leonard and Courville 2013,
arXiv:1308.3432): the staircase itself is flat almost everywhere. They are exact for ramp, gain and delay. How many
pulses are left has no gradient.

State   "device_ma"      [*batch, contact]          setting of the last window, from which the ramp rises
        "device_gain"    [*batch]                   share of the setting that this stimulator delivers
        "device_queue"   [*batch, window, number]   commands on their way; only with `delay_windows`
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.stimulus import Stimulus
from stimopt.system import State
from stimopt.tensors import row_noise
from stimopt.units import SECONDS_PER_MICROSECOND
from stimopt.waveform import train_s

_GAIN, _BREAK = -1, -2  # salts that no other use of a row's key has
_ROUNDING = 1e-9
_TRAIN = ("frequency_hz", "pulse_width_us", "pulses", "onset_s", "interphase_us")
_IDLE = (1.0, 200.0, 0.0, 0.0, 0.0)  # numbers of a train that is none, as `no_stimulus` has them


@dataclass(frozen=True)
class Actuator:
    """A stimulator. The default delivers what is commanded, but for pulses that do not fit into the window.

    Attributes:
        amplitude_step_ma: Step of the current; the largest of a command's contacts is rounded down to one, the others
            follow in proportion. 0 for no steps, here and below.
        frequency_step_hz: Step of a train's frequency, rounded down.
        width_step_us: Step of the pulse width, rounded down.
        rise_ma: How much the current of a contact may rise from one window to the next.
        delay_s: How late a train begins within its window.
        delay_windows: How many windows later a command is delivered; silence is as late as any.
        gain_error: Largest share of the current that this stimulator may lack; what it does lack is drawn evenly once
            a session, for each row.
        break_off: Probability that a window's train breaks off; how many pulses are missed is drawn evenly.

    Raises:
        ConfigError: If a step, ramp, delay, error or probability is impossible.
    """

    amplitude_step_ma: float = 0.0
    frequency_step_hz: float = 0.0
    width_step_us: float = 0.0
    rise_ma: float = math.inf
    delay_s: float = 0.0
    delay_windows: int = 0
    gain_error: float = 0.0
    break_off: float = 0.0

    def __post_init__(self) -> None:
        for name in ("amplitude_step_ma", "frequency_step_hz", "width_step_us", "delay_s", "delay_windows"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} of the actuator is {getattr(self, name)}; give 0 or more.")
        if not self.rise_ma > 0:
            raise ConfigError(f"rise_ma of the actuator is {self.rise_ma}; give a positive current, or leave it out.")
        for name in ("gain_error", "break_off"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} of the actuator is {getattr(self, name)}; give a share from 0 to 1.")

    def start(self, keys: Int[Tensor, "*batch"], like: Float[Tensor, " contact"]) -> State:
        """The device at the beginning of a session: off, with nothing on its way. In the dtype and device of `like`."""
        state = {
            "device_ma": like.new_zeros(*keys.shape, len(like)),
            "device_gain": 1 - self.gain_error * _uniform(keys, 1, _GAIN, like)[..., 0],
        }
        if self.delay_windows:
            idle = torch.cat([torch.zeros_like(like), like.new_tensor(_IDLE)])
            state["device_queue"] = idle.expand(*keys.shape, self.delay_windows, -1).contiguous()
        return state

    def deliver(self, state: State, command: Stimulus, window_s: float) -> tuple[Stimulus, State]:
        """What is delivered in a window, and the device after it; the rest of the state is left out.

        Whatever reaches the senses passes by the device, on time and unchanged.

        Args:
            state: Of the device, with the row's "key".
            command: What is commanded in this window.
            window_s: Its length.
        """
        due, queue = self._due(state, command)
        timed = self._timed(due, window_s)
        pulses = self._unbroken(state["key"], timed.pulses)
        on = (pulses > 0).unsqueeze(-1)
        setting_ma = torch.where(on, self._setting_ma(due.amplitude_ma, state["device_ma"]), 0.0)
        current_ma = setting_ma * state["device_gain"].unsqueeze(-1)
        delivered = replace(timed, amplitude_ma=current_ma, pulses=pulses, sensory=command.sensory)
        return delivered, {"device_ma": setting_ma, "device_gain": state["device_gain"]} | queue

    def _due(self, state: State, command: Stimulus) -> tuple[Stimulus, State]:
        """The command that is due in this window, and those that are not yet."""
        if not self.delay_windows:
            return command, {}
        numbers = torch.stack([getattr(command, name) for name in _TRAIN], -1)
        newest = torch.cat([command.amplitude_ma, numbers], -1).unsqueeze(-2)
        waiting = torch.cat([state["device_queue"], newest], -2)
        amplitude_ma, train = waiting[..., 0, : -len(_TRAIN)], waiting[..., 0, -len(_TRAIN) :]
        changes: dict[str, Any] = dict(zip(_TRAIN, train.unbind(-1), strict=True))
        return replace(command, amplitude_ma=amplitude_ma, **changes), {"device_queue": waiting[..., 1:, :]}

    def _timed(self, due: Stimulus, window_s: float) -> Stimulus:
        """Width and frequency on their steps, the train late, and as many whole pulses as it and the window hold."""
        width = _down(due.pulse_width_us, self.width_step_us)
        frequency = torch.where(due.pulses > 1, _down(due.frequency_hz, self.frequency_step_hz), due.frequency_hz)
        possible = (width > 0) & (frequency > 0)
        width, frequency = (
            torch.where(possible, width, due.pulse_width_us),
            torch.where(possible, frequency, due.frequency_hz),
        )
        onset_s = due.onset_s + self.delay_s
        room_s = torch.minimum(train_s(due), window_s - onset_s).double()
        room_s = room_s - (2 * width + due.interphase_us).double() * SECONDS_PER_MICROSECOND
        slack = _ROUNDING if due.pulses.dtype == torch.float64 else 1e-5  # of a period; single precision has no more
        gaps = (room_s * frequency + slack).detach().floor().to(due.pulses)
        pulses = torch.minimum(due.pulses, torch.where(possible, (1 + gaps).clamp_min(0.0), 0.0))
        return replace(due, pulse_width_us=width, frequency_hz=frequency, onset_s=onset_s, pulses=pulses)

    def _setting_ma(
        self, command_ma: Float[Tensor, "*batch contact"], last_ma: Float[Tensor, "*batch contact"]
    ) -> Float[Tensor, "*batch contact"]:
        """The command, shrunk by one factor to what the ramp allows and then to a step."""
        current = command_ma.abs()
        kept = (last_ma * command_ma.sign()).clamp_min(0.0)  # a contact that changes its sign begins at zero
        if self.rise_ma < math.inf:
            asked = torch.where(current > 0, current, torch.ones_like(current))
            share = torch.where(current > 0, (kept + self.rise_ma) / asked, 1.0)
            command_ma = command_ma * share.amin(-1, keepdim=True).clamp_max(1.0)
        if self.amplitude_step_ma == 0:
            return command_ma
        largest = command_ma.detach().abs().amax(-1, keepdim=True)
        rounded = _down(largest, self.amplitude_step_ma) / torch.where(largest > 0, largest, torch.ones_like(largest))
        return command_ma * rounded.clamp_max(1.0)

    def _unbroken(self, keys: Int[Tensor, "*batch"], pulses: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        if self.break_off == 0:
            return pulses
        happens, kept = _uniform(keys, 2, _BREAK, pulses).unbind(-1)
        return torch.where(happens < self.break_off, (kept * pulses).floor(), pulses)


def _down(value: Tensor, step: float) -> Tensor:
    """A positive value rounded down to a step, with the gradient of the value itself.

    A value on a step stays there, whatever its last bits are; no value grows.
    """
    if step == 0:
        return value
    plain = value.detach()
    lower = torch.minimum((plain / step * (1 + 8 * torch.finfo(plain.dtype).eps)).floor() * step, plain)
    return lower + (value - plain)


def _uniform(keys: Int[Tensor, "*batch"], count: int, salt: int, like: Tensor) -> Float[Tensor, "*batch count"]:
    """Numbers between 0 and 1 that depend only on a row's key and the salt."""
    drawn: Tensor = torch.special.ndtr(row_noise(keys, (count,), salt, like))
    return drawn
