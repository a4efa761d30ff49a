"""From answers to impulses to a state space, and the Kalman filter and noise that belong to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.tensors import generator

from .arx_regression import AutoRegressive

_BLOCKS = 24  # of the Hankel matrix: 24 past and 24 future samples
_RADIUS = 0.999  # a free run must die out; at 250 Hz this is a time constant of 4 s


@dataclass(frozen=True)
class Realisation:
    """`x[t+1] = A x + B u + K e`, `y = C x + D u + e`, with the covariance of e."""

    transition: Float[Tensor, "state state"]
    entry: Float[Tensor, "state input"]
    noise_entry: Float[Tensor, "state channel"]
    readout: Float[Tensor, "channel state"]
    through: Float[Tensor, "channel input"]
    innovation: Float[Tensor, "channel channel"]


def realisations(model: AutoRegressive, orders: Sequence[int], drive_size: float) -> list[Realisation]:
    """The states that best carry the answers to inputs and noise, as many as each of `orders` asks for.

    Juang and Pappa 1985, equations 8 to 14.

    Args:
        model: A long autoregression.
        orders: How many states.
        drive_size: Typical input, which weighs its answers against those to the noise.
    """
    samples = 2 * _BLOCKS + 1
    root = _root(model.innovation)
    noisy = torch.einsum("cjt,ji->cit", model.noise_kernel(samples), root)
    markov = torch.cat([drive_size * model.kernel(samples), noisy], 1)[..., 1:]  # [channel, input + noise, lag from 1]
    rows = [torch.cat([markov[..., i + j] for j in range(_BLOCKS)], 1) for i in range(_BLOCKS)]
    left, value, right = torch.linalg.svd(torch.cat(rows), full_matrices=False)
    return [_cut(model, root, left[:, :n], value[:n], right[:n], drive_size) for n in orders]


def _cut(model: AutoRegressive, root: Tensor, left: Tensor, value: Tensor, right: Tensor, size: float) -> Realisation:
    weight = value.clamp_min(1e-12).sqrt()
    observe, reach = left * weight, weight.unsqueeze(-1) * right
    channels, inputs = model.onset.shape[:2]
    transition = torch.linalg.lstsq(observe[:-channels], observe[channels:]).solution
    radius = float(torch.linalg.eigvals(transition).abs().max())
    transition = transition * min(1.0, _RADIUS / max(radius, 1e-12))
    noise_entry = torch.linalg.solve(root.mT, reach[:, inputs : inputs + channels].mT).mT
    entry = reach[:, :inputs] / max(size, 1e-12)
    return Realisation(transition, entry, noise_entry, observe[:channels], model.onset[..., 0], model.innovation)


def kalman_gains(
    model: Realisation, samples: int
) -> tuple[Float[Tensor, "time state channel"], Float[Tensor, "state state"]]:
    """Gains of the filter that starts knowing only the state's long-run spread, and its covariance at the end."""
    move, read, noise = model.transition, model.readout, model.innovation
    entry = model.noise_entry
    spread, gains = _long_run(move, entry @ noise @ entry.mT), []
    for _ in range(samples):
        total = read @ spread @ read.mT + noise
        cross = move @ spread @ read.mT + entry @ noise
        gain = torch.linalg.solve(total, cross.mT).mT
        gains.append(gain)
        spread = move @ spread @ move.mT + entry @ noise @ entry.mT - gain @ cross.mT
        spread = (spread + spread.mT) / 2
    return torch.stack(gains), spread


def forecast_noise(
    model: Realisation, doubt: Float[Tensor, "state state"], lead: int, samples: int, rank: int
) -> tuple[Float[Tensor, "channel time"], Float[Tensor, "factor channel time"]]:
    """Independent scale and leading shared factors of a window's noise: the state's doubt and the noise to come."""
    channels, total = len(model.readout), lead + samples
    root, steps, state = _root(model.innovation), [], model.noise_entry
    for _ in range(total - 1):
        steps.append(model.readout @ state)
        state = model.transition @ state
    answer = torch.stack([torch.eye(channels, dtype=root.dtype), *steps]) @ root  # [lag, channel, channel]
    columns = [torch.cat([answer.new_zeros(s, channels, channels), answer[: total - s]]) for s in range(total)]
    start, states = _root(doubt), []
    for _ in range(total):
        states.append(model.readout @ start)
        start = model.transition @ start
    spread = torch.cat([torch.stack(states), *columns], -1)[lead:]  # [time, channel, source]
    spread = spread.movedim(0, 1).flatten(0, 1)  # [channel * time, source]
    factors = _leading(spread, min(rank, len(spread) // 2))
    rest = (spread.square().sum(-1) - factors.square().sum(-1)).clamp_min(0.05 * spread.square().sum(-1))
    return rest.sqrt().reshape(channels, samples), factors.mT.reshape(-1, channels, samples)


def _leading(spread: Float[Tensor, "row source"], rank: int) -> Float[Tensor, "row factor"]:
    """Leading principal factors of `spread @ spread.mT` (Halko et al., SIAM Review 53 (2011) 217, algorithm 4.4)."""
    start = torch.randn(spread.shape[1], rank + 8, generator=generator(0, "subspace"), dtype=spread.dtype)
    basis = torch.linalg.qr(spread @ start).Q
    for _ in range(3):
        basis = torch.linalg.qr(spread @ (spread.mT @ basis)).Q
    inner, value, _ = torch.linalg.svd(basis.mT @ spread, full_matrices=False)
    factors: Tensor = (basis @ inner[:, :rank]) * value[:rank]
    return factors


def _long_run(move: Tensor, noise: Tensor) -> Tensor:
    """Covariance that the state settles to: sum of A^k Q A^k', by doubling."""
    total, power = noise, move
    for _ in range(20):
        total = total + power @ total @ power.mT
        power = power @ power
    return (total + total.mT) / 2


def _root(covariance: Tensor) -> Tensor:
    value, vector = torch.linalg.eigh(covariance)
    root: Tensor = vector * value.clamp_min(1e-12 * value.max().clamp_min(1e-12)).sqrt()
    return root
