"""The contract of the data of the foundation model, before any layer.

What is known of a patient at rest is a `Subject`; what happened in a batch of windows is
`Shots`. Signals are in units of each channel's own spread at rest, which is a number of the
patient and never of the window: amplitude is information. Places are absolute mm. Silence is
an explicit zero. Every tensor has the batch of patients first, so patients with different
implants are padded and joined; the order of channels, contacts and trials carries nothing.

Time is in seconds everywhere and never in samples: currents are charge per sample, so the
same train at 250 Hz and at 1000 Hz is the same stimulus.

Subject          [*batch, channel, ...] and [*batch, contact, 3]
Shots            [*batch, shot, ...]
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from stimopt.errors import DataError, ShapeError
from stimopt.forecaster import Context
from stimopt.montage import Montage
from stimopt.stimulus import Sensory, Stimulus

from .drive import even_course, flowing_ma, paired_course, pulse_course, repeated_course
from .ieeg_network import stimulus_features

OF_TRAINS = ("course", "repeated", "paired", "even", "numbers", "senses")  # of `Shots`, alike at all places
KINDS = ("depth", "subdural", "dbs", "micro", "scalp", "none")
MODALITIES = ("visual", "auditory", "tactile", "optical", "table")
SENSORY_FEATURES = 16  # further numbers of a sensory stimulus that are read; the rest is refused
BANDS_HZ = ((1.0, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0), (30.0, 70.0))
LAGS_S = (0.004, 0.008, 0.016, 0.032, 0.064, 0.128)
TIE_LAGS_S = (0.0, 0.012, -0.012, 0.036, -0.036)  # within a cycle of alpha, so that who leads shows
FINGERPRINT = len(BANDS_HZ) + len(LAGS_S) + 2  # bands, autocorrelation, slope of 1/f, size
FADING_S = (0.02, 0.08)  # of what a pulse leaves behind: about as long as synaptic potentials, and as a cycle of alpha
PAIR_LAGS_S = (0.012, 0.024, 0.04, 0.06, 0.085, 0.12, 0.18, 0.28)  # between pulses that answer as a pair
_USUAL_HZ = 250.0  # the rate of pretraining
_CHARGE_MA_US = 200.0  # of a pulse of 1 mA for 200 us, the unit of charge; near the middle of what is used


@dataclass(frozen=True)
class Subject:
    """A patient, or a batch of them, as far as rest tells.

    Attributes:
        place_mm: Of each channel; NaN where unknown.
        kind: Of each channel's electrode, a place in `KINDS`.
        shaft: Number of the electrode that carries it; channels of one shaft share it.
        bipolar: Whether the channel reads a pair of contacts.
        fingerprint: What the channel is like at rest, see `fingerprint_of`.
        rest_uv: Middle of the channel at rest.
        spread_uv: Robust spread at rest, the unit of its signals.
        tie: How a channel goes with another at rest, see `ties_of`.
        heard: Which channels are recorded; others are only asked for.
        there: Which rows are channels and no padding.
        contact_mm: Places where current may enter; NaN where unknown.
    """

    place_mm: Float[Tensor, "*batch channel 3"]
    kind: Int[Tensor, "*batch channel"]
    shaft: Int[Tensor, "*batch channel"]
    bipolar: Bool[Tensor, "*batch channel"]
    fingerprint: Float[Tensor, "*batch channel feature"]
    rest_uv: Float[Tensor, "*batch channel"]
    spread_uv: Float[Tensor, "*batch channel"]
    tie: Float[Tensor, "*batch channel channel lag"]
    heard: Bool[Tensor, "*batch channel"]
    there: Bool[Tensor, "*batch channel"]
    contact_mm: Float[Tensor, "*batch contact 3"]


@dataclass(frozen=True)
class Shots:
    """Windows of one patient, or of a batch of them: what came before, what was delivered, what followed.

    Attributes:
        context: Ongoing signal up to the window, in units of spread. May be fewer than the shots, by a whole factor:
            each is then shared by as many neighbouring shots.
        heard: Which samples of it are good; artefacts and dropouts are not.
        charge: Of the first phase of a pulse at each contact, cathodes then anodes, in units of 1 mA for 200 us;
            current along a shaft is counted from neighbour to neighbour, see `flowing_ma`.
        course: Pulses delivered in each sample; one between two samples counts in those around, in parts.
        repeated: The same, each pulse weighted by what earlier ones left, see `repeated_course`.
        paired: The same, each pulse weighted by how many came about so long before it, see `paired_course`.
        even: The same, each pulse spread over its whole period, see `even_course`.
        numbers: Of the train, see `stimulus_features`; all zero for silence.
        senses: Of a sensory stimulus, see `sensory_features`; all zero for none.
        response: The window itself, in units of spread; no samples where it is asked for.
        good: Which samples of it are good.
    """

    context: Float[Tensor, "*batch before channel past"]
    heard: Bool[Tensor, "*batch before channel past"]
    charge: Float[Tensor, "*batch shot 2 contact"]
    course: Float[Tensor, "*batch shot time"]
    repeated: Float[Tensor, "*batch shot trace time"]
    paired: Float[Tensor, "*batch shot lag time"]
    even: Float[Tensor, "*batch shot time"]
    numbers: Float[Tensor, "*batch shot feature"]
    senses: Float[Tensor, "*batch shot sense"]
    response: Float[Tensor, "*batch after channel answered"]
    good: Bool[Tensor, "*batch after channel answered"]

    def pick(self, index: Tensor | slice) -> "Shots":
        """Some of the shots of one patient, whose batch is empty."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})


