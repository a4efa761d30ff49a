"""The senses: a flash, a click or a touch, and the afferent firing that it sends to a region, late.

Each modality has one pathway to one region. A presented event sends a volley that begins after the
pathway's latency and rises and falls as an alpha function; its size saturates with intensity, and falls
where events follow each other faster than the pathway can. Events repeat at the stimulus's frequency for
its duration; those that a window is too short for are not presented. What is under way when the window ends
arrives in the next ones, and is part of a twin's state.

Differentiable in intensity, frequency and onset; not in duration, which only counts events.

Input   Sensory                                one modality a batch; intensity in a unit of its own
State   [*batch, modality, step, 3]            firing that is still on its way
Output  [step, 3, *batch, region]              afferent firing at start, middle and end of each step, 1/s

References: Naka and Rushton 1966, J Physiol 185:536-555 (intensity); Jansen and Rit 1995, Biol Cybern 73:357-366 (the
volley of a flash); Foxe and Simpson 2002, Exp Brain Res 142:139-150, Liegeois-Chauvel et al. 1994, Electroenceph clin
Neurophysiol 92:204-214, Allison et al. 1989, J Neurophysiol 62:694-710 (latencies of V1, A1, S1).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError, StimulusError
from stimopt.stimulus import Sensory

from .integrate import stage_drive

LATENCY_S: Mapping[str, float] = {
    "visual": 0.056,  # Foxe and Simpson 2002: mean onset of C1, which V1 makes
    "auditory": 0.013,  # Liegeois-Chauvel 1994: first response in Heschl's gyrus
    "tactile": 0.020,  # Allison 1989: N20 of area 3b, to the median nerve at the wrist
}
VOLLEY_SPIKES = 12.6  # Jansen and Rit 1995: 0.5/s (t/w)^7 exp(-t/w), w = 5 ms, holds 0.5/s * w * 7! spikes
VOLLEY_S = 0.010  # an alpha function of this time constant has the spread of theirs, sqrt(8) * 5 ms

_BINS_PER_STEP = 4
_TAIL = 20.0  # time constants after which 4e-8 of a volley is left
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Pathway:
    """From one sense to one region.

    Attributes:
        region: Index of the region where it ends, such as the one that holds V1.
        latency_s: From an event to the beginning of its volley.
        spikes: Afferent spikes of one volley, per synapse counted in the circuit's drive, at endless intensity.
        half_intensity: Intensity that brings half of them, in the modality's unit.
        volley_s: Time constant of the volley; it peaks this long after it begins.
        follow_hz: Rate of events at which each brings half a volley; chosen, as is the curve
            1 / (1 + (f / follow_hz)^2).
    """

    region: int
    latency_s: float
    spikes: float = VOLLEY_SPIKES
    half_intensity: float = 1.0
    volley_s: float = VOLLEY_S
    follow_hz: float = 40.0


@dataclass(frozen=True)
class Senses:
    """Declared pathways, one for each modality. Built by `declare_senses`.

    Attributes:
        modalities: Their names, as in `Sensory.modality`.
        spikes: Spikes of a full volley at each region.
        latency_s: See `Pathway`.
        half_intensity: See `Pathway`.
        volley_s: See `Pathway`.
        follow_hz: See `Pathway`.
    """

    modalities: tuple[str, ...]
    spikes: Float[Tensor, "modality region"]
    latency_s: Float[Tensor, " modality"]
    half_intensity: Float[Tensor, " modality"]
    volley_s: Float[Tensor, " modality"]
    follow_hz: Float[Tensor, " modality"]

    def tail_steps(self, dt_s: float) -> int:
        """Steps after a window in which its last event may still arrive."""
        return math.ceil(float((self.latency_s + _TAIL * self.volley_s).max()) / dt_s)

    def nothing_under_way(self, batch_shape: tuple[int, ...], dt_s: float) -> Float[Tensor, "*batch modality step 3"]:
        """The state at the beginning of a session."""
        return self.spikes.new_zeros(*batch_shape, len(self.modalities), self.tail_steps(dt_s), 3)

    def firing_hz(
        self, under_way: Float[Tensor, "*batch modality step 3"], sensory: Sensory | None, dt_s: float, steps: int
    ) -> tuple[Float[Tensor, "steps 3 *batch region"], Float[Tensor, "*batch modality step 3"]]:
        """Firing that arrives over a window of `steps`, and what is under way after it.

        Args:
            under_way: What earlier windows left.
            sensory: What is presented in this one; None for nothing.
            dt_s: Integration step.
            steps: Steps of the window.

        Raises:
            StimulusError: If the modality has no pathway, or an intensity, frequency or time is negative.
        """
        waiting = torch.nn.functional.pad(under_way, (0, 0, 0, steps))  # [*batch, modality, steps + tail, 3]
        if sensory is not None and self._presents(sensory):
            place = self.modalities.index(sensory.modality)
            fresh = self._volleys_hz(sensory, place, dt_s, steps)
            only = torch.zeros_like(waiting[..., :1, :1])
            only[..., place, :, :] = 1.0
            waiting = waiting + only * fresh.unsqueeze(-3)
        arriving = waiting[..., :steps, :].movedim((-2, -1), (0, 1))  # [steps, 3, *batch, modality]
        return arriving @ self.spikes, waiting[..., steps:, :]

    def _presents(self, sensory: Sensory) -> bool:
        """Whether there is a pathway for what is presented; nothing at all, of whatever modality, needs none."""
        if sensory.modality not in self.modalities:
            if not bool((sensory.intensity != 0).any()):
                return False
            raise StimulusError(
                f"this twin has no pathway for a {sensory.modality!r} stimulus; it has {', '.join(self.modalities)}."
            )
        for name in ("intensity", "frequency_hz", "duration_s", "onset_s"):
            if bool((getattr(sensory, name) < 0).any()):
                raise StimulusError(f"{name} of the {sensory.modality} stimulus is negative; give 0 or more.")
        return True

    def _volleys_hz(self, sensory: Sensory, place: int, dt_s: float, steps: int) -> Float[Tensor, "*batch step 3"]:
        """Volleys per second and full volley at the stages of the window's steps and of the tail."""
        half, follow_hz = self.half_intensity[place], self.follow_hz[place]
        size = sensory.intensity / (sensory.intensity + half)  # Naka and Rushton
        size = size / (1 + (sensory.frequency_hz / follow_hz).square())
        bins = _BINS_PER_STEP * (steps + self.tail_steps(dt_s))
        edges_s = torch.arange(bins + 1, dtype=torch.float64, device=size.device) * (dt_s / _BINS_PER_STEP)
        events = _events(sensory, dt_s * steps)
        arrived = _arrived(sensory, events, edges_s - self.latency_s[place], self.volley_s[place].double())
        rate_hz = (arrived.diff(dim=-1) * (_BINS_PER_STEP / dt_s)).to(self.spikes)
        staged = stage_drive(rate_hz * size.to(self.spikes).unsqueeze(-1), _BINS_PER_STEP)
        return staged.movedim((0, 1), (-2, -1))


