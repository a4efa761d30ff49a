"""Does a forecaster know which way to turn the knobs? Its slopes beside those of the simulated patient.

The objective is the size of a stimulus's effect, E[y given stimulus] - E[y given none], read
from its waveform: the root mean square ("evoked", uV) or the power between 4 and 30 Hz
("power", uV^2), mean over channels. Knobs are amplitude, frequency, pulse width and place. Place is the
share of the current that has moved from a pair to the next one on its shaft; its slope is
taken where a quarter has, away from the kinks where a contact's current changes sign.

The patient's slope is a central difference with common random numbers: every point starts from the
same states and meets the same noise, and effects are means over several draws of it. Steps, chosen
for far more effect than noise and little curvature: 5 % of the amplitude or width, 3 % of the
frequency (3 ms at the end of a train of five at 40 Hz), and 0.1 of the current for place. The
forecaster's slope is autograd through the mean of its forecasts from the same states. `trains`
have two pulses at least: the frequency of a single pulse has no meaning.

| name | meaning |
| --- | --- |
| sign | share of equal signs, on the half of the points with the patient's larger slopes |
| cosine | of the two vectors of slopes over all points |
| ceiling | the cosine that would be expected of one who knew the mean over all noise, by Spearman and Brown's formula |
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import StimoptError
from .features import band_power, evoked_amplitude
from .forecaster import Context, Forecaster
from .protocol_splits import Design
from .protocol_trials import answers, quiet_context, repeated
from .response import Response
from .stimulus import Stimulus, contact_weights, no_stimulus
from .system import System
from .tensors import generator, map_tensors

KNOBS = ("amplitude", "frequency", "width", "place")
PULSES = (2, 8)
_STEPS = {"amplitude": 0.05, "frequency": 0.03, "width": 0.05, "place": 0.1}
_MOVED = 0.25  # of the current, where the slope of place is taken
_POWER_HZ = (4.0, 30.0)

OBJECTIVES: Mapping[str, Callable[[Response], Tensor]] = {
    "evoked": lambda effect: evoked_amplitude(effect).mean(-1),
    "power": lambda effect: band_power(effect, _POWER_HZ).mean(-1),
}


@dataclass(frozen=True)
class SlopePoints:
    """Where slopes are taken, and the patient's slopes there.

    Attributes:
        trains: At pairs of neighbours, one batch axis.
        next_weights: Shares of the current at the contacts once all of it has moved to the next pair.
        contexts: Of the states that every point starts from, `[state]`.
        slope: The patient's, by objective and knob; `[point]`. Of logarithms for amplitude, frequency and width.
        ceiling: How well one who knew the mean over all noise would agree, a cosine, by objective and knob; NaN where
            there was one draw, or two halves of the draws have nothing in common.
    """

    trains: Stimulus
    next_weights: Float[Tensor, "point contact"]
    contexts: Context
    slope: Mapping[str, Mapping[str, Float[Tensor, " point"]]]
    ceiling: Mapping[str, Mapping[str, float]]


def slope_points(
    system: System, design: Design, *, points: int, states: int, seed: int, futures: int = 1
) -> SlopePoints:
    """Draw points and take the patient's slopes at them.

    Args:
        system: The patient; the same state, stimulus and seed must answer the same.
        design: Draws the trains, from the inner 80 % of every range, at any pair.
        points: How many.
        states: From how many states each is delivered.
        seed: Names the streams.
        futures: Draws of the noise that effects are means of.
    """
    trains, names = design.anywhere(points, PULSES, generator(seed, "slopes"))
    pairs = design.montage.neighbour_pairs()
    beside = torch.stack([contact_weights(design.montage, next_pair(pairs, name)) for name in names])
    begun = system.start((states,), generator(seed, "slopes", "start"))
    contexts, state = quiet_context(system, begun, seed, "slopes")
    rows, none = torch.arange(states).repeat(points), no_stimulus(system.montage, (states,))
    effects: dict[tuple[str, int], list[Response]] = {(knob, sign): [] for knob in KNOBS for sign in (-1, 1)}
    for future in range(futures):
        silent = answers(system, state, none, torch.arange(states), seed, future)
        for (knob, sign), found in effects.items():
            moved = turned(trains, beside, knob, sign * _STEPS[knob])
            answer = answers(system, state, repeated(moved, states), rows, seed, future)
            effect_uv = (answer.signal_uv.unflatten(0, (points, states)) - silent.signal_uv).mean(1)
            found.append(replace(answer, signal_uv=effect_uv))
    whole, half = slice(None), futures // 2
    slope = {name: {knob: _slope(effects, name, knob, whole) for knob in KNOBS} for name in OBJECTIVES}
    ceiling = {
        name: {
            knob: _ceiling(_slope(effects, name, knob, slice(half)), _slope(effects, name, knob, slice(half, None)))
            if half else math.nan for knob in KNOBS
        } for name in OBJECTIVES
    }  # fmt: skip
    return SlopePoints(trains, beside, contexts, slope, ceiling)


def _slope(
    effects: Mapping[tuple[str, int], list[Response]], objective: str, knob: str, futures: slice
) -> Float[Tensor, " point"]:
    """Central difference in the mean effect over some draws of the noise."""
    sides = []
    for sign in (1, -1):
        some = effects[knob, sign][futures]
        mean_uv = torch.stack([one.signal_uv for one in some]).mean(0)
        sides.append(OBJECTIVES[objective](replace(some[0], signal_uv=mean_uv)))
    return (sides[0] - sides[1]) / (2 * _STEPS[knob])


def _ceiling(one: Tensor, other: Tensor) -> float:
    """Cosine with the mean over all noise that is to be expected of the mean over both halves.

    Halves whose slopes are the truth and an error each have a cosine of r = T / (T + E), T and E the mean squares;
    their mean has an error of E / 2, so its cosine with the truth is the root of T / (T + E / 2) = 2 r / (1 + r)
    (Spearman, Br J Psychol 3 (1910) 271-295; Brown, ibid., 296-322).
    """
    share = agreement(one, other)["cosine"]
    return math.sqrt(2 * share / (1 + share)) if share > 0 else math.nan


def slope_fidelity(forecaster: Forecaster, points: SlopePoints) -> list[dict[str, str | float]]:
    """Agreement of a forecaster's slopes with the patient's: one row for each objective and knob.

    A knob that the forecaster refuses, or does not depend on differentiably, has NaN.
    """
    rows: list[dict[str, str | float]] = []
    for knob in KNOBS:
        for name, own in _slopes(forecaster, points, knob).items():
            agreed = agreement(own, points.slope[name][knob])
            rows.append({"objective": name, "knob": knob, **agreed, "ceiling": points.ceiling[name][knob]})
    return rows


def agreement(own: Float[Tensor, " point"] | None, truth: Float[Tensor, " point"]) -> dict[str, float]:
    """Sign agreement on the half of the points with the larger true slopes, and cosine over all; NaN for None."""
    if own is None:
        return {"sign": math.nan, "cosine": math.nan}
    large = truth.abs().topk(max(1, len(truth) // 2)).indices
    same = (own.sign() == truth.sign())[large].double().mean()
    size = own.norm() * truth.norm()
    return {"sign": float(same), "cosine": float(own @ truth / size) if float(size) > 0 else math.nan}


def turned(trains: Stimulus, next_weights: Tensor, knob: str, step: Tensor | float) -> Stimulus:
    """Trains with one knob turned: by a factor of 1 + `step`, or for "place" by `step` of the current beyond a quarter.

    Differentiable in `step`, a number or one a train.
    """
    like = trains.amplitude_ma
    by = torch.as_tensor(step, dtype=like.dtype, device=like.device).expand(trains.batch_shape)
    if knob == "frequency":
        return replace(trains, frequency_hz=trains.frequency_hz * (1 + by))
    if knob == "width":
        return replace(trains, pulse_width_us=trains.pulse_width_us * (1 + by))
    if knob == "amplitude":
        return replace(trains, amplitude_ma=like * (1 + by).unsqueeze(-1))
    moved, size = (_MOVED + by).unsqueeze(-1), like.abs().amax(-1, keepdim=True)
    return replace(trains, amplitude_ma=(1 - moved) * like + moved * size * next_weights)


def next_pair(pairs: tuple[str, ...], pair: str) -> str:
    """The following pair on the same shaft, or the one before at its end; the next in line where it stands alone."""
    at = pairs.index(pair)
    nearby = [pairs[i] for i in (at + 1, at - 1) if 0 <= i < len(pairs)]
    sharing = [other for other in nearby if set(other.split("-")) & set(pair.split("-"))]
    return (sharing or nearby)[0]


def _slopes(forecaster: Forecaster, points: SlopePoints, knob: str) -> dict[str, Float[Tensor, " point"] | None]:
    states, count = len(points.contexts.signal_uv), points.trains.batch_shape[0]
    none = no_stimulus(points.trains.montage, (states,))
    step = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    context = map_tensors(points.contexts, lambda x: x.repeat(count, 1, 1))
    found: dict[str, Float[Tensor, " point"] | None] = dict.fromkeys(OBJECTIVES)
    with torch.enable_grad():
        try:
            many = repeated(turned(points.trains, points.next_weights, knob, step), states)
            forecast = forecaster.forecast(context, many)
            silent = forecaster.forecast(points.contexts, none).mean
        except StimoptError:  # a model on a space has no stimulus between two sites
            return found
        if not forecast.mean.requires_grad:
            return found
        effect = (forecast.mean.unflatten(0, (count, states)) - silent.detach()).mean(1)
        for name, of in OBJECTIVES.items():
            value = of(replace(forecast.template, signal_uv=effect, outcomes={})).sum()
            slopes: tuple[Tensor | None, ...] = torch.autograd.grad(value, step, retain_graph=True, allow_unused=True)
            found[name] = None if slopes[0] is None else slopes[0].detach()
    return found