def subject_of(montage: Montage, rest: Context) -> Subject:
    """What rest tells of a patient.

    Args:
        montage: Contacts and channels.
        rest: Windows without stimulation, `[window, channel, time]`, uV.

    Raises:
        DataError: If there is no rest, or a channel is flat all through it.
    """
    signal = rest.signal_uv.reshape(-1, *rest.signal_uv.shape[-2:]).float()
    if not signal.numel():
        raise DataError("there is no rest to take scales from; give windows without stimulation.")
    course = signal.movedim(-2, 0).flatten(1)  # [channel, all samples]
    middle = course.median(-1).values
    spread = 1.4826 * (course - middle.unsqueeze(-1)).abs().median(-1).values  # a Gaussian's standard deviation
    flat = [montage.channels[i].name for i in (~(spread > 0)).nonzero().flatten().tolist()]
    if flat:
        raise DataError(f"channels {', '.join(flat)} are flat at rest or not finite; leave them out of the montage.")
    ends = [montage.contacts[montage.contact_index(channel.plus)] for channel in montage.channels]
    shafts = {name: i for i, name in enumerate(dict.fromkeys(end.shaft for end in ends))}
    scaled = (signal - middle.unsqueeze(-1)) / spread.unsqueeze(-1)
    everywhere = torch.ones(len(ends), dtype=torch.bool)
    return Subject(
        place_mm=montage.channel_position_mm.float(),
        kind=torch.tensor([KINDS.index(end.kind) for end in ends]),
        shaft=torch.tensor([shafts[end.shaft] for end in ends]),
        bipolar=torch.tensor([channel.minus is not None for channel in montage.channels]),
        fingerprint=fingerprint_of(scaled, spread, rest.rate_hz),
        rest_uv=middle, spread_uv=spread, tie=ties_of(scaled, rest.rate_hz), heard=everywhere, there=everywhere.clone(),
        contact_mm=montage.contact_position_mm.float(),
    )  # fmt: skip


