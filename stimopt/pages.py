"""The report of a run, a study or a model folder, from what lies in it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from .checkpoint import checkpoint_card
from .errors import RunError
from .evidence import model_page, run_page, study_page
from .figures import MarginRow
from .history import History
from .landscape import one_window
from .policy import Policy
from .recording import read_recording
from .report import Ladder, write_page
from .response import Response
from .runs import EXPERIMENT_FILE, RUN_FILE, OpenRun, opened_run
from .safety import Envelope
from .stimulus import Stimulus, no_stimulus
from .study import STUDY_FILE

REPORT_FILE = "report.html"


def write_report(folder: Path) -> Path:
    """The page of a run, a study or a model, written into its folder.

    Raises:
        RunError: If the folder is none of them, or a study that is not complete.
    """
    if (folder / EXPERIMENT_FILE).is_file():
        with opened_run(folder) as run:
            return write_run_report(run)
    if (folder / "table.csv").is_file():
        return write_study_report(folder, pd.read_csv(folder / "table.csv"))
    if (folder / STUDY_FILE).is_file():
        raise RunError(f"{folder} is a study that is not complete; run 'stimopt evaluate' with --resume first.")
    if (folder / "model.safetensors").is_file():
        return _write_model_report(folder)
    raise RunError(f"{folder} is not a run, a study or a model; give the folder that --out named.")


def write_run_report(run: OpenRun) -> Path:
    """The page of a run as it stands, complete or not."""
    history, setting = run.session.history, run.setting
    recommended = run.session.recommend() if len(history) else None
    before = after = None
    if setting.system is not None and recommended is not None:
        silence = no_stimulus(setting.montage).to(recommended.amplitude_ma)
        before, after = one_window(setting.system, [silence, recommended], seed=run.experiment.seed)
    live = setting.system is None
    page = run_page(
        run.experiment.name, history, setting.space, objective_label(run.experiment.objective.name),
        provenance=_provenance(run.folder), origin="live" if live else "simulated", policy=run.experiment.policy.name,
        recommended=recommended, posterior=posterior_of(run.session.policy, history), before=before, after=after,
        margins=margin_rows(setting.envelope, recommended, history) if recommended is not None else (),
        ladder=Ladder(live=_trials(history)) if live else Ladder(twin=_trials(history)), locked=run.session.lock_reason,
    )  # fmt: skip
    return write_page(page, run.folder / REPORT_FILE)


def write_study_report(folder: Path, table: pd.DataFrame) -> Path:
    """The page of a complete study."""
    best = table.iloc[0]
    page = study_page(
        folder.name, table.to_dict("records"), provenance=_provenance(folder),
        summary=f"{best.policy} had the smallest median regret over {best.patients} simulated patients.",
        ladder=Ladder(twin=f"{int(table.runs.sum())} runs on {best.patients} simulated patients"),
        note="Medians over runs; 95 % bootstrap intervals over patients. Regret is in units of the objective.",
    )  # fmt: skip
    return write_page(page, folder / REPORT_FILE)


def objective_label(name: str) -> str:
    """An objective's name as printed on an axis."""
    return f"{name.replace('-', ' ')} score (higher is better)"


def margin_rows(envelope: Envelope, stimulus: Stimulus, history: History) -> tuple[MarginRow, ...]:
    """Every limit of the envelope against one stimulus at the next window."""
    rows = envelope.report(stimulus, history, history.next_time_s)
    return tuple(
        MarginRow(row.label, row.value, row.allowed, row.unit, row.verdict, row.source, row.margin) for row in rows
    )


def before_asking(history: History) -> History:
    """The history that the stimulus in flight was judged against: without it, at its time."""
    if history.in_flight is None:
        return history
    return replace(history, in_flight=None, next_time_s=history.in_flight[1])


def posterior_of(policy: Policy, history: History) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """What a policy with a surrogate believes of the score at cube points; None for one without."""
    beliefs: Any = getattr(policy, "beliefs", None)
    return None if beliefs is None or not len(history) else beliefs(history)


def response_from(path: Path) -> Response:
    """A recorded window, read whole, as the response to the stimulus in flight (batch shape ()).

    Raises:
        DataError: If the file cannot be read.
    """
    recording = read_recording(path)
    return Response(recording.montage, recording.signal_uv, recording.rate_hz)


def _write_model_report(folder: Path) -> Path:
    card = checkpoint_card(folder)
    skill = json.loads((folder / "skill.json").read_text(encoding="utf-8")) if (folder / "skill.json").exists() else {}
    page = model_page(folder.name, card, skill, provenance=_provenance(folder), origin="")
    return write_page(page, folder / REPORT_FILE)


def _provenance(folder: Path) -> dict[str, str]:
    path = folder / RUN_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _trials(history: History) -> str:
    return f"{len(history)} trials"
