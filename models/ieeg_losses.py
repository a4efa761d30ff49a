"""What pretraining rewards: likelihood of windows, effects between branches, ongoing activity, band powers.

forecast        Gaussian likelihood of each sample, its variance that of scale and factors together, weighted by the
                standard deviation so that quiet channels do not rule (Seitzer et al., ICLR 2022, beta of 0.5), each
                patient counting as much as another
joint           likelihood of whole windows, which teaches the factors
effect          squared error of the difference between two branches on the same state and noise, which no noise
                blurs, as a share of the patient's effect, of which one more and the logarithm count; what a small
                change of the stimulus does counts as much as what the whole stimulus does
change          the same for the stimulus and the one near it, window by window: each small change counts as much as
                another, so those of frequency are not drowned by those of site
size            the same for the logarithm of how large an effect is, of the stimulus beside the one near it: what turns
                with frequency is mostly when an answer comes, and a search asks how large it is
ongoing         likelihood of the next patch
statistics      likelihood of each band's log power in the window
own             energy score of the last patches of a context, rolled out on the network's own samples (Gneiting and
                Raftery, JASA 102 (2007) 359-378)
"""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.tensors import generator, map_tensors

from .ieeg_answer import Answer
from .ieeg_batches import Batch
from .ieeg_subject import BANDS_HZ
from .ieeg_transformer import IeegTransformer
from .ieeg_waves import WHOLE

_BETA = 0.5
_SMALL = 0.02  # of effects, in squared units of spread
_SLIGHT = 0.01  # of squared logarithms: a tenth larger or smaller
_ROLLED, _ROLLED_CONTEXTS = 3, 2  # patches at the end of a context, and contexts of each patient: it costs time
_FLOOR = 1e-3  # of log power, in squared units of spread


@dataclass(frozen=True)
class Weights:
    """How much each loss counts; zero leaves it out."""

    forecast: float = 1.0
    joint: float = 0.2
    effect: float = 1.0
    change: float = 0.0
    size: float = 0.0
    ongoing: float = 0.1
    statistics: float = 0.05
    own: float = 0.05


def losses(
    network: IeegTransformer, batch: Batch, *, full: bool | None = None, seed: int = 0
) -> tuple[Answer, dict[str, Tensor]]:
    """The network's answer to a batch, and every loss of it.

    Args:
        network: In training.
        batch: See `draw_batch`.
        full: See the network.
        seed: Of the network's own samples.
    """
    answer = network(batch.subject, batch.past, batch.asked, batch.rate_hz, full=full)
    with torch.autocast(batch.truth.device.type, enabled=False):  # likelihoods need more digits than half precision has
        return answer, _losses(network, answer, batch, seed)


def _losses(network: IeegTransformer, answer: Answer, batch: Batch, seed: int) -> dict[str, Tensor]:
    answer = map_tensors(answer, lambda x: x.to(batch.truth))
    there = batch.good & batch.subject.there.unsqueeze(1).unsqueeze(-1)
    found = {
        "forecast": forecast_loss(answer, batch.truth, there),
        "joint": joint_loss(answer, batch.truth, there),
        "ongoing": _ongoing_loss(network, answer, batch),
        "statistics": _statistics_loss(answer, batch.truth, there, batch.rate_hz),
    }
    patch = answer.ongoing.patch
    if patch.shape[2] > 1:
        found["own"] = _own_loss(network, batch, patch, seed)
    if batch.branches > 1:
        found["effect"] = effect_loss(answer.mean, batch.truth, there, batch.branches)
        found["change"] = change_loss(answer.mean, batch.truth, there, batch.branches)
        found["size"] = size_loss(answer.mean, batch.truth, there, batch.branches)
    return found


def total(found: dict[str, Tensor], weights: Weights) -> Tensor:
    """Their weighted sum."""
    parts = [getattr(weights, f.name) * found[f.name] for f in fields(Weights) if f.name in found]
    return torch.stack(parts).sum()


def forecast_loss(answer: Answer, truth: Tensor, there: Bool[Tensor, "..."]) -> Tensor:
    """Negative log likelihood per sample, weighted by the standard deviation that was forecast."""
    variance = (2 * answer.log_scale).exp() + answer.factors.square().sum(2)
    each = (variance.log() + (truth - answer.mean).square() / variance) / 2
    weight = variance.detach() ** _BETA
    return _mean(each * weight / weight.mean((1, 2, 3), keepdim=True), there)