def fingerprint_of(
    scaled: Float[Tensor, "window channel time"], spread_uv: Float[Tensor, " channel"], rate_hz: float
) -> Float[Tensor, "channel feature"]:
    """Log power of the classic bands, autocorrelation, slope of the spectrum and size of each channel at rest."""
    samples = scaled.shape[-1]
    centred = scaled - scaled.mean(-1, keepdim=True)
    power = torch.fft.rfft(centred * torch.hann_window(samples)).abs().square().mean(0) / samples
    power = power * (_USUAL_HZ / rate_hz)  # a density, so that it does not grow with the rate
    frequency = torch.fft.rfftfreq(samples, 1 / rate_hz)
    bands = []
    for low, high in BANDS_HZ:
        within = (frequency >= low) & (frequency <= high)
        known = bool(within.any()) and low < rate_hz / 2
        bands.append((power[:, within].mean(-1) + 1e-4).log() / 4 if known else torch.zeros(len(spread_uv)))
    product = torch.fft.irfft(torch.fft.rfft(centred, 2 * samples).abs().square().mean(0), 2 * samples)
    correlation = product / product[:, :1].clamp_min(1e-9)
    lags = [correlation[:, min(samples - 1, round(lag * rate_hz))] for lag in LAGS_S]
    fitted = (frequency >= 2) & (frequency <= min(40.0, rate_hz / 2.2))
    octave = frequency[fitted].log2() - frequency[fitted].log2().mean()
    slope = (power[:, fitted] + 1e-6).log2() @ octave / octave.square().sum().clamp_min(1e-9)
    return torch.stack([*bands, *lags, slope / 4, (spread_uv / 50).log() / 3], -1)


def ties_of(scaled: Float[Tensor, "window channel time"], rate_hz: float) -> Float[Tensor, "channel other lag"]:
    """Correlation of each channel with each other at rest, a little later or earlier: the first leads at lags above 0.

    What a stimulus evokes somewhere goes with such correlations in people (Keller et al., PNAS 108 (2011) 10308-10313).
    """
    centred = scaled - scaled.mean(-1, keepdim=True)
    size = centred.square().sum((0, 2)).sqrt().clamp_min(1e-9)
    samples = scaled.shape[-1]
    later = [min(samples - 1, round(lag * rate_hz)) for lag in TIE_LAGS_S if lag >= 0]
    ties = []
    for lag in later:
        product = torch.einsum("wct,wdt->cd", centred[..., : samples - lag], centred[..., lag:])
        ties += [product] if not lag else [product, product.mT]
    return torch.stack(ties, -1) / (size.unsqueeze(-1) * size).unsqueeze(-1)


def shots_of(
    subject: Subject, context: Context, stimulus: Stimulus, response_uv: Tensor | None, samples: int,
    good: Tensor | None = None,
) -> Shots:  # fmt: skip
    """Windows of one patient in the network's units, in the dtype of the stimulus; differentiable in the stimulus.

    Args:
        subject: The patient, batch ().
        context: `[shot, channel, past]` in uV; samples that are not finite count as bad.
        stimulus: `[shot]`.
        response_uv: `[shot, channel, time]`, or None where it is asked for; not finite counts as bad.
        samples: Length of the window, at the context's rate.
        good: Which samples of the response are good, such as those after the artefact.

    Raises:
        ShapeError: If a sensory stimulus has more features than are read.
    """
    like = stimulus.amplitude_ma
    before, heard = in_spreads(subject, context.signal_uv, like)
    empty = like.new_zeros(*before.shape[:-1], 0)
    response, there = (empty, empty.bool()) if response_uv is None else in_spreads(subject, response_uv, like)
    current_ma = flowing_ma(stimulus)
    charge_ma_us = current_ma * stimulus.pulse_width_us[..., None, None]
    more = current_ma.sum((-2, -1)) / like.abs().sum(-1).clamp_min(1e-12)  # than the sum of currents; 0 for silence
    counted = replace(stimulus, amplitude_ma=more.unsqueeze(-1) * like)
    return Shots(
        before, heard, charge_ma_us / _CHARGE_MA_US, pulse_course(stimulus, context.rate_hz, samples),
        repeated_course(stimulus, context.rate_hz, samples, FADING_S),
        paired_course(stimulus, context.rate_hz, samples, PAIR_LAGS_S), even_course(stimulus, context.rate_hz, samples),
        stimulus_features(counted), sensory_features(stimulus.sensory, like), response,
        there if good is None else there & good,
    )  # fmt: skip


