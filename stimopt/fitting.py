"""From recorded trials to a response model: fit every kind, judge on held-out trials, keep one."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import plugins
from .checkpoint import save_checkpoint
from .errors import DataError, RunError
from .forecaster import Forecaster, Trials
from .montage import Montage
from .provenance import provenance, write_atomically
from .recording import read_recording
from .skill import held_out_skill, split_trials
from .space import Kind, Parameter, StimulationSpace, contact_site
from .stimulus import Stimulus
from .tensors import concatenate
from .units import canonical_unit

BASELINES = ("no-effect", "mean-evoked", "arx")
HELD_OUT_SHARE = 0.25
"""Share of trials that no model sees while it is fitted."""


@dataclass(frozen=True)
class Comparison:
    """Models fitted on the same trials and judged on the same held-out ones.

    Attributes:
        forecasters: By name.
        skill: Readings of `held_out_skill` by name.
        training: Trials that were fitted on.
        held_out: Trials that were judged on.
    """

    forecasters: Mapping[str, Forecaster]
    skill: Mapping[str, Mapping[str, float]]
    training: Trials
    held_out: Trials

    @property
    def best(self) -> str:
        """The model with the smallest continuous ranked probability score."""
        return self.best_of(tuple(self.skill))

    def best_of(self, names: Sequence[str]) -> str:
        """The same among some of them."""
        return min(names, key=lambda name: self.skill[name]["crps_uv"])


def compare_models(
    trials: Trials, names: Sequence[str], space: object, seed: int,
    options: Mapping[str, Mapping[str, Any]] | None = None, progress: Callable[[str], None] | None = None,
    from_s: float = 0.0,
) -> Comparison:  # fmt: skip
    """Fit each named model on three quarters of the trials and judge it on the rest.

    Args:
        trials: In time order.
        names: Entry points of `stimopt.models`.
        space: The stimulation space, for models that need one; None leaves those out.
        seed: Of the split and of the fits.
        options: Options by model name.
        progress: Called with each name before its fit.
        from_s: Samples before this time are not judged.

    Raises:
        DataError: If there are too few trials to hold a quarter out.
    """
    if len(trials) < 8:
        raise DataError(f"{len(trials)} trials cannot be split for a fit; record at least 8.")
    training, held_out = split_trials(trials, HELD_OUT_SHARE, seed)
    forecasters: dict[str, Forecaster] = {}
    for name in names:
        if progress:
            progress(name)
        parts = {"trials": training, "seed": seed} | ({} if space is None else {"space": space})
        forecasters[name] = plugins.build("models", name, (options or {}).get(name, {}), parts)
    skill = {
        name: held_out_skill(forecaster, held_out, seed=seed, from_s=from_s) for name, forecaster in forecasters.items()
    }
    return Comparison(forecasters, skill, training, held_out)


def fit_recording(
    path: Path, out: Path, model: str, before_s: float, after_s: float, skip_s: float, seed: int,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fit response models to a recording with stimulation, compare them, and keep one as a checkpoint.

    Args:
        path: A recording (.nc, .zarr), or a BIDS-iEEG folder, whose runs are joined and read bipolar.
        out: Folder of the checkpoint, created.
        model: Name of the model to keep, or "best".
        before_s: Signal before each stimulus that a forecast may see.
        after_s: End of the response to forecast, from the stimulus.
        skip_s: The stimulation artefact at its beginning, bridged by a straight line and not judged.
        seed: Of the split and of the fits.
        progress: Told which model is being fitted.

    Returns:
        Held-out skill by model, which was kept, and where.

    Raises:
        ConfigError: If the model is unknown.
        DataError: If the recording cannot be read or has too few trials.
        RunError: If `out` exists.
    """
    if out.exists():
        raise RunError(f"{out} exists; choose another --out.")
    if model != "best":
        plugins.find("models", model)
    trials = read_trials(path, before_s, after_s)
    trials = without_artefact(trials, skip_s)
    space = space_of_trials(trials.stimulus)
    names = [
        name for name in plugins.names("models") if name in ("no-effect", model) or model == "best" or name in BASELINES
    ]
    comparison = compare_models(trials, names, space, seed, progress=progress, from_s=skip_s)
    kept = comparison.best if model == "best" else model
    card = {
        "title": f"{kept} response model", "metrics": comparison.skill[kept],
        "training_data": f"{len(comparison.training)} trials of {path.name}; judged on {len(comparison.held_out)} "
        f"others, seed {seed}, {before_s} s before and {skip_s} to {after_s} s after each stimulus.",
    }  # fmt: skip
    save_checkpoint(out, kept, comparison.forecasters[kept], card)
    write_atomically(out / "skill.json", json.dumps(comparison.skill))
    write_atomically(out / "run.json", json.dumps(provenance(seed=seed), indent=2))
    return {"kept": kept, "trials": len(trials), "skill": dict(comparison.skill), "model": str(out)}


