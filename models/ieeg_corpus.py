"""A corpus for the foundation model: one record a patient, rest and trials, simulated or recorded.

What only a twin can give is kept beside each simulated trial: what the same state and the
same noise would have given without the stimulus, and for another one near it. Their
differences are the effect of a stimulus, which no recording ever shows.

    rest      [window, channel, 250]   1.0 s each, before any stimulation
    context   [trial, channel, 250]    1.0 s before the onset
    response  [trial, channel, 125]    0.5 s from the onset; also `silent_uv` and `other_uv`

A folder of records, one safetensors file each, is a corpus.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stimopt.errors import ConfigError, DataError, StimoptError
from stimopt.forecaster import Context, Trials
from stimopt.montage import Montage, montage_from_dict, montage_to_dict
from stimopt.response import Response
from stimopt.stimulus import Stimulus, no_stimulus
from stimopt.system import State, System
from stimopt.tensors import concatenate, generator

from .ieeg_stimuli import CHANGES, draw_stimuli, nearby, with_shares, with_silence

FORMAT = "stimopt corpus record 1"
SUFFIX = ".safetensors"
WINDOW_S, RATES_HZ = 0.5, (250.0, 500.0)
CONTEXT_WINDOWS = 2  # 1.0 s
_FEWEST_PAIRS = 4  # of a patient who is also read in pairs
ROUNDS = 2  # trials that a row plays one after the other; rows beside each other cost little, rounds cost their time


Read = TypeVar("Read", Context, Response)


@dataclass(frozen=True)
class PatientRecord:
    """A patient's rest and trials.

    Attributes:
        name: Of the patient, unique in a corpus.
        family: Of circuit, such as "jansen-rit", or "recorded".
        simulated: Whether a simulator made it.
        rest: `[window, channel, time]`, before any stimulation of the session's trials.
        trials: Contexts of 1.0 s, responses of 0.5 s from the onset; simulated ones at 250 or 500 Hz.
        silent_uv: What the same state and noise gave without a stimulus; None where nobody can know.
        other: A stimulus near the one delivered: one number changed, or the site.
        other_uv: What the same state and noise gave for it.

    Raises:
        DataError: If parts are on different montages or rates, or do not hold the same trials.
    """

    name: str
    family: str
    simulated: bool
    rest: Context
    trials: Trials
    silent_uv: Float[Tensor, "trial channel time"] | None = None
    other: Stimulus | None = None
    other_uv: Float[Tensor, "trial channel time"] | None = None

    def __post_init__(self) -> None:
        if self.rest.rate_hz != self.trials.context.rate_hz or self.rest.montage != self.trials.context.montage:
            raise DataError(f"rest and trials of {self.name!r} differ in montage or rate; record them alike.")
        if (self.other is None) != (self.other_uv is None):
            raise DataError(f"{self.name!r} has one of `other` and `other_uv`; give both or neither.")
        shape = self.trials.response.signal_uv.shape
        for name in ("silent_uv", "other_uv"):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise DataError(f"{name} of {self.name!r} is {list(value.shape)}, its responses are {list(shape)}.")


def simulate_record(
    system: System,
    *,
    name: str,
    family: str,
    seed: int,
    trials: int = 48,
    rest_windows: int = 16,
    silent_share: float = 0.25,
    shared: float = 0.0,
    changes: Sequence[float] = CHANGES,
) -> PatientRecord:
    """A virtual patient's record. Rows are sessions of the same patient, each with rest first, then two trials.

    Every trial plays its stimulus, silence and a nearby stimulus from one state with one noise, and goes on from the
    first. All signals are float32.

    Args:
        system: Whose windows are 0.5 s at 250 or 500 Hz.
        name: Of the patient.
        family: Of circuit.
        seed: Of stimuli and noise.
        trials: How many.
        rest_windows: How many stretches of 1.0 s at rest.
        silent_share: Share of trials without a stimulus.
        shared: Share of stimuli whose current is shared with a pair beside.
        changes: How often a nearby stimulus differs in amplitude, frequency, width and site.

    Raises:
        ConfigError: If windows or rate are others, or there is no trial.
        DataError: If the system does not stay finite.
        MontageError: If no two contacts share a shaft.
    """
    if trials < 1:
        raise ConfigError(f"trials is {trials}; ask for at least one.")
    _require_windows(system.window_s)
    rows, source = -(-trials // ROUNDS), generator(seed, "noise")
    drawn = generator(seed, "stimuli")
    some = with_shares(draw_stimuli(system.montage, trials, drawn), shared, drawn)
    delivered = with_silence(some, silent_share, drawn)
    beside = nearby(delivered, drawn, changes)
    state, rest = system.start((rows,), source), []
    for _ in range(-(-rest_windows // rows)):
        signal_uv, state = _quiet(system, state, source)
        rest.append(signal_uv)
    played = []
    for first in range(0, trials, rows):
        batch = slice(first, min(first + rows, trials))
        context_uv, state = _quiet(system, state, source)
        state = {key: tensor[: batch.stop - first] for key, tensor in state.items()}
        branches_uv, state = _branches(system, state, delivered[batch], beside[batch], source)
        played.append((context_uv[: batch.stop - first], *branches_uv))
    parts = [_finite(torch.cat(part), name) for part in zip(*played, strict=True)]
    rest_uv = _finite(torch.cat(rest)[:rest_windows], name) if rest else parts[0][:0]
    return _record(system.montage, (name, family), rest_uv, parts, delivered, beside)


def _require_windows(window_s: float, rate_hz: float = RATES_HZ[0]) -> None:
    if window_s != WINDOW_S or rate_hz not in RATES_HZ:
        raise ConfigError(
            f"a corpus has windows of {WINDOW_S} s at {' or '.join(map(str, RATES_HZ))} Hz, this system has {window_s} "
            f"s at {rate_hz} Hz; build it with window_s={WINDOW_S} and rate_hz={RATES_HZ[0]}."
        )


def _quiet(system: System, state: State, source: torch.Generator) -> tuple[Tensor, State]:
    """A context's length without stimulation, `[row, channel, time]`, and the state after it."""
    rows, windows = len(next(iter(state.values()))), []
    for _ in range(CONTEXT_WINDOWS):
        response, state = system.respond(state, no_stimulus(system.montage, (rows,)), source)
        _require_windows(system.window_s, response.rate_hz)
        windows.append(response.signal_uv)
    return torch.cat(windows, -1), state


