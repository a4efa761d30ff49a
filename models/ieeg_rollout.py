"""Ongoing activity rolled out patch by patch, each new patch drawn from what the network makes of its own last ones.

    rolled = roll_out(forecaster, rest[:1], 60.0, generator(0, "roll"), n=8)
    roll_out_drift(rolled, rest)          # does it stay what the patient's rest is?

A new patch costs one patch, whatever went before. Errors feed on themselves: a patch with more energy than any of the
context's by a stated factor is pulled back to that much, and how often that happened is told.

Patches are written in cosines to 80 Hz; faster activity is not in a roll-out. The network gives each cosine a scale of
its own. What its misses have in common, between the cosines of a patch and between channels, is taken in closed form
from rest where that is given: without it edges of patches and channels know nothing of each other.
"""

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from stimopt.errors import ConfigError, DataError, ShapeError
from stimopt.forecaster import Context
from stimopt.response import Response

from .ieeg_answer import Ongoing
from .ieeg_foundation import FoundationForecaster
from .ieeg_subject import joined_subjects
from .ieeg_transformer import LONGEST, IeegTransformer
from .ieeg_waves import PATCH_S, WHOLE, patch_samples, patches, unpatched

MOST_ENERGY = 4.0  # times the largest patch of the context: twice its size, which rest hardly ever reaches


@dataclass(frozen=True)
class Noise:
    """Standard noise of patches, every row its own.

    Attributes:
        source: Draws it.
        waves: Root of the covariance between cosines; None for independent ones. Cosines beyond it get nothing.
        channels: Root of the correlation between channels; None for independent ones.
    """

    source: torch.Generator
    waves: Float[Tensor, "wave wave"] | None = None
    channels: Float[Tensor, "channel channel"] | None = None

    def like(self, patch: Float[Tensor, "row channel patch wave"]) -> Float[Tensor, "row channel patch wave"]:
        """Noise of the shape, dtype and device of these patches."""
        noise = torch.randn(patch.shape, generator=self.source, dtype=torch.float64, device=self.source.device)
        if self.waves is not None:
            known = self.waves.shape[-1]
            noise = F.pad(noise[..., :known] @ self.waves.to(noise).mT, (0, patch.shape[-1] - known))
        if self.channels is not None:
            noise = torch.einsum("cd,rdpw->rcpw", self.channels.to(noise), noise)
        return noise.to(patch)


def roll_out(
    forecaster: FoundationForecaster, context: Context, seconds: float, generator: torch.Generator, n: int = 1, *,
    rest: Context | None = None, most_energy: float = MOST_ENERGY,
) -> Response:  # fmt: skip
    """Ongoing activity after a context, drawn patch by patch, nothing being stimulated.

    What is drawn is imagined: it is what the model takes for this patient's rest. Follows the dtype and device of the
    context; gradients pass to it.

    Args:
        forecaster: Of the patient.
        context: `[*batch, channel, time]` of at least one patch (0.1 s); its newest 1.6 s are read. Samples that are
            not finite count as bad.
        seconds: How long.
        generator: Draws the noise, its own for every sample and row.
        n: Samples.
        rest: Windows `[window, channel, time]` of the same patient, of two patches or more, whose misses shape the
            noise; without them every cosine of every channel is drawn on its own.
        most_energy: A patch with more mean square than this many times the largest of the channel's patches of
            context (or than this many times the square of its spread, where those are smaller) is shrunk to that.
            `math.inf` never does.

    Returns:
        Signals in uV, `[sample, *batch, channel, time]`, from the context's end; the outcome `pulled_back` is the share
        of patches that were shrunk.

    Raises:
        ConfigError: If seconds, samples or the factor are not positive.
        ShapeError: If the context is of other channels or rate, or shorter than a patch.
        DataError: If the patient has channels that are not recorded.
    """
    if not (seconds > 0 and n >= 1 and most_energy > 0):
        raise ConfigError(f"seconds {seconds}, n {n} and most_energy {most_energy} must all be positive.")
    _require_fitting(forecaster, context)
    batch, rate_hz = context.signal_uv.shape[:-2], context.rate_hz
    network = copy.deepcopy(forecaster.model.network).to(context.signal_uv)
    where = network.standing(joined_subjects([forecaster.subject]))
    patch, share = _read(forecaster, context)
    noise = Noise(generator) if rest is None else shaped_noise(forecaster, network, rest, generator)
    most = most_energy * _energy(patch).amax((0, 2)).clamp_min(1.0)  # [channel]
    patch, share = (x.repeat(n, 1, 1, 1) for x in (patch, share))
    drawn, pulled = _drawn(network, where, patch, share, round(seconds * rate_hz), rate_hz, most, noise)
    unit, middle = (x.to(drawn).unsqueeze(-1) for x in (forecaster.subject.spread_uv, forecaster.subject.rest_uv))
    signal_uv = middle + unit * drawn[..., : round(seconds * rate_hz)]
    outcomes = {"pulled_back": pulled.reshape(n, *batch)}
    return Response(context.montage, signal_uv.reshape(n, *batch, *signal_uv.shape[-2:]), rate_hz, 0.0, outcomes)


