"""The rails: the largest voltage that an amplifier reads, with a corner and a recovery, or without."""

from dataclasses import dataclass

import torch

from stimopt.errors import ConfigError
from stimopt.system import State
from stimopt.tensors import Signal

from .amplifier import Part, SensedWindow, StatefulPart


@dataclass(frozen=True)
class Saturation(StatefulPart):
    """Hard rails: beyond +-range_uv a channel reads the rail, and for `recovery_s` afterwards still that rail.

    Differentiable where it does not clip; a clipped or recovering sample has no gradient, for it tells nothing. A
    session begins with channels that are free.

    State   "rail_uv"   [*batch, channel]   the rail that was reached last
            "held"      [*batch, channel]   samples for which it is still read

    Attributes:
        range_uv: Largest voltage that is read.
        recovery_s: Time at the rail after the signal has come back, rounded to whole samples.
    """

    range_uv: float
    recovery_s: float = 0.0

    def __post_init__(self) -> None:
        _require_range(self.range_uv)

    def start(self, signal_uv: Signal, window: SensedWindow) -> State:
        """See StatefulPart."""
        free = torch.zeros_like(signal_uv[..., 0])
        return {"rail_uv": free, "held": free.clone()} if self._recovery(window) else {}

    def continued(self, state: State, signal_uv: Signal, window: SensedWindow) -> tuple[Signal, State]:
        """See StatefulPart."""
        clipped = signal_uv.clamp(-self.range_uv, self.range_uv)
        if not state:
            return clipped, state
        samples, recovery = signal_uv.shape[-1], self._recovery(window)
        time = torch.arange(samples, device=signal_uv.device)
        over = signal_uv.detach().abs() > self.range_uv
        before = state["held"].long().unsqueeze(-1) - recovery - 1  # when it was over last, counted from this window
        last = torch.where(over, time, before).cummax(-1).values  # the latest sample that was over, at each sample
        earlier = state["rail_uv"].unsqueeze(-1)
        rail = torch.where(last < 0, earlier, clipped.detach().gather(-1, last.clamp_min(0)))
        held = (last[..., -1] + recovery + 1 - samples).clamp_min(0)
        after = {"rail_uv": rail[..., -1], "held": held.to(signal_uv)}
        return torch.where(time - last <= recovery, rail, clipped), after

    def _recovery(self, window: SensedWindow) -> int:
        return round(self.recovery_s * window.rate_hz)


@dataclass(frozen=True)
class SoftSaturation(Part):
    """Rails without a corner: range_uv * tanh(x / range_uv). Differentiable everywhere; a twentieth of the range is
    read 0.08 % too small.

    Attributes:
        range_uv: What the largest signals come near.
    """

    range_uv: float

    def __post_init__(self) -> None:
        _require_range(self.range_uv)

    def applied(self, signal_uv: Signal, window: SensedWindow) -> Signal:
        """See Part."""
        return self.range_uv * torch.tanh(signal_uv / self.range_uv)


def _require_range(range_uv: float) -> None:
    if not range_uv > 0:
        raise ConfigError(f"range_uv is {range_uv}; an amplifier needs a positive range, such as 8000 uV.")
