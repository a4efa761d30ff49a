"""Current over time: what a stimulus's rectangular phases put into each bin of a sampled window.

A sample is the mean current over its bin, from the exact overlap of the phases with the bin. So charge
is exact at any sampling rate, a pulse shorter than a bin keeps its charge, and the waveform has a gradient
in amplitude, frequency, width, gap and onset. No pulse axis is laid out: the seconds that each phase has
lasted by time t have a closed form for a periodic train, and a bin is the difference at its edges.

    n(t)      = whole periods that are over by t, at most pulses - 1
    first(t)  = n width + min(t - onset - n period, width), not below zero
    second(t) = the same, later by width + gap

Current  [*batch, contact, time]   mA, the sign of the contact's amplitude in the first phase
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import ShapeError
from .stimulus import Stimulus
from .units import SECONDS_PER_MICROSECOND


def current_ma(stimulus: Stimulus, rate_hz: float, duration_s: float) -> Float[Tensor, "*batch contact time"]:
    """Mean current over each bin of a window that starts at time zero.

    The charge of all bins sums to zero, up to rounding, when the train ends inside the window. Differentiable;
    at the instants where a phase begins or ends on the edge of a bin the gradient is one-sided.

    Args:
        stimulus: What is delivered; sensory parts carry no current.
        rate_hz: Bins per second.
        duration_s: Length of the window; `round(duration_s * rate_hz)` bins.

    Returns:
        Current in mA.

    Raises:
        ShapeError: If the rate is not positive or the window holds no bin.
    """
    first, second = _bin_shares(stimulus, rate_hz, duration_s)
    return stimulus.amplitude_ma.unsqueeze(-1) * (first - second).unsqueeze(-2)


def rectified_current_ma(
    stimulus: Stimulus, rate_hz: float, duration_s: float
) -> tuple[Float[Tensor, "*batch contact time"], Float[Tensor, "*batch contact time"]]:
    """Cathodic and anodic current apart, both nonnegative, mean over each bin.

    The two phases of a pulse inside one bin do not cancel: each goes to its own polarity. Anodic minus
    cathodic is `current_ma`.

    Args:
        stimulus: What is delivered.
        rate_hz: Bins per second.
        duration_s: Length of the window.

    Returns:
        Cathodic current, anodic current, in mA.

    Raises:
        ShapeError: If the rate is not positive or the window holds no bin.
    """
    first, second = (share.unsqueeze(-2) for share in _bin_shares(stimulus, rate_hz, duration_s))
    positive = stimulus.amplitude_ma.clamp_min(0.0).unsqueeze(-1)
    negative = (-stimulus.amplitude_ma).clamp_min(0.0).unsqueeze(-1)
    return negative * first + positive * second, positive * first + negative * second


def train_s(stimulus: Stimulus) -> Float[Tensor, "*batch"]:
    """Seconds from the start of the first pulse to the end of the last one; zero without a pulse."""
    pulse_s = (2 * stimulus.pulse_width_us + stimulus.interphase_us) * SECONDS_PER_MICROSECOND
    last_s = (stimulus.pulses - 1).clamp_min(0.0) / stimulus.frequency_hz
    return torch.where(stimulus.pulses > 0, last_s + pulse_s, torch.zeros_like(pulse_s))


def net_charge_uc(stimulus: Stimulus, until_s: float | None = None) -> Float[Tensor, "*batch contact"]:
    """Charge left on each contact by `until_s`, both phases counted, in uC; zero up to rounding after a whole train.

    Args:
        stimulus: What is delivered.
        until_s: A time from the start of the window; None for the end of the train.
    """
    after_s = stimulus.onset_s.double() + 2 * train_s(stimulus).double()  # well after the end, which rounding may move
    at_s = after_s if until_s is None else torch.full_like(after_s, until_s)
    first, second = _phase_seconds(stimulus, at_s.unsqueeze(-1))
    left_s = (first - second).to(stimulus.amplitude_ma)  # [*batch, 1]
    return stimulus.amplitude_ma * left_s * 1e3  # 1 mA for 1 s is 1000 uC


def _bin_shares(stimulus: Stimulus, rate_hz: float, duration_s: float) -> tuple[Tensor, Tensor]:
    """Share of each bin taken by first and by second phases, `[*batch, time]` each, 0 to 1."""
    bins = round(duration_s * rate_hz) if rate_hz > 0 else 0
    if bins < 1:
        raise ShapeError(
            f"rate_hz {rate_hz} and duration_s {duration_s} give no bin; both must be positive and hold a sample."
        )
    edges_s = torch.arange(bins + 1, dtype=torch.float64, device=stimulus.pulses.device) / rate_hz
    first, second = _phase_seconds(stimulus, edges_s)
    shares = [phase.diff(dim=-1).clamp_min(0.0) * rate_hz for phase in (first, second)]  # rounding may fall below zero
    return shares[0].to(stimulus.amplitude_ma), shares[1].to(stimulus.amplitude_ma)


def _phase_seconds(stimulus: Stimulus, time_s: Tensor) -> tuple[Tensor, Tensor]:
    """Seconds that first and second phases have lasted by each time, `[*batch, time]`.

    In double precision whatever came in: single precision resolves 1 us only in the first ten seconds, and
    the phases are tens of microseconds wide.
    """
    width_s, gap_s = (
        x.double().unsqueeze(-1) * SECONDS_PER_MICROSECOND for x in (stimulus.pulse_width_us, stimulus.interphase_us)
    )
    frequency, pulses, onset_s = (
        x.double().unsqueeze(-1) for x in (stimulus.frequency_hz, stimulus.pulses, stimulus.onset_s)
    )
    since_s = time_s - onset_s  # [*batch, time]
    over = torch.minimum((since_s * frequency).detach().floor().clamp_min(0.0), (pulses - 1).clamp_min(0.0))
    local_s = since_s - over / frequency
    first = over * width_s + torch.minimum(local_s.clamp_min(0.0), width_s)
    second = over * width_s + torch.minimum((local_s - width_s - gap_s).clamp_min(0.0), width_s)
    any_pulse = (pulses > 0).to(first)
    return first * any_pulse, second * any_pulse
