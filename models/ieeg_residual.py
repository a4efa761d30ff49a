"""What a patient's past trials say beyond their place in context: a Gaussian process on the network's tokens.

Each past trial is forecast with itself left out of the context. What is left over becomes a
smooth function of the network's token of each channel and of the stimulus's numbers, one
function for all channels, in closed form; rows weigh as the forecast's own doubt says. Only the few courses in time
whose left-out prediction agrees with the truth are kept, each shrunk to the size that
left-out trials ask for; there may be none. Doubt about the function goes into the forecast as
factors that channels share, so that a search knows where nothing was tried, and noise is
scaled to what was left over.

    forecast = network + sum over courses p of size_p(token, stimulus) course_p(t)

The trials that are left over had a fifth fewer in context than the forecaster has in the end, so the correction is
a little too large rather than too small.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import functional_call

from stimopt.errors import DataError
from stimopt.forecaster import Context, Forecaster, GaussianForecast
from stimopt.stimulus import Stimulus
from stimopt.tensors import map_tensors, named_under

from .folds import folds_of, others_of
from .ieeg_answer import Answer
from .ieeg_foundation import FoundationForecaster
from .ieeg_network import stimulus_features
from .ieeg_subject import Shots, joined_shots, joined_subjects, sensory_features
from .landmarks import Landmarks, best_ridge, landmarks_of, shared_noise

MOST_PAST = 64  # trials in context at once, as in the foundation forecaster; the residual learns from all
_HIGHEST_HZ = 40.0  # of a course
_COURSES = 4  # at most
_PROBES = 2  # shared factors for the doubt of each course
_PRIOR_TRIALS = 10.0  # that the network's own noise counts for, against what this patient's trials say


@dataclass(frozen=True)
class ResidualForecaster(Forecaster):
    """A foundation forecaster and its correction. Differentiable in the stimulus, in its dtype.

    Attributes:
        plain: The network with the past trials in context.
        landmarks: Directions in which the process is independent.
        weight: Of each direction, for each course.
        doubt: Variance of each direction's weight, for noise of variance 1.
        prior: Variance of the process where nothing is known, for noise of variance 1.
        noise: Standard deviation of each course's noise.
        course: What is added over time, in units of spread.
        probe: Patterns over channels that the doubt is read along.
        temper: Factor on each channel's noise.
    """

    plain: FoundationForecaster
    landmarks: Landmarks
    weight: Float[Tensor, "course direction"]
    doubt: Float[Tensor, " direction"]
    prior: Float[Tensor, ""]
    noise: Float[Tensor, " course"]
    course: Float[Tensor, "course time"]
    probe: Float[Tensor, "channel probe"]
    temper: Float[Tensor, " channel"]

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        answer, flat = self.plain.answer(context, stimulus), stimulus.reshape(stimulus.batch_shape.numel())
        own = self._like(answer.mean)
        numbers, senses = stimulus_features(flat), sensory_features(flat.sensory, flat.amplitude_ma)
        known = own.landmarks.known(_features(answer.token, numbers, senses))  # [row, channel, direction]
        mean, scale, factors = self.plain.told(answer)
        shared, rest = _doubts(known, own.doubt, own.prior, own.probe)
        course = own.noise.unsqueeze(-1) * own.course
        unsure = torch.einsum("rcq,pt->rpqct", shared, course).flatten(1, 2)
        temper = own.temper.unsqueeze(-1)
        scale = ((temper * scale).square() + rest.unsqueeze(-1) * course.square().sum(0)).sqrt()
        return self.plain.in_uv(
            mean + known @ own.weight.mT @ own.course, scale, torch.cat([unsure, temper * factors], 1), stimulus
        )

    def _like(self, like: Tensor) -> "ResidualForecaster":
        """The same with the correction in another dtype; the network minds its own."""
        own = {name: value.to(like) for name, value in self._tensors().items()}
        return ResidualForecaster(self.plain, map_tensors(self.landmarks, lambda x: x.to(like)), **own)

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("plain", "landmarks")}

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        config, tensors = self.plain.export()
        tensors = {f"plain.{name}": value for name, value in tensors.items()}
        tensors |= {f"landmarks.{f.name}": getattr(self.landmarks, f.name) for f in fields(Landmarks)}
        return config, tensors | self._tensors()

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "ResidualForecaster":
        """See Saveable."""
        plain = FoundationForecaster.restore(config, named_under(tensors, "plain."))
        own = {name: value for name, value in tensors.items() if "." not in name}
        return cls(plain, Landmarks(**named_under(tensors, "landmarks.")), **own)


def fit_ieeg_residual(plain: FoundationForecaster, *, seed: int = 0, folds: int = 5) -> ResidualForecaster:
    """The correction of a foundation forecaster, learnt from its own past trials, each forecast without itself.

    Args:
        plain: With the patient's trials in context, as many as there are.
        seed: Of folds and landmarks.
        folds: In how many parts the trials are cut; each part is forecast with the others in context.

    Returns:
        The corrected forecaster, with the newest 64 trials in context.

    Raises:
        DataError: If there are fewer than four trials.
    """
    count = len(plain.past.numbers)
    if count < 4:
        raise DataError(f"a residual needs at least 4 trials, got {count}; use the network with its context alone.")
    parts = [_left_over(plain, part) for part in folds_of(count, min(folds, count), seed)]
    rows = _Rows(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(_Rows)})
    kept = replace(plain, past=plain.past.pick(slice(max(0, count - MOST_PAST), None)))
    return _fitted(kept, rows, seed)


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
    """Of each trial and channel: features, what is left over in units of spread, and the forecast's doubt of it."""

    feature: Float[Tensor, "trial channel feature"]
    residual: Float[Tensor, "trial channel time"]
    scale: Float[Tensor, "trial channel time"]
    good: Bool[Tensor, "trial channel time"]

    @property
    def unit(self) -> Float[Tensor, "trial channel 1"]:
        """The doubt over the whole window."""
        return self.scale.square().mean(-1, keepdim=True).sqrt()