def _branches(
    system: System, state: State, delivered: Stimulus, beside: Stimulus, source: torch.Generator
) -> tuple[tuple[Tensor, ...], State]:
    """Responses to the stimulus, to silence and to its neighbour, and the state after the stimulus.

    One call with three times the rows: a contract of systems says that equal rows get equal noise.
    """
    rows = delivered.batch_shape[0]
    stimuli = concatenate([delivered, no_stimulus(delivered.montage, (rows,)), beside])
    response, after = system.respond({key: torch.cat([x, x, x]) for key, x in state.items()}, stimuli, source)
    return response.signal_uv.split(rows), {key: x[:rows] for key, x in after.items()}


def _finite(signal_uv: Tensor, name: str) -> Tensor:
    if not bool(signal_uv.isfinite().all()):
        raise DataError(f"patient {name!r} did not stay finite; leave this one out.")
    return signal_uv.float()


def _record(
    montage: Montage,
    names: tuple[str, str],
    rest_uv: Tensor,
    parts: Sequence[Tensor],
    delivered: Stimulus,
    beside: Stimulus,
) -> PatientRecord:
    context_uv, response_uv, silent_uv, other_uv = (part.contiguous() for part in parts)
    rate_hz = response_uv.shape[-1] / WINDOW_S
    trials = Trials(
        Context(montage, context_uv, rate_hz), delivered.to(response_uv), Response(montage, response_uv, rate_hz)
    )
    rest = Context(montage, rest_uv.contiguous(), rate_hz)
    return PatientRecord(*names, True, rest, trials, silent_uv, beside.to(response_uv), other_uv)


_NUMBERS = ("amplitude_ma", "frequency_hz", "pulse_width_us", "pulses", "onset_s", "interphase_us")


