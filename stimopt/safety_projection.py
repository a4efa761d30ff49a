"""The way back into an envelope: width, frequency and pulses to their bounds, then all currents by one factor.

Currents shrink together, because that keeps a pair balanced and a steered field in shape; a contact alone
lowered would return its current through the case. Rows that cannot be mended (a dose that is spent, an
interval too short) end without current or are silenced by the caller, who checks.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .safety_limits import ROUNDING, Limit
from .safety_readings import DOSE_WINDOW_S, Account
from .stimulus import Stimulus

_TINY = 1e-12  # a current or charge below which the quotient to a limit needs no gradient
_Bounds = Mapping[str, float]


def lowered(
    stimulus: Stimulus, limits: Mapping[str, Limit], banned: Bool[Tensor, " contact"], record: Account
) -> Stimulus:
    """Every stimulus moved towards the limits, in the dtype that came; timing is left to the caller.

    Args:
        stimulus: A batch of stimuli.
        limits: Evaluated limits by name.
        banned: Contacts that may carry no current.
        record: What the past left behind.
    """
    exact = stimulus.to(stimulus.amplitude_ma.double())
    bounds = _bounds(limits, _slack(stimulus.amplitude_ma))
    timed = _train_inside(exact, bounds)
    mended = replace(timed, amplitude_ma=_without_banned(exact.amplitude_ma, banned))
    factor = _current_factor(mended, bounds, record)
    return replace(mended, amplitude_ma=mended.amplitude_ma * factor).to(stimulus.amplitude_ma)


def _slack(current: Tensor) -> float:
    """Room for rounding to the dtype that came in, so that what is projected in single precision passes in double."""
    rounding = torch.finfo(current.dtype).eps
    return 8 * rounding if rounding > ROUNDING else 0.0


def _bounds(limits: Mapping[str, Limit], slack: float) -> _Bounds:
    return {name: limit.scale * (1 + slack if limit.least else 1 - slack) for name, limit in limits.items()}


def _train_inside(stimulus: Stimulus, bounds: _Bounds) -> Stimulus:
    """Width, then frequency, then pulses. A train that no frequency fits becomes one pulse."""
    longest = bounds.get("pulse_width_max_us", math.inf)
    width = stimulus.pulse_width_us.clamp(min(bounds.get("pulse_width_min_us", 0.0), longest), longest)
    pulse_s = (2 * width + stimulus.interphase_us) * 1e-6
    highest = (1 / pulse_s).clamp_max(bounds.get("frequency_max_hz", math.inf))
    if "duty_cycle" in bounds:
        highest = torch.minimum(highest, bounds["duty_cycle"] / (2e-6 * width))
    lowest = bounds.get("frequency_min_hz", 0.0)
    train = stimulus.pulses > 1
    frequency = torch.where(
        train, torch.minimum(stimulus.frequency_hz.clamp_min(lowest), highest), stimulus.frequency_hz
    )
    fits = torch.minimum(stimulus.pulses, torch.where(train & (highest < lowest), 1.0, bounds.get("pulses", math.inf)))
    room_s = torch.full_like(pulse_s, bounds.get("train_s", math.inf))
    if "window_s" in bounds:
        room_s = torch.minimum(room_s, bounds["window_s"] - stimulus.onset_s)
    gaps = (room_s - pulse_s) * frequency + 0.5 * ROUNDING * room_s * frequency
    pulses = torch.minimum(fits, 1 + gaps.detach().floor()).clamp_min(1.0)
    pulses = torch.minimum(pulses, stimulus.pulses).floor()
    return replace(stimulus, pulse_width_us=width, frequency_hz=frequency, pulses=pulses)


def _without_banned(
    current: Float[Tensor, "*batch contact"], banned: Bool[Tensor, " contact"]
) -> Float[Tensor, "*batch contact"]:
    """Currents with the banned contacts at zero and their partners lowered: the case carries no more than before."""
    left = torch.where(banned, 0.0, current)
    positive, negative = left.clamp_min(0.0), (-left).clamp_min(0.0)
    through_case = current.sum(-1, keepdim=True)
    sources, sinks = positive.sum(-1, keepdim=True), negative.sum(-1, keepdim=True)
    fewer = (sinks + through_case.clamp_min(0.0)) / sources.clamp_min(_TINY)
    deeper = (sources + (-through_case).clamp_min(0.0)) / sinks.clamp_min(_TINY)
    balanced = positive * fewer.clamp_max(1.0) - negative * deeper.clamp_max(1.0)
    touched = (banned & (current != 0)).any(-1, keepdim=True)
    return torch.where(touched, balanced, left)


def _current_factor(stimulus: Stimulus, bounds: _Bounds, record: Account) -> Float[Tensor, "*batch 1"]:
    """The largest factor, at most 1, that brings all currents inside."""
    signed = stimulus.amplitude_ma
    current, charge = signed.abs(), stimulus.phase_charge_uc.abs()
    total = torch.maximum(signed.clamp_min(0.0).sum(-1), (-signed).clamp_min(0.0).sum(-1))
    rooms: list[tuple[Tensor, Tensor]] = [
        (current, current.new_tensor(bounds.get("contact_current_ma", math.inf))),
        (total.unsqueeze(-1), current.new_tensor(bounds.get("total_current_ma", math.inf))),
        (charge, _charge_cap(stimulus, bounds)),
    ]
    if "ramp_ma" in bounds:
        rooms.append((current, (record.last_ma * signed.sign()).clamp_min(0.0) + bounds["ramp_ma"]))
    for name, window_s in DOSE_WINDOW_S.items():
        if name in bounds:
            left = (bounds[name] - record.dose_within(window_s)).clamp_min(0.0)
            rooms.append((charge * stimulus.pulses.unsqueeze(-1), left))
    factors = [torch.where(used > _TINY, room / used.clamp_min(_TINY), 1.0) for used, room in rooms]
    return torch.cat(factors, -1).clamp_max(1.0).amin(-1, keepdim=True)


def _charge_cap(stimulus: Stimulus, bounds: _Bounds) -> Float[Tensor, " contact"]:
    """Largest charge per phase of each contact, by charge, density and Shannon's k; unknown areas bind nothing."""
    area = stimulus.montage.area_cm2.to(stimulus.amplitude_ma).nan_to_num(nan=math.inf)
    by_density = bounds.get("charge_density_uc_cm2", math.inf) * area
    by_shannon = bounds.get("shannon_k", math.inf) * area.sqrt()
    return torch.minimum(by_density, by_shannon).clamp_max(bounds.get("phase_charge_uc", math.inf))
