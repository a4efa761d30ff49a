"""What patients' circuits have in common, learned from virtual patients: the trainer `ieeg-sources`.

All patients are fitted side by side, each with circuits of its own and what is shared among them. What is learned from
is the effect of stimuli, the difference between a trial and what the same state and noise gave without its stimulus,
which no noise blurs; so records of twins are read, and recordings, which cannot tell it, are refused. A run takes
minutes and starts anew when it is resumed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from stimopt.checkpoint import save_checkpoint
from stimopt.errors import ConfigError, DataError
from stimopt.forecaster import Trials
from stimopt.tensors import concatenate, generator, map_tensors

from .ieeg_corpus import PatientRecord, described, read_record, records_in
from .ieeg_course import QuickCourse
from .ieeg_pretrain import processes
from .ieeg_recipe import checked
from .ieeg_sources import (
    DEVIATIONS,
    KIND,
    OF_SOURCES,
    STEP_HZ,
    SourceModel,
    SourceSize,
    Tissue,
    Trains,
    effects,
    first_own,
    first_shared,
    trains_of,
)
from .ieeg_subject import subject_of

_LIMITS = (
    "Made for sources between contacts whose places are known, and windows of 0.5 s. It forecasts nothing by itself: "
    "circuits are fitted to a patient's own trials. Simulated patients are no people: judge a fitted model on the "
    "patient's own held-out trials first."
)
_RATES = {"own": 1.5e-2, "shared": 1e-2}  # of Adam
_RISE, _FALL = 30, 0.4  # steps until the rates are reached, and the share of steps in which they fall
_LARGEST = {"own": 5.0, "shared": 1.0}  # of gradients' norms
_QUIET = 0.02  # channels whose effects are a smaller share of the patient's are not learned from
_LEAST_SPREAD = 0.02


@dataclass(frozen=True)
class SourceRecipe:
    """Everything that a run depends on, besides its corpus.

    Attributes:
        steps: Of Adam, over all patients each.
        seed: Of first numbers and of draws.
        windows: Of each patient in a step.
        usual: How strongly patients are drawn to what is usual, beside the logarithm of the share of effects left.
        size: Of the circuits.
    """

    steps: int = 900
    seed: int = 0
    windows: int = 4
    usual: float = 1e-3
    size: SourceSize = field(default_factory=SourceSize)

    def __post_init__(self) -> None:
        if min(self.steps, self.windows, self.size.sources, self.size.populations) < 1:
            raise ConfigError(f"steps is {self.steps}, windows {self.windows} and size {self.size}; give 1 or more.")


@dataclass(frozen=True)
class Effects:
    """What stimuli did to a virtual patient, in units of each channel's spread at rest."""

    contact_mm: Float[Tensor, "contact 3"]
    read: Float[Tensor, "channel contact"]
    trains: Trains
    effect: Float[Tensor, "window channel step"]


