"""The foundation network: a stimulus, some seconds of signal and a few past trials in, a response out. All of it.

Two stages. The *ongoing* stage reads patches of signal: attention over time within a channel, causal, then over
channels through a few hub tokens, so its cost is linear in channels. The *trial* stage has one token a channel and
trial: what was going on, what was delivered as seen from that channel, and, for past trials, what followed. It attends
over channels within a trial, biased by distance, shaft and likeness at rest, and over past trials within a channel; so
past trials of a patient inform a forecast without a gradient step.

    signal -> patches -> [time, hubs] x depth --+-> next patch (ongoing activity, roll-outs)
                                                |
    delivered current, geometry ----------------+-> token -> [channels, past trials, map] x layers -> token
    past responses -----------------------------+                                                      |
    ongoing forecast + waves + kernels on the local current + copied past responses  <-- heads --------+

A response is a mean, an independent scale and a few shared factors, written in cosines of the window, so that it can be
read at any rate. The kernels act on the compressed current near a channel and on what it recruits, cathodes and anodes
apart, pulse by pulse; further ones on pulses as others came before them, on pairs of pulses by the time between them,
and on the train as if it had no pulses. With them the forecast follows pulses in time, whose answers may tire or ring,
and is smooth in amplitude, width, frequency, onset and place.

References: Vaswani et al. 2017 (attention); Dehghani et al., ICML 2023 (normalised queries and keys); Mueller et al.,
ICLR 2022 (fitted trials in context); Steinhardt et al., J Neural Eng 17 (2020) 036009 (kernels apart for polarities).
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

from .ieeg_answer import Answer, Ongoing, Trials, level_of
from .ieeg_layers import Attention, Linear, Map, Mixer, lateness, normed, only
from .ieeg_network import SPREADS_MM, place_features
from .ieeg_sites import (
    COURSE_WAVES,
    DELAYS_S,
    PAIR,
    REACHES,
    RECRUITED,
    TIES,
    TISSUE,
    closeness,
    entry_of,
    heard_ties,
    kernel_answer,
    near_features,
    nearness_of,
    pair_features,
    pairs_answer,
    recruited_features,
    spot_of,
    tie_features,
    tissue_features,
)
from .ieeg_subject import (
    BANDS_HZ,
    FADING_S,
    FINGERPRINT,
    KINDS,
    MODALITIES,
    PAIR_LAGS_S,
    SENSORY_FEATURES,
    TIE_LAGS_S,
    Shots,
    Subject,
)
from .ieeg_waves import PATCH_WAVES, cosines, patches, written

LONGEST = 16  # patches that attention over time looks back on
_WAVES = 48  # of the response, to 48 Hz
_SCALE_WAVES, _FACTOR_WAVES = 8, 24
_LOCAL = 2 * REACHES
_NUMBERS, _SENSES = 8, len(MODALITIES) + 5 + SENSORY_FEATURES
_PLACE = 31  # of `place_features`
_FULL_CHANNELS = 64  # beyond so many, channels hear each other through hubs alone


@dataclass(frozen=True)
class TransformerSize:
    """How large the network is.

    Attributes:
        width: Of a trial token.
        layers: Of the trial stage.
        ongoing_width: Of a patch token.
        ongoing_layers: Of the ongoing stage.
        heads: Of every attention.
        hubs: Tokens that every channel hears, in both stages.
        rhythms: Linear forecasts of ongoing activity that a channel mixes.
        factors: Shared noise factors.
    """

    width: int = 96
    layers: int = 4
    ongoing_width: int = 64
    ongoing_layers: int = 2
    heads: int = 4
    hubs: int = 4
    rhythms: int = 6
    factors: int = 4


Memory = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values over time, one pair a layer, oldest patch first, `[row, channel, head, patch, feature]`."""


