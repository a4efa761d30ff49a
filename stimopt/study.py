"""Policies x virtual patients x seeds, side by side, in processes, resumable.

Each run is a folder of its own under `runs/`, each patient's landscape a file under
`landscapes/`; what is complete is not done again. Seeds are paired: every policy meets
the same patient, noise and drift. Three comparators are always there: no stimulation,
random search, and the best constant setting, chosen on the *other* patients.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .assembly import Setting, fitted_model, policy_of, require_buildable, setting_of
from .best_constant import best_constant
from .config import Named, Study, read_study
from .errors import RunError
from .history import History, TrialStore
from .landscape import Landscape, dense_search, repeated_scores
from .policy import Policy
from .provenance import provenance, write_atomically
from .runs import RUN_FILE
from .session import Session
from .statistics import bootstrap_interval, paired_difference
from .stimulus import Stimulus
from .system import System
from .tensors import concatenate, generator, map_tensors, one_thread, stream_seed

STUDY_FILE = "study.yaml"
COMPARATORS = ("no-stimulation", "random", "best-constant")
LANDSCAPE_SEED = 12345  # the truth of a patient does not depend on the study's seed


@dataclass(frozen=True)
class Job:
    """One policy on one patient with one seed."""

    policy: str
    patient: int
    seed: int

    def folder(self, out: Path) -> Path:
        """Where the run is kept."""
        return out / "runs" / self.policy / f"patient-{self.patient}" / f"seed-{self.seed}"


def begin_study(path: Path, out: Path, resume: bool, seed: int | None = None) -> None:
    """A study's folder with its checked file, or the one that is resumed; `seed` overrides the file's.

    Raises:
        ConfigError: If the file, or the setting of any patient, is wrong; nothing is created.
        RunError: If the folder exists and is not to be resumed, or holds another study.
    """
    study = read_study(path)
    for patient in study.patients:
        setting = setting_of(study, patient)
        for named in study.policies:
            require_buildable(named, setting, study.model is not None)
    kept = out / STUDY_FILE
    if kept.exists() and not resume:
        raise RunError(f"{out} holds a study; go on with it by --resume, or choose another --out.")
    if kept.exists() and kept.read_bytes() != path.read_bytes():
        raise RunError(f"{path} differs from {kept}; resume with the same file, or choose another --out.")
    if out.exists() and not kept.exists() and set(out.iterdir()) - {out / RUN_FILE}:
        raise RunError(f"{out} exists and is not a study; choose another --out.")
    if not kept.exists():
        write_atomically(out / RUN_FILE, json.dumps(provenance(seed=study.seed if seed is None else seed), indent=2))
        write_atomically(kept, path.read_text(encoding="utf-8"))


def run_study(out: Path, workers: int = 1, progress: Callable[[int, int], None] | None = None) -> pd.DataFrame:
    """Run what is not yet complete of a study, then tabulate all of it.

    Args:
        out: The study's folder, made by `begin_study`.
        workers: Processes; the table does not depend on it.
        progress: Called with the number of finished pieces of work and the number of all.

    Returns:
        One row per policy, as written to `table.csv`.
    """
    study = read_study(out / STUDY_FILE)
    jobs = [Job(name, p, s) for p in study.patients for s in range(study.seeds) for name in policy_names(study)]
    stages: list[list[tuple[Callable[..., None], tuple[Any, ...]]]] = [
        [(_write_landscape, (out, patient)) for patient in study.patients],
        [(_write_constant, (out, patient)) for patient in study.patients],
        [(_write_run, (out, job)) for job in jobs],
    ]
    total, done = sum(map(len, stages)), 0
    for stage in stages:
        for _ in _in_processes(stage, workers):
            done += 1
            if progress:
                progress(done, total)
    runs = judged_runs([_result(out, job) for job in jobs])
    table = tabulate(runs)
    write_atomically(out / "runs.csv", runs.to_csv(index=False))
    write_atomically(out / "table.csv", table.to_csv(index=False))
    return table


def policy_names(study: Study) -> tuple[str, ...]:
    """The study's policies and the comparators it did not list."""
    listed = [policy.name for policy in study.policies]
    return (*listed, *(name for name in COMPARATORS if name not in listed))


