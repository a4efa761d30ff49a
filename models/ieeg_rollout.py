"""Ongoing activity rolled out patch by patch, each new patch drawn from what the network makes of its own last ones.

    rolled = roll_out(forecaster, rest[:1], 60.0, generator(0, "roll"), n=8)
    roll_out_drift(rolled, rest)          # does it stay what the patient's rest is?

Keys and values over time are kept, so a new patch costs one patch, whatever went before. Attention looks back on 16
patches, itself included. Errors feed on themselves: a patch with more energy than any of the context's by a stated factor
is pulled back to that much, and how often that happened is told.

Patches are written in cosines to 80 Hz and drawn channel by channel: faster activity, and what channels share
beyond what their pasts tell, are not in a roll-out.

References: Shazeer 2019, arXiv:1911.02150 (kept keys and values); Gneiting and Raftery, JASA 102 (2007) 359-378 (energy
score).
"""

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from stimopt.errors import ConfigError, DataError, ShapeError
from stimopt.features import power_spectrum
from stimopt.forecaster import Context
from stimopt.response import Response

from .ieeg_foundation import FoundationForecaster
from .ieeg_subject import BANDS_HZ, joined_subjects
from .ieeg_transformer import LONGEST, PATCH_S, IeegTransformer, Ongoing, patches, unpatched

MOST_ENERGY = 4.0  # times the largest patch of the context: twice its size, which rest hardly ever reaches
_WHOLE = 2.0  # what `patches` makes of a patch that is good throughout: the mean is counted twice


@dataclass(frozen=True)
class Memory:
    """Keys and values over time, one pair a layer, oldest patch first: all that the next patch needs of the past."""

    keys: tuple[Float[Tensor, "row channel head patch feature"], ...] = ()
    values: tuple[Float[Tensor, "row channel head patch feature"], ...] = ()


def follow(
    network: IeegTransformer,
    where: Float[Tensor, "#row channel width"],
    patch: Float[Tensor, "row channel patch wave"],
    share: Float[Tensor, "row channel patch 1"],
    memory: Memory | None = None,
    there: Bool[Tensor, "#row channel"] | None = None,
) -> tuple[Float[Tensor, "row channel patch width"], Memory]:
    """Tokens of patches that follow those in memory, and the memory after them.

    As the network's own ongoing stage as long as there are no more than 16 patches; beyond, each layer looks back on 16.

    Args:
        network: Whose ongoing stage it is.
        where: What is known of each channel, see `standing`.
        patch: New patches in cosines.
        share: How much of each is good, in its first cosine.
        memory: Of what went before; None where nothing did.
        there: Which channels are no padding; all by default.
    """
    token: Tensor = network.patch(torch.cat([patch, share], -1)) + where.unsqueeze(2)
    hubs = network.hubs_ongoing.expand(token.shape[0], token.shape[2], -1, -1)  # [row, patch, hub, width]
    padding = None if there is None else _hidden(~there, token)[:, None, None, None, :]
    before, keys, values = memory or Memory(), [], []
    stages = zip(network.through_time, network.through_hubs, network.patch_maps, strict=True)
    for layer, (time, space, change) in enumerate(stages):
        query, key = time.pairs(token, token)
        value = time.value(_normed(token)).unflatten(-1, (network.size.heads, -1)).transpose(-3, -2)
        if before.keys:
            key = torch.cat([before.keys[layer], key], -2)
            value = torch.cat([before.values[layer], value], -2)
        heard = F.scaled_dot_product_attention(query, key, value, attn_mask=_lateness(query, key))
        token = token + time.out(heard.transpose(-3, -2).flatten(-2))
        by_patch = token.transpose(1, 2)
        hubs = hubs + space(hubs, by_patch, padding)
        token = token + space(by_patch, hubs, None).transpose(1, 2)
        token = token + change(_normed(token))
        keys.append(key[..., max(0, key.shape[-2] - LONGEST + 1) :, :])
        values.append(value[..., max(0, value.shape[-2] - LONGEST + 1) :, :])
    return token, Memory(tuple(keys), tuple(values))


def standing(network: IeegTransformer, forecaster: FoundationForecaster) -> Float[Tensor, "1 channel width"]:
    """What the ongoing stage knows of a patient's channels before any signal: place, kind and rest."""
    subject = joined_subjects([forecaster.subject])
    where: Tensor = network.where_ongoing(network._where(subject).to(network.hubs_ongoing))
    return where