@torch.no_grad()
def _left_over(plain: FoundationForecaster, held: Tensor) -> _Rows:
    """Residuals of some past trials with the newest of the others in context."""
    others, asked = others_of(len(plain.past.numbers), held)[-MOST_PAST:], plain.past.pick(held)
    answer = answered(plain, plain.model.weights, plain.past.pick(others), asked)
    names = ("mean", "log_scale", "factors", "statistics", "token")
    answer = replace(answer, **{name: getattr(answer, name)[0].double() for name in names})
    mean, scale, factors = plain.told(answer)
    lead = plain.window.lead
    good = asked.good[..., lead:]
    residual = torch.where(good, asked.response[..., lead:] - mean, 0.0)
    total = (scale.square() + factors.square().sum(1)).sqrt()
    return _Rows(_features(answer.token, asked.numbers, asked.senses), residual, total, good)


def _features(token: Tensor, numbers: Tensor, senses: Tensor) -> Float[Tensor, "row channel feature"]:
    told = torch.cat([numbers, senses], -1).unsqueeze(-2).expand(*token.shape[:-1], -1)
    return torch.cat([token, told.to(token)], -1)


def _fitted(plain: FoundationForecaster, rows: _Rows, seed: int) -> ResidualForecaster:
    weight = (rows.good.any(-1, keepdim=True) / rows.unit).squeeze(-1)
    landmarks = landmarks_of(rows.feature, weight, seed)
    known, moment = landmarks.known(rows.feature) * weight.unsqueeze(-1), landmarks.moment
    wave = _waves(rows.residual.shape[-1], plain.window.rate_hz, rows.residual)
    size = rows.residual / rows.unit @ wave.mT / wave.shape[-1]
    ridge, left = best_ridge(known, moment, size)
    direction, share = _courses(size, left)
    size, left, course = size @ direction.mT, left @ direction.mT, direction @ wave
    noise = shared_noise(known, moment, left, ridge).sqrt()
    doubt, prior = 1 / (moment + ridge), moment.new_tensor(1 / ridge)
    shared, rest = _doubts(landmarks.known(rows.feature), doubt, prior, probe := _probes(known, doubt))
    variance = (shared.square().sum(-1) + rest).unsqueeze(-1) * (noise.unsqueeze(-1) * course).square().sum(0)
    off = rows.residual - rows.unit * ((size - left) * share @ course)
    pulled = share.unsqueeze(-1) * torch.einsum("ncd,ncp->pd", known, size) * doubt
    parts = (pulled, doubt, prior, noise, course, probe, _temper(off, variance, rows))
    single = (value.float().contiguous() for value in parts)
    return ResidualForecaster(plain, map_tensors(landmarks, lambda x: x.float().contiguous()), *single)


