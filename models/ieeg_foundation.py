"""The foundation model, and a patient's forecaster made of it: past trials are its input, no gradient step is needed.

    model = load_foundation("ieeg-tiny")
    forecaster = model.for_patient(montage, rest, trials, samples=125)     # trials may be None
    forecaster.forecast(context, stimulus)

The shipped checkpoint was trained on simulations, and its card says so. Loading is strict: a missing, extra or reshaped
tensor, other weights than the card's, or anything pickled is refused.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.checkpoint import checkpoint_card, load_checkpoint, read_config
from stimopt.errors import CheckpointError, DataError, ShapeError
from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.montage import Montage
from stimopt.stimulus import Stimulus, no_stimulus
from stimopt.tensors import generator, map_tensors, named_under

from .ieeg_answer import Answer, Ongoing
from .ieeg_recall import Recall, ask, recall
from .ieeg_subject import Shots, Subject, joined_shots, joined_subjects, shots_of, subject_of
from .ieeg_transformer import LONGEST, IeegTransformer, TransformerSize
from .ieeg_waves import HORIZON_S, PATCH_S, patch_samples
from .window import Window, _same, window_from_dict

KIND = "ieeg-foundation"
SHIPPED = ("ieeg-tiny", "ieeg-sources")
_WINDOWS = 256  # forecast at once


@dataclass(frozen=True)
class FoundationModel:
    """Weights that forecast any patient.

    Attributes:
        size: Of the network.
        weights: By name.
        temper: Factor on the forecast's standard deviation, chosen on validation patients.
    """

    size: TransformerSize
    weights: Mapping[str, Tensor]
    temper: float = 1.0

    @cached_property
    def network(self) -> IeegTransformer:
        """The network with these weights, frozen."""
        network = IeegTransformer(self.size, generator(0, "restore"))
        network.load_state_dict(dict(self.weights))
        return network.requires_grad_(False).eval()

    @cached_property
    def _kept(self) -> dict[tuple[torch.dtype, torch.device], IeegTransformer]:
        return {}

    def network_for(self, like: Tensor) -> IeegTransformer:
        """The network in the dtype and on the device of a tensor, made once for each; its weights take no gradient."""
        found = self._kept.get((like.dtype, like.device))
        if found is None:
            with torch.inference_mode(False):
                found = copy.deepcopy(self.network).to(like)
            self._kept[like.dtype, like.device] = found
        return found

    def for_patient(
        self, montage: Montage, rest: Context, trials: Trials | None = None, *, samples: int, start_s: float = 0.0
    ) -> "FoundationForecaster":
        """A patient's forecaster, with what trials there are in context.

        Args:
            montage: The patient's.
            rest: Windows without stimulation, `[window, channel, time]`, whose rate all signals have.
            trials: Past trials, or None.
            samples: Of the window to forecast.
            start_s: Time of its first sample after the onset.

        Raises:
            DataError: If the window is longer than the model's horizon, a context shorter than a patch, or trials
                are at another rate.
            ShapeError: If rest or trials are on another montage.
        """
        _require_montage("rest", rest.montage, montage)
        past_samples = min(rest.signal_uv.shape[-1], LONGEST * patch_samples(rest.rate_hz))
        window = Window(montage, rest.rate_hz, start_s, past_samples, samples)
        _require_window(window)
        subject = subject_of(montage, rest)
        return FoundationForecaster(window, self, subject, _past(window, subject, trials))

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        return {"size": asdict(self.size), "temper": self.temper}, dict(self.weights)

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "FoundationModel":
        """See Saveable.

        Raises:
            CheckpointError: If the tensors are not those of a network of this size.
        """
        size = TransformerSize(**config["size"])
        wanted = IeegTransformer(size, generator(0, "restore")).state_dict()
        matched = [n for n, v in wanted.items() if n in tensors and tensors[n].shape == v.shape]
        if len(matched) != len(wanted) or len(tensors) != len(wanted):
            raise CheckpointError(
                f"{len(matched)} of {len(wanted)} weights match and {len(tensors)} were given; this checkpoint is of "
                "another network, use the version of stimopt that wrote it."
            )
        return cls(size, {name: tensors[name] for name in wanted}, float(config["temper"]))


@dataclass(frozen=True)
class FoundationForecaster(Forecaster):
    """The foundation model with one patient's rest and past trials. Differentiable in the stimulus, in its dtype.

    Attributes:
        window: What is forecast.
        model: The weights.
        subject: What rest tells, batch ().
        past: Past trials in the network's units, `[trial, ...]`.
        temper: Factor on the noise that this patient's own trials ask for, beside the model's.
    """

    window: Window
    model: FoundationModel
    subject: Subject
    past: Shots
    temper: float = 1.0

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster. The context may be any length from a patch on; its newest 1.6 s at most are read."""
        return self.in_uv(*self.told(self.answer(context, stimulus)), stimulus)

    @cached_property
    def untold(self) -> "FoundationForecaster":
        """The same with no trial in context."""
        return replace(self, past=self.past.pick(slice(0)))

    def told(self, answer: Answer) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, scale and factors of an answer in the window, in units of spread; noise as wide as tempers ask."""
        lead, temper = self.window.lead, self.model.temper * self.temper
        mean, scale, factors = answer.mean, temper * answer.log_scale.exp(), temper * answer.factors
        return mean[..., lead:], scale[..., lead:], factors[..., lead:]

    def in_uv(self, mean: Tensor, scale: Tensor, factors: Tensor, stimulus: Stimulus) -> GaussianForecast:
        """A forecast from its parts in units of spread, `[row, ...]`, with the batch of the stimulus."""
        batch, unit = stimulus.batch_shape, self.subject.spread_uv.to(mean).unsqueeze(-1)
        parts = (self.mean_uv(mean), unit * scale, unit * factors)
        mean, scale, factors = (x.reshape(*batch, *x.shape[1:]) for x in parts)
        return GaussianForecast(self.window.response(mean), scale, factors)

    def mean_uv(self, mean: Float[Tensor, "*batch channel time"]) -> Float[Tensor, "*batch channel time"]:
        """A signal in units of spread, in uV."""
        middle, unit = (x.to(mean).unsqueeze(-1) for x in (self.subject.rest_uv, self.subject.spread_uv))
        return middle + unit * mean

    def answer(self, context: Context, stimulus: Stimulus) -> Answer:
        """The network's own answer, in units of spread, `[stimulus, ...]` from the window's start on.

        Raises:
            ShapeError: If montage or rate are not the patient's, the context is shorter than a patch, or the batches do
                not broadcast.
        """
        kept = replace(self.window, context_samples=min(context.signal_uv.shape[-1], self.window.context_samples))
        if kept.context_samples < patch_samples(kept.rate_hz):
            raise ShapeError(f"context has {context.signal_uv.shape[-1]} samples; give {PATCH_S} s of signal or more.")
        signal = kept.context_signal(context, stimulus)
        rows = stimulus.batch_shape.numel()
        shared = signal.shape[:-2].numel() == 1
        signal = signal.reshape(1, *signal.shape[-2:]) if shared else signal.expand(
            *stimulus.batch_shape, *signal.shape[-2:]
        ).reshape(rows, *signal.shape[-2:])  # fmt: skip
        flat = stimulus.reshape(rows)
        parts = [
            self._answered(signal if shared else signal[i : i + _WINDOWS], flat[i : i + _WINDOWS])
            for i in range(0, max(1, rows), _WINDOWS)
        ]
        return parts[0] if len(parts) == 1 else _joined(parts, shared)

    def _answered(self, signal: Tensor, stimulus: Stimulus) -> Answer:
        recalled, rate_hz = self._recalled(signal), self.window.rate_hz
        subject = map_tensors(recalled.subject, lambda x: x[0])
        now = Context(self.window.montage, signal, rate_hz)
        asked = shots_of(subject, now, stimulus, None, self.window.lead + self.window.samples)
        answer = ask(self.model.network_for(signal), recalled, joined_shots([asked]), rate_hz)
        return replace(answer, **{f.name: getattr(answer, f.name)[0] for f in fields(Answer) if f.name != "ongoing"})

    @cached_property
    def _kept(self) -> dict[tuple[torch.dtype, torch.device], Recall]:
        return {}

    def _recalled(self, like: Tensor) -> Recall:
        """Patient and past in the network, in the dtype and on the device of a tensor, computed once for each."""
        found = self._kept.get((like.dtype, like.device))
        if found is None:
            subject = joined_subjects([map_tensors(self.subject, lambda x: _as(x, like))])
            past = joined_shots([map_tensors(self.past, lambda x: _as(x, like))])
            found = recall(self.model.network_for(like), subject, past, self.window.rate_hz)
            self._kept[like.dtype, like.device] = found
        return found

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        config, tensors = self.model.export()
        tensors = {f"weight.{name}": value for name, value in tensors.items()}
        for part, noun in (("subject", self.subject), ("past", self.past)):
            tensors |= {f"{part}.{f.name}": getattr(noun, f.name).clone() for f in fields(noun)}  # none shares memory
        return {"window": self.window.to_dict(), "model": config, "temper": self.temper}, tensors

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "FoundationForecaster":
        """See Saveable."""
        model = FoundationModel.restore(config["model"], named_under(tensors, "weight."))
        parts = Subject(**named_under(tensors, "subject.")), Shots(**named_under(tensors, "past."))
        return cls(window_from_dict(config["window"]), model, *parts, temper=float(config["temper"]))


def load_foundation(name_or_folder: str | Path = "ieeg-tiny") -> FoundationModel:
    """A foundation model by the name of a shipped checkpoint, or from a folder.

    Raises:
        CheckpointError: If there is none, or anything in it is not as its card says.
    """
    model = load_checkpoint(checkpoint_folder(name_or_folder), {KIND: FoundationModel})
    if not isinstance(model, FoundationModel):
        raise CheckpointError(f"{name_or_folder} holds no foundation model; give the folder of one.")
    return model


def foundation_card(name_or_folder: str | Path = "ieeg-tiny") -> dict[str, str]:
    """What a checkpoint says of itself: training data, metrics, limits, and how many weights it holds."""
    folder = checkpoint_folder(name_or_folder)
    count = sum(math.prod(shape) for _, shape in read_config(folder)["tensors"].values())
    return {**checkpoint_card(folder), "Weights": f"{count:,}"}


def checkpoint_folder(name_or_folder: str | Path) -> Path:
    """Of a shipped checkpoint by its name; anything else is the folder."""
    if str(name_or_folder) in SHIPPED:
        return Path(str(files("stimopt.models").joinpath("checkpoints", str(name_or_folder))))
    return Path(name_or_folder)


def _require_window(window: Window) -> None:
    longest = round(HORIZON_S * window.rate_hz)
    if window.lead + window.samples > longest:
        raise DataError(
            f"windows reach {(window.lead + window.samples) / window.rate_hz:.3g} s after the onset; this model "
            f"forecasts {HORIZON_S} s at most: cut the responses."
        )
    if window.context_samples < patch_samples(window.rate_hz):
        raise DataError(f"rest windows are {window.context_samples} samples long; give {PATCH_S} s or more.")


def _past(window: Window, subject: Subject, trials: Trials | None) -> Shots:
    """Past trials in the network's units; without trials, none of them."""
    if trials is None:
        trials = _no_trials(window)
    for named, montage in (("trials' response", trials.response.montage), ("trials' stimuli", trials.stimulus.montage)):
        _require_montage(named, montage, window.montage)
    if trials.response.rate_hz != window.rate_hz or trials.context.rate_hz != window.rate_hz:
        raise DataError(f"trials are at {trials.response.rate_hz} Hz and rest at {window.rate_hz}; resample one.")
    if trials.context.signal_uv.shape[-1] < patch_samples(window.rate_hz):
        raise DataError(
            f"trials have {trials.context.signal_uv.shape[-1]} samples of context; give {PATCH_S} s or more."
        )
    lead, response = round(trials.response.start_s * window.rate_hz), trials.response.signal_uv.float()
    unseen = response.new_full((*response.shape[:-1], lead), math.nan)
    whole = torch.cat([unseen, response], -1)[..., : window.lead + window.samples]
    context = trials.context.signal_uv[..., -window.context_samples :].float()
    now = Context(window.montage, context, window.rate_hz)
    return shots_of(subject, now, trials.stimulus.to(torch.zeros(())), whole, whole.shape[-1])


def _require_montage(named: str, montage: Montage, wanted: Montage) -> None:
    if not _same(montage, wanted):
        raise ShapeError(f"the {named}'s montage is not the patient's; give signals read with the same channels.")


def _as(value: Tensor, like: Tensor) -> Tensor:
    """A tensor where another is, in its dtype where it holds fractions."""
    return value.to(like) if value.is_floating_point() else value.to(like.device)


def _no_trials(window: Window) -> Trials:
    empty = torch.zeros(0, window.channels, window.context_samples)
    none = torch.zeros(0, window.channels, window.samples)
    context = Context(window.montage, empty, window.rate_hz)
    return Trials(context, no_stimulus(window.montage, (0,)), window.response(none))


def _joined(parts: list[Answer], shared: bool) -> Answer:
    """Parts of one question; a context that all of them share was read in each."""
    names = ("mean", "log_scale", "factors", "statistics", "token")
    whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    read = [part.ongoing for part in parts[:1] if shared] or [part.ongoing for part in parts]
    ongoing = Ongoing(torch.cat([one.token for one in read]), torch.cat([one.patch for one in read]))
    return Answer(**whole, ongoing=ongoing)
