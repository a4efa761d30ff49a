"""The stimulus as the amplifier sees it: conducted through the volume at once, with a tail that decays.

    artefact(t) = coupling (first(t) - (1 - late) second(t) - late tail(t))
    tail' = (second - tail) / tail_s

`first` and `second` are the currents of a pulse's two phases. A share `late` of the second
phase reaches the channel late, through the polarised interface of metal and tissue, so a pulse
leaves a spike and an opposite overshoot that decays. Every sample is the mean over its bin, from
the closed form of the integral: nothing depends on where pulses fall between samples, and once
the tails are over, the artefact of a charge-balanced train integrates to zero.

References: Merrill, Bikson and Jefferys 2005, J Neurosci Methods 141:171-198 (why an interface stays polarised after
a balanced pulse); Nunez and Srinivasan, Electric Fields of the Brain, Oxford 2006 (point source).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError, ShapeError
from stimopt.montage import Montage
from stimopt.stimulus import Stimulus
from stimopt.system import State
from stimopt.tensors import Signal
from stimopt.waveform import current_ma

from .amplifier import SensedWindow, StatefulPart
from .drive import CONDUCTIVITY_S_M, point_source_potential
from .lead_field import contact_places

_UV_PER_MV = 1e3


@dataclass(frozen=True)
class Artefact(StatefulPart):
    """Current at contacts seen by channels. Differentiable in amplitude, frequency, width, gap and onset.

    A session begins without a tail. A pulse that its window is too short for is cut off, and so is what it leaves.

    State   "tail_ma"   [*batch, contact]   what the interface is polarised by, before the share `late`

    Attributes:
        uv_per_ma: Voltage of each channel per mA at each contact while the current flows; see `artefact_coupling`.
        late: Share of the second phase that comes late, 0 to 1. Chosen: with 0.1, a channel 1 cm from a pair that
            carries 3 mA sees a tail of about 0.1 mV after 200 us.
        tail_s: Time constant of the tail.
    """

    uv_per_ma: Float[Tensor, "channel contact"]
    late: float = 0.1
    tail_s: float = 5e-3

    def __post_init__(self) -> None:
        if not (0 <= self.late <= 1 and self.tail_s > 0):
            raise ConfigError(
                f"late is {self.late} and tail_s {self.tail_s}; give a share of 0 to 1 and a time above 0 s."
            )

    def start(self, signal_uv: Signal, window: SensedWindow) -> State:
        """See StatefulPart."""
        return {"tail_ma": torch.zeros_like(window.stimulus.amplitude_ma)}

    def continued(self, state: State, signal_uv: Signal, window: SensedWindow) -> tuple[Signal, State]:
        """See StatefulPart.

        Raises:
            ShapeError: If the coupling is for other channels.
        """
        if self.uv_per_ma.shape[0] != signal_uv.shape[-2]:
            raise ShapeError(
                f"uv_per_ma must be [channel, contact] for {signal_uv.shape[-2]} channels, "
                f"got {list(self.uv_per_ma.shape)}; build it from the montage that is sensed."
            )
        stimulus, samples = window.stimulus, signal_uv.shape[-1]
        edges_s = torch.arange(samples + 1, dtype=torch.float64, device=signal_uv.device) / window.rate_hz
        left = torch.exp(-edges_s / self.tail_s)
        tail_ma = state["tail_ma"]
        falling = (left.diff() * self.tail_s * window.rate_hz).to(tail_ma)  # minus its mean over each bin
        earlier_ma = self.late * tail_ma.unsqueeze(-1) * falling
        seen_ma = (self.seen_ma(stimulus, window.rate_hz, samples) + earlier_ma).to(signal_uv)
        second_s, tail_s = late_phase_seconds(stimulus, edges_s[-1:], self.tail_s)
        fresh_ma = stimulus.amplitude_ma * ((second_s - tail_s) / self.tail_s).to(tail_ma)
        after = {"tail_ma": tail_ma * left[-1].to(tail_ma) + fresh_ma}
        return signal_uv + self.uv_per_ma.to(signal_uv) @ seen_ma, after

    def seen_ma(self, stimulus: Stimulus, rate_hz: float, samples: int) -> Float[Tensor, "*batch contact time"]:
        """The current that would make this artefact without any tail, mean over each sample's bin."""
        edges_s = torch.arange(samples + 1, dtype=torch.float64, device=stimulus.pulses.device) / rate_hz
        second_s, tail_s = late_phase_seconds(stimulus, edges_s, self.tail_s)
        owed = (second_s - tail_s).diff(dim=-1) * rate_hz  # share of each bin by which the tail is behind
        late = self.late * stimulus.amplitude_ma.unsqueeze(-1) * owed.to(stimulus.amplitude_ma).unsqueeze(-2)
        return current_ma(stimulus, rate_hz, samples / rate_hz) + late


def late_phase_seconds(
    stimulus: Stimulus, time_s: Float[Tensor, " time"], tail_s: float
) -> tuple[Float[Tensor, "*batch time"], Float[Tensor, "*batch time"]]:
    """Seconds of second phases by each time, as delivered and as they come through an exponential tail (float64).

    With pulse k's second phase of width w at s_k, Q(t) the seconds delivered and x' = (1 - x) / tail within a phase,
    x' = -x / tail outside, what has come through by t is Q(t) - tail x(t). The x that earlier pulses left is the sum
    of a geometric series, since they are a period apart.

    Args:
        stimulus: What is delivered.
        time_s: Times from the start of the window.
        tail_s: Time constant.
    """
    width, gap, frequency, pulses, onset = (
        x.double().unsqueeze(-1)
        for x in (
            stimulus.pulse_width_us * 1e-6,
            stimulus.interphase_us * 1e-6,
            stimulus.frequency_hz,
            stimulus.pulses,
            stimulus.onset_s,
        )
    )
    since = time_s - (onset + width + gap)  # [*batch, time], since the first second phase began
    over = torch.minimum((since * frequency).detach().floor().clamp_min(0.0), (pulses - 1).clamp_min(0.0))
    local = (since - over / frequency).clamp_min(0.0)  # since the latest second phase began
    within = torch.minimum(local, width)
    newest = -torch.expm1(-within / tail_s) * torch.exp(-(local - within) / tail_s)
    each = -torch.expm1(-width / tail_s) * torch.exp(-(local - width + 1 / frequency) / tail_s)
    earlier = each * torch.expm1(-over / (frequency * tail_s)) / torch.expm1(-1 / (frequency * tail_s))
    delivered = (over * width + within) * (pulses > 0)
    return delivered, delivered - tail_s * (newest + earlier) * (pulses > 0)


def artefact_coupling(
    montage: Montage, *, conductivity_s_m: float = CONDUCTIVITY_S_M, like: Tensor | None = None
) -> Float[Tensor, "channel contact"]:
    """Voltage of each channel per mA at each contact, uV: point sources in a homogeneous medium.

    A contact that carries current reads its own field at 1 mm; the voltage over its own interface, which is larger,
    is not in it: such channels are best taken as saturated or lost.

    Args:
        montage: Its contacts carry current and its channels read.
        conductivity_s_m: Of the tissue.
        like: Gives dtype and device; None for float64 on the CPU.

    Raises:
        MontageError: If the place of a contact is not known.
    """
    places = contact_places(montage, torch.zeros((), dtype=torch.float64) if like is None else like)
    field_mv = point_source_potential(places, places, conductivity_s_m=conductivity_s_m)  # [contact, contact]
    return _UV_PER_MV * (montage.channel_matrix.to(places) @ field_mv)
