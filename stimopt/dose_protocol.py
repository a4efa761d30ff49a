"""The protocol on recorded dose tables: forecast the trials of a block, or of a setting, that was left out.

Such a table holds one number a trial, no waveform and no coordinates, so dose models are judged here and
forecasters of waveforms are not. Its card says what the dose is and what it should move.

A card with blocks: every block of a patient is left out in turn, and models learn from the patient's other blocks
with the same stimulated pair. Units are patients.
A card without: every setting is left out in turn, then every repetition of all settings. Units are settings.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from . import plugins
from .contenders import label_of, named
from .dose_splits import LEAST_TRIALS, DosePart, block_parts, labels_of, outcomes_of, setting_parts
from .dose_table import UNIT, DoseTable, measured_by_patient, measured_by_setting
from .dose_trials import DoseCurve, FitDose
from .errors import ConfigError, DataError, StimoptError
from .skill import gaussian_crps
from .trial_card import DoseCard
from .trial_table import TrialTable

DOSE_MODELS = ("no-dose", "setting-means", "log-linear", "monotone", "saturating", "gaussian-process")
"""The plainest first."""
_Z90 = 1.6449  # half the central 90 % of a Gaussian, in standard deviations
Progress = Callable[[int, int], None] | None


def dose_models(texts: Sequence[str]) -> dict[str, FitDose]:
    """Dose models as written on the command line, by their labels.

    Raises:
        ConfigError: If a name or an option is unknown, or the name is of a forecaster of waveforms.
    """
    found: dict[str, FitDose] = {}
    for text in texts:
        name, known = text.strip().partition(" ")[0], plugins.names("dose_models")
        if name in plugins.names("models") and name not in known:
            raise ConfigError(
                f"{name!r} forecasts waveforms, and a dose table has none; choose a dose model: {', '.join(known)}."
            )
        name, options = named("dose_models", text)
        found[label_of(name, options)] = partial(plugins.find("dose_models", name), **options)
    return found


def judge_doses(table: TrialTable, models: Mapping[str, FitDose], progress: Progress = None) -> DoseTable:
    """Leave blocks out where the card names blocks, else settings.

    Args:
        table: Whose card says what the dose is.
        models: By label.
        progress: Told how many of all patients, or of all outcomes, are done.

    Raises:
        DataError: If the card names no dose, or there is too little to leave anything out.
    """
    judge = leave_blocks_out if "block" in table.groups else leave_settings_out
    return judge(table, models, progress)


def leave_blocks_out(table: TrialTable, models: Mapping[str, FitDose], progress: Progress = None) -> DoseTable:
    """Every block of every patient in turn.

    Raises:
        DataError: If the card names no dose or no patients, or no patient has two blocks to compare.
    """
    dose, sums, refused = _dose_of(table), list[pd.DataFrame](), list[dict[str, str]]()
    if not table.patients:
        raise DataError(
            f"{table.card.name!r} names blocks but no patient; intervals are over patients, so name them in its card."
        )
    for done, patient in enumerate(table.patients):
        own = table.select(patient=patient)
        parts = list(block_parts(own, dose, patient))
        if not parts:
            refused.append(_refusal("all", patient, _why_not(own, dose)))
        for part in parts:
            _judge(part, models, sums, refused)
        if progress:
            progress(done + 1, len(table.patients))
    if not sums:
        raise DataError(f"no block of {table.card.name!r} can be left out: " + _first(refused))
    title = (
        f"{table.card.name}: every block left out in turn; units are patients. effect_r2: after the tested block's "
        "own mean is taken off outcome and forecast, a mean that no forecast knows."
    )
    return DoseTable(title, measured_by_patient(pd.concat(sums)), _refusals(refused), "median")


def leave_settings_out(table: TrialTable, models: Mapping[str, FitDose], progress: Progress = None) -> DoseTable:
    """Every setting in turn, then every repetition of all settings.

    Raises:
        DataError: If the card names no dose, there are several patients, or there are fewer than three settings or
            a setting with fewer than two trials.
    """
    dose, sums, refused = _dose_of(table), list[pd.DataFrame](), list[dict[str, str]]()
    if len(table.patients) > 1:
        raise DataError(f"{table.card.name!r} has {len(table.patients)} patients and no blocks; select one of them.")
    many = [(name, shown, labels_of(table, name)) for name, shown in outcomes_of(dose)]
    asked = [(label, shown.replace(name, label, 1)) for name, shown, labels in many for label in labels]
    for done, (label, shown) in enumerate(asked):
        for part in setting_parts(table.select(outcome=label), dose, label, shown):
            _judge(part, models, sums, refused)
        if progress:
            progress(done + 1, len(asked))
    if not sums:
        raise DataError(f"nothing of {table.card.name!r} could be judged: " + _first(refused))
    title = (
        f"{table.card.name}: every setting left out in turn, then every repetition; units are settings, so an interval "
        "says nothing of other individuals. A control is what the dose should not move."
    )
    return DoseTable(title, measured_by_setting(pd.concat(sums)), _refusals(refused), "mean")


def _judge(
    part: DosePart, models: Mapping[str, FitDose], sums: list[pd.DataFrame], refused: list[dict[str, str]]
) -> None:
    """Add each model's sums over the part, by unit; a model that refuses is named instead."""
    for model, fit in models.items():
        try:
            found = _errors(part, fit(part.past))
        except StimoptError as refusal:
            refused.append(_refusal(model, part.rows["unit"][0], str(refusal)))
            continue
        frame = pd.DataFrame({name: value.numpy() for name, value in found.items()}).assign(**part.rows, model=model)
        sums.append(frame.groupby(UNIT, sort=False).sum().reset_index())


def _errors(part: DosePart, curve: DoseCurve) -> dict[str, Float[Tensor, " trial"]]:
    forecast, outcome = curve(part.settings), part.outcome
    off, own = outcome - forecast.mean, outcome - outcome.mean()
    return {
        "trials": torch.ones_like(outcome), "error": off.square(),
        "size": (outcome - part.past.outcome.mean()).square(), "noise": part.noise,
        "effect_error": (off - off.mean()).square(), "effect_size": own.square(),
        "crps": gaussian_crps(forecast.mean, forecast.scale, outcome),
        "inside": (off.abs() <= _Z90 * forecast.scale).double(),
    }  # fmt: skip


def _dose_of(table: TrialTable) -> DoseCard:
    if table.card.dose is None:
        raise DataError(
            f"the card of {table.card.name!r} does not say what its dose is; add "
            "'dose: {parameter: ..., outcomes: [...]}'."
        )
    return table.card.dose


def _why_not(own: TrialTable, dose: DoseCard) -> str:
    blocks = len(dict.fromkeys(own.groups["block"]))
    if blocks == 1:
        return "there is one block, and leaving one out takes two; record another."
    same = f" with the same {' and '.join(dose.same)}" if dose.same else ""
    return f"none of {blocks} blocks has others{same} that hold {LEAST_TRIALS} valid trials of a channel."


def _refusal(model: str, unit: str, reason: str) -> dict[str, str]:
    return {"model": model, "unit": unit, "reason": reason}


def _refusals(found: list[dict[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(found, columns=["model", "unit", "reason"]).drop_duplicates(ignore_index=True)


def _first(refused: list[dict[str, str]]) -> str:
    return f"{refused[0]['unit']}: {refused[0]['reason']}" if refused else "no model was given."
