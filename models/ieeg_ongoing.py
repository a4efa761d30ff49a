"""What a patient's signal does by itself: the network's forecast and a linear one of the patient's own, weighed.

    y[t] = sum over lags l of A[l] y[t - l]             fitted to all that came before stimuli, and to rest
    quiet = network + w (free run of A - network),      0 <= w <= 1

A network knows the rhythms of the patients it learned from; what another patient's tissue does by itself a minute of
rest tells better, and no stimulus is needed for it. Stretches of rest are cut into parts, each is forecast from its
first half by what the others fitted; lags, ridge, whether channels hear each other, and w, are what does best there.
How far errors were off, against what the network said of them, is kept for each channel and time, so noise without a
stimulus is that of rest. What a stimulus adds to it is the network's word on that, and a share of the effect:

    variance = quiet variance + s^2 (what the network adds for the stimulus + 0.03 effect^2)

with s as wide as a patient's own trials ask for. A stimulus may also end what would have gone on, as spikes that it
sets to another phase: then the linear forecast, sure of them, is wrong and the network, which was not, is right. So

    quiet after a stimulus = network + (1 - r p / (p + 0.1)) (quiet - network),   p power of the channel's effect

where r, of 0 to 1, is what the patient's trials ask for; and there noise is no less than the network says. Where a
sample of the newest past is not known the network is alone.

References: Lutkepohl, New Introduction to Multiple Time Series Analysis (2005), sections 2.2 and 3.2 (free runs, least
squares); Hoerl and Kennard, Technometrics 12 (1970) 55-67 (ridge); Stone, JRSS B 36 (1974) 111-147 (weights by
cross-validation).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from stimopt.forecaster import Context, Forecaster, GaussianForecast
from stimopt.stimulus import Stimulus, no_stimulus
from stimopt.tensors import map_tensors, named_under

from .arx_regression import products
from .folds import folds_of, others_of
from .ieeg_foundation import FoundationForecaster
from .ieeg_judging import fitted_temper, patient_temper
from .ieeg_residual import MOST_PAST, answered
from .ieeg_subject import OF_TRAINS, Shots, in_spreads
from .ieeg_waves import patch_samples

_LAGS = (4, 8, 16, 32, 64)
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the mean square of a sample
_MOST_REGRESSORS = 512  # of a channel; with more channels fewer lags hear all of them
_FOLDS = 4
_FEWEST = 4  # pieces of rest
_MOST = 256  # pieces
_GROWN = 2.0  # how far a free run may leave what was seen
_PRIOR_PIECES = 4  # that say a channel's noise is as far off as that of all
_RESET = 0.1  # power of an effect, in squared units of spread, that ends half of what it may
_PRIOR_TRIALS = 4  # that say a stimulus ends nothing
_EFFECT = 0.03  # of an effect's square, in the variance that a stimulus adds
_REACH_90 = 1.6449  # standard deviations
_NARROWEST = 0.5  # factor on the noise that a stimulus adds
_FEWEST_TRIALS = 4  # that say how wide it is
_LEAST = 1e-6  # of variances, in squared units of spread

Told = tuple[Tensor, Tensor, Tensor]  # mean, scale and factors in units of spread, `[row, ...]`


@dataclass(frozen=True)
class Quiet:
    """What is forecast without a stimulus, in units of spread.

    Attributes:
        mean: Expected signal.
        variance: Of single answers.
        network: What the network alone expects.
        said: Variance that it gave.
        judged: Whether rest was asked how large the variance is; else trials say it, of all noise.
    """

    mean: Float[Tensor, "row channel time"]
    variance: Float[Tensor, "row channel time"]
    network: Float[Tensor, "row channel time"]
    said: Float[Tensor, "row channel time"]
    judged: bool

    def noise(self, told: Told, effect: Float[Tensor, "row channel time"], wider: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and factors of a forecast with a stimulus, shared among channels and times as the network says.

        Args:
            told: By the network, with the stimulus.
            effect: What the stimulus adds to the mean.
            wider: Factor on what it adds to the noise, broadcasting with it.
        """
        _, scale, factors = told
        total = (scale.square() + factors.square().sum(1)).clamp_min(_LEAST)
        ratio = ((self._known() + wider.square() * self._added(total, effect)) / total).sqrt()
        return ratio * scale, ratio.unsqueeze(1) * factors

    def after(self, effect: Float[Tensor, "row channel time"], reset: float) -> "Quiet":
        """The same after stimuli with such effects, which the patient's own forecast may not survive.

        Args:
            effect: On the mean.
            reset: How much a strong one ends of what that forecast knows and the network does not.
        """
        strength = _strength(effect)
        mean = self.mean + reset * strength * (self.network - self.mean)
        variance = self.variance + strength * (self.said - self.variance).clamp_min(0.0)
        return replace(self, mean=mean, variance=variance)

    def ratios(self, left: Tensor, total: Tensor, effect: Tensor, good: Tensor, reset: float) -> list[Tensor]:
        """Errors of trials as shares of the noise that a stimulus adds, beyond what rest leads to expect.

        An error at the end of a central interval of 90 % is as large a share as that interval reaches.

        Args:
            left: The response less the forecast without a stimulus.
            total: Variance that the network gave.
            effect: What the stimulus was thought to add to the mean.
            good: Which samples are known.
            reset: See `after`.
        """
        after = self.after(effect, reset)
        error = left + self.mean - after.mean - effect
        beyond = (error.square() - _REACH_90**2 * after._known()).clamp_min(0.0)
        share = (beyond / self._added(total, effect).clamp_min(_LEAST)).sqrt().clamp_min(_REACH_90 * _NARROWEST)
        return [row[here] for row, here in zip(share, good, strict=True) if bool(here.any())]

    def _known(self) -> Tensor:
        return self.variance if self.judged else torch.zeros_like(self.variance)

    def _added(self, total: Tensor, effect: Tensor) -> Float[Tensor, "row channel time"]:
        """Variance that a stimulus adds, from the network's own with it; all of that where rest was not asked."""
        return (total - self.said if self.judged else total).clamp_min(0.0) + _EFFECT * effect.square()


