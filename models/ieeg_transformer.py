"""The foundation network: a stimulus, some seconds of signal and a few past trials in, a response out. All of it.

Two stages. The *ongoing* stage reads patches of signal: attention over time within a channel, causal, then over
channels through a few hub tokens, so its cost is linear in channels. The *trial* stage has one token a channel and
trial: what was going on, what was delivered as seen from that channel, and, for past trials, what followed. It attends
over channels within a trial, biased by distance and shaft, and over past trials within a channel; so past trials of a
patient inform a forecast without a gradient step.

    signal -> patches -> [time, hubs] x depth --+-> next patch (ongoing activity, roll-outs)
                                                |
    delivered current, geometry ----------------+-> token -> [channels, past trials, map] x layers -> token
    past responses -----------------------------+                                                      |
    ongoing forecast + waves + kernels on the local current + copied past responses  <-- heads --------+

A response is a mean, an independent scale and a few shared factors, written in cosines of the window, so that it can be
read at any rate. The kernels act on the compressed current near a channel, cathodes and anodes apart, pulse by pulse;
with them the forecast follows pulses in time and is smooth in amplitude, width, frequency, onset and place.

References: Vaswani et al. 2017 (attention); Dehghani et al., ICML 2023 (normalised queries and keys); Mueller et al.,
ICLR 2022 (fitted trials in context); Steinhardt et al., J Neural Eng 17 (2020) 036009 (kernels apart for polarities).
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

from .ieeg_network import SPREADS_MM, place_features
from .ieeg_subject import BANDS_HZ, FINGERPRINT, KINDS, MODALITIES, SENSORY_FEATURES, Shots, Subject

PATCH_S = 0.1
HORIZON_S = 0.5  # the longest window that is forecast at once
LONGEST = 16  # patches that attention over time looks back on
_PATCH_WAVES = 16  # cosines of a patch, to 80 Hz
_WAVES = 48  # of the response, to 48 Hz
_SCALE_WAVES, _FACTOR_WAVES, _COURSE_WAVES = 8, 24, 12
_AHEAD_S = 0.002  # half a sample at 250 Hz, the rate of pretraining, where cosines are then orthogonal
_DELAYS_S = (0.0, 0.008, 0.016, 0.03, 0.05, 0.08, 0.13, 0.2, 0.3)  # middles of the kernels' bumps
_LOCAL = 2 * len(SPREADS_MM)
_PAIR = 4 * len(SPREADS_MM) + 8 + 1
_FAINT = 0.02  # units of charge, a twentieth of the weakest pulse in use, over which a place fades as current vanishes
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


@dataclass(frozen=True)
class Answer:
    """A forecast in units of spread.

    Attributes:
        mean: Expected signal.
        log_scale: Logarithm of the independent noise's standard deviation.
        factors: Shared noise: each times a standard normal moves a whole window.
        statistics: Mean and logarithm of the spread of each band's log power in the window.
        token: What the network knew of each channel before its heads, for closed-form adaptation and embeddings.
        ongoing: What it made of the contexts of the windows asked for.
    """

    mean: Float[Tensor, "*batch shot channel time"]
    log_scale: Float[Tensor, "*batch shot channel time"]
    factors: Float[Tensor, "*batch shot factor channel time"]
    statistics: Float[Tensor, "*batch shot channel band 2"]
    token: Float[Tensor, "*batch shot channel width"]
    ongoing: "Ongoing"


@dataclass(frozen=True)
class Ongoing:
    """What the ongoing stage made of contexts: one token a patch, and each patch in cosines; rows are contexts."""

    token: Float[Tensor, "row channel patch width"]
    patch: Float[Tensor, "row channel patch wave"]


class IeegTransformer(nn.Module):
    """Forecasts windows of any patient.

    Args:
        size: Its size.
        source: Stream of the first weights.
    """

    def __init__(self, size: TransformerSize, source: torch.Generator) -> None:
        super().__init__()
        self.size, wide, narrow = size, size.width, size.ongoing_width
        self.where = _Map(_PLACE + FINGERPRINT + len(KINDS) + 2, wide, wide, source)
        self.where_ongoing = Linear(wide, narrow, source)
        self.patch = _Map(_PATCH_WAVES + 1, 2 * narrow, narrow, source)
        self.hubs_ongoing = nn.Parameter(torch.randn(size.hubs, narrow, generator=source))
        self.through_time = nn.ModuleList(_Mixer(narrow, size.heads, source) for _ in range(size.ongoing_layers))
        self.through_hubs = nn.ModuleList(_Mixer(narrow, size.heads, source) for _ in range(size.ongoing_layers))
        self.patch_maps = nn.ModuleList(_Map(narrow, 2 * narrow, narrow, source) for _ in range(size.ongoing_layers))
        self.next_patch = Linear(narrow, 2 * _PATCH_WAVES, source, gain=0.0)
        self.rhythm_share = Linear(wide, size.rhythms, source)
        self.rhythm = nn.Parameter(torch.zeros(size.rhythms, 3 * _PATCH_WAVES, _WAVES))
        with torch.no_grad():
            self.rhythm.normal_(0.0, 0.003, generator=source)
        self.before = Linear(narrow, wide, source)
        self.near = _Map(_LOCAL * (_COURSE_WAVES + 1), wide, wide, source)
        self.delivered = _Map(_NUMBERS + _SENSES + 2 * _PLACE, wide, wide, source)
        self.followed = _Map(2 * _WAVES, wide, wide, source)
        self.asked = nn.Parameter(torch.zeros(wide))
        self.unheard = nn.Parameter(torch.zeros(wide))
        self.hubs = nn.Parameter(torch.randn(size.hubs, wide, generator=source))
        self.distance = Linear(len(SPREADS_MM) + 1, size.heads, source, gain=0.1)
        self.through_channels = nn.ModuleList(_Mixer(wide, size.heads, source) for _ in range(size.layers))
        self.through_trials = nn.ModuleList(_Mixer(wide, size.heads, source) for _ in range(size.layers))
        self.maps = nn.ModuleList(_Map(wide, 3 * wide, wide, source) for _ in range(size.layers))
        self.nothing = nn.Parameter(torch.zeros(wide))  # a past trial that was not there
        self.level = Linear(1, wide, source)
        self.alike = Linear(_PAIR, size.heads * (size.layers + 1), source, gain=0.1)
        self.copies = _Attention(wide, size.heads, source)
        kernels = _LOCAL * len(_DELAYS_S)
        self.sizes = (_WAVES, kernels, 1, _SCALE_WAVES, size.factors * _FACTOR_WAVES, size.heads, 2 * len(BANDS_HZ))
        self.head = Linear(wide, sum(self.sizes), source, gain=0.0)
        with torch.no_grad():  # factors and copies start small and not at zero, where their product has no slope
            start = sum(self.sizes[:4])
            self.head.weight[start : start + self.sizes[4]].normal_(0.0, 0.02 / math.sqrt(wide), generator=source)

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
        where = self._where(subject)
        local = _nearness(subject)
        known = self._trial(subject, where, local, past, rate_hz, followed=True)
        ask = self._trial(subject, where, local, asked, rate_hz, followed=False)
        level = _level(known)
        token = torch.cat([known.token, ask.token], 1) + self.level(level.log())
        bias = self._bias(subject, full)
        trials = known.token.shape[1]
        alike = self.likeness(torch.cat([known.spot, ask.spot], 1), known.spot)
        for (channels, others, change), pairs in zip(self.layers, alike, strict=False):
            token = self._across_channels(channels, token, bias, ask.stimulus, known.stimulus)
            token = self._across_trials(others, token, trials, pairs)
            token = token + change(_normed(token))
        copied = alike[-1][..., trials:, :]
        return self._answer(token[:, trials:], token[:, :trials], known, ask, local, level, copied, rate_hz)

    def likeness(self, asks: Tensor, told: Tensor) -> list[Float[Tensor, "patient 1 head to from"]]:
        """How much a trial listens to a past one, by how near their sites are and how alike their trains.

        Args:
            asks: Descriptors of trials, `[patient, trial, number]`.
            told: Those of the past ones.

        Returns:
            One bias for each layer and one for the copies; before the past trials, the one that was not there.
        """
        pairs = self.alike(_pairs(asks, told)).unflatten(-1, (-1, self.size.heads))  # [patient, to, from, layer, head]
        return [F.pad(one, (1, 0)).unsqueeze(1) for one in pairs.permute(3, 0, 4, 1, 2)]

    @property
    def layers(self) -> list[tuple["_Mixer", "_Mixer", "_Map"]]:
        """Of the trial stage: over channels, over past trials, and each token by itself."""
        layers = zip(self.through_channels, self.through_trials, self.maps, strict=True)
        return cast(list[tuple[_Mixer, _Mixer, _Map]], list(layers))

    def ongoing(self, subject: Subject, shots: Shots, rate_hz: float) -> Ongoing:
        """Tokens of the ongoing signal, one a patch, each made of what came before it.

        Args:
            subject: Batch of patients.
            shots: Contexts `[patient, shot, channel, past]`; rows of the answer are patients times shots.
            rate_hz: Samples per second.
        """
        where = self.where_ongoing(self._where(subject)).unsqueeze(2)  # [patient, channel, 1, width]
        return self._ongoing(subject, where, shots, rate_hz)

    def _ongoing(self, subject: Subject, where: Tensor, shots: Shots, rate_hz: float) -> Ongoing:
        patch = patches(shots.context * shots.heard, rate_hz, LONGEST)
        share = patches(shots.heard.to(shots.context), rate_hz, LONGEST)[..., :1]
        token = self.patch(torch.cat([patch, share], -1)) + where.unsqueeze(1)
        token = token.flatten(0, 1)  # [row, channel, patch, width]
        there = subject.there.unsqueeze(1).expand(-1, shots.context.shape[1], -1).flatten(0, 1)
        hubs = self.hubs_ongoing.expand(token.shape[0], token.shape[2], -1, -1)  # [row, patch, hub, width]
        lateness = _lateness(token.shape[2], self.size.heads, token)
        heard = there[:, None, None, None, :]
        for time, space, change in zip(self.through_time, self.through_hubs, self.patch_maps, strict=True):
            token = token + time(token, token, lateness)
            by_patch = token.transpose(1, 2)
            hubs = hubs + space(hubs, by_patch, _only(heard, by_patch))
            token = token + space(by_patch, hubs, None).transpose(1, 2)
            token = token + change(_normed(token))
        return Ongoing(token, patch.flatten(0, 1))

    def following(self, ongoing: Ongoing) -> tuple[Tensor, Tensor]:
        """Mean and log scale of the cosines of the patch after each patch, `[row, channel, patch, wave]`."""
        mean, log_scale = self.next_patch(_normed(ongoing.token)).chunk(2, -1)
        return mean, 3 * torch.tanh(log_scale / 3)

    def _where(self, subject: Subject) -> Float[Tensor, "patient channel width"]:
        known = subject.heard.unsqueeze(-1)
        kind = F.one_hot(subject.kind, len(KINDS)).to(subject.fingerprint)
        more = torch.stack([subject.bipolar, subject.heard], -1).to(subject.fingerprint)
        place = place_features(subject.place_mm).to(subject.fingerprint)
        where: Tensor = self.where(torch.cat([place, subject.fingerprint * known, kind, more], -1))
        return where + torch.where(known, 0.0, self.unheard)

    def _trial(
        self, subject: Subject, where: Tensor, nearness: Tensor, shots: Shots, rate_hz: float, followed: bool
    ) -> "_Trials":
        """Tokens of trials: ongoing activity, what was delivered, and what followed where that is known."""
        contexts, windows = shots.context.shape[1], shots.drive.shape[1]
        ongoing = self._ongoing(subject, self.where_ongoing(where).unsqueeze(2), shots, rate_hz)
        rows = (len(where), contexts)
        last = ongoing.token[:, :, -1].unflatten(0, rows)
        carried = self._carried(where, ongoing.patch.unflatten(0, rows), followed)
        token = self.near(_near_features(nearness, shots.drive, rate_hz)) + where.unsqueeze(1)
        each = windows // max(1, contexts)
        token = token + self.before(last).repeat_interleave(each, 1)
        carried = carried.repeat_interleave(each, 1)
        stimulus = self.delivered(torch.cat([shots.numbers, shots.senses, _entry(subject, shots)], -1))
        token = token + stimulus.unsqueeze(2)
        response = None
        if followed:
            response = written(shots.response * shots.good, rate_hz)
            told = torch.cat([response, response - carried], -1)
            token = token + self.followed(told / _level_of(response - carried))
        else:
            token = token + self.asked
        return _Trials(token, stimulus, _spot(subject, shots), shots.drive, carried, response, ongoing)

    def _carried(self, where: Tensor, patch: Tensor, followed: bool) -> Float[Tensor, "patient shot channel wave"]:
        """What ongoing activity alone would go on to be: a mixture of linear forecasts from the last patches."""
        recent = patch[..., -3:, :]
        if recent.shape[-2] < 3:
            recent = F.pad(recent, (0, 0, 3 - recent.shape[-2], 0))
        share = self.rhythm_share(where).softmax(-1)  # [patient, channel, rhythm]
        return torch.einsum("bcr,bncp,rpw->bncw", share, recent.flatten(-2), self.rhythm)

    def _bias(self, subject: Subject, full: bool | None) -> tuple[Tensor | None, Tensor]:
        """How much a channel listens to another by distance and shaft; and to nobody where channels use hubs alone."""
        apart = torch.cdist(subject.place_mm.nan_to_num(0.0), subject.place_mm.nan_to_num(0.0))
        known = subject.place_mm.isfinite().all(-1)
        pair = (known.unsqueeze(-1) & known.unsqueeze(-2)).unsqueeze(-1)
        close = _closeness(apart) * pair
        same = (subject.shaft.unsqueeze(-1) == subject.shaft.unsqueeze(-2)).unsqueeze(-1)
        bias = self.distance(torch.cat([close, same.to(close)], -1)).movedim(-1, 1)  # [patient, head, to, from]
        direct = apart.shape[-1] <= _FULL_CHANNELS if full is None else full
        there = subject.there[:, None, None, :]
        return bias.masked_fill(~there, -math.inf) if direct else None, there

    def _across_channels(
        self, mixer: "_Mixer", token: Tensor, bias: tuple[Tensor | None, Tensor], ask: Tensor, known: Tensor
    ) -> Tensor:
        """Channels hear the trial's stimulus, its hubs and, where they are few, each other."""
        between, there = bias
        stimulus = torch.cat([known, ask], 1).unsqueeze(2)
        hubs = self.hubs.expand(*token.shape[:2], -1, -1)
        hubs = hubs + mixer(hubs, torch.cat([stimulus, token], 2), _only(_with(there, 1), token))
        heard = torch.cat([stimulus, hubs], 2)
        if between is None:
            beside: Tensor = mixer(token, heard, None)
            return token + beside
        mask = torch.cat([between.new_zeros(*between.shape[:-1], heard.shape[2]), between], -1).unsqueeze(1)
        among: Tensor = mixer(token, torch.cat([heard, token], 2), mask)
        return token + among

    def _across_trials(self, mixer: "_Mixer", token: Tensor, trials: int, alike: Tensor) -> Tensor:
        by_channel = token.transpose(1, 2)  # [patient, channel, trial, width]
        nothing = self.nothing.expand(*by_channel.shape[:2], 1, -1)
        known = torch.cat([nothing, by_channel[:, :, :trials]], 2)
        heard: Tensor = mixer(by_channel, known, alike)
        return token + heard.transpose(1, 2)

    def _answer(
        self, asked: Tensor, known: Tensor, past: "_Trials", ask: "_Trials", nearness: Tensor, level: Tensor,
        alike: Tensor, rate_hz: float,
    ) -> Answer:  # fmt: skip
        samples = ask.drive.shape[-1]
        told = _normed(asked)
        wave, kernel, gain, scale, factor, copied, statistics = self.head(told).split(self.sizes, -1)
        waves = cosines(_WAVES, samples, wave, rate_hz)
        size = level * (2 * torch.tanh(gain / 2)).exp()  # evoked responses differ a hundredfold between patients
        mean = (ask.carried + size * wave + self._copied(asked, known, past, copied, alike)) @ waves
        kernel = (size * kernel).unflatten(-1, (2, len(SPREADS_MM), -1))
        mean = mean + _kernel_answer(kernel, nearness, ask.drive, rate_hz)
        slow = cosines(_SCALE_WAVES, samples, wave, rate_hz)
        factors = factor.unflatten(-1, (self.size.factors, -1)) @ cosines(_FACTOR_WAVES, samples, wave, rate_hz)
        return Answer(
            mean, 3 * torch.tanh(scale @ slow / 3), factors.transpose(2, 3), statistics.unflatten(-1, (-1, 2)), told,
            ask.ongoing,
        )  # fmt: skip

    def _copied(self, asked: Tensor, known: Tensor, past: "_Trials", gain: Tensor, alike: Tensor) -> Tensor:
        """Past responses, less the ongoing activity they rode on, weighted by how much alike the trials are."""
        if past.response is None or not known.shape[1]:
            return asked.new_zeros(())
        nothing = self.nothing.expand(len(known), known.shape[2], 1, -1)
        told = torch.cat([nothing, known.transpose(1, 2)], 2)
        share = self.copies.shares(asked.transpose(1, 2), told, alike)[..., 1:]
        evoked = (past.response - past.carried).transpose(1, 2).unsqueeze(2)  # [patient, channel, 1, trial, wave]
        copied = (share @ evoked).permute(0, 3, 1, 2, 4)  # [patient, asked, channel, head, wave]
        return (gain.unsqueeze(-1) * copied).sum(-2)