def _drawn(
    network: IeegTransformer, where: Tensor, patch: Tensor, share: Tensor, samples: int, rate_hz: float,
    most: Float[Tensor, " channel"], noise: Noise,
) -> tuple[Float[Tensor, "row channel time"], Float[Tensor, " row"]]:  # fmt: skip
    """Samples in units of spread, and the share of patches that were shrunk."""
    length = patch_samples(rate_hz)
    token, memory = network.follow(where, patch, share)
    whole, last, pulled, parts = torch.full_like(share[:, :, -1:], WHOLE), patch[:, :, -1:], [], []
    for _ in range(math.ceil(samples / length)):
        last = network.drawn(token, noise.like(last))
        last = last * (torch.arange(last.shape[-1], device=last.device) < length)  # slow rates resolve fewer
        size = (most.unsqueeze(-1) / _energy(last).clamp_min(1e-12)).sqrt().clamp_max(1.0)
        last = last * size.unsqueeze(-1)
        pulled.append((size < 1).to(size).mean((1, 2)))
        parts.append(last)
        token, memory = network.follow(where, last, whole, memory)
    return unpatched(torch.cat(parts, 2), rate_hz).flatten(2), torch.stack(pulled).mean(0)


def shaped_noise(
    forecaster: FoundationForecaster, network: IeegTransformer, rest: Context, generator: torch.Generator
) -> Noise:
    """Noise shaped as what the network misses of rest, in units of the scale that it gave.

    One covariance between the cosines of a patch, for all channels, and one correlation between channels; each is
    drawn a tenth towards that of independent noise, since rest is short.

    Raises:
        ShapeError: If rest is of other channels or rate, or shorter than two patches.
    """
    _require_fitting(forecaster, rest)
    patch, share = _read(forecaster, rest)
    if patch.shape[2] < 2:
        raise ShapeError(f"rest windows have {rest.signal_uv.shape[-1]} samples; give {2 * PATCH_S} s or more.")
    token, _ = network.follow(network.standing(joined_subjects([forecaster.subject])).to(patch), patch, share)
    mean, log_scale = network.following(Ongoing(token, patch))
    missed = ((patch[:, :, 1:] - mean[:, :, :-1]) * (-log_scale[:, :, :-1]).exp()).movedim(1, -2)
    missed = missed[..., _resolved(missed, rest.rate_hz)].double().flatten(0, 1)  # [row x patch, channel, wave]
    waves = _shrunk(torch.einsum("rcw,rcv->wv", missed, missed) / missed[..., 0].numel())
    root = torch.linalg.cholesky(waves)
    white = torch.linalg.solve_triangular(root, missed.mT, upper=False)  # [row, wave, channel]
    between = _shrunk(torch.einsum("rwc,rwd->cd", white, white) / white[..., 0].numel())
    size = between.diagonal().rsqrt()
    return Noise(generator, root, torch.linalg.cholesky(between * size * size.unsqueeze(-1)))


def _shrunk(covariance: Tensor) -> Tensor:
    return 0.9 * covariance + 0.1 * covariance.diagonal().diag()


def _resolved(like: Tensor, rate_hz: float) -> slice:
    """Cosines that a patch at this rate has samples for."""
    return slice(0, min(like.shape[-1], patch_samples(rate_hz)))


def _read(forecaster: FoundationForecaster, context: Context) -> tuple[Tensor, Tensor]:
    """Patches of a context in units of spread `[row, channel, patch, wave]`, and how much of each is good."""
    signal = context.signal_uv.reshape(-1, *context.signal_uv.shape[-2:])
    known = signal.isfinite()
    unit, middle = (x.to(signal).unsqueeze(-1) for x in (forecaster.subject.spread_uv, forecaster.subject.rest_uv))
    scaled = torch.where(known, (signal - middle) / unit, 0.0)
    share = patches(known.to(signal), context.rate_hz, LONGEST)[..., :1]
    return patches(scaled, context.rate_hz, LONGEST), share


def _require_fitting(forecaster: FoundationForecaster, context: Context) -> None:
    window = forecaster.window
    if context.montage.channels != window.montage.channels or context.rate_hz != window.rate_hz:
        raise ShapeError(f"context is of other channels, or not at {window.rate_hz} Hz; give one of this patient.")
    if context.signal_uv.shape[-1] < patch_samples(window.rate_hz):
        raise ShapeError(f"context has {context.signal_uv.shape[-1]} samples; give {PATCH_S} s of signal or more.")
    if not bool(forecaster.subject.heard.all()):
        raise DataError("some channels are only asked for; their past is not known: roll out the recorded ones.")


def _energy(patch: Float[Tensor, "*batch wave"]) -> Float[Tensor, "*batch"]:
    """Mean square of a patch's samples; its cosines are orthogonal, and the first, the mean, was counted twice."""
    return patch.square().sum(-1) / 2 - patch[..., 0].square() / 4
