"""The command line. Each command reads its inputs to the end before it creates anything.

Mistakes end with one sentence on standard error and exit code 2. Heavy imports wait
inside the command that needs them, so `stimopt --help` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from .cli_models import pretrain, skill, skill_recorded
from .cli_output import Json, Out, Resume, Seed, Workers, counted, of_all, say, show
from .errors import StimoptError

app = typer.Typer(
    name="stimopt", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Fit, search and evaluate intracranial stimulation inside a safety envelope. "
    "Start with: stimopt demo --quick",
)  # fmt: skip


def main() -> None:
    """Entry point: run the command; a StimoptError is one sentence and exit code 2."""
    try:
        app()
    except StimoptError as error:
        print(f"stimopt: {error}", file=sys.stderr)
        sys.exit(2)
    except FileNotFoundError as error:
        print(f"stimopt: {error.filename or error} does not exist; check the path.", file=sys.stderr)
        sys.exit(2)


@app.command()
def demo(
    out: Out = Path("stimopt-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A smaller story, within a minute.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    as_json: Json = False,
) -> None:
    """The whole story on a simulated patient: record, fit, search, compare, report.

    Example: stimopt demo --quick --json
    """
    from .demo import run_demo

    result = run_demo(out, quick=quick, seed=seed, progress=None if as_json else say)
    show(result, as_json)


@app.command()
def search(
    experiment: Annotated[Path, typer.Argument(help="Experiment file (YAML).")],
    out: Out,
    resume: Resume = False,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """A parameter search on a simulated system, kept trial by trial; resumable.

    Example: stimopt search quiet-alpha.yaml --out runs/quiet-alpha
    """
    from .pages import write_run_report
    from .runs import create_run, opened_run, require_same_experiment

    if resume and out.exists():
        require_same_experiment(experiment, out)
    else:
        create_run(experiment, out, seed)
    with opened_run(out) as run:
        if run.setting.system is None:
            raise StimoptError(f"{experiment} has a montage, not a system; use 'stimopt ask' and 'stimopt tell'.")
        history = run.session.run(run.setting.system, run.experiment.trials, None if as_json else counted("trial"))
        space = run.setting.space
        result = {
            "run": str(out), "trials": len(history), "best_score": float(history.scores.max()),
            "recommended": space.describe(space.locate(run.session.recommend())),
            "locked": run.session.lock_reason, "report": str(write_run_report(run)),
        }  # fmt: skip
    show(result, as_json)


@app.command()
def ask(
    folder: Annotated[Path, typer.Argument(help="The run's folder.")],
    experiment: Annotated[Optional[Path], typer.Option(help="Begin the run from this file.")] = None,  # noqa: UP045
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """The next stimulus of a run, for a person or a device to deliver. Asked again before `tell`, the same one.

    Example: stimopt ask runs/patient-7 --experiment patient-7.yaml
    """
    from dataclasses import asdict

    from .pages import before_asking, margin_rows
    from .runs import create_run, opened_run

    if experiment is not None and not folder.exists():
        create_run(experiment, folder, seed)
    with opened_run(folder) as run:
        stimulus = run.session.ask()
        space, history = run.setting.space, before_asking(run.session.history)
        current = zip(run.setting.montage.contacts, stimulus.amplitude_ma.tolist(), strict=True)
        train = ("frequency_hz", "pulse_width_us", "pulses", "interphase_us", "onset_s")
        result = {
            "trial": len(history),
            "parameters": space.describe(space.locate(stimulus)),
            "amplitude_ma": {contact.name: ma for contact, ma in current if ma != 0.0},
            "train": {name: float(getattr(stimulus, name)) for name in train},
            "safety": [asdict(row) for row in margin_rows(run.setting.envelope, stimulus, history)],
        }
    show(result, as_json)


@app.command()
def tell(
    folder: Annotated[Path, typer.Argument(help="The run's folder.")],
    score: Annotated[Optional[float], typer.Option(help="The score, higher is better.")] = None,  # noqa: UP045
    response: Annotated[Optional[Path], typer.Option(help="The recorded window (.nc or .zarr).")] = None,  # noqa: UP045
    note: Annotated[str, typer.Option(help="Anything worth keeping.")] = "",
    without_stop_rule: Annotated[
        bool, typer.Option("--without-stop-rule", help="You watched the signal: a score alone cannot be checked.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What came back for the stimulus in flight.

    Example: stimopt tell runs/patient-7 --score 12.5
    """
    from .pages import response_from
    from .runs import opened_run

    window = response_from(response) if response is not None else None
    with opened_run(folder) as run:
        value = run.session.tell(window, score, note=note, without_stop_rule=without_stop_rule)
        result = {"trial": len(run.session.history) - 1, "score": value, "locked": run.session.lock_reason}
    show(result, as_json)


