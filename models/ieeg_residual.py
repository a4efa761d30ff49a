"""What a patient's past trials say beyond their place in context: a Bayesian linear correction, in closed form.

Each past trial is forecast with itself left out of the context. What is left over, in units
of the forecast's own doubt, is regressed on the network's token of each channel and the
stimulus's numbers; all channels share the regression. Only the few courses in time whose
left-out prediction agrees with the truth are kept, so there may be none. Strength of the ridge by
leaving whole trials out, in closed form. The doubt about the regression goes into the
forecast as shared factors, so that a search knows where nothing was tried; noise is scaled to
what was left over.

    residual / scale = sum over courses p of (feature . weight_p) course_p(t)
    doubt            = feature (G + ridge)^-1 feature' x noise, G the features' second moments over trials and channels

References: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), section 2.1, for the posterior;
Cook, Technometrics 19 (1977) 15-18, for leaving rows out by the hat matrix, here blocks of rows; Liang and Zeger,
Biometrika 73 (1986) 13-22, for noise that a trial's channels share.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from stimopt.errors import DataError
from stimopt.forecaster import Context, Forecaster, GaussianForecast
from stimopt.stimulus import Stimulus
from stimopt.tensors import generator

from .ieeg_foundation import FoundationForecaster
from .ieeg_network import stimulus_features
from .ieeg_subject import Shots, joined_shots, joined_subjects, sensory_features
from .ieeg_transformer import Answer

MOST_PAST = 64  # trials in context at once, as in the foundation forecaster; the residual learns from all
_HIGHEST_HZ = 40.0  # of a course
_COURSES = 4  # at most
_PROBES = 2  # shared factors for the doubt of each course
_RIDGES = tuple(10.0**power for power in (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0))  # per row of a feature
_PRIOR_TRIALS = 10.0  # that the network's own noise counts for, against what this patient's trials say


@dataclass(frozen=True)
class ResidualForecaster(Forecaster):
    """A foundation forecaster and its correction. Differentiable in the stimulus, in its dtype.

    Attributes:
        plain: The network with the past trials in context.
        middle: Of each feature over trials and channels.
        spread: The same; zero where a feature never varied, which then counts for nothing.
        basis: Directions of the features and a constant one, the eigenvectors of their second moments.
        weight: Of directions, for each course.
        doubt: Standard deviation of each weight.
        course: What is added over time, one row a course, each of mean square 1.
        probe: Patterns over channels that the doubt is read along.
        temper: Factor on each channel's noise.
    """

    plain: FoundationForecaster
    middle: Float[Tensor, " feature"]
    spread: Float[Tensor, " feature"]
    basis: Float[Tensor, "known direction"]
    weight: Float[Tensor, "course direction"]
    doubt: Float[Tensor, "course direction"]
    course: Float[Tensor, "course time"]
    probe: Float[Tensor, "channel probe"]
    temper: Float[Tensor, " channel"]

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        answer, flat = self.plain.answer(context, stimulus), stimulus.reshape(stimulus.batch_shape.numel())
        numbers, senses = stimulus_features(flat), sensory_features(flat.sensory, flat.amplitude_ma)
        like = answer.mean
        own = {f.name: getattr(self, f.name).to(like) for f in fields(self) if f.name != "plain"}
        known = _standard(_features(answer.token, numbers, senses), own["middle"], own["spread"]) @ own["basis"]
        mean, scale, factors = _told(self.plain, answer)
        unit = _unit(scale, factors)
        size = known @ own["weight"].mT  # [row, channel, course]
        mean = mean + unit * (size @ own["course"])
        shared, rest = _doubts(known, own["doubt"], own["probe"])
        course = own["course"]
        unsure = torch.einsum("rpcq,rc,pt->rpqct", shared, unit.squeeze(-1), course).flatten(1, 2)
        tempered = own["temper"].unsqueeze(-1) * scale
        scale = (tempered.square() + unit.square() * (rest @ course.square())).sqrt()
        factors = torch.cat([unsure, own["temper"].unsqueeze(-1) * factors], 1)
        return self._dressed(mean, scale, factors, stimulus)

    def _dressed(self, mean: Tensor, scale: Tensor, factors: Tensor, stimulus: Stimulus) -> GaussianForecast:
        """The forecast in uV, with the batch of the stimulus."""
        subject, batch = self.plain.subject, stimulus.batch_shape
        unit = subject.spread_uv.to(mean).unsqueeze(-1)
        mean = subject.rest_uv.to(mean).unsqueeze(-1) + unit * mean
        mean, scale, factors = (x.reshape(*batch, *x.shape[1:]) for x in (mean, unit * scale, unit * factors))
        return GaussianForecast(self.plain.window.response(mean), scale, factors)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        config, tensors = self.plain.export()
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "plain"}
        return config, {f"plain.{name}": value for name, value in tensors.items()} | own

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "ResidualForecaster":
        """See Saveable."""
        parts = {name.removeprefix("plain."): v for name, v in tensors.items() if name.startswith("plain.")}
        own = {name: value for name, value in tensors.items() if not name.startswith("plain.")}
        return cls(FoundationForecaster.restore(config, parts), **own)


def fit_ieeg_residual(plain: FoundationForecaster, *, seed: int = 0, folds: int = 5) -> ResidualForecaster:
    """The correction of a foundation forecaster, learnt from its own past trials, each forecast without itself.

    Args:
        plain: With the patient's trials in context, as many as there are.
        seed: Of the folds.
        folds: In how many parts the trials are cut; each part is forecast with the others in context.

    Returns:
        The corrected forecaster, with the newest 64 trials in context.

    Raises:
        DataError: If there are fewer than four trials.
    """
    count = len(plain.past.numbers)
    if count < 4:
        raise DataError(f"a residual needs at least 4 trials, got {count}; use the network with its context alone.")
    order = torch.randperm(count, generator=generator(seed, "folds"))
    rows = _joined([_left_over(plain, part.sort().values) for part in order.chunk(min(folds, count))])
    fitted = _regression(rows, plain.window.rate_hz)
    own = {name: value.float().contiguous() for name, value in fitted.items()}
    return ResidualForecaster(replace(plain, past=plain.past.pick(slice(max(0, count - MOST_PAST), None))), **own)


def answered(plain: FoundationForecaster, weights: Mapping[str, Tensor], past: Shots, asked: Shots) -> Answer:
    """The network's answer to some of a patient's trials with others in context, batch `[1, trial]`.

    Args:
        plain: Whose network and patient.
        weights: Of the network, by name.
        past: In context.
        asked: To forecast; their responses are not shown to the network.
    """
    hidden = replace(asked, response=asked.response[..., :0], good=asked.good[..., :0])
    parts = joined_subjects([plain.subject]), joined_shots([past]), joined_shots([hidden]), plain.window.rate_hz
    answer: Answer = functional_call(plain.model.network, dict(weights), parts)
    return answer


@dataclass(frozen=True)
class _Rows:
    """Of each trial and channel: features, residual in units of the forecast's scale, that scale over time."""

    feature: Float[Tensor, "trial channel feature"]
    residual: Float[Tensor, "trial channel time"]
    relative: Float[Tensor, "trial channel time"]
    good: Tensor