def judged_runs(results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per run: regrets against the best that is known of the patient.

    That is the best of the dense search and of everything that any policy tried or recommended, so no regret is
    negative.
    """
    best: dict[int, float] = {}
    for result in results:
        found = max(result["searched"], *result["recommended"], *result["tried"])
        best[result["patient"]] = max(found, best.get(result["patient"], found))
    return pd.DataFrame([_judged(result, best[result["patient"]]) for result in results])


def _judged(result: Mapping[str, Any], optimum: float) -> dict[str, Any]:
    recommended, silence = result["recommended"], result["silence"]
    high, higher = (silence + share * (optimum - silence) for share in (0.9, 0.95))
    return {
        **{key: result[key] for key in ("policy", "patient", "seed", "violations")},
        "regret": optimum - recommended[-1], "cumulative_regret": sum(optimum - score for score in result["tried"]),
        "trials_to_90": _first([score >= high for score in recommended]),
        "trials_to_95": _first([score >= higher for score in recommended]),
        "gain_over_silence": recommended[-1] - silence,
    }  # fmt: skip


def tabulate(runs: pd.DataFrame) -> pd.DataFrame:
    """Medians over patients and seeds with 95 % bootstrap intervals, patients resampled, in a fixed order.

    `regret` is simple regret of the final recommendation in units of the objective; `regret_vs_random` is the
    paired difference from random search on the same patient and seed, negative where the policy is better.
    """
    runs = runs.sort_values(["policy", "patient", "seed"], kind="stable")
    random = runs[runs.policy == "random"]
    rows = []
    for policy, own in runs.groupby("policy", sort=False):
        units = own.patient.to_numpy()
        middle = bootstrap_interval(own.regret.to_numpy(), units=units, statistic="median")
        gap = paired_difference(own.regret.to_numpy(), random.regret.to_numpy(), units=units, statistic="median")
        rows.append({
            "policy": policy, "runs": len(own), "patients": own.patient.nunique(),
            "regret": middle.estimate, "regret_low": middle.low, "regret_high": middle.high,
            "regret_vs_random": gap.estimate, "regret_vs_random_low": gap.low, "regret_vs_random_high": gap.high,
            "cumulative_regret": own.cumulative_regret.median(), "trials_to_90": own.trials_to_90.median(),
            "trials_to_95": own.trials_to_95.median(), "gain_over_silence": own.gain_over_silence.median(),
            "violations": int(own.violations.sum()),
        })  # fmt: skip
    return pd.DataFrame(rows).sort_values(["regret", "policy"], kind="stable").reset_index(drop=True)


def _in_processes(stage: Iterable[tuple[Callable[..., None], tuple[Any, ...]]], workers: int) -> Iterator[None]:
    if workers <= 1:
        for work, arguments in stage:
            _alone(work, arguments)
            yield
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_alone, work, arguments) for work, arguments in stage]):
            yield future.result()


def _alone(work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """One piece of work, on one thread, so that the table does not depend on the number of workers."""
    with one_thread():
        work(*arguments)


def _study_seed(out: Path) -> int:
    return int(json.loads((out / RUN_FILE).read_text(encoding="utf-8"))["seed"])


def _landscape_path(out: Path, patient: int) -> Path:
    return out / "landscapes" / f"patient-{patient}.json"


def _write_landscape(out: Path, patient: int) -> None:
    target = _landscape_path(out, patient)
    if target.exists():
        return
    study = read_study(out / STUDY_FILE)
    setting = setting_of(study, patient)
    found = dense_search(
        _simulated(setting), setting.space, setting.envelope, setting.objective,
        points=study.truth_points, repeats=study.truth_repeats, seed=LANDSCAPE_SEED,
    )  # fmt: skip
    content = {
        "unit": found.unit.tolist(),
        "score": found.score.tolist(),
        "silence": found.silence,
        "trial_sd": found.trial_sd,
    }
    write_atomically(target, json.dumps(content))


def read_landscape(out: Path, patient: int) -> Landscape:
    """The landscape of one patient of a study."""
    content = json.loads(_landscape_path(out, patient).read_text())
    numbers = [torch.tensor(content[key], dtype=torch.float64) for key in ("unit", "score")]
    return Landscape(numbers[0], numbers[1], content["silence"], content["trial_sd"], LANDSCAPE_SEED)


def _write_constant(out: Path, patient: int) -> None:
    """The best constant setting for a patient, or the middle of its own space where nobody else can teach it."""
    target = _constant_path(out, patient)
    if target.exists():
        return
    study = read_study(out / STUDY_FILE)
    own, own_landscape = setting_of(study, patient), read_landscape(out, patient)
    others = [(setting_of(study, p), read_landscape(out, p)) for p in study.patients if p != patient]
    plan = best_constant(own, others, repeats=study.truth_repeats, seed=LANDSCAPE_SEED) if others else None
    if plan is None:
        middle = int((own_landscape.unit - 0.5).square().sum(-1).argmin())
        plan = own.space.describe(own_landscape.unit[middle])
    write_atomically(target, json.dumps(plan))


def _constant_path(out: Path, patient: int) -> Path:
    return out / "constants" / f"patient-{patient}.json"


def _write_run(out: Path, job: Job) -> None:
    folder = job.folder(out)
    if (folder / "result.json").exists():
        return
    study = read_study(out / STUDY_FILE)
    setting = setting_of(study, job.patient)
    seed = stream_seed(_study_seed(out), "study", job.patient, job.seed)  # the same for all policies: paired
    policy = _policy(study, setting, job, out, seed)
    with TrialStore(folder, setting.space.template) as store:
        session = Session(
            policy, setting.objective, setting.envelope, setting.space.template,
            seed=seed, store=store, interval_s=float(study.interval_s), stop_rule=setting.stop_rule,
        )  # fmt: skip
        history = session.run(_simulated(setting), study.trials)
    write_atomically(folder / "result.json", json.dumps(_judge(study, setting, policy, history, job, out, seed)))


def _policy(study: Study, setting: Setting, job: Job, out: Path, seed: int) -> Policy:
    if job.policy == "best-constant":
        from_others = json.loads(_constant_path(out, job.patient).read_text(encoding="utf-8"))
        return policy_of(Named.model_validate({"name": "constant", "setting": from_others}), setting, None, seed)
    named = next((p for p in study.policies if p.name == job.policy), Named(name=job.policy))
    needs_model = study.model is not None and job.policy not in COMPARATORS
    return policy_of(named, setting, fitted_model(study, setting, seed) if needs_model else None, seed)


def _judge(
    study: Study, setting: Setting, policy: Policy, history: History, job: Job, out: Path, seed: int
) -> dict[str, Any]:
    landscape = read_landscape(out, job.patient)
    advice = [policy.recommend(history.until(n), generator(seed, "recommend", n)) for n in range(1, len(history) + 1)]
    stimuli = concatenate([_row(stimulus) for stimulus in advice] + [history.stimuli])
    truth = repeated_scores(
        _simulated(setting), setting.objective, stimuli, repeats=study.truth_repeats, seed=LANDSCAPE_SEED
    ).mean(0)
    recommended, tried = truth[: len(history)], truth[len(history) :]
    return {
        "policy": job.policy, "patient": job.patient, "seed": job.seed, "silence": landscape.silence,
        "searched": landscape.optimum, "recommended": recommended.tolist(), "tried": tried.tolist(),
        "violations": violations(setting, history),
    }  # fmt: skip


def violations(setting: Setting, history: History) -> int:
    """How many delivered stimuli the envelope would refuse, each judged on the trials before it."""
    times = history.times_s.tolist()
    return sum(
        not bool(setting.envelope.allowed(history.stimuli[i], history.until(i), times[i])) for i in range(len(history))
    )


def _first(reached: list[bool]) -> float:
    return reached.index(True) + 1.0 if True in reached else float("inf")


def _simulated(setting: Setting) -> System:
    assert setting.system is not None  # a study always names a system
    return setting.system


def _row(stimulus: Stimulus) -> Stimulus:
    return map_tensors(stimulus, lambda tensor: tensor.double().unsqueeze(0))


def _result(out: Path, job: Job) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((job.folder(out) / "result.json").read_text())
    return content
