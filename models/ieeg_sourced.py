"""The foundation model's blend, and circuits of sources that a patient's trials and that blend have shaped.

    mean = network without a stimulus + (1 - c) blend's effect + c sources' effect,   0 <= c <= 1/2

Sources, see `ieeg_sources`, are fitted to what the trials left over the quiet forecast, each sample weighed by the
noise that was forecast, and to what the blend expects of stimuli that nobody gave, all over the implant, as if a
quarter of an effect's power were its error. So where trials are silent the circuits say what the network says, as far
as tissue can do that. c is what fits trials best whose sites neither the network nor the circuits were told of, drawn
towards a half, and no more than that: sites are few, and halves were best on simulated patients kept for validation
even where trials asked for more. At a site with a past the circuits know the patient better than a network that read
the same trials in passing.

References: Breiman, Machine Learning 24 (1996) 49-64 (stacked regressions); Hinton, Vinyals and Dean, arXiv 1503.02531
(a small model taught by a large one).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import DataError
from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.stimulus import Stimulus, no_stimulus
from stimopt.tensors import generator

from .folds import site_parts
from .ieeg_blended import BlendedForecaster, Held, untold
from .ieeg_judging import patient_temper
from .ieeg_sources import (
    SourceModel,
    Sources,
    Tissue,
    at_samples,
    effects,
    joined_trains,
    load_sources,
    read_by,
    side_by_side,
    steps_of,
    trains_of,
)
from .ieeg_stimuli import draw_stimuli

CIRCUITS, STEPS = 8, 60
_HELD_CIRCUITS, _FOLDS = 2, 4  # for each part that is held out
_VIRTUAL = 40  # stimuli that nobody gave
_ERROR = 0.25  # of the blend's expectations, as a share of their power
_ALIKE = 0.1  # how much a sample tells: neighbours in time and on a shaft err alike
_FAINT = 0.02  # of a channel's power, beside the noise: circuits are no exact copy either
_RATE = 2e-2  # of Adam
_HALF, _PRIOR_SITES = 0.5, 1.5  # the most that c may be, and how many sites say that it is so much


@dataclass(frozen=True)
class SourcedForecaster(Forecaster):
    """Effects of a blend and of a patient's sources, weighed. Differentiable in the stimulus.

    Attributes:
        blend: Of the foundation model and a linear one, with the patient's past trials.
        sources: Fitted on them.
        share: Of the sources in the effect.
        narrower: Factor on the blend's noise.
    """

    blend: BlendedForecaster
    sources: Sources
    share: float
    narrower: float = 1.0

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        blended, quiet = self.blend.parts(context, stimulus)
        mean, scale, factors = blended
        window = self.blend.plain.window
        told = self.sources.effect(stimulus, window.rate_hz, window.lead + window.samples)[..., window.lead :]
        mean = mean + self.share * (told.reshape(mean.shape).to(mean) - (mean - quiet))
        return self.blend.plain.in_uv(mean, self.narrower * scale, self.narrower * factors, stimulus)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        config, tensors = self.blend.export()
        size, shared = self.sources.model.export()
        tensors = {f"blend.{name}": value for name, value in tensors.items()}
        tensors |= {f"sources.{name}": value for name, value in shared.items()}
        tensors |= {f"own.{name}": value for name, value in self.sources.own.items()}
        tensors |= {"unit": self.sources.unit}
        return {**config, "sources": size, "share": self.share, "narrower": self.narrower}, tensors

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "SourcedForecaster":
        """See Saveable."""
        parts: dict[str, dict[str, Tensor]] = {"blend": {}, "sources": {}, "own": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            if part in parts:
                parts[part][name] = value
        blend = BlendedForecaster.restore(config, parts["blend"])
        model = SourceModel.restore(config["sources"], parts["sources"])
        sources = Sources(model, parts["own"], tissue_of(blend), tensors["unit"])
        return cls(blend, sources, float(config["share"]), float(config["narrower"]))


def sourceable(blend: BlendedForecaster) -> bool:
    """Whether places of all contacts are known, without which no source has a place."""
    return bool(blend.plain.window.montage.contact_position_mm.isfinite().all())


def tissue_of(blend: BlendedForecaster) -> Tissue:
    """Where currents enter a patient, and who reads."""
    montage = blend.plain.window.montage
    return Tissue(montage.contact_position_mm.float().unsqueeze(0), read_by(montage).unsqueeze(0))


def fit_ieeg_sourced(
    blend: BlendedForecaster, trials: Trials, *, seed: int = 0, model: SourceModel | None = None,
    circuits: int = CIRCUITS, steps: int = STEPS,
) -> SourcedForecaster:  # fmt: skip
    """Fit a patient's sources to their trials and to what a blend expects.

    Args:
        blend: With these trials in context.
        trials: The same, in uV.
        seed: Of first places, virtual stimuli and parts.
        model: What circuits have in common; the shipped one by default.
        circuits: How many, from different first places.
        steps: Of the search.

    Raises:
        DataError: If the place of a contact is not known.
    """
    if not sourceable(blend):
        raise DataError("sources need position_mm of every contact; give places, or use 'blended'.")
    model = load_sources() if model is None else model
    told = _Told.of(blend, trials, seed)
    parts = site_parts(trials.stimulus, _FOLDS, seed)
    known = torch.ones(circuits + _HELD_CIRCUITS * len(parts), len(trials))
    rows = [slice(circuits + _HELD_CIRCUITS * i, circuits + _HELD_CIRCUITS * (i + 1)) for i in range(len(parts))]
    for row, part in zip(rows, parts, strict=True):
        known[row, part] = 0.0
    with torch.inference_mode(False), torch.enable_grad():
        own, answers = _searched(model, tissue_of(blend), told, known, steps, seed)
    told_of_others = [answers[row][:, part].mean(0) for row, part in zip(rows, parts, strict=True)]
    share, narrower = _weighed(blend, trials, told_of_others, parts, seed)
    kept = {name: value[:circuits].clone() for name, value in own.items()}
    return SourcedForecaster(blend, Sources(model, kept, tissue_of(blend), told.unit), share, narrower)


@dataclass(frozen=True)
class _Told:
    """What circuits are fitted to: rows of trials, then of virtual stimuli, from the window's start on.

    Attributes:
        stimulus: Of each row.
        wanted: Effects, in units of each channel's spread.
        precision: Of each sample.
        unit: Size of each channel's expected effects.
        rate_hz: Samples per second.
    """

    stimulus: tuple[Stimulus, Stimulus]
    wanted: Float[Tensor, "row channel time"]
    precision: Float[Tensor, "row channel time"]
    unit: Float[Tensor, " channel"]
    rate_hz: float

    @classmethod
    @torch.no_grad()
    def of(cls, blend: BlendedForecaster, trials: Trials, seed: int) -> "_Told":
        """Of a patient's trials, and of what the blend expects of others."""
        plain, count = blend.plain, len(trials)
        lead, rate_hz = plain.window.lead, plain.window.rate_hz
        virtual = draw_stimuli(plain.window.montage, _VIRTUAL, generator(seed, "virtual stimuli"))
        virtual = virtual.to(trials.stimulus.amplitude_ma)
        context = trials.context[torch.arange(_VIRTUAL) % count]
        (mean, _, _), quiet = blend.parts(context, virtual)
        expected = mean - quiet
        unit = expected.square().mean((0, 2)).sqrt().clamp_min(1e-3)
        alone, nothing = untold(plain), no_stimulus(plain.window.montage, (count,)).to(trials.stimulus.amplitude_ma)
        before, scale, factors = alone.told(alone.answer(trials.context, nothing))
        response = (
            trials.response.signal_uv.to(before) - plain.subject.rest_uv.unsqueeze(-1)
        ) / plain.subject.spread_uv.unsqueeze(-1)
        good = response.isfinite()
        noise = scale.square() + factors.square().sum(1) + _FAINT * unit.square().unsqueeze(-1)
        error = (_ERROR * unit.square().unsqueeze(-1)).expand_as(expected)
        precision = torch.cat([good / noise, count / _VIRTUAL / error])
        wanted = torch.cat([torch.where(good, response - before, 0.0), expected])
        ahead = (0, 0) if not lead else (lead, 0)
        wanted, precision = (torch.nn.functional.pad(x, ahead) for x in (wanted, precision))
        return cls((trials.stimulus, virtual), wanted.float(), _ALIKE * precision.float(), unit.float(), rate_hz)


