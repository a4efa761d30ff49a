"""A small network for intracranial EEG under stimulation: the whole of it is here.

One token a channel holds its recent signal, its place and its rest; tokens of the stimulus
hold where current enters, how much and how it is timed. Attention lets them talk, and each
channel's token then writes the whole response window at once (a direct multi-horizon
head), so a forecast is one pass and smooth in the stimulus. Beside it runs a linear path:
kernels on the rectified current, spread to each channel by distance, whose answer grows in
proportion to charge and so extends beyond the amplitudes seen; the tokens modulate it.

    context [*, channel, time] --patches--> token --+                                  +-> gain, waves, scale
    place, rest fingerprint -----------------> ... -+-> attention x layers -> channel -+
    current [*, 2, contact, time] --distance------ -+        |  hubs                   +
                     |                                       |
                     +------- kernels (geometry + patient) --+------ x (1 + gain) ----------> mean

Signals are in units of each channel's own spread at rest, a number of the patient and
never of the window, so that amplitude is kept.

References: Vaswani et al. 2017 (attention); CBraMod, REVE, TBFM and FlowState for patches, places in absolute mm,
bases of time and the direct head, as cited in the documentation of models.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

from stimopt.montage import Montage
from stimopt.stimulus import Stimulus

from .ieeg_layers import Linear
from .ieeg_waves import slowest_cosines
from .impulse import convolve, delay_basis

SPREADS_MM = (4.0, 8.0, 16.0, 32.0, 64.0)  # from one contact's neighbour to a lobe
_OCTAVES_MM = (8.0, 16.0, 32.0, 64.0, 128.0)  # wavelengths of the place features
_SCALARS = 8


@dataclass(frozen=True)
class NetworkSize:
    """How large the network is, and the windows it was made for.

    Attributes:
        context_samples: Length of the context.
        samples: Length of the response, from the window's start.
        width: Of a token.
        layers: Of attention.
        heads: In each layer.
        patch_samples: Context samples in one patch.
        waves: Cosines that a response is written in.
        delays: Functions that a kernel is written in.
    """

    context_samples: int
    samples: int
    width: int = 48
    layers: int = 2
    heads: int = 4
    patch_samples: int = 25
    waves: int = 40
    delays: int = 16


class IeegNetwork(nn.Module):
    """Mean and scale of a response window, in units of each channel's spread at rest.

    Args:
        size: Its size.
        montage: Places of contacts and channels; unknown places count as far from everything.
        fingerprint: What each channel is like at rest.
        drive_ma: Typical rectified current in use, which drives are divided by.
        source: Stream of the first weights.
    """

    fingerprint: Tensor
    place: Tensor
    contact_place: Tensor
    spread: Tensor
    waves: Tensor
    summary: Tensor
    delays: Tensor
    drive_unit: Tensor

    def __init__(
        self, size: NetworkSize, montage: Montage, fingerprint: Float[Tensor, "channel feature"], drive_ma: float,
        source: torch.Generator,
    ) -> None:  # fmt: skip
        super().__init__()
        self.size = size
        channels, contacts = len(montage.channels), len(montage.contacts)
        width, patches = size.width, math.ceil(size.context_samples / size.patch_samples)
        place = place_features(montage.channel_position_mm)
        like = torch.zeros(())
        self.register_buffer("fingerprint", fingerprint.float())
        self.register_buffer("place", place.float())
        self.register_buffer("contact_place", place_features(montage.contact_position_mm).float())
        self.register_buffer("spread", _spread(montage).float())
        self.register_buffer("waves", slowest_cosines(size.waves, size.samples, like))
        self.register_buffer("summary", slowest_cosines(12, size.samples, like) / size.samples)
        self.register_buffer("delays", delay_basis(size.delays, size.samples, like))
        self.register_buffer("drive_unit", torch.tensor(drive_ma))
        inputs = 2 * len(SPREADS_MM)
        summaries = inputs * self.summary.shape[0]
        self.patch = Linear(size.patch_samples, width, source)
        self.patches = Linear(patches * width, width, source)
        self.ongoing = nn.Parameter(torch.zeros(size.samples, min(32, size.context_samples)))
        self.where = Linear(place.shape[-1] + fingerprint.shape[-1], width, source)
        self.drive = Linear(summaries, width, source)
        self.stimulus = Linear(_SCALARS + 2 * place.shape[-1] + 2 * contacts, width, source)
        self.hubs = nn.Parameter(torch.randn(2, width, generator=source))
        self.identity = nn.Parameter(torch.zeros(channels, width))
        self.blocks = nn.ModuleList(_Block(width, size.heads, source) for _ in range(size.layers))
        self.head = Linear(width, size.waves + 1 + 6, source, gain=0.0)
        self.scale = nn.Parameter(torch.zeros(channels, 1))
        self.reach = nn.Parameter(torch.zeros(channels, inputs, size.delays))
        self.reach_shared = nn.Parameter(torch.zeros(inputs, size.delays))
        self.patient_kernel = nn.Parameter(torch.zeros(channels, 2 * contacts, size.delays))

    def forward(
        self,
        context: Float[Tensor, "#row channel past"],
        drive_ma: Float[Tensor, "row input time"],
        stimulus: Float[Tensor, "row feature"],
    ) -> tuple[Float[Tensor, "row channel time"], Float[Tensor, "row channel time"]]:
        """Mean and logarithm of the scale.

        Args:
            context: In units of each channel's spread; may be one row for all.
            drive_ma: Rectified current, cathodic of all contacts, then anodic.
            stimulus: From `stimulus_features`.
        """
        rows, channels = len(drive_ma), context.shape[1]
        drive = drive_ma / self.drive_unit
        course = (drive @ self.summary.mT).unflatten(1, (2, -1))  # [row, polarity, contact, cosine]
        near = torch.einsum("sck,npkw->ncpsw", self.spread, course)
        near = torch.asinh(4 * near).flatten(2)  # [row, channel, polarity x spread x cosine]
        token = self._context_token(context) + self.where(torch.cat([self.place, self.fingerprint], -1)) + self.identity
        token = token + self.drive(near)
        given = self.stimulus(torch.cat([stimulus, self._entry(drive)], -1)).unsqueeze(1)
        tokens = torch.cat([token, given, self.hubs.expand(rows, -1, -1)], 1)
        for block in self.blocks:
            tokens = block(tokens)
        wave, gain, spread = self.head(_rms(tokens[:, :channels])).split([self.size.waves, 1, 6], -1)
        recent = (context[..., -self.ongoing.shape[1] :]) @ self.ongoing.mT
        mean = recent + wave @ self.waves + (1 + gain) * convolve(self.kernel(), drive)
        return mean, 3 * torch.tanh((self.scale + spread @ self.waves[:6]) / 3)

    def kernel(self) -> Float[Tensor, "channel input lag"]:
        """Linear answer of each channel to the current at each contact, per typical current."""
        reach = (self.reach + self.reach_shared).unflatten(1, (2, -1))  # [channel, polarity, spread, delay]
        spatial = torch.einsum("cpsd,sck->cpkd", reach, self.spread).flatten(1, 2)
        kernel: Tensor = (spatial + self.patient_kernel) @ self.delays
        return kernel

    def _context_token(self, context: Tensor) -> Float[Tensor, "#row channel width"]:
        missing = -context.shape[-1] % self.size.patch_samples
        padded = F.pad(context, (missing, 0)).unflatten(-1, (-1, self.size.patch_samples))
        token: Tensor = self.patches(F.gelu(self.patch(padded)).flatten(2))
        return token

    def _entry(self, drive: Float[Tensor, "row input time"]) -> Float[Tensor, "row feature"]:
        """How much current entered at each contact, and the places it entered, cathodes and anodes apart."""
        total = torch.asinh(4 * drive.mean(-1))  # [row, polarity x contact]
        return torch.cat([total, (total.unflatten(1, (2, -1)) @ self.contact_place).flatten(1)], -1)


def stimulus_features(stimulus: Stimulus) -> Float[Tensor, "*batch feature"]:
    """Numbers of a train, all of them zero for silence and growing smoothly from there."""
    amplitude = stimulus.amplitude_ma.abs().sum(-1) / 2
    there = amplitude / (amplitude + 0.1) * stimulus.pulses.clamp_max(1.0)
    charge = amplitude * stimulus.pulse_width_us / 1e3
    numbers = [
        torch.ones_like(there), torch.asinh(2 * amplitude), torch.asinh(10 * charge),
        (stimulus.frequency_hz / 20).log() / 2, (stimulus.pulse_width_us / 200).log(), stimulus.pulses.log1p() / 3,
        (4 * stimulus.duration_s).log1p(), 4 * stimulus.onset_s,
    ]  # fmt: skip
    return torch.stack(numbers, -1) * there.unsqueeze(-1)


def place_features(position_mm: Float[Tensor, "*place 3"]) -> Float[Tensor, "*place feature"]:
    """Sines and cosines of a place in absolute mm at several wavelengths, and whether it is known."""
    known = position_mm.isfinite().all(-1, keepdim=True)
    place = position_mm.nan_to_num(0.0).unsqueeze(-1) * (2 * math.pi / position_mm.new_tensor(_OCTAVES_MM))
    waves = torch.cat([place.sin(), place.cos()], -1).flatten(-2)
    return torch.cat([waves * known, known.to(waves)], -1)


class _Block(nn.Module):
    """Attention between tokens, then a map of each, both added to what came in."""

    def __init__(self, width: int, heads: int, source: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.mixed = Linear(width, 3 * width, source)
        self.out = Linear(width, width, source, gain=0.5)
        self.up = Linear(width, 3 * width, source)
        self.down = Linear(3 * width, width, source, gain=0.5)

    def forward(self, tokens: Float[Tensor, "row token width"]) -> Float[Tensor, "row token width"]:
        mixed = self.mixed(_rms(tokens)).unflatten(-1, (3, self.heads, -1))  # [row, token, 3, head, feature]
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        heard = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(heard)
        mapped: Tensor = self.down(F.gelu(self.up(_rms(tokens))))
        return tokens + mapped


def _rms(tokens: Tensor) -> Tensor:
    return tokens * (tokens.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def _spread(montage: Montage) -> Float[Tensor, "spread channel contact"]:
    """How much of a contact's current a channel feels, by distance; nothing where a place is unknown."""
    apart = torch.cdist(montage.channel_position_mm, montage.contact_position_mm)
    width = apart.new_tensor(SPREADS_MM).reshape(-1, 1, 1)
    return (-apart.square() / (2 * width.square())).exp().nan_to_num(0.0)