@dataclass(frozen=True)
class _Trials:
    token: Tensor  # [patient, trial, channel, width]
    stimulus: Tensor  # [patient, trial, width]
    spot: Tensor  # [patient, trial, number]: middles of cathodes and anodes, whether there are any, and the train
    drive: Tensor  # [patient, trial, polarity, contact, time]
    carried: Tensor  # [patient, trial, channel, wave]
    response: Tensor | None  # [patient, trial, channel, wave]
    ongoing: Ongoing


def _level(past: _Trials) -> Float[Tensor, "patient 1 channel 1"]:
    """How large a channel's past responses were beside its ongoing activity; 1 where there are none."""
    if past.response is None or not past.response.shape[1]:
        return past.carried.new_ones(len(past.carried), 1, past.carried.shape[2], 1)
    return _level_of(past.response - past.carried)


def _level_of(evoked: Float[Tensor, "patient trial channel wave"]) -> Float[Tensor, "patient 1 channel 1"]:
    """Root mean square over trials and time; a cosine of size 1 has a mean square of a half."""
    if not evoked.shape[1]:
        return evoked.new_ones(len(evoked), 1, evoked.shape[2], 1)
    return (1 + evoked.square().sum(-1, keepdim=True).mean(1, keepdim=True) / 2).sqrt()