class IeegTransformer(nn.Module):
    """Forecasts windows of any patient.

    Args:
        size: Its size.
        source: Stream of the first weights.
    """

    def __init__(self, size: TransformerSize, source: torch.Generator) -> None:
        super().__init__()
        self.size, wide, narrow = size, size.width, size.ongoing_width
        self.where = Map(_PLACE + FINGERPRINT + len(KINDS) + 2, wide, wide, source)
        self.where_ongoing = Linear(wide, narrow, source)
        self.patch = Map(PATCH_WAVES + 1, 2 * narrow, narrow, source)
        self.hubs_ongoing = nn.Parameter(torch.randn(size.hubs, narrow, generator=source))
        self.through_time = nn.ModuleList(Mixer(narrow, size.heads, source) for _ in range(size.ongoing_layers))
        self.through_hubs = nn.ModuleList(Mixer(narrow, size.heads, source) for _ in range(size.ongoing_layers))
        self.patch_maps = nn.ModuleList(Map(narrow, 2 * narrow, narrow, source) for _ in range(size.ongoing_layers))
        self.next_patch = Linear(narrow, 2 * PATCH_WAVES, source, gain=0.0)
        self.rhythm_share = Linear(wide, size.rhythms, source)
        self.rhythm = nn.Parameter(torch.zeros(size.rhythms, 3 * PATCH_WAVES, _WAVES))
        with torch.no_grad():
            self.rhythm.normal_(0.0, 0.003, generator=source)
        self.before = Linear(narrow, wide, source)
        self.near = Map(_LOCAL * (COURSE_WAVES + 1) + TIES, wide, wide, source)
        self.delivered = Map(_NUMBERS + _SENSES + 2 * _PLACE + TISSUE, wide, wide, source)
        self.followed = Map(2 * _WAVES, wide, wide, source)
        self.asked = nn.Parameter(torch.zeros(wide))
        self.unheard = nn.Parameter(torch.zeros(wide))
        self.hubs = nn.Parameter(torch.randn(size.hubs, wide, generator=source))
        self.distance = Linear(len(SPREADS_MM) + 1 + len(TIE_LAGS_S), size.heads, source, gain=0.1)
        self.through_channels = nn.ModuleList(Mixer(wide, size.heads, source) for _ in range(size.layers))
        self.through_trials = nn.ModuleList(Mixer(wide, size.heads, source) for _ in range(size.layers))
        self.maps = nn.ModuleList(Map(wide, 3 * wide, wide, source) for _ in range(size.layers))
        self.nothing = nn.Parameter(torch.zeros(wide))  # a past trial that was not there
        self.level = Linear(1, wide, source)
        self.alike = Linear(PAIR, size.heads * (size.layers + 1), source, gain=0.1)
        self.copies = Attention(wide, size.heads, source)
        kernels = _LOCAL * len(DELAYS_S)
        self.sizes = (_WAVES, kernels, 1, _SCALE_WAVES, size.factors * _FACTOR_WAVES, size.heads, 2 * len(BANDS_HZ))
        self.head = Linear(wide, sum(self.sizes), source, gain=0.0)
        with torch.no_grad():  # factors and copies start small and not at zero, where their product has no slope
            start = sum(self.sizes[:4])
            self.head.weight[start : start + self.sizes[4]].normal_(0.0, 0.02 / math.sqrt(wide), generator=source)
        self.tired = Linear(wide, kernels * len(FADING_S), source, gain=0.0)  # kernels on pulses that follow others
        self.even = Linear(wide, kernels, source, gain=0.0)  # and on trains without pulses
        more = 2 * RECRUITED * len(DELAYS_S) * (2 + len(FADING_S))
        self.recruiting = Linear(wide, more, source, gain=0.0)  # kernels of all courses on what a pulse recruits
        self.recruited = Linear(2 * RECRUITED, wide, source, gain=0.0)
        self.paired = Linear(wide, len(PAIR_LAGS_S) * len(DELAYS_S), source, gain=0.0)  # kernels on pairs of pulses

    def forward(
        self, subject: Subject, past: Shots, asked: Shots, rate_hz: float, *, full: bool | None = None
    ) -> Answer:
        """The windows that are asked for.

        Args:
            subject: Batch of patients `[patient, ...]`.
            past: Trials with their responses `[patient, past trial, ...]`, or none of them.
            asked: Windows without responses `[patient, asked, ...]`; their drive's length is the window's. Contexts may
                be fewer than windows by a whole factor: each is then shared by as many neighbouring windows.
            rate_hz: Samples per second of all of them.
            full: Whether channels hear each other directly; by default where there are at most 64.
        """
        where = self.where_of(subject)
        local = nearness_of(subject)
        known = self.trial(subject, where, local, past, rate_hz, followed=True)
        ask = self.trial(subject, where, local, asked, rate_hz, followed=False)
        level = known.level
        token = torch.cat([known.token, ask.token], 1) + self.level(level.log())
        bias = self.bias(subject, full)
        trials = known.token.shape[1]
        alike = self.likeness(torch.cat([known.spot, ask.spot], 1), known.spot)
        for (channels, others, change), pairs in zip(self.layers, alike, strict=False):
            token = self.across_channels(channels, token, bias, ask.stimulus, known.stimulus)
            heard: Tensor = others.hear(token.transpose(1, 2), *self.told(others, token[:, :trials]), pairs)
            token = token + heard.transpose(1, 2)
            token = token + change(normed(token))
        copied = alike[-1][..., trials:, :]
        return self.answer(token[:, trials:], token[:, :trials], known, ask, local, level, copied, rate_hz)

    def likeness(self, asks: Tensor, told: Tensor) -> list[Float[Tensor, "patient 1 head to from"]]:
        """How much a trial listens to a past one, by how near their sites are and how alike their trains.

        Args:
            asks: Descriptors of trials, `[patient, trial, number]`.
            told: Those of the past ones.

        Returns:
            One bias for each layer and one for the copies; before the past trials, the one that was not there.
        """
        pairs = self.alike(pair_features(asks, told)).unflatten(-1, (-1, self.size.heads))  # [.., layer, head]
        return [F.pad(one, (1, 0)).unsqueeze(1) for one in pairs.permute(3, 0, 4, 1, 2)]

    @property
    def layers(self) -> list[tuple[Mixer, Mixer, Map]]:
        """Of the trial stage: over channels, over past trials, and each token by itself."""
        layers = zip(self.through_channels, self.through_trials, self.maps, strict=True)
        return cast(list[tuple[Mixer, Mixer, Map]], list(layers))

    def ongoing(self, subject: Subject, shots: Shots, rate_hz: float) -> Ongoing:
        """Tokens of the ongoing signal, one a patch, each made of what came before it.

        Args:
            subject: Batch of patients.
            shots: Contexts `[patient, shot, channel, past]`; rows of the answer are patients times shots.
            rate_hz: Samples per second.
        """
        return self._ongoing(subject, self.standing(subject), shots, rate_hz)

    def _ongoing(self, subject: Subject, where: Tensor, shots: Shots, rate_hz: float) -> Ongoing:
        patch = patches(shots.context * shots.heard, rate_hz, LONGEST)
        share = patches(shots.heard.to(shots.context), rate_hz, LONGEST)[..., :1]
        contexts = patch.shape[1]
        rows = [x.unsqueeze(1).expand(-1, contexts, *x.shape[1:]).flatten(0, 1) for x in (where, subject.there)]
        token, _ = self.follow(rows[0], patch.flatten(0, 1), share.flatten(0, 1), None, rows[1])
        return Ongoing(token, patch.flatten(0, 1))

    def follow(
        self, where: Tensor, patch: Tensor, share: Tensor, memory: Memory | None = None, there: Tensor | None = None
    ) -> tuple[Float[Tensor, "row channel patch width"], Memory]:
        """Tokens of patches that follow those in memory, and the memory after them.

        Args:
            where: What is known of each channel, see `standing`, `[#row, channel, width]`.
            patch: New patches in cosines, `[row, channel, patch, wave]`.
            share: How much of each is good, in its first cosine, `[row, channel, patch, 1]`.
            memory: Of what went before; None where nothing did.
            there: Which channels are no padding, `[#row, channel]`; all by default.
        """
        token: Tensor = self.patch(torch.cat([patch, share], -1)) + where.unsqueeze(2)
        hubs = self.hubs_ongoing.expand(token.shape[0], token.shape[2], -1, -1)  # [row, patch, hub, width]
        heard = None if there is None else only(there[:, None, None, None, :], token)
        kept: list[tuple[Tensor, Tensor]] = []
        for layer, (time, space, change) in enumerate(self.ongoing_layers):
            key, value = time.told(token)
            if memory is not None:
                key, value = (torch.cat([old, new], -2) for old, new in zip(memory[layer], (key, value), strict=True))
            late = lateness(token.shape[2], key.shape[-2], self.size.heads, LONGEST, token)
            token = token + time.hear(token, key, value, late)
            by_patch = token.transpose(1, 2)
            hubs = hubs + space(hubs, by_patch, heard)
            token = token + space(by_patch, hubs, None).transpose(1, 2)
            token = token + change(normed(token))
            newest = slice(max(0, key.shape[-2] - LONGEST + 1), None)
            kept.append((key[..., newest, :], value[..., newest, :]))
        return token, tuple(kept)

    @property
    def ongoing_layers(self) -> list[tuple[Mixer, Mixer, Map]]:
        """Of the ongoing stage: over time, through the hubs, and each token by itself."""
        layers = zip(self.through_time, self.through_hubs, self.patch_maps, strict=True)
        return cast(list[tuple[Mixer, Mixer, Map]], list(layers))

    def standing(self, subject: Subject) -> Float[Tensor, "patient channel width"]:
        """What the ongoing stage knows of channels before any signal: place, kind and rest."""
        where: Tensor = self.where_ongoing(self.where_of(subject))
        return where

    def following(self, ongoing: Ongoing) -> tuple[Tensor, Tensor]:
        """Mean and log scale of the cosines of the patch after each patch, `[row, channel, patch, wave]`."""
        return self._next(ongoing.token)

    def _next(self, token: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self.next_patch(normed(token)).chunk(2, -1)
        return mean, 3 * torch.tanh(log_scale / 3)

    def drawn(self, token: Tensor, noise: Tensor) -> Float[Tensor, "row channel 1 wave"]:
        """A draw of the patch after the last of these tokens; noise is standard normal."""
        mean, log_scale = self._next(token[:, :, -1:])
        out: Tensor = mean + log_scale.exp() * noise
        return out

    def where_of(self, subject: Subject) -> Float[Tensor, "patient channel width"]:
        """What is known of each channel but its signal: place, kind, and what it is like at rest."""
        known = subject.heard.unsqueeze(-1)
        kind = F.one_hot(subject.kind, len(KINDS)).to(subject.fingerprint)
        more = torch.stack([subject.bipolar, subject.heard], -1).to(subject.fingerprint)
        place = place_features(subject.place_mm).to(subject.fingerprint)
        where: Tensor = self.where(torch.cat([place, subject.fingerprint * known, kind, more], -1))
        return where + torch.where(known, 0.0, self.unheard)

    def trial(
        self, subject: Subject, where: Tensor, nearness: Tensor, shots: Shots, rate_hz: float, followed: bool
    ) -> Trials:
        """Tokens of trials: ongoing activity, what was delivered, and what followed where that is known."""
        contexts, windows = shots.context.shape[1], shots.charge.shape[1]
        ongoing = self._ongoing(subject, self.where_ongoing(where), shots, rate_hz)
        rows = (len(where), contexts)
        last = ongoing.token[:, :, -1].unflatten(0, rows)
        carried = self._carried(where, ongoing.patch.unflatten(0, rows))
        near = [near_features(nearness, shots, rate_hz), tie_features(subject, nearness, shots)]
        token = self.near(torch.cat(near, -1)) + where.unsqueeze(1)
        some = shots.course.sum(-1).clamp_max(1.0)[..., None, None, None]  # a current without pulses recruits nothing
        token = token + self.recruited((some * recruited_features(nearness, shots.charge)).flatten(3))
        each = windows // max(1, contexts)
        token = token + self.before(last).repeat_interleave(each, 1)
        carried = carried.repeat_interleave(each, 1)
        site = [entry_of(subject, shots), tissue_features(subject, nearness, shots)]
        stimulus = self.delivered(torch.cat([shots.numbers, shots.senses, *site], -1))
        token = token + stimulus.unsqueeze(2)
        evoked = None
        if followed:
            response = written(shots.response * shots.good, _WAVES, rate_hz)
            evoked = response - carried
            token = token + self.followed(torch.cat([response, evoked], -1) / level_of(evoked))
        else:
            token = token + self.asked
        return Trials(token, stimulus, spot_of(subject, shots), shots, carried, evoked, ongoing)

    def _carried(self, where: Tensor, patch: Tensor) -> Float[Tensor, "patient shot channel wave"]:
        """What ongoing activity alone would go on to be: a mixture of linear forecasts from the last patches."""
        recent = patch[..., -3:, :]
        if recent.shape[-2] < 3:
            recent = F.pad(recent, (0, 0, 3 - recent.shape[-2], 0))
        share = self.rhythm_share(where).softmax(-1)  # [patient, channel, rhythm]
        return torch.einsum("bcr,bncp,rpw->bncw", share, recent.flatten(-2), self.rhythm)

    def bias(self, subject: Subject, full: bool | None) -> tuple[Tensor | None, Tensor]:
        """How much a channel listens to another by distance, shaft and rest; to nobody where all use hubs alone."""
        apart = torch.cdist(subject.place_mm.nan_to_num(0.0), subject.place_mm.nan_to_num(0.0))
        known = subject.place_mm.isfinite().all(-1)
        pair = (known.unsqueeze(-1) & known.unsqueeze(-2)).unsqueeze(-1)
        close = closeness(apart) * pair
        same = (subject.shaft.unsqueeze(-1) == subject.shaft.unsqueeze(-2)).unsqueeze(-1)
        ties = heard_ties(subject).to(close)
        bias = self.distance(torch.cat([close, same.to(close), ties], -1)).movedim(-1, 1)  # [patient, head, to, from]
        direct = apart.shape[-1] <= _FULL_CHANNELS if full is None else full
        there = subject.there[:, None, None, :]
        return bias.masked_fill(~there, -math.inf) if direct else None, there

    def across_channels(
        self, mixer: Mixer, token: Tensor, bias: tuple[Tensor | None, Tensor], ask: Tensor, known: Tensor
    ) -> Tensor:
        """Channels hear the trial's stimulus, its hubs and, where they are few, each other."""
        between, there = bias
        stimulus = torch.cat([known, ask], 1).unsqueeze(2)
        hubs = self.hubs.expand(*token.shape[:2], -1, -1)
        hubs = hubs + mixer(hubs, torch.cat([stimulus, token], 2), only(_with(there, 1), token))
        heard = torch.cat([stimulus, hubs], 2)
        if between is None:
            beside: Tensor = mixer(token, heard, None)
            return token + beside
        mask = torch.cat([between.new_zeros(*between.shape[:-1], heard.shape[2]), between], -1).unsqueeze(1)
        among: Tensor = mixer(token, torch.cat([heard, token], 2), mask)
        return token + among

    def told(self, mixer: Mixer, past: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of past trials' tokens, with the one that was not there before them."""
        return mixer.told(self.with_nothing(past))

    def with_nothing(self, past: Tensor) -> Float[Tensor, "patient channel trial width"]:
        """Tokens of past trials by channel, with the one that was not there before them."""
        by_channel = past.transpose(1, 2)
        return torch.cat([self.nothing.expand(*by_channel.shape[:2], 1, -1), by_channel], 2)

    def answer(
        self, asked: Tensor, known: Tensor, past: Trials, ask: Trials, nearness: Tensor, level: Tensor,
        alike: Tensor, rate_hz: float,
    ) -> Answer:  # fmt: skip
        """The heads.

        Args:
            asked: Tokens of the windows asked for, after the last layer.
            known: Those of the past trials.
            past: What went into these.
            ask: What went into those.
            nearness: How much of a contact's current a channel feels.
            level: How large past responses were.
            alike: The last of `likeness`.
            rate_hz: Samples per second.
        """
        samples = ask.shots.course.shape[-1]
        told = normed(asked)
        wave, kernel, gain, scale, factor, copied, statistics = self.head(told).split(self.sizes, -1)
        waves = cosines(_WAVES, samples, wave, rate_hz)
        size = level * (2 * torch.tanh(gain / 2)).exp()  # evoked responses differ a hundredfold between patients
        mean = (ask.carried + size * wave + self._copied(asked, known, past, copied, alike)) @ waves
        kernel = torch.cat([kernel, self.tired(told), self.even(told)], -1).unflatten(
            -1, (-1, 2, REACHES, len(DELAYS_S))
        )
        more = self.recruiting(told).unflatten(-1, (-1, 2, RECRUITED, len(DELAYS_S)))
        kernel = size[..., None, None, None] * torch.cat([kernel, more], -2)
        mean = mean + kernel_answer(kernel, nearness, ask.shots, rate_hz)
        pairs = size.unsqueeze(-1) * self.paired(told).unflatten(-1, (len(PAIR_LAGS_S), -1))
        mean = mean + pairs_answer(pairs, ask.shots, rate_hz)
        slow = cosines(_SCALE_WAVES, samples, wave, rate_hz)
        factors = factor.unflatten(-1, (self.size.factors, -1)) @ cosines(_FACTOR_WAVES, samples, wave, rate_hz)
        return Answer(
            mean, 3 * torch.tanh(scale @ slow / 3), factors.transpose(2, 3), statistics.unflatten(-1, (-1, 2)), told,
            ask.ongoing,
        )  # fmt: skip

    def _copied(self, asked: Tensor, known: Tensor, past: Trials, gain: Tensor, alike: Tensor) -> Tensor:
        """Past responses, less the ongoing activity they rode on, weighted by how much alike the trials are."""
        if past.evoked is None or not known.shape[1]:
            return asked.new_zeros(())
        share = self.copies.shares(asked.transpose(1, 2), self.with_nothing(known), alike)[..., 1:]
        evoked = past.evoked.transpose(1, 2).unsqueeze(2)  # [patient, channel, 1, trial, wave]
        copied = (share @ evoked).permute(0, 3, 1, 2, 4)  # [patient, asked, channel, head, wave]
        return (gain.unsqueeze(-1) * copied).sum(-2)


def _with(there: Tensor, more: int) -> Tensor:
    """There, with some that always are in front; [patient, 1, 1, 1, channel]."""
    there = there.unsqueeze(1)
    return torch.cat([there.new_ones(*there.shape[:-1], more), there], -1)
