"""Where current enters and who is near: what the foundation network is told of a stimulus, and how it answers pulses.

A channel feels a current in two ways. *Near* it, current counts by a Gaussian of its distance, cathodes and anodes
apart throughout (Steinhardt et al., J Neural Eng 17 (2020) 036009). As a *field*, it counts by the potential of point
sources in a medium without borders, 1/r blunted at short distance, where cathodes and anodes cancel before the sign is
told: what a pair does fades with the square of distance, and moves as current moves between its contacts.

What lies at a site is told by the channels around it: how they are at rest, and how the rest of the implant goes with
them there. Tissue that is loud near a contact is near to that contact, for what it sends and for what it is sent.

Everything is of distances in mm and charges in units of 1 mA for 200 us, so it holds in any implant, and is
differentiable in current, width, frequency, onset and, through the shares of contacts, in place. Places that are not
known are near to nothing.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from .ieeg_network import SPREADS_MM, place_features
from .ieeg_subject import FINGERPRINT, TIE_LAGS_S, Shots, Subject
from .ieeg_waves import HORIZON_S, cosines

COURSE_WAVES = 12  # in which the course of a current is told
DELAYS_S = (0.0, 0.008, 0.016, 0.03, 0.05, 0.08, 0.13, 0.2, 0.3)  # middles of the kernels' bumps
FIELDS_MM = (3.0, 9.0)  # where 1/r is blunted: as far as a region's tissue may lie from the contact that records it
REACHES = len(SPREADS_MM) + len(FIELDS_MM)
_AROUND = 3  # spreads, from the narrowest, in which a channel counts as being around a site
HALF = (0.5, 2.0)  # units of charge, felt as a field, that recruit half of the axons: what tissue needs differs
RECRUITED = len(FIELDS_MM) * len(HALF)
TISSUE = 2 * _AROUND * (FINGERPRINT + 2)  # of `tissue_features`
TIES = _AROUND * len(TIE_LAGS_S)  # of `tie_features`
PAIR = 4 * len(SPREADS_MM) + 8 + 1  # of `pair_features`
_NOTHING = 1e-9  # units of charge
_FAINT = 0.02  # units of charge, a fifth of the weakest pulse that pretraining drew, over which a place fades


def nearness_of(subject: Subject) -> Float[Tensor, "patient reach channel contact"]:
    """How much of a contact's current a channel feels, near it and as a field; nothing where a place is unknown."""
    apart = torch.cdist(subject.place_mm.nan_to_num(0.0), subject.contact_mm.nan_to_num(0.0))
    known = subject.place_mm.isfinite().all(-1).unsqueeze(-1) & subject.contact_mm.isfinite().all(-1).unsqueeze(-2)
    blunt = apart.new_tensor(FIELDS_MM)
    field = blunt / (apart.square().unsqueeze(-1) + blunt.square()).sqrt()
    return (torch.cat([closeness(apart), field], -1) * known.unsqueeze(-1)).movedim(-1, 1)


def closeness(apart_mm: Float[Tensor, "*pair"]) -> Float[Tensor, "*pair spread"]:
    """How near places are: a Gaussian of their distance at each of the spreads."""
    width = apart_mm.new_tensor(SPREADS_MM)
    return (-apart_mm.square().unsqueeze(-1) / (2 * width.square())).exp()


def near_features(nearness: Tensor, shots: Shots, rate_hz: float) -> Float[Tensor, "patient shot channel feature"]:
    """The course of the charge that enters near each channel, and how near it enters whatever its size."""
    course = shots.course @ cosines(COURSE_WAVES, shots.course.shape[-1], shots.course, rate_hz).mT
    entered = _felt(nearness, shots.charge).unsqueeze(-1) * course[:, :, None, None, None, :]
    near = 2 * _felt(nearness, _shares(shots)).unsqueeze(-1)
    return torch.cat([entered, near], -1).flatten(3).asinh()


def _felt(
    nearness: Tensor, charge: Float[Tensor, "patient shot 2 contact"]
) -> Float[Tensor, "patient shot channel 2 reach"]:
    """What enters at contacts, compressed, as channels feel it: near cathodes and anodes; below and above no field."""
    near, field = nearness.split([len(SPREADS_MM), len(FIELDS_MM)], 1)
    whole = charge.sum(-1, keepdim=True)
    compressed = charge * whole.asinh() / (whole + _NOTHING)  # together, or a current would grow by being shared
    local = torch.einsum("bsck,bnpk->bncps", near, compressed)
    signed = torch.einsum("bsck,bnk->bncs", field, charge[:, :, 0] - charge[:, :, 1])
    around = torch.stack([signed.clamp_min(0), (-signed).clamp_min(0)], -2).asinh()
    return torch.cat([local, around], -1)


