"""What a forecaster has learned of a brain, read by virtual experiments and never from attention maps.

Any Forecaster will do: single pulses at every site and the silence beside them give the effective connectivity that the
model believes in; pulses of many sizes give its dose-response curves; places give how effects fall with distance.

    effect = virtual_pulses(forecaster, rest, sites)                     # [site, channel], uV
    compare_connectivity(effect, played_pulses(twin, sites), distance)   # beside what the twin does
    monotonicity(dose_response(forecaster, rest, "A1-A2", doses))

All of it is what a model says. Only `played_pulses` is what a (simulated) patient does.

References: Keller et al., Phil Trans R Soc B 369 (2014) 20130528 (connectivity by single pulses).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from stimopt.errors import ConfigError, DataError, MontageError, ShapeError
from stimopt.forecaster import Context, Forecaster
from stimopt.montage import Montage
from stimopt.response import Response
from stimopt.stimulus import Stimulus, no_stimulus, pulse_train
from stimopt.system import System
from stimopt.tensors import concatenate, generator, map_tensors

PULSE_MA, PULSE_US = 4.0, 200.0  # in the middle of what mapping by single pulses delivers, 1 to 8 mA
BINS_MM = (20.0, 100.0)  # near: the same gyrus and shaft; far: another lobe or the other hemisphere
_AT_ONCE = 128  # stimuli times contexts


def virtual_pulses(
    forecaster: Forecaster, context: Context, sites: Sequence[str] | None = None, *,
    amplitude_ma: float = PULSE_MA, pulse_width_us: float = PULSE_US, from_s: float = 0.0,
) -> Float[Tensor, "site channel"]:  # fmt: skip
    """Effective connectivity that a forecaster believes in: root mean square of what a pulse at each site changes.

    The change is the mean forecast of a pulse less that of silence, mean over the contexts, in uV.

    Args:
        forecaster: Any.
        context: Windows at rest `[*window, channel, time]` to start from.
        sites: "A1" or "A1-A2"; by default all neighbouring pairs of contacts, or all contacts where there are none.
        amplitude_ma: Of the pulse; the first contact named is the cathode.
        pulse_width_us: Of a phase.
        from_s: Samples before are left out, such as those of the artefact.

    Raises:
        MontageError: If a site is not in the montage.
        ShapeError: If no sample is left.
    """
    names = site_names(context.montage, sites)
    pulses = [pulse_train(context.montage, s, amplitude_ma=amplitude_ma, pulse_width_us=pulse_width_us) for s in names]
    return _changes(forecaster, context, _joined(pulses), from_s)


def dose_response(
    forecaster: Forecaster, context: Context, site: str, amplitudes_ma: Sequence[float], *,
    pulse_width_us: float = PULSE_US, from_s: float = 0.0,
) -> Float[Tensor, "dose channel"]:  # fmt: skip
    """Root mean square of what single pulses of several currents at one site change, in uV; see `virtual_pulses`."""
    doses = [pulse_train(context.montage, site, amplitude_ma=a, pulse_width_us=pulse_width_us) for a in amplitudes_ma]
    return _changes(forecaster, context, _joined(doses), from_s)


def monotonicity(effect: Float[Tensor, "dose channel"]) -> Float[Tensor, " channel"]:
    """How much of a curve's way is upwards, with doses in rising order: 1 if it never falls, NaN where it is flat.

    Raises:
        ShapeError: If there are fewer than two doses.
    """
    if len(effect) < 2:
        raise ShapeError(f"there are {len(effect)} doses; a curve needs two or more.")
    steps = effect.diff(dim=0)
    rises: Tensor = steps.clamp_min(0).sum(0) / steps.abs().sum(0)
    return rises


@torch.no_grad()
def played_pulses(
    system: System, sites: Sequence[str] | None = None, *, amplitude_ma: float = PULSE_MA,
    pulse_width_us: float = PULSE_US, from_s: float = 0.0, states: int = 16, settling: int = 2, seed: int = 0,
) -> Float[Tensor, "site channel"]:  # fmt: skip
    """What single pulses really change in a simulated patient: the matrix to compare `virtual_pulses` with.

    Pulse and silence start from the same states with the same noise; the mean change is over these states.

    Args:
        system: A twin, which answers the same for the same state, stimulus and seed.
        sites: See `virtual_pulses`.
        amplitude_ma: See there.
        pulse_width_us: See there.
        from_s: See there.
        states: How many.
        settling: Windows without a stimulus before.
        seed: Names the streams.
    """
    silent = no_stimulus(system.montage, (states,))
    state = system.start((states,), generator(seed, "pulses"))
    for window in range(settling):
        _, state = system.respond(state, silent, generator(seed, "pulses", window))
    without, _ = system.respond(state, silent, generator(seed, "pulses", "played"))
    rows = []
    for name in site_names(system.montage, sites):
        pulse = pulse_train(system.montage, name, amplitude_ma=amplitude_ma, pulse_width_us=pulse_width_us)
        answer, _ = system.respond(state, pulse.expand(states), generator(seed, "pulses", "played"))
        rows.append(_size(answer, (answer.signal_uv - without.signal_uv).mean(0), from_s))
    return torch.stack(rows)


def site_names(montage: Montage, sites: Sequence[str] | None = None) -> tuple[str, ...]:
    """The sites that are asked for, or all neighbouring pairs, or all contacts where no two share a shaft.

    Raises:
        MontageError: If there is none.
    """
    names = tuple(sites) if sites is not None else montage.neighbour_pairs() or tuple(c.name for c in montage.contacts)
    if not names:
        raise MontageError("there is no site to stimulate; give `sites` or a montage with contacts.")
    return names


def site_distance_mm(montage: Montage, sites: Sequence[str] | None = None) -> Float[Tensor, "site channel"]:
    """From the middle of each site's contacts to each channel; NaN where a place is unknown."""
    places = montage.contact_position_mm
    ends = [[montage.contact_index(c) for c in name.split("-")] for name in site_names(montage, sites)]
    middles = torch.stack([places[index].mean(0) for index in ends])
    return torch.cdist(middles, montage.channel_position_mm)


