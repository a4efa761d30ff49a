"""`stimopt pretrain`: a file says which virtual patients and recordings, and how to train; a checkpoint comes out.

Beside the checkpoint MODEL lies its run, MODEL.run, with the corpora, the state of training and its log. A run that
was stopped at any moment goes on with `--resume` as if it had not been. Patients are built by `virtual_corpus`; what
trains is an entry point in `stimopt.trainers`. Started by `torchrun`, the first process builds and writes, and all
of them train.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from . import plugins
from .config import Strict, parsed, text_of
from .errors import DataError, RunError
from .fitting import read_trials, without_artefact
from .forecaster import Trials
from .provenance import provenance, write_atomically
from .virtual_corpus import FIRST, TRAINING_MIX, build_corpus, corpus_plan

Progress = Callable[[str, int, int, str], None]
CONTEXT_S, RESPONSE_S = 1.0, 0.5
"""Windows of recordings before and after each onset, as in a virtual corpus."""
_FILE, _GATHERED = "pretrain.yaml", "gathered"
_FIRST = {"corpus": FIRST["training"], "validation": FIRST["validation"]}


class PatientsSpec(Strict):
    """Virtual patients: how many, of which families (shares, or names with equal shares), with how many trials.

    `after` passes over the first so many patients, such as those that the weights one starts from have met. `drawing`
    are options of what records them, such as {shared: 0.2} for currents that neighbouring pairs share.
    """

    patients: int = Field(ge=1)
    after: int = Field(default=0, ge=0, lt=FIRST["validation"] // 2)
    families: dict[str, float] | list[str] = Field(default_factory=lambda: dict(TRAINING_MIX), min_length=1)
    trials: int = Field(default=48, ge=4)
    drawing: dict[str, float | list[float]] = Field(default_factory=dict)


class RecordingSpec(Strict):
    """A recording with stimulation (.nc, .zarr or a BIDS-iEEG folder) and the artefact to bridge after each onset."""

    path: str
    skip_s: float = Field(default=0.0, ge=0)


class Pretraining(Strict):
    """One pretraining: `stimopt pretrain CONFIG.yaml`."""

    name: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0)
    trainer: str = "ieeg-foundation"
    virtual: PatientsSpec | None = None
    corpora: list[str] = Field(default_factory=list)
    recordings: list[RecordingSpec] = Field(default_factory=list)
    validation: PatientsSpec
    recipe: dict[str, Any] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    workers: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _something(self) -> "Pretraining":
        if self.virtual is None and not self.corpora and not self.recordings:
            raise ValueError("there is nothing to learn from; give 'virtual', 'corpora' or 'recordings'")
        if "seed" in self.recipe:
            raise ValueError("the recipe has a seed; give the file's own 'seed' instead")
        return self


def read_pretraining(path: Path) -> Pretraining:
    """A checked file.

    Raises:
        ConfigError: With the file, the line and the key of the first mistake.
    """
    return parsed(text_of(path), str(path), Pretraining)


def pretrain_from(
    path: Path, out: Path, *, seed: int | None = None, resume: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Build the corpora that a file names, train on them, and write a checkpoint.

    Args:
        path: The file.
        out: Folder of the checkpoint, created; its run is kept beside it.
        seed: In place of the file's.
        resume: Whether to go on with a run of the same file.
        progress: Told what is done, how far, out of how much, and a note.

    Returns:
        The checkpoint, the run and the metrics; nothing in all but the first of several processes.

    Raises:
        ConfigError: If the file is wrong.
        DataError: If there is too little to learn from.
        RunError: If `out` exists, or a run is there and not to be resumed, or one of another file.
    """
    plan = read_pretraining(path)
    plan = plan if seed is None else plan.model_copy(update={"seed": seed})
    run, told = out.with_name(out.name + ".run"), progress if _first() else None
    train = plugins.find("trainers", plan.trainer)
    metrics = train(
        lambda: _gathered(plan, run, out, resume, told), run / "training", out, machine=plan.machine, resume=resume,
        recipe={**plan.recipe, "seed": plan.seed}, progress=told,
        command=f"stimopt pretrain {path.name} --out {out.name} --seed {plan.seed}",
    )  # fmt: skip
    if not _first():
        return {}
    write_atomically(out / _FILE, _text(plan))
    write_atomically(out / "run.json", json.dumps(provenance(seed=plan.seed), indent=2))
    return {"model": str(out), "run": str(run), "metrics": metrics}


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars on standard error, one for each thing that is done, with the time that is left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    name, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    with Progress(
        name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note, console=Console(stderr=True)
    ) as bars:
        tasks: dict[str, Any] = {}

        def told(what: str, done: int, total: int, said: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, note="")
            bars.update(tasks[what], completed=done, total=total, note=said)

        yield told


def _gathered(
    plan: Pretraining, run: Path, out: Path, resume: bool, progress: Progress | None
) -> tuple[Sequence[Path], Path, Mapping[str, Trials]]:
    """Corpora to learn from, the one to be judged on, and recorded trials; the first process makes what is missing."""
    folders = {"corpus": run / "corpus", "validation": run / "validation"}
    if _first():
        _begin(plan, run, out, resume)
        for name, folder in folders.items():
            if (patients := plan.virtual if name == "corpus" else plan.validation) is not None:
                _build(plan, patients, folder, name, progress)
        write_atomically(run / _GATHERED, "")
    while not (run / _GATHERED).exists():  # another process builds; should it fail, torchrun ends this one too
        time.sleep(0.2)
    made = [] if plan.virtual is None else [folders["corpus"]]
    recordings = {spec.path: _read(spec) for spec in plan.recordings}
    return [*made, *map(Path, plan.corpora)], folders["validation"], recordings


def _begin(plan: Pretraining, run: Path, out: Path, resume: bool) -> None:
    """Refuse what cannot be, before anything is created; then create the run's folder."""
    if out.exists():
        raise RunError(f"{out} exists; choose another --out.")
    for name, spec in (("corpus", plan.virtual), ("validation", plan.validation)):
        if spec is not None:
            corpus_plan(run / name, seed=plan.seed, **_asked(spec, name))
    for folder in map(Path, plan.corpora):
        if not folder.is_dir():
            raise DataError(f"corpora: {folder} is no folder; give one that holds records.")
    if run.exists() and not resume:
        raise RunError(f"{run} holds a run; go on with --resume or choose another --out.")
    if run.exists() and (run / _FILE).read_text(encoding="utf-8") != _text(plan):
        raise RunError(f"{run} holds a run of another file or seed; choose another --out.")
    write_atomically(run / _FILE, _text(plan))


def _build(plan: Pretraining, patients: PatientsSpec, folder: Path, name: str, progress: Progress | None) -> None:
    def counted(done: int, total: int) -> None:
        if progress:
            progress(f"{name} patients", done, total, "")

    build_corpus(folder, seed=plan.seed, workers=plan.workers, progress=counted, **_asked(patients, name))


def _asked(spec: PatientsSpec, name: str) -> dict[str, Any]:
    """What `build_corpus` is told of them."""
    return {"first": _FIRST[name] + spec.after, **spec.model_dump(exclude={"after"})}


def _read(spec: RecordingSpec) -> Trials:
    trials = read_trials(Path(spec.path), CONTEXT_S, RESPONSE_S)
    return without_artefact(trials, spec.skip_s) if spec.skip_s else trials


def _text(plan: Pretraining) -> str:
    return yaml.safe_dump(plan.model_dump(), sort_keys=False)


def _first() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0