def recruited_features(nearness: Tensor, charge: Tensor) -> Float[Tensor, "patient shot channel 2 recruited"]:
    """Share of the axons near a channel that a pulse recruits: with the square of the field, below and above none.

    The field of a pair changes its sign between the contacts, and recruitment is smooth there; so what a pulse does
    moves with the place as twins, and tissue, have it.
    """
    field = nearness[:, len(SPREADS_MM) :]
    signed = torch.einsum("bsck,bnk->bncs", field, charge[:, :, 0] - charge[:, :, 1])
    strength = (signed.unsqueeze(-1) / signed.new_tensor(HALF)).flatten(-2)
    share = strength.square() / (1 + strength.square())
    below = strength > 0  # cathodes lower the potential
    return torch.stack([torch.where(below, share, 0.0), torch.where(below, 0.0, share)], -2)


def _shares(shots: Shots) -> Float[Tensor, "patient shot 2 contact"]:
    """Share of each contact in the charge that enters and in the one that leaves; fading with charge, zero without."""
    charge = shots.charge * shots.course.sum(-1)[..., None, None]
    return charge / (charge.sum(-1, keepdim=True) + _FAINT)


def entry_of(subject: Subject, shots: Shots) -> Float[Tensor, "patient shot feature"]:
    """Where current entered and left, as the mean of the places' features."""
    share = _shares(shots)
    return (share @ place_features(subject.contact_mm).to(share).unsqueeze(1)).flatten(2)


def tissue_features(subject: Subject, nearness: Tensor, shots: Shots) -> Float[Tensor, "patient shot feature"]:
    """What channels around cathodes and around anodes are like at rest, and how many there are; zero for silence."""
    around = _around(subject, nearness, shots)
    usual = _usual(subject.spread_uv, subject.heard & subject.there)
    loud = (subject.spread_uv / usual).log().unsqueeze(-1)
    rest = torch.cat([subject.fingerprint, loud], -1) * subject.heard.unsqueeze(-1)
    many = around.sum(-1, keepdim=True)
    mean = torch.einsum("bnpsc,bcf->bnpsf", around, rest) / (many + _FAINT)
    return torch.cat([_loudness(shots)[..., None, None] * mean, many.log1p()], -1).flatten(2)


def tie_features(subject: Subject, nearness: Tensor, shots: Shots) -> Float[Tensor, "patient shot channel feature"]:
    """How each channel goes at rest with those around the site; zero for silence."""
    around = _around(subject, nearness, shots).sum(2)  # [patient, shot, spread, channel]
    tied = torch.einsum("bnsd,bdcl->bncsl", around, heard_ties(subject))
    tied = tied * _loudness(shots).mean(-1)[:, :, None, None, None]
    return (tied / (around.sum(-1) + _FAINT)[:, :, None, :, None]).flatten(3)


def heard_ties(subject: Subject) -> Float[Tensor, "patient channel channel lag"]:
    """Ties between channels that are recorded; none with others."""
    known = subject.heard & subject.there
    return subject.tie * (known.unsqueeze(-1) & known.unsqueeze(-2)).unsqueeze(-1)


def _around(subject: Subject, nearness: Tensor, shots: Shots) -> Float[Tensor, "patient shot 2 spread channel"]:
    near = nearness[:, :_AROUND] * (subject.heard & subject.there)[:, None, :, None]
    return torch.einsum("bsck,bnpk->bnpsc", near, _shares(shots))


def _loudness(shots: Shots) -> Float[Tensor, "patient shot 2"]:
    """Within a thousandth of 1 for charges of pretraining, and to zero with the charge: a mean alone does not fade."""
    return 1 - (1 - _shares(shots).sum(-1)).pow(4)


def _usual(spread_uv: Tensor, known: Tensor) -> Float[Tensor, "patient 1"]:
    """Geometric mean of the spreads of a patient's recorded channels."""
    count = known.sum(-1, keepdim=True).clamp_min(1)
    return ((spread_uv.log() * known).sum(-1, keepdim=True) / count).exp()