def unstimulated(montage: Montage, sites: Sequence[str] | None = None) -> Bool[Tensor, "site channel"]:
    """Which channels read none of the contacts that a site stimulates: the others hold artefact and no connection."""
    touched = torch.zeros(len(site_names(montage, sites)), len(montage.contacts), dtype=torch.float64)
    for row, name in enumerate(site_names(montage, sites)):
        touched[row, [montage.contact_index(contact) for contact in name.split("-")]] = 1.0
    return touched @ montage.channel_matrix.abs().mT == 0


def compare_connectivity(
    effect: Float[Tensor, "site channel"], truth: Float[Tensor, "site channel"],
    distance_mm: Float[Tensor, "site channel"] | None = None, among: Bool[Tensor, "site channel"] | None = None,
) -> dict[str, float]:  # fmt: skip
    """How well one matrix of effects follows another, by ranks.

    Args:
        effect: Of a forecaster.
        truth: Of the patient.
        distance_mm: Where given, also the correlation that is left when both are cleared of distance: nearness alone
            makes any two matrices alike.
        among: Pairs that count; see `unstimulated`.

    Returns:
        pairs, rank_correlation and, with distances, rank_correlation_beyond_distance and
        rank_correlation_of_distance (of nearness with the truth: what to beat). NaN where one does not vary.

    Raises:
        DataError: If fewer than four pairs count.
    """
    kept = effect.isfinite() & truth.isfinite() & (torch.ones_like(effect).bool() if among is None else among)
    if distance_mm is not None:
        kept = kept & distance_mm.isfinite()
    if int(kept.sum()) < 4:
        raise DataError(f"{int(kept.sum())} pairs of site and channel count; a comparison needs four or more.")
    told, true = _ranks(effect[kept]), _ranks(truth[kept])
    found = {"pairs": float(kept.sum()), "rank_correlation": _correlation(told, true)}
    if distance_mm is not None:
        near = -_ranks(distance_mm[kept])
        found["rank_correlation_beyond_distance"] = _correlation(_cleared(told, near), _cleared(true, near))
        found["rank_correlation_of_distance"] = _correlation(near, true)
    return found