@app.command()
def evaluate(
    study: Annotated[Path, typer.Argument(help="Study file (YAML).")],
    out: Out,
    workers: Workers = 1,
    resume: Resume = False,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Policies x virtual patients x seeds: a table with paired bootstrap intervals.

    Example: stimopt evaluate study.yaml --out studies/first --workers 2
    """
    from .pages import write_study_report
    from .study import begin_study, run_study

    begin_study(study, out, resume, seed)
    table = run_study(out, workers, None if as_json else of_all)
    report = write_study_report(out, table)
    if as_json:
        show({"study": str(out), "table": table.to_dict("records"), "report": str(report)}, True)
    else:
        print(table.round(3).to_string(index=False))
        print(f"tables: {out / 'table.csv'}, {out / 'runs.csv'}; report: {report}")


@app.command()
def replay(
    dataset: Annotated[str, typer.Argument(help="Name of a dataset, or the path of a dataset.yaml.")],
    policy: Annotated[str, typer.Option("--policy", help="Name of a policy.")] = "bayesian",
    outcome: Annotated[Optional[str], typer.Option(help="Which outcome; the card's first if not given.")] = None,  # noqa: UP045
    trials: Annotated[int, typer.Option(min=1)] = 48,
    repeats: Annotated[int, typer.Option(min=1)] = 30,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    versus: Annotated[str, typer.Option(help="Policy to compare with, on paired draws; '' for none.")] = "random",
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """A policy judged on recorded trials, each repetition used once.

    Example: stimopt replay opto-septohippocampal --policy bayesian --trials 48 --repeats 30 --seed 1
    """
    from .replaying import replay_dataset

    show(
        replay_dataset(dataset, policy, outcome, trials, repeats, seed, versus, workers, None if as_json else of_all),
        as_json,
    )


@app.command()
def fit(
    recording: Annotated[Path, typer.Argument(help="Recording (.nc, .zarr) or BIDS-iEEG folder.")],
    out: Out,
    model: Annotated[
        str, typer.Option("--model", help="Which model to keep; 'best' keeps the best on held-out trials.")
    ] = "best",
    before_s: Annotated[float, typer.Option(help="Signal before each stimulus that a forecast may see.")] = 0.5,
    after_s: Annotated[float, typer.Option(help="End of the response to forecast.")] = 0.5,
    skip_s: Annotated[float, typer.Option(help="Its beginning to leave out: the stimulation artefact.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Fit response models to a patient's trials; print held-out skill beside the baselines; keep one.

    Example: stimopt fit patient-7.nc --out models/patient-7
    """
    from .fitting import fit_recording

    show(fit_recording(recording, out, model, before_s, after_s, skip_s, seed, None if as_json else say), as_json)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, a study or a model.")], as_json: Json = False
) -> None:
    """Write the page of a run, a study or a model again: one self-contained HTML file.

    Example: stimopt report runs/quiet-alpha
    """
    from .pages import write_report

    show({"report": str(write_report(folder))}, as_json)


@app.command("list")
def list_names(
    kind: Annotated[str, typer.Argument(help="systems, models, policies, objectives, datasets or profiles.")],
    as_json: Json = False,
) -> None:
    """What can be named in experiment files and on the command line.

    Example: stimopt list policies
    """
    from .listing import listing

    show({kind: listing(kind)}, as_json)


for command in (skill, skill_recorded, pretrain):
    app.command()(command)