def patches(signal: Float[Tensor, "*batch time"], rate_hz: float, longest: int) -> Float[Tensor, "*batch patch wave"]:
    """The newest whole patches of a signal, each in cosines; those beyond the rate's reach are zero."""
    length = max(2, round(PATCH_S * rate_hz))
    count = min(longest, signal.shape[-1] // length)
    cut = signal[..., signal.shape[-1] - count * length :].unflatten(-1, (count, length))
    waves = _cosine_rows(_PATCH_WAVES, length, length, signal, rate_hz)
    return F.pad(cut @ waves.mT * (2 / length), (0, _PATCH_WAVES - len(waves)))


def unpatched(patch: Float[Tensor, "*batch wave"], rate_hz: float) -> Float[Tensor, "*batch time"]:
    """The samples of a patch; the first cosine, the mean, was counted twice."""
    length = max(2, round(PATCH_S * rate_hz))
    waves = _cosine_rows(_PATCH_WAVES, length, length, patch, rate_hz)
    halves = torch.ones(len(waves)).to(patch)
    halves[0] = 0.5
    return (patch[..., : len(waves)] * halves) @ waves


def cosines(count: int, samples: int, like: Tensor, rate_hz: float) -> Float[Tensor, "wave time"]:
    """Cosines of the horizon at the samples of a window that begins with it."""
    return _cosine_rows(count, round(HORIZON_S * rate_hz), samples, like, rate_hz, short=False)


def _cosine_rows(
    count: int, whole: int, samples: int, like: Tensor, rate_hz: float, short: bool = True
) -> Float[Tensor, "wave time"]:
    """Cosines over `whole` samples; time runs from `_AHEAD_S` before the first, at any rate the same."""
    time = (torch.arange(samples, dtype=like.dtype, device=like.device) + _AHEAD_S * rate_hz) / whole
    order = torch.arange(min(count, whole) if short else count, dtype=like.dtype, device=like.device)
    rows = (math.pi * order.unsqueeze(-1) * time).cos()
    return rows * (order < whole).unsqueeze(-1)  # beyond the Nyquist frequency nothing can be read


def written(signal: Float[Tensor, "*batch time"], rate_hz: float) -> Float[Tensor, "*batch wave"]:
    """A window in the cosines of the horizon, such that their sum gives it back as far as they reach."""
    waves = cosines(_WAVES, signal.shape[-1], signal, rate_hz)
    halves = torch.ones(len(waves)).to(signal)
    halves[0] = 0.5
    return signal @ waves.mT * (2 / round(HORIZON_S * rate_hz)) * halves


def _kernel_answer(
    kernel: Float[Tensor, "patient shot channel 2 spread delay"], nearness: Tensor, drive: Tensor, rate_hz: float
) -> Float[Tensor, "patient shot channel time"]:
    """Kernels on the compressed charge that enters near each channel, apart for cathodes and anodes."""
    late = _lagged(_bumps(drive.shape[-1], rate_hz, drive))  # [time, delay, time]
    entered = (drive.asinh() @ late.flatten(1)).unflatten(-1, late.shape[1:])  # [.., 2, contact, delay, time]
    weight = torch.einsum("bncpsd,bsck->bncpkd", kernel, nearness)
    answer: Tensor = weight.flatten(3) @ entered.flatten(2, 4)
    return answer


def _lagged(bumps: Float[Tensor, "delay time"]) -> Float[Tensor, "time delay time"]:
    """The answer of each bump to a unit at each time: a product with it is a causal convolution, and cheap here."""
    samples = bumps.shape[-1]
    lag = torch.arange(samples, device=bumps.device) - torch.arange(samples, device=bumps.device).unsqueeze(-1)
    return bumps[:, lag.clamp_min(0)].transpose(0, 1) * (lag >= 0).unsqueeze(1)


def _bumps(samples: int, rate_hz: float, like: Tensor) -> Float[Tensor, "delay time"]:
    """Triangles between neighbouring delays; they sum to 1 up to the last one."""
    time = torch.arange(samples, dtype=like.dtype, device=like.device) / rate_hz
    at = torch.tensor(_DELAYS_S, dtype=like.dtype, device=like.device).unsqueeze(-1)
    before = F.pad(at.diff(dim=0), (0, 0, 1, 0), value=1.0)
    after = F.pad(at.diff(dim=0), (0, 0, 0, 1), value=HORIZON_S - _DELAYS_S[-1])
    return torch.minimum(1 + (time - at) / before, 1 - (time - at) / after).clamp_min(0) * 0.3


def _nearness(subject: Subject) -> Float[Tensor, "patient spread channel contact"]:
    """How much of a contact's current a channel feels, by distance; nothing where a place is unknown."""
    apart = torch.cdist(subject.place_mm.nan_to_num(0.0), subject.contact_mm.nan_to_num(0.0))
    known = subject.place_mm.isfinite().all(-1).unsqueeze(-1) & subject.contact_mm.isfinite().all(-1).unsqueeze(-2)
    return (_closeness(apart) * known.unsqueeze(-1)).movedim(-1, 1)


def _closeness(apart_mm: Tensor) -> Tensor:
    width = apart_mm.new_tensor(SPREADS_MM)
    return (-apart_mm.square().unsqueeze(-1) / (2 * width.square())).exp()


def _near_features(
    nearness: Tensor, drive: Float[Tensor, "patient shot 2 contact time"], rate_hz: float
) -> Float[Tensor, "patient shot channel feature"]:
    """The course of the charge that enters near each channel, and how near it enters whatever its size."""
    waves = cosines(_COURSE_WAVES, drive.shape[-1], drive, rate_hz)
    share = _shares(drive).unsqueeze(-1)
    course = torch.cat([drive.asinh() @ waves.mT, 2 * share], -1)  # [patient, shot, polarity, contact, wave]
    return torch.einsum("bsck,bnpkw->bncpsw", nearness, course).flatten(3).asinh()


def _shares(drive: Float[Tensor, "patient shot 2 contact time"]) -> Float[Tensor, "patient shot 2 contact"]:
    """Share of each contact in the charge that enters and in the one that leaves; fading with charge, zero without."""
    charge = drive.sum(-1)
    return charge / (charge.sum(-1, keepdim=True) + _FAINT)


def _entry(subject: Subject, shots: Shots) -> Float[Tensor, "patient shot feature"]:
    """Where current entered and left, as the mean of the places' features."""
    share = _shares(shots.drive)  # [patient, shot, polarity, contact]
    return (share @ place_features(subject.contact_mm).to(share).unsqueeze(1)).flatten(2)


def _spot(subject: Subject, shots: Shots) -> Float[Tensor, "patient shot number"]:
    """Middles of the cathodes and the anodes in mm, how much there is of either, and the numbers of the train."""
    known = subject.contact_mm.isfinite().all(-1)[:, None, None]
    share = _shares(shots.drive) * known
    there = share.sum(-1)
    middle = share @ subject.contact_mm.nan_to_num(0.0).to(share).unsqueeze(1) / (there.unsqueeze(-1) + 1e-6)
    return torch.cat([middle.flatten(2), there, shots.numbers], -1)


def _pairs(
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
    close = (_closeness(apart) * both.unsqueeze(-1)).movedim(2, 3).flatten(3)
    differ = (trains[0].unsqueeze(2) - trains[1].unsqueeze(1)).abs()
    return torch.cat([close, differ, both.diagonal(dim1=2, dim2=4).mean(-1, keepdim=True)], -1)


def _lateness(count: int, heads: int, like: Tensor) -> Float[Tensor, "head to from"]:
    """Attention back in time only, weaker the further back, at another pace in each head (Press et al., ICLR 2022)."""
    order = torch.arange(count, device=like.device)
    back = (order.unsqueeze(-1) - order).to(like)
    pace = torch.tensor([2.0 ** -(2 * h) for h in range(heads)]).to(like).reshape(-1, 1, 1)
    return torch.where(back < 0, -math.inf, -pace * back)


def _only(there: Bool[Tensor, "..."], like: Tensor) -> Tensor:
    return torch.zeros(there.shape, dtype=like.dtype, device=like.device).masked_fill(~there, -math.inf)


def _with(there: Tensor, more: int) -> Tensor:
    """There, with some that always are in front; [patient, 1, 1, 1, channel]."""
    there = there.unsqueeze(1)
    return torch.cat([there.new_ones(*there.shape[:-1], more), there], -1)


class Linear(nn.Module):
    """A linear map whose first weights come from a stream of one's own; torch's own draws from the global one."""

    def __init__(self, inputs: int, outputs: int, source: torch.Generator, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(gain * torch.randn(outputs, inputs, generator=source) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The map of the last axis."""
        return F.linear(x, self.weight, self.bias)


class _Map(nn.Module):
    """Two linear maps with a bend between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, source: torch.Generator) -> None:
        super().__init__()
        self.up, self.down = Linear(inputs, hidden, source), Linear(hidden, outputs, source, gain=0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


class _Attention(nn.Module):
    """Queries and keys of tokens, each normalised, and how much one listens to another."""

    def __init__(self, width: int, heads: int, source: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = Linear(width, width, source), Linear(width, width, source)
        self.sharpness = nn.Parameter(torch.zeros(heads, 1, 1))

    def pairs(self, asks: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        query, key = (
            _normed(_heads(self.query(_normed(asks)), self.heads)),
            _normed(_heads(self.key(_normed(told)), self.heads)),
        )
        return query * self.sharpness.exp(), key

    def shares(self, asks: Tensor, told: Tensor, bias: Tensor) -> Float[Tensor, "*batch head to from"]:
        query, key = self.pairs(asks, told)
        return (query @ key.mT / math.sqrt(key.shape[-1]) + bias).softmax(-1)


class _Mixer(_Attention):
    """Attention of some tokens to others, to be added to the first."""

    def __init__(self, width: int, heads: int, source: torch.Generator) -> None:
        super().__init__(width, heads, source)
        self.value, self.out = Linear(width, width, source), Linear(width, width, source, gain=0.5)

    def forward(
        self, asks: Float[Tensor, "*batch to width"], told: Float[Tensor, "*batch from width"], bias: Tensor | None
    ) -> Float[Tensor, "*batch to width"]:
        query, key = self.pairs(asks, told)
        value = _heads(self.value(_normed(told)), self.heads)
        heard = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed: Tensor = self.out(heard.transpose(-3, -2).flatten(-2))
        return mixed


def _heads(tokens: Tensor, heads: int) -> Tensor:
    apart: Tensor = tokens.unflatten(-1, (heads, -1))
    return apart.transpose(-3, -2)


def _normed(tokens: Tensor) -> Tensor:
    """Tokens of one size, whatever theirs was; without weights of its own."""
    return F.layer_norm(tokens, tokens.shape[-1:])
