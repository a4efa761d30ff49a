"""A twin: a circuit, driven through contacts, sensed through channels, window after window.

Everything that is a patient's own sits in the parts; the twin only plays them. A session
drifts: a slow random excitability, part of the state, is added to the drive of all
regions and changes from window to window, so the best stimulus is not quite the same
later. Noise comes from each row's own key, so a row answers the same in any batch.

Parts that a patient may have and need not: an `Actuator`, which delivers unlike commanded, `Senses`, a
`Vigilance` that changes between windows, and currents from which side effects begin. What was delivered and whether a
side effect was felt are among a response's outcomes; the rest stays hidden in the state.

State   "circuit"  [*batch, region, state]   the circuit's
        "emission", "slope_start", "slope_end"   what a network with delays emitted, see `Past`
        "drift"    [*batch]                  in standard deviations; 0 at the start of a session
        "key"      [*batch]                  whole number, renewed every window
        "device_ma", "device_gain", "device_queue"   with an actuator, see there
        "sensory"  [*batch, modality, step, 3]   with senses: firing on its way
        "drowsy"   [*batch]                  with vigilance: 1 while drowsy
        "sensing_0_waiting_uv" and others    with an amplifier that holds something between windows, see `Sensing`
        "scalp/sensing_0_waiting_uv"         the same of another recording, by its name, see `respond_paired`
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError, MontageError, ShapeError
from stimopt.montage import Montage
from stimopt.response import Response
from stimopt.stimulus import Stimulus, no_stimulus
from stimopt.system import State, System
from stimopt.tensors import map_tensors, row_keys, row_noise

from .actuator import Actuator
from .card import parameter_hash
from .delays import Past, steps_back, still_past
from .drive import PointSourceDrive
from .dynamics import Dynamics
from .entry import Entry, background_weights, entries_of
from .integrate import Scheme, rk4
from .network import Network
from .recordings import SALTS, PairedWindow, Recordings, recordings_of
from .senses import Senses
from .sensing import Sensing
from .simulate import Simulation, Trajectory, simulate
from .step_check import scheme_name
from .twin_parts import require_finite, require_shapes, require_tested, require_times
from .vigilance import Vigilance

_PROCESS, _DRIFT, _SETTLE = 0, 2, 3  # salts apart for each use of a row's key; recordings have the rest
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
        settle_s: Silent time simulated before a session starts, so that no window sees the circuit begin; the amplifier
            is on during it.
        entry: What of a stimulus reaches each input of the circuit, by the input's name: an `Entry`, or a number for
            all firing, in the input's unit per 1/s. None sends all firing to the first input as it is. Slow changes of
            the background go where stimulated axons do, or else to the first input.
        play: What plays the circuit: `simulate`, or another that keeps its contract.
        actuator: What stands between command and current; None delivers what is commanded.
        senses: Pathways of the senses; a twin without refuses what is seen, heard or felt.
        vigilance: Drowsiness that comes and goes between windows.
        side_effect_ma: Current at each contact above which the outcome "side_effect" of a response is 1, not 0.

    Raises:
        ConfigError: If dt_s is larger than was tested for the circuit, or window, rate and step do not fit.
            A step longer than the shortest delay, an unknown input in `entry`, or senses that enter nowhere, too; and
            a step that halving shows to be too large for a scheme with which the circuit was not tested.
        ShapeError: If drive, senses or sensing do not fit montage and regions.
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
    entry: Mapping[str, float | Entry] | None = None
    play: Simulation = simulate
    actuator: Actuator | None = None
    senses: Senses | None = None
    vigilance: Vigilance | None = None
    side_effect_ma: Float[Tensor, "*rows contact"] | None = None

    def __post_init__(self) -> None:
        require_times(self.circuit, self.dt_s, self.rate_hz, self.window_s)
        require_tested(self.circuit, self.dt_s, self.scheme)
        if self.senses is not None and not any(entry.sensory_hz for entry in self._entries):
            raise ConfigError("this twin has senses that no input listens to; give an Entry some sensory_hz.")
        entries_of(self.entry, self.circuit.inputs)
        regions, contacts, channels = self.regions, len(self.montage.contacts), len(self.montage.channels)
        spikes = None if self.senses is None else self.senses.spikes
        require_shapes(
            {
                "drive": (self.drive.potential_mv_per_ma, (regions, contacts)),
                "sensing": (self.sensing.uv_per_mv, (channels, regions)),
                "senses": (spikes, (regions,)),
                "limit of side effects": (self.side_effect_ma, (contacts,)),
            }
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
        """A settled state at the beginning of a session; rows differ by their noise.

        Raises:
            ConfigError: If the circuit runs away.
        """
        return self.start_paired(batch_shape, generator, {})

    def start_paired(
        self, batch_shape: Sequence[int], generator: torch.Generator, others: Mapping[str, tuple[Montage, Sensing]]
    ) -> State:
        """`start`, with the amplifiers of other recordings on while the twin settles; raises as it.

        Args:
            batch_shape: As in `start`.
            generator: As in `start`.
            others: As in `respond_paired`.
        """
        recordings = self._recordings(others)
        rest, shape = self.circuit.rest, tuple(batch_shape)
        keys = row_keys(shape, generator).to(rest.device)
        every = round(1 / (self.rate_hz * self.dt_s)) if recordings.stateful else round(self.settle_s / self.dt_s)
        state, past, heard_mv = self._settled(keys, every)
        session = {"circuit": state.contiguous(), "drift": rest.new_zeros(shape), "key": keys}
        if self.actuator is not None:
            session |= self.actuator.start(keys, rest.new_zeros(len(self.montage.contacts)))
        if self.senses is not None:
            session["sensory"] = self.senses.nothing_under_way(shape, self.dt_s)
        if self.vigilance is not None:
            session["drowsy"] = rest.new_zeros(shape)
        if recordings.stateful:
            silence = no_stimulus(self.montage, shape).to(rest)
            session |= recordings.heard({}, heard_mv, silence, keys, 0)[1]
        return session | _stored(past)

    def respond(self, state: State, stimulus: Stimulus, generator: torch.Generator) -> tuple[Response, State]:
        """One window; see System. The first sample is the moment the window starts.

        Outcomes: "delivered_ma" (largest current of a contact) and "delivered_pulses" with an actuator, "side_effect"
        with `side_effect_ma`.

        Raises:
            ShapeError: If the batch of `stimulus` is not that of `state`.
            MontageError: If the stimulus is for other contacts.
            StimulusError: If it reaches senses that the twin has not.
            ConfigError: If the circuit runs away, so that nothing finite is left to sense.
        """
        seen = self.respond_paired(state, stimulus, generator, {})
        return seen.response, seen.after

    def respond_paired(
        self,
        state: State,
        stimulus: Stimulus,
        generator: torch.Generator,
        others: Mapping[str, tuple[Montage, Sensing]],
    ) -> "PairedWindow":
        """One window as several recordings see it at once: `respond`'s own, and others such as scalp EEG.

        The own response and the state after it are those of `respond` with the same arguments, to the bit; what the
        amplifiers of the others hold is added to that state. One of which a state holds nothing, as after `start` or
        `respond`, begins with this window; `start_paired` has them all on before the first. For BOLD, give the
        potential to `power_activity` and `Balloon.scan`. Raises as `respond`, and:

        Args:
            state: As in `respond`.
            stimulus: As in `respond`.
            generator: As in `respond`.
            others: By name: the montage whose channels are read, and how they hear the regions; four at most.

        Raises:
            ConfigError: If there are more than four others.
        """
        recordings, window = self._recordings(others), self._window(state, stimulus, generator)
        signals, held = recordings.heard(state, window.potential_mv, window.delivered, state["key"], window.salt)
        own, *more = (
            Response(montage, signal_uv, self.rate_hz, outcomes=self._outcomes(window.delivered))
            for montage, signal_uv in zip(recordings.montages, signals, strict=True)
        )
        return PairedWindow(own, dict(zip(others, more, strict=True)), window.potential_mv, window.after | held)

    def activity_mv(
        self, state: State, stimulus: Stimulus, generator: torch.Generator
    ) -> tuple[Float[Tensor, "*batch region time"], State]:
        """Potential of each region over one window, and the state after it: what `respond` senses, for others to read.

        The same state, stimulus and seed give the same activity as in `respond`. Raises as `respond`.
        """
        recordings, window = self._recordings({}), self._window(state, stimulus, generator)
        if not recordings.stateful:
            return window.potential_mv, window.after
        held = recordings.heard(state, window.potential_mv, window.delivered, state["key"], window.salt)[1]
        return window.potential_mv, window.after | held

    def delivered(self, state: State, stimulus: Stimulus) -> Stimulus:
        """What `respond` would deliver of a command from this state: the command itself without an actuator.

        Raises as `respond`, but for senses.
        """
        return self._actuated(state, stimulus)[0]

    def card(self) -> dict[str, str | float]:
        """What this twin is, to be kept beside its results; `parameters_sha256` is that of `parameter_hash`.

        How the circuit is played (`play`) is left out: it must not change what is simulated.
        """
        circuit = self.circuit.circuit if isinstance(self.circuit, Network) else self.circuit
        return {
            "circuit": type(circuit).__name__,
            "regions": float(self.regions),
            "source": self.circuit.source,
            "noise_convention": self.circuit.noise_convention,
            "scheme": scheme_name(self.scheme),
            "dt_s": self.dt_s,
            "largest_tested_dt_s": self.circuit.largest_dt_s,
            "parameters_sha256": parameter_hash(replace(self, play=simulate)),
        }

    def _settled(self, keys: Tensor, every: int) -> tuple[Tensor, Past | None, Tensor]:
        """State and past at the beginning of a session, and the potential every so many steps before it."""
        rest = self.circuit.rest
        state = rest.expand(*keys.shape, *rest.shape[-2:])
        steps = round(self.settle_s / self.dt_s)
        if steps == 0:
            past = None
            if isinstance(self.circuit, Network) and steps_back(self.circuit, self.dt_s):
                past = still_past(self.circuit, state, self.dt_s)
            return state, past, self.circuit.potential_mv(state).unsqueeze(-1)
        stride = math.gcd(steps, every)  # so that one reading falls `every` steps before the first window
        settled = self._play(state, None, None, keys, _SETTLE, steps, stride)
        heard_mv = settled.readings[..., steps % every // stride :: every // stride]
        if steps < every:
            heard_mv = self.circuit.potential_mv(settled.end).unsqueeze(-1)
        return settled.end, settled.past, heard_mv

    def _recordings(self, others: Mapping[str, tuple[Montage, Sensing]]) -> Recordings:
        return recordings_of((self.montage, self.sensing), others, self.rate_hz)

    def _actuated(self, state: State, stimulus: Stimulus) -> tuple[Stimulus, State]:
        """What is delivered, and the device after it."""
        self._require_own(state, stimulus)
        command = stimulus.to(self.circuit.rest)
        return (command, {}) if self.actuator is None else self.actuator.deliver(state, command, self.window_s)

    def _outcomes(self, delivered: Stimulus) -> dict[str, Tensor]:
        current = torch.where(delivered.pulses.unsqueeze(-1) > 0, delivered.amplitude_ma.abs(), 0.0)
        outcomes: dict[str, Tensor] = {}
        if self.actuator is not None:
            outcomes |= {"delivered_ma": current.amax(-1), "delivered_pulses": delivered.pulses}
        if self.side_effect_ma is not None:
            outcomes["side_effect"] = (current > self.side_effect_ma).any(-1).to(current)
        return outcomes

    def _window(self, state: State, stimulus: Stimulus, generator: torch.Generator) -> "_Window":
        delivered, device = self._actuated(state, stimulus)
        salt = int(torch.randint(_KEY_SPAN // SALTS, (), generator=generator, device=generator.device))
        steps = round(self.window_s / self.dt_s)
        drive, under_way = self._driven(state, delivered, steps)
        played = self._play(
            state["circuit"],
            _restored(state),
            drive,
            state["key"],
            SALTS * salt + _PROCESS,
            steps,
            steps // self.samples,
        )
        after = {
            "circuit": played.end,
            "drift": self._drifted(state, SALTS * salt + _DRIFT),
            "key": _next_keys(state["key"]),
        }
        if self.vigilance is not None:
            after["drowsy"] = self.vigilance.next(state["key"], state["drowsy"])
        return _Window(salt, delivered, played.readings, after | device | under_way | _stored(played.past))

    def _driven(self, state: State, delivered: Stimulus, steps: int) -> tuple[Tensor, State]:
        """Drive at the stages of each step `[step, 3, *batch, region, input]`, and firing that is still under way."""
        entries, like = self._entries, self.circuit.rest
        if self.drift == 0 and self.vigilance is None and self.senses is None:
            return self.drive.input(delivered, entries, self.dt_s, steps), {}
        slow = self.drift * state["drift"]
        if self.vigilance is not None:
            slow = slow + self.vigilance.drowsy_drive * state["drowsy"]
        shift = slow[..., None, None] * like.new_tensor(background_weights(entries))  # [*batch, 1, input]
        if self.senses is None:
            return self.drive.input(delivered, entries, self.dt_s, steps) + shift, {}
        electric = self.drive.input(replace(delivered, sensory=None), entries, self.dt_s, steps)
        firing_hz, under_way = self.senses.firing_hz(state["sensory"], delivered.sensory, self.dt_s, steps)
        felt = firing_hz.unsqueeze(-1) * like.new_tensor([entry.sensory_hz for entry in entries])
        return electric + shift + felt, {"sensory": under_way}

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
    def _entries(self) -> tuple[Entry, ...]:
        return entries_of(self.entry, self.circuit.inputs)

    def _play(
        self, state: Tensor, past: Past | None, drive: Tensor | None, keys: Tensor, salt: int, steps: int, every: int
    ) -> Trajectory:
        """Integrate over `steps` steps, reading the potential at the start of every `every`-th one."""
        waves = None
        if self.circuit.noisy:
            shape = (steps, self.regions, len(self.circuit.noisy))
            waves = row_noise(keys, shape, salt, state).movedim(keys.ndim, 0) * self.dt_s**0.5
        played = self.play(
            self.circuit, state, dt_s=self.dt_s, steps=steps, drive=drive, waves=waves, past=past,
            scheme=self.scheme, reading=self.circuit.potential_mv, every=every,
        )  # fmt: skip
        require_finite(self.circuit, played.end, self.dt_s)
        return played

    def _drifted(self, state: State, salt: int) -> Float[Tensor, "*batch"]:
        """A step of an Ornstein-Uhlenbeck process of variance 1, exact for any `drift_windows`; none without drift."""
        if self.drift == 0:
            return state["drift"]
        kept = math.exp(-1 / self.drift_windows)
        fresh = row_noise(state["key"], (1,), salt, state["drift"])[..., 0]
        drifted: Tensor = kept * state["drift"] + math.sqrt(1 - kept**2) * fresh
        return drifted


class _Window(NamedTuple):
    """One window played."""

    salt: int
    delivered: Stimulus
    potential_mv: Tensor
    after: State


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