@dataclass(frozen=True)
class LinearOngoing:
    """A patient's own linear forecast of ongoing activity, in units of spread, and how it stands beside the network's.

    Attributes:
        back: Weights of the past on the present, newest lag first: of each other channel, or of the channel alone.
        middle: Mean of each channel.
        weight: Of this forecast beside the network's.
        wide: Factor on the standard deviation that the network gives, from the window's first sample.
    """

    back: Float[Tensor, "channel lag other"]
    middle: Float[Tensor, " channel"]
    weight: float
    wide: Float[Tensor, "channel time"]

    def quiet(
        self, silent: Told, signal: Float[Tensor, "row channel past"], heard: Bool[Tensor, "row channel past"]
    ) -> Quiet:
        """The forecast without a stimulus.

        Args:
            silent: What the network says of it.
            signal: What came before, in units of spread; of one row, or as many as there are.
            heard: Which samples of it are known.
        """
        mean, said = silent[0], _variance(silent)
        lags, total = self.back.shape[1], self.wide.shape[-1]
        lead = total - mean.shape[-1]
        own = _free_run(self.back.to(mean), (signal - self.middle.to(mean).unsqueeze(-1))[..., -lags:], total)
        own = self.middle.to(mean).unsqueeze(-1) + own[..., lead:]
        known = heard[..., -lags:].all(-1).all(-1).to(mean)[:, None, None]
        wide = known * self.wide[..., lead:].to(mean).square() + 1 - known
        return Quiet(mean + known * self.weight * (own - mean), wide * said, mean, said, judged=True)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        return {"weight": self.weight}, {name: getattr(self, name) for name in ("back", "middle", "wide")}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "LinearOngoing":
        """See Saveable."""
        return cls(weight=float(config["weight"]), **tensors)


