"""A forecast of the foundation model, and circuits of sources that a patient's trials and that forecast have shaped.

    mean = quiet + (1 - c a) effect of the forecast + c a sources' effect,   0 <= c <= 1/2,  0 <= a <= 1

The forecast is a blend, or with fewer than eight trials that of ongoing activity with the network's effects. Sources,
see `ieeg_sources`, are fitted to what the trials left over the quiet forecast, each sample weighed by the noise that
was forecast, and to what the forecast expects of stimuli that nobody gave, all over the implant, as if a quarter of an
effect's power were its error. So where trials are silent the circuits say what the network says, as far as tissue can
do that. Beside a blend, c is what fits trials best at sites that neither the network nor the circuits were told of,
drawn towards a half, and no more than that: sites are few, halves were best on simulated patients kept for validation
even where trials asked for more, and what the blend expects, which those circuits are fitted to as well, was told of
every trial, which flatters them a little. Fewer than eight trials do not say how well circuits do elsewhere: c is n /
(n + 2) halves after n of them, about what was best for five, and no worse on the whole for one; and less where circuits
explain less than that of the trials that they were told of, or none of it. a is how far circuits agree on a channel's
answer: from different first places they come to differ where neither trials nor the forecast tell them apart, most of
all at sites that nobody tried, and there the forecast knows better; c is judged with it. What has no place in tissue is
left to the forecast: a stimulus that reaches the senses or enters at a contact whose place is not known, and a channel
of such a contact. At a site with a past the circuits know the patient better than a network that read the same trials
in passing.

References: Breiman, Machine Learning 24 (1996) 49-64 (stacked regressions); Hinton, Vinyals and Dean, arXiv 1503.02531
(a small model taught by a large one).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from stimopt.errors import ConfigError, DataError
from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.montage import Montage
from stimopt.stimulus import Stimulus
from stimopt.tensors import concatenate, generator, map_tensors, named_under

from .folds import site_parts
from .ieeg_blended import (
    FEWEST,
    FOLDS,
    BlendedForecaster,
    Held,
    blendable,
    fit_ieeg_blended,
    held_sites,
    say_of,
    wider_of,
)
from .ieeg_course import QuickCourse
from .ieeg_foundation import FoundationForecaster
from .ieeg_ongoing import LinearOngoing, quiet_of
from .ieeg_parts import OngoingForecaster, PartedForecaster, fit_ieeg_ongoing
from .ieeg_sources import (
    SourceModel,
    Sources,
    Tissue,
    at_samples,
    effects,
    load_sources,
    mean_and_agreement,
    side_by_side,
    steps_of,
    trains_of,
)
from .ieeg_stimuli import draw_stimuli
from .ieeg_subject import Shots

CIRCUITS, STEPS = 8, 200  # after 60 steps circuits were short of converged on every validation patient
_HELD_CIRCUITS = 2  # for each part that is held out
_VIRTUAL = 40  # stimuli that nobody gave
_ERROR = 0.25  # of what the forecast expects, as a share of its power
_ALIKE = 0.1  # how much a sample tells: neighbours in time and on a shaft err alike
_FAINT = 0.02  # of a channel's power, beside the noise: circuits are no exact copy either
_LEAST = 1e-6  # of a channel's power, in squared units of spread
_RATE = 2e-2  # of Adam
_HALF, _PRIOR_SITES = 0.5, 1.5  # the most that c may be, and how many sites say that it is so much
_PRIOR_FEW = 2.0  # trials that say c is 0, where too few to hold any out say that it is a half


@dataclass(frozen=True)
class SourcedForecaster(Forecaster):
    """Effects of another forecaster and of a patient's sources, weighed. Differentiable in the stimulus.

    Attributes:
        base: The other: a blend, or where trials are few the network's effects on the patient's ongoing activity.
        sources: Fitted on the same past trials.
        share: Of the sources in the effect, where they agree.
        narrower: Factor on the noise that the other says a stimulus adds.
    """

    base: BlendedForecaster | OngoingForecaster
    sources: Sources
    share: float
    narrower: float = 1.0

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        parts = self.base.parts(context, stimulus)
        window = self.base.plain.window
        told, agreed = self.sources.told(stimulus, window.rate_hz, window.lead + window.samples)
        effect, told = parts.effect, told[..., window.lead :]
        share = self.share * agreed.reshape(*effect.shape[:-1], 1).to(effect) * placed(stimulus).to(effect)
        effect = effect + share * (told.reshape(effect.shape).to(effect) - effect)
        return self.base.in_uv(replace(parts, effect=effect, wider=self.narrower * parts.wider), stimulus)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        config, tensors = self.base.export()
        size, shared = self.sources.model.export()
        tensors = {f"base.{name}": value for name, value in tensors.items()}
        tensors |= {f"sources.{name}": value for name, value in shared.items()}
        tensors |= {f"own.{name}": value for name, value in self.sources.own.items()}
        tensors |= {"unit": self.sources.unit}
        return {**config, "sources": size, "share": self.share, "narrower": self.narrower}, tensors

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "SourcedForecaster":
        """See Saveable."""
        kind = BlendedForecaster if "linear" in config else OngoingForecaster
        base = kind.restore(config, named_under(tensors, "base."))
        model = SourceModel.restore(config["sources"], named_under(tensors, "sources."))
        own, tissue = named_under(tensors, "own."), _tissue_of(base.plain.window.montage)
        sources = Sources(model, own, tissue, tensors["unit"])
        return cls(base, sources, float(config["share"]), float(config["narrower"]))


def sourceable(trials: Trials, ongoing: LinearOngoing | None) -> bool:
    """Whether there is anything that circuits could learn from, beside a forecast that stands on as many trials.

    With eight trials or more, eight of them must be silent or of currents at known places where a channel has one, and
    no sample may be missing; with fewer, one with a current is enough beside the patient's own ongoing activity.
    """
    if len(trials) < FEWEST:
        return ongoing is not None and _placed_trials(trials) > 0
    in_tissue = placed(trials.stimulus).amax((1, 2))
    return blendable(trials) and int(in_tissue.sum()) >= FEWEST


def _placed_trials(trials: Trials) -> int:
    """How many have a current of which circuits can learn."""
    return int((placed(trials.stimulus).amax((1, 2)) * ~trials.stimulus.silent).sum())


def placed(stimulus: Stimulus) -> Float[Tensor, "row channel 1"]:
    """1 where sources have a say, else 0: nothing reaches the senses, and places of contacts are known.

    Args:
        stimulus: Any batch; rows are all of it.
    """
    montage, sensory, like = stimulus.montage, stimulus.sensory, stimulus.frequency_hz
    lost = ~montage.contact_position_mm.isfinite().all(-1).to(like.device)
    heard = ~(montage.channel_matrix.to(like)[:, lost] != 0).any(-1)
    felt = torch.zeros_like(like) if sensory is None else sensory.intensity
    in_tissue = (felt == 0) & ~(stimulus.amplitude_ma[..., lost] != 0).any(-1)
    return (in_tissue.reshape(-1, 1) & heard).to(like).unsqueeze(-1)


def _tissue_of(montage: Montage) -> Tissue:
    return Tissue(montage.contact_position_mm.float().unsqueeze(0), montage.channel_matrix.float().unsqueeze(0))


def fit_ieeg_sourced(
    plain: FoundationForecaster, trials: Trials, *, seed: int = 0, model: SourceModel | None = None,
    circuits: int = CIRCUITS, steps: int = STEPS, ongoing: LinearOngoing | None = None,
) -> SourcedForecaster:  # fmt: skip
    """Fit a patient's sources to their trials, and to what the foundation model makes of the same trials otherwise.

    Args:
        plain: With these trials in context, as many as there are.
        trials: The same, in uV.
        seed: Of first places, virtual stimuli and parts.
        model: What circuits have in common; the shipped one by default.
        circuits: How many, from different first places.
        steps: Of the search.
        ongoing: The patient's own forecast of what happens without a stimulus, which fewer than eight trials need;
            the network's alone by default.

    Raises:
        ConfigError: If there is no step or no circuit.
        DataError: If too few trials are of currents at known places, samples are not finite, or `ongoing` is missing.
    """
    if not sourceable(trials, ongoing):
        raise DataError(
            f"sources need trials of currents at contacts with position_mm: {FEWEST} without a missing sample, or "
            f"fewer and `ongoing`; got {_placed_trials(trials)} of {len(trials)}; give more, or use 'blended'."
        )
    if steps < 1 or circuits < 1:
        raise ConfigError(f"sources need 1 step and 1 circuit or more, got {steps} and {circuits}; give more.")
    model, base, blendings = model or load_sources(), *_beside(plain, trials, seed, ongoing)
    tissue = _tissue_of(plain.window.montage)
    parts = site_parts(trials.stimulus, FOLDS, seed) if blendings else []
    known = torch.ones(circuits + _HELD_CIRCUITS * len(parts), len(trials))
    rows = [slice(circuits + _HELD_CIRCUITS * i, circuits + _HELD_CIRCUITS * (i + 1)) for i in range(len(parts))]
    for row, part in zip(rows, parts, strict=True):
        known[row, part] = 0.0
    with torch.inference_mode(False), torch.enable_grad():
        told = _Told.of(base, plain.past, trials, seed)
        own, answers = _searched(model, tissue, told, known, steps, seed)
    say, lead = placed(trials.stimulus).float(), plain.window.lead
    if isinstance(base, BlendedForecaster):
        held = []
        for blended, row, part in zip(blendings, rows, parts, strict=True):
            mean, agreed = mean_and_agreement(answers[row][:, part, :, lead:])
            held.append((blended, mean, say[part] * agreed))
        share, narrower = _weighed(held, base)
    else:
        share, narrower = _trusted(told, *mean_and_agreement(answers[:circuits]), _placed_trials(trials)), 1.0
    kept = {name: value[:circuits].clone() for name, value in own.items()}
    return SourcedForecaster(base, Sources(model, kept, tissue, told.unit), share, narrower)


def _beside(
    plain: FoundationForecaster, trials: Trials, seed: int, ongoing: LinearOngoing | None
) -> tuple[BlendedForecaster | OngoingForecaster, list[Held]]:
    """What circuits stand beside, and the parts of the trials that it was judged on; none where trials are few."""
    if ongoing is not None and len(trials) < FEWEST:
        return fit_ieeg_ongoing(plain, ongoing, seed=seed), []
    held = held_sites(plain, trials, seed, ongoing)
    return fit_ieeg_blended(plain, trials, seed=seed, ongoing=ongoing, at_new_sites=held), held


@dataclass(frozen=True)
class _Told:
    """What circuits are fitted to: rows of trials, then of virtual stimuli, from the window's start on.

    Attributes:
        stimulus: Of each row.
        wanted: Effects, in units of each channel's spread.
        precision: Of each sample.
        before: What was forecast of the trials without circuits, alike.
        unit: Size of each channel's expected effects.
        rate_hz: Samples per second.
    """

    stimulus: tuple[Stimulus, Stimulus]
    wanted: Float[Tensor, "row channel time"]
    precision: Float[Tensor, "row channel time"]
    before: Float[Tensor, "trial channel time"]
    unit: Float[Tensor, " channel"]
    rate_hz: float

    @classmethod
    @torch.no_grad()
    def of(cls, base: PartedForecaster, past: Shots, trials: Trials, seed: int) -> "_Told":
        """Of a patient's trials, given in the network's units, too, and of what a forecast expects of others."""
        plain, count, like = base.plain, len(trials), trials.stimulus.amplitude_ma
        lead, montage = plain.window.lead, plain.window.montage
        virtual = draw_stimuli(montage, _VIRTUAL, generator(seed, "virtual stimuli")).to(like)
        expected = base.parts(trials.context[torch.arange(_VIRTUAL) % count], virtual).effect
        power = expected.square().mean((0, 2)).clamp_min(_LEAST).unsqueeze(-1)  # [channel, 1]
        quiet = quiet_of(plain.untold, base.ongoing, trials.context, trials.stimulus)
        before = base.parts(trials.context, trials.stimulus).effect
        quiet = quiet.after(before, base.reset)
        noise = quiet.variance + _FAINT * power
        good = past.good[..., lead:]
        left = torch.where(good, past.response[..., lead:] - quiet.mean, 0.0)
        error = (_ERROR * power).expand_as(expected)
        say = torch.cat([placed(one) for one in (trials.stimulus, virtual)])
        weight = _ALIKE * say * torch.cat([good / noise, count / _VIRTUAL / error])
        known = torch.cat([left, expected]), weight, before
        wanted, precision, before = (F.pad(x, (lead, 0)).float() for x in known)
        unit, rate_hz = power.sqrt()[:, 0].float(), plain.window.rate_hz
        return cls((trials.stimulus, virtual), wanted, precision, before, unit, rate_hz)


def _searched(
    model: SourceModel, tissue: Tissue, told: _Told, known: Float[Tensor, "circuit trial"], steps: int, seed: int
) -> tuple[dict[str, Tensor], Float[Tensor, "circuit trial channel time"]]:
    """Own numbers of circuits side by side, each told of the trials it may know, and what they answer to all trials.

    A circuit whose search runs away keeps the last numbers with which it answered.
    """
    circuits, samples = len(known), told.wanted.shape[-1]
    length = steps_of(samples, told.rate_hz)
    many = map_tensors(tissue, lambda x: x.expand(circuits, -1, -1))
    own = {n: v.requires_grad_() for n, v in model.begun(many, generator(seed, "sources")).items()}
    trains = [trains_of(stimulus.to(told.wanted), length) for stimulus in told.stimulus]
    both = side_by_side(concatenate(trains), circuits)
    to_samples = told.unit.unsqueeze(-1).unsqueeze(-1) * at_samples(length, told.rate_hz, samples, told.wanted)
    heard = torch.cat([known, torch.ones(circuits, len(told.wanted) - known.shape[1])], 1)[..., None, None]
    search, play = torch.optim.Adam(own.values(), lr=_RATE), QuickCourse()

    def answered() -> Tensor:
        played = effects(model.shared, own, many, both, play=play)
        return torch.einsum("rnct,cts->rncs", played, to_samples)

    safe = {name: value.detach().clone() for name, value in own.items()}
    for step in range(steps):
        for group in search.param_groups:
            group["lr"] = _RATE * min(1.0, 2 * (steps - step) / steps)
        missed = (heard * told.precision * (answered() - told.wanted).square()).sum((1, 2, 3)) / 2
        safe = _chosen(missed.isfinite(), own, safe)
        search.zero_grad()
        (missed + model.oddness(own)).sum().backward()
        search.step()
    with torch.no_grad():
        answers = answered()
        fine = answers.isfinite().flatten(1).all(-1)
        if not bool(fine.all()):
            own = _chosen(fine, own, safe)
            answers = answered()
    return {name: value.detach() for name, value in own.items()}, answers[:, : known.shape[1]]


def _chosen(
    first: Bool[Tensor, " circuit"], one: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Numbers of some circuits from the one, of the others from the other."""
    return {n: torch.where(first.reshape(-1, *[1] * (v.ndim - 1)), v.detach(), other[n]) for n, v in one.items()}


