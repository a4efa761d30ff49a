"""Responses to impulses: causal convolution of a drive with kernels, and bases to write kernels in."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def convolve(
    kernel: Float[Tensor, "channel input lag"], drive: Float[Tensor, "*batch input time"]
) -> Float[Tensor, "*batch channel time"]:
    """What the kernels answer to a drive: `sum over input, lag of kernel[lag] drive[time - lag]`, silence before.

    Computed by FFT over twice the length, so nothing wraps round.
    """
    samples = drive.shape[-1]
    size = 2 ** math.ceil(math.log2(samples + min(kernel.shape[-1], samples)))
    spectrum = torch.fft.rfft(kernel[..., :samples].to(drive), size).movedim(-1, 0)  # [frequency, channel, input]
    inputs = torch.fft.rfft(drive.reshape(-1, *drive.shape[-2:]), size).permute(2, 1, 0)  # [frequency, input, row]
    answer = torch.fft.irfft(_complex_product(spectrum, inputs).permute(2, 1, 0), size)[..., :samples]
    shaped: Tensor = answer.reshape(*drive.shape[:-2], *answer.shape[-2:])
    return shaped


def filtered(
    basis: Float[Tensor, "basis lag"], drive: Float[Tensor, "*batch input time"]
) -> Float[Tensor, "*batch input basis time"]:
    """Each input of a drive convolved with each function of a basis."""
    answer = convolve(basis.unsqueeze(1), drive.reshape(-1, 1, drive.shape[-1]))
    return answer.reshape(*drive.shape[:-1], *answer.shape[-2:])


def delay_basis(count: int, samples: int, like: Tensor) -> Float[Tensor, "basis lag"]:
    """Raised cosines, narrow at short delays and wide at long ones, that sum to 1 over `samples` delays.

    Pillow et al., Nature 454 (2008) 995-999, supplementary methods: cosines of the logarithm of the delay.
    """
    count = min(count, samples)
    delay = torch.arange(samples, dtype=like.dtype, device=like.device)
    position = (1 + delay / 2).log()  # half a sample of the logarithm's bend: first bumps one to two samples wide
    place = position / position[-1].clamp_min(1e-9) * (count - 1)
    centre = torch.arange(count, dtype=like.dtype, device=like.device).unsqueeze(-1)
    bumps = (1 + (math.pi * (place - centre).clamp(-1, 1)).cos()) / 2
    return bumps / bumps.sum(0)


def _complex_product(one: Tensor, other: Tensor) -> Tensor:
    """Complex product by one real one: torch's complex kernels copy each small matrix, at ten times the cost."""
    left = torch.cat([torch.cat([one.real, -one.imag], -1), torch.cat([one.imag, one.real], -1)], -2)
    right = left @ torch.cat([other.real, other.imag], -2)
    return torch.complex(*right.chunk(2, -2))
