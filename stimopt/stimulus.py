"""What is delivered: trains of charge-balanced pulses at contacts, or something seen, heard or felt.

A pulse is biphasic and symmetric: `amplitude_ma` for `pulse_width_us`, a gap of
`interphase_us`, then the opposite current for the same width. The sign of `amplitude_ma`
is the sign of the first phase: negative is cathodic-first at that contact. Currents that
do not sum to zero over the contacts return through the case. Pulse k starts at
`onset_s + k / frequency_hz`, for k = 0 .. `pulses` - 1. No stimulus is an explicit zero.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import MontageError, ShapeError, StimulusError
from .montage import Montage
from .tensors import map_tensors, require_finite
from .units import SECONDS_PER_MICROSECOND, phase_charge_uc

_TRAIN = ("frequency_hz", "pulse_width_us", "pulses", "onset_s", "interphase_us")


@dataclass(frozen=True)
class Sensory:
    """A stimulus that enters through no contact: a flash, a click, a touch, light on opsins, or any named features.

    Attributes:
        modality: "visual", "auditory", "tactile", "optical", or "table" for the parameters of a recorded trial table.
        intensity: In the modality's own unit; zero is no stimulus.
        frequency_hz: Repetition rate.
        duration_s: Length.
        onset_s: Start, from the start of the window.
        features: Any further numbers, named by `feature_names`; width zero where there are none.
        feature_names: One name per feature.
    """

    modality: str
    intensity: Float[Tensor, "*batch"]
    frequency_hz: Float[Tensor, "*batch"]
    duration_s: Float[Tensor, "*batch"]
    onset_s: Float[Tensor, "*batch"]
    features: Float[Tensor, "*batch feature"]
    feature_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.features.shape[-1] != len(self.feature_names):
            raise ShapeError(
                f"features ends in {self.features.shape[-1]} but there are {len(self.feature_names)} feature_names; "
                "give one name per feature."
            )


@dataclass(frozen=True)
class Stimulus:
    """A batch of stimuli on one montage. Every tensor shares `*batch`.

    Attributes:
        montage: Whose contacts the current enters.
        amplitude_ma: Current of the first phase per contact, signed.
        frequency_hz: Pulses per second; also set, and positive, for a single pulse.
        pulse_width_us: Width of one phase.
        pulses: How many pulses; a whole number.
        onset_s: Start of the first pulse, from the start of the window.
        interphase_us: Gap between the two phases.
        sensory: What reaches the senses at the same time, if anything.

    Raises:
        ShapeError: If the axes do not fit the montage or each other, or a number is not finite.
        StimulusError: If a width, frequency, count or gap is impossible, or pulses would overlap.
    """

    montage: Montage
    amplitude_ma: Float[Tensor, "*batch contact"]
    frequency_hz: Float[Tensor, "*batch"]
    pulse_width_us: Float[Tensor, "*batch"]
    pulses: Float[Tensor, "*batch"]
    onset_s: Float[Tensor, "*batch"]
    interphase_us: Float[Tensor, "*batch"]
    sensory: Sensory | None = None

    def __post_init__(self) -> None:
        batch = self.amplitude_ma.shape[:-1]
        if self.amplitude_ma.shape[-1:] != (len(self.montage.contacts),):
            raise ShapeError(
                f"amplitude_ma must end in the montage's {len(self.montage.contacts)} contacts, "
                f"got {list(self.amplitude_ma.shape)}."
            )
        for name in _TRAIN:
            value = getattr(self, name)
            if value.shape != batch:
                raise ShapeError(f"{name} must have the batch shape {list(batch)}, got {list(value.shape)}.")
        if not self._sound():
            for name in (*_TRAIN, "amplitude_ma"):
                require_finite(name, getattr(self, name))
            self._require_deliverable()

    def _sound(self) -> bool:
        """Whether all is surely finite and deliverable, by the extremes of the numbers, which is little work; False
        where that takes a closer look.
        """
        if not self.pulses.numel():
            return True
        rows = torch.stack([getattr(self, name).detach() for name in _TRAIN]).reshape(len(_TRAIN), -1)
        low, high = rows.amin(1).tolist(), rows.amax(1).tolist()  # both at once would take several times as long
        frequency_hz, width_us, pulses, onset_s, gap_us = zip(low, high, strict=True)
        longest_s = (2 * width_us[1] + gap_us[1]) * SECONDS_PER_MICROSECOND
        claims = (
            frequency_hz[0] > 0, width_us[0] > 0, pulses[0] >= 0, onset_s[0] >= 0, gap_us[0] >= 0,  # false for NaN
            max(high) < math.inf, math.isfinite(float(self.amplitude_ma.detach().sum())),
            pulses[1] <= 1 or longest_s * frequency_hz[1] <= 1,
            bool((self.pulses == self.pulses.round()).all()),
        )  # fmt: skip
        return all(claims)

    def _require_deliverable(self) -> None:
        pulse_s = (2 * self.pulse_width_us + self.interphase_us) * SECONDS_PER_MICROSECOND
        train = self.pulses > 1
        claims = [
            (self.frequency_hz > 0, "frequency_hz must be positive"),
            (self.pulse_width_us > 0, "pulse_width_us must be positive"),
            (self.interphase_us >= 0, "interphase_us must not be negative"),
            (self.onset_s >= 0, "onset_s must not be negative"),
            ((self.pulses >= 0) & (self.pulses == self.pulses.round()), "pulses must be a whole number, 0 or more"),
            (~train | (pulse_s * self.frequency_hz <= 1 + 1e-9), "pulses overlap: 2 pulse_width_us + interphase_us "
             "passes the period 1 / frequency_hz; shorten the pulse or lower frequency_hz"),
        ]  # fmt: skip
        for holds, sentence in claims:
            if not bool(holds.all()):
                raise StimulusError(f"{sentence}; {int((~holds).sum())} of {holds.numel()} stimuli break this.")

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of `*batch`."""
        return self.pulses.shape

    @property
    def duration_s(self) -> Float[Tensor, "*batch"]:
        """From the start of the first pulse to the end of its last period, `pulses / frequency_hz`."""
        return self.pulses / self.frequency_hz

    @property
    def phase_charge_uc(self) -> Float[Tensor, "*batch contact"]:
        """Signed charge of the first phase at each contact."""
        return phase_charge_uc(self.amplitude_ma, self.pulse_width_us.unsqueeze(-1))

    @property
    def silent(self) -> Tensor:
        """Which stimuli deliver no current, boolean `[*batch]`."""
        return (self.amplitude_ma.detach().abs().sum(-1) == 0) | (self.pulses == 0)

    def __getitem__(self, index: int | slice | Tensor) -> "Stimulus":
        """Pick along the first batch axis."""
        return self._each(lambda tensor: tensor[index])

    def expand(self, *batch_shape: int) -> "Stimulus":
        """Repeat a stimulus with an empty or broadcastable batch over `batch_shape`."""
        depth = len(self.batch_shape)
        return self._each(lambda tensor: tensor.expand((*batch_shape, *tensor.shape[depth:])))

    def reshape(self, *batch_shape: int) -> "Stimulus":
        """Give the batch another shape."""
        depth = len(self.batch_shape)
        return self._each(lambda tensor: tensor.reshape((*batch_shape, *tensor.shape[depth:])))

    def to(self, like: Tensor) -> "Stimulus":
        """Move every tensor to the device and dtype of `like`; itself where all are there."""
        own = [self.amplitude_ma, *(getattr(self, name) for name in _TRAIN)]
        if self.sensory is None and all(x.dtype == like.dtype and x.device == like.device for x in own):
            return self
        return map_tensors(self, lambda tensor: tensor.to(like))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Stimulus":
        """A change of every tensor that alters no number, so nothing is checked again, which would take longer."""
        same = object.__new__(type(self))
        for f in fields(self):
            value = getattr(self, f.name)
            value = change(value) if isinstance(value, Tensor) else value
            object.__setattr__(same, f.name, map_tensors(value, change) if isinstance(value, Sensory) else value)
        return same


