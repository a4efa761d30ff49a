"""One simulation: a circuit or network, played from a state and a past through a drive.

The one loop of the simulators, in plain torch on any device. Coupling and drive are evaluated
at every stage of a step unless `hold_coupling` asks for the coupling of the step's start in
all of them, as most simulators do; that makes any scheme a first-order one in the network, and
is there to compare with them. Delays read a network's past (see `delays`).

Memory for gradients grows with the number of steps; `checkpoint=True` keeps only every
square-root-th state and plays the steps between them again on the way back, so that memory
grows with the square root of time for about one more forward pass (see `replayed`). A circuit that
is no plain dataclass, another scheme, or a reading with gradients of its own is checkpointed by
torch, which keeps its nodes of the first pass, 0.15 MB a step for any batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.utils.checkpoint import checkpoint as checkpointed

from stimopt.errors import ConfigError, ShapeError

from .delays import DelayedReads, Past, delayed_reads, steps_ahead, steps_back, still_past
from .dynamics import Dynamics, noisy_columns
from .integrate import END, START, Scheme, Slope, euler, heun, rk4
from .joined import Joined
from .network import Network
from .replayed import replayed, tensors_of, with_tensors

Reading = Callable[[Tensor], Tensor]  # state [*batch, region, state] to anything that keeps *batch first


@dataclass(frozen=True)
class Trajectory:
    """What a simulation gives.

    Attributes:
        readings: One reading at the start of every `every`-th step, `[*batch, ..., time]`; the first is of the start.
        end: State after the last step, `[*batch, region, state]`.
        past: What a network with delays needs to go on from there; None without delays.
    """

    readings: Tensor
    end: Tensor
    past: Past | None


class _Played(NamedTuple):
    """A stretch of steps, and what it leaves."""

    state: Tensor
    past: Past | None
    readings: list[Tensor]


@dataclass(frozen=True)
class _Player:
    """A circuit with everything that stays the same over a simulation."""

    dynamics: Dynamics
    dt_s: float
    scheme: Scheme
    hold: bool
    instant: Tensor | None  # weights of what is not late
    columns: Tensor  # from noisy states to states
    ahead: int  # steps that are known at once; 0 where nothing is late
    plans: dict[int, DelayedReads]  # of blocks, by their length; filled while playing

    def slope(self, state: Tensor) -> Slope:
        """The right-hand side of a step that starts at `state`."""
        network = self.dynamics
        if self.hold and isinstance(network, Joined):
            circuit, held = network.circuit, network.instant_drive(state)
            return lambda state, drive: circuit.drift(state, drive + held)
        if not isinstance(network, Network) or self.instant is None:
            return self.dynamics.drift
        circuit, instant = network.circuit, self.instant
        return lambda state, drive: circuit.drift(state, drive + network.entering(instant @ circuit.emission(state)))

    def step(self, slope: Slope, state: Tensor, drive: Tensor, wave: Tensor | None) -> Tensor:
        """One step through a drive [3, *batch, region, input] and a wave [*batch, region, noisy]."""
        kick = 0.0 if wave is None else (self.dynamics.noise(state) * wave) @ self.columns
        return self.scheme(slope, state, drive, self.dt_s, kick)

    def stretch(
        self,
        state: Tensor,
        past: Past | None,
        drive: Tensor,
        waves: Tensor | None,
        reading: Reading,
        first: int,
        every: int,
    ) -> _Played:
        """All steps of `drive`, the first of them number `first`."""
        readings: list[Tensor] = []
        ahead = drive.shape[0] if past is None else min(self.ahead, drive.shape[0])
        for begin in range(0, drive.shape[0], ahead):
            block = drive[begin : begin + ahead]
            if past is not None:
                arriving = self._plan(len(block)).drive(self._network, past)
                block = block + (arriving[:, :1] if self.hold else arriving)
            edges = []
            for number, at in enumerate(block):
                if (first + begin + number) % every == 0:
                    readings.append(reading(state))
                wave = None if waves is None else waves[begin + number]
                slope = _Remembered(self.slope(state), state, self.scheme in _START_FIRST)
                after = self.step(slope, state, at, wave)
                if past is not None:
                    edges.append(self._edge(slope, after, at))
                state = after
            if past is not None:
                emission, slope_start, slope_end = (torch.stack(part, -1) for part in zip(*edges, strict=True))
                past = past.followed_by(emission, slope_start, slope_end)
        return _Played(state, past, readings)

    @property
    def _network(self) -> Network:
        if not isinstance(self.dynamics, Network):
            raise ConfigError("only a Network has a past; wrap the circuit in one, with delay_s.")
        return self.dynamics

    def _plan(self, steps: int) -> DelayedReads:
        if steps not in self.plans:
            self.plans[steps] = delayed_reads(self._network, self.dt_s, steps)
        return self.plans[steps]

    def _edge(self, slope: "_Remembered", after: Tensor, drive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Emission after a step, and its slopes at the step's start and end."""
        emission = self.dynamics.emission(after)
        if self.hold:  # reads then fall on edges, and straight lines serve between them
            straight = (emission - self.dynamics.emission(slope.start)) / self.dt_s
            return emission, straight, straight
        begin = self.dynamics.emission_rate(slope.start, slope.at_start(drive[START]))
        end = self.dynamics.emission_rate(after, self.slope(after)(after, drive[END]))
        return emission, begin, end


