"""The thalamic error index: how badly thalamic cells relay sensorimotor pulses, and the pulses.

A cell relays a pulse that it answers with one spike within 25 ms. No spike is a miss, two or
more are a burst, and every spike later than 25 ms, before the next pulse, is spurious. The index is
the number of these errors over the number of pulses, averaged over cells.

Times are in seconds from the start of a simulation. Lists of different lengths end in infinity.

References: Rubin and Terman, J Comput Neurosci 16 (2004) 211-235; So, Kent and Grill, J Comput Neurosci 32
(2012) 499-519. Constants are those of the latter's deposited model, ModelDB 141699.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.tensors import row_keys

WINDOW_S = 0.025  # after a pulse, and before the end, where no pulse is counted
DROPPED_S = 0.2  # pulses earlier than this are not counted
SPIKE_MV = -40.0  # a thalamic voltage that rises through it is a spike

PULSE_HZ = 14.0  # mean of the instantaneous frequency of sensorimotor pulses
PULSE_VARIATION = 0.2  # and its coefficient of variation
PULSE_WIDTH_S = 5e-3
PULSE_UA_CM2 = 3.5


class RelayErrors(NamedTuple):
    """Errors of each cell, and how many pulses were counted."""

    misses: Float[Tensor, "*batch cell"]
    bursts: Float[Tensor, "*batch cell"]
    spurious: Float[Tensor, "*batch cell"]
    pulses: Float[Tensor, "*batch"]

    @property
    def per_pulse(self) -> Float[Tensor, "*batch"]:
        """Errors per pulse, averaged over cells; not a number where no pulse was counted."""
        return (self.misses + self.bursts + self.spurious).mean(-1) / self.pulses


def relay_errors(
    spikes_s: Float[Tensor, "*batch cell spike"],
    pulses_s: Float[Tensor, "*batch pulse"],
    seconds: float,
    *,
    window_s: float = WINDOW_S,
    dropped_s: float = DROPPED_S,
) -> RelayErrors:
    """Misses, bursts and spurious spikes of each cell.

    The deposited program has no window after the last pulse of a train, where a late spike makes a burst or saves a
    miss; here the last pulse is judged as the others. Counts have no gradients.

    Args:
        spikes_s: When each cell fired, see `spike_times`.
        pulses_s: Onsets of sensorimotor pulses, rising.
        seconds: Length of the simulation.
        window_s: Time to answer a pulse.
        dropped_s: Pulses before it are not counted, nor those with less than a window to the end.
    """
    counted = (pulses_s >= dropped_s) & (pulses_s <= seconds - window_s)
    ends = torch.cat([pulses_s[..., 1:], torch.full_like(pulses_s[..., :1], seconds)], -1).clamp_max(seconds)
    begin, end = pulses_s[..., None, :, None], ends[..., None, :, None]
    spikes = spikes_s.unsqueeze(-2)  # [*batch, cell, 1, spike]
    answers = ((spikes >= begin) & (spikes < begin + window_s)).sum(-1)  # [*batch, cell, pulse]
    late = ((spikes >= begin + window_s) & (spikes < end)).sum(-1)
    chosen = counted.unsqueeze(-2)
    kinds = (answers == 0, answers > 1, late)
    misses, bursts, spurious = ((kind * chosen).sum(-1).to(spikes_s) for kind in kinds)
    return RelayErrors(misses, bursts, spurious, counted.sum(-1).to(spikes_s))


def error_index(
    spikes_s: Float[Tensor, "*batch cell spike"], pulses_s: Float[Tensor, "*batch pulse"], seconds: float
) -> Float[Tensor, "*batch"]:
    """Misses, bursts and spurious spikes over pulses, averaged over cells: 0 is a perfect relay. See `relay_errors`."""
    return relay_errors(spikes_s, pulses_s, seconds).per_pulse


def spike_times(
    voltage_mv: Float[Tensor, "*batch cell time"], sample_s: float, threshold_mv: float = SPIKE_MV
) -> Float[Tensor, "*batch cell spike"]:
    """When each voltage had risen through the threshold, float64 seconds from the first sample, to within a sample."""
    risen = (voltage_mv[..., 1:] > threshold_mv) & (voltage_mv[..., :-1] <= threshold_mv)
    times = torch.arange(1, voltage_mv.shape[-1], dtype=torch.float64, device=voltage_mv.device) * sample_s
    most = int(risen.sum(-1).max())
    found = torch.where(risen, times, torch.inf)
    return found.topk(most, largest=False, sorted=True).values


def sensorimotor_pulses(
    batch_shape: tuple[int, ...],
    seconds: float,
    source: torch.Generator,
    *,
    rate_hz: float = PULSE_HZ,
    variation: float = PULSE_VARIATION,
) -> Float[Tensor, "*batch pulse"]:
    """Onsets of sensorimotor pulses: each comes one period of a gamma-distributed frequency after the one before.

    A row's train depends on its place in the batch and the state of `source`, not on the size of the batch.

    Args:
        batch_shape: One train for each row.
        seconds: Pulses begin before this time.
        source: Seeds the trains.
        rate_hz: Mean of the frequency.
        variation: Its standard deviation over its mean; 0 makes a regular train.

    Raises:
        ConfigError: If the rate is not positive, or the variation is negative, or 1 or more.
    """
    if not (rate_hz > 0 and 0 <= variation < 1):
        raise ConfigError(
            f"rate_hz is {rate_hz} and variation {variation}; give a rate above 0 and a variation from 0 to below 1."
        )
    count = math.ceil(seconds * rate_hz * (1 + 10 * variation)) + 10  # longer than any train of such frequencies
    regular = np.full(count, rate_hz)
    rows = [
        np.random.default_rng(key).gamma(variation**-2, rate_hz * variation**2, count) if variation else regular
        for key in row_keys(batch_shape, source).flatten().tolist()
    ]
    onsets = torch.from_numpy(np.stack(rows)).reciprocal().cumsum(-1).unflatten(0, batch_shape)
    return _until(onsets, seconds)


def regular_pulses(frequency_hz: Float[Tensor, "*batch"], seconds: float) -> Float[Tensor, "*batch pulse"]:
    """Onsets of trains from time 0 on, one for each frequency; none where it is 0."""
    count = math.ceil(seconds * float(frequency_hz.max())) + 1
    number = torch.arange(count, dtype=frequency_hz.dtype, device=frequency_hz.device)
    onsets = number / frequency_hz.clamp_min(1e-12).unsqueeze(-1)
    return _until(torch.where(frequency_hz.unsqueeze(-1) > 0, onsets, torch.inf), seconds)


def pulse_current(
    onsets_s: Float[Tensor, "*batch pulse"],
    steps: int,
    dt_s: float,
    *,
    width_s: float = PULSE_WIDTH_S,
    amplitude: float = PULSE_UA_CM2,
) -> Float[Tensor, "step *batch"]:
    """Square pulses as their mean over each step, in the unit of `amplitude`: the charge of a step is exact.

    Args:
        onsets_s: When pulses begin. They should not overlap; where they do, they add.
        steps: How many steps.
        dt_s: Length of a step.
        width_s: Length of a pulse.
        amplitude: Height of a pulse.
    """
    edges = torch.arange(steps + 1, dtype=onsets_s.dtype, device=onsets_s.device) * dt_s
    edges = edges.reshape(-1, *[1] * (onsets_s.ndim - 1))
    elapsed = torch.zeros_like(edges)
    for onset in onsets_s.unbind(-1):  # one by one: all pulses at all steps would not fit in memory
        elapsed = elapsed + (edges - onset).clamp(0, width_s)
    return elapsed.diff(dim=0) * (amplitude / dt_s)


def _until(onsets: Float[Tensor, "*batch pulse"], seconds: float) -> Float[Tensor, "*batch kept"]:
    """Onsets before `seconds`, the others at infinity, as many columns as the longest train needs."""
    kept = onsets < seconds
    return torch.where(kept, onsets, torch.inf)[..., : int(kept.sum(-1).max())]