def pulse_train(
    montage: Montage,
    contacts: str,
    *,
    amplitude_ma: float,
    frequency_hz: float = 1.0,
    pulse_width_us: float = 200.0,
    pulses: float = 1,
    onset_s: float = 0.0,
    interphase_us: float = 0.0,
) -> Stimulus:
    """One stimulus at a contact ("A1", returned through the case) or a pair ("A1-A2"), batch shape ().

    With a positive `amplitude_ma` the first contact is the cathode of the first phase: it carries
    -amplitude, the second +amplitude. A negative amplitude swaps them.

    Raises:
        MontageError: If a contact is not in the montage.
        StimulusError: If no device could deliver it.
    """
    train = (frequency_hz, pulse_width_us, float(pulses), onset_s, interphase_us)
    numbers = [torch.tensor(float(value), dtype=torch.float64) for value in train]
    frequency, width, count, onset, gap = numbers
    return Stimulus(montage, contact_weights(montage, contacts) * amplitude_ma, frequency, width, count, onset, gap)


def contact_weights(montage: Montage, contacts: str) -> Float[Tensor, " contact"]:
    """Share of the current at each contact: -1 at the cathode, +1 at the anode of "CATHODE-ANODE" (float64).

    Raises:
        MontageError: If a contact is unknown or a pair repeats one.
    """
    names = contacts.split("-")
    if len(names) > 2 or len(set(names)) != len(names):
        raise MontageError(f"{contacts!r} is not a contact or a pair of two contacts; write 'A1' or 'A1-A2'.")
    weights = torch.zeros(len(montage.contacts), dtype=torch.float64)
    for name, sign in zip(names, (-1.0, 1.0), strict=False):
        weights[montage.contact_index(name)] = sign
    return weights


def no_stimulus(montage: Montage, batch_shape: Sequence[int] = ()) -> Stimulus:
    """The explicit zero: no pulse, no current. Frequency and width are set but mean nothing."""
    zero = torch.zeros(tuple(batch_shape), dtype=torch.float64)
    amplitude = torch.zeros(*batch_shape, len(montage.contacts), dtype=torch.float64)
    return Stimulus(montage, amplitude, zero + 1.0, zero + 200.0, zero, zero, zero)


def table_stimulus(montage: Montage, features: Tensor, feature_names: Sequence[str]) -> Stimulus:
    """Parameters of a recorded trial table as a stimulus: no current, named features `[*batch, feature]`."""
    batch = features.shape[:-1]
    zero = features.new_zeros(batch)
    sensory = Sensory("table", zero, zero, zero, zero, features, tuple(feature_names))
    return replace(no_stimulus(montage, batch).to(features), sensory=sensory)