def in_spreads(
    subject: Subject, signal_uv: Float[Tensor, "*batch channel time"], like: Tensor
) -> tuple[Float[Tensor, "*batch channel time"], Bool[Tensor, "*batch channel time"]]:
    """In units of spread, zero where it is not known; and where it is."""
    known = signal_uv.isfinite()
    middle, spread = (x.to(like).unsqueeze(-1) for x in (subject.rest_uv, subject.spread_uv))
    return torch.where(known, (signal_uv.to(like) - middle) / spread, 0.0), known


def sensory_features(sensory: Sensory | None, like: Tensor) -> Float[Tensor, "*batch sense"]:
    """Modality, intensity, rate, length, onset and further numbers; all zero where intensity and numbers are.

    Args:
        sensory: What reaches the senses, or None.
        like: A tensor `[*batch, contact]` whose batch, dtype and device are followed.

    Raises:
        ShapeError: If there are more than `SENSORY_FEATURES` further numbers.
    """
    batch, width = like.shape[:-1], len(MODALITIES) + 5 + SENSORY_FEATURES
    if sensory is None:
        return like.new_zeros(*batch, width)
    extra = sensory.features.shape[-1]
    if extra > SENSORY_FEATURES:
        raise ShapeError(f"a sensory stimulus has {extra} features; this model reads {SENSORY_FEATURES} at most.")
    modality = torch.tensor([float(sensory.modality == name) for name in MODALITIES]).to(like)
    given = sensory.intensity / (1 + sensory.intensity.abs())
    numbers = torch.stack([
        given, sensory.intensity.abs().log1p(), sensory.frequency_hz.log1p() / 3 * given, sensory.duration_s * given,
        sensory.onset_s * given,
    ], -1).to(like)  # fmt: skip
    further = F.pad(sensory.features, (0, SENSORY_FEATURES - extra)).to(like)
    return torch.cat([given.to(like).unsqueeze(-1) * modality, numbers, further], -1)


def joined_subjects(subjects: Sequence[Subject]) -> Subject:
    """Patients side by side `[patient, ...]`, padded with channels and contacts that are not there."""
    channels, contacts = (max(getattr(s, name).shape[0] for s in subjects) for name in ("place_mm", "contact_mm"))
    padding = {"place_mm": math.nan, "contact_mm": math.nan, "spread_uv": 1.0}
    joined = {}
    for f in fields(Subject):
        rows = [getattr(s, f.name) for s in subjects]
        size = contacts if f.name == "contact_mm" else channels
        rows = [_padded(row, 0, size, padding.get(f.name, 0)) for row in rows]
        joined[f.name] = torch.stack([_padded(row, 1, size, 0) for row in rows] if f.name == "tie" else rows)
    return Subject(**joined)


def joined_shots(shots: Sequence[Shots]) -> Shots:
    """Equally many windows of several patients side by side `[patient, shot, ...]`, padded like their subjects."""
    channels, contacts = max(s.context.shape[-2] for s in shots), max(s.charge.shape[-1] for s in shots)
    joined = {}
    for name in (f.name for f in fields(Shots)):
        rows = [getattr(s, name) for s in shots]
        if name == "charge":
            rows = [_padded(row, -1, contacts, 0) for row in rows]
        elif name not in OF_TRAINS:
            rows = [_padded(row, -2, channels, 0) for row in rows]
        joined[name] = torch.stack(rows)
    return Shots(**joined)


def _padded(row: Tensor, axis: int, size: int, value: float) -> Tensor:
    shape = list(row.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([row, row.new_full(shape, value)], axis) if shape[axis] else row