def roll_out(
    forecaster: FoundationForecaster, context: Context, seconds: float, generator: torch.Generator, n: int = 1, *,
    most_energy: float = MOST_ENERGY,
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
    where = standing(network, forecaster)
    patch, share = _read(forecaster, context)
    largest = _energy(patch, rate_hz).amax((0, 2)).clamp_min(1.0)  # [channel]
    patch, share = (x.repeat(n, 1, 1, 1) for x in (patch, share))
    drawn, pulled = _drawn(
        network, where, patch, share, round(seconds * rate_hz), rate_hz, most_energy * largest, generator
    )
    unit, middle = (x.to(drawn).unsqueeze(-1) for x in (forecaster.subject.spread_uv, forecaster.subject.rest_uv))
    signal_uv = middle + unit * drawn[..., : round(seconds * rate_hz)]
    outcomes = {"pulled_back": pulled.reshape(n, *batch)}
    return Response(context.montage, signal_uv.reshape(n, *batch, *signal_uv.shape[-2:]), rate_hz, 0.0, outcomes)


def _drawn(
    network: IeegTransformer, where: Tensor, patch: Tensor, share: Tensor, samples: int, rate_hz: float,
    most: Float[Tensor, " channel"], generator: torch.Generator,
) -> tuple[Float[Tensor, "row channel time"], Float[Tensor, " row"]]:  # fmt: skip
    """Samples in units of spread, and the share of patches that were shrunk."""
    length = max(2, round(PATCH_S * rate_hz))
    token, memory = follow(network, where, patch, share)
    whole, last, pulled, parts = torch.full_like(share[:, :, -1:], _WHOLE), patch[:, :, -1:], [], []
    for _ in range(math.ceil(samples / length)):
        last = _next(network, token, last, generator)
        last = last * (torch.arange(last.shape[-1], device=last.device) < length)  # slow rates resolve fewer
        size = (most.unsqueeze(-1) / _energy(last, rate_hz).clamp_min(1e-12)).sqrt().clamp_max(1.0)
        last = last * size.unsqueeze(-1)
        pulled.append((size < 1).to(size).mean((1, 2)))
        parts.append(last)
        token, memory = follow(network, where, last, whole, memory)
    return unpatched(torch.cat(parts, 2), rate_hz).flatten(2), torch.stack(pulled).mean(0)


def _next(network: IeegTransformer, token: Tensor, patch: Tensor, generator: torch.Generator) -> Tensor:
    """A draw of the patch after the last token."""
    mean, log_scale = network.following(Ongoing(token[:, :, -1:], patch))
    noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64, device=generator.device)
    drawn: Tensor = mean + log_scale.exp() * noise.to(mean)
    return drawn


