"""From potentials of regions to voltages of channels: a lead field, a montage, an amplifier.

A contact hears each region as the lead field says (see `lead_field`); channels take differences
of contacts as the montage says, and a `CommonAverage` part takes the mean of all away. White
noise is added to every channel, then the parts of the amplifier do their work, one after the
other (see `amplifier`). Without parts, no stimulation artefact is added: what a channel shows
during a pulse is tissue alone, as after perfect artefact removal.

Input   [*batch, region, time]    mV, the population's potential
State   "sensing_0_waiting_uv"    what the parts hold between windows, by their place and the name they give it
Output  [*batch, channel, time]   uV
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from stimopt.errors import ShapeError
from stimopt.montage import Montage
from stimopt.stimulus import Stimulus
from stimopt.system import State
from stimopt.tensors import row_noise

from .amplifier import Part, SensedWindow, StatefulPart
from .artefact import Artefact, artefact_coupling
from .band import Band
from .interference import Background, LineNoise, WhiteNoise
from .lead_field import REACH_MM, UV_PER_MV, contact_places, distance_lead_field
from .rails import Saturation

PAIR_HUM = 0.1  # chosen: what a difference of two contacts keeps of the mains, since their impedances differ
RANGE_UV = 8192.0  # the +-8 mV of a common research amplifier (Blackrock Cerebus)


@dataclass(frozen=True)
class Sensing:
    """How channels hear regions. Built by `distance_sensing`, or by `lead_field_sensing` from any lead field.

    Attributes:
        uv_per_mv: Lead field, channels as the montage reads them.
        noise_uv: Standard deviation of each sample's white noise, independent over channels and time; comes before
            the parts.
        parts: What the amplifier does, in this order.
    """

    uv_per_mv: Float[Tensor, "channel region"]
    noise_uv: float = 0.0
    parts: tuple[Part, ...] = ()

    def clean_uv(self, potential_mv: Float[Tensor, "*batch region time"]) -> Float[Tensor, "*batch channel time"]:
        """What the channels would read without noise and without an amplifier."""
        if self.uv_per_mv.shape[-1] == 1:  # the same products, without a small matrix product for each row
            return self.uv_per_mv * potential_mv
        return self.uv_per_mv @ potential_mv

    @property
    def stateful(self) -> bool:
        """Whether anything is held from one window to the next."""
        return any(isinstance(part, StatefulPart) for part in self.parts)

    def signal_uv(
        self,
        potential_mv: Float[Tensor, "*batch region time"],
        stimulus: Stimulus,
        rate_hz: float,
        *,
        keys: Int[Tensor, "*batch"],
        salt: int,
    ) -> Float[Tensor, "*batch channel time"]:
        """What the channels read during `stimulus`, in a session of this window alone.

        A row's noise depends on its key and the salt alone. Differentiable in potential and stimulus, as far as the
        parts are.
        """
        return self.continued({}, potential_mv, stimulus, rate_hz, keys=keys, salt=salt)[0]

    def continued(
        self,
        state: State,
        potential_mv: Float[Tensor, "*batch region time"],
        stimulus: Stimulus,
        rate_hz: float,
        *,
        keys: Int[Tensor, "*batch"],
        salt: int,
    ) -> tuple[Float[Tensor, "*batch channel time"], State]:
        """What the channels read during `stimulus`, as `signal_uv`, and what the parts hold after it.

        Args:
            state: What they held before, among anything else; a part of which it holds nothing begins with this window.
            potential_mv: Of the regions.
            stimulus: What is delivered.
            rate_hz: Samples per second.
            keys: One per row.
            salt: Of this window.

        Raises:
            ShapeError: If the state holds for a part what it would not hold itself.
        """
        signal = self.clean_uv(potential_mv)
        if self.noise_uv != 0:
            signal = signal + self.noise_uv * row_noise(keys, signal.shape[-2:], salt, signal)
        held: State = {}
        for place, part in enumerate(self.parts):
            # negative, so that no part shares its noise with another use of the row's key
            window = SensedWindow(stimulus, rate_hz, keys, -(salt * 256 + place + 1))
            if isinstance(part, StatefulPart):
                before = _held(state, part.start(signal, window), place, part)
                signal, after = part.continued(before, signal, window)
                held |= {_name(place, name): tensor for name, tensor in after.items()}
            else:
                signal = part.applied(signal, window)
        return signal, held


def _name(place: int, name: str) -> str:
    return f"sensing_{place}_{name}"


def _held(state: State, fresh: State, place: int, part: StatefulPart) -> State:
    """What a state holds for a part, or else what the part begins with."""
    found = {name: state[_name(place, name)] for name in fresh if _name(place, name) in state}
    if not found:
        return fresh
    theirs, ours = ({name: list(tensor.shape) for name, tensor in one.items()} for one in (found, fresh))
    if theirs != ours:
        raise ShapeError(
            f"the state holds {theirs} for part {place} of the sensing, {type(part).__name__}, which holds {ours}: it "
            "is of another amplifier, rate or batch; start a new session."
        )
    return found


def lead_field_sensing(
    montage: Montage,
    uv_per_mv: Float[Tensor, "contact region"],
    *,
    noise_uv: float = 0.0,
    parts: tuple[Part, ...] = (),
) -> Sensing:
    """A lead field from regions to contacts, read through `montage`: depth and subdural contacts, or the scalp.

    Args:
        montage: Its channels are read.
        uv_per_mv: Voltage at each contact per mV of each region.
        noise_uv: Standard deviation of the white noise per sample.
        parts: What the amplifier does, in this order.

    Raises:
        ShapeError: If the lead field has another number of contacts than the montage.
    """
    if uv_per_mv.shape[0] != len(montage.contacts):
        raise ShapeError(
            f"uv_per_mv must be [contact, region] with the montage's {len(montage.contacts)} contacts, "
            f"got {list(uv_per_mv.shape)}; build it from the places of those contacts."
        )
    return Sensing(montage.channel_matrix.to(uv_per_mv) @ uv_per_mv, noise_uv, parts)


def distance_sensing(
    montage: Montage,
    region_mm: Float[Tensor, "region 3"],
    *,
    reach_mm: float = REACH_MM,
    uv_per_mv: float = UV_PER_MV,
    noise_uv: float = 0.0,
    parts: tuple[Part, ...] = (),
) -> Sensing:
    """A lead field of uv_per_mv / (1 + (r / reach)^2) from regions to contacts, read through `montage`.

    Args:
        montage: Its channels are read.
        region_mm: Places of the regions, in the montage's frame.
        reach_mm: Distance at which half of the voltage is left; farther off it falls like a dipole's.
        uv_per_mv: Voltage at the region itself per mV of its potential.
        noise_uv: Standard deviation of the amplifier's white noise per sample.
        parts: What the amplifier does, in this order.

    Raises:
        MontageError: If the place of a contact is not known.
    """
    heard = distance_lead_field(contact_places(montage, region_mm), region_mm, reach_mm=reach_mm, uv_per_mv=uv_per_mv)
    return lead_field_sensing(montage, heard, noise_uv=noise_uv, parts=parts)


def clinical_amplifier(
    montage: Montage, *, mains_hz: float = 50.0, noise_uv: float = 5.0, range_uv: float = RANGE_UV
) -> tuple[Part, ...]:
    """Parts of an ordinary recording, in nature's order: 1/f background, stimulation artefact, mains, white noise,
    AC coupling at 0.3 Hz, rails with 2 ms of recovery.

    Background arises at the contacts, so bipolar channels share it; hum is a tenth as large in a pair. Leave out,
    replace or add parts as a study needs: the tuple is plain.

    Args:
        montage: Its channels are read.
        mains_hz: 50 or 60.
        noise_uv: Standard deviation of the amplifier's own noise per sample.
        range_uv: Largest voltage that is read.

    Raises:
        MontageError: If the place of a contact is not known.
    """
    return (
        Background(mixing=montage.channel_matrix),
        Artefact(artefact_coupling(montage)),
        LineNoise(mains_hz, gain=montage.channel_matrix.sum(-1).clamp_min(PAIR_HUM)),
        WhiteNoise(noise_uv),
        Band(low_hz=0.3),
        Saturation(range_uv, recovery_s=2e-3),
    )
