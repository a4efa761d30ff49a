"""CONTRACT Forecaster: what the response to a stimulus would be, as a distribution.

`forecast(context, stimulus)` answers for a stimulus nobody has tried yet, differentiably
in the stimulus. The context is the signal just before it. A Forecast is sampled with
`rsample` (gradients pass) and read with `mean`, `quantile` and `log_prob`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import ShapeError
from .montage import Montage
from .response import Response
from .stimulus import Stimulus
from .tensors import map_tensors


@dataclass(frozen=True)
class Context:
    """What is known before the stimulus: the signal of the window before it, `[*batch, channel, time]` in uV."""

    montage: Montage
    signal_uv: Float[Tensor, "*batch channel time"]
    rate_hz: float

    def __getitem__(self, index: int | slice | Tensor) -> "Context":
        """Pick along the first batch axis."""
        return map_tensors(self, lambda tensor: tensor[index])

    def expand(self, *batch_shape: int) -> "Context":
        """Repeat one context over a batch of stimuli."""
        return replace(self, signal_uv=self.signal_uv.expand(*batch_shape, *self.signal_uv.shape[-2:]))


@dataclass(frozen=True)
class Trials:
    """Recorded trials: what was known, what was delivered, what came back. One batch axis, `trial`, in time order.

    Raises:
        ShapeError: If the three do not have the same number of trials.
    """

    context: Context
    stimulus: Stimulus
    response: Response

    def __post_init__(self) -> None:
        counts = {len(self), self.context.signal_uv.shape[0], self.response.signal_uv.shape[0]}
        if len(self.stimulus.batch_shape) != 1 or len(counts) != 1:
            raise ShapeError(f"context, stimulus and response must hold the same trials, got {sorted(counts)}.")

    def __len__(self) -> int:
        return self.stimulus.batch_shape[0]

    def __getitem__(self, index: slice | Tensor) -> "Trials":
        """Some of the trials."""
        return map_tensors(self, lambda tensor: tensor[index])


class Forecast(ABC):
    """A distribution over the response to each stimulus of a batch.

    Attributes:
        template: A response with the batch, channels, rate and times of the forecast; its signal is the mean.
    """

    template: Response

    @property
    def mean(self) -> Float[Tensor, "*batch channel time"]:
        """Expected signal in uV."""
        return self.template.signal_uv

    @abstractmethod
    def rsample(self, n: int, generator: torch.Generator) -> Float[Tensor, "sample *batch channel time"]:
        """Signals in uV drawn from the forecast. The same generator state draws the same noise for every
        batch, so two stimuli are compared on common random numbers.
        """

    @abstractmethod
    def quantile(self, q: float) -> Float[Tensor, "*batch channel time"]:
        """Signal in uV below which a share `q` of responses lies, sample by sample."""

    @abstractmethod
    def log_prob(self, signal_uv: Float[Tensor, "*batch channel time"]) -> Float[Tensor, "*batch"]:
        """Log density of whole windows, in nats, signal in uV."""

    def responses(self, n: int, generator: torch.Generator) -> Response:
        """`n` drawn windows as a Response of batch `[sample, *batch]`."""
        return replace(self.template, signal_uv=self.rsample(n, generator))


class Forecaster(ABC):
    """Forecasts responses. Built by a `fit_...` function, ready to use."""

    @abstractmethod
    def forecast(self, context: Context, stimulus: Stimulus) -> Forecast:
        """The response to each stimulus. `context` has the batch of `stimulus`, or one that broadcasts to it.

        Differentiable in the stimulus wherever the model is; an implementation that is not says so first.

        Raises:
            ShapeError: If the montage is not the one it was fitted on.
        """


@dataclass(frozen=True)
class GaussianForecast(Forecast):
    """Independent noise around the mean, plus shared factors that move whole windows together.

    Attributes:
        template: Its signal is the mean.
        scale_uv: Standard deviation of the independent part.
        factors_uv: Each factor times a standard normal is added to the whole window; `factor` may be 0 wide.
    """

    template: Response
    scale_uv: Float[Tensor, "*batch channel time"]
    factors_uv: Float[Tensor, "*batch factor channel time"]

    def rsample(self, n: int, generator: torch.Generator) -> Float[Tensor, "sample *batch channel time"]:
        """See Forecast.rsample."""
        window, rank = self.scale_uv.shape[-2:], self.factors_uv.shape[-3]
        depth = (1,) * len(self.template.batch_shape)
        noise = torch.randn(n, *depth, *window, generator=generator, dtype=torch.float64).to(self.scale_uv)
        shared = torch.randn(n, *depth, rank, generator=generator, dtype=torch.float64).to(self.scale_uv)
        drift = torch.einsum("...k,...kct->...ct", shared.expand(n, *self.factors_uv.shape[:-2]), self.factors_uv)
        return self.mean + self.scale_uv * noise + drift

    @property
    def total_scale_uv(self) -> Float[Tensor, "*batch channel time"]:
        """Standard deviation of each sample, both parts together."""
        return (self.scale_uv.square() + self.factors_uv.square().sum(-3)).sqrt()

    def quantile(self, q: float) -> Float[Tensor, "*batch channel time"]:
        """See Forecast.quantile."""
        deviation: Tensor = torch.special.ndtri(self.scale_uv.new_tensor(q))
        value: Tensor = self.mean + self.total_scale_uv * deviation
        return value

    def log_prob(self, signal_uv: Float[Tensor, "*batch channel time"]) -> Float[Tensor, "*batch"]:
        """See Forecast.log_prob."""
        normal = torch.distributions.LowRankMultivariateNormal(
            self.mean.flatten(-2), self.factors_uv.flatten(-2).mT, self.scale_uv.square().flatten(-2)
        )
        log_density: Tensor = normal.log_prob(signal_uv.flatten(-2))
        return log_density
