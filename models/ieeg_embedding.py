"""Frozen features of the foundation model, and linear probes that read them. Nothing is trained by gradients.

    windows = cut_windows(Context(montage, recording.signal_uv, recording.rate_hz), 1.0)
    features = embed(model, windows, rest)                        # [window, channel, width]
    probe = fit_linear_probe(features.mean(1), target, groups)    # groups are left out in closed form

Reference: Allen, Technometrics 16 (1974) 125-127 (left-out residuals in closed form).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # its usual name

from stimopt.errors import DataError, ShapeError
from stimopt.forecaster import Context
from stimopt.stimulus import no_stimulus

from .ieeg_foundation import FoundationModel

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # times the mean variance of a feature
_AT_ONCE = 256  # windows
_HORIZON_S = 0.5


def cut_windows(context: Context, window_s: float) -> Context:
    """A long stretch of signal as windows `[window, channel, time]`, one after the other; what is left over is dropped.

    Args:
        context: `[channel, time]`.
        window_s: Length of a window.

    Raises:
        ShapeError: If the signal has a batch, or is shorter than a window.
    """
    length = round(window_s * context.rate_hz)
    signal = context.signal_uv
    if signal.ndim != 2 or not 0 < length <= signal.shape[-1]:
        raise ShapeError(f"signal_uv is {list(signal.shape)}; give [channel, time] of {length} samples or more.")
    count = signal.shape[-1] // length
    windows = signal[:, : count * length].unflatten(-1, (count, length)).transpose(0, 1)
    return Context(context.montage, windows, context.rate_hz)


@torch.no_grad()
def embed(model: FoundationModel, windows: Context, rest: Context) -> Float[Tensor, "window channel width"]:
    """Frozen features of each channel in each window.

    Two parts: what the ongoing stage made of the window's patches, mean over them; and what the trial stage knew
    of the channel before its heads, asked for silence. Both depend on other channels, through attention, and on
    place and rest of the patient. The order of channels carries nothing.

    Args:
        model: Frozen.
        windows: `[window, channel, time]`, at least 0.1 s; the newest 1.6 s of each are read.
        rest: Of the same patient, from which scales and fingerprints are taken; its windows at least as long as
            what is to be read.

    Raises:
        ShapeError: If montage, rate or lengths do not fit.
        DataError: If channels are flat at rest.
    """
    if windows.signal_uv.ndim != 3:
        raise ShapeError(f"windows are {list(windows.signal_uv.shape)}; give [window, channel, time].")
    samples = round(_HORIZON_S * rest.rate_hz)
    forecaster = model.for_patient(rest.montage, rest, samples=samples)
    parts = []
    for start in range(0, len(windows.signal_uv), _AT_ONCE):
        part = windows[start : start + _AT_ONCE]
        silent = no_stimulus(rest.montage, (len(part.signal_uv),)).to(part.signal_uv)
        answer = forecaster.answer(part, silent)
        ongoing = F.layer_norm(answer.ongoing.token, answer.ongoing.token.shape[-1:]).mean(2)
        parts.append(torch.cat([ongoing, answer.token], -1))
    return torch.cat(parts)


@dataclass(frozen=True)
class LinearProbe:
    """A ridge regression on frozen features.

    Attributes:
        weight: Of each feature.
        bias: What a mean row gets.
        penalty: Chosen by the left-out rows.
        left_out: What was told of each row without its group.
        r_squared: Of `left_out`, for each output; slightly kind, since the penalty was chosen by it.
    """

    weight: Float[Tensor, "width output"]
    bias: Float[Tensor, " output"]
    penalty: float
    left_out: Float[Tensor, "row output"]
    r_squared: Float[Tensor, " output"]

    def predict(self, features: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch output"]:
        """The outputs of rows."""
        return features.to(self.weight) @ self.weight + self.bias


def fit_linear_probe(
    features: Float[Tensor, "row width"], target: Float[Tensor, "row output"],
    groups: Int[Tensor, " row"] | None = None, penalties: Sequence[float] = PENALTIES,
) -> LinearProbe:  # fmt: skip
    """Ridge regression in closed form, its penalty chosen by leaving out each row, or each group of rows.

    Rows of one patient, or windows that overlap, belong in one group: left out one by one they tell on each other. The
    left-out residuals of a group are `(I - H_gg)^-1 e_g`, with H the map from targets to fitted values. Computed in
    float64.

    Args:
        features: Of `embed`, flattened to rows.
        target: What to tell.
        groups: Number of each row's group; every row its own by default.
        penalties: To choose among, times the mean variance of a feature.

    Raises:
        ShapeError: If rows do not match.
        DataError: If there are fewer than three groups, or features do not vary.
    """
    if len(features) != len(target):
        raise ShapeError(f"there are {len(features)} rows of features and {len(target)} of targets; give as many.")
    group = torch.arange(len(features)) if groups is None else groups.cpu()
    if len(group) != len(features) or len(group.unique()) < 3:
        raise DataError(f"{len(group)} rows are in {len(group.unique())} groups; give 3 groups or more, one a row.")
    x, y = features.double(), target.double()
    centred, level = x - x.mean(0), y.mean(0)
    left, size, right = torch.linalg.svd(centred, full_matrices=False)
    if not float(size[0]) > 0:
        raise DataError("the features are the same in every row; nothing can be told from them.")
    tried = []
    for penalty in penalties:
        ridge = penalty * float(size.square().sum()) / x.shape[-1]
        told = _left_out(left, size.square() / (size.square() + ridge), y, group)
        weight = right.mT @ ((size / (size.square() + ridge)).unsqueeze(-1) * (left.mT @ (y - level)))
        tried.append((float((y - told).square().sum()), penalty, told, weight))
    _, penalty, told, weight = min(tried, key=lambda one: one[0])
    variance = (y - level).square().sum(0).clamp_min(1e-300)
    explained = 1 - (y - told).square().sum(0) / variance
    return LinearProbe(weight, level - x.mean(0) @ weight, penalty, told, explained)


def _left_out(left: Tensor, shrunk: Tensor, y: Tensor, group: Tensor) -> Tensor:
    """What each row would have been told by a fit without its group; the intercept is part of the map."""
    fitted = y.mean(0) + left @ (shrunk.unsqueeze(-1) * (left.mT @ (y - y.mean(0))))
    told = torch.empty_like(y)
    for number in group.unique():
        rows = (group == number).nonzero().flatten().to(y.device)
        block = (left[rows] * shrunk) @ left[rows].mT + 1 / len(y)
        one = torch.eye(len(rows)).to(block)
        told[rows] = y[rows] - torch.linalg.solve(one - block, y[rows] - fitted[rows])
    return told
