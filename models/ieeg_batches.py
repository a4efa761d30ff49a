"""What pretraining draws: some patients, a few past trials of each, and windows to forecast with their truth.

A batch is a pure function of the seed and the step's number, so a run that was killed goes on with the batches that it
would have had. Half of the time the sites that are asked for are kept out of the past trials, since new sites are
what a search asks for. Where a twin played branches, every asked context comes with three windows: the stimulus,
one near it, and none, all on the same state and noise; at least a third of the windows are then rest.

Heads are turned and shifted and places jittered anew in each batch, pairs of contacts are read either way round;
channels are dropped, and some are only asked for.

Where several processes train together, a step has one batch of each: with as many past trials and as long contexts, of
other patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stimopt.errors import DataError
from stimopt.forecaster import Context
from stimopt.stimulus import Stimulus, no_stimulus
from stimopt.tensors import generator

from .ieeg_corpus import PatientRecord
from .ieeg_subject import Shots, Subject, joined_shots, joined_subjects, shots_of, subject_of
from .ieeg_waves import patch_samples


@dataclass(frozen=True)
class Draw:
    """How batches are drawn.

    Attributes:
        patients: In a batch.
        asked: Contexts of each patient whose windows are forecast.
        past: Numbers of past trials, one of which is drawn for a batch.
        channels: Most channels of a patient in a batch.
        patches: Fewest and most patches of context.
        unheard: Share of channels that are asked for and not heard.
        jitter_mm: Standard deviation of places around where they are said to be.
        shift_mm: Standard deviation of the head's own shift.
        new_sites: Share of batches whose past holds no site that is asked for.
    """

    patients: int = 6
    asked: int = 8
    past: tuple[int, ...] = (0, 1, 2, 3, 5, 8, 12, 16, 20)
    channels: int = 12
    patches: tuple[int, int] = (4, 8)
    unheard: float = 0.06
    jitter_mm: float = 1.5
    shift_mm: float = 15.0
    new_sites: float = 0.5


@dataclass(frozen=True)
class Batch:
    """Tensors of one step, patients first.

    Attributes:
        subject: Who.
        past: Trials in context.
        asked: Contexts and stimuli; each context is shared by `branches` windows.
        truth: What followed, in units of spread.
        good: Which samples of it are good.
        branches: 3 where twins played the stimulus, one near it, and none; 1 for recordings.
        rate_hz: Of everything.
    """

    subject: Subject
    past: Shots
    asked: Shots
    truth: Float[Tensor, "patient window channel time"]
    good: Bool[Tensor, "patient window channel time"]
    branches: int
    rate_hz: float


@dataclass(frozen=True)
class Patient:
    """A record in the network's units: every branch of its trials, and at which contacts each was delivered."""

    subject: Subject
    branches: tuple[Shots, ...]
    site: Bool[Tensor, "trial contact"]
    rate_hz: float


def patient_of(record: PatientRecord) -> Patient:
    """A record in the network's units, float32.

    Raises:
        DataError: If its channels are flat.
    """
    subject = subject_of(record.trials.response.montage, record.rest)
    response, context = record.trials.response, record.trials.context
    silent = no_stimulus(response.montage, (len(record.trials),))
    played: list[tuple[Stimulus, Tensor]] = [(record.trials.stimulus, response.signal_uv)]
    if record.other is not None and record.other_uv is not None and record.silent_uv is not None:
        played += [(record.other, record.other_uv), (silent, record.silent_uv)]
    shots = tuple(_shots(subject, context, stimulus, signal) for stimulus, signal in played)
    return Patient(subject, shots, record.trials.stimulus.amplitude_ma != 0, response.rate_hz)


def _shots(subject: Subject, context: Context, stimulus: Stimulus, response_uv: Tensor) -> Shots:
    single = stimulus.to(torch.zeros(()))
    return shots_of(subject, context, single, response_uv.float(), response_uv.shape[-1])


def draw_batch(patients: Sequence[Patient], draw: Draw, seed: int, step: int, rank: int = 0) -> Batch:
    """The batch of a step.

    Args:
        patients: Where they differ in rate, branches or lengths of windows, a batch holds patients of one kind.
        draw: How.
        seed: Of the run.
        step: Number of the step.
        rank: Of the process that asks.

    Raises:
        DataError: If a patient has too few trials for the numbers of past and asked ones.
    """
    patients, source = _alike(patients, seed, step), generator(seed, "batch", step)
    order = torch.randperm(len(patients), generator=source).tolist()
    chosen = [order[(rank * draw.patients + i) % len(order)] for i in range(min(draw.patients, len(order)))]
    past = draw.past[int(torch.randint(len(draw.past), (), generator=source))]
    kept = int(torch.randint(draw.patches[0], draw.patches[1] + 1, (), generator=source))
    source = generator(seed, "batch", step, rank) if rank else source
    parts = [_drawn(patients[i], draw, past, kept, source) for i in chosen]
    subjects, known, asked = zip(*parts, strict=True)
    windows = joined_shots(asked)
    none = windows.response[..., :0]
    return Batch(
        joined_subjects(subjects), joined_shots(known), replace(windows, response=none, good=none.bool()),
        windows.response, windows.good, len(patients[chosen[0]].branches), patients[chosen[0]].rate_hz,
    )  # fmt: skip