def _searched(
    model: SourceModel, tissue: Tissue, told: _Told, known: Float[Tensor, "circuit trial"], steps: int, seed: int
) -> tuple[dict[str, Tensor], Float[Tensor, "circuit trial channel time"]]:
    """Own numbers of circuits side by side, each told of the trials it may know, and what they answer to all trials."""
    circuits, samples = len(known), told.wanted.shape[-1]
    length = steps_of(samples, told.rate_hz)
    many = Tissue(tissue.contact_mm.expand(circuits, -1, -1), tissue.read.expand(circuits, -1, -1))
    own = {n: v.requires_grad_() for n, v in model.begun(many, generator(seed, "sources")).items()}
    trains = [trains_of(stimulus.to(told.wanted), length) for stimulus in told.stimulus]
    both = side_by_side(joined_trains(trains), circuits)
    to_samples = told.unit.unsqueeze(-1).unsqueeze(-1) * at_samples(length, told.rate_hz, samples, told.wanted)
    heard = torch.cat([known, torch.ones(circuits, len(told.wanted) - known.shape[1])], 1)[..., None, None]
    search = torch.optim.Adam(own.values(), lr=_RATE)

    def answered() -> Tensor:
        played = effects(model.shared, own, many, both)
        return torch.einsum("rnct,cts->rncs", played, to_samples)

    for step in range(steps):
        for group in search.param_groups:
            group["lr"] = _RATE * min(1.0, 2 * (steps - step) / steps)
        missed = (heard * told.precision * (answered() - told.wanted).square()).sum((1, 2, 3)) / 2
        search.zero_grad()
        (missed + model.oddness(own)).sum().backward()
        search.step()
    with torch.no_grad():
        answers = answered()[:, : known.shape[1]]
    return {name: value.detach() for name, value in own.items()}, answers