def train_ieeg_sources(
    gather: Callable[[], tuple[Sequence[Path], Path, Mapping[str, Trials]]], run: Path, out: Path, *,
    recipe: Mapping[str, Any], machine: Mapping[str, Any], resume: bool, command: str,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Learn what circuits have in common from corpora, and write its checkpoint.

    Args:
        gather: See `train_ieeg_foundation`.
        run: Not used: nothing is kept of a run that was stopped.
        out: Folder of the checkpoint.
        recipe: See `SourceRecipe`.
        machine: Has no options.
        resume: Whether corpora that are there are used; training starts anew.
        command: What was typed, for the card.
        progress: Told what is done, how far, out of how much, and a note.

    Returns:
        The card's metrics.

    Raises:
        ConfigError: If the recipe is wrong, or an option of a machine is given.
        DataError: If there are recordings, or no patient of the corpora has effects.
    """
    how = source_recipe_of(recipe)
    if machine:
        raise ConfigError(f"machine has {', '.join(machine)}; circuits are learned on one core, leave it out.")
    if processes() > 1:
        raise ConfigError(f"{processes()} processes run, and circuits are learned by one; start without torchrun.")
    corpora, validation, recordings = gather()
    if recordings:
        raise DataError("recordings do not tell what would have been without a stimulus; give virtual patients alone.")
    records = [read_record(path) for folder in corpora for path in records_in(folder)]
    model, left = learned(effects_of(records), how, progress)
    apart = effects_of([read_record(path) for path in records_in(validation)])
    metrics = {
        "effects left of patients learned from, median share": left,
        "effects left of other patients, with circuits fitted to half of their stimuli, median share": judged(
            model, apart, how
        ),
        "validation patients": float(len(apart)),
    }
    card = {
        "title": "What circuits of sources in patients' tissue have in common",
        "simulated": True, "limits": _LIMITS, "metrics": metrics,
        "training_data": f"{described(records, corpora)} Made by '{command}'.",
    }  # fmt: skip
    save_checkpoint(out, KIND, model, card)
    return metrics


def source_recipe_of(plain: Mapping[str, Any]) -> SourceRecipe:
    """A recipe from plain values, such as a file's; what is left out has its default.

    Raises:
        ConfigError: If a key is unknown or a value of another type.
    """
    size = checked(SourceSize, plain.get("size", {}))
    return checked(SourceRecipe, {**plain, "size": size})


def effects_of(records: Sequence[PatientRecord]) -> list[Effects]:
    """Effects of the records of twins whose places are known, over the window they were played in.

    Raises:
        DataError: If there are none.
    """
    found = []
    for record in records:
        response, montage = record.trials.response, record.trials.response.montage
        alike = response.rate_hz == STEP_HZ and bool(montage.contact_position_mm.isfinite().all())
        if record.silent_uv is None or record.other is None or record.other_uv is None or not alike:
            continue
        spread_uv = subject_of(montage, record.rest).spread_uv.unsqueeze(-1)
        played = ((record.trials.stimulus, response.signal_uv), (record.other, record.other_uv))
        trains = [trains_of(stimulus, response.signal_uv.shape[-1]) for stimulus, _ in played]
        effect = torch.cat([(signal_uv - record.silent_uv) / spread_uv for _, signal_uv in played])
        place_mm, read = montage.contact_position_mm, montage.channel_matrix
        found.append(map_tensors(Effects(place_mm, read, concatenate(trains), effect), Tensor.float))
    if not found:
        raise DataError(f"no patient was recorded in branches at {STEP_HZ:g} Hz with known places; build a corpus.")
    return found


def learned(
    patients: Sequence[Effects], how: SourceRecipe, progress: Callable[[str, int, int, str], None] | None = None
) -> tuple[SourceModel, float]:
    """What these patients' circuits have in common, and the median share of effects that is left."""
    source, together = generator(how.seed, "sources"), _Together.of(patients)
    shared = {n: v.requires_grad_() for n, v in first_shared(how.size, source).items()}
    own = {n: v.requires_grad_() for n, v in first_own(how.size, together.tissue, source).items()}
    groups = {"own": list(own.values()), "shared": list(shared.values())}
    search = torch.optim.Adam([{"params": values} for values in groups.values()])
    nothing = {name: torch.zeros(()) for name in DEVIATIONS}
    before = SourceModel(how.size, shared, nothing, {n: torch.tensor(v) for n, v in DEVIATIONS.items()})
    left = []
    for step in range(how.steps):
        share = min(1.0, (step + 1) / _RISE, (how.steps - step) / (_FALL * how.steps))
        for group, rate in zip(search.param_groups, _RATES.values(), strict=True):
            group["lr"] = share * rate
        each = together.left(shared, own, how.windows, source)
        loss = each.log1p().sum() + how.usual * before.oddness(own).sum()
        search.zero_grad()
        loss.backward()
        for name, values in groups.items():
            torch.nn.utils.clip_grad_norm_(values, _LARGEST[name])
        search.step()
        left.append(float(each.detach().median()))
        if progress:
            progress("training", step + 1, how.steps, f"{left[-1]:.3f} of effects left")
    usual, spread = {}, {}
    for name in DEVIATIONS:
        value = own[name].detach()
        middle = value.mean(0)
        if name in OF_SOURCES:
            middle = middle.mean(0, keepdim=True).expand_as(middle)
        usual[name] = torch.zeros_like(middle) if name == "tie" else middle.clone()
        spread[name] = (value - usual[name]).square().mean().sqrt().clamp_min(_LEAST_SPREAD)
    last = left[-max(1, how.steps // 20) :]
    return SourceModel(how.size, {n: v.detach() for n, v in shared.items()}, usual, spread), sum(last) / len(last)


def judged(model: SourceModel, patients: Sequence[Effects], how: SourceRecipe, steps: int = 150) -> float:
    """Median share of effects left on half of each patient's windows, of circuits fitted to the other half."""
    source = generator(how.seed, "judged")
    halves = [_Together.of([_some(p, slice(i, None, 2)) for p in patients]) for i in (0, 1)]
    own = {n: v.requires_grad_() for n, v in model.begun(halves[0].tissue, source).items()}
    search = torch.optim.Adam(own.values(), lr=2e-2)
    for _ in range(steps):
        search.zero_grad()
        each = halves[0].left(model.shared, own, how.windows, source)
        (each.log1p().sum() + how.usual * model.oddness(own).sum()).backward()
        search.step()
    with torch.no_grad():
        return float(halves[1].left(model.shared, own, None, source).median())


def _some(patient: Effects, rows: slice) -> Effects:
    return replace(patient, trains=map_tensors(patient.trains, lambda x: x[rows]), effect=patient.effect[rows])


@dataclass(frozen=True)
class _Together:
    """Patients side by side, padded with contacts that are nowhere and channels that read nothing."""

    tissue: Tissue
    trains: Sequence[Trains]
    effect: Sequence[Tensor]
    unit: Float[Tensor, "patient channel"]
    heard: Float[Tensor, "patient channel"]
    play: QuickCourse = field(default_factory=QuickCourse)

    @classmethod
    def of(cls, patients: Sequence[Effects]) -> "_Together":
        contacts, channels = (max(p.read.shape[i] for p in patients) for i in (1, 0))
        place = [F.pad(p.contact_mm, (0, 0, 0, contacts - len(p.contact_mm)), value=math.nan) for p in patients]
        read = [F.pad(p.read, (0, contacts - p.read.shape[1], 0, channels - p.read.shape[0])) for p in patients]
        currents = [F.pad(p.trains.current_ma, (0, contacts - p.read.shape[1])) for p in patients]
        trains = [replace(p.trains, current_ma=current) for p, current in zip(patients, currents, strict=True)]
        effect = [F.pad(p.effect, (0, 0, 0, channels - p.effect.shape[1])) for p in patients]
        size = torch.stack([x.square().mean((0, 2)).sqrt() for x in effect])
        heard = size > _QUIET * size.square().mean(1, keepdim=True).sqrt()
        return cls(Tissue(torch.stack(place), torch.stack(read)), trains, effect, size.clamp_min(1e-3), heard.float())

    def left(
        self, shared: Mapping[str, Tensor], own: Mapping[str, Tensor], windows: int | None, source: torch.Generator
    ) -> Float[Tensor, " patient"]:
        """Share of each patient's effects that circuits do not explain, mean over channels that answer.

        Args:
            shared: See `effects`.
            own: See `effects`, a circuit for each patient.
            windows: How many are drawn of each; as many as the fewest have, in order, for None.
            source: Draws them.
        """
        fewest = min(map(len, self.effect))
        some = [
            torch.arange(fewest) if windows is None else torch.randint(len(one), (windows,), generator=source)
            for one in self.effect
        ]
        trains = _stacked([map_tensors(t, lambda x, i=i: x[i]) for t, i in zip(self.trains, some, strict=True)])
        wanted = torch.stack([one[i] for one, i in zip(self.effect, some, strict=True)])
        wanted = wanted / self.unit[:, None, :, None]
        each = (effects(shared, own, self.tissue, trains, play=self.play) - wanted).square().mean((1, 3))
        return (each * self.heard).sum(1) / self.heard.sum(1).clamp_min(1)


def _stacked(trains: Sequence[Trains]) -> Trains:
    return Trains(*(torch.stack([getattr(t, f.name) for t in trains]) for f in fields(Trains)))