def spot_of(subject: Subject, shots: Shots) -> Float[Tensor, "patient shot number"]:
    """Middles of the cathodes and the anodes in mm, how much there is of either, and the numbers of the train."""
    known = subject.contact_mm.isfinite().all(-1)[:, None, None]
    share = _shares(shots) * known
    there = share.sum(-1)
    middle = share @ subject.contact_mm.nan_to_num(0.0).to(share).unsqueeze(1) / (there.unsqueeze(-1) + 1e-6)
    return torch.cat([middle.flatten(2), there, shots.numbers], -1)


def pair_features(
    asks: Float[Tensor, "patient to number"], told: Float[Tensor, "patient from number"]
) -> Float[Tensor, "patient to from feature"]:
    """How near sites are, cathodes and anodes each with each, and how far trains differ."""
    places, trains = [], []
    for spot in (asks, told):
        places.append((spot[..., :6].unflatten(-1, (2, 3)), spot[..., 6:8]))
        trains.append(spot[..., 8:])
    (one, here), (other, there) = places
    apart = torch.cdist(one.flatten(1, 2), other.flatten(1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    both = here[:, :, :, None, None] * there[:, None, None]  # [patient, to, polarity, from, polarity]
    close = (closeness(apart) * both.unsqueeze(-1)).movedim(2, 3).flatten(3)
    differ = (trains[0].unsqueeze(2) - trains[1].unsqueeze(1)).abs()
    return torch.cat([close, differ, both.diagonal(dim1=2, dim2=4).mean(-1, keepdim=True)], -1)


def kernel_answer(
    kernel: Float[Tensor, "patient shot channel course 2 reached delay"], nearness: Tensor, shots: Shots, rate_hz: float
) -> Float[Tensor, "patient shot channel time"]:
    """Kernels on each pulse that enters near a channel, apart for cathodes and anodes.

    The first reaches are of its compressed charge, the last of what it recruits. The first course is of pulses
    as they come, the next of the same weighted by what earlier pulses left, the last spread evenly over the train.

    What is compressed is the charge of a pulse, not that of a sample, so it does not depend on how a pulse falls on
    the samples: else a forecast would move with the frequency for no reason but the rate.
    """
    late = _lagged(_bumps(shots.course.shape[-1], rate_hz, shots.course))  # [time, delay, time]
    courses = torch.cat([shots.course.unsqueeze(2), shots.repeated, shots.even.unsqueeze(2)], 2)
    course = (courses @ late.flatten(1)).unflatten(-1, late.shape[1:])  # [patient, shot, course, delay, time]
    reached = torch.cat([_felt(nearness, shots.charge), recruited_features(nearness, shots.charge)], -1)
    felt = torch.einsum("bncrpsd,bncps->bncrd", kernel, reached)
    answer: Tensor = felt.flatten(3) @ course.flatten(2, 3)
    return answer


def pairs_answer(
    kernel: Float[Tensor, "patient shot channel lag delay"], shots: Shots, rate_hz: float
) -> Float[Tensor, "patient shot channel time"]:
    """Kernels on pairs of pulses, by how long the second follows the first; with the compressed charge of a pulse."""
    late = _lagged(_bumps(shots.course.shape[-1], rate_hz, shots.course))
    course = (shots.paired @ late.flatten(1)).unflatten(-1, late.shape[1:])  # [patient, shot, lag, delay, time]
    strength = shots.charge.sum((-2, -1)).asinh()[..., None, None]
    answer: Tensor = kernel.flatten(3) @ (strength * course.flatten(2, 3))
    return answer


def _lagged(bumps: Float[Tensor, "delay time"]) -> Float[Tensor, "time delay time"]:
    """The answer of each bump to a unit at each time: a product with it is a causal convolution, and cheap here."""
    samples = bumps.shape[-1]
    lag = torch.arange(samples, device=bumps.device) - torch.arange(samples, device=bumps.device).unsqueeze(-1)
    return bumps[:, lag.clamp_min(0)].transpose(0, 1) * (lag >= 0).unsqueeze(1)


def _bumps(samples: int, rate_hz: float, like: Tensor) -> Float[Tensor, "delay time"]:
    """Triangles between neighbouring delays; they sum to 1 up to the last one."""
    time = torch.arange(samples, dtype=like.dtype, device=like.device) / rate_hz
    at = torch.tensor(DELAYS_S, dtype=like.dtype, device=like.device).unsqueeze(-1)
    before = F.pad(at.diff(dim=0), (0, 0, 1, 0), value=1.0)
    after = F.pad(at.diff(dim=0), (0, 0, 0, 1), value=HORIZON_S - DELAYS_S[-1])
    return torch.minimum(1 + (time - at) / before, 1 - (time - at) / after).clamp_min(0) * 0.3
