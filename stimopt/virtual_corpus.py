"""A corpus of virtual patients on disk: families mixed, side by side in processes, resumable.

Each patient is a file of its own; what is whole is not made again. A patient is a number, and
numbers of training, validation and test lie a hundred thousand apart, so they never mix.
Families take turns in proportion, so a corpus that is not finished is already a fair mix. One family is held out:
no corpus but a test may have it. All of it is simulated.

    patient   entry point `stimopt.corpus_patients`   number -> System
    record    entry point `stimopt.corpora`           System -> file
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from . import plugins
from .errors import ConfigError, DataError
from .tensors import one_thread, stream_seed

TRAINING_MIX: Mapping[str, float] = {
    "jansen-rit": 0.2, "jansen-rit-cohort": 0.2, "hopf": 0.15, "wendling": 0.15, "linear": 0.1, "kuramoto": 0.1,
    "epileptor": 0.06, "montbrio": 0.04,
}  # fmt: skip
HELD_OUT = "wilson-cowan"
FIRST: Mapping[str, int] = {"training": 0, "validation": 100_000, "test": 200_000}
_RECORD = "ieeg"


@dataclass(frozen=True)
class VirtualRecord:
    """One patient to be made, and where.

    Attributes:
        path: Of the file.
        family: Name of an entry point in `stimopt.corpus_patients`.
        patient: Its number.
        seed: Of stimuli and noise.
        trials: How many.
        connectomes: Folder of group connectomes for families that take them.
        drawing: How stimuli are drawn, options of what records; none for its own.
    """

    path: Path
    family: str
    patient: int
    seed: int
    trials: int
    connectomes: str | None
    drawing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether the file is there and not cut."""
        try:
            with safe_open(self.path, framework="pt"):
                return True
        except (SafetensorError, OSError):
            return False


def build_corpus(
    folder: Path,
    *,
    patients: int,
    seed: int,
    families: Mapping[str, float] | Sequence[str] = TRAINING_MIX,
    first: int = FIRST["training"],
    workers: int = 1,
    trials: int = 48,
    connectomes: Path | None = None,
    drawing: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, ...]:
    """Simulate what is missing of a corpus. The files do not depend on `workers` or on what was there.

    A patient that does not stay finite is left out, with a warning.

    Args:
        folder: Where records go; made if needed.
        patients: How many.
        seed: Of the corpus; the patients themselves depend on their numbers alone.
        families: Share of each family, or names of families with equal shares.
        first: Number of the first patient, from `FIRST`.
        workers: Processes, one thread each.
        trials: Of each patient.
        connectomes: Folder of group connectomes; STIMOPT_DATA/connectomes unless told. Without any, cohorts have
            balls of tissue made at run time.
        drawing: How stimuli are drawn, options of what records.
        progress: Called with how many patients are done and how many there are.

    Returns:
        The records, in order of patients.

    Raises:
        ConfigError: If a family is unknown, a share is not positive, or the held-out family is to be trained on.
    """
    planned = corpus_plan(
        folder, families=families, patients=patients, first=first, seed=seed, trials=trials, connectomes=connectomes,
        drawing=drawing,
    )  # fmt: skip
    missing = [record for record in planned if not record.whole]
    done = len(planned) - len(missing)
    for refusal in _in_processes(missing, workers):
        done += 1
        if refusal:
            warnings.warn(f"{refusal} It was left out of {folder}.", stacklevel=2)
        if progress:
            progress(done, len(planned))
    return tuple(record.path for record in planned if record.whole)


def corpus_plan(
    folder: Path,
    *,
    families: Mapping[str, float] | Sequence[str],
    patients: int,
    first: int,
    seed: int,
    trials: int,
    connectomes: Path | None = None,
    drawing: Mapping[str, Any] | None = None,
) -> tuple[VirtualRecord, ...]:
    """What `build_corpus` makes, in its order; see there."""
    shares = dict(families) if isinstance(families, Mapping) else dict.fromkeys(families, 1.0)
    _require_trainable(shares, first)
    groups = _connectomes() if connectomes is None else str(connectomes)
    return tuple(
        VirtualRecord(
            folder / f"{family}-{number:06d}.safetensors", family, number, stream_seed(seed, "corpus", number), trials,
            groups, drawing or {},
        )
        for number, family in enumerate(interleaved(shares, patients), first)
    )  # fmt: skip


def interleaved(shares: Mapping[str, float], patients: int) -> tuple[str, ...]:
    """Families in turn, so that after any number of patients each has its share, to less than one patient or so."""
    whole, order = sum(shares.values()), list[str]()
    made = dict.fromkeys(shares, 0)
    for number in range(1, patients + 1):
        owed = {family: round(share / whole * number - made[family], 9) for family, share in shares.items()}
        order.append(max(owed, key=lambda family: owed[family]))
        made[order[-1]] += 1
    return tuple(order)


def _require_trainable(shares: Mapping[str, float], first: int) -> None:
    known = plugins.names("corpus_patients")
    for family, share in shares.items():
        if family not in known:
            plugins.find("corpus_patients", family)  # refuses, with the nearest name
        if not share > 0:
            raise ConfigError(f"family {family!r} has share {share}; give a positive one, or leave the family out.")
    if HELD_OUT in shares and first < FIRST["test"]:
        raise ConfigError(
            f"family {HELD_OUT!r} is held out: no model may be trained or chosen on it; number its patients from "
            f"first={FIRST['test']}, or leave it out."
        )


def _connectomes() -> str | None:
    """The folder of group connectomes among the recordings at hand, if there is one."""
    root = os.environ.get("STIMOPT_DATA", "")
    folder = Path(root) / "connectomes"
    return str(folder) if root and folder.is_dir() else None


def _in_processes(records: Sequence[VirtualRecord], workers: int) -> Iterator[str | None]:
    """Why each record was refused, or None, in the order in which they are done."""
    if workers <= 1:
        yield from map(_write, records)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_write, record) for record in records]):
            yield future.result()


def _write(record: VirtualRecord) -> str | None:
    """One record, on one thread, so that it does not depend on the number of workers."""
    takes = plugins.option_defaults("corpus_patients", record.family)
    options = {"patient": record.patient} | ({"connectomes": record.connectomes} if "connectomes" in takes else {})
    with one_thread():
        try:
            system = plugins.build("corpus_patients", record.family, options, {})
            write = plugins.find("corpora", _RECORD)
            write(
                record.path, system, name=record.path.stem, family=record.family, seed=record.seed,
                trials=record.trials, **record.drawing,
            )  # fmt: skip
        except DataError as error:
            return str(error)
    return None