@torch.no_grad()
def _left_over(plain: FoundationForecaster, held: Tensor) -> _Rows:
    """Residuals of some past trials with the newest of the others in context."""
    kept = torch.ones(len(plain.past.numbers), dtype=torch.bool)
    kept[held] = False
    others = kept.nonzero().squeeze(-1)[-MOST_PAST:]
    asked = plain.past.pick(held)
    answer = answered(plain, plain.model.weights, plain.past.pick(others), asked)
    answer = replace(answer, **{name: getattr(answer, name)[0] for name in ("mean", "log_scale", "factors", "token")})
    mean, scale, factors = _told(plain, answer)
    lead = plain.window.lead
    good, unit = asked.good[..., lead:], _unit(scale, factors)
    residual = torch.where(good, (asked.response[..., lead:] - mean) / unit, 0.0)
    total = (scale.square() + factors.square().sum(1)).sqrt() / unit
    feature = _features(answer.token, asked.numbers, asked.senses)
    return _Rows(feature.double(), residual.double(), total.double(), good)


def _joined(parts: list[_Rows]) -> _Rows:
    return _Rows(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(_Rows)})


def _told(plain: FoundationForecaster, answer: Answer) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, independent scale and factors of the forecast window, in units of spread."""
    lead, temper = plain.window.lead, plain.model.temper
    return answer.mean[..., lead:], temper * answer.log_scale[..., lead:].exp(), temper * answer.factors[..., lead:]


def _unit(scale: Tensor, factors: Tensor) -> Float[Tensor, "row channel 1"]:
    """The forecast's standard deviation over the window: residuals are as large as it says, whatever the channel."""
    return (scale.square() + factors.square().sum(1)).mean(-1, keepdim=True).sqrt()


