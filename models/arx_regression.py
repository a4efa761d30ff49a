"""The ridge regressions behind `arx`: one step ahead on past and input, and whole windows on the input."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.forecaster import Trials
from stimopt.stimulus import Stimulus

from .impulse import delay_basis, filtered
from .window import Window

DIRECT_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # of the mean diagonal; spans from nearly free to nearly zero kernels

_PAST_RIDGES = (1e-4, 1e-2)
_INPUT_RIDGES = (1e-4, 1e-2, 1.0)
_INPUT_S = 0.1  # what lasts longer is carried by the autoregression
_INPUT_BASIS = 6
_DIRECT_BASIS = 16
_CHUNK = 32  # trials whose regressors are held at once


@dataclass(frozen=True)
class AutoRegression:
    """Normal equations of `y[t] = sum of A[l] y[t-l] + B u[t..]`, additive over trials.

    Attributes:
        window: Whose trials.
        gram: Products of the regressors: past (lag, channel), newest first, then input (input, basis).
        product: Products of the regressors with the present sample.
        power: Products of the present sample with itself.
        lags: Samples of past in the regressors.
        rows: How many present samples.
    """

    window: Window
    gram: Float[Tensor, "regressor regressor"]
    product: Float[Tensor, "regressor channel"]
    power: Float[Tensor, "channel channel"]
    lags: int
    rows: int

    def __add__(self, other: "AutoRegression") -> "AutoRegression":
        """The regression over both sets of trials."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("gram", "product", "power", "rows")}
        return replace(self, **sums)

    def solve(self, lags: int, past_ridge: float, input_ridge: float) -> "AutoRegressive":
        """The fit with `lags`, at most `self.lags`; ridges are relative to the mean diagonal of their blocks."""
        channels, inputs = self.window.channels, 2 * len(self.window.montage.contacts)
        past, first = channels * lags, channels * self.lags
        keep = torch.cat([torch.arange(past), torch.arange(first, len(self.gram))])
        gram, product = self.gram[keep][:, keep], self.product[keep]
        size = gram.diagonal()
        ridge = torch.cat([past_ridge * size[:past].mean().expand(past),
                           input_ridge * _mean_used(size[past:]).expand(len(keep) - past)])  # fmt: skip
        weight = torch.linalg.solve(gram + torch.diag(ridge + 1e-12), product)  # [regressor, channel]
        left = (self.power - weight.mT @ product - product.mT @ weight + weight.mT @ gram @ weight) / self.rows
        basis = _input_basis(self.window, weight)
        onset = torch.einsum("ikc,kd->cid", weight[past:].reshape(inputs, len(basis), channels), basis)
        return AutoRegressive(weight[:past].mT.contiguous(), onset, (left + left.mT) / 2)


