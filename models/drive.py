"""What models see of a stimulus: the charge of its first phases over time, cathodic and anodic apart.

At a few hundred samples per second both phases of a pulse fall into one sample, so their
difference is nothing and their sum tells no polarity; the first phase, which decides
where a pulse excites (Merrill, Bikson and Jefferys 2005), does. A pulse that begins with a
sample falls into it; one between two is spread over the four around it, by the weights that
read a smooth course between its samples (Keys 1981). So an answer to it is the answer to one on
the grid, moved, and gradients along frequency and onset mean something. Exact charge per
sample would jump where a pulse crosses the grid, and a pulse shared between two samples in
straight lines is answered less, the more so the faster the answer: along frequency that
ripple is steeper than the slope it hides.

References: Merrill, Bikson and Jefferys, J Neurosci Methods 141 (2005) 171-198; Keys, IEEE
Trans Acoust Speech Signal Process 29 (1981) 1153-1160.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from stimopt.montage import Montage
from stimopt.stimulus import Stimulus
from stimopt.units import SECONDS_PER_MICROSECOND

_REACH = 2  # samples to each side over which a pulse is spread
_LEAST_GAP = 0.5  # between contacts that follow each other, of the mean gap along their shaft


def leading_current_ma(stimulus: Stimulus, rate_hz: float, samples: int) -> Float[Tensor, "*batch input time"]:
    """Mean current of each sample in mA, from first phases alone.

    Inputs are the cathodic current of every contact, then the anodic one. Times the length of a sample it is
    charge: all samples together hold the charge of all first phases. Beside a pulse between two samples there is a
    little less than none. Differentiable in amplitude, width, frequency
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


def flowing_ma(stimulus: Stimulus) -> Float[Tensor, "*batch 2 contact"]:
    """As `leading_ma`, with current that flows along a shaft counted from neighbour to neighbour.

    A pair of neighbours is what it is in `leading_ma`. While its current moves to the next pair, both count by their
    share: what a contact in the middle takes up and gives off no longer cancels, so the sum stays, as the dipole's
    moment and what tissue feels of it do, where the sum of currents is halved on the way. Pairs three contacts apart
    and more, and what leaves for another shaft or a reference far off, count as in `leading_ma`.
    """
    raw, shafts = leading_ma(stimulus), along_shafts(stimulus.montage)
    alone = sorted(set(range(raw.shape[-1])) - {i for contacts in shafts for i in contacts})
    parts = [raw[..., alone]]
    for contacts in map(list, shafts):
        own = stimulus.amplitude_ma[..., contacts]
        net = own.sum(-1, keepdim=True)
        same = (own * net.sign()).clamp_min(0)
        apart = net * same / same.sum(-1, keepdim=True).clamp_min(1e-12)  # what comes from elsewhere
        flow = (own - apart).cumsum(-1)[..., :-1]
        given, taken = F.pad(flow, (0, 1)), F.pad(flow, (1, 0))
        counted = torch.stack([(way * x).clamp_min(0) for way in (-1, 1) for x in (given, -taken, apart)])
        hops = flow.abs().sum(-1) / ((own - apart).abs().sum(-1) / 2).clamp_min(1e-12)
        near = (3 - hops).clamp(0, 1)[..., None, None]  # 1 up to two contacts apart
        parts.append(near * counted.unflatten(0, (2, 3)).sum(1).movedim(0, -2) + (1 - near) * raw[..., contacts])
    return torch.cat(parts, -1)[..., torch.tensor([*alone, *(i for s in shafts for i in s)]).argsort()]


@lru_cache(maxsize=64)
def along_shafts(montage: Montage) -> tuple[tuple[int, ...], ...]:
    """Contacts of each shaft in their order along it; in the montage's where places are unknown.

    Left out are single contacts, and those that do not follow each other, as in grids and around directional leads.
    """
    shafts: dict[str, list[int]] = {}
    for number, contact in enumerate(montage.contacts):
        shafts.setdefault(contact.shaft, []).append(number)
    found: list[tuple[int, ...]] = []
    for numbers in (those for those in shafts.values() if len(those) > 1):
        place = montage.contact_position_mm[numbers]
        if not bool(place.isfinite().all()):
            found.append(tuple(numbers))
            continue
        at, order = (place @ torch.linalg.svd(place - place.mean(0), full_matrices=False).Vh[0]).sort()
        if bool(at.diff().min() > _LEAST_GAP * at.diff().mean()):
            found.append(tuple(numbers[i] for i in order.tolist()))
    return tuple(found)