def read_trials(path: Path, before_s: float, after_s: float) -> Trials:
    """Trials of a recording file or of all runs of a BIDS-iEEG folder's first subject, in time order.

    Raises:
        DataError: If it cannot be read, or no trial has both windows whole.
    """
    if path.is_dir() and (path / "dataset_description.json").is_file():
        from .bids import read_bids_runs

        subjects = sorted(folder.name.removeprefix("sub-") for folder in path.glob("sub-*") if folder.is_dir())
        if not subjects:
            raise DataError(f"{path} has no sub-... folder; give the root of a BIDS data set.")
        runs = [recording.bipolar() for recording in read_bids_runs(path, subjects[0])]
    else:
        runs = [read_recording(path)]
    return concatenate([recording.trials(before_s, after_s, unfit="drop") for recording in runs])


def without_artefact(trials: Trials, until_s: float) -> Trials:
    """The trials with the response before `until_s` replaced by a straight line from the last sample of the context.

    Raises:
        ShapeError: If nothing is left of the response.
    """
    response = trials.response
    end_s = response.start_s + response.signal_uv.shape[-1] / response.rate_hz
    kept = response.between(until_s, end_s).signal_uv
    bridged = response.signal_uv.shape[-1] - kept.shape[-1]
    steps = torch.arange(1, bridged + 1, dtype=kept.dtype, device=kept.device) / (bridged + 1)
    before, after = trials.context.signal_uv[..., -1:], kept[..., :1]
    return replace(
        trials, response=replace(response, signal_uv=torch.cat([before + steps * (after - before), kept], -1))
    )


def space_of_trials(stimuli: Stimulus) -> StimulationSpace:
    """The space that recorded stimuli span: which contacts, and each of amplitude, frequency, width and pulses
    that varied.

    Raises:
        DataError: If nothing varied: there is then nothing to learn about the stimulus.
    """
    felt = stimuli[(~stimuli.silent).nonzero().squeeze(-1)].to(torch.zeros((), dtype=torch.float64))
    if not felt.batch_shape[0]:
        raise DataError("no trial of this recording has a stimulus; a response model needs some.")
    sites = list(dict.fromkeys(_site_name(stimuli.montage, row) for row in felt.amplitude_ma))
    parameters = [] if len(sites) < 2 else [contact_site(felt[0], sites)]
    ranges = {"amplitude_ma": felt.amplitude_ma.abs().amax(-1), "frequency_hz": felt.frequency_hz,
              "pulse_width_us": felt.pulse_width_us, "pulses": felt.pulses}  # fmt: skip
    for name, values in ranges.items():
        low, high = float(values.min()), float(values.max())
        if high > low:
            kind: Kind = "integer" if name == "pulses" else "continuous"
            parameters.append(Parameter(name, kind, low, high, unit=canonical_unit(name)))
    if not parameters:
        raise DataError("every stimulus of this recording is the same; there is nothing to learn about stimulation.")
    return StimulationSpace(tuple(parameters), felt[0])


def _site_name(montage: Montage, amplitude_ma: Tensor) -> str:
    negative, positive = (amplitude_ma < 0).nonzero().squeeze(-1), (amplitude_ma > 0).nonzero().squeeze(-1)
    if len(negative) > 1 or len(positive) > 1:
        raise DataError(
            "a stimulus uses more than one pair of contacts; fitting from recordings takes single sites and pairs."
        )
    return "-".join(montage.contacts[int(index)].name for index in (*negative, *positive))