def quiet_of(plain: FoundationForecaster, ongoing: LinearOngoing | None, context: Context, stimulus: Stimulus) -> Quiet:
    """The forecast without a stimulus, a row for each of `stimulus`; without `ongoing`, the network's."""
    batch, rows = context.signal_uv.shape[:-2], stimulus.batch_shape
    silent = plain.told(plain.answer(context, no_stimulus(stimulus.montage, batch).to(stimulus.amplitude_ma)))
    if ongoing is None:
        found = alone(silent)
    else:
        signal = context.signal_uv[..., -plain.window.context_samples :]
        signal, heard = in_spreads(plain.subject, signal.reshape(-1, *signal.shape[-2:]), stimulus.amplitude_ma)
        found = ongoing.quiet(silent, signal, heard)

    def rowwise(x: Tensor) -> Tensor:
        return x.reshape(*batch, *x.shape[1:]).expand(*rows, -1, -1).reshape(-1, *x.shape[1:])

    return map_tensors(found, rowwise)


def alone(silent: Told) -> Quiet:
    """The network's own forecast without a stimulus."""
    mean, said = silent[0], _variance(silent)
    return Quiet(mean, said, mean, said, judged=False)


def _loud(shots: Shots) -> Bool[Tensor, "shot 1 1"]:
    """Which windows have a stimulus."""
    return ((shots.charge.flatten(1) != 0).any(-1) | (shots.senses != 0).any(-1))[:, None, None]


def silenced(shots: Shots) -> Shots:
    """The same windows without their stimuli."""
    return replace(shots, **{name: torch.zeros_like(getattr(shots, name)) for name in ("charge", *OF_TRAINS)})


def told_of(plain: FoundationForecaster, past: Shots, asked: Shots) -> Told:
    """Mean, scale and factors for a patient's trials with others in context."""
    mean, scale, factors = plain.told(answered(plain, plain.model.weights, past, asked))
    return mean[0], scale[0], factors[0]


def reset_of(parts: Sequence[tuple[Quiet, Tensor, Tensor, Tensor]]) -> float:
    """How much strong stimuli end of what the patient's own forecast knows, by least squares over trials.

    Args:
        parts: The forecast without a stimulus, the response less that, what the stimulus was thought to add, and which
            samples are known; of stimulated trials alone.
    """
    return _ended((_strength(e) * (quiet.mean - quiet.network), left - e, good) for quiet, left, e, good in parts)


def kept_of(quiet: Quiet, response: Tensor, good: Tensor) -> float:
    """How much of what the patient's own forecast knows survives stimuli of whose effects nothing is known."""
    return 1 - _ended([(quiet.mean - quiet.network, response - quiet.mean, good)])