def joint_loss(answer: Answer, truth: Tensor, there: Bool[Tensor, "..."]) -> Tensor:
    """Negative log likelihood of whole windows per sample, by the determinant lemma over the few factors."""
    precision = (-2 * answer.log_scale).exp() * there
    error = (truth - answer.mean) * there
    factor = answer.factors.flatten(3)  # [patient, window, factor, channel x time]
    weighted = factor * precision.flatten(2).unsqueeze(2)
    inner = weighted @ factor.mT + torch.eye(factor.shape[2]).to(factor)
    root = torch.linalg.cholesky(inner)
    seen = torch.linalg.solve_triangular(root, (weighted @ error.flatten(2).unsqueeze(-1)), upper=False)
    distance = (error.square() * precision).sum((-2, -1)) - seen.square().sum((-2, -1))
    size = 2 * (answer.log_scale * there).sum((-2, -1)) + 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    mean: Tensor = ((distance + size) / 2 / there.sum((-2, -1)).clamp_min(1)).mean()
    return mean


def effect_loss(mean: Tensor, truth: Tensor, there: Bool[Tensor, "..."], branches: int) -> Tensor:
    """Error of the differences between the first branch and the others, as a share of each patient's own."""
    told, true, good = (x.unflatten(1, (-1, branches)) for x in (mean, truth, there))
    both = good[:, :, :1] & good[:, :, 1:]
    wanted = (true[:, :, :1] - true[:, :, 1:]) * both
    error = (told[:, :, :1] - told[:, :, 1:]) * both - wanted
    share = error.square().mean((1, 3, 4)) / (wanted.square().mean((1, 3, 4)) + _SMALL)  # [patient, branch]
    mean_share: Tensor = share.log1p().mean()  # nobody whom nothing moves, but whom a forecast moves, rules the batch
    return mean_share


def change_loss(mean: Tensor, truth: Tensor, there: Bool[Tensor, "..."], branches: int) -> Tensor:
    """Error of the difference between a stimulus and the one near it, as a share of each window's own."""
    told, true, good = (x.unflatten(1, (-1, branches)) for x in (mean, truth, there))
    both = good[:, :, 0] & good[:, :, 1]
    wanted = (true[:, :, 0] - true[:, :, 1]) * both
    error = (told[:, :, 0] - told[:, :, 1]) * both - wanted
    share = error.square().mean((2, 3)) / (wanted.square().mean((2, 3)) + _SMALL)  # [patient, window]
    mean_share: Tensor = share.log1p().mean()
    return mean_share


def size_loss(mean: Tensor, truth: Tensor, there: Bool[Tensor, "..."], branches: int) -> Tensor:
    """Error of how much larger the effect of a stimulus is than that of the one near it, as a share of each window's.

    The last branch is the one without a stimulus.
    """
    good = there.unflatten(1, (-1, branches))
    both = good.all(2).to(truth)

    def larger(signal: Tensor) -> Tensor:
        played = signal.unflatten(1, (-1, branches))
        effect = (played[:, :, :2] - played[:, :, -1:]) * both.unsqueeze(2)
        square = (effect - effect.mean(-1, keepdim=True)).square().mean((-2, -1))
        ratio: Tensor = ((square[..., 0] + _SMALL) / (square[..., 1] + _SMALL)).log() / 2  # of root mean squares
        return ratio  # [patient, window]

    wanted = larger(truth)
    mean_share: Tensor = ((larger(mean) - wanted).square() / (wanted.square() + _SLIGHT)).log1p().mean()
    return mean_share


def _ongoing_loss(network: IeegTransformer, answer: Answer, batch: Batch) -> Tensor:
    mean, log_scale = network.following(answer.ongoing)
    error = answer.ongoing.patch[:, :, 1:] - mean[:, :, :-1]
    log_scale = log_scale[:, :, :-1]
    each = log_scale + (error * (-log_scale).exp()).square() / 2
    known = (batch.subject.heard & batch.subject.there).repeat_interleave(batch.asked.context.shape[1], 0)
    return _mean(each, known[..., None, None].expand_as(each))


