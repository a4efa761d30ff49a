"""The protocol by which forecasters are judged: virtual patients that no model was trained on.

For each patient, rest and a few past trials are drawn, every contender is made from the same
ones, and its forecasts for new trials, amplitudes, frequencies, widths and sites are read
beside the truth that only a simulation has. Patients are numbered from 200000: smaller
numbers are for training. Results are one JSON file a patient, written after each contender,
so a stopped run goes on where it was, and a contender added later meets the same trials.
All of it is simulated.

    out/protocol.json                     the settings; a run with others is refused
    out/patients/FAMILY-NUMBER.json       readings of one patient
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from . import plugins
from .contenders import Contender, fitted
from .errors import ConfigError, RunError, StimoptError
from .forecaster import Context, Trials
from .gradient_fidelity import SlopePoints, slope_fidelity, slope_points
from .protocol_readings import examined
from .protocol_splits import SPLITS, Design, StimulusRanges, shaft_out, split_sites
from .protocol_table import ProtocolTable, protocol_table
from .protocol_trials import Examination, examination, past_trials, resting
from .provenance import provenance, write_atomically
from .system import System
from .tensors import one_thread, stream_seed

FIRST_PATIENT = 200_000
WINDOW_S, RATE_HZ = 0.5, 250.0
SETTINGS_FILE = "protocol.json"
UNSEEN = {"sites": split_sites, "shaft": shaft_out}
_GROWS = ("families", "patients", "first_patient", "seeds")  # a run may go on with others: each has its own rows

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ProtocolSettings:
    """What is simulated. Fewer patients, stimuli, repeats, states, points or splits cost less.

    Attributes:
        families: Names of systems; each is shown apart.
        patients: How many of each family.
        first_patient: Number of the first.
        splits: Names from `SPLITS`.
        stimuli: In each split.
        repeats: States from which each is delivered.
        states: How many states there are.
        slope_points: Points at which slopes are compared; 0 for none.
        slope_states: States from which each point is delivered.
        slope_futures: Draws of the noise that its effects are means of.
        seeds: Each draws its own past trials and fits anew; tests stay.
        unseen: What past trials leave out: some "sites", or a whole "shaft".
        ranges: Of the stimuli.
        system_options: Options of the systems, such as regions or contacts.
    """

    families: tuple[str, ...] = ("jansen-rit",)
    patients: int = 20
    first_patient: int = FIRST_PATIENT
    splits: tuple[str, ...] = SPLITS
    stimuli: int = 8
    repeats: int = 8
    states: int = 48
    slope_points: int = 16
    slope_states: int = 4
    slope_futures: int = 4
    seeds: tuple[int, ...] = (0,)
    unseen: str = "sites"
    ranges: StimulusRanges = field(default_factory=StimulusRanges)
    system_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.repeats > self.states or min(self.patients, self.stimuli, self.repeats - 1) < 1:
            raise ConfigError(
                f"{self.patients} patients, {self.stimuli} stimuli, {self.repeats} repeats from {self.states} states: "
                "patients and stimuli are 1 or more, repeats 2 or more and no more than states."
            )
        if self.unseen not in UNSEEN:
            raise ConfigError(f"unseen is {self.unseen!r}; there are {', '.join(UNSEEN)}.")
        unknown = set(self.splits) - set(SPLITS)
        if unknown:
            raise ConfigError(f"splits {', '.join(sorted(unknown))} are not known; there are {', '.join(SPLITS)}.")

    @property
    def cases(self) -> tuple[tuple[str, int], ...]:
        """Family and number of every patient."""
        numbers = range(self.first_patient, self.first_patient + self.patients)
        return tuple((family, number) for family in self.families for number in numbers)


def run_protocol(
    out: Path, settings: ProtocolSettings, contenders: Sequence[Contender], *, workers: int = 1, resume: bool = False,
    progress: Progress | None = None,
) -> ProtocolTable:  # fmt: skip
    """Judge contenders on every patient; each patient on one thread of a process.

    Args:
        out: Folder, created; with `resume` it may exist, and only what is missing is computed.
        settings: What is simulated.
        contenders: The first is what the others are compared with.
        workers: Processes.
        resume: Whether to go on in a folder that is there.
        progress: Told how many of all patients are done.

    Raises:
        RunError: If `out` exists and is not to be resumed, or holds a run with other settings.
        ConfigError: If a family is unknown, or no contender is given.
    """
    if not contenders:
        raise ConfigError("there is no contender to judge; name a model, such as arx.")
    for family in settings.families:
        plugins.find("systems", family)
    _begin(out, settings, resume)
    for done, _ in enumerate(_each(out, settings, tuple(contenders), workers), 1):
        if progress:
            progress(done, len(settings.cases))
    return read_protocol(out, contenders)


def read_protocol(out: Path, contenders: Sequence[Contender] | None = None) -> ProtocolTable:
    """Results in a folder of `run_protocol`: of some contenders, or of all that were ever judged there.

    Raises:
        RunError: If it is no such folder.
    """
    if not (out / SETTINGS_FILE).is_file():
        raise RunError(f"{out} holds no {SETTINGS_FILE}; give a folder that the protocol wrote.")
    files = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((out / "patients").glob("*.json"))]
    labels = None if contenders is None else [one.label for one in contenders]
    return protocol_table(files, labels)


def patient_system(family: str, number: int, options: Mapping[str, Any] | None = None) -> System:
    """A virtual patient as the protocol plays it: windows of 0.5 s at 250 Hz.

    Raises:
        ConfigError: If the family or an option is unknown.
    """
    given = {"patient": number, "window_s": WINDOW_S, **(options or {})}
    if "rate_hz" in plugins.option_defaults("systems", family):
        given = {"rate_hz": RATE_HZ, **given}
    made: Any = plugins.build("systems", family, given, {})
    system: System = replace(made, rate_hz=RATE_HZ) if getattr(made, "rate_hz", RATE_HZ) != RATE_HZ else made
    return system


@dataclass(frozen=True)
class _Case:
    """One patient, simulated."""

    system: System
    design: Design
    exam: Examination
    slopes: SlopePoints | None
    rest: Context


def _begin(out: Path, settings: ProtocolSettings, resume: bool) -> None:
    plain = json.loads(json.dumps(asdict(settings)))
    file = out / SETTINGS_FILE
    if not file.is_file():
        if out.exists() and any(out.iterdir()):
            raise RunError(f"{out} exists and holds no {SETTINGS_FILE}; choose another --out.")
        write_atomically(file, json.dumps({"settings": plain, "provenance": provenance()}, indent=2))
        return
    if not resume:
        raise RunError(f"{out} exists; add --resume to go on there, or choose another --out.")
    there = json.loads(file.read_text(encoding="utf-8"))["settings"]
    other = [name for name in plain if name not in _GROWS and there.get(name) != plain[name]]
    if other:
        raise RunError(f"{out} was begun with other {', '.join(other)}; use the same, or choose another --out.")


def _each(out: Path, settings: ProtocolSettings, contenders: tuple[Contender, ...], workers: int) -> Iterator[None]:
    if workers <= 1:
        for case in settings.cases:
            _judge_patient(out, settings, contenders, *case)
            yield
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_judge_patient, out, settings, contenders, *case) for case in settings.cases]
        for job in as_completed(jobs):
            yield job.result()


def _judge_patient(
    out: Path, settings: ProtocolSettings, contenders: Sequence[Contender], family: str, number: int
) -> None:
    """What is missing of one patient, on one thread; its file is written after each contender."""
    file = out / "patients" / f"{family}-{number}.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else _nothing(family, number)
    jobs = [
        (one, trials, seed) for seed in settings.seeds for one in contenders for trials in one.trials
        if [one.label, trials, seed] not in content["done"]
    ]  # fmt: skip
    if not jobs:
        return
    with one_thread():
        began_s = time.process_time()
        case = _case(settings, family, number)
        content["sites"] = asdict(case.design.sites)
        content["simulation_cpu_s"] = time.process_time() - began_s
        past = {seed: _past(case, settings, contenders, family, number, seed) for seed in {job[2] for job in jobs}}
        for one, trials, seed in jobs:
            largest = trials == max(one.trials)
            _add(content, case, one, past[seed][:trials], seed, with_slopes=largest)
            write_atomically(file, json.dumps(content))


def _nothing(family: str, number: int) -> dict[str, Any]:
    return {"family": family, "patient": number, "done": [], "rows": [], "slopes": [], "refused": []}


def _case(settings: ProtocolSettings, family: str, number: int) -> _Case:
    system = patient_system(family, number, settings.system_options)
    seed = stream_seed(0, "protocol", family, number)
    design = Design(system.montage, UNSEEN[settings.unseen](system.montage, seed), settings.ranges)
    exam = examination(
        system, design, splits=settings.splits, stimuli=settings.stimuli, repeats=settings.repeats,
        states=settings.states, seed=seed,
    )  # fmt: skip
    count, states, futures = settings.slope_points, settings.slope_states, settings.slope_futures
    slopes = slope_points(system, design, points=count, states=states, seed=seed, futures=futures) if count else None
    return _Case(system, design, exam, slopes, resting(system, seed))


def _past(
    case: _Case, settings: ProtocolSettings, contenders: Sequence[Contender], family: str, number: int, seed: int
) -> Trials:
    most = max(max(one.trials) for one in contenders)
    return past_trials(case.system, case.design, max(most, 1), stream_seed(seed, "protocol", family, number))


def _add(content: dict[str, Any], case: _Case, one: Contender, past: Trials, seed: int, *, with_slopes: bool) -> None:
    """Readings of one forecaster, or why it could not be made."""
    named = {"model": one.label, "trials": len(past), "seed": seed}
    began_s = time.process_time()
    try:
        forecaster = fitted(one, past, case.rest, case.design.ranges.space(case.system.montage), seed)
        named["fit_cpu_s"] = time.process_time() - began_s
        read = examined(forecaster, case.exam, seed=seed)
        slopes = slope_fidelity(forecaster, case.slopes) if with_slopes and case.slopes else []
    except StimoptError as error:
        content["refused"].append({**named, "reason": str(error)})
    else:
        content["rows"] += [{**named, "split": split, **_plain(row)} for split, row in read.items()]
        content["slopes"] += [{**named, **_plain(row)} for row in slopes]
    content["done"].append([one.label, len(past), seed])


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON can hold it: None where there is no number."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