def own_samples_loss(
    network: IeegTransformer,
    where: Float[Tensor, "#row channel width"],
    patch: Float[Tensor, "row channel patch wave"],
    kept: int,
    generator: torch.Generator,
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
        generator: Draws two roll-outs.
        there: See `follow`.

    Raises:
        ConfigError: If nothing is given or nothing left to roll out.
    """
    if not 0 < kept < patch.shape[2]:
        raise ConfigError(f"kept is {kept} of {patch.shape[2]} patches; give 1 or more and leave 1 or more.")
    truth, whole = patch[:, :, kept:], torch.full_like(patch[..., :1], _WHOLE)
    rolled = []
    for _ in range(2):
        token, memory = follow(network, where, patch[:, :, :kept], whole[:, :, :kept], None, there)
        parts = [_next(network, token, patch[:, :, :1], generator)]
        while len(parts) < truth.shape[2]:
            token, memory = follow(network, where, parts[-1], whole[:, :, :1], memory, there)
            parts.append(_next(network, token, parts[-1], generator))
        rolled.append(torch.cat(parts, 2))
    one, two = rolled
    each = (_size(one - truth) + _size(two - truth) - _size(one - two)) / 2  # [row, channel]
    return each.mean() if there is None else (each * there).sum() / there.expand_as(each).sum().clamp_min(1)


def roll_out_drift(rolled: Response, rest: Context) -> dict[str, float]:
    """How a roll-out's energy grows and its spectrum leaves that of rest, bands 1 to 70 Hz as far as the rate reaches.

    The roll-out is cut into windows of the length of those of rest. Medians over channels of energies; root mean squares
    over channels and bands of differences of the logarithm of band power.

    Args:
        rolled: See `roll_out`, at least 6 windows long.
        rest: Windows without stimulation `[window, channel, time]`, at least 2, uV.

    Returns:
        growth_db_per_min: Slope of the energy over the roll-out.
        energy_db: Energy of its last third over that of rest.
        spectrum_drift: Of its last third from its first, decades.
        spectrum_error: Of its last third from rest, decades.
        rest_drift: Of the second half of the windows of rest from the first, decades: what rest itself does.
        within_rest: Share of channels and bands whose power in the last third is between the least and the largest of
            rest's windows.
        pulled_back: Share of patches that were shrunk, if the roll-out tells it.

    Raises:
        ShapeError: If either is too short or rates differ.
    """
    length = rest.signal_uv.shape[-1]
    count = rolled.signal_uv.shape[-1] // length
    if rolled.rate_hz != rest.rate_hz or count < 6 or rest.signal_uv.shape[:-2].numel() < 2:
        raise ShapeError(
            f"the roll-out holds {count} windows of {length} samples at {rolled.rate_hz} Hz, rest "
            f"{rest.signal_uv.shape[:-2].numel()} at {rest.rate_hz} Hz; give 6 and 2 windows or more at one rate."
        )
    cut = rolled.signal_uv[..., : count * length].unflatten(-1, (count, length)).movedim(-2, 0).flatten(1, -3)
    power, energy = _bands(cut, rolled)  # [window, channel, band], [window, channel]
    own, own_energy = _bands(rest.signal_uv.reshape(-1, 1, *rest.signal_uv.shape[-2:]), rolled)
    third, half = count // 3, len(own) // 2
    minutes = torch.arange(count).to(energy) * length / rest.rate_hz / 60
    late = minutes - minutes.mean()
    slope = (late @ (10 * energy.log10())) / late.square().sum()
    last = power[-third:].mean(0).log10()
    inside = (last >= own.amin(0).log10()) & (last <= own.amax(0).log10())
    found = {
        "growth_db_per_min": slope.median(),
        "energy_db": (10 * (energy[-third:].mean(0) / own_energy.mean(0)).log10()).median(),
        "spectrum_drift": _rms(last - power[:third].mean(0).log10()),
        "spectrum_error": _rms(last - own.mean(0).log10()),
        "rest_drift": _rms(own[half:].mean(0).log10() - own[:half].mean(0).log10()),
        "within_rest": inside.double().mean(),
    }
    if "pulled_back" in rolled.outcomes:
        found["pulled_back"] = rolled.outcomes["pulled_back"].mean()
    return {name: float(value) for name, value in found.items()}


def _bands(signal: Float[Tensor, "window row channel time"], like: Response) -> tuple[Tensor, Tensor]:
    """Power of each band and energy about the mean, means over rows, uV^2."""
    frequency, density = power_spectrum(Response(like.montage, signal, like.rate_hz))
    within = [(frequency >= low) & (frequency < high) for low, high in BANDS_HZ if high <= like.rate_hz / 2]
    power = torch.stack([density[..., band].sum(-1) * frequency[1] for band in within if bool(band.any())], -1)
    return power.mean(1).clamp_min(1e-12), signal.var(-1).mean(1).clamp_min(1e-12)


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
        raise ShapeError(f"context has other channels than the patient, or not {window.rate_hz} Hz; give the patient's.")
    if context.signal_uv.shape[-1] < max(2, round(PATCH_S * window.rate_hz)):
        raise ShapeError(f"context has {context.signal_uv.shape[-1]} samples; give {PATCH_S} s of signal or more.")
    if not bool(forecaster.subject.heard.all()):
        raise DataError("some channels are only asked for; their past is not known: roll out the recorded ones.")


def _energy(patch: Float[Tensor, "*batch wave"], rate_hz: float) -> Float[Tensor, "*batch"]:
    return unpatched(patch, rate_hz).square().mean(-1)


def _size(patch: Float[Tensor, "row channel patch wave"]) -> Float[Tensor, "row channel"]:
    """Euclidean norm, per number; smooth at zero."""
    return (patch.square().mean((-2, -1)) + 1e-12).sqrt()


def _lateness(query: Tensor, key: Tensor) -> Float[Tensor, "head to from"]:
    """The network's attention back in time, over 16 patches and no more."""
    late = torch.arange(key.shape[-2], device=key.device)
    back = late[late.shape[0] - query.shape[-2] :].unsqueeze(-1) - late
    pace = 2.0 ** -(2.0 * torch.arange(query.shape[-3], dtype=query.dtype, device=query.device))
    return torch.where((back < 0) | (back >= LONGEST), -math.inf, -pace.reshape(-1, 1, 1) * back)


def _hidden(hidden: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill(hidden, -math.inf)


def _normed(token: Tensor) -> Tensor:
    return F.layer_norm(token, token.shape[-1:])


def _rms(value: Tensor) -> Tensor:
    return value.square().mean().sqrt()
