"""The foundation model's effects and those of a linear model of the patient, each weighed by trials that neither saw.

    mean = network without a stimulus + a (network's effect) + b (linear effect),   0 <= a, b <= 1
    mean = network without a stimulus + c (effect by the network told of no trial)  far from all past trials

An effect is a forecast with the stimulus less one without. The linear model, impulse responses to rectified current, is
fitted on the patient's past trials alone. Past trials are cut into parts, each part is forecast from the others, and a
and b are what fits it best, drawn towards 1 and 0. There are two such pairs: one from parts that share no site, for
new sites, and one from trials whose site is among the others, for sites with a past of their own. A forecast for a site
errs by a share of what it answers there, so a part counts by the root of its effects' power: by the power itself one
site of four often had nine tenths of the say, and the next was like another. At new sites b is
drawn far more strongly: what is linear there seldom carries over to the next site, though it did to the last. Far from
all sites with a past, as on another shaft, neither holds: sites beside each other confirm much that fails across the
head. What trials can say there is how far to believe a network that was told of none of them; c is what fits all of
them best, drawn towards 1. A site on the way from one to another has weights between them, and noise is as wide as the
errors of each ask for. So a patient like those of pretraining keeps the network's effects; where a circuit is of
another kind, and the network is sure of effects that past trials do not show, they are turned down, and at sites with a
past what the linear model learnt there takes their place.

References: Breiman, Machine Learning 24 (1996) 49-64 (stacked regressions: non-negative weights, chosen on held-out
forecasts); Lange, Little and Taylor, JASA 84 (1989) 881-896 (heavy tails by least squares weighed anew).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from scipy.optimize import lsq_linear
from torch import Tensor

from stimopt.errors import DataError
from stimopt.forecaster import Context, Trials
from stimopt.stimulus import Stimulus
from stimopt.tensors import named_under

from .folds import folds_of, others_of, site_parts
from .ieeg_foundation import FoundationForecaster
from .ieeg_judging import patient_temper
from .ieeg_ongoing import LinearOngoing, calmed, quiet_of, silenced, told_of
from .ieeg_parts import PartedForecaster, Parts
from .ieeg_quiet import Quiet, alone, kept_of, reset_of
from .ieeg_residual import MOST_PAST
from .ieeg_subject import in_spreads
from .impulse_regression import ImpulseForecaster, fit_impulse_regression

FEWEST = 8  # trials
FOLDS = 4  # parts of the trials, each forecast from the others
_PRIOR_SITES = (1.5, 24.0)  # that say a = 1, and b = 0, at new sites: trials of one site err alike, so sites count
_PRIOR_TRIALS = 3  # that say a and b at seen sites are those of new ones
_LEAVING, _ROUNDS = 0.3, 12  # how far weights leave what the prior says before it is believed half as much
FAR_MM = (10.0, 30.0)  # from the nearest site with a past: as near as neighbours on a shaft are, and on another shaft
_BLENDED, _UNTOLD = slice(0, 2), slice(2, 3)  # of the effects
_SAME = 0.999  # of `seen_share`, at which a site is the same


@dataclass(frozen=True)
class BlendedForecaster(PartedForecaster):
    """Effects of the foundation model and of a linear model, weighed. Differentiable in the stimulus.

    Attributes:
        plain: The foundation model with the patient's past trials.
        linear: Impulse responses fitted on them.
        weight: Of the effects by network, linear model and network told of no trial: far from all sites with a past, at
            new sites near them, and at these.
        sites: Shares of the contacts in the current of each site with a past.
        wider: Factors on the noise that a stimulus adds, in the same order.
        ongoing: The patient's own forecast of what happens without a stimulus; None for the network's.
        reset: How much a strong stimulus ends of what that forecast knows and the network does not.
    """

    plain: FoundationForecaster
    linear: ImpulseForecaster
    weight: Float[Tensor, "3 3"]
    sites: Float[Tensor, "site contact"]
    wider: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ongoing: LinearOngoing | None = None
    reset: float = 0.0

    def parts(self, context: Context, stimulus: Stimulus) -> Parts:
        """See PartedForecaster."""
        told = self.plain.told(self.plain.answer(context, stimulus))
        mean, quiet = told[0], quiet_of(self.plain, self.ongoing, context, stimulus)
        spread = self.plain.subject.spread_uv.to(mean).unsqueeze(-1)
        effects = [mean - quiet.network, self.linear.effect_uv(stimulus).reshape(mean.shape).to(mean) / spread]
        share = self.shares(stimulus.amplitude_ma).reshape(-1, 3).to(mean)
        weight = (share @ self.weight.to(mean))[..., None, None]  # [shot, effect, 1, 1]
        if bool((share[:, 0] > 0).any()):
            untold = self.plain.untold
            far, _, _ = untold.told(untold.answer(context, stimulus))
            effects.append(far - quiet_of(untold, None, context, stimulus).network)
        effect = torch.stack([weight[:, i] * effect for i, effect in enumerate(effects)]).sum(0)
        return Parts(told, quiet, effect, (share @ mean.new_tensor(self.wider))[:, None, None])

    def shares(self, amplitude_ma: Float[Tensor, "*batch contact"]) -> Float[Tensor, "*batch 3"]:
        """How far a current enters from all sites with a past, how much at new sites near them, and how much at them.

        Together 1. Nothing is far where places are not known, and silence is not.
        """
        seen = seen_share(amplitude_ma, self.sites)
        apart_mm = site_distance_mm(amplitude_ma, self.sites, self.plain.window.montage.contact_position_mm)
        low, high = FAR_MM
        far = torch.minimum(((apart_mm - low) / (high - low)).clamp(0, 1), 1 - seen)
        return torch.stack([far, 1 - far - seen, seen], -1)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        config, tensors = self.plain.export()
        linear_config, linear = self.linear.export()
        tensors = {f"plain.{name}": value for name, value in tensors.items()}
        tensors |= {f"linear.{name}": value for name, value in linear.items()} | {
            "blend": self.weight,
            "sites": self.sites,
        }
        config = {**config, "linear": linear_config, "wider": list(self.wider), "reset": self.reset}
        if self.ongoing is not None:
            config["ongoing"], own = self.ongoing.export()
            tensors |= {f"ongoing.{name}": value for name, value in own.items()}
        return config, tensors

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "BlendedForecaster":
        """See Saveable."""
        plain = FoundationForecaster.restore(config, named_under(tensors, "plain."))
        linear = ImpulseForecaster.restore(config["linear"], named_under(tensors, "linear."))
        own, (far, new, seen) = config.get("ongoing"), config["wider"]
        ongoing = None if own is None else LinearOngoing.restore(own, named_under(tensors, "ongoing."))
        reset = float(config["reset"])
        return cls(plain, linear, tensors["blend"], tensors["sites"], (far, new, seen), ongoing, reset)


def blendable(trials: Trials) -> bool:
    """Whether there are trials enough, and none lacks a sample, which the linear model could not read."""
    return len(trials) >= FEWEST and bool(trials.response.signal_uv.isfinite().all())


@torch.no_grad()
def fit_ieeg_blended(
    plain: FoundationForecaster, trials: Trials, *, seed: int = 0, ongoing: LinearOngoing | None = None,
    at_new_sites: Sequence["Held"] | None = None,
) -> BlendedForecaster:  # fmt: skip
    """Weigh a foundation forecaster's effects against those of impulse responses, on its own past trials.

    Args:
        plain: With these trials in context.
        trials: The same, in uV.
        seed: Of parts and ridges.
        ongoing: The patient's own forecast of what happens without a stimulus; the network's alone by default.
        at_new_sites: `held_sites` of these, where it is at hand.

    Returns:
        The blend, with the newest 64 trials in context and noise as wide as held-out trials ask for.

    Raises:
        DataError: If there are fewer than eight trials, or samples of theirs are not finite.
    """
    held = held_sites(plain, trials, seed, ongoing) if at_new_sites is None else at_new_sites
    loud = trials.stimulus.amplitude_ma[~trials.stimulus.silent]
    sites = torch.unique(_shares(loud).round(decimals=6), dim=0)
    doubts = tuple(prior / max(1, len(sites)) for prior in _PRIOR_SITES)
    at_new = _weights(held, _BLENDED, doubts, torch.tensor([1.0, 0.0, 0.0]))
    far = _weights(held, _UNTOLD, doubts[:1], torch.tensor([0.0, 0.0, 1.0]))
    parts = folds_of(len(trials), FOLDS, seed, "trial parts")
    again = [Held.of(plain, trials, part, seed, ongoing).at_seen_sites() for part in parts]
    at_any = sum(int(part.loud.sum()) for part in again)
    at_seen = _weights(again, _BLENDED, (_PRIOR_TRIALS / max(1, at_any),) * 2, at_new)
    reset = reset_of([part.told_apart(part.effect(at_new)) for part in held])
    wide_far, wide = (wider_of([(part, part.effect(weight)) for part in held], reset) for weight in (far, at_new))
    narrow = wider_of([(part, part.effect(at_seen)) for part in again], reset, otherwise=wide)
    newest = plain.past.pick(slice(max(0, len(trials) - MOST_PAST), None))
    kept = replace(plain, past=calmed(plain, newest, ongoing))
    linear = fit_impulse_regression(_without_ongoing(plain, trials, ongoing), seed=seed)
    return BlendedForecaster(
        kept, linear, torch.stack([far, at_new, at_seen]), sites, (wide_far, wide, narrow), ongoing, reset
    )


def wider_of(held: "Sequence[tuple[Held, Tensor]]", reset: float, otherwise: float = 1.0) -> float:
    """Factor on the noise that stimuli add, as held-out trials ask; drawn to another, the more the fewer they are.

    Args:
        held: Parts of the trials, and the effect that was forecast for each.
        reset: See `BlendedForecaster`.
        otherwise: What it is without any.
    """
    rows = [row / otherwise for part, effect in held for row in part.ratios(effect, reset)]
    return otherwise * patient_temper(rows, len(rows))


@torch.no_grad()
def held_sites(
    plain: FoundationForecaster, trials: Trials, seed: int, ongoing: LinearOngoing | None = None
) -> "list[Held]":
    """Parts of the trials that share no site, each forecast from the others.

    Raises:
        DataError: If there are fewer than eight trials, or samples of theirs are not finite.
    """
    if not blendable(trials):
        raise DataError(
            f"a blend needs at least {FEWEST} trials, all samples finite, got {len(trials)}; use 'context', which "
            "reads around what is missing."
        )
    return [Held.of(plain, trials, part, seed, ongoing) for part in site_parts(trials.stimulus, FOLDS, seed)]


def _without_ongoing(plain: FoundationForecaster, trials: Trials, ongoing: LinearOngoing | None) -> Trials:
    """Responses less what would have been without the stimulus, about each channel's middle before it.

    Where nothing but the network says what that is, responses stay as they are.
    """
    if ongoing is None:
        return trials
    quiet = quiet_of(plain.untold, ongoing, trials.context, trials.stimulus.to(torch.zeros(())))
    middle, loud = trials.context.signal_uv.mean((0, -1)).unsqueeze(-1), ~trials.stimulus.silent[:, None, None]
    response, known = in_spreads(plain.subject, trials.response.signal_uv, quiet.mean)
    kept = torch.where(loud, kept_of(quiet, response, known & loud), 1.0)
    before = quiet.network + kept * (quiet.mean - quiet.network)
    left = trials.response.signal_uv - plain.mean_uv(before) + middle
    return replace(trials, response=replace(trials.response, signal_uv=left))


def seen_share(
    amplitude_ma: Float[Tensor, "*batch contact"], sites: Float[Tensor, "site contact"]
) -> Float[Tensor, "*batch"]:
    """How much of a current enters where a past one did: 1 at the same site, 0 where half of it or less does."""
    if not len(sites):
        return torch.zeros_like(amplitude_ma[..., 0])
    apart = (_shares(amplitude_ma).unsqueeze(-2) - sites.to(amplitude_ma)).abs().sum(-1) / 2  # 0 same, 1 nothing shared
    return (1 - 2 * apart.amin(-1)).clamp_min(0.0)


def site_distance_mm(
    amplitude_ma: Float[Tensor, "*batch contact"],
    sites: Float[Tensor, "site contact"],
    place_mm: Float[Tensor, "contact 3"],
) -> Float[Tensor, "*batch"]:
    """From the middle of the contacts where a current enters to that of the nearest site; 0 for silence.

    Also 0 where there is no site, or the place of a contact in use is not known.
    """
    share = _shares(amplitude_ma)
    if not len(sites):
        return torch.zeros_like(share[..., 0])
    place, lost = place_mm.to(share).nan_to_num(0.0), (~place_mm.isfinite().all(-1)).to(share)
    apart = torch.cdist((share @ place).reshape(-1, 3), sites.to(share) @ place)
    apart = apart.masked_fill(sites.to(share) @ lost > 0, 0.0).amin(-1).reshape(share.shape[:-1])
    return torch.where((share @ lost > 0) | (share.sum(-1) < 0.5), 0.0, apart)


def _shares(amplitude_ma: Float[Tensor, "*batch contact"]) -> Float[Tensor, "*batch contact"]:
    size = amplitude_ma.abs()
    return size / size.sum(-1, keepdim=True).clamp_min(1e-9)


@dataclass(frozen=True)
class Held:
    """Trials of a part, forecast from the others, in units of spread.

    Attributes:
        effects: The network's, the linear model's, and those of the network told of no trial.
        left: The response less the forecast without a stimulus.
        quiet: That forecast.
        total: Variance that the network gave.
        good: Which samples are known.
        loud: Which trials had a stimulus.
        seen: Which have a site that others had, too.
    """

    effects: Float[Tensor, "3 trial channel time"]
    left: Float[Tensor, "trial channel time"]
    quiet: Quiet
    total: Float[Tensor, "trial channel time"]
    good: Tensor
    loud: Tensor
    seen: Tensor

    @classmethod
    def of(
        cls, plain: FoundationForecaster, trials: Trials, held: Tensor, seed: int, ongoing: LinearOngoing | None = None
    ) -> "Held":
        """Forecast these trials from all others."""
        rest, lead = others_of(len(trials), held), plain.window.lead
        past, own = plain.past.pick(rest[-MOST_PAST:]), plain.past.pick(held)
        asked, nothing = (own, silenced(own)), past.pick(slice(0))
        past = calmed(plain, past, ongoing)
        told, silent = (told_of(plain, past, shots) for shots in asked)
        untold, untold_silent = (told_of(plain, nothing, shots) for shots in asked)
        quiet = alone(silent) if ongoing is None else ongoing.quiet(silent, own.context, own.heard)
        others = _without_ongoing(plain, trials[rest], ongoing)
        linear_uv = fit_impulse_regression(others, seed=seed).effect_uv(trials.stimulus[held])
        linear = linear_uv.to(told[0]) / plain.subject.spread_uv.unsqueeze(-1)
        effects = torch.stack([told[0] - silent[0], linear, untold[0] - untold_silent[0]])
        total = told[1].square() + told[2].square().sum(1)
        left, good = own.response[..., lead:] - quiet.mean, own.good[..., lead:]
        current = trials.stimulus.amplitude_ma
        seen = seen_share(current[held], _shares(current[rest][~trials.stimulus.silent[rest]])) > _SAME
        return cls(effects, left, quiet, total, good, ~trials.stimulus.silent[held], seen)

    def effect(self, weight: Float[Tensor, "3"]) -> Float[Tensor, "trial channel time"]:
        """Effects, weighed."""
        return torch.einsum("e,enct->nct", weight.to(self.left), self.effects)

    def at_seen_sites(self) -> "Held":
        """Without the stimulated trials whose site the others had not."""
        known = self.seen | ~self.loud
        return replace(self, loud=self.loud & self.seen, good=self.good & known[:, None, None])

    def told_apart(self, effect: Float[Tensor, "trial channel time"]) -> tuple[Quiet, Tensor, Tensor, Tensor]:
        """As `reset_of` asks for, of stimulated trials alone."""
        return self.quiet, self.left, effect, self.good & self.loud[:, None, None]

    def ratios(self, effect: Float[Tensor, "trial channel time"], reset: float) -> list[Tensor]:
        """See `Quiet.ratios`."""
        quiet, left, effect, good = self.told_apart(effect)
        return quiet.ratios(left, self.total, effect, good, reset)

    def products(self, some: slice) -> tuple[Tensor, Tensor]:
        """Products of some of the effects of stimulated trials with each other and with what is left."""
        known = self.good & self.loud[:, None, None]
        flat = (self.effects[some] * known).flatten(1).double()
        return flat @ flat.mT, flat @ (self.left * known).flatten().double()


def _weights(
    held: Sequence[Held], some: slice, doubts: Sequence[float], otherwise: Float[Tensor, "3"]
) -> Float[Tensor, "3"]:
    """Least squares between 0 and 1, as if for each a further share of `doubts` had been forecast by `otherwise`.

    Weights of some of the effects; those of the others are 0. One that is nowhere seen keeps what `otherwise` says.

    Parts count by the root of the first effect's power, see above.

    That share shrinks as a weight leaves `otherwise`: a prior that trials contradict lets go (a heavy tail, that of
    Cauchy, by least squares weighed anew), or it would keep a part of effects that a patient plainly has not.
    """
    products = [part.products(some) for part in held]
    says = [say_of(float(gram[0, 0])) for gram, _ in products]
    gram, target = (
        torch.stack([say * part for say, part in zip(says, parts, strict=True)]).sum(0)
        for parts in zip(*products, strict=True)
    )
    moving = gram.diagonal() > 0  # a linear model may have no effect at all, and the network's is weighed all the same
    gram, target, doubt = gram[moving][:, moving], target[moving], gram.new_tensor(doubts)[moving]
    prior = otherwise[some].double()[moving]
    weight = prior
    for _ in range(_ROUNDS if len(prior) else 0):
        believed = doubt / (1 + ((weight - prior) / _LEAVING).square())
        weight = _drawn_to(gram, target, believed * gram.diagonal(), prior)
    found = torch.zeros_like(otherwise)
    found[some] = otherwise[some]
    found[some][moving] = weight.float()  # a view
    return found


def say_of(power: float) -> float:
    """Factor that makes a part of the trials count by the root of its effects' power."""
    return power**-0.5 if power > 0 else 1.0


def _drawn_to(gram: Tensor, target: Tensor, prior: Float[Tensor, " _"], otherwise: Tensor) -> Float[Tensor, " _"]:
    """Least squares between 0 and 1 with a normal prior of this precision."""
    root = torch.linalg.cholesky(gram + prior.diag())
    wanted = (target + prior * otherwise).unsqueeze(-1)
    goal = torch.linalg.solve_triangular(root, wanted, upper=False).squeeze(-1)
    return torch.as_tensor(lsq_linear(root.mT.numpy(), goal.numpy(), bounds=(0, 1)).x)
