"""Finite impulse responses to rectified current, spread by distance: a linear filter of pulses, blind to the context.

    y_c(t) = rest_c + sum over input i, lag l of  K_ci(l) u_i(t - l)

with u the rectified current of each contact, cathodic and anodic apart. Pulses count alike, or the less the more came
before them, and charge in proportion or bent (`drive.TIRINGS`): which, held-out trials say. The kernels K are
built up in three ridge regressions, each on what the one before left over: kernels of
distance that all channels share, kernels of distance of each channel's own, and kernels
of each channel for each contact. Ridges, and which of the three to have, are what
forecast held-out trials best, cut at random and cut by site: kernels that only fit the sites
at hand go wild at new ones. All of it is computed from products summed over trials.

References: ridge regression on a basis of delays, Hastie, Tibshirani and Friedman, The Elements of Statistical
Learning (2nd ed., 2009), section 3.4; a static bend before a linear filter, Hunter and Korenberg, Biol Cybern 55 (1986)
135-144; synapses that tire, Tsodyks and Markram, PNAS 94 (1997) 719-723.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.forecaster import Context, Forecaster, GaussianForecast, Trials
from stimopt.stimulus import Stimulus

from .drive import TIRINGS, Tiring
from .felt import at_rest_uv, spread_kernels, unit_uv
from .folds import folds_of, site_parts
from .impulse import convolve, delay_basis, filtered
from .residuals import noisy_forecast, residual_noise
from .window import Window, contiguous, in_double, window_from_dict, window_of

_RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean diagonal; spans from free to nearly zero kernels
_BASIS = 16
_FOLDS = 4
_CHUNK = 16  # trials whose regressors, or channels whose products, are held at once


@dataclass(frozen=True)
class ImpulseForecaster(Forecaster):
    """Kernels on rectified current. Differentiable in the stimulus.

    Attributes:
        window: What it was fitted on, and how pulses count.
        rest_uv: Mean of each channel.
        kernel: uV per mA of rectified current (mean over one sample), cathodic of all contacts, then anodic.
        scale_uv: Independent noise.
        factors_uv: Shared noise.
    """

    window: Window
    rest_uv: Float[Tensor, " channel"]
    kernel: Float[Tensor, "channel input lag"]
    scale_uv: Float[Tensor, "channel time"]
    factors_uv: Float[Tensor, "factor channel time"]

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        self.window.context_signal(context, stimulus)  # refuses what does not fit
        mean = _answer(self.window, self.rest_uv, self.kernel, stimulus)
        return noisy_forecast(self.window, mean, self.scale_uv, self.factors_uv)

    def effect_uv(self, stimulus: Stimulus) -> Float[Tensor, "*batch channel time"]:
        """What a stimulus adds to the mean; no context is needed to know it."""
        return _answer(self.window, torch.zeros_like(self.rest_uv), self.kernel, stimulus)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        names = ("rest_uv", "kernel", "scale_uv", "factors_uv")
        return {"window": self.window.to_dict()}, {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "ImpulseForecaster":
        """See Saveable."""
        return cls(window=window_from_dict(config["window"]), **tensors)


def fit_impulse_regression(
    trials: Trials, *, seed: int = 0, factors: int = 12, tirings: Sequence[Tiring | None] = TIRINGS
) -> ImpulseForecaster:
    """Finite impulse responses to rectified current, spread by distance, without the context.

    Args:
        trials: Recorded trials with signals.
        seed: Of the folds on which ridges and tiring are chosen and the noise is measured.
        factors: How many shared noise factors at most.
        tirings: How pulses may count; the one that forecasts held-out trials best is kept.

    Raises:
        ConfigError: If there is no way for pulses to count.
        DataError: If there are fewer than four trials, or no signals.
    """
    plain, trials = window_of(trials), in_double(trials)
    parts = folds_of(len(trials), _FOLDS, seed)
    rest, unit = at_rest_uv(trials), unit_uv(trials)
    basis = delay_basis(_BASIS, plain.lead + plain.samples, unit)
    apart = site_parts(trials.stimulus, _FOLDS, seed)
    best: tuple[float, _Ridges, list[_Products], Window] | None = None
    for tiring in tirings:
        tried = replace(plain, tiring=tiring)
        told = [[_products(tried, trials[part], rest, unit, basis) for part in cut] for cut in (parts, apart)]
        saved, by = _chosen(tried, told)
        if best is None or saved > best[0]:
            best = saved, by, told[0], tried
    if best is None:
        raise ConfigError("there is no way for pulses to count; give one or more of tirings, such as None.")
    _, ridges, products, window = best
    residual = torch.empty_like(trials.response.signal_uv)
    for i, part in enumerate(parts):
        kernel = _kernel(window, _sum(products, i), ridges, unit, basis)
        residual[part] = trials.response.signal_uv[part] - _answer(window, rest, kernel, trials.stimulus[part])
    kernel = _kernel(window, _sum(products, None), ridges, unit, basis)
    return contiguous(ImpulseForecaster(window, rest, kernel, *residual_noise(residual, window.rate_hz, factors)))


_Ridges = tuple[float | None, ...]  # of the three regressions; None leaves one out


@dataclass(frozen=True)
class _Products:
    """Products of regressors (contact current x delay) with themselves and with the responses, summed over trials.

    Attributes:
        gram: With themselves.
        target: With the responses.
        felt: With themselves again, of the current that each channel feels, at each scale of distance.
    """

    gram: Float[Tensor, "regressor regressor"]
    target: Float[Tensor, "channel regressor"]
    felt: Float[Tensor, "channel feature feature"]

    def __add__(self, other: "_Products") -> "_Products":
        return _Products(self.gram + other.gram, self.target + other.target, self.felt + other.felt)

    def less(self, weight: Float[Tensor, "channel regressor"]) -> "_Products":
        """The same with what `weight` explains taken out of the responses."""
        return replace(self, target=self.target - weight @ self.gram)

    def gain(self, weight: Float[Tensor, "channel regressor"]) -> float:
        """How much squared error `weight` saves."""
        return float((weight * (2 * self.target - weight @ self.gram)).sum())


def _products(window: Window, trials: Trials, rest: Tensor, unit: Tensor, basis: Tensor) -> _Products:
    off = (trials.response.signal_uv - rest.unsqueeze(-1)) / unit.unsqueeze(-1)
    size = 2 * len(window.montage.contacts) * len(basis)
    gram, target = off.new_zeros(size, size), off.new_zeros(off.shape[1], size)
    for start in range(0, len(trials), _CHUNK):
        some = slice(start, start + _CHUNK)
        regressors = filtered(basis, window.drive_ma(trials.stimulus[some]))[..., window.lead :]
        flat = regressors.flatten(1, 2).movedim(1, 0).flatten(1)  # [regressor, trial * time]
        gram, target = gram + flat @ flat.mT, target + off[some].movedim(1, 0).flatten(1) @ flat.mT
    return _Products(gram, target, _felt(spread_kernels(window.montage, gram), gram))


def _felt(
    spread: Float[Tensor, "spread channel contact"], gram: Float[Tensor, "regressor regressor"]
) -> Float[Tensor, "channel feature feature"]:
    """Products of contacts' currents as those of what channels feel: [polarity, spread, delay] with itself, each."""
    scales, _, contacts = spread.shape
    delays = len(gram) // (2 * contacts)
    sizes = (2, contacts, delays)  # [polarity, contact, delay]
    near = gram.reshape(*sizes, *sizes).permute(1, 0, 2, 3, 5, 4).reshape(-1, contacts)  # second contact last
    found = []
    for some in spread.movedim(1, 0).split(_CHUNK):  # [channel, spread, contact]
        half = near @ some.flatten(0, 1).mT  # [contact polarity delay polarity delay, channel spread]
        half = half.reshape(contacts, -1, len(some), scales).movedim(2, 0).flatten(2)
        whole = (some @ half).reshape(len(some), scales, 2, delays, 2, delays, scales)
        found.append(whole.permute(0, 2, 1, 3, 4, 6, 5).reshape(len(some), 2 * scales * delays, -1))
    return torch.cat(found)


