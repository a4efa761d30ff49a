"""A twin: a circuit, driven through contacts, sensed through channels, window after window.

Everything that is a patient's own sits in the parts; the twin only plays them. A session
drifts: a slow random excitability, part of the state, is added to the drive of all
regions and changes from window to window, so the best stimulus is not quite the same
later. Noise comes from each row's own key, so a row answers the same in any batch.

State   "circuit"  [*batch, region, state]   the circuit's
        "emission", "slope_start", "slope_end"   what a network with delays emitted, see `Past`
        "drift"    [*batch]                  in standard deviations; 0 at the start of a session
        "key"      [*batch]                  whole number, renewed every window
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError, MontageError, ShapeError
from stimopt.montage import Montage
from stimopt.response import Response
from stimopt.stimulus import Stimulus
from stimopt.system import State, System
from stimopt.tensors import map_tensors, row_keys, row_noise

from .delays import Past, steps_ahead, steps_back, still_past
from .drive import PointSourceDrive
from .dynamics import Dynamics
from .integrate import Scheme, rk4
from .network import Network
from .sensing import Sensing
from .simulate import Simulation, Trajectory, simulate

_PROCESS, _SENSOR, _DRIFT, _SETTLE = range(4)  # salts apart for each use of a row's key
_KEY_SPAN = 2**62


@dataclass(frozen=True)
class Twin(System):
    """A simulated patient. Responses are simulated and must be called so.

    Differentiable in the stimulus through any number of windows, as long as the circuit is. Works in the dtype and
    on the device of its parts (see `to`); stimuli are moved there.

    Attributes:
        circuit: What lives in the regions, usually a `Network`.
        drive: From contacts to regions.
        sensing: From regions to channels.
        montage: Its contacts are the drive's, its channels the sensing's.
        window_s: Length of one window.
        rate_hz: Samples per second of responses; a whole number of steps apart.
        dt_s: Integration step.
        scheme: How a step is made.
        drift: Standard deviation, over a long session, of the slow excitability, in units of the circuit's drive.
        drift_windows: Windows after which the drift has forgotten 63 % of where it was.
        settle_s: Silent time simulated before a session starts, so that no window sees the circuit begin.
        entry: How much of the afferent firing that a stimulus causes, in 1/s, goes to each input of the circuit, in the
            input's unit per 1/s; None sends all of it to the first input as it is.
        play: What plays the circuit: `simulate`, or another that keeps its contract.

    Raises:
        ConfigError: If dt_s is larger than was tested for the circuit, or window, rate and step do not fit.
            A step longer than the shortest delay, or an unknown input in `entry`, too.
        ShapeError: If drive or sensing do not fit montage and regions.
    """

    circuit: Dynamics
    drive: PointSourceDrive
    sensing: Sensing
    montage: Montage
    window_s: float = 0.5
    rate_hz: float = 500.0
    dt_s: float = 1e-3
    scheme: Scheme = rk4
    drift: float = 0.0
    drift_windows: float = 50.0
    settle_s: float = 1.0
    entry: Mapping[str, float] | None = None
    play: Simulation = simulate

    def __post_init__(self) -> None:
        if not 0 < self.dt_s <= self.circuit.largest_dt_s:
            raise ConfigError(
                f"dt_s is {self.dt_s} s; the largest step tested for {type(self.circuit).__name__} is "
                f"{self.circuit.largest_dt_s} s. Choose dt_s at or below it."
            )
        if isinstance(self.circuit, Network) and self.circuit.late is not None:
            steps_ahead(self.circuit, self.dt_s)
        unknown = sorted(set(self.entry or {}) - set(self.circuit.inputs))
        if unknown:
            raise ConfigError(
                f"entry names {', '.join(unknown)}; the inputs of this circuit are {', '.join(self.circuit.inputs)}."
            )
        for name, ratio in (
            ("dt_s into a sample", 1 / (self.rate_hz * self.dt_s)),
            ("samples into window_s", self.window_s * self.rate_hz),
        ):
            if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6 * ratio:
                raise ConfigError(
                    f"{name} goes {ratio:g} times; it must be a whole number of times. "
                    f"Change window_s ({self.window_s}), rate_hz ({self.rate_hz}) or dt_s ({self.dt_s})."
                )
        regions, contacts, channels = self.regions, len(self.montage.contacts), len(self.montage.channels)
        for part, matrix, shape in (
            ("drive", self.drive.potential_mv_per_ma, (regions, contacts)),
            ("sensing", self.sensing.uv_per_mv, (channels, regions)),
        ):
            if tuple(matrix.shape) != shape:
                raise ShapeError(
                    f"the {part} has a matrix of shape {list(matrix.shape)}, this montage and circuit need "
                    f"{list(shape)}; build it from the same montage and places."
                )

    @property
    def regions(self) -> int:
        """How many regions."""
        return self.circuit.rest.shape[-2]

    @property
    def samples(self) -> int:
        """Samples per window."""
        return round(self.window_s * self.rate_hz)

    def to(self, like: Tensor) -> "Twin":
        """The same twin on the device and in the dtype of `like`: float32 halves the memory of large batches."""
        return map_tensors(self, lambda tensor: tensor.to(like))

    def start(self, batch_shape: Sequence[int], generator: torch.Generator) -> State:
        """A settled state at the beginning of a session; rows differ by their noise."""
        rest = self.circuit.rest
        keys = row_keys(batch_shape, generator).to(rest.device)
        state = rest.expand(*batch_shape, *rest.shape[-2:])
        steps, past = round(self.settle_s / self.dt_s), None
        if steps:
            settled = self._play(state, None, None, keys, _SETTLE, steps, steps)
            state, past = settled.end, settled.past
        elif isinstance(self.circuit, Network) and steps_back(self.circuit, self.dt_s):
            past = still_past(self.circuit, state, self.dt_s)
        session = {"circuit": state.contiguous(), "drift": rest.new_zeros(tuple(batch_shape)), "key": keys}
        return session | _stored(past)

    def respond(self, state: State, stimulus: Stimulus, generator: torch.Generator) -> tuple[Response, State]:
        """One window; see System. The first sample is the moment the window starts.

        Raises:
            ShapeError: If the batch of `stimulus` is not that of `state`.
            MontageError: If the stimulus is for other contacts.
            StimulusError: If it also reaches the senses.
        """
        salt, potential_mv, after = self._window(state, stimulus, generator)
        signal_uv = self.sensing.signal_uv(
            potential_mv, stimulus, self.rate_hz, keys=state["key"], salt=8 * salt + _SENSOR
        )
        return Response(self.montage, signal_uv, self.rate_hz), after

    def activity_mv(
        self, state: State, stimulus: Stimulus, generator: torch.Generator
    ) -> tuple[Float[Tensor, "*batch region time"], State]:
        """Potential of each region over one window, and the state after it: what `respond` senses, for others to read.

        The same state, stimulus and seed give the same activity as in `respond`. Raises as `respond`.
        """
        _, potential_mv, after = self._window(state, stimulus, generator)
        return potential_mv, after

    def _window(self, state: State, stimulus: Stimulus, generator: torch.Generator) -> tuple[int, Tensor, State]:
        self._require_own(state, stimulus)
        salt = int(torch.randint(_KEY_SPAN // 8, (), generator=generator, device=generator.device))
        steps = round(self.window_s / self.dt_s)
        slow = self.drift * state["drift"]
        firing_hz = self.drive.firing_hz(stimulus.to(self.circuit.rest), self.dt_s, steps) + slow.unsqueeze(-1)
        drive = firing_hz.unsqueeze(-1) * self._entry
        played = self._play(
            state["circuit"], _restored(state), drive, state["key"], 8 * salt + _PROCESS, steps, steps // self.samples
        )
        after = {
            "circuit": played.end,
            "drift": self._drifted(state, 8 * salt + _DRIFT),
            "key": _next_keys(state["key"]),
        }
        return salt, played.readings, after | _stored(played.past)

    def _require_own(self, state: State, stimulus: Stimulus) -> None:
        if stimulus.batch_shape != state["key"].shape:
            raise ShapeError(
                f"the stimulus has batch {list(stimulus.batch_shape)}, the state {list(state['key'].shape)}; "
                "start as many rows as there are stimuli."
            )
        theirs = [contact.name for contact in stimulus.montage.contacts]
        ours = [contact.name for contact in self.montage.contacts]
        if theirs != ours:
            raise MontageError(
                f"the stimulus is for contacts {', '.join(theirs) or 'none'}, this twin has {', '.join(ours)}; "
                "make it with the twin's montage."
            )

    @property
    def _entry(self) -> Tensor:
        entry = {self.circuit.inputs[0]: 1.0} if self.entry is None else self.entry
        return self.circuit.rest.new_tensor([entry.get(name, 0.0) for name in self.circuit.inputs])

    def _play(
        self, state: Tensor, past: Past | None, drive: Tensor | None, keys: Tensor, salt: int, steps: int, every: int
    ) -> Trajectory:
        """Integrate over `steps` steps, reading the potential at the start of every `every`-th one."""
        waves = None
        if self.circuit.noisy:
            shape = (steps, self.regions, len(self.circuit.noisy))
            waves = row_noise(keys, shape, salt, state).movedim(keys.ndim, 0) * self.dt_s**0.5
        return self.play(
            self.circuit, state, dt_s=self.dt_s, steps=steps, drive=drive, waves=waves, past=past,
            scheme=self.scheme, reading=self.circuit.potential_mv, every=every,
        )  # fmt: skip

    def _drifted(self, state: State, salt: int) -> Float[Tensor, "*batch"]:
        """One step of an Ornstein-Uhlenbeck process of unit variance; exact for any `drift_windows`."""
        kept = math.exp(-1 / self.drift_windows)
        fresh = row_noise(state["key"], (1,), salt, state["drift"])[..., 0]
        drifted: Tensor = kept * state["drift"] + math.sqrt(1 - kept**2) * fresh
        return drifted


def _stored(past: Past | None) -> State:
    """A past as part of a state."""
    if past is None:
        return {}
    return {"emission": past.emission, "slope_start": past.slope_start, "slope_end": past.slope_end}


def _restored(state: State) -> Past | None:
    if "emission" not in state:
        return None
    return Past(state["emission"], state["slope_start"], state["slope_end"])


def _next_keys(keys: Tensor) -> Tensor:
    """Keys of the next window: a linear congruential step (Knuth's constants) that wraps round, then 62 bits of it."""
    return (keys * 6364136223846793005 + 1442695040888963407) % _KEY_SPAN