def _waves(samples: int, rate_hz: float, like: Tensor) -> Float[Tensor, "wave time"]:
    """Cosines of the window, each of mean square 1."""
    count = max(1, min(samples, math.ceil(2 * _HIGHEST_HZ * samples / rate_hz)))
    time = (torch.arange(samples, dtype=like.dtype) + 0.5) / samples
    wave = (math.pi * torch.arange(count, dtype=like.dtype).unsqueeze(-1) * time).cos() * math.sqrt(2)
    return torch.cat([torch.ones_like(wave[:1]), wave[1:]])


def _courses(size: Tensor, left: Tensor) -> tuple[Float[Tensor, "course wave"], Float[Tensor, " course"]]:
    """Courses along which left-out predictions and the truth agree, and the share of a prediction that holds.

    The share is the slope of the truth on the left-out prediction, between 0 and 1. Without it the correction made
    single patients' forecasts worse by more than it mended others'.
    """
    agreed = torch.einsum("ncm,nck->mk", size - left, size)
    strength, direction = torch.linalg.eigh((agreed + agreed.mT) / 2)
    kept = direction.flip(-1)[:, :_COURSES].mT[strength.flip(-1)[:_COURSES] > 0]
    truth, told = size @ kept.mT, (size - left) @ kept.mT
    share = (truth * told).sum((0, 1)) / told.square().sum((0, 1)).clamp_min(1e-12)
    return kept, share.clamp(0, 1)


def _probes(known: Tensor, doubt: Tensor) -> Float[Tensor, "channel probe"]:
    """Patterns over channels along which the doubt is largest on average."""
    _, pattern = torch.linalg.eigh(torch.einsum("ncd,ned,d->ce", known, known, doubt))
    leading: Tensor = pattern.flip(-1)[:, :_PROBES]
    return leading


def _doubts(known: Tensor, doubt: Tensor, prior: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Doubt of each channel, as factors that channels share and the variance that is left to each.

    The factors are the covariance's Nystroem approximation along the probes, so what is left is never negative.
    """
    read = (known * doubt) @ (known.mT @ probe)  # covariance times probe, [row, channel, probe]
    inner = probe.mT @ read
    small = 1e-4 * inner.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + 1e-12
    root = torch.linalg.cholesky(inner + small * torch.eye(inner.shape[-1]).to(inner))
    shared = torch.linalg.solve_triangular(root, read.mT, upper=False).mT
    square = known.square()
    unknown = (1 - square.sum(-1)).clamp_min(0) * prior
    return shared, ((square @ doubt) - shared.square().sum(-1)).clamp_min(0) + unknown


def _temper(off: Tensor, variance: Tensor, rows: _Rows) -> Float[Tensor, " channel"]:
    """How much larger the noise is than the network says: trials of the channel and of all, against its own word."""
    square = (off.square() - variance) / rows.scale.square() * rows.good
    seen = rows.good.sum((0, 2))
    count = seen / rows.good.shape[-1]  # trials of each channel
    pooled = (_PRIOR_TRIALS + len(off) * square.sum() / seen.sum().clamp_min(1)) / (_PRIOR_TRIALS + len(off))
    each = (_PRIOR_TRIALS * pooled + count * square.sum((0, 2)) / seen.clamp_min(1)) / (_PRIOR_TRIALS + count)
    return each.clamp(0.04, 25.0).sqrt()