def distance_decay(
    effect: Float[Tensor, "site channel"], distance_mm: Float[Tensor, "site channel"],
    among: Bool[Tensor, "site channel"] | None = None, bins_mm: Sequence[float] = BINS_MM,
) -> list[dict[str, str | float]]:  # fmt: skip
    """Effects by distance: a row for each bin, up to the first edge, between edges (upper included), beyond the last.

    Returns:
        distance, pairs, mean_uv and of_nearest (mean over that of the nearest bin); NaN where a bin is empty.

    Raises:
        ConfigError: If edges do not rise.
    """
    edges = [0.0, *bins_mm, math.inf]
    if any(b <= a for a, b in pairwise(edges)):
        raise ConfigError(f"bins_mm {tuple(bins_mm)} must rise and be positive.")
    counted = effect.isfinite() & (torch.ones_like(effect).bool() if among is None else among)
    rows: list[dict[str, str | float]] = []
    nearest = math.nan
    for low, high in pairwise(edges):
        within = counted & (distance_mm <= high) & ((distance_mm > low) if low else (distance_mm >= 0))
        mean = float(effect[within].mean()) if bool(within.any()) else math.nan
        nearest = mean if not rows else nearest
        name = f"<= {high:g} mm" if not rows else f"{low:g} to {high:g} mm" if high < math.inf else f"> {low:g} mm"
        rows.append({"distance": name, "pairs": float(within.sum()), "mean_uv": mean, "of_nearest": mean / nearest})
    return rows


def reciprocity(
    effect: Float[Tensor, "site channel"], montage: Montage, sites: Sequence[str] | None = None
) -> dict[str, float]:
    """Whether a site that reaches another is reached by it: effects between sites, there and back.

    The effect at a site is the mean over channels that read its contacts; sites that share a contact do not count.

    Returns:
        pairs, rank_correlation of there with back, and asymmetry, the mean of |there - back| / (there + back).

    Raises:
        DataError: If fewer than four pairs of sites can be read both ways.
    """
    reads = (~unstimulated(montage, sites)).to(effect)  # [site, channel]
    between = effect @ (reads / reads.sum(-1, keepdim=True)).mT  # [from, to]
    names = [set(name.split("-")) for name in site_names(montage, sites)]
    apart = torch.tensor([[not (a & b) for b in names] for a in names]) & between.isfinite() & between.mT.isfinite()
    one, other = torch.triu(apart, 1).nonzero(as_tuple=True)
    if len(one) < 4:
        raise DataError(f"{len(one)} pairs of sites can be read both ways; four or more are needed.")
    there, back = between[one, other], between[other, one]
    both, turned = torch.cat([there, back]), torch.cat([back, there])  # which of the two is "there" is arbitrary
    asymmetry = ((there - back).abs() / (there + back).clamp_min(1e-12)).mean()
    found = {"pairs": float(len(one)), "rank_correlation": _correlation(_ranks(both), _ranks(turned))}
    return found | {"asymmetry": float(asymmetry)}


@torch.no_grad()
def _changes(forecaster: Forecaster, context: Context, stimuli: Stimulus, from_s: float) -> Tensor:
    """Root mean square of the mean forecast less that of silence, `[stimulus, channel]`."""
    windows = context.signal_uv.reshape(-1, *context.signal_uv.shape[-2:])
    count, rows = len(windows), []
    now = replace(context, signal_uv=windows)
    silent = forecaster.forecast(now, no_stimulus(context.montage, (count,))).mean
    each = max(1, _AT_ONCE // count)
    for start in range(0, stimuli.batch_shape[0], each):
        part = stimuli[start : start + each]
        many = part.batch_shape[0]
        asked = map_tensors(part, lambda x: x.repeat_interleave(count, 0))
        again = map_tensors(now, lambda x, many=many: x.repeat(many, 1, 1))
        forecast = forecaster.forecast(again, asked)
        change = (forecast.mean.unflatten(0, (many, count)) - silent).mean(1)
        rows.append(_size(forecast.template, change, from_s))
    return torch.cat(rows)


def _size(like: Response, change_uv: Float[Tensor, "*batch channel time"], from_s: float) -> Tensor:
    """Root mean square over the window from a time on; silence is the zero, so no mean is taken out."""
    first = max(0, round((from_s - like.start_s) * like.rate_hz))
    if first >= change_uv.shape[-1]:
        raise ShapeError(f"no sample is left from {from_s} s on; lower from_s.")
    return change_uv[..., first:].square().mean(-1).sqrt()


def _joined(stimuli: Sequence[Stimulus]) -> Stimulus:
    return concatenate([stimulus.expand(1) for stimulus in stimuli])


def _ranks(values: Tensor) -> Tensor:
    return torch.as_tensor(rankdata(values.detach().cpu().double().numpy()))


def _cleared(ranks: Tensor, of: Tensor) -> Tensor:
    """What a straight line on other ranks leaves."""
    one, other = ranks - ranks.mean(), of - of.mean()
    return one - other * (one @ other) / other.square().sum().clamp_min(1e-12)


def _correlation(one: Tensor, other: Tensor) -> float:
    a, b = one - one.mean(), other - other.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 1e-9 else math.nan
