"""What models see of a stimulus: the charge of its first phases over time, cathodic and anodic apart.

At a few hundred samples per second both phases of a pulse fall into one sample, so their
difference is nothing and their sum tells no polarity; the first phase, which decides
where a pulse excites (Merrill, Bikson and Jefferys 2005), does. Each one's charge is
spread evenly over one sample's length from its start. So the drive moves smoothly
when frequency or onset move a pulse across the grid, where exact charge per sample would
jump, and gradients along frequency mean something.

Reference: Merrill, Bikson and Jefferys, J Neurosci Methods 141 (2005) 171-198.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.stimulus import Stimulus
from stimopt.units import SECONDS_PER_MICROSECOND


def leading_current_ma(stimulus: Stimulus, rate_hz: float, samples: int) -> Float[Tensor, "*batch input time"]:
    """Mean current of each sample in mA, from first phases alone, never negative.

    Inputs are the cathodic current of every contact, then the anodic one. Times the length of a sample it is
    charge: all samples together hold the charge of all first phases. Differentiable in amplitude, width, frequency
    and onset; not in the number of pulses.

    Args:
        stimulus: What is delivered; its `onset_s` counts from the first sample.
        rate_hz: Samples per second.
        samples: How many.
    """
    charge_s = stimulus.pulse_width_us * SECONDS_PER_MICROSECOND * rate_hz  # of one pulse of 1 mA, mean of a sample
    course = pulse_course(stimulus, rate_hz, samples) * charge_s.unsqueeze(-1)
    return leading_ma(stimulus).flatten(-2).unsqueeze(-1) * course.unsqueeze(-2)


def leading_ma(stimulus: Stimulus) -> Float[Tensor, "*batch 2 contact"]:
    """Current of first phases at every contact in mA, cathodic, then anodic; never negative."""
    signed = stimulus.amplitude_ma
    return torch.stack([(-signed).clamp_min(0), signed.clamp_min(0)], -2)


def pulse_course(stimulus: Stimulus, rate_hz: float, samples: int) -> Float[Tensor, "*batch time"]:
    """Pulses delivered in each sample, each spread over the length of one; differentiable in frequency and onset.

    Args:
        stimulus: See `leading_current_ma`.
        rate_hz: Samples per second.
        samples: How many.
    """
    return _delivered(stimulus, rate_hz, samples).diff(dim=-1)


def _delivered(stimulus: Stimulus, rate_hz: float, samples: int) -> Float[Tensor, "*batch edge"]:
    """How many pulses' charge has been delivered by the edge of each sample, a whole number only between pulses."""
    edge_s = torch.arange(samples + 1, dtype=stimulus.pulses.dtype, device=stimulus.pulses.device) / rate_hz
    elapsed_s = edge_s - stimulus.onset_s.unsqueeze(-1)
    period_s, pulses = (1 / stimulus.frequency_hz).unsqueeze(-1), stimulus.pulses.unsqueeze(-1)
    begun = ((elapsed_s / period_s).detach().floor() + 1).clamp_min(0).minimum(pulses)
    under_way = int((stimulus.frequency_hz.detach() / rate_hz).ceil().amax().clamp(1, samples)) if pulses.numel() else 1
    total = (begun - under_way).clamp_min(0)
    for back in range(1, under_way + 1):  # pulses that may not be over; one only, below one pulse a sample
        latest = begun - back
        share = ((elapsed_s - latest * period_s) * rate_hz).clamp(0, 1)
        total = total + share * (latest >= 0)
    return total
