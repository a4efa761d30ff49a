"""Does a forecaster know which way to turn the knobs? Its slopes beside those of the simulated patient.

The objective is the size of a stimulus's effect, E[y given stimulus] - E[y given none], read
from its waveform: the root mean square ("evoked", uV) or the power between 4 and 30 Hz
("power", uV^2), mean over channels. Knobs are amplitude, frequency, pulse width and place. Place is the
share of the current that has moved from a pair to the next one on its shaft; its slope is
taken where a quarter has, away from the kinks where a contact's current changes sign.

The patient's slope is a central difference with common random numbers: every point starts from the
same states with the same noise. Steps, chosen for far more effect than noise and little
curvature: 5 % of the amplitude or width, 3 % of the frequency (3 ms at the end of a train of
five at 40 Hz), and 0.1 of the current for place. The forecaster's slope is
autograd through the mean of its forecasts from the same states. `trains` have two pulses at least: the
frequency of a single pulse has no meaning.

| name | meaning |
| --- | --- |
| sign | share of equal signs, on the half of the points with the patient's larger slopes |
| cosine | of the two vectors of slopes over all points |
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
    """

    trains: Stimulus
    next_weights: Float[Tensor, "point contact"]
    contexts: Context
    slope: Mapping[str, Mapping[str, Float[Tensor, " point"]]]


def slope_points(system: System, design: Design, *, points: int, states: int, seed: int) -> SlopePoints:
    """Draw points and take the patient's slopes at them.

    Args:
        system: The patient; the same state, stimulus and seed must answer the same.
        design: Draws the trains, from the inner 80 % of every range, at any pair.
        points: How many.
        states: From how many states each is delivered.
        seed: Names the streams.
    """
    trains, names = design.anywhere(points, PULSES, generator(seed, "slopes"))
    pairs = design.montage.neighbour_pairs()
    beside = torch.stack([contact_weights(design.montage, next_pair(pairs, name)) for name in names])
    begun = system.start((states,), generator(seed, "slopes", "start"))
    contexts, state = quiet_context(system, begun, seed, "slopes")
    silent = answers(system, state, no_stimulus(system.montage, (states,)), torch.arange(states), seed, 0)
    sides = {(knob, sign): turned(trains, beside, knob, sign * _STEPS[knob]) for knob in KNOBS for sign in (-1, 1)}
    read = {}
    for key, moved in sides.items():
        rows = torch.arange(states).repeat(points)
        answer = answers(system, state, repeated(moved, states), rows, seed, 0)
        effect_uv = (answer.signal_uv.unflatten(0, (points, states)) - silent.signal_uv).mean(1)
        read[key] = replace(answer, signal_uv=effect_uv)
    slope = {
        name: {knob: (of(read[knob, 1]) - of(read[knob, -1])) / (2 * _STEPS[knob]) for knob in KNOBS}
        for name, of in OBJECTIVES.items()
    }
    return SlopePoints(trains, beside, contexts, slope)


def slope_fidelity(forecaster: Forecaster, points: SlopePoints) -> list[dict[str, str | float]]:
    """Agreement of a forecaster's slopes with the patient's: one row for each objective and knob.

    A knob that the forecaster refuses, or does not depend on differentiably, has NaN.
    """
    rows: list[dict[str, str | float]] = []
    for knob in KNOBS:
        for name, own in _slopes(forecaster, points, knob).items():
            rows.append({"objective": name, "knob": knob, **agreement(own, points.slope[name][knob])})
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