_START_FIRST = (heun, rk4)  # their first stage reads the drive of the start; others may read another


class _Remembered:
    """A step's right-hand side that keeps what it was at the step's start: the slope that delayed reads need, and the
    first stage of `heun` and `rk4`. Noise that kicks before the first stage moves that stage, so it is asked again.
    """

    def __init__(self, slope: Slope, start: Tensor, keeps: bool) -> None:
        self.slope, self.start, self.keeps = slope, start, keeps
        self.first: Tensor | None = None

    def __call__(self, state: Tensor, drive: Tensor) -> Tensor:
        rate = self.slope(state, drive)
        if self.keeps and state is self.start:
            self.first = rate
        return rate

    def at_start(self, drive: Tensor) -> Tensor:
        """The rate of change at the start of the step, whose drive is given."""
        return self.slope(self.start, drive) if self.first is None else self.first


def simulate(
    dynamics: Dynamics,
    start: Float[Tensor, "*batch region state"],
    *,
    dt_s: float,
    steps: int | None = None,
    drive: Float[Tensor, "step 3 *#batch #region input"] | None = None,
    waves: Float[Tensor, "step *batch region noisy"] | None = None,
    past: Past | None = None,
    scheme: Scheme = rk4,
    hold_coupling: bool = False,
    reading: Reading | None = None,
    every: int = 1,
    checkpoint: bool = False,
) -> Trajectory:
    """Play a circuit forward. Differentiable in start, drive, waves, past and the parameters of the circuit.

    Args:
        dynamics: A circuit, or a network of them.
        start: Where to begin; `dynamics.rest` expanded to a batch, for example.
        dt_s: Step. Not checked against `largest_dt_s`, so that steps can be studied; a `Twin` checks it.
        steps: How many steps; taken from `drive` where that is given.
        drive: Input at start, middle and end of each step (see `stage_drive`); None for none.
        waves: Increments of the Wiener processes over each step, normals times sqrt(dt_s) (see `white_waves`); None
            plays without noise.
        past: What the network emitted before, see `still_past` and `past_of_states`; None where it stood still.
        scheme: How a step is made.
        hold_coupling: Whether the coupling of a step's start is held over its stages. Euler's scheme always does, since
            it has only that stage.
        reading: What to keep of each state; the state itself by default.
        every: Steps from one reading to the next.
        checkpoint: Whether to trade a second forward pass for memory where gradients are wanted.

    Returns:
        Readings, the state at the end, and the past there.

    Raises:
        ShapeError: If steps and drive, or start, drive or waves and the circuit, do not fit.
        ConfigError: If a delay is shorter than the step.
    """
    steps = steps_of(steps, drive)
    regions, inputs = dynamics.rest.shape[-2], len(dynamics.inputs)
    require_fitting(dynamics, start, drive, waves)
    if drive is None:
        drive = start.new_zeros((1,) * (start.ndim)).expand(steps, 3, *(1,) * (start.ndim - 2), regions, inputs)
    start = start.contiguous()  # forward differentiation refuses the shared memory of an expanded tensor
    instant = dynamics.instant_weights if isinstance(dynamics, Network) else None
    hold = hold_coupling or scheme is euler
    ahead = 0
    if isinstance(dynamics, Network) and (past is not None or steps_back(dynamics, dt_s)):
        past, ahead = past or still_past(dynamics, start, dt_s), steps_ahead(dynamics, dt_s)
    elif past is not None:
        raise ConfigError("only a Network has a past; wrap the circuit in one, with delay_s.")
    player = _Player(dynamics, dt_s, scheme, hold, instant, noisy_columns(dynamics), ahead, {})
    return _played(player, start, past, drive, waves, reading or _itself, every, checkpoint)


Simulation = Callable[..., Trajectory]  # what `simulate` takes and gives


def white_waves(
    dynamics: Dynamics, batch_shape: tuple[int, ...], steps: int, dt_s: float, source: torch.Generator
) -> Float[Tensor, "step *batch region noisy"]:
    """Increments of independent Wiener processes over `steps` steps, one for each noisy state of each region."""
    rest = dynamics.rest
    shape = (steps, *batch_shape, rest.shape[-2], len(dynamics.noisy))
    return torch.randn(shape, generator=source, dtype=rest.dtype, device=source.device).to(rest) * math.sqrt(dt_s)


def _itself(state: Tensor) -> Tensor:
    return state


