"""What past trials leave in the foundation network, computed once and heard by every question after it.

Past trials never hear the trial that is asked for, so their keys and values in each layer are the same for all
stimuli and all contexts of a patient. A search asks thousands of times; with them kept, a question costs one
trial and not one more than the past. The answer is that of the network's own forward pass, up to rounding.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .ieeg_answer import Answer, Trials
from .ieeg_layers import normed
from .ieeg_sites import nearness_of
from .ieeg_subject import Shots, Subject
from .ieeg_transformer import IeegTransformer


@dataclass(frozen=True)
class Recall:
    """A patient and the past as the network holds them, batch of one patient.

    Attributes:
        subject: Who.
        where: Token of each channel's place and rest.
        nearness: How much of a contact's current a channel feels.
        level: How large its past responses were.
        bias: How much channels listen to each other, and which are there.
        told: Keys and values of the past trials, layer by layer.
        token: Of the past trials after the last layer.
        past: What went into them.
    """

    subject: Subject
    where: Tensor
    nearness: Tensor
    level: Tensor
    bias: tuple[Tensor | None, Tensor]
    told: tuple[tuple[Tensor, Tensor], ...]
    token: Tensor
    past: Trials


def recall(network: IeegTransformer, subject: Subject, past: Shots, rate_hz: float) -> Recall:
    """The past of a patient, `[1, ...]`, without gradients: it is fitted to by no one, only asked of."""
    with torch.inference_mode(False), torch.no_grad():
        where, nearness, bias = network.where_of(subject), nearness_of(subject), network.bias(subject, None)
        known = network.trial(subject, where, nearness, past, rate_hz, followed=True)
        level, nobody = known.level, known.stimulus[:, :0]
        token, told = known.token + network.level(level.log()), []
        alike = network.likeness(known.spot, known.spot)
        for (channels, others, change), pairs in zip(network.layers, alike, strict=False):
            token = network.across_channels(channels, token, bias, nobody, known.stimulus)
            told.append(network.told(others, token))
            token = token + others.hear(token.transpose(1, 2), *told[-1], pairs).transpose(1, 2)
            token = token + change(normed(token))
    return Recall(subject, where, nearness, level, bias, tuple(told), token, known)


def ask(network: IeegTransformer, recalled: Recall, asked: Shots, rate_hz: float) -> Answer:
    """The windows that are asked for, as `IeegTransformer.forward` would answer them.

    Args:
        network: The one that recalls.
        recalled: Of `recall`.
        asked: Windows `[1, asked, ...]`; their contexts may be one for all.
        rate_hz: Of everything.
    """
    recalled, asked = _in_use(recalled, asked)
    now = network.trial(recalled.subject, recalled.where, recalled.nearness, asked, rate_hz, followed=False)
    token, nobody = now.token + network.level(recalled.level.log()), now.stimulus[:, :0]
    alike = network.likeness(now.spot, recalled.past.spot)
    for (channels, others, change), told, pairs in zip(network.layers, recalled.told, alike, strict=False):
        token = network.across_channels(channels, token, recalled.bias, now.stimulus, nobody)
        token = token + others.hear(token.transpose(1, 2), *told, pairs).transpose(1, 2)
        token = token + change(normed(token))
    past, near = recalled.past, recalled.nearness
    return network.answer(token, recalled.token, past, now, near, recalled.level, alike[-1], rate_hz)


def _in_use(recalled: Recall, asked: Shots) -> tuple[Recall, Shots]:
    """Without the contacts that no stimulus uses, whose part is zero, unless a gradient asks what they would add."""
    if asked.charge.requires_grad:
        return recalled, asked
    used = (asked.charge != 0).flatten(0, 2).any(0)
    subject = replace(recalled.subject, contact_mm=recalled.subject.contact_mm[:, used])
    near = recalled.nearness[..., used]
    return replace(recalled, subject=subject, nearness=near), replace(asked, charge=asked.charge[..., used])
