"""Where current enters and who feels it: the inputs that the simpler models share.

A channel feels the rectified current of every contact through Gaussians of distance, from
a neighbour's reach to a lobe's, so that a site never stimulated is answered by what sites
at the same distance taught. A place that is unknown is felt by nobody; the current of
each contact is therefore also told by name.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.forecaster import Trials
from stimopt.montage import Montage
from stimopt.stimulus import Stimulus, no_stimulus

from .ieeg_network import SPREADS_MM, place_features, stimulus_features
from .window import Window


def spread_kernels(montage: Montage, like: Tensor) -> Float[Tensor, "spread channel contact"]:
    """Share of a contact's current that a channel feels at each scale of distance; zero where a place is unknown."""
    apart = torch.cdist(montage.channel_position_mm, montage.contact_position_mm)
    width = apart.new_tensor(SPREADS_MM).reshape(-1, 1, 1)
    return (-apart.square() / (2 * width.square())).exp().nan_to_num(0.0).to(like)


def felt(montage: Montage, drive: Float[Tensor, "*batch input time"]) -> Float[Tensor, "*batch channel feature time"]:
    """The drive as each channel feels it: polarity (cathodic, anodic) times scale of distance.

    Args:
        montage: Places of contacts and channels.
        drive: Per contact, cathodic of all contacts, then anodic; the last axis may be anything.
    """
    polar = drive.unflatten(-2, (2, len(montage.contacts)))
    return torch.einsum("sck,...pkt->...cpst", spread_kernels(montage, drive), polar).flatten(-3, -2)


def entry_numbers(window: Window, stimulus: Stimulus) -> Float[Tensor, "*batch feature"]:
    """Numbers of a stimulus: its train, how much charge entered at each contact, and where; zero for silence."""
    total = window.drive_ma(stimulus).sum(-1) * (1e3 / window.rate_hz)  # uC of each input
    entered = torch.asinh(4 * total)
    places = place_features(window.montage.contact_position_mm).to(total)
    where = entered.unflatten(-1, (2, len(window.montage.contacts))) @ places
    return torch.cat([stimulus_features(stimulus), entered, where.flatten(-2)], -1)


def entry_width(window: Window) -> int:
    """How many numbers `entry_numbers` gives."""
    return entry_numbers(window, no_stimulus(window.montage, (1,))).shape[-1]


def site_current(stimulus: Stimulus) -> Float[Tensor, "*batch contact"]:
    """How the current is shared among the contacts, its largest part 1 in size; zero for silence."""
    current = torch.where(stimulus.silent.unsqueeze(-1), 0.0, stimulus.amplitude_ma)
    size = current.abs().amax(-1, keepdim=True) if current.shape[-1] else current.sum(-1, keepdim=True)
    return current / torch.where(size > 0, size, 1.0)


def at_rest_uv(trials: Trials) -> Float[Tensor, " channel"]:
    """Mean of each channel before the stimuli."""
    return trials.context.signal_uv.mean((0, -1))


def unit_uv(trials: Trials) -> Float[Tensor, " channel"]:
    """Size of each channel's responses about its rest, never zero: a unit in which channels count alike."""
    off = trials.response.signal_uv - at_rest_uv(trials).unsqueeze(-1)
    return off.square().mean((0, -1)).sqrt().clamp_min(1e-6)


def unstimulated_uv(trials: Trials) -> Float[Tensor, "channel time"]:
    """Mean window of the silent trials; where there are none, the mean before stimuli."""
    silent = trials.stimulus.silent
    signal = trials.response.signal_uv
    return (
        signal[silent].mean(0) if bool(silent.any()) else at_rest_uv(trials).unsqueeze(-1).repeat(1, signal.shape[-1])
    )
