"""The past of a network, and what arrives from it: cubic Hermite reads of what regions emitted.

A delay of at least one step makes everything that arrives during a step known before the
step is taken; a shortest delay of K steps makes K steps known at once (the method of steps).
Values and slopes at both ends of every past step give a cubic between them, exact to the
fourth order of the step, whatever fraction of a step a delay is. Slopes are kept apart for
the two sides of a step's edge, since a pulse that begins there bends the path.

Past   emission     [*batch, region, output, time]   at the edges of past steps; the last one is now
       slope_start  [*batch, region, output, step]   per second, at the start of each past step
       slope_end    [*batch, region, output, step]   at its end

References: Bellen and Zennaro, Numerical Methods for Delay Differential Equations, Oxford 2003 (method of steps,
continuous extensions); Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, Springer 1993, II.17.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stimopt.errors import ConfigError, ShapeError

from .dynamics import State
from .network import Network

_ROUNDING_STEPS = 1e-6  # delays are read as whole steps when they are this close to one


@dataclass(frozen=True)
class Past:
    """What regions emitted until now, on the edges of equal steps.

    Attributes:
        emission: At the edges, oldest first, now last.
        slope_start: Slope at the start of each step.
        slope_end: Slope at the end of each step.
    """

    emission: Float[Tensor, "*batch region output time"]
    slope_start: Float[Tensor, "*batch region output step"]
    slope_end: Float[Tensor, "*batch region output step"]

    @property
    def steps(self) -> int:
        """How many steps it reaches back."""
        return self.slope_start.shape[-1]

    def followed_by(self, emission: Tensor, slope_start: Tensor, slope_end: Tensor) -> "Past":
        """The past after some more steps, as long as before; arguments as the attributes, without the edge now."""
        kept = self.steps
        return Past(
            torch.cat([self.emission, emission], -1)[..., -kept - 1 :],
            torch.cat([self.slope_start, slope_start], -1)[..., -kept:],
            torch.cat([self.slope_end, slope_end], -1)[..., -kept:],
        )


def steps_back(network: Network, dt_s: float) -> int:
    """How many steps of `dt_s` the past of a network must hold; 0 where nothing is late."""
    late = network.late
    if late is None or network.delay_s is None:
        return 0
    return max(1, math.ceil(float(network.delay_s.detach()[late].max()) / dt_s - _ROUNDING_STEPS))


def steps_ahead(network: Network, dt_s: float) -> int:
    """How many steps are known at once: the shortest delay in whole steps.

    Raises:
        ConfigError: If a delay is shorter than a step, naming the largest step that is allowed.
    """
    late = network.late
    if late is None or network.delay_s is None:
        raise ConfigError("nothing is late in this network; give it delay_s, or integrate it as it is.")
    shortest_s = float(network.delay_s.detach()[late].min())
    ahead = math.floor(shortest_s / dt_s + _ROUNDING_STEPS)
    if ahead < 1:
        raise ConfigError(
            f"dt_s is {dt_s:g} s and the shortest delay {shortest_s:g} s; a delayed tract needs at least one step. "
            f"Choose dt_s at or below {shortest_s:g} s, or set that delay to 0 s."
        )
    return ahead


def still_past(network: Network, state: State, dt_s: float) -> Past:
    """A past in which the network stood for ever where it is now."""
    steps = steps_back(network, dt_s)
    emission = network.emission(state).unsqueeze(-1)
    slope = torch.zeros_like(emission).expand(*emission.shape[:-1], steps)
    return Past(emission.expand(*emission.shape[:-1], steps + 1), slope, slope)


def past_of_states(
    network: Network, states: Float[Tensor, "*batch region state time"], dt_s: float, *, smooth: bool = True
) -> Past:
    """A past given as states on the edges of steps of `dt_s`, now last; older than needed is dropped.

    Args:
        network: With delays.
        states: At least as many steps as the longest delay, and now.
        dt_s: Time between them.
        smooth: Whether slopes are taken from the neighbours (central differences; one-sided at the ends), as of a
            smooth path. Otherwise from edge to edge, which reads the past along straight lines.

    Raises:
        ShapeError: If the states do not reach back far enough.
    """
    steps = steps_back(network, dt_s)
    if states.shape[-1] < steps + 1:
        raise ShapeError(
            f"the past holds {states.shape[-1]} states; the longest delay needs {steps + 1} at dt_s {dt_s:g} s, "
            "now included."
        )
    emission = torch.stack([network.emission(state) for state in states[..., -steps - 1 :].unbind(-1)], -1)
    straight = emission.diff(dim=-1) / dt_s
    if not smooth or steps < 2:
        return Past(emission, straight, straight)
    slope = torch.gradient(emission, spacing=dt_s, dim=-1, edge_order=2)[0]
    return Past(emission, slope[..., :-1], slope[..., 1:])


@dataclass(frozen=True)
class DelayedReads:
    """Where in the past each late tract reads, for a block of steps. Built by `delayed_reads`.

    Attributes:
        to_region: Receiving region of each late tract.
        from_region: Sending region.
        weights: Their weights.
        step: Which past step each read falls into, 0 the oldest; one read at each start and middle of a step, and
            one at the end of the last.
        basis: Weights of emission at its start and end, slope at its start and end.
        steps: How many steps the block has.
    """

    to_region: Int[Tensor, " tract"]
    from_region: Int[Tensor, " tract"]
    weights: Float[Tensor, "*weighted tract"]
    step: Int[Tensor, "tract read"]
    basis: Float[Tensor, "4 tract read"]
    steps: int

    def drive(self, network: Network, past: Past) -> Float[Tensor, "step 3 *batch region input"]:
        """What arrives at start, middle and end of each step of the block."""
        start, end = past.emission[..., :-1], past.emission[..., 1:]
        parts = (start, end, past.slope_start, past.slope_end)
        terms = [  # [output, *batch, tract, read]
            part.movedim(-2, 0)[..., self.from_region.unsqueeze(-1), self.step] * basis
            for part, basis in zip(parts, self.basis, strict=True)
        ]
        arriving = (terms[0] + terms[1] + terms[2] + terms[3]) * self.weights.unsqueeze(-1)
        received = past.emission.new_zeros(*arriving.shape[:-2], past.emission.shape[-3], arriving.shape[-1])
        received = received.index_add(-2, self.to_region, arriving)  # [output, *batch, region, read]
        driven = network.entering(received.movedim(0, -1).movedim(-2, 0))  # [read, *batch, region, input]
        starts, middles, ends = driven[:-1:2], driven[1::2], driven[2::2]
        return torch.stack([starts, middles, ends], 1)


def delayed_reads(network: Network, dt_s: float, steps: int) -> DelayedReads:
    """Plan the reads of a block of `steps`, at most `steps_ahead`, from a past of `steps_back`."""
    to_region, from_region, delays = tract_delays(network, dt_s)
    read = torch.arange(2 * steps + 1, dtype=torch.float64, device=delays.device) / 2
    place = steps_back(network, dt_s) + read - delays.unsqueeze(-1)  # in past steps; now is the right end
    step = place.floor().clamp(0, steps_back(network, dt_s) - 1)
    weights = network.weights[..., to_region, from_region]
    basis = hermite(place - step, dt_s).to(network.rest)
    return DelayedReads(to_region, from_region, weights, step.long(), basis, steps)


def tract_delays(
    network: Network, dt_s: float
) -> tuple[Int[Tensor, " tract"], Int[Tensor, " tract"], Float[Tensor, " tract"]]:
    """Receiving region, sending region and delay in steps of each late tract, whole steps where it is close to them.

    Raises:
        ConfigError: If nothing is late.
    """
    late, delay_s = network.late, network.delay_s
    if late is None or delay_s is None:
        raise ConfigError("nothing is late in this network; give it delay_s, or integrate it as it is.")
    to_region, from_region = late.nonzero(as_tuple=True)
    delays = (delay_s[late] / dt_s).double()
    whole = (delays - delays.round()).abs() < _ROUNDING_STEPS
    return to_region, from_region, torch.where(whole, delays.round(), delays)


def hermite(x: Tensor, dt_s: float) -> Float[Tensor, "4 ..."]:
    """Cubic Hermite basis at share `x` of a step: value at its start and end, slope at its start and end."""
    square, cube = x.square(), x**3
    return torch.stack(
        [2 * cube - 3 * square + 1, 3 * square - 2 * cube, dt_s * (cube - 2 * square + x), dt_s * (cube - square)]
    )
