"""`stimopt demo`: the whole story on a simulated patient, every figure computed in the run.

A patient is recorded for some calibration trials; response models are fitted and judged on
held-out trials; policies search under the envelope for the same budget and are judged
against the patient's true optimum; where recordings are at hand, policies are replayed on
them. What was found ends on one page.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from .assembly import FittedModel, Setting, mean_context, policy_of, setting_of
from .config import Experiment, Named, parse_experiment
from .errors import DataError
from .evidence import run_page
from .figures import replay_curves, search_trace
from .fitting import Comparison, compare_models
from .history import History, TrialStore
from .landscape import SESSIONS, Landscape, calibrate, dense_search, one_window, repeated_scores
from .maps import story_picture
from .pages import REPORT_FILE, margin_rows, objective_label, posterior_of
from .picture import save_picture
from .policy import Policy
from .provenance import provenance, write_atomically
from .report import Ladder, Page, Section, Table, skill_table, write_page
from .runs import require_new
from .session import Session
from .statistics import Interval, bootstrap_interval
from .stimulus import no_stimulus
from .study import violations
from .tensors import concatenate, generator, map_tensors, one_thread, stream_seed

POLICIES = ("sobol", "bayesian", "gradient")
OPTIONS = {
    "gradient": {"starts": 4, "steps": 10, "samples": 4}
}  # a quarter of the default work; a decision takes less than a second
MODELS = ("mean-evoked", "arx", "state-space", "gaussian-process", "ieeg-network")
SMOOTH = ("arx", "state-space", "gaussian-process", "ieeg-network")  # differentiable in the stimulus
REPLAYED = "opto-septohippocampal"
REPLAYED_TRIALS = 20


@dataclass(frozen=True)
class Size:
    """How much of the story is told."""

    calibration: int
    trials: int
    seeds: int
    truth_points: int
    truth_repeats: int
    replay_repeats: int
    network_steps: int
    models: tuple[str, ...]


FULL = Size(
    calibration=80, trials=20, seeds=2, truth_points=160, truth_repeats=6, replay_repeats=4, network_steps=240,
    models=MODELS,
)  # fmt: skip
QUICK = Size(
    calibration=24, trials=8, seeds=1, truth_points=32, truth_repeats=2, replay_repeats=2, network_steps=60,
    models=tuple(name for name in MODELS if name != "state-space"),  # the slowest to fit
)  # fmt: skip


@dataclass(frozen=True)
class Searched:
    """One policy's runs.

    Attributes:
        policy: The last run's, for its surrogate.
        histories: One per seed.
        truth: True score of the recommendation after each trial, `[seed, trial]`.
        violations: Delivered stimuli that the envelope would refuse.
        seconds: Median time of a decision.
    """

    policy: Policy
    histories: tuple[History, ...]
    truth: np.ndarray[Any, Any]
    violations: int
    seconds: float


def demo_experiment() -> Experiment:
    """The search that the demo runs, as shipped in `demo.yaml`."""
    return parse_experiment(demo_text(), "demo.yaml")


def demo_text() -> str:
    """The demo's experiment file, to copy and change."""
    return files("stimopt").joinpath("demo.yaml").read_text(encoding="utf-8")


