"""BOLD: the balloon-Windkessel model, from activity of regions to percent of fMRI signal.

Activity makes a vasodilatory signal, the signal makes flow, flow inflates a venous balloon and
washes deoxyhaemoglobin out of it. The response to a short burst peaks after 3.1 s with the means of
2003, after 4.5 s with those of SPM12, and undershoots. State is carried from window to window, so a twin's
windows of half a second add up to a scan.

    s' = activity - decay s - feedback (f - 1)        f' = s
    transit v' = f - v^(1 / stiffness)                transit q' = f E(f) / E0 - v^(1 / stiffness) q / v
    E(f) = 1 - (1 - E0)^(1 / f)
    percent = 100 V0 (k1 (1 - q) + k2 (1 - q / v) + k3 (1 - v))

State     [*batch, region, 4]   s in 1/s; flow f, volume v and deoxyhaemoglobin q relative to rest
Drive     [*batch, region]      activity, without unit: 1 held for long raises flow by 1 / feedback, 0.1 is a lot
Output    [*batch, region]      percent change of the signal

References: Friston, Harrison and Penny 2003, NeuroImage 19:1273-1302 (states, their parameters, the classical signal);
Buxton, Wong and Frank 1998, Magn Reson Med 39:855-864 (balloon); Stephan, Weiskopf, Drysdale, Robinson and Friston
2007, NeuroImage 38:387-401 (the revised signal).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError, ShapeError

from .dynamics import Parameter, State
from .integrate import rk4, stage_drive

# The published equations let flow pass below zero after a huge response, and a flow of hundreds makes the balloon
# stiff. Balloon and extraction see what lies beyond these as these, so any activity stays finite at any tested step.
SMALLEST_FLOW, LARGEST_FLOW = 0.05, 10.0


class BoldSignal(ABC):
    """How volume and deoxyhaemoglobin make the signal: the coefficients of the equation above."""

    @abstractmethod
    def coefficients(self, extraction: Parameter) -> tuple[Parameter, Parameter, Parameter, Parameter]:
        """V0, k1, k2 and k3, given the share of oxygen extracted at rest."""


@dataclass(frozen=True)
class ClassicalSignal(BoldSignal):
    """k1 = 7 E0, k2 = 2, k3 = 2 E0 - 0.2, as in Buxton et al. 1998 and Friston et al. 2003; for 1.5 T.

    Attributes:
        resting_volume: V0, share of the tissue that is venous blood.
    """

    resting_volume: Parameter = 0.02

    def coefficients(self, extraction: Parameter) -> tuple[Parameter, Parameter, Parameter, Parameter]:
        """See BoldSignal."""
        return self.resting_volume, 7 * extraction, 2.0, 2 * extraction - 0.2


@dataclass(frozen=True)
class RevisedSignal(BoldSignal):
    """k1 = 4.3 offset E0 TE, k2 = ratio slope E0 TE, k3 = 1 - ratio: Stephan et al. 2007, for 1.5 T.

    Attributes:
        resting_volume: V0; 0.04 in SPM, which follows this paper.
        echo_s: TE, the echo time.
        offset_hz: Frequency offset at the surface of a vessel of fully deoxygenated blood.
        slope_hz: Intravascular relaxation rate per share of desaturation.
        ratio: Intra- to extravascular signal at rest; the mean of the prior there.
    """

    resting_volume: Parameter = 0.04
    echo_s: Parameter = 0.04
    offset_hz: Parameter = 40.3
    slope_hz: Parameter = 25.0
    ratio: Parameter = 1.0

    def coefficients(self, extraction: Parameter) -> tuple[Parameter, Parameter, Parameter, Parameter]:
        """See BoldSignal."""
        k1 = 4.3 * self.offset_hz * extraction * self.echo_s
        return self.resting_volume, k1, self.ratio * self.slope_hz * extraction * self.echo_s, 1 - self.ratio


@dataclass(frozen=True)
class Balloon:
    """The vessels of each region. Differentiable in state, activity and parameters.

    Defaults are the prior means of Friston et al. 2003. SPM12's, which are slower, are decay_per_s=0.64,
    feedback_per_s2=0.32, transit_s=2.0, stiffness=0.32, extraction=0.4 and signal=RevisedSignal().

    Attributes:
        efficacy: Vasodilatory signal per unit of activity, 1/s^2 [*batch, region]; says how many regions there are.
            Ones leave the activity as it is, as in Friston et al. 2003.
        decay_per_s: Of the vasodilatory signal (kappa).
        feedback_per_s2: Of flow on that signal (gamma; printed there as 1/s).
        transit_s: Mean time through the balloon at rest (tau).
        stiffness: Grubb's exponent (alpha).
        extraction: Share of the oxygen extracted at rest (rho, E0).
        signal: Equation of the signal.
    """

    efficacy: Float[Tensor, "*batch region"]
    decay_per_s: Parameter = 0.65
    feedback_per_s2: Parameter = 0.41
    transit_s: Parameter = 0.98
    stiffness: Parameter = 0.32
    extraction: Parameter = 0.34
    signal: BoldSignal = field(default_factory=ClassicalSignal)

    states: ClassVar[tuple[str, ...]] = ("signal_per_s", "flow", "volume", "deoxyhaemoglobin")
    source: ClassVar[str] = "Friston, Harrison and Penny 2003, NeuroImage 19:1273-1302"
    largest_dt_s: ClassVar[float] = 0.1  # RK4 then errs by 1e-3 of the response at an activity of 1, see the tests

    def start(self, batch_shape: Sequence[int] = ()) -> State:
        """Vessels at rest, `batch_shape` of them."""
        zero = self.efficacy.new_zeros(*batch_shape, self.efficacy.shape[-1])
        return torch.stack([zero, zero + 1, zero + 1, zero + 1], -1)

    def drift(self, state: State, activity: Float[Tensor, "*#batch #region"]) -> State:
        """Rate of change, per second."""
        signal, flow, volume, deoxy = state.unbind(-1)
        signal_rate = self.efficacy * activity - self.decay_per_s * signal - self.feedback_per_s2 * (flow - 1)
        inflow = flow.clamp(SMALLEST_FLOW, LARGEST_FLOW)
        outflow = volume ** (1 / self.stiffness)
        extracted = 1 - (1 - self.extraction) ** (1 / inflow)
        volume_rate = (inflow - outflow) / self.transit_s
        deoxy_rate = (inflow * extracted / self.extraction - outflow * deoxy / volume) / self.transit_s
        return torch.stack([signal_rate, signal, volume_rate, deoxy_rate], -1)

    def bold_percent(self, state: State) -> Float[Tensor, "*batch region"]:
        """Signal in percent of that at rest."""
        volume, deoxy = state[..., 2], state[..., 3]
        v0, k1, k2, k3 = self.signal.coefficients(self.extraction)
        return 100 * v0 * (k1 * (1 - deoxy) + k2 * (1 - deoxy / volume) + k3 * (1 - volume))

    def scan(
        self,
        state: State,
        activity: Float[Tensor, "*batch region time"],
        rate_hz: float,
        *,
        dt_s: float = 0.02,
        every: int = 1,
    ) -> tuple[Float[Tensor, "*batch region reading"], State]:
        """One window of the scan by RK4, and the vessels after it; the next window goes on from there.

        Args:
            state: Where the vessels stand.
            activity: At the samples of the window, each taken to hold until the next.
            rate_hz: Samples per second.
            dt_s: Step, a whole number of samples.
            every: Steps from one reading to the next; the first is of the window's start.

        Returns:
            Percent of signal, and the state at the window's end.

        Raises:
            ConfigError: If the step is too large, or does not hold a whole number of samples.
            ShapeError: If the window does not hold a whole number of steps.
        """
        drive = self._drive(activity, rate_hz, dt_s)
        readings = []
        for number, at in enumerate(drive):
            if number % every == 0:
                readings.append(self.bold_percent(state))
            state = rk4(self.drift, state, at, dt_s)
        return torch.stack(readings, -1), state

    def _drive(self, activity: Tensor, rate_hz: float, dt_s: float) -> Tensor:
        """Activity at the stages of each step, `[step, 3, *batch, region]`."""
        if not 0 < dt_s <= self.largest_dt_s:
            raise ConfigError(f"dt_s is {dt_s} s; the largest step tested for a balloon is {self.largest_dt_s} s.")
        each = dt_s * rate_hz
        if round(each) < 1 or abs(each - round(each)) > 1e-6 * each:
            raise ConfigError(f"dt_s {dt_s} holds {each:g} samples at {rate_hz} Hz; choose a whole number of them.")
        if activity.shape[-1] % round(each):
            raise ShapeError(
                f"the window has {activity.shape[-1]} samples, no whole number of steps of {round(each)}; change dt_s."
            )
        held = activity.repeat_interleave(2, -1)  # two bins a step at least, for the line through them
        return stage_drive(held, 2 * round(each))


def power_activity(
    potential_mv: Float[Tensor, "*batch region time"], *, rest_mv: Parameter, scale_mv: Parameter
) -> Float[Tensor, "*batch region time"]:
    """Activity as the power of the potential around its rest, ((v - rest) / scale)^2: BOLD follows the field's power.

    Logothetis et al. 2001, Nature 412:150-157. The scale is the user's to choose: a rhythm of amplitude A mV gives a
    mean activity of A^2 / (2 scale^2).

    Args:
        potential_mv: Of the regions, such as a twin's `activity_mv`.
        rest_mv: Potential that costs nothing; a number, or a tensor that broadcasts against `potential_mv`.
        scale_mv: Deviation that makes an activity of 1.
    """
    return ((potential_mv - rest_mv) / scale_mv) ** 2