def save_record(record: PatientRecord, path: Path) -> Path:
    """Write a record as one safetensors file, whole or not at all; parents are created.

    Raises:
        DataError: If a stimulus is sensory, which a record cannot hold.
    """
    stimuli = {"stimulus": record.trials.stimulus} | ({} if record.other is None else {"other": record.other})
    if any(stimulus.sensory is not None for stimulus in stimuli.values()):
        raise DataError(f"record {record.name!r} has sensory stimuli; a record holds electric ones only.")
    tensors = {f"{of}.{name}": getattr(stimulus, name) for of, stimulus in stimuli.items() for name in _NUMBERS}
    signals = {"rest_uv": record.rest.signal_uv, "context_uv": record.trials.context.signal_uv,
               "response_uv": record.trials.response.signal_uv, "silent_uv": record.silent_uv,
               "other_uv": record.other_uv}  # fmt: skip
    tensors |= {name: value for name, value in signals.items() if value is not None}
    header = {
        "name": record.name, "family": record.family, "simulated": record.simulated,
        "montage": montage_to_dict(record.rest.montage), "rate_hz": record.rest.rate_hz,
        "start_s": record.trials.response.start_s,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(kept, part, metadata={"format": FORMAT, "record": json.dumps(header, allow_nan=False)})
    os.replace(part, path)
    return path


def write_simulated(path: Path, system: System, **options: Any) -> Path:
    """Simulate a record and save it; `options` and errors as for `simulate_record`.

    Returns:
        The file.
    """
    return save_record(simulate_record(system, **options), path)


def read_record(path: Path) -> PatientRecord:
    """The record that `save_record` wrote.

    Raises:
        DataError: If the file is missing, cut, of another format, or holds other tensors than a record has.
    """
    header, tensors = _opened(path)
    try:
        return _restored(header, tensors)
    except (KeyError, TypeError, ValueError, StimoptError) as error:
        raise DataError(f"{path} is not a whole record ({error}); make it again.") from error


def records_in(folder: Path) -> tuple[Path, ...]:
    """The records of a corpus in order of patients: by the number that ends a file's name, then by name.

    Raises:
        DataError: If there is none.
    """
    paths = (path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
    found = tuple(sorted(paths, key=lambda path: (_number(path), path.name)))
    if not found:
        raise DataError(f"{folder} holds no records (*{SUFFIX}); build a corpus there first.")
    return found


def _number(path: Path) -> int:
    digits = re.search(r"\d+$", path.stem)
    return int(digits[0]) if digits else -1


def read_in_pairs(record: PatientRecord) -> PatientRecord | None:
    """The same patient read as neighbouring contacts of a shaft; None where channels are pairs already or few are left.

    A pair reads what differs between its contacts, so it is local, and its sign is the implant's: recordings of people
    are mostly read so.
    """
    if any(channel.minus is not None for channel in record.rest.montage.channels):
        return None
    read, plus, minus = record.rest.montage.read_in_pairs()
    if len(plus) < _FEWEST_PAIRS:
        return None

    def differences(signal_uv: Tensor) -> Tensor:
        return signal_uv[..., plus, :] - signal_uv[..., minus, :]

    def again(part: Read) -> Read:
        return replace(part, montage=read, signal_uv=differences(part.signal_uv))

    trials, stimulus = record.trials, replace(record.trials.stimulus, montage=read)
    return replace(
        record,
        rest=again(record.rest),
        trials=Trials(again(trials.context), stimulus, again(trials.response)),
        silent_uv=None if record.silent_uv is None else differences(record.silent_uv),
        other=None if record.other is None else replace(record.other, montage=read),
        other_uv=None if record.other_uv is None else differences(record.other_uv),
    )


def corpus_hash(folder: Path) -> str:
    """The sha256 over all records of a corpus: file names, headers and numbers, whatever order a file keeps them in.

    Raises:
        DataError: If there is none, or one is not whole.
    """
    whole = hashlib.sha256()
    for path in records_in(folder):
        header, tensors = _opened(path)
        whole.update(f"{path.name} {json.dumps(header, sort_keys=True)}".encode())
        for name in sorted(tensors):
            whole.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
            whole.update(tensors[name].numpy().tobytes())
    return whole.hexdigest()


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise DataError(f"there is no record {path}; build the corpus first.") from error
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is cut or no safetensors file ({error}); make it again.") from error
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path} has format {metadata.get('format')!r}, this version reads {FORMAT!r}; make it again.")
    header: dict[str, Any] = json.loads(metadata["record"])
    return header, tensors


def _restored(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PatientRecord:
    montage, rate_hz = montage_from_dict(header["montage"]), header["rate_hz"]
    left = dict(tensors)
    stimulus = _stimulus(montage, "stimulus", left)
    other = _stimulus(montage, "other", left) if "other_uv" in left else None
    response = Response(montage, left.pop("response_uv"), rate_hz, header["start_s"])
    trials = Trials(Context(montage, left.pop("context_uv"), rate_hz), stimulus, response)
    rest = Context(montage, left.pop("rest_uv"), rate_hz)
    silent_uv, other_uv = left.pop("silent_uv", None), left.pop("other_uv", None)
    if left:
        raise DataError(f"it holds {', '.join(sorted(left))}, which no record has")
    return PatientRecord(
        header["name"], header["family"], header["simulated"], rest, trials, silent_uv, other, other_uv
    )


def _stimulus(montage: Montage, of: str, left: dict[str, Tensor]) -> Stimulus:
    """The stimulus made of what is taken out of `left`."""
    amplitude, frequency, width, pulses, onset, gap = (left.pop(f"{of}.{name}") for name in _NUMBERS)
    return Stimulus(montage, amplitude, frequency, width, pulses, onset, gap)


def described(records: Sequence[PatientRecord], corpora: Sequence[Path]) -> str:
    """A sentence for a model card: how many patients, of which families, and the hashes of their corpora."""
    families = ", ".join(f"{family} {count}" for family, count in sorted(Counter(r.family for r in records).items()))
    hashes = ", ".join(corpus_hash(folder)[:16] for folder in corpora) or "none"
    trials = sum(len(record.trials) for record in records)
    return (
        f"{len(records)} patients with {trials} trials (patients of each family: {families}); sha256 of corpora begin "
        f"with {hashes}."
    )
