"""Commands about models that learn from many patients: pretraining, and judging forecasts where the truth is known."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .cli_output import Json, Names, Out, Resume, Seed, Workers, of_all, show
from .errors import ConfigError

if TYPE_CHECKING:
    from .dose_table import DoseTable
    from .recorded_protocol import SiteTable

Told = Callable[[int, int], None] | None
_SIGNALS = "ccep-seeg-bids"


def skill(
    model: Annotated[str, typer.Argument(help="Model, with options if any: 'ieeg-foundation {adapt: context}'.")],
    out: Out,
    also: Annotated[Names, typer.Option(help="Further models or options to judge; repeat.")] = None,
    against: Annotated[Names, typer.Option(help="Baselines; repeat. All, if not given.")] = None,
    family: Annotated[Names, typer.Option(help="Circuit families, each apart; repeat.")] = None,
    patients: Annotated[int, typer.Option(min=1, help="Of each family.")] = 20,
    trials: Annotated[Optional[list[int]], typer.Option(min=0, help="Past trials; repeat.")] = None,  # noqa: UP045
    split: Annotated[Names, typer.Option(help="Which splits; repeat. All, if not given.")] = None,
    unseen: Annotated[str, typer.Option(help="What past trials leave out: some sites, or a whole shaft.")] = "sites",
    stimuli: Annotated[int, typer.Option(min=1, help="In each split.")] = 8,
    repeats: Annotated[int, typer.Option(min=2, help="Of each stimulus, from other states.")] = 8,
    slope_points: Annotated[int, typer.Option(min=0, help="Where slopes are compared; 0 for none.")] = 16,
    seeds: Annotated[int, typer.Option(min=1, help="Each draws its own past trials and fits anew.")] = 1,
    workers: Workers = 1,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """A model's forecasts beside its baselines' on simulated patients that nobody was trained on.

    Example: stimopt skill "ieeg-foundation {adapt: context}" --family jansen-rit --patients 20 --out skill/tiny
    """
    from .contenders import contenders
    from .protocol import ProtocolSettings, run_protocol
    from .protocol_bars import protocol_bars
    from .protocol_splits import SPLITS

    judged = contenders([model, *(also or [])], trials or (0, 1, 5, 20), against)
    settings = ProtocolSettings(
        families=tuple(family or ["jansen-rit"]), patients=patients, splits=tuple(split or SPLITS),
        stimuli=stimuli, repeats=repeats, slope_points=slope_points, seeds=tuple(range(seeds)), unseen=unseen,
    )  # fmt: skip
    table = run_protocol(out, settings, judged, workers=workers, resume=resume, progress=None if as_json else of_all)
    bars = protocol_bars(table, judged[0].label)
    if as_json:
        show({"skill": str(out), **table.to_dict(), "bars": bars.to_dict("records")}, True)
    else:
        print(table.text())
        print(bars.round(3).to_string(index=False))


def skill_recorded(
    model: Annotated[
        Optional[str],  # noqa: UP045  # Typer reads it at run time
        typer.Argument(help="Model, with options if any; on a dose table a dose model, by default gaussian-process."),
    ] = None,
    data: Annotated[str, typer.Option("--data", help="Data set: signals, or a dose table by name or path.")] = _SIGNALS,
    against: Annotated[Names, typer.Option(help="Baselines; repeat. All, if not given.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what models draw; dose models draw nothing.")] = 0,
    as_json: Json = False,
) -> None:
    """A model on recorded data: every stimulation site left out in turn; on a dose table, blocks or settings.

    Needs STIMOPT_DATA. `--data ep-dose-ecog` and `--data opto-septohippocampal` are dose tables, judged with the models
    of `stimopt list dose_models`.

    Example: stimopt skill-recorded ieeg-foundation
    """
    told = None if as_json else of_all
    table: SiteTable | DoseTable
    if data == _SIGNALS:
        table, label = _judged_by_site(model, against, seed, told)
    else:
        table, label = _judged_by_dose(data, model, against, told)
    gaps = table.differences(label)
    if as_json:
        rows = {"summary": table.summary(), "differences": gaps, "refused": table.refused}
        show({"data": data, "model": label, **{key: frame.to_dict("records") for key, frame in rows.items()}}, True)
    else:
        print(table.text())
        if data != _SIGNALS:
            print(f"\nHow much higher {label} is, paired over units:")
        print(gaps.round(3).to_string(index=False))


def _judged_by_site(model: str | None, against: Names, seed: int, told: Told) -> tuple["SiteTable", str]:
    from . import plugins
    from .contenders import contenders
    from .recorded_protocol import RECORDED_BASELINES, ccep_trials, leave_sites_out

    known, doses = plugins.names("models"), plugins.names("dose_models")
    if model is None:
        raise ConfigError(f"name the model to judge on {_SIGNALS}: one of {', '.join(known)}.")
    if model in doses and model not in known:
        raise ConfigError(f"{model!r} is a dose model and {_SIGNALS} holds signals; add --data with a dose table.")
    judged = contenders([model], (20,), against or [name for name in RECORDED_BASELINES if name in known])
    return leave_sites_out(ccep_trials(), judged, seed=seed, progress=told), judged[0].label


def _judged_by_dose(data: str, model: str | None, against: Names, told: Told) -> tuple["DoseTable", str]:
    from .datasets import load_table
    from .dose_protocol import DOSE_MODELS, dose_models, judge_doses

    models = dose_models([model or DOSE_MODELS[-1], *(against or DOSE_MODELS)])
    return judge_doses(load_table(data), models, told), next(iter(models))


def pretrain(
    config: Annotated[Path, typer.Argument(help="What to learn from, and how; see examples/pretrain.yaml.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the checkpoint; its run is kept beside it.")],
    seed: Seed = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """A foundation model from virtual patients and recordings, with a card that says what it was made of.

    Example: stimopt pretrain examples/pretrain.yaml --out models/tiny
    """
    from .pretraining import pretrain_from, progress_bars

    if as_json:
        result = pretrain_from(config, out, seed=seed, resume=resume)
    else:
        with progress_bars() as told:
            result = pretrain_from(config, out, seed=seed, resume=resume, progress=told)
    if result:
        show(result, as_json)
