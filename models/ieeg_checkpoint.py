"""From corpora to a checkpoint of the foundation model: train, choose `temper`, judge, and say on a card what it is.

The checkpoint's folder appears whole, with the model card; the run that made it stays in a folder of its own, from
which it can be made again, or made early from a run that still goes on.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stimopt.checkpoint import save_checkpoint
from stimopt.errors import DataError
from stimopt.forecaster import Trials

from .ieeg_batches import Draw, Patient, patient_of
from .ieeg_corpus import PatientRecord, described, read_in_pairs, read_record, records_in
from .ieeg_foundation import KIND, FoundationModel
from .ieeg_judging import PASTS, coverage_apart, error_ratios, fitted_temper, judged
from .ieeg_pretrain import Machine, begun, pretrain, read_run, with_weights
from .ieeg_recipe import Recipe, checked, recipe_of
from .ieeg_transformer import IeegTransformer

_LIMITS = (
    "Forecasts windows of up to 0.5 s from the onset, for montages with known places. Rates and lengths of context "
    "other than those of its corpora are read, but it was not trained on them. Simulated patients are no people: "
    "metrics on them do not say how well it forecasts recordings; judge it on a patient's own held-out trials first."
)


def train_ieeg_foundation(
    gather: Callable[[], tuple[Sequence[Path], Path, Mapping[str, Trials]]], run: Path, out: Path, *,
    recipe: Mapping[str, Any], machine: Mapping[str, Any], resume: bool, command: str,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Pretrain the foundation network on corpora and recordings and write its checkpoint.

    Args:
        gather: Called once the recipe is known to be right: folders of records to learn from, one folder of records
            that are never learned from, and recorded trials to learn from, by name.
        run: Folder of the run; what is there is gone on with if `resume`.
        out: Folder of the checkpoint.
        recipe: See `Recipe`.
        machine: See `Machine`.
        resume: Whether to go on.
        command: What was typed, for the card.
        progress: Told what is done, how far, out of how much, and a note.

    Returns:
        Metrics on the validation patients; empty in all but the first of several processes.

    Raises:
        ConfigError: If the recipe or the machine is wrong.
        DataError: If a corpus is empty, or no patient has trials enough for a batch.
        CheckpointError: If the run's folder holds another run, or what it starts from is not there.
    """
    how, where = recipe_of(recipe), checked(Machine, machine)
    if not resume:
        begun(how)  # refuses a start that is not there before hours of simulation
    corpora, validation, recordings = gather()
    records = [read_record(path) for folder in corpora for path in records_in(folder)]
    records += [recorded(name, trials) for name, trials in recordings.items()]
    patients = trainable(records, how.draw)
    judges = patients_of([read_record(path) for path in records_in(validation)])
    said = ""

    def reported(report: dict[str, Any]) -> None:
        nonlocal said
        said = f"loss {report['loss']:.3f}, {report['windows_per_second']:.0f} windows/s"

    def stepped(step: int) -> None:
        if progress:
            progress("training", step, how.steps, said)

    pretrain(
        patients, how, run, validation=judges, resume=resume, progress=reported, tick=stepped, machine=where
    )  # fmt: skip
    if not where.first:
        return {}
    card = {
        "training_data": _training_data(records, corpora, how, command),
        "simulated": all(record.simulated for record in records),
    }
    return checkpoint_of(run, out, judges, card)


def checkpoint_of(
    run: Path, out: Path, validation: Sequence[Patient], card: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Turn a run's averaged weights, as they are now, into a checkpoint; with `kept`, their mean with the first ones.

    Training on other patients takes some of what was learned from earlier ones; halfway between, along the straight
    line, a network knows most of both (Wortsman et al., CVPR 2022, robust fine-tuning of zero-shot models).

    Args:
        run: Folder of the run.
        out: Folder of the checkpoint; an older checkpoint there is replaced.
        validation: Patients never learned from, who choose `temper` and on whom the card's metrics are measured.
        card: More for the card, see `save_checkpoint`; "metrics" are added to the measured ones.

    Returns:
        The card's metrics.

    Raises:
        CheckpointError: If there is no run, `out` holds something else, or the first weights are needed and not there.
        DataError: If no validation patient has trials enough.
    """
    recipe, network, step = read_run(run)
    network = _drawn_to_start(network, recipe)
    ratios = error_ratios(network, validation)
    temper, more = fitted_temper(ratios), dict(card or {})
    scores = {past: judged(network, validation, past) for past in PASTS}
    metrics: dict[str, float] = {
        f"{name} with {past} trials": value
        for past, row in scores.items()
        for name, value in row.items()
        if name != "coverage_90"
    }
    metrics["coverage of 90 % intervals on patients who did not choose temper"] = coverage_apart(ratios)
    metrics |= {"temper": temper, "validation patients": len(validation), **more.pop("metrics", {})}
    data = more.pop("training_data", "Not stated.")
    stated = {
        "title": "The foundation model of iEEG under stimulation: forecasts a patient's responses from past trials",
        "simulated": True, "limits": _LIMITS, "metrics": metrics,
        "training_data": f"{data} {step} of {recipe.steps} steps, seed {recipe.seed}. Metrics are medians over "
        "validation patients who were never learned from, at sites that the past trials did not hold where possible.",
    }  # fmt: skip
    save_checkpoint(out, KIND, FoundationModel(recipe.size, network.state_dict(), temper), stated | more)
    return metrics


def _drawn_to_start(network: IeegTransformer, recipe: Recipe) -> IeegTransformer:
    if not recipe.kept:
        return network
    first = begun(recipe).state_dict()
    return with_weights(
        network, {name: value.lerp(first[name], recipe.kept) for name, value in network.state_dict().items()}
    )


def recorded(name: str, trials: Trials) -> PatientRecord:
    """A patient's recorded trials as a record; rest is what came before each stimulus."""
    return PatientRecord(name, "recorded", False, trials.context, trials)


def trainable(records: Sequence[PatientRecord], draw: Draw) -> list[Patient]:
    """Those who have trials enough for every batch; the others are left out with a warning.

    Each is there as recorded and, where contacts are read against a reference, once more in pairs.

    Raises:
        DataError: If nobody has.
    """
    needed = draw.asked + max(draw.past)
    fit = [record for record in records if len(record.trials) >= needed]
    if len(fit) < len(records):
        warnings.warn(
            f"{len(records) - len(fit)} of {len(records)} patients were left out: batches take {needed} trials of each "
            "(draw: asked and the largest of past).",
            stacklevel=2,
        )
    if not fit:
        raise DataError(f"no patient has the {needed} trials that batches take; lower draw's asked or past.")
    return patients_of([view for record in fit for view in (record, read_in_pairs(record)) if view is not None])


def patients_of(records: Sequence[PatientRecord]) -> list[Patient]:
    """Records in the network's units; those with flat channels are left out with a warning."""
    patients = []
    for record in records:
        try:
            patients.append(patient_of(record))
        except DataError as error:
            warnings.warn(f"patient {record.name!r} was left out: {error}", stacklevel=2)
    return patients


def _training_data(records: Sequence[PatientRecord], corpora: Sequence[Path], recipe: Recipe, command: str) -> str:
    kinds = {record.simulated for record in records}
    mixed = "Trained on simulations and on recordings. " if len(kinds) == 2 else ""
    if recipe.start_from is not None:
        mixed += f"Begun from trained weights of sha256 {recipe.start_from[1]}, which have a card of their own. "
    return f"{mixed}{described(records, corpora)} Made by '{command}'."