def pulse_course(stimulus: Stimulus, rate_hz: float, samples: int) -> Float[Tensor, "*batch time"]:
    """Pulses in each sample, one between samples spread over four; smooth in frequency and onset.

    Args:
        stimulus: See `leading_current_ma`.
        rate_hz: Samples per second.
        samples: How many.
    """
    return _Near.of(stimulus, rate_hz, samples).share.sum(-2)


def even_course(stimulus: Stimulus, rate_hz: float, samples: int) -> Float[Tensor, "*batch time"]:
    """Pulses in each sample as if each were spread over its whole period: a train without pulses.

    What is slow beside a period of the train answers to this. Differentiable in frequency and onset.

    Args:
        stimulus: See `leading_current_ma`.
        rate_hz: Samples per second.
        samples: How many.
    """
    like = stimulus.frequency_hz
    edges_s = torch.arange(samples + 1, dtype=like.dtype, device=like.device) / rate_hz
    begun = ((edges_s - stimulus.onset_s.unsqueeze(-1)) * like.unsqueeze(-1)).clamp_min(0)
    return torch.minimum(begun, stimulus.pulses.to(like).unsqueeze(-1)).diff(dim=-1)


def repeated_course(
    stimulus: Stimulus, rate_hz: float, samples: int, fading_s: tuple[float, ...]
) -> Float[Tensor, "*batch trace time"]:
    """Pulses in each sample as in `pulse_course`, each weighted by what earlier ones have left behind.

    Every pulse leaves 1, which fades exponentially; what has gathered, T, weighs T / (1 + T), so the first pulse weighs
    nothing and none more than 1. A response that tires or grows with repetition, as synapses make it do (Tsodyks and
    Markram, PNAS 94 (1997) 719-723), is linear in this course beside the plain one.

    Args:
        stimulus: See `leading_current_ma`.
        rate_hz: Samples per second.
        samples: How many.
        fading_s: Time constants, one course each.
    """
    near, left = _Near.of(stimulus, rate_hz, samples), [_left_behind(stimulus, constant) for constant in fading_s]
    return torch.stack([near.weighed(one / (1 + one)) for one in left], -2)


def paired_course(
    stimulus: Stimulus, rate_hz: float, samples: int, lags_s: tuple[float, ...]
) -> Float[Tensor, "*batch lag time"]:
    """Pulses in each sample as in `pulse_course`, each weighted by how many earlier ones came about so long before it.

    About means by a triangle that ends at the neighbouring lags; n earlier pulses weigh n / (1 + n). A kernel on each
    of these courses answers pairs of pulses: the second term of a Volterra series (Marmarelis and Marmarelis, Analysis
    of Physiological Systems (1978)). Where an answer rings, a pulse in step with it does more than one out of step,
    which no single fading tells. Differentiable in frequency and onset.

    Args:
        stimulus: See `leading_current_ma`.
        rate_hz: Samples per second.
        samples: How many.
        lags_s: Middles of the lags, rising; the first triangle ends at 0, the last is as wide as the one before it.
    """
    many = int(stimulus.pulses.amax().clamp_min(1)) if stimulus.pulses.numel() else 1
    place = torch.arange(many, dtype=stimulus.pulses.dtype, device=stimulus.pulses.device)
    back_s = place / stimulus.frequency_hz.unsqueeze(-1)  # to the pulse so many before
    ends, near = (0.0, *lags_s, 2 * lags_s[-1] - lags_s[-2]), _Near.of(stimulus, rate_hz, samples)
    courses = []
    for low, at, high in zip(ends, ends[1:], ends[2:], strict=False):
        about = torch.minimum((back_s - low) / (at - low), (high - back_s) / (high - at)).clamp_min(0)
        before = about.cumsum(-1)
        courses.append(near.weighed(before / (1 + before)))
    return torch.stack(courses, -2)