def _alike(patients: Sequence[Patient], seed: int, step: int) -> Sequence[Patient]:
    """Patients who fit into one batch; where there are several kinds, each is drawn as often as it has patients."""
    kinds: dict[tuple[object, ...], list[Patient]] = {}
    for patient in patients:
        shots = patient.branches[0]
        lengths = shots.context.shape[-1], shots.response.shape[-1]
        kinds.setdefault((patient.rate_hz, len(patient.branches), *lengths), []).append(patient)
    if len(kinds) == 1:
        return patients
    drawn = int(torch.randint(len(patients), (), generator=generator(seed, "kind", step)))
    return next(kind for kind in kinds.values() if any(patients[drawn] is patient for patient in kind))


def _drawn(patient: Patient, draw: Draw, past: int, kept: int, source: torch.Generator) -> tuple[Subject, Shots, Shots]:
    order = torch.randperm(len(patient.site), generator=source)
    if len(order) < past + draw.asked:
        raise DataError(f"a patient has {len(order)} trials; batches take {past} past ones and {draw.asked} more.")
    asked, rest = order[: draw.asked], order[draw.asked :]
    if float(torch.rand((), generator=source)) < draw.new_sites:
        rest = _without_sites(patient.site, asked, rest, past)
    subject, heard = _turned(patient.subject, draw, source)
    channels = torch.randperm(len(subject.place_mm), generator=source)[: draw.channels]
    sign = torch.where(subject.bipolar & (torch.rand(len(heard), generator=source) < 0.5), -1.0, 1.0)
    subject = replace(subject, tie=subject.tie * (sign.unsqueeze(-1) * sign).unsqueeze(-1))
    shots = [_read(_short(part, kept, patient.rate_hz, heard), sign) for part in patient.branches]
    known = _unanswered(shots[0].pick(rest[:past]), heard)
    windows = [part.pick(asked) for part in shots]
    merged = {f.name: torch.stack([getattr(part, f.name) for part in windows], 1).flatten(0, 1) for f in fields(Shots)}
    merged |= {"context": windows[0].context, "heard": windows[0].heard}  # shared by the branches
    return _channels(subject, channels), _some(known, channels), _some(Shots(**merged), channels)


def _without_sites(site: Tensor, asked: Tensor, rest: Tensor, past: int) -> Tensor:
    """Trials at other contacts first; trials at the asked ones only fill up what is missing."""
    taken = site[asked].any(0)
    apart = ~(site[rest] & taken).any(-1)
    return torch.cat([rest[apart], rest[~apart]]) if int(apart.sum()) < past else rest[apart]


def _turned(subject: Subject, draw: Draw, source: torch.Generator) -> tuple[Subject, Tensor]:
    """The head turned about its middle and shifted, places jittered, some channels not heard."""
    turn, triangle = torch.linalg.qr(torch.randn(3, 3, generator=source))
    turn = turn * triangle.diagonal().sign()
    middle = subject.contact_mm.nanmean(0)
    shift = draw.shift_mm * torch.randn(3, generator=source)

    def moved(place: Tensor) -> Tensor:
        jitter = draw.jitter_mm * torch.randn(place.shape, generator=source)
        out: Tensor = (place - middle) @ turn + middle + shift + jitter
        return out

    heard = subject.heard & (torch.rand(len(subject.heard), generator=source) >= draw.unheard)
    fingerprint = subject.fingerprint * heard.unsqueeze(-1)
    place, contact = moved(subject.place_mm), moved(subject.contact_mm)
    return replace(subject, place_mm=place, contact_mm=contact, heard=heard, fingerprint=fingerprint), heard


def _short(shots: Shots, patches: int, rate_hz: float, heard: Tensor) -> Shots:
    """The newest patches of the contexts, and nothing of what is not heard but the windows to forecast."""
    kept = min(shots.context.shape[-1], patches * patch_samples(rate_hz))
    known = shots.heard[..., shots.heard.shape[-1] - kept :] & heard.unsqueeze(-1)
    return replace(shots, context=shots.context[..., shots.context.shape[-1] - kept :] * known, heard=known)


def _read(shots: Shots, sign: Tensor) -> Shots:
    """Channels the other way round where the sign is -1."""
    by = sign.unsqueeze(-1)
    return replace(shots, context=shots.context * by, response=shots.response * by)


def _channels(subject: Subject, index: Tensor) -> Subject:
    some = {f.name: getattr(subject, f.name)[index] for f in fields(Subject) if f.name != "contact_mm"}
    return replace(subject, **{**some, "tie": some["tie"][:, index]})


def _some(shots: Shots, index: Tensor) -> Shots:
    names = ("context", "heard", "response", "good")
    return replace(shots, **{name: getattr(shots, name)[..., index, :] for name in names})


def _unanswered(shots: Shots, heard: Bool[Tensor, " channel"]) -> Shots:
    """Past trials without what channels answered that are not heard."""
    known = heard.unsqueeze(-1)
    return replace(shots, response=shots.response * known, good=shots.good & known)
