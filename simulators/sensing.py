"""From potentials of regions to voltages of channels: a lead field, a montage, an amplifier.

A contact hears each region with a weight that falls with distance; channels take
differences of contacts as the montage says; the amplifier adds white noise of its own to
every channel. No stimulation artefact is added: what a channel shows during a pulse is
tissue alone, as after perfect artefact removal.

Input   [*batch, region, time]    mV, the population's potential
Output  [*batch, channel, time]   uV
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stimopt.errors import MontageError
from stimopt.montage import Montage
from stimopt.stimulus import Stimulus
from stimopt.tensors import row_noise

REACH_MM = 3.0  # chosen; published reach runs from 0.25 mm (Katzner 2009) to 1 cm (Kajikawa and Schroeder 2011)
UV_PER_MV = 100.0  # extracellular uV per mV of postsynaptic potential; gives the tens to hundreds of uV of sEEG


@dataclass(frozen=True)
class Sensing:
    """How channels hear regions. Built by `distance_sensing`.

    Attributes:
        uv_per_mv: Lead field, channels as the montage reads them.
        noise_uv: Standard deviation of each sample's noise, independent over channels and time.
    """

    uv_per_mv: Float[Tensor, "channel region"]
    noise_uv: float = 0.0

    def clean_uv(self, potential_mv: Float[Tensor, "*batch region time"]) -> Float[Tensor, "*batch channel time"]:
        """What the channels would read without noise."""
        return self.uv_per_mv @ potential_mv

    def signal_uv(
        self,
        potential_mv: Float[Tensor, "*batch region time"],
        stimulus: Stimulus,
        rate_hz: float,
        *,
        keys: Int[Tensor, "*batch"],
        salt: int,
    ) -> Float[Tensor, "*batch channel time"]:
        """What the channels read during `stimulus`. A row's noise depends on its key and the salt alone."""
        clean = self.clean_uv(potential_mv)
        if self.noise_uv == 0:
            return clean
        return clean + self.noise_uv * row_noise(keys, clean.shape[-2:], salt, clean)


def distance_sensing(
    montage: Montage,
    region_mm: Float[Tensor, "region 3"],
    *,
    reach_mm: float = REACH_MM,
    uv_per_mv: float = UV_PER_MV,
    noise_uv: float = 0.0,
) -> Sensing:
    """A lead field of uv_per_mv / (1 + (r / reach)^2) from regions to contacts, read through `montage`.

    Args:
        montage: Its channels are read.
        region_mm: Places of the regions, in the montage's frame.
        reach_mm: Distance at which half of the voltage is left; farther off it falls like a dipole's.
        uv_per_mv: Voltage at the region itself per mV of its potential.
        noise_uv: Standard deviation of the amplifier's noise per sample.

    Raises:
        MontageError: If the place of a contact is not known.
    """
    places = montage.contact_position_mm.to(region_mm)
    if bool(places.isnan().any()):
        raise MontageError("a lead field needs position_mm of every contact; some are unknown.")
    heard = uv_per_mv / (1 + (torch.cdist(places, region_mm) / reach_mm).square())  # [contact, region]
    return Sensing(montage.channel_matrix.to(heard) @ heard, noise_uv)
