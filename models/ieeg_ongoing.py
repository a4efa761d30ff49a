"""What a patient's signal does by itself: the network's forecast and a linear one of the patient's own, weighed.

    y[t] = sum over lags l of A[l] y[t - l]             fitted to all that came before stimuli, and to rest
    quiet = network + w (free run of A - network),      0 <= w <= 1

A network knows the rhythms of the patients it learned from; what another patient's tissue does by itself a minute of
rest tells better, and no stimulus is needed for it. Stretches of rest are cut into parts, each is forecast from its
first half by what the others fitted; lags, ridge, whether channels hear each other, and w, are what does best there.
How far errors were off, against what the network said of them, is kept for each channel and time, so noise without a
stimulus is that of rest. What a stimulus adds to it is the network's word on that, and a share of the effect:

    variance = quiet variance + s^2 (what the network adds for the stimulus + 0.03 effect^2)

with s as wide as a patient's own trials ask for, see `ieeg_quiet`. Where a sample of the newest past is not known the
network is alone.

Reference: Stone, JRSS B 36 (1974) 111-147 (weights by cross-validation).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stimopt.forecaster import Context
from stimopt.stimulus import Stimulus, no_stimulus
from stimopt.tensors import map_tensors

from .autoregression import chosen_run, free_run
from .ieeg_foundation import FoundationForecaster
from .ieeg_judging import fitted_temper
from .ieeg_quiet import LEAST, Quiet, Told, alone, kept_of, variance_of
from .ieeg_residual import answered
from .ieeg_subject import OF_TRAINS, Shots, in_spreads
from .ieeg_waves import patch_samples

_FEWEST = 4  # pieces of rest
_MOST = 256  # pieces
_PRIOR_PIECES = 4  # that say a channel's noise is as far off as that of all


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
        mean, said = silent[0], variance_of(silent)
        lags, total = self.back.shape[1], self.wide.shape[-1]
        lead = total - mean.shape[-1]
        own = free_run(self.back.to(mean), (signal - self.middle.to(mean).unsqueeze(-1))[..., -lags:], total)
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


def stimulated(shots: Shots) -> Bool[Tensor, "shot 1 1"]:
    """Which windows have a stimulus."""
    return ((shots.charge.flatten(1) != 0).any(-1) | (shots.senses != 0).any(-1))[:, None, None]


def silenced(shots: Shots) -> Shots:
    """The same windows without their stimuli."""
    return replace(shots, **{name: torch.zeros_like(getattr(shots, name)) for name in ("charge", *OF_TRAINS)})


def told_of(plain: FoundationForecaster, past: Shots, asked: Shots) -> Told:
    """Mean, scale and factors for a patient's trials with others in context."""
    mean, scale, factors = plain.told(answered(plain, plain.model.weights, past, asked))
    return mean[0], scale[0], factors[0]


@torch.no_grad()
def calmed(plain: FoundationForecaster, past: Shots, ongoing: LinearOngoing | None) -> Shots:
    """Past trials without what the patient's own forecast knows of responses, and the network does not."""
    if ongoing is None or not len(past.numbers):
        return past
    silent, lead = told_of(plain, past.pick(slice(0)), silenced(past)), plain.window.lead
    quiet, good, loud = ongoing.quiet(silent, past.context, past.heard), past.good[..., lead:], stimulated(past)
    kept = kept_of(quiet, past.response[..., lead:], good & loud)
    more = torch.where(good, torch.where(loud, kept, 1.0) * (quiet.mean - quiet.network), 0.0)
    return replace(past, response=torch.cat([past.response[..., :lead], past.response[..., lead:] - more], -1))


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
    truth, mean, said = signal[..., -ahead:][..., lead:], silent[0], variance_of(silent)
    mean, said = mean[..., : ahead - lead], said[..., : ahead - lead]
    middle = signal.mean((0, 2))
    off = (signal - middle.unsqueeze(-1)).double()
    back, own = chosen_run(off, ahead, total, seed)
    apart = (middle.unsqueeze(-1) + own[..., lead:]).to(mean) - mean
    weight = float(((truth - mean) * apart).sum() / apart.square().sum().clamp_min(LEAST))
    weight = min(1.0, max(0.0, weight))
    ratio = (truth - mean - weight * apart).square() / said.clamp_min(LEAST)
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


def _over_time(ratio: Float[Tensor, "piece channel judged"], lead: int, total: int) -> Float[Tensor, "channel time"]:
    """Root of squared errors as shares of a variance, of each channel and time from the window's first sample.

    A product of both; times are pooled in steps that double, for errors grow fast at first, and the last goes on.
    """
    pieces, _, judged = ratio.shape
    course = ratio.mean((0, 1)).clamp_min(LEAST)
    edges = sorted({min(judged, 2**i - 1) for i in range(judged.bit_length() + 1)})
    spans = list(pairwise(edges))
    middles = [math.log(lead + (a + b + 1) / 2) for a, b in spans]
    sizes = [math.log(float(course[a:b].mean())) for a, b in spans]
    over_time = np.exp(np.interp(np.log(np.arange(1, total + 1)), middles, sizes))
    channel = ratio.mean((0, 2)) / ratio.mean().clamp_min(LEAST)
    channel = (pieces * channel + _PRIOR_PIECES) / (pieces + _PRIOR_PIECES)
    return (channel.unsqueeze(-1) * torch.as_tensor(over_time).to(channel)).sqrt()