def _own_loss(network: IeegTransformer, batch: Batch, patch: Tensor, seed: int) -> Tensor:
    contexts = batch.asked.context.shape[1]
    some = patch.unflatten(0, (-1, contexts))[:, :_ROLLED_CONTEXTS].flatten(0, 1)
    where, there = network.standing(batch.subject).to(patch), batch.subject.heard & batch.subject.there
    where, there = (x.repeat_interleave(min(contexts, _ROLLED_CONTEXTS), 0) for x in (where, there))
    kept = max(1, patch.shape[2] - _ROLLED)
    return own_samples_loss(network, where, some, kept, generator(seed, "own samples"), there)


def own_samples_loss(
    network: IeegTransformer,
    where: Float[Tensor, "#row channel width"],
    patch: Float[Tensor, "row channel patch wave"],
    kept: int,
    source: torch.Generator,
    there: Bool[Tensor, "#row channel"] | None = None,
) -> Float[Tensor, ""]:
    """Energy score of patches rolled out on the network's own samples: a proper score, so lowest for the true law.

    Differentiable in the network through every drawn patch. Likelihood alone teaches one step on recorded pasts; this
    teaches what the network's own pasts lead to.

    Args:
        network: In training.
        where: See `follow`.
        patch: Recorded patches, good throughout.
        kept: How many of them are given; the others are rolled out.
        source: Draws two roll-outs.
        there: See `follow`.

    Raises:
        ConfigError: If nothing is given or nothing left to roll out.
    """
    if not 0 < kept < patch.shape[2]:
        raise ConfigError(f"kept is {kept} of {patch.shape[2]} patches; give 1 or more and leave 1 or more.")
    truth, whole = patch[:, :, kept:], torch.full_like(patch[..., :1], WHOLE)
    rolled = []

    def drawn(token: Tensor) -> Tensor:
        noise = torch.randn(patch[:, :, :1].shape, generator=source, device=source.device)
        return network.drawn(token, noise.to(patch))

    for _ in range(2):
        token, memory = network.follow(where, patch[:, :, :kept], whole[:, :, :kept], None, there)
        parts = [drawn(token)]
        while len(parts) < truth.shape[2]:
            token, memory = network.follow(where, parts[-1], whole[:, :, :1], memory, there)
            parts.append(drawn(token))
        rolled.append(torch.cat(parts, 2))
    one, two = rolled
    each = (_size(one - truth) + _size(two - truth) - _size(one - two)) / 2  # [row, channel]
    return each.mean() if there is None else (each * there).sum() / there.expand_as(each).sum().clamp_min(1)


def _statistics_loss(answer: Answer, truth: Tensor, there: Tensor, rate_hz: float) -> Tensor:
    power, known = band_log_power(truth * there, rate_hz)
    mean, log_spread = answer.statistics.unbind(-1)
    log_spread = 2 * torch.tanh(log_spread / 2)
    each = log_spread + ((power - mean) * (-log_spread).exp()).square() / 2
    return _mean(each, there.all(-1, keepdim=True) & known)


def band_log_power(signal: Float[Tensor, "*batch time"], rate_hz: float) -> tuple[Tensor, Tensor]:
    """Log power of the classic bands in a window, `[*batch, band]`, and which of them such a window resolves."""
    samples = signal.shape[-1]
    taper = torch.hann_window(samples, dtype=signal.dtype, device=signal.device)
    power = torch.fft.rfft((signal - signal.mean(-1, keepdim=True)) * taper).abs().square() / samples
    frequency = torch.fft.rfftfreq(samples, 1 / rate_hz, device=signal.device)
    within = torch.stack([(frequency >= low) & (frequency < high) for low, high in BANDS_HZ]).to(signal)
    share = within / within.sum(-1, keepdim=True).clamp_min(1)
    return (power @ share.mT + _FLOOR).log() / math.log(10), within.any(-1)


def _mean(each: Tensor, there: Tensor) -> Tensor:
    return (each * there).sum() / there.expand_as(each).sum().clamp_min(1)


def _size(patch: Float[Tensor, "row channel patch wave"]) -> Float[Tensor, "row channel"]:
    """Euclidean norm, per number; smooth at zero."""
    return (patch.square().mean((-2, -1)) + 1e-12).sqrt()