def require_fitting(dynamics: Dynamics, start: Tensor, drive: Tensor | None, waves: Tensor | None) -> None:
    """Refuse a start, drive or noise that does not fit the circuit.

    Raises:
        ShapeError: If the last axes of `start` are not region and state, of `drive` not input, of `waves` not noisy
            state; or if `drive` has not its three stages.
    """
    regions = dynamics.rest.shape[-2]
    if tuple(start.shape[-2:]) != (regions, len(dynamics.states)):
        raise ShapeError(
            f"start must end in [region, state] = [{regions}, {len(dynamics.states)}] "
            f"({', '.join(dynamics.states)}), got {list(start.shape)}."
        )
    if drive is not None and (drive.ndim < 4 or drive.shape[1] != 3 or drive.shape[-1] != len(dynamics.inputs)):
        raise ShapeError(
            f"drive must be [step, 3, *batch, region, input] with {len(dynamics.inputs)} inputs "
            f"({', '.join(dynamics.inputs)}), got {list(drive.shape)}; `stage_drive` makes one."
        )
    if waves is not None and (waves.ndim < 3 or waves.shape[-1] != len(dynamics.noisy)):
        raise ShapeError(
            f"waves must be [step, *batch, region, noisy] with {len(dynamics.noisy)} noisy states "
            f"({', '.join(dynamics.noisy)}), got {list(waves.shape)}; `white_waves` makes them."
        )


def steps_of(steps: int | None, drive: Tensor | None) -> int:
    """How many steps a simulation has.

    Raises:
        ShapeError: If neither says, or both do and differ.
    """
    given = None if drive is None else drive.shape[0]
    chosen = steps if given is None else given
    if chosen is None or chosen < 1 or (steps is not None and steps != chosen):
        raise ShapeError(f"steps is {steps} and drive has {given}; give one of them, 1 or more, or the same number.")
    return chosen


def _played(
    player: _Player,
    state: Tensor,
    past: Past | None,
    drive: Tensor,
    waves: Tensor | None,
    reading: Reading,
    every: int,
    checkpoint: bool,
) -> Trajectory:
    steps = drive.shape[0]
    length = math.isqrt(steps - 1) + 1 if checkpoint else steps
    circuit = _replayable(player, state, past, [drive, waves], reading) if checkpoint else None
    readings: list[Tensor] = []
    for first in range(0, steps, length):
        part = slice(first, first + length)
        arguments: tuple[Any, ...] = (
            state, past, drive[part], None if waves is None else waves[part], reading, first, every
        )  # fmt: skip
        if circuit is not None:
            played = _replay(player, circuit, *arguments)
        elif checkpoint:
            # planned anew each time, or the second pass would find plans where the first one made them
            played = checkpointed(lambda *x: replace(player, plans={}).stretch(*x), *arguments, use_reentrant=False)
        else:
            played = player.stretch(*arguments)
        state, past = played.state, played.past
        readings += played.readings
    return Trajectory(torch.stack(readings, -1), state, past)


def _replayable(
    player: _Player, state: Tensor, past: Past | None, forcing: list[Tensor | None], reading: Reading
) -> dict[str, Tensor] | None:
    """Tensors of the circuit, if a stretch can be one node: nothing else is differentiated, and not forwards."""
    circuit = tensors_of(player.dynamics)
    if circuit is None or player.scheme not in (euler, heun, rk4):
        return None
    before = [] if past is None else [getattr(past, f.name) for f in fields(Past)]
    if any(unpack_dual(x).tangent is not None for x in [state, *before, *forcing, *circuit.values()] if x is not None):
        return None
    if reading != player.dynamics.potential_mv and reading(state.detach()).requires_grad:
        return None
    return circuit


def _replay(
    player: _Player,
    circuit: dict[str, Tensor],
    state: Tensor,
    past: Past | None,
    drive: Tensor,
    waves: Tensor | None,
    reading: Reading,
    first: int,
    every: int,
) -> _Played:
    """A stretch as one node of autograd."""
    given = circuit | {":state": state, ":drive": drive}
    given |= {} if waves is None else {":waves": waves}
    given |= {} if past is None else {f":{f.name}": getattr(past, f.name) for f in fields(Past)}

    def play(*tensors: Tensor) -> list[Tensor]:
        now = dict(zip(given, tensors, strict=True))
        dynamics = with_tensors(player.dynamics, now)
        instant = dynamics.instant_weights if isinstance(dynamics, Network) else None
        before = None if past is None else Past(*(now[f":{f.name}"] for f in fields(Past)))
        read = dynamics.potential_mv if reading == player.dynamics.potential_mv else reading
        again = replace(player, dynamics=dynamics, instant=instant, plans={})
        played = again.stretch(now[":state"], before, now[":drive"], now.get(":waves"), read, first, every)
        after = [] if played.past is None else [getattr(played.past, f.name) for f in fields(Past)]
        return [played.state, *after, *played.readings]

    end, *more = replayed(play, *given.values())
    parts = 0 if past is None else len(fields(Past))
    return _Played(end, Past(*more[:parts]) if parts else None, more[parts:])