def _trusted(
    told: _Told, answers: Float[Tensor, "trial channel time"], agreed: Float[Tensor, "trial channel 1"], count: int
) -> float:
    """Share of circuits whose trials are too few to hold any out; none where they explain not even those.

    Args:
        told: What they were fitted to.
        answers: Theirs to the trials.
        agreed: How far they agree on each channel's.
        count: How many trials say anything of circuits.
    """
    weight, before = told.precision[: len(answers)], told.before
    apart = agreed * (answers - before)
    gram = float((weight * apart.square()).sum())
    target = float((weight * apart * (told.wanted[: len(answers)] - before)).sum())
    most = _HALF * count / (count + _PRIOR_FEW)
    return min(most, max(0.0, target / gram)) if gram > 0 else 0.0


@torch.no_grad()
def _weighed(held: list[tuple[Held, Tensor, Tensor]], blend: BlendedForecaster) -> tuple[float, float]:
    """Share of the sources, and how much narrower noise may be, by trials whose sites were held out.

    Args:
        held: Parts of the trials, what circuits that were not told of them answer, and how much of a say these have.
        blend: Whose effects these stand beside.
    """
    blended = [own.effect(blend.weight[1]) for own, _, _ in held]
    others = [say * (sources - effect) for (_, sources, say), effect in zip(held, blended, strict=True)]
    gram = target = 0.0
    for (own, _, _), effect, apart in zip(held, blended, others, strict=True):
        known = own.good & own.loud[:, None, None]
        counts, other = say_of(float((effect * known).square().sum())), apart * known
        gram += counts * float(other.square().sum())
        target += counts * float((other * (own.left - effect)).sum())
    sure = _PRIOR_SITES / max(1, len(blend.sites))
    share = min(_HALF, max(0.0, (target / gram + sure * _HALF) / (1 + sure))) if gram > 0 else 0.0
    asked = wider_of(
        [(own, e + share * a) for (own, _, _), e, a in zip(held, blended, others, strict=True)], blend.reset
    )
    return share, asked / blend.wider[1]