def _sum(products: list[_Products], held: int | None) -> _Products:
    first, *others = [part for i, part in enumerate(products) if i != held]
    for other in others:
        first = first + other
    return first


def _chosen(window: Window, cuts: Sequence[list[_Products]]) -> tuple[float, _Ridges]:
    """The ridge of each regression in turn that saves most error on held-out parts, and how much all of them save.

    Args:
        window: What is forecast.
        cuts: All trials in parts, cut in one way or several, which count alike.
    """
    train = [_sum(products, i) for products in cuts for i in range(len(products))]
    test, ridges, saved = [part for products in cuts for part in products], list[float | None](), 0.0
    for stage in _STAGES:
        best, most, ridge = None, 0.0, None
        solved = [stage(window, fold) for fold in train]
        for tried in _RIDGES:
            weights = [solve(tried) for solve in solved]
            gain = sum(part.gain(weight) for part, weight in zip(test, weights, strict=True))
            if gain > most:
                best, most, ridge = weights, gain, tried
        if best is not None:
            train = [fold.less(weight) for fold, weight in zip(train, best, strict=True)]
            test = [part.less(weight) for part, weight in zip(test, best, strict=True)]
        ridges.append(ridge)
        saved += most
    return saved, tuple(ridges)


def _kernel(
    window: Window, products: _Products, ridges: _Ridges, unit: Tensor, basis: Tensor
) -> Float[Tensor, "channel input lag"]:
    total = torch.zeros_like(products.target)
    for stage, ridge in zip(_STAGES, ridges, strict=True):
        if ridge is not None:
            total = total + stage(window, products.less(total))(ridge)
    kernel: Tensor = unit.reshape(-1, 1, 1) * (total.unflatten(-1, (-1, len(basis))) @ basis)
    return kernel