@torch.no_grad()
def _weighed(
    blend: BlendedForecaster, trials: Trials, told: list[Tensor], parts: list[Tensor], seed: int
) -> tuple[float, float]:
    """Share of the sources, and how much narrower noise may be, by trials whose sites nobody was told of."""
    lead, gram, target = blend.plain.window.lead, 0.0, 0.0
    held = []
    for part, sources in zip(parts, told, strict=True):
        own = Held.of(blend.plain, trials, part, seed)
        blended = torch.einsum("e,enct->nct", blend.weight[1].to(own.effects), own.effects)
        known, other = own.good & own.loud[:, None, None], sources[..., lead:] - blended
        gram += float((known * other.square()).sum())
        target += float((known * other * (own.left - blended)).sum())
        held.append((own, blended, other))
    sure = _PRIOR_SITES / max(1, len(blend.sites))
    share = min(_HALF, max(0.0, (target + sure * _HALF * gram) / ((1 + sure) * gram))) if gram > 0 else 0.0

    def ratios(by: float) -> list[Tensor]:
        rows = []
        for own, blended, other in held:
            error = (own.left - blended - by * other).abs() / own.wide
            rows += [row[here] for row, here in zip(error, own.good, strict=True) if bool(here.any())]
        return rows

    return share, patient_temper(ratios(share), len(trials)) / patient_temper(ratios(0.0), len(trials))
