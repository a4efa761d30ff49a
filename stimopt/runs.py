"""A run's folder: made whole, opened again, resumed.

`experiment.yaml` is the checked file, word for word; `run.json` says where the run comes from
and, of a twin, its circuit, source, noise convention, scheme, step and hash; `trials.sqlite`
and `responses.zarr` hold the trials. The folder appears complete or not at all.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .assembly import FittedModel, Setting, fitted_model, policy_of, require_buildable, setting_of
from .config import Experiment, read_experiment
from .errors import RunError
from .history import TrialStore
from .provenance import provenance, write_atomically
from .session import Session

EXPERIMENT_FILE = "experiment.yaml"
RUN_FILE = "run.json"


@dataclass(frozen=True)
class OpenRun:
    """A run with everything it stands on."""

    folder: Path
    experiment: Experiment
    setting: Setting
    model: FittedModel | None
    session: Session


def create_run(source: Path, folder: Path, seed: int | None = None) -> None:
    """A new run's folder from an experiment file that has been checked to the end; `seed` overrides the file's.

    Raises:
        ConfigError: If the file is wrong; nothing is created.
        RunError: If the folder exists.
    """
    experiment = read_experiment(source)
    setting = setting_of(experiment)
    require_buildable(experiment.policy, setting, experiment.model is not None)
    require_new(folder, "go on with it by --resume, or ")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    draft.mkdir()
    try:
        shutil.copyfile(source, draft / EXPERIMENT_FILE)
        system = {} if setting.system is None else {f"system {k}": v for k, v in setting.system.card().items()}
        lines = provenance(seed=experiment.seed if seed is None else seed, **system)
        write_atomically(draft / RUN_FILE, json.dumps(lines, indent=2))
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def require_new(folder: Path, otherwise: str = "") -> None:
    """Refuse to write into a folder that is already there.

    Raises:
        RunError: If it exists.
    """
    if folder.exists():
        raise RunError(f"{folder} exists; {otherwise}choose another --out.")


def require_same_experiment(source: Path, folder: Path) -> None:
    """Refuse to resume a run with another experiment than it began with.

    Raises:
        RunError: If the folder is no run, or its experiment differs.
    """
    require_run(folder)
    if (folder / EXPERIMENT_FILE).read_bytes() != source.read_bytes():
        raise RunError(
            f"{source} differs from {folder / EXPERIMENT_FILE}; resume with the same file, or choose another --out."
        )


def require_run(folder: Path) -> None:
    """Refuse a folder that is not a run.

    Raises:
        RunError: If it has no experiment file.
    """
    if not (folder / EXPERIMENT_FILE).is_file():
        raise RunError(
            f"{folder} is not a run (it has no {EXPERIMENT_FILE}); start one with 'stimopt search' or 'stimopt ask'."
        )


@contextmanager
def opened_run(folder: Path) -> Iterator[OpenRun]:
    """The run in a folder, with its session at the trial where it stopped.

    Raises:
        RunError: If the folder is no run.
    """
    require_run(folder)
    experiment = read_experiment(folder / EXPERIMENT_FILE)
    setting = setting_of(experiment)
    seed = int(json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["seed"])
    model = fitted_model(experiment, setting, seed)
    policy = policy_of(experiment.policy, setting, model, seed)
    with TrialStore(folder, setting.space.template) as store:
        session = Session(
            policy, setting.objective, setting.envelope, setting.space.template,
            seed=seed, store=store, interval_s=float(experiment.interval_s),
            clock=None if setting.system else time.time, stop_rule=setting.stop_rule,
        )  # fmt: skip
        yield OpenRun(folder, experiment, setting, model, session)