_Solve = Callable[[float], Float[Tensor, "channel regressor"]]  # of a ridge


def _shared(window: Window, products: _Products) -> _Solve:
    """Kernels of distance that all channels share, each in its own unit."""
    spread, targets = _by_distance(window, products)
    gram, target = products.felt.sum(0), targets.sum(0)
    return lambda ridge: _spread_out(spread, _ridge(gram, target.unsqueeze(0), ridge).expand(len(targets), -1))


def _own(window: Window, products: _Products) -> _Solve:
    """Kernels of distance of each channel's own."""
    spread, targets = _by_distance(window, products)
    return lambda ridge: _spread_out(spread, _ridge(products.felt, targets.unsqueeze(-2), ridge).squeeze(-2))


def _contact(window: Window, products: _Products) -> _Solve:
    """Kernels of each channel for each contact in use."""
    size = products.gram.diagonal()
    used = (size > 1e-9 * size.max().clamp_min(1e-30)).nonzero().squeeze(-1)
    if not len(used):  # silent trials alone, as where a part holds all that were not
        return lambda ridge: torch.zeros_like(products.target)
    gram, target = products.gram[used][:, used], products.target[:, used]
    return lambda ridge: torch.zeros_like(products.target).index_copy(1, used, _ridge(gram, target, ridge))


_STAGES = (_shared, _own, _contact)


def _by_distance(
    window: Window, products: _Products
) -> tuple[Float[Tensor, "spread channel contact"], Float[Tensor, "channel feature"]]:
    """The kernels of distance, and products of what each channel feels with what it answers."""
    spread = spread_kernels(window.montage, products.gram)
    target = products.target.unflatten(-1, (2, spread.shape[-1], -1))
    return spread, torch.einsum("sck,cpkb->cpsb", spread, target).flatten(1)


def _spread_out(spread: Tensor, weight: Float[Tensor, "channel feature"]) -> Float[Tensor, "channel regressor"]:
    """Kernels of distance as kernels of contacts."""
    felt = weight.unflatten(-1, (2, len(spread), -1))  # [channel, polarity, spread, delay]
    return torch.einsum("sck,cpsb->cpkb", spread, felt).flatten(1)


def _ridge(gram: Float[Tensor, "*channel r r"], target: Float[Tensor, "*channel row r"], ridge: float) -> Tensor:
    """`target` over `gram`, with a ridge relative to the mean of the diagonal that is not zero."""
    size = gram.diagonal(dim1=-2, dim2=-1)
    used = size > 1e-9 * size.amax(-1, keepdim=True)
    mean = (size * used).sum(-1) / used.sum(-1).clamp_min(1)
    strength = (ridge * mean).unsqueeze(-1) + 1e-12
    strong = gram.clone()
    strong.diagonal(dim1=-2, dim2=-1).add_(strength)
    weight: Tensor = torch.cholesky_solve(target.mT, torch.linalg.cholesky(strong)).mT
    return weight


def _answer(window: Window, rest: Tensor, kernel: Tensor, stimulus: Stimulus) -> Float[Tensor, "*batch channel time"]:
    return (
        rest.to(stimulus.amplitude_ma).unsqueeze(-1) + convolve(kernel, window.drive_ma(stimulus))[..., window.lead :]
    )
