"""The foundation model's effects and those of a linear model of the patient, each weighed by trials that neither saw.

    mean = network without a stimulus + a (network's effect) + b (linear effect),   0 <= a, b <= 1

An effect is a forecast with the stimulus less one without. The linear model, impulse responses to rectified current, is
fitted on the patient's past trials alone. Past trials are cut into parts, each part is forecast from the others, and a
and b are what fits it best, drawn towards 1 and 0. There are two such pairs: one from parts that share no site, for
new sites, and one from trials whose site is among the others, for sites with a past of their own; a site on the way
from one to the other has weights between them, and noise is as wide as the errors of either ask for. So a patient like
those of pretraining keeps the network's effects; where a circuit is of another kind, and the network is sure of effects
that past trials do not show, they are turned down and what the linear model learnt takes their place, more so where it
learnt at the very site.

References: Breiman, Machine Learning 24 (1996) 49-64 (stacked regressions: non-negative weights, chosen on held-out
forecasts); Lange, Little and Taylor, JASA 84 (1989) 881-896 (heavy tails by least squares weighed anew).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from scipy.optimize import lsq_linear
from torch import Tensor

from stimopt.errors import DataError
from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.stimulus import Stimulus, no_stimulus

from .folds import folds_of, others_of, site_parts
from .ieeg_foundation import FoundationForecaster
from .ieeg_judging import patient_temper
from .ieeg_residual import MOST_PAST, answered
from .ieeg_subject import OF_TRAINS, Shots
from .impulse_regression import ImpulseForecaster, fit_impulse_regression

FEWEST = 8  # trials
_FOLDS = 4
_PRIOR_SITES = 1.5  # that say a = 1 and b = 0 at new sites: trials of one site err alike, so sites count and not trials
_PRIOR_TRIALS = 3  # that say a and b at seen sites are those of new ones
_FAR, _ROUNDS = 0.3, 12  # how far weights leave what the prior says before it is believed half as much
_SAME = 0.999  # of `seen_share`, at which a site is the same


@dataclass(frozen=True)
class BlendedForecaster(Forecaster):
    """Effects of the foundation model and of a linear model, weighed. Differentiable in the stimulus.

    Attributes:
        plain: The foundation model with the patient's past trials.
        linear: Impulse responses fitted on them.
        weight: Of either's effect, at new sites and at seen ones.
        sites: Shares of the contacts in the current of each site with a past.
        narrower: Factor on the noise at seen sites, beside that at new ones.
    """

    plain: FoundationForecaster
    linear: ImpulseForecaster
    weight: Float[Tensor, "2 2"]
    sites: Float[Tensor, "site contact"]
    narrower: float = 1.0

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        mean, scale, factors = self.plain.told(self.plain.answer(context, stimulus))
        batch = context.signal_uv.shape[:-2]
        none = no_stimulus(stimulus.montage, batch).to(stimulus.amplitude_ma)
        quiet, _, _ = self.plain.told(self.plain.answer(context, none))
        quiet = quiet.reshape(*batch, *quiet.shape[1:]).expand(*stimulus.batch_shape, -1, -1).reshape(mean.shape)
        spread = self.plain.subject.spread_uv.to(mean).unsqueeze(-1)
        linear = self.linear.effect_uv(stimulus).reshape(mean.shape).to(mean) / spread
        at_new, at_seen = self.weight.to(mean)
        seen = seen_share(stimulus.amplitude_ma, self.sites).reshape(-1, 1, 1, 1).to(mean)
        own, other = (at_new + seen * (at_seen - at_new)).unbind(-1)  # [shot, 1, 1] each
        wide = 1 + seen * (self.narrower - 1)  # [shot, 1, 1, 1]
        blended = quiet + own * (mean - quiet) + other * linear
        return self.plain.in_uv(blended, wide.squeeze(-1) * scale, wide * factors, stimulus)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        config, tensors = self.plain.export()
        linear_config, linear = self.linear.export()
        tensors = {f"plain.{name}": value for name, value in tensors.items()}
        tensors |= {f"linear.{name}": value for name, value in linear.items()} | {
            "blend": self.weight,
            "sites": self.sites,
        }
        return {**config, "linear": linear_config, "narrower": self.narrower}, tensors

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "BlendedForecaster":
        """See Saveable."""
        own: dict[str, dict[str, Tensor]] = {"plain": {}, "linear": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            if part in own:
                own[part][name] = value
        plain = FoundationForecaster.restore(config, own["plain"])
        linear = ImpulseForecaster.restore(config["linear"], own["linear"])
        return cls(plain, linear, tensors["blend"], tensors["sites"], float(config["narrower"]))


def blendable(trials: Trials) -> bool:
    """Whether there are trials enough, and none lacks a sample, which the linear model could not read."""
    return len(trials) >= FEWEST and bool(trials.response.signal_uv.isfinite().all())


@torch.no_grad()
def fit_ieeg_blended(plain: FoundationForecaster, trials: Trials, *, seed: int = 0) -> BlendedForecaster:
    """Weigh a foundation forecaster's effects against those of impulse responses, on its own past trials.

    Args:
        plain: With these trials in context.
        trials: The same, in uV.
        seed: Of parts and ridges.

    Returns:
        The blend, with the newest 64 trials in context and noise as wide as held-out trials ask for.

    Raises:
        DataError: If there are fewer than eight trials, or samples of theirs are not finite.
    """
    if not blendable(trials):
        raise DataError(
            f"a blend needs at least {FEWEST} trials, all samples finite, got {len(trials)}; use 'context', which "
            "reads around what is missing."
        )
    held = [_Held.of(plain, trials, part, seed) for part in site_parts(trials.stimulus, _FOLDS, seed)]
    sites = torch.unique(_shares(trials.stimulus.amplitude_ma[~trials.stimulus.silent]).round(decimals=6), dim=0)
    at_new = _weights(held, _PRIOR_SITES / max(1, len(sites)), torch.tensor([1.0, 0.0]))
    again = [_Held.of(plain, trials, part, seed) for part in folds_of(len(trials), _FOLDS, seed, "trial parts")]
    again = [part.at_seen_sites() for part in again]
    at_any = sum(int(part.loud.sum()) for part in again)
    at_seen = _weights(again, _PRIOR_TRIALS / max(1, at_any), at_new)
    temper = patient_temper([row for part in held for row in part.ratios(at_new)], len(trials))
    left = [row for part in again for row in part.ratios(at_seen)]
    narrower = patient_temper(left, len(left)) / temper if at_any else 1.0
    kept = replace(plain, past=plain.past.pick(slice(max(0, len(trials) - MOST_PAST), None)), temper=temper)
    linear, weight = fit_impulse_regression(trials, seed=seed), torch.stack([at_new, at_seen])
    return BlendedForecaster(kept, linear, weight, sites, narrower)


def seen_share(
    amplitude_ma: Float[Tensor, "*batch contact"], sites: Float[Tensor, "site contact"]
) -> Float[Tensor, "*batch"]:
    """How much of a current enters where a past one did: 1 at the same site, 0 where half of it or less does."""
    if not len(sites):
        return torch.zeros_like(amplitude_ma[..., 0])
    apart = (_shares(amplitude_ma).unsqueeze(-2) - sites.to(amplitude_ma)).abs().sum(-1) / 2  # 0 same, 1 nothing shared
    return (1 - 2 * apart.amin(-1)).clamp_min(0.0)


def _shares(amplitude_ma: Float[Tensor, "*batch contact"]) -> Float[Tensor, "*batch contact"]:
    size = amplitude_ma.abs()
    return size / size.sum(-1, keepdim=True).clamp_min(1e-9)


@dataclass(frozen=True)
class _Held:
    """Trials of a part, forecast from the others, in units of spread.

    Attributes:
        effects: The network's and the linear model's.
        left: The response less the network's forecast without a stimulus.
        wide: Standard deviation that the network gave.
        good: Which samples are known.
        loud: Which trials had a stimulus.
        seen: Which have a site that others had, too.
    """

    effects: Float[Tensor, "2 trial channel time"]
    left: Float[Tensor, "trial channel time"]
    wide: Float[Tensor, "trial channel time"]
    good: Tensor
    loud: Tensor
    seen: Tensor

    @classmethod
    def of(cls, plain: FoundationForecaster, trials: Trials, held: Tensor, seed: int) -> "_Held":
        """Forecast these trials from all others."""
        rest, lead = others_of(len(trials), held), plain.window.lead
        past, own = plain.past.pick(rest[-MOST_PAST:]), plain.past.pick(held)
        told = [plain.told(answered(plain, plain.model.weights, past, shots)) for shots in (own, _silenced(own))]
        (mean, scale, factors), (quiet, _, _) = ([part[0] for part in one] for one in told)
        linear_uv = fit_impulse_regression(trials[rest], seed=seed).effect_uv(trials.stimulus[held])
        effects = torch.stack([mean - quiet, linear_uv.to(mean) / plain.subject.spread_uv.unsqueeze(-1)])
        wide = (scale.square() + factors.square().sum(1)).sqrt()
        left, good = own.response[..., lead:] - quiet, own.good[..., lead:]
        current = trials.stimulus.amplitude_ma
        seen = seen_share(current[held], _shares(current[rest][~trials.stimulus.silent[rest]])) > _SAME
        return cls(effects, left, wide, good, ~trials.stimulus.silent[held], seen)

    def at_seen_sites(self) -> "_Held":
        """Without the stimulated trials whose site the others had not."""
        known = self.seen | ~self.loud
        return replace(self, loud=self.loud & self.seen, good=self.good & known[:, None, None])

    def ratios(self, weight: Tensor) -> list[Tensor]:
        """Errors of the blend as shares of the standard deviation, for each trial with any good sample."""
        error = (self.left - torch.einsum("e,enct->nct", weight.to(self.left), self.effects)).abs() / self.wide
        return [row[here] for row, here in zip(error, self.good, strict=True) if bool(here.any())]

    def products(self) -> tuple[Tensor, Tensor]:
        """Products of the effects of stimulated trials with each other and with what is left."""
        known = self.good & self.loud[:, None, None]
        flat = (self.effects * known).flatten(1).double()
        return flat @ flat.mT, flat @ (self.left * known).flatten().double()


def _silenced(shots: Shots) -> Shots:
    return replace(shots, **{name: torch.zeros_like(getattr(shots, name)) for name in ("charge", *OF_TRAINS)})


def _weights(held: list[_Held], doubt: float, otherwise: Float[Tensor, "2"]) -> Float[Tensor, "2"]:
    """Least squares between 0 and 1, as if a further share of `doubt` had been forecast by `otherwise`.

    That share shrinks as the weights leave `otherwise`: a prior that trials contradict lets go (a heavy tail, that of
    Cauchy, by least squares weighed anew), or it would keep a part of effects that a patient plainly has not.
    """
    products = [part.products() for part in held]
    gram, target = (sum(parts[1:], parts[0]) for parts in zip(*products, strict=True))
    if not bool((gram.diagonal() > 0).all()):
        return otherwise
    otherwise, weight = otherwise.double(), otherwise.double()
    for _ in range(_ROUNDS):
        believed = doubt / (1 + ((weight - otherwise) / _FAR).square())
        weight = _drawn_to(gram, target, believed * gram.diagonal(), otherwise)
    return weight.float()


def _drawn_to(gram: Tensor, target: Tensor, prior: Float[Tensor, "2"], otherwise: Tensor) -> Float[Tensor, "2"]:
    """Least squares between 0 and 1 with a normal prior of this precision."""
    root = torch.linalg.cholesky(gram + prior.diag())
    wanted = (target + prior * otherwise).unsqueeze(-1)
    goal = torch.linalg.solve_triangular(root, wanted, upper=False).squeeze(-1)
    return torch.as_tensor(lsq_linear(root.mT.numpy(), goal.numpy(), bounds=(0, 1)).x)