@dataclass(frozen=True)
class AutoRegressive:
    """A vector autoregression with input.

    Attributes:
        back: Weights of the past on the present, newest lag first.
        onset: Direct kernels of the input, before the autoregression carries them on.
        innovation: Covariance of what one step leaves over, uV^2.
    """

    back: Float[Tensor, "channel lag_channel"]
    onset: Float[Tensor, "channel input lag"]
    innovation: Float[Tensor, "channel channel"]

    def free_run(self, window: Window) -> Float[Tensor, "channel time past channel"]:
        """Weights of the last context samples, newest first, on each sample of the window."""
        channels, width = self.back.shape
        start = torch.eye(width, dtype=self.back.dtype)  # one column a start
        run = self._run(start, self.onset[:, :0], window.lead + window.samples)[..., window.lead :].mT
        return run.reshape(channels, window.samples, width // channels, channels)

    def kernel(self, samples: int) -> Float[Tensor, "channel input lag"]:
        """Answer to one sample of 1 mA at each input."""
        return self._run(self.back.new_zeros(self.back.shape[1], self.onset.shape[1]), self.onset, samples)

    def noise_kernel(self, samples: int) -> Float[Tensor, "channel input lag"]:
        """Answer to one innovation of 1 uV at each channel, the innovation itself first."""
        one = torch.eye(len(self.back), dtype=self.back.dtype).unsqueeze(-1)
        return self._run(self.back.new_zeros(self.back.shape[1], len(self.back)), one, samples)

    def _run(self, history: Tensor, onset: Tensor, samples: int) -> Float[Tensor, "channel start time"]:
        channels, steps = len(self.back), []
        for step in range(samples):
            present = self.back @ history
            if onset.shape[1] and step < onset.shape[-1]:
                present = present + onset[..., step]
            steps.append(present)
            history = torch.cat([present, history[:-channels]])
        return torch.stack(steps, -1)


@dataclass(frozen=True)
class DirectKernels:
    """Normal equations of whole windows on the drive filtered by a basis of delays.

    Attributes:
        filtered_ma: The regressors.
        value: Eigenvalues of their products.
        vector: Eigenvectors.
        basis: Delays that the kernels are written in.
    """

    filtered_ma: Float[Tensor, "trial input basis time"]
    value: Float[Tensor, " regressor"]
    vector: Float[Tensor, "regressor regressor"]
    basis: Float[Tensor, "basis lag"]

    @classmethod
    def of(cls, window: Window, stimulus: Stimulus) -> "DirectKernels":
        """The equations for these stimuli."""
        basis = delay_basis(_DIRECT_BASIS, window.lead + window.samples, stimulus.amplitude_ma)
        regressors = filtered(basis, window.drive_ma(stimulus))[..., window.lead :]
        flat = regressors.flatten(1, 2)
        gram = sum(part.movedim(1, 0).flatten(1) @ part.movedim(1, 0).flatten(1).mT for part in flat.split(_CHUNK))
        value, vector = torch.linalg.eigh(gram)
        return cls(regressors, value.clamp_min(0), vector, basis)

    def solve(self, target_uv: Float[Tensor, "trial channel time"], ridge: float) -> Float[Tensor, "channel input lag"]:
        """Kernels that explain `target_uv`, with a ridge relative to the mean eigenvalue of the inputs in use."""
        product = torch.einsum("nikt,nct->ikc", self.filtered_ma, target_uv).flatten(0, 1)
        strength = ridge * _mean_used(self.value) + 1e-12
        weight = self.vector @ ((self.vector.mT @ product) / (self.value + strength).unsqueeze(-1))
        shape = self.filtered_ma.shape[1:3]
        return torch.einsum("ikc,kd->cid", weight.reshape(*shape, -1), self.basis)


def autoregress(window: Window, trials: Trials, lags: int) -> AutoRegression:
    """The normal equations over these trials; context and response are read as one stretch where they touch."""
    lags = max(1, min(lags, window.context_samples, window.samples // 2))
    first, *others = [_equations(window, trials[i : i + _CHUNK], lags) for i in range(0, len(trials), _CHUNK)]
    for other in others:
        first = first + other
    return first


def products(
    y: Float[Tensor, "row channel time"], u: Float[Tensor, "row input time"], lags: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of past (lag, channel), newest first, then input: with themselves, with the present; the present with itself."""
    past = [y[..., lags - lag : y.shape[-1] - lag] for lag in range(1, lags + 1)]
    regressors = torch.cat([*past, u[..., lags:]], 1).movedim(1, 0).flatten(1)  # [regressor, row * time]
    present = y[..., lags:].movedim(1, 0).flatten(1)
    return regressors @ regressors.mT, regressors @ present.mT, present @ present.mT


def grid(lags: int) -> Iterator[tuple[int, tuple[float, float]]]:
    """Lags and ridges worth trying."""
    tried = sorted({max(1, lags // 4), max(1, lags // 2), lags})
    return product(tried, product(_PAST_RIDGES, _INPUT_RIDGES))


def _equations(window: Window, trials: Trials, lags: int) -> AutoRegression:
    rest = trials.context.signal_uv.mean((0, -1)).unsqueeze(-1)
    drive = window.drive_ma(trials.stimulus)
    v = filtered(_input_basis(window, drive), drive).flatten(1, 2)[..., window.lead :]
    context, response = trials.context.signal_uv - rest, trials.response.signal_uv - rest
    quiet = v.new_zeros(*v.shape[:-1], context.shape[-1])
    stretches = [(context, quiet), (response, v)]
    if window.lead == 0:
        stretches = [(torch.cat([context, response], -1), torch.cat([quiet, v], -1))]
    blocks = [products(y, u, lags) for y, u in stretches if y.shape[-1] > lags]
    gram, product, power = (torch.stack(block).sum(0) for block in zip(*blocks, strict=True))
    rows = len(trials) * sum(y.shape[-1] - lags for y, _ in stretches if y.shape[-1] > lags)
    return AutoRegression(window, gram, product, power, lags, rows)


def _input_basis(window: Window, like: Tensor) -> Float[Tensor, "basis lag"]:
    samples = max(2, min(round(_INPUT_S * window.rate_hz), window.samples))
    return delay_basis(_INPUT_BASIS, samples, like)


def _mean_used(diagonal: Tensor) -> Tensor:
    """Mean of the entries that are not zero: inputs never delivered do not loosen the ridge on the others."""
    used = diagonal > 1e-9 * diagonal.max().clamp_min(1e-30)
    return diagonal[used].mean() if bool(used.any()) else diagonal.new_ones(())
