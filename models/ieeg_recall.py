"""What past trials leave in the foundation network, computed once and heard by every question after it.

Past trials never hear the trial that is asked for, so their keys and values in each layer are the same for all
stimuli and all contexts of a patient. A search asks thousands of times; with them kept, a question costs one
trial and not one more than the past. The answer is that of the network's own forward pass, up to rounding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from .ieeg_subject import Shots, Subject
from .ieeg_transformer import Answer, IeegTransformer, _heads, _Mixer, _nearness, _normed, _Trials


@dataclass(frozen=True)
class Recall:
    """A patient and the past as the network holds them, batch of one patient.

    Attributes:
        subject: Who.
        where: Token of each channel's place and rest.
        nearness: How much of a contact's current a channel feels.
        bias: How much channels listen to each other, and which are there.
        told: Keys and values of the past trials, layer by layer.
        token: Of the past trials after the last layer.
        past: What went into them.
    """

    subject: Subject
    where: Tensor
    nearness: Tensor
    bias: tuple[Tensor, Tensor]
    told: tuple[tuple[Tensor, Tensor], ...]
    token: Tensor
    past: _Trials


def recall(network: IeegTransformer, subject: Subject, past: Shots, rate_hz: float) -> Recall:
    """The past of a patient, `[1, ...]`, without gradients: it is fitted to by no one, only asked of."""
    with torch.inference_mode(False), torch.no_grad():
        where, nearness, bias = network._where(subject), _nearness(subject), network._bias(subject, None)
        known = network._trial(subject, where, nearness, past, rate_hz, followed=True)
        token, told, nobody = known.token, [], known.stimulus[:, :0]
        layers = zip(network.through_channels, network.through_trials, network.maps, strict=True)
        for channels, others, change in layers:
            token = network._across_channels(channels, token, bias, nobody, known.stimulus)
            told.append(_told(network, others, token))
            token = network._across_trials(others, token, token.shape[1])
            token = token + change(_normed(token))
    return Recall(subject, where, nearness, bias, tuple(told), token, known)


def ask(network: IeegTransformer, recalled: Recall, asked: Shots, rate_hz: float) -> Answer:
    """The windows that are asked for, as `IeegTransformer.forward` would answer them.

    Args:
        network: The one that recalls.
        recalled: Of `recall`.
        asked: Windows `[1, asked, ...]`; their contexts may be one for all.
        rate_hz: Of everything.
    """
    now = network._trial(recalled.subject, recalled.where, recalled.nearness, asked, rate_hz, followed=False)
    token, nobody = now.token, now.stimulus[:, :0]
    layers = zip(network.through_channels, network.through_trials, network.maps, recalled.told, strict=True)
    for channels, others, change, told in layers:
        token = network._across_channels(channels, token, recalled.bias, now.stimulus, nobody)
        token = token + _heard(others, token.transpose(1, 2), *told).transpose(1, 2)
        token = token + change(_normed(token))
    return network._answer(token, recalled.token, recalled.past, now, recalled.nearness, rate_hz)


def _told(network: IeegTransformer, mixer: "_Mixer", token: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of past trials, and of the one that was not there."""
    by_channel = token.transpose(1, 2)
    told = torch.cat([network.nothing.expand(*by_channel.shape[:2], 1, -1), by_channel], 2)
    _, key = mixer.pairs(told[..., :0, :], told)
    return key, _heads(mixer.value(_normed(told)), mixer.heads)


def _heard(mixer: "_Mixer", asks: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, _ = mixer.pairs(asks, asks[..., :0, :])
    heard = F.scaled_dot_product_attention(query, key, value)
    mixed: Tensor = mixer.out(heard.transpose(-3, -2).flatten(-2))
    return mixed
