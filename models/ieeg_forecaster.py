"""An ensemble of small stimulation-conditioned networks, fitted to one patient's trials.

Each member learns from another part of the trials and stops where its held-out windows are
forecast best. Where members disagree, few trials were like this one: their differences
enter a forecast as shared factors, beside noise measured on the windows held out.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from stimopt.errors import CheckpointError
from stimopt.features import band_power
from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.response import Response
from stimopt.stimulus import Stimulus
from stimopt.tensors import generator, map_tensors, named_under

from .folds import folds_of
from .ieeg_network import IeegNetwork, NetworkSize, stimulus_features
from .ieeg_waves import patch_samples
from .residuals import residual_noise
from .window import Window, window_from_dict, window_of

_BANDS_HZ = ((1.0, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0), (30.0, 70.0))
_HIGHEST_HZ = 40.0  # of the cosines that a response is written in; faster parts come from the kernels
_BATCH = 32
_CHECKS = 20  # how often held-out windows are forecast during training
_RATE = 3e-3  # of AdamW


@dataclass(frozen=True)
class IeegForecaster(Forecaster):
    """Several networks answering as one. Differentiable in the stimulus, in its dtype.

    Attributes:
        window: What it was fitted on.
        network: The network without its weights.
        weights: Those of each member.
        rest_uv: Middle of each channel at rest.
        spread_uv: Spread of each channel at rest, the network's unit.
        scale: Independent noise, in units of the scale that the members forecast.
        factors: Shared noise, in the same units.
    """

    window: Window
    network: IeegNetwork
    weights: tuple[Mapping[str, Tensor], ...]
    rest_uv: Float[Tensor, " channel"]
    spread_uv: Float[Tensor, " channel"]
    scale: Float[Tensor, "channel time"]
    factors: Float[Tensor, "factor channel time"]

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        signal = self.window.context_signal(context, stimulus)
        inputs = _inputs(self.window, signal, stimulus, self.rest_uv, self.spread_uv)
        answers = [_answer(self.window, self.network, weights, inputs) for weights in self.weights]
        means, logs = (torch.stack(parts) for parts in zip(*answers, strict=True))  # [member, row, channel, time]
        unit, batch = self.spread_uv.to(signal).unsqueeze(-1), stimulus.batch_shape
        mean = self.rest_uv.to(signal).unsqueeze(-1) + unit * means.mean(0)
        apart = unit * (means - means.mean(0)).movedim(0, 1) / math.sqrt(max(1, len(means) - 1))
        noise = unit * (2 * logs).exp().mean(0).sqrt()  # [row, channel, time]
        shared = torch.cat([apart, noise.unsqueeze(1) * self.factors.to(signal)], 1)
        template = self.window.response(mean.reshape(*batch, *mean.shape[1:]))
        scale = (noise * self.scale.to(signal)).reshape(*batch, *mean.shape[1:])
        return GaussianForecast(template, scale, shared.reshape(*batch, *shared.shape[1:]))

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        tensors = {name: getattr(self, name) for name in ("rest_uv", "spread_uv", "scale", "factors")}
        tensors |= {f"buffer.{name}": value for name, value in self.network.named_buffers()}
        for i, weights in enumerate(self.weights):
            tensors |= {f"member{i}.{name}": value for name, value in weights.items()}
        size = asdict(self.network.size)
        return {"window": self.window.to_dict(), "size": size, "members": len(self.weights)}, tensors

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "IeegForecaster":
        """See Saveable."""
        window = window_from_dict(config["window"])
        network = IeegNetwork(NetworkSize(**config["size"]), window.montage, tensors["buffer.fingerprint"], 1.0,
                              generator(0, "restore"))  # fmt: skip
        network.load_state_dict({**network.state_dict(), **named_under(tensors, "buffer.")})
        weights = tuple(named_under(tensors, f"member{i}.") for i in range(config["members"]))
        names = {name for name, _ in network.named_parameters()}
        if any(set(member) != names for member in weights):
            raise CheckpointError(f"each member needs the {len(names)} weights of this network; fit or copy it again.")
        kept = {name: tensors[name] for name in ("rest_uv", "spread_uv", "scale", "factors")}
        return cls(window=window, network=network.requires_grad_(False), weights=weights, **kept)


def fit_ieeg_network(
    trials: Trials, *, seed: int = 0, steps: int = 300, members: int = 3, width: int = 48, layers: int = 2,
    factors: int = 8,
) -> IeegForecaster:  # fmt: skip
    """A small stimulation-conditioned network, trained on these trials alone.

    Args:
        trials: Recorded trials with signals; 60 or more are worth a network.
        seed: Of weights, batches and held-out parts; the same seed gives the same network.
        steps: Of AdamW, per member, 32 trials each.
        members: Of the ensemble.
        width: Of a token.
        layers: Of attention.
        factors: How many shared noise factors at most.

    Raises:
        DataError: If there are fewer than four trials, or no signals.
    """
    window = window_of(trials)
    trials = map_tensors(trials, lambda tensor: tensor.float())
    rest, spread = _rest(trials)
    inputs = _inputs(window, trials.context.signal_uv, trials.stimulus, rest, spread)
    target = (trials.response.signal_uv - rest.unsqueeze(-1)) / spread.unsqueeze(-1)
    samples = window.lead + window.samples
    waves = min(round(2 * _HIGHEST_HZ * samples / window.rate_hz), samples, 160)
    size = NetworkSize(window.context_samples, samples, width, layers,
                       patch_samples=patch_samples(window.rate_hz), waves=max(6, waves))  # fmt: skip
    drive = float(inputs[1].square().mean().sqrt().clamp_min(1e-6))
    parts = folds_of(len(trials), max(5, members), seed, "held out")[:members]
    weights, surprises = [], []
    for i, part in enumerate(parts):
        network = IeegNetwork(size, window.montage, _fingerprint(trials, spread), drive, generator(seed, "weights", i))
        best, surprise = _train(window, network, inputs, target, part, steps, generator(seed, "batches", i))
        weights.append(best)
        surprises.append(surprise)
    scale, shared = residual_noise(torch.cat(surprises).double(), window.rate_hz, factors)
    network.requires_grad_(False)
    return IeegForecaster(window, network, tuple(weights), rest, spread, scale.float(), shared.float())


_Inputs = tuple[Tensor, Tensor, Tensor]


def _inputs(window: Window, signal: Tensor, stimulus: Stimulus, rest: Tensor, spread: Tensor) -> _Inputs:
    """What the network reads: context in units of rest, rectified current, numbers of the train; one row a stimulus."""
    rows = stimulus.batch_shape.numel()
    scaled = (signal - rest.to(signal).unsqueeze(-1)) / spread.to(signal).unsqueeze(-1)
    one = signal.shape[:-2].numel() == 1  # a context shared by all stimuli is encoded once
    scaled = scaled.reshape(1, *signal.shape[-2:]) if one else scaled.expand(*stimulus.batch_shape, *signal.shape[-2:])
    drive = window.drive_ma(stimulus)
    numbers = stimulus_features(stimulus)
    return (
        scaled.reshape(-1, *signal.shape[-2:]), drive.reshape(rows, *drive.shape[-2:]),
        numbers.reshape(rows, numbers.shape[-1]),
    )  # fmt: skip


def _answer(
    window: Window, network: IeegNetwork, weights: Mapping[str, Tensor], inputs: _Inputs
) -> tuple[Tensor, Tensor]:
    """Mean and log scale of one member, in the dtype of the inputs."""
    like = inputs[1]
    state = {name: value.to(like) for name, value in {**dict(network.named_buffers()), **weights}.items()}
    mean, log_scale = functional_call(network, state, inputs)
    return mean[..., window.lead :], log_scale[..., window.lead :]


def _train(
    window: Window, network: IeegNetwork, inputs: _Inputs, target: Tensor, held: Tensor, steps: int,
    source: torch.Generator,
) -> tuple[dict[str, Tensor], Float[Tensor, "trial channel time"]]:  # fmt: skip
    """The weights that forecast the held-out windows best, and those windows' errors in units of the scale."""
    kept = torch.ones(len(target), dtype=torch.bool)
    kept[held] = False
    train = kept.nonzero().squeeze(-1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, steps))
    best, lowest = copy.deepcopy(dict(network.named_parameters())), math.inf
    for step in range(steps):
        rows = train[torch.randint(0, len(train), (min(_BATCH, len(train)),), generator=source)]
        optimizer.zero_grad()
        loss, _ = _loss(window, network, inputs, target, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, steps // _CHECKS) == 0:
            with torch.no_grad():
                now = float(_loss(window, network, inputs, target, held)[0])
            if now < lowest:
                best, lowest = copy.deepcopy(dict(network.named_parameters())), now
    weights = {name: value.detach() for name, value in best.items()}
    with torch.no_grad():
        network.load_state_dict({**network.state_dict(), **weights})
        return weights, _loss(window, network, inputs, target, held)[1]


def _loss(
    window: Window, network: IeegNetwork, inputs: _Inputs, target: Tensor, rows: Tensor
) -> tuple[Tensor, Float[Tensor, "trial channel time"]]:
    """Gaussian negative log likelihood per sample, and the errors in units of the scale."""
    context, drive, numbers = (part[rows] for part in inputs)
    mean, log_scale = network(context, drive, numbers)
    surprise = (target[rows] - mean[..., window.lead :]) * (-log_scale[..., window.lead :]).exp()
    return (surprise.square() / 2 + log_scale[..., window.lead :]).mean(), surprise


def _pace(step: int, steps: int) -> float:
    """Learning rate's share: a short rise, then half a cosine."""
    rise = min(30, max(1, steps // 10))
    return min(1.0, (step + 1) / rise) * (1 + math.cos(math.pi * step / steps)) / 2


def _rest(trials: Trials) -> tuple[Float[Tensor, " channel"], Float[Tensor, " channel"]]:
    """Median and robust spread of each channel over all contexts; 1.4826 makes it a Gaussian's deviation."""
    signal = trials.context.signal_uv.movedim(-2, 0).flatten(1)
    middle = signal.median(-1).values
    spread = 1.4826 * (signal - middle.unsqueeze(-1)).abs().median(-1).values
    return middle, spread.clamp_min(1e-3)


def _fingerprint(trials: Trials, spread: Tensor) -> Float[Tensor, "channel feature"]:
    """Log power of the classic bands at rest, relative to the channel's spread."""
    context = Response(trials.context.montage, trials.context.signal_uv, trials.context.rate_hz)
    resolved = trials.context.rate_hz / trials.context.signal_uv.shape[-1]  # Hz between frequencies of this window
    powers = []
    for low, high in _BANDS_HZ:
        held = high <= context.rate_hz / 2 and math.floor(high / resolved) > math.ceil(low / resolved) - 1
        power = band_power(context, (low, high)).mean(0) if held else torch.zeros_like(spread)
        powers.append((power / spread.square() + 1e-3).log() / 4)
    return torch.stack(powers, -1)