@dataclass(frozen=True)
class Tiring:
    """How the charge of a pulse counts: bent by its size, and the less the more pulses came before.

    Attributes:
        strength: What counts is 1 / (1 + strength T), where each pulse leaves 1 that fades and T is what has gathered.
        fading_s: Time constant of the fading.
        bend_ma_us: Charge at which it no longer counts in proportion (an inverse hyperbolic sine).
    """

    strength: float
    fading_s: float
    bend_ma_us: float


TIRINGS: tuple[Tiring | None, ...] = (None, Tiring(2.0, 0.03, 200.0), Tiring(4.0, 0.02, 200.0))
"""How pulses may count, for linear models to choose from on held-out trials. With the two besides None, effects were
forecast best on simulated patients kept for validation."""


def tired_current_ma(
    stimulus: Stimulus, rate_hz: float, samples: int, tiring: Tiring
) -> Float[Tensor, "*batch input time"]:
    """As `leading_current_ma`, with pulses that count as `tiring` says.

    Args:
        stimulus: See there.
        rate_hz: Samples per second.
        samples: How many.
        tiring: How.
    """
    weight = 1 / (1 + tiring.strength * _left_behind(stimulus, tiring.fading_s))
    course = _Near.of(stimulus, rate_hz, samples).weighed(weight)
    charge_ma_us = leading_ma(stimulus) * stimulus.pulse_width_us[..., None, None]
    bent = tiring.bend_ma_us * (charge_ma_us / tiring.bend_ma_us).asinh() * (SECONDS_PER_MICROSECOND * rate_hz)
    return bent.flatten(-2).unsqueeze(-1) * course.unsqueeze(-2)


def _left_behind(stimulus: Stimulus, fading_s: float) -> Float[Tensor, "*batch pulse"]:
    """What the pulses before each one have left when it comes."""
    many = int(stimulus.pulses.amax().clamp_min(1)) if stimulus.pulses.numel() else 1
    place = torch.arange(many, dtype=stimulus.pulses.dtype, device=stimulus.pulses.device)
    rate = -1 / (stimulus.frequency_hz * fading_s).unsqueeze(-1)  # of the logarithm, from one pulse to the next
    return rate.exp() * torch.expm1(rate * place) / torch.expm1(rate)


@dataclass(frozen=True)
class _Near:
    """The pulses near each sample, last first, and how much of each falls into it: none of one that does not exist."""

    number: Int[Tensor, "*batch near time"]
    share: Float[Tensor, "*batch near time"]

    @classmethod
    def of(cls, stimulus: Stimulus, rate_hz: float, samples: int) -> "_Near":
        """As many as the fastest train has within four samples."""
        frequency_hz, onset_s, pulses = (
            x[..., None, None] for x in (stimulus.frequency_hz, stimulus.onset_s, stimulus.pulses)
        )
        sample = torch.arange(samples, dtype=pulses.dtype, device=pulses.device)
        fastest_hz = float(frequency_hz.detach().amax()) if frequency_hz.numel() else 0.0
        back = torch.arange(math.ceil(2 * _REACH * fastest_hz / rate_hz) + 1, device=pulses.device).unsqueeze(-1)
        latest = (((sample + _REACH) / rate_hz - onset_s) * frequency_hz).detach().floor()
        number = latest - back
        at = (onset_s + number / frequency_hz) * rate_hz  # in samples
        share = _cubic(sample - at) + (sample == 0) * (at >= 0) * _cubic(1 + at)  # nothing is lost before the first
        there = (number >= 0) & (number < pulses)
        return cls(number.long(), torch.where(there, share, 0.0))

    def weighed(self, weight: Float[Tensor, "*batch pulse"]) -> Float[Tensor, "*batch time"]:
        """The course of pulses that count by their weights."""
        many = weight.shape[-1]
        picked = weight.expand(*self.share.shape[:-2], many).gather(-1, self.number.clamp(0, many - 1).flatten(-2))
        course: Tensor = (self.share * picked.unflatten(-1, self.share.shape[-2:])).sum(-2)
        return course


def _cubic(apart: Tensor) -> Tensor:
    """Weight of a sample in a smooth course so many samples away (Keys 1981, equation 15)."""
    far = apart.abs()
    beside = 1 + far.square() * (1.5 * far - 2.5)
    return torch.where(far < 1, beside, -0.5 * (far - 1) * (_REACH - far).clamp_min(0).square())
