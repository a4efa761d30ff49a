"""One step of any circuit as a function of named tensors, ready to be traced and compiled (see `compiled_unit`).

It calls the circuit's own `drift`, `noise` and `emission` and the scheme, so there is one set of
equations. Everything that has a value goes in as a tensor, parameters and gains included.

Inputs are named slots, each [*batch, region] or smaller:

    state.i           column i of the state                      wave.i      increment of noise i
    drive.s.i         input i from outside at stage s            late.s.o    what arrives of output o, weighted
    leaf.path         a parameter                                instant     weights of what is not late
    turn.d.slot       tangent of a slot in direction d           pull.i      cotangent of output i (reverse mode)
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stimopt.tensors import batch_innermost

from .dynamics import Dynamics
from .integrate import END, MIDDLE, START, Scheme
from .network import Network
from .replayed import with_tensors

Slots = Mapping[str, Tensor]
_NOT_LEAVES = ("weights", "delay_s")  # of a network: they make the reads and `instant`, outside the unit


def leaves(dynamics: Dynamics) -> dict[str, Tensor]:
    """Every number and tensor of a circuit by its place, numbers in the precision of the circuit."""
    like = dynamics.rest
    found = {}
    for name, value in _parts(dynamics, "leaf"):
        tensor = like.new_tensor(value) if isinstance(value, float) else value
        found[name] = batch_innermost(tensor, 0) if tensor.ndim > 1 else tensor
    return found


def _parts(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, Tensor | float):
        return [(path, value)]
    if isinstance(value, tuple):
        return [part for place, item in enumerate(value) for part in _parts(item, f"{path}.{place}")]
    if dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value)]
        skipped = _NOT_LEAVES if isinstance(value, Network) else ()
        return [
            part for name in names if name not in skipped for part in _parts(getattr(value, name), f"{path}.{name}")
        ]
    return []


def form(value: Any) -> Any:
    """What of a circuit is part of the code: types, whole numbers, words, and where its leaves are."""
    if isinstance(value, Tensor | float):
        return Tensor
    if isinstance(value, tuple):
        return tuple(form(item) for item in value)
    if dataclasses.is_dataclass(value):
        return (type(value), *(form(getattr(value, f.name)) for f in dataclasses.fields(value)))
    return value


@dataclass(frozen=True)
class Step:
    """A step before it is compiled.

    Attributes:
        dynamics: The circuit.
        scheme: How a step is made.
        dt_s: Its length.
        hold: Whether the coupling of the step's start is held over its stages.
        edges: Whether a network's emission and slopes are wanted for its past.
        told: Whether the potential at the step's start is wanted, for its cotangent to come back with the others.
    """

    dynamics: Dynamics
    scheme: Scheme
    dt_s: float
    hold: bool
    edges: bool
    told: bool = False

    def __call__(self, slots: Slots) -> list[Tensor]:
        """Columns of the state after the step; for `edges` emission there and its slopes at start and end; `told`."""
        dynamics: Dynamics = with_tensors(self.dynamics, slots, "leaf")
        count = len(dynamics.states)
        state = torch.stack([slots[f"state.{i}"] for i in range(count)], -1)
        stages = torch.stack([self._stage(dynamics, slots, stage) for stage in (START, MIDDLE, END)])
        slope = self._slope(dynamics, slots, state)
        after = self.scheme(slope, state, stages, self.dt_s, self._kick(dynamics, slots, state))
        columns = list(after.unbind(-1))
        told = [dynamics.potential_mv(state).expand(columns[0].shape)] if self.told else []
        if not self.edges:
            return columns + told
        here, there = dynamics.emission(state), dynamics.emission(after)
        if self.hold:
            begin = end = (there - here) / self.dt_s
        else:
            begin = dynamics.emission_rate(state, slope(state, stages[START]))
            end = dynamics.emission_rate(after, slope(after, stages[END]))
        shape = (*columns[0].shape, len(dynamics.outputs))
        return columns + [part for edge in (there, begin, end) for part in edge.expand(shape).unbind(-1)] + told

    def _stage(self, dynamics: Dynamics, slots: Slots, stage: int) -> Tensor:
        """All input at a stage but that through tracts that are not late."""
        still = torch.zeros_like(slots["state.0"])
        inputs = [slots.get(f"drive.{stage}.{i}", still) for i in range(len(dynamics.inputs))]
        heard = START if self.hold else stage
        arriving = [slots[f"late.{heard}.{o}"] for o in range(len(dynamics.outputs)) if f"late.{heard}.{o}" in slots]
        if arriving and isinstance(dynamics, Network):
            inputs = [one + more for one, more in zip(inputs, _entering(dynamics, arriving), strict=True)]
        return torch.stack(torch.broadcast_tensors(*inputs), -1)

    def _slope(self, dynamics: Dynamics, slots: Slots, start: Tensor) -> Any:
        if not isinstance(dynamics, Network):
            return dynamics.drift
        circuit = dynamics.circuit
        if "instant" not in slots:
            return circuit.drift
        if self.hold:
            held = _coupling(dynamics, slots["instant"], start)
            return lambda state, drive: circuit.drift(state, drive + held)
        return lambda state, drive: circuit.drift(state, drive + _coupling(dynamics, slots["instant"], state))

    def _kick(self, dynamics: Dynamics, slots: Slots, state: Tensor) -> Tensor | float:
        if "wave.0" not in slots:
            return 0.0
        size = dynamics.noise(state)
        kicks = {name: size[..., i] * slots[f"wave.{i}"] for i, name in enumerate(dynamics.noisy)}
        still = torch.zeros_like(slots["state.0"])
        return torch.stack([kicks.get(name, still) for name in dynamics.states], -1)


def _entering(network: Network, received: Sequence[Tensor]) -> list[Tensor]:
    """`Network.entering` with every input and output a tensor of its own."""
    gain = network.gain[..., None] if isinstance(network.gain, Tensor) else network.gain
    if network.entry is None:
        still = torch.zeros_like(received[0])
        return [gain * received[0], *[still] * (len(network.inputs) - 1)]
    return [
        gain * sum((network.entry[i, o] * part for o, part in enumerate(received)), torch.zeros_like(received[0]))
        for i in range(len(network.inputs))
    ]


def _coupling(network: Network, instant: Tensor, state: Tensor) -> Tensor:
    """The drive through tracts that are not late: one matrix product over all rows of the batch."""
    received = []
    for part in network.circuit.emission(state).unbind(-1):
        if instant.ndim > 2:
            received.append((instant @ part.unsqueeze(-1)).squeeze(-1))
        else:
            lanes = part.movedim(-1, 0)
            received.append(
                (instant @ lanes.flatten(1) if lanes.ndim > 1 else instant @ lanes).reshape(lanes.shape).movedim(0, -1)
            )
    return torch.stack(_entering(network, received), -1)