def run_demo(
    out: Path, *, quick: bool = False, seed: int = 1, progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Run the demo and write its page.

    Args:
        out: Folder to create; holds the runs, the experiment file and `report.html`.
        quick: A smaller story.
        seed: Names every random stream.
        progress: Told what happens.

    Returns:
        `regret` by policy, `violations` in all, `skill` by model, `seconds_per_decision`, `replay`, `report`.

    Raises:
        RunError: If the folder exists.
    """
    require_new(out)
    with one_thread():
        return _run(out, QUICK if quick else FULL, seed, progress or (lambda _: None))


def _run(out: Path, size: Size, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    began = time.perf_counter()
    experiment = demo_experiment()
    setting = setting_of(experiment)
    say(f"recording {size.calibration} calibration trials of a simulated patient")
    system = _system(setting)
    trials = calibrate(
        system, setting.space, setting.envelope, trials=size.calibration, seed=seed,
        interval_s=float(experiment.interval_s), sessions=SESSIONS,
    )  # fmt: skip
    options = {"ieeg-network": {"steps": size.network_steps}}
    comparison = compare_models(trials, size.models, setting.space, seed, options, lambda name: say(f"fitting {name}"))
    chosen = comparison.best_of([name for name in SMOOTH if name in size.models])
    say(f"the gradient policy climbs through {chosen}, the best on held-out trials")
    model = FittedModel(comparison.forecasters[chosen], comparison.training, mean_context(trials.context))
    say("searching densely for the patient's true optimum")
    truth = dense_search(
        system, setting.space, setting.envelope, setting.objective,
        points=size.truth_points, repeats=size.truth_repeats, seed=stream_seed(seed, "truth"),
    )  # fmt: skip
    searched = {}
    for name in POLICIES:
        say(f"searching with the {name} policy, {size.seeds} x {size.trials} trials")
        searched[name] = _search(name, experiment, setting, model, truth, size, seed, out)
    truth = truth.raised(max(float(s.truth.max()) for s in searched.values()))
    say(f"replaying {REPLAYED}" if _recordings() else "no recordings at hand (STIMOPT_DATA is unset): no replay")
    replayed = _replay(size, seed)
    write_atomically(out / "demo.yaml", demo_text())
    _draw_picture(setting, truth, searched, seed, out / "picture.png")
    page = _page(experiment, setting, comparison, truth, searched, replayed, size, seed, time.perf_counter() - began)
    return {
        "regret": {name: float(np.median(truth.optimum - s.truth[:, -1])) for name, s in searched.items()},
        "violations": sum(s.violations for s in searched.values()),
        "skill": {name: dict(values) for name, values in comparison.skill.items()},
        "optimum": truth.optimum, "without_stimulation": truth.silence,
        "seconds_per_decision": {name: s.seconds for name, s in searched.items()},
        "replay": replayed, "seconds": time.perf_counter() - began,
        "report": str(write_page(page, out / REPORT_FILE)),
    }  # fmt: skip


def _search(
    name: str, experiment: Experiment, setting: Setting, model: FittedModel, truth: Landscape, size: Size, seed: int,
    out: Path,
) -> Searched:  # fmt: skip
    histories, curves, broken, seconds = [], [], 0, []
    for turn in range(size.seeds):
        stream = stream_seed(seed, "demo", turn)  # the same for every policy: paired
        policy = policy_of(Named.model_validate({"name": name, **OPTIONS.get(name, {})}), setting, model, stream)
        with TrialStore(out / "runs" / name / f"seed-{turn}", setting.space.template) as store:
            session = Session(
                policy, setting.objective, setting.envelope, setting.space.template,
                seed=stream, store=store, interval_s=float(experiment.interval_s),
            )  # fmt: skip
            history = session.run(_system(setting), size.trials)
        histories.append(history)
        curves.append(_truth(policy, history, setting, truth, size, stream))
        broken += violations(setting, history)
        seconds += session.seconds_per_decision
    return Searched(policy, tuple(histories), np.stack(curves), broken, float(np.median(seconds)))


def _truth(
    policy: Policy, history: History, setting: Setting, truth: Landscape, size: Size, seed: int
) -> np.ndarray[Any, Any]:
    """True score of what is recommended after each trial."""
    advice = [policy.recommend(history.until(n), generator(seed, "recommend", n)) for n in range(1, len(history) + 1)]
    stimuli = concatenate([map_tensors(stimulus, lambda v: v.double().unsqueeze(0)) for stimulus in advice])
    scores = repeated_scores(_system(setting), setting.objective, stimuli, repeats=size.truth_repeats, seed=truth.seed)
    recommended: np.ndarray[Any, Any] = scores.mean(0).numpy()
    return recommended


def _replay(size: Size, seed: int) -> dict[str, Any]:
    if not _recordings():
        return {}
    from .replaying import replay_dataset

    try:
        return replay_dataset(REPLAYED, "bayesian", None, REPLAYED_TRIALS, size.replay_repeats, seed, "random", 1)
    except DataError:  # the folder holds other recordings
        return {}


def _recordings() -> bool:
    return bool(os.environ.get("STIMOPT_DATA"))


def _system(setting: Setting) -> Any:
    return setting.system


def _page(
    experiment: Experiment, setting: Setting, comparison: Comparison, truth: Landscape,
    searched: Mapping[str, Searched], replayed: Mapping[str, Any], size: Size, seed: int, seconds: float,
) -> Page:  # fmt: skip
    label = objective_label(experiment.objective.name)
    chosen = searched["bayesian"]
    history = chosen.histories[-1]
    recommended = chosen.policy.recommend(history, generator(seed, "recommend", len(history)))
    before, after = one_window(_system(setting), [no_stimulus(setting.montage), recommended], seed=seed)
    run = run_page(
        "stimopt demo: a search on a simulated patient", history, setting.space, label,
        provenance=provenance(seed=seed, seconds=f"{seconds:.0f}"), origin="simulated", policy="bayesian",
        recommended=recommended, posterior=posterior_of(chosen.policy, history), before=before, after=after,
        margins=margin_rows(setting.envelope, recommended, history),
        reference=truth.optimum, reference_name="true optimum",
    )  # fmt: skip
    sections = [
        _policy_section(searched, truth, size, label), _skill_section(comparison), *_replay_sections(replayed),
        *run.sections,
    ]  # fmt: skip
    ladder = Ladder(
        twin=f"{len(searched)} policies, {size.seeds} x {size.trials} trials each, on one simulated patient",
        replay=f"{replayed['policy']} and {replayed['versus']} on {replayed['dataset']}" if replayed else "",
    )
    summary = (
        f"Every number here was computed in this run, on a simulated patient: {size.calibration} calibration trials, "
        f"then {size.trials} trials per search. Simulated results say nothing about a person."
    )
    return Page(run.title, summary, tuple(sections), run.provenance, ladder)


def _draw_picture(setting: Setting, truth: Landscape, searched: Mapping[str, Searched], seed: int, path: Path) -> None:
    """The story in one strip, as in the README."""
    chosen = searched["bayesian"]
    history = chosen.histories[-1]
    posterior = posterior_of(chosen.policy, history)
    assert posterior is not None  # the Bayesian policy has beliefs once anything has been tried
    recommended = chosen.policy.recommend(history, generator(seed, "recommend", len(history)))
    before, after = one_window(_system(setting), [no_stimulus(setting.montage), recommended], seed=seed)
    loudest = int(after.signal_uv.std(-1).argmax())
    story = story_picture(
        before, after, setting.montage.channels[loudest].name,
        {name: np.stack([h.scores.numpy() for h in s.histories]) for name, s in searched.items()},
        posterior, setting.space, setting.space.locate(history.stimuli), at=setting.space.locate(recommended),
        pair=("frequency_hz", "amplitude_ma"), score_label="log10 alpha power (µV²)",
        reference=truth.optimum, reference_name="true optimum",
    )  # fmt: skip
    save_picture(story, path)


def _policy_section(searched: Mapping[str, Searched], truth: Landscape, size: Size, label: str) -> Section:
    regret = {name: truth.optimum - s.truth for name, s in searched.items()}
    rows = tuple(
        (name, _middle(regret[name][:, -1]), float(regret[name].sum(1).mean()), s.violations, s.seconds)
        for name, s in searched.items()
    )
    columns = ("policy", "simple regret", "regret summed over trials", "violations", "seconds per decision")
    note = (
        f"Regret in units of the score, against the true optimum {truth.optimum:.3f}: the best of a dense search "
        f"over {len(truth.unit)} points and of all recommendations; without stimulation the score is "
        f"{truth.silence:.3f}; a single trial varies by "
        f"{truth.trial_sd:.2f} (standard deviation). {size.seeds} seed(s), paired."
    )
    trace = search_trace(
        {name: np.stack([h.scores.numpy() for h in s.histories]) for name, s in searched.items()}, score_label=label,
        regret=regret, reference=truth.optimum, reference_name="true optimum",
    )  # fmt: skip
    return Section(
        "Policies compared",
        tables=(Table(columns, rows, "The same budget for each", note),),
        figures=(trace,),
        origin="simulated",
    )


def _middle(values: np.ndarray[Any, Any]) -> float | Interval:
    return float(values[0]) if len(values) < 2 else bootstrap_interval(values)


def _skill_section(comparison: Comparison) -> Section:
    note = (
        f"Fitted on {len(comparison.training)} trials, judged on {len(comparison.held_out)} others of the same "
        "simulated patient. r2_shuffled: the same with the stimuli dealt out anew; a model that does not fall does not "
        "use the stimulus. Coverage: share of samples inside the central 50 and 90 % intervals."
    )
    return Section("Response models", tables=(skill_table(comparison.skill, note=note),), origin="simulated")


def _replay_sections(replayed: Mapping[str, Any]) -> list[Section]:
    if not replayed:
        return []
    curves = {
        name: tuple(replayed["curves"][name]["exploration"][key] for key in ("median", "low", "high"))
        for name in (replayed["policy"], replayed["versus"])
    }
    figure = replay_curves(replayed["n"], curves, "exploration")
    return [Section("Replay on recorded trials", replayed["sentence"], figures=(figure,), origin="recorded")]
