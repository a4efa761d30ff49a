"""The trials so far: the only memory of a search, in flight and on disk.

In flight a `History` is an immutable batch of trials. On disk a `TrialStore` is a folder
with `trials.sqlite`, one row a trial, committed with the write-ahead log and full
synchronisation before the next stimulus is proposed, and `responses.zarr` with the
signals. The row is written last, so a kill at any moment loses at most the trial in flight.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from jaxtyping import Float
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from .errors import RunError
from .response import Response
from .stimulus import Stimulus
from .system import State
from .tensors import concatenate, map_tensors

_SCHEMA = """
CREATE TABLE IF NOT EXISTS trials (
  number INTEGER PRIMARY KEY, status TEXT NOT NULL CHECK (status IN ('asked', 'told')),
  time_s REAL NOT NULL, stimulus BLOB NOT NULL, score REAL,
  outcomes TEXT NOT NULL DEFAULT '{}', note TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS state (
  only_row INTEGER PRIMARY KEY CHECK (only_row = 0), number INTEGER NOT NULL, tensors BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS lock (only_row INTEGER PRIMARY KEY CHECK (only_row = 0), reason TEXT NOT NULL);
"""


@dataclass(frozen=True)
class History:
    """Trials that were delivered and told, in order; one batch axis, `trial`.

    Attributes:
        stimuli: What was delivered.
        scores: The objective's verdicts, higher is better.
        times_s: Start of each trial's window on the session's clock.
        responses: What came back; None while empty or where signals were not kept.
        in_flight: A stimulus asked for and not yet told, with its time: it may have been delivered.
        next_time_s: When the next window starts, if the session has set it.
    """

    stimuli: Stimulus
    scores: Float[Tensor, " trial"]
    times_s: Float[Tensor, " trial"]
    responses: Response | None = None
    in_flight: tuple[Stimulus, float] | None = None
    next_time_s: float = 0.0

    def __len__(self) -> int:
        return self.scores.shape[0]

    def with_trial(self, stimulus: Stimulus, score: float, time_s: float, response: Response | None) -> "History":
        """This history and one more trial; `stimulus` and `response` of batch shape ()."""
        one = map_tensors(stimulus, lambda tensor: tensor.unsqueeze(0))
        reply = None if response is None else map_tensors(response, lambda tensor: tensor.unsqueeze(0))
        kept = reply if len(self) == 0 else None
        if self.responses is not None and reply is not None:
            kept = concatenate([self.responses, reply])
        return History(
            concatenate([self.stimuli, one]),
            torch.cat([self.scores, self.scores.new_tensor([score])]),
            torch.cat([self.times_s, self.times_s.new_tensor([time_s])]),
            kept,
        )

    def until(self, trial: int) -> "History":
        """The first `trial` trials only."""
        responses = None if self.responses is None or trial == 0 else self.responses[:trial]
        return History(self.stimuli[:trial], self.scores[:trial], self.times_s[:trial], responses)

    def best_tried(self) -> Stimulus:
        """The stimulus with the best mean score over its repetitions, the earliest among equals.

        Raises:
            RunError: If nothing has been tried.
        """
        if len(self) == 0:
            raise RunError("no trial has been told yet, so nothing can be recommended; run at least one.")
        _, group = torch.unique(settings_matrix(self.stimuli), dim=0, return_inverse=True)
        sums = torch.zeros(int(group.max()) + 1, dtype=self.scores.dtype).index_add(0, group, self.scores)
        means = sums / torch.bincount(group)
        return self.stimuli[int(means[group].argmax())]


def empty_history(template: Stimulus) -> History:
    """No trials yet, for stimuli like `template` (batch shape ())."""
    nothing = torch.zeros(0, dtype=torch.float64)
    return History(template.expand(1)[:0], nothing, nothing)


def settings_matrix(stimuli: Stimulus) -> Float[Tensor, "trial setting"]:
    """All numbers of each stimulus side by side: equal rows are repetitions of one setting."""
    columns: list[Tensor] = []
    for noun in (stimuli, stimuli.sensory):
        if noun is not None:
            values = [getattr(noun, f.name) for f in fields(noun)]
            columns += [v.reshape(len(v), -1).double() for v in values if isinstance(v, Tensor)]
    return torch.cat(columns, -1)


class TrialStore:
    """A run's trials on disk. One writer at a time; open it in a `with`, or call `close`.

    Args:
        folder: Created if missing.
        template: A stimulus of the run's montage and kind, batch shape (), to rebuild stimuli from.
    """

    def __init__(self, folder: Path, template: Stimulus) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.template = folder, template
        self._connection = sqlite3.connect(folder / "trials.sqlite", isolation_level=None, timeout=30.0)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)

    def __enter__(self) -> "TrialStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def ask(self, number: int, stimulus: Stimulus, time_s: float) -> None:
        """Write down that trial `number` is in flight, before anyone can deliver it.

        Raises:
            RunError: If that trial is already there.
        """
        self._insert(
            "INSERT INTO trials (number, status, time_s, stimulus) VALUES (?, 'asked', ?, ?)",
            (number, time_s, _stimulus_bytes(stimulus)),
        )

    def tell(
        self, number: int, score: float, response: Response | None, state: State | None = None, note: str = "",
        lock: str = "",
    ) -> None:  # fmt: skip
        """Complete the trial in flight: signals first, then its row, the system's state and any lock in one commit.

        Raises:
            RunError: If trial `number` is not in flight.
        """
        if response is not None and response.signal_uv.numel():
            self._write_signal(number, response)
        outcomes = {} if response is None else {name: float(v) for name, v in response.outcomes.items()}
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE trials SET status='told', score=?, outcomes=?, note=? WHERE number=? AND status='asked'",
                (score, json.dumps(outcomes), note, number),
            )
            if cursor.rowcount != 1:
                raise RunError(f"trial {number} is not in flight; ask for it before telling its score.")
            if state is not None:
                plain = {
                    name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                    for name, tensor in state.items()
                }
                cursor.execute("REPLACE INTO state VALUES (0, ?, ?)", (number, save_tensors(plain)))
            if lock:
                cursor.execute("INSERT OR IGNORE INTO lock VALUES (0, ?)", (lock,))

    def forget_asked(self) -> None:
        """Drop a trial in flight that certainly was not delivered (a simulated run that was killed)."""
        self._connection.execute("DELETE FROM trials WHERE status='asked'")

    def lock(self, reason: str) -> None:
        """Lock the session for good."""
        self._connection.execute("INSERT OR IGNORE INTO lock VALUES (0, ?)", (reason,))

    @property
    def lock_reason(self) -> str:
        """Why the session is locked; empty while it is not."""
        row = self._connection.execute("SELECT reason FROM lock").fetchone()
        return str(row[0]) if row else ""

    def state(self) -> State | None:
        """The system's state after the last told trial, None before the first."""
        row = self._connection.execute("SELECT tensors FROM state").fetchone()
        return load_tensors(row[0]) if row else None

    def history(self) -> History:
        """All told trials, and the one in flight."""
        rows = self._connection.execute(
            "SELECT number, status, time_s, stimulus, score, outcomes FROM trials ORDER BY number"
        ).fetchall()
        told = [row for row in rows if row[1] == "told"]
        history = empty_history(self.template)
        if told:
            stimuli = concatenate([_batch_of_one(_stimulus_from(row[3], self.template)) for row in told])
            numbers = torch.tensor([[row[4], row[2]] for row in told], dtype=torch.float64)
            history = History(stimuli, numbers[:, 0], numbers[:, 1], self._responses([(r[0], r[5]) for r in told]))
        asked = [row for row in rows if row[1] == "asked"]
        if asked:
            history = replace(history, in_flight=(_stimulus_from(asked[0][3], self.template), asked[0][2]))
        return history

    def _responses(self, told: Sequence[tuple[int, str]]) -> Response | None:
        outcomes = [json.loads(text) for _, text in told]
        named = {name: torch.tensor([o[name] for o in outcomes], dtype=torch.float64) for name in outcomes[0]}
        signals, rate_hz, start_s = self._read_signals([number for number, _ in told])
        if signals is None and not named:
            return None
        if signals is None:
            signals = torch.zeros(len(told), len(self.template.montage.channels), 0, dtype=torch.float64)
        return Response(self.template.montage, signals, rate_hz, start_s, named)

    def _write_signal(self, number: int, response: Response) -> None:
        signal = response.signal_uv.detach().cpu().numpy()
        root = zarr.open_group(str(self.folder / "responses.zarr"), mode="a")
        array: Any = root.get("signal_uv")
        if array is None:
            array = root.create_array(
                "signal_uv", shape=(0, *signal.shape), chunks=(1, *signal.shape), dtype=signal.dtype, fill_value=np.nan,
                dimension_names=("trial", "channel", "time"),
            )  # fmt: skip
            array.attrs.update(
                rate_hz=response.rate_hz, start_s=response.start_s, unit="uV",
                channels=[channel.name for channel in response.montage.channels],
            )  # fmt: skip
        if array.shape[1:] != signal.shape:
            raise RunError(f"trial {number} has a signal of shape {signal.shape}, earlier trials {array.shape[1:]}.")
        if array.shape[0] <= number:
            array.resize((number + 1, *signal.shape))
        array[number] = signal

    def _read_signals(self, numbers: Sequence[int]) -> tuple[Tensor | None, float, float]:
        path = self.folder / "responses.zarr"
        if not path.exists():
            return None, 1.0, 0.0
        array: Any = zarr.open_group(str(path), mode="r")["signal_uv"]
        signals = torch.from_numpy(np.asarray(array[: max(numbers) + 1]))[list(numbers)]
        return signals, float(array.attrs["rate_hz"]), float(array.attrs["start_s"])

    def _insert(self, statement: str, values: tuple[object, ...]) -> None:
        try:
            self._connection.execute(statement, values)
        except sqlite3.IntegrityError as error:
            raise RunError(f"trial {values[0]} is already in this run; tell its score or resume the run.") from error

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._connection)


class _Transaction:
    """BEGIN IMMEDIATE .. COMMIT, or ROLLBACK on an error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Cursor:
        return self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._connection.execute("COMMIT" if kind is None else "ROLLBACK")


def _batch_of_one(stimulus: Stimulus) -> Stimulus:
    return map_tensors(stimulus, lambda tensor: tensor.unsqueeze(0))


def _stimulus_bytes(stimulus: Stimulus) -> bytes:
    tensors = {f.name: getattr(stimulus, f.name) for f in fields(stimulus)}
    if stimulus.sensory is not None:
        tensors |= {f"sensory.{f.name}": getattr(stimulus.sensory, f.name) for f in fields(stimulus.sensory)}
    plain = {
        name: v.detach().cpu().double().clone(memory_format=torch.contiguous_format)
        for name, v in tensors.items()
        if isinstance(v, Tensor)
    }
    return bytes(save_tensors(plain))


def _stimulus_from(blob: bytes, template: Stimulus) -> Stimulus:
    tensors = load_tensors(blob)
    sensory = {name.split(".")[1]: tensors.pop(name) for name in list(tensors) if name.startswith("sensory.")}
    changes: dict[str, Any] = dict(tensors)
    if template.sensory is not None:
        named: dict[str, Any] = dict(sensory)
        changes["sensory"] = replace(template.sensory, **named)
    return replace(template, **changes)