def _features(token: Tensor, numbers: Tensor, senses: Tensor) -> Float[Tensor, "row channel feature"]:
    told = torch.cat([numbers, senses], -1).unsqueeze(-2).expand(*token.shape[:-1], -1)
    return torch.cat([token, told.to(token)], -1)


def _standard(feature: Tensor, middle: Tensor, spread: Tensor) -> Tensor:
    """Features of variance 1 where they varied, 0 where they did not, and a constant one last."""
    varied = spread > 0
    scaled = torch.where(varied, (feature - middle) / torch.where(varied, spread, 1.0), 0.0)
    return torch.cat([scaled, torch.ones_like(scaled[..., :1])], -1)


def _regression(rows: _Rows, rate_hz: float) -> dict[str, Tensor]:
    middle, spread = rows.feature.mean((0, 1)), rows.feature.std((0, 1))
    spread = torch.where(spread > 1e-6, spread, 0.0)
    feature = _standard(rows.feature, middle, spread) * rows.good.any(-1, keepdim=True)
    value, basis = torch.linalg.eigh(torch.einsum("ncf,ncg->fg", feature, feature))
    value, known = value.clamp_min(0), feature @ basis  # [trial, channel, direction]
    wave = _waves(rows.residual.shape[-1], rate_hz, rows.residual)
    course = _courses(known, value, rows.residual @ wave.mT / wave.shape[-1]) @ wave
    size = rows.residual @ course.mT / wave.shape[-1]
    ridge, left = _ridges(known, value, size)
    worth = ridge.isfinite()
    course, size, ridge, left = course[worth], size[..., worth], ridge[worth], left[..., worth]
    shrunk = 1 / (value + ridge.unsqueeze(-1))  # [course, direction]
    doubt = (shrunk * _noise(known, value, shrunk, left).unsqueeze(-1)).sqrt()
    off = rows.residual - (size - left) @ course
    variance = torch.einsum("ncd,pd->ncp", known.square(), doubt.square()) @ course.square()
    return {
        "middle": middle, "spread": spread, "basis": basis, "doubt": doubt, "course": course,
        "weight": torch.einsum("ncd,ncp,pd->pd", known, size, shrunk),
        "probe": _probes(known, value), "temper": _temper(off, variance, rows),
    }  # fmt: skip


def _waves(samples: int, rate_hz: float, like: Tensor) -> Float[Tensor, "wave time"]:
    """Cosines of the window, each of mean square 1."""
    count = max(1, min(samples, math.ceil(2 * _HIGHEST_HZ * samples / rate_hz)))
    time = (torch.arange(samples, dtype=like.dtype) + 0.5) / samples
    wave = (math.pi * torch.arange(count, dtype=like.dtype).unsqueeze(-1) * time).cos() * math.sqrt(2)
    return torch.cat([torch.ones_like(wave[:1]), wave[1:]])


def _courses(known: Tensor, value: Tensor, size: Tensor) -> Float[Tensor, "course wave"]:
    """Courses along which a regression's left-out prediction and the truth agree, the most first."""
    losses = [_left_out(known, value, size, _ridge(value, ridge)) for ridge in _RIDGES]
    left = min(losses, key=lambda residual: float(residual.square().sum()))
    agreed = torch.einsum("ncm,nck->mk", size - left, size)
    strength, direction = torch.linalg.eigh((agreed + agreed.mT) / 2)
    order = strength.flip(-1)[:_COURSES] > 0
    return direction.flip(-1)[:, :_COURSES].mT[order]