def _ended(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> float:
    """Between 0 and 1, the share of the first that is missing in the second."""
    found = size = trials = 0.0
    for known, left, good in parts:
        here = known * good
        found -= float((here * torch.where(good, left, 0.0)).sum())
        size += float(here.square().sum())
        trials += int(good.flatten(1).any(-1).sum())
    return min(1.0, max(0.0, found / max(size, _LEAST) * trials / (trials + _PRIOR_TRIALS)))


def _strength(effect: Float[Tensor, "row channel time"]) -> Float[Tensor, "row channel 1"]:
    power: Tensor = effect.square().mean(-1, keepdim=True)
    return power / (power + _RESET)


@torch.no_grad()
def calmed(plain: FoundationForecaster, past: Shots, ongoing: LinearOngoing | None) -> Shots:
    """Past trials without what the patient's own forecast knows of responses, and the network does not."""
    if ongoing is None or not len(past.numbers):
        return past
    silent, lead = told_of(plain, past.pick(slice(0)), silenced(past)), plain.window.lead
    quiet, good, loud = ongoing.quiet(silent, past.context, past.heard), past.good[..., lead:], _loud(past)
    kept = kept_of(quiet, past.response[..., lead:], good & loud)
    more = torch.where(good, torch.where(loud, kept, 1.0) * (quiet.mean - quiet.network), 0.0)
    return replace(past, response=torch.cat([past.response[..., :lead], past.response[..., lead:] - more], -1))


@torch.no_grad()
def fit_ieeg_ongoing(plain: FoundationForecaster, ongoing: LinearOngoing, *, seed: int = 0) -> "OngoingForecaster":
    """A patient's own forecast of what happens by itself beside the network's effects, noise as wide as trials ask for.

    Args:
        plain: With the patient's trials in context.
        ongoing: Of the same patient.
        seed: Of the parts in which trials are held out, from four trials on.

    Returns:
        The forecaster, with the newest 64 trials in context.
    """
    past, count, lead = plain.past, len(plain.past.numbers), plain.window.lead
    parts, totals = [], []
    for held in folds_of(count, _FOLDS, seed, "parts") if count >= _FEWEST_TRIALS else ():
        known, own = past.pick(others_of(count, held)[-MOST_PAST:]), past.pick(held)
        known = calmed(plain, known, ongoing)
        told, silent = (told_of(plain, known, asked) for asked in (own, silenced(own)))
        quiet, effect = ongoing.quiet(silent, own.context, own.heard), told[0] - silent[0]
        parts.append((quiet, own.response[..., lead:] - quiet.mean, effect, own.good[..., lead:] & _loud(own)))
        totals.append(_variance(told))
    reset, rows = reset_of(parts), list[Tensor]()
    for (quiet, left, effect, good), total in zip(parts, totals, strict=True):
        rows += quiet.ratios(left, total, effect, good, reset)
    kept = replace(plain, past=calmed(plain, past.pick(slice(max(0, count - MOST_PAST), None)), ongoing))
    return OngoingForecaster(kept, ongoing, patient_temper(rows, len(rows)), reset)


@torch.no_grad()
def fit_ongoing(plain: FoundationForecaster, rest: Context, *, seed: int = 0) -> LinearOngoing | None:
    """A patient's own linear forecast, from rest and from what came before past trials.

    Args:
        plain: The network with the patient's trials in context, as many as there are.
        rest: Windows without stimulation; those that are contexts of trials as well count once.
        seed: Of parts.

    Returns:
        None where fewer than four stretches are known throughout, or these are too short to judge a forecast.
    """
    window, signal = plain.window, _pieces(plain, rest)
    total, lead = window.lead + window.samples, window.lead
    ahead = min(total, signal.shape[-1] // 2, signal.shape[-1] - patch_samples(window.rate_hz))
    if len(signal) < _FEWEST or ahead <= lead:
        return None
    silent = _network(plain, signal[..., :-ahead])
    truth, mean, said = signal[..., -ahead:][..., lead:], silent[0], _variance(silent)
    mean, said = mean[..., : ahead - lead], said[..., : ahead - lead]
    middle = signal.mean((0, 2))
    off = (signal - middle.unsqueeze(-1)).double()
    back, own = _chosen(off, ahead, total, seed)
    apart = (middle.unsqueeze(-1) + own[..., lead:]).to(mean) - mean
    weight = float(((truth - mean) * apart).sum() / apart.square().sum().clamp_min(_LEAST))
    weight = min(1.0, max(0.0, weight))
    ratio = (truth - mean - weight * apart).square() / said.clamp_min(_LEAST)
    wide = _over_time(ratio, lead, total)
    share = (ratio / wide[:, lead:ahead].square()).sqrt()
    return LinearOngoing(back.float(), middle, weight, wide * fitted_temper([share.flatten()]))


def _pieces(plain: FoundationForecaster, rest: Context) -> Float[Tensor, "piece channel time"]:
    """Stretches without a stimulus, known throughout, of one length, in units of spread."""
    whole = rest.signal_uv.reshape(-1, *rest.signal_uv.shape[-2:])
    whole, known = in_spreads(plain.subject, whole, plain.subject.spread_uv)
    before, heard = plain.past.context, plain.past.heard
    shared = before.shape[-1] <= whole.shape[-1]
    length = min(whole.shape[-1], plain.window.context_samples + plain.window.lead + plain.window.samples)
    if length // 2 <= before.shape[-1]:
        length = min(length, before.shape[-1])
    else:
        before, heard = before[:0], heard[:0]
    if shared and len(before):  # contexts that were given as rest, too
        there = {one.numpy().tobytes() for one in whole[..., -before.shape[-1] :].cpu().contiguous()}
        new = [i for i, one in enumerate(before.cpu().contiguous()) if one.numpy().tobytes() not in there]
        before, heard = before[new], heard[new]
    cut: Tensor = torch.cat([_cut(signal, good, length) for signal, good in ((whole, known), (before, heard))])
    return cut[-_MOST:]


def _cut(signal: Tensor, good: Tensor, length: int) -> Float[Tensor, "piece channel time"]:
    """Pieces from the end of each stretch, without those of which a sample is not known."""
    count = signal.shape[-1] // length
    cut = [x[..., x.shape[-1] - count * length :].unflatten(-1, (count, length)).movedim(-2, 1) for x in (signal, good)]
    pieces, known = (x.flatten(0, 1) for x in cut)
    whole: Tensor = pieces[known.all(-1).all(-1)]
    return whole


def _network(plain: FoundationForecaster, signal: Float[Tensor, "piece channel past"]) -> Told:
    """What the network, told of no trial, says of silence after these."""
    montage = plain.window.montage
    signal_uv = plain.mean_uv(signal)
    context = Context(montage, signal_uv, plain.window.rate_hz)
    untold = plain.untold
    return untold.told(untold.answer(context, no_stimulus(montage, (len(signal),)).to(signal_uv)))


def _chosen(
    off: Float[Tensor, "piece channel time"], ahead: int, total: int, seed: int
) -> tuple[Float[Tensor, "channel lag other"], Float[Tensor, "piece channel ahead"]]:
    """The choice that leaves least of each piece's end, fitted to all, and the ends as the other parts forecast them.

    One whose free run grows beyond what was seen is none; without any, nothing is forecast.
    """
    parts = [part for part in folds_of(len(off), _FOLDS, seed, "rest") if len(part)]
    most = max(1, min(_LAGS[-1], off.shape[-1] - ahead))
    each = [_Equations.of(off[part], most) for part in parts]
    every = sum(each[1:], each[0])
    others = [every - own for own in each]
    truth, largest = off[..., -ahead:], _GROWN * float(off.abs().max())
    best, chosen = math.inf, (torch.zeros_like(every.solve(1, 1.0, False)), torch.zeros_like(truth))
    for lags, ridge, together in product(_LAGS, _RIDGES, (True, False)):
        if lags > most or (together and lags > every.lags):
            continue
        told = torch.empty_like(truth)
        for part, fitted in zip(parts, others, strict=True):
            told[part] = _free_run(fitted.solve(lags, ridge, together), off[part][..., :-ahead], ahead)
        left = float(((told - truth).square().mean((0, 2)) / truth.square().mean((0, 2)).clamp_min(_LEAST)).mean())
        if left < best:  # false for one that is no number
            back = every.solve(lags, ridge, together)
            if float(_free_run(back, off, total).abs().max()) < largest:
                best, chosen = left, (back, told)
    return chosen


@dataclass(frozen=True)
class _Equations:
    """Products of the past with itself and with the present: of all channels together, and of each alone.

    Attributes:
        gram: Of as many lags as there is room for, (lag, channel), newest first.
        target: With the present.
        gram_alone: Of each channel's own past.
        target_alone: With its present.
    """

    gram: Float[Tensor, "regressor regressor"]
    target: Float[Tensor, "regressor channel"]
    gram_alone: Float[Tensor, "channel lag lag"]
    target_alone: Float[Tensor, "channel lag 1"]

    @classmethod
    def of(cls, signal: Float[Tensor, "piece channel time"], most: int) -> "_Equations":
        """Over all pieces, up to so many lags."""
        together = max(1, min(most, _MOST_REGRESSORS // signal.shape[1]))
        gram, target, _ = products(signal, signal[:, :0], together)
        alone = [products(one, one[:, :0], most)[:2] for one in signal.split(1, 1)]
        return cls(gram, target, torch.stack([a for a, _ in alone]), torch.stack([b for _, b in alone]))

    @property
    def lags(self) -> int:
        """Of all channels together."""
        return len(self.gram) // self.target.shape[1]

    def __add__(self, other: "_Equations") -> "_Equations":
        return _Equations(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: "_Equations") -> "_Equations":
        return _Equations(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def solve(self, lags: int, ridge: float, together: bool) -> Float[Tensor, "channel lag other"]:
        """Weights of so many lags, of all channels or of each channel's own."""
        size = lags * self.target.shape[1]
        if together:
            weight: Tensor = _ridged(self.gram[:size, :size], self.target[:size], ridge)
            return weight.mT.reshape(-1, lags, self.target.shape[1])
        own: Tensor = _ridged(self.gram_alone[:, :lags, :lags], self.target_alone[:, :lags], ridge)
        return own


def _ridged(gram: Float[Tensor, "*_ row row"], target: Float[Tensor, "*_ row to"], ridge: float) -> Tensor:
    strength = ridge * gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) + _LEAST
    weight: Tensor = torch.linalg.solve(gram + torch.diag_embed(strength.expand(gram.shape[:-1])), target)
    return weight


def _free_run(
    back: Float[Tensor, "channel lag other"], signal: Float[Tensor, "row channel past"], samples: int
) -> Float[Tensor, "row channel time"]:
    """The signal run on; what is older than it counts as nothing."""
    lags, alone = back.shape[1], back.shape[2] == 1
    newest = signal[..., -lags:].flip(-1)
    history = F.pad(newest, (0, lags - newest.shape[-1])).movedim(1, 2)  # [row, lag, channel]
    weight = back[..., 0].mT if alone else back.flatten(1).mT
    run = []
    for _ in range(samples):
        run.append((weight * history).sum(1) if alone else history.flatten(1) @ weight)
        history = torch.cat([run[-1].unsqueeze(1), history[:, :-1]], 1)
    return torch.stack(run, -1)


def _over_time(ratio: Float[Tensor, "piece channel judged"], lead: int, total: int) -> Float[Tensor, "channel time"]:
    """Root of squared errors as shares of a variance, of each channel and time from the window's first sample.

    A product of both; times are pooled in steps that double, for errors grow fast at first, and the last goes on.
    """
    pieces, _, judged = ratio.shape
    course = ratio.mean((0, 1)).clamp_min(_LEAST)
    edges = sorted({min(judged, 2**i - 1) for i in range(judged.bit_length() + 1)})
    spans = list(pairwise(edges))
    middles = [math.log(lead + (a + b + 1) / 2) for a, b in spans]
    sizes = [math.log(float(course[a:b].mean())) for a, b in spans]
    over_time = np.exp(np.interp(np.log(np.arange(1, total + 1)), middles, sizes))
    channel = ratio.mean((0, 2)) / ratio.mean().clamp_min(_LEAST)
    channel = (pieces * channel + _PRIOR_PIECES) / (pieces + _PRIOR_PIECES)
    return (channel.unsqueeze(-1) * torch.as_tensor(over_time).to(channel)).sqrt()


def _variance(told: Told) -> Float[Tensor, "row channel time"]:
    return (told[1].square() + told[2].square().sum(1)).clamp_min(_LEAST)


@dataclass(frozen=True)
class OngoingForecaster(Forecaster):
    """A foundation forecaster whose patient's own linear forecast says what happens by itself.

    Attributes:
        plain: The network with past trials in context, which says what a stimulus adds.
        ongoing: What happens without one.
        wider: Factor on the noise that a stimulus adds.
        reset: How much a strong stimulus ends of what the patient's own forecast knows.
    """

    plain: FoundationForecaster
    ongoing: LinearOngoing
    wider: float = 1.0
    reset: float = 0.0

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        told = self.plain.told(self.plain.answer(context, stimulus))
        quiet = quiet_of(self.plain, self.ongoing, context, stimulus)
        effect = told[0] - quiet.network
        quiet = quiet.after(effect, self.reset)
        scale, factors = quiet.noise(told, effect, effect.new_tensor(self.wider))
        return self.plain.in_uv(quiet.mean + effect, scale, factors, stimulus)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        config, tensors = self.plain.export()
        own, more = self.ongoing.export()
        tensors = {f"plain.{name}": value for name, value in tensors.items()}
        config |= {"ongoing": own, "wider": self.wider, "reset": self.reset}
        return config, tensors | {f"ongoing.{n}": v for n, v in more.items()}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "OngoingForecaster":
        """See Saveable."""
        plain = FoundationForecaster.restore(config, named_under(tensors, "plain."))
        ongoing = LinearOngoing.restore(config["ongoing"], named_under(tensors, "ongoing."))
        return cls(plain, ongoing, float(config["wider"]), float(config["reset"]))