def declare_senses(pathways: Mapping[str, Pathway], like: Float[Tensor, "*batch region"]) -> Senses:
    """Pathways by modality, as in `declare_senses({"visual": Pathway(region=3, latency_s=LATENCY_S["visual"])}, ...)`.

    Args:
        pathways: One for each modality that the patient has.
        like: Any tensor of the circuit that ends in its regions; gives their number, device and dtype.

    Raises:
        ConfigError: If there is no pathway, a region is not there, or a number is impossible.
    """
    regions = like.shape[-1]
    if not pathways:
        raise ConfigError("senses need a pathway; leave them out where the patient has none.")
    spikes = like.new_zeros(len(pathways), regions)
    for row, (modality, path) in enumerate(pathways.items()):
        if not 0 <= path.region < regions:
            raise ConfigError(f"the {modality} pathway ends in region {path.region}; there are 0 to {regions - 1}.")
        if min(path.latency_s, path.half_intensity, path.volley_s, path.follow_hz) <= 0:
            raise ConfigError(
                f"the {modality} pathway has latency_s {path.latency_s}, half_intensity {path.half_intensity}, "
                f"volley_s {path.volley_s}, follow_hz {path.follow_hz}; give positive numbers."
            )
        spikes[row, path.region] = path.spikes
    names = ("latency_s", "half_intensity", "volley_s", "follow_hz")
    numbers = [like.new_tensor([getattr(path, name) for path in pathways.values()]) for name in names]
    return Senses(tuple(pathways), spikes, *numbers)


def _events(sensory: Sensory, window_s: float) -> Float[Tensor, "*batch"]:
    """How many events are presented: one at least, one more for each period begun, none after the window's end."""
    frequency = sensory.frequency_hz.double()
    lasting = (sensory.duration_s.double() * frequency - _ROUNDING).ceil().clamp_min(1.0)
    left_s = window_s - sensory.onset_s.double()
    fitting = torch.where(frequency > 0, (left_s * frequency - _ROUNDING).ceil(), 1.0)
    shown = torch.minimum(lasting, torch.where(left_s > _ROUNDING, fitting.clamp_min(1.0), 0.0))
    return shown.detach()


def _arrived(
    sensory: Sensory, events: Float[Tensor, "*batch"], time_s: Float[Tensor, " time"], volley_s: Float[Tensor, ""]
) -> Float[Tensor, "*batch time"]:
    """Volleys that have arrived by each time after the latency, a fraction for those that are arriving.

    One volley has arrived up to 1 - (1 + x) exp(-x), x = t / volley_s. Summed over events one period apart this is a
    geometric series and its derivative, so that no axis of events is laid out.
    """
    frequency, onset_s = sensory.frequency_hz.double().unsqueeze(-1), sensory.onset_s.double().unsqueeze(-1)
    frequency = torch.where(frequency > 0, frequency, torch.ones_like(frequency))  # a single event has no period
    since_s = time_s - onset_s
    last = torch.minimum(
        (since_s * frequency).detach().floor().clamp_min(0.0), (events - 1).clamp_min(0.0).unsqueeze(-1)
    )
    local = (since_s - last / frequency).clamp_min(0.0) / volley_s
    period = 1 / (frequency * volley_s)
    ratio, gap = torch.exp(-period), -torch.expm1(-period)
    power = torch.exp(-period * last)
    summed = (1 - ratio * power) / gap
    weighted = ratio * (1 - (last + 1) * power + last * power * ratio) / gap.square()
    left = torch.exp(-local) * ((1 + local) * summed + period * weighted)
    shown = (since_s > 0) & (events > 0).unsqueeze(-1)
    return torch.where(shown, last + 1 - left, torch.zeros_like(left))