def _ridge(value: Tensor, share: float) -> float:
    """A ridge as a share of the features' mean second moment, which grows with the number of rows."""
    return share * float(value.sum()) / len(value)


def _left_out(known: Tensor, value: Tensor, size: Tensor, ridge: float) -> Float[Tensor, "trial channel size"]:
    """What is left of each trial by a regression on the others: (1 - H_ii)^-1 of what is left by one on all."""
    pulled = known / (value + ridge)
    fitted = known @ torch.einsum("ncd,ncm->dm", pulled, size)
    hat = pulled @ known.mT  # [trial, channel, channel]
    remainder: Tensor = torch.linalg.solve(torch.eye(hat.shape[-1], dtype=hat.dtype) - hat, size - fitted)
    return remainder


def _ridges(known: Tensor, value: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The ridge of each course and what it leaves out; infinite where it helps no more than by its standard error."""
    left = torch.stack([_left_out(known, value, size, _ridge(value, ridge)) for ridge in _RIDGES])
    best = left.square().sum((1, 2)).argmin(0)  # [course]
    chosen = left[best, :, :, torch.arange(size.shape[-1])].movedim(0, -1)
    gain = (size.square() - chosen.square()).sum(1)  # [trial, course]
    helps = gain.mean(0) > gain.std(0) / math.sqrt(len(gain))
    ridge = value.new_tensor([_ridge(value, share) for share in _RIDGES])[best]
    return torch.where(helps, ridge, math.inf), chosen


def _noise(known: Tensor, value: Tensor, shrunk: Tensor, left: Tensor) -> Float[Tensor, " course"]:
    """Variance of the noise of each course as the regression feels it: channels of a trial share some of it."""
    pulled = torch.einsum("ncd,ncp->npd", known, left).square().sum(0)  # [course, direction]
    return (shrunk * pulled).sum(-1) / (shrunk * value).sum(-1).clamp_min(1e-12)


def _probes(known: Tensor, value: Tensor) -> Float[Tensor, "channel probe"]:
    """Patterns over channels along which the doubt is largest on average."""
    shared = torch.einsum("ncd,ned,d->ce", known, known, 1 / (value + _ridge(value, 1.0)))
    _, pattern = torch.linalg.eigh(shared)
    return pattern.flip(-1)[:, :_PROBES]


def _doubts(known: Tensor, doubt: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Doubt of each course and channel, as factors that channels share and the variance that is left to each.

    The factors are the covariance's Nystroem approximation along the probes, so what is left is never negative.
    """
    half = known.unsqueeze(1) * doubt.unsqueeze(1)  # [row, course, channel, direction]
    read = half @ (half.mT @ probe)  # covariance times probe
    inner = probe.mT @ read
    jitter = 1e-4 * inner.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + 1e-12
    root = torch.linalg.cholesky(inner + jitter * torch.eye(inner.shape[-1]).to(inner))
    shared = torch.linalg.solve_triangular(root, read.mT, upper=False).mT  # [row, course, channel, probe]
    rest = (half.square().sum(-1) - shared.square().sum(-1)).clamp_min(0)
    return shared, rest.mT


def _temper(off: Tensor, variance: Tensor, rows: _Rows) -> Float[Tensor, " channel"]:
    """How much larger the noise is than the network says: trials of the channel and of all, against its own word."""
    square = (off.square() - variance) / rows.relative.square() * rows.good
    seen = rows.good.sum((0, 2))
    count = seen / rows.good.shape[-1]  # trials of each channel
    pooled = (_PRIOR_TRIALS + len(off) * square.sum() / seen.sum().clamp_min(1)) / (_PRIOR_TRIALS + len(off))
    each = (_PRIOR_TRIALS * pooled + count * square.sum((0, 2)) / seen.clamp_min(1)) / (_PRIOR_TRIALS + count)
    return each.clamp(0.04, 25.0).sqrt()
