"""From current at contacts to input of regions: a field, the axons it recruits, what they fire.

Each contact is a point source in a homogeneous medium, so the currents of a bipolar pair
cancel at a distance. A phase recruits a share of the axons near a region, which rises
smoothly with the potential and, by Weiss's law, with the width of the phase. A recruited
axon fires once per phase, less often the faster the train. The cathodic phase recruits; the anodic one is weighed by
`anodic_gain`. Phases count by their sign at the region, not at the contact.

Input   Stimulus            mA at contacts
Output  [*batch, region]    afferent firing on top of the background, 1/s

References: Ranck 1975, Brain Res 98:417-440 (which elements, which polarity); Weiss 1901 (charge against width);
Nowak and Bullier 1998, Exp Brain Res 118:477-488 (chronaxie of axons in grey matter);
Jensen and Durand 2009, Exp Neurol 220:57-70 (axons fail to follow fast trains).
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import MontageError, StimulusError
from stimopt.montage import Contact, Montage, monopolar
from stimopt.stimulus import Stimulus
from stimopt.waveform import rectified_current_ma

from .integrate import stage_drive

CONDUCTIVITY_S_M = 0.3  # Ranck 1963, Exp Neurol 7:144: rabbit cortex, 3.2 ohm metre
CHRONAXIE_US = 250.0  # Nowak and Bullier 1998: 200 to 270 us for axons in grey matter
SMALLEST_DISTANCE_MM = 1.0  # a contact is 0.8 mm thick: a point source is wrong nearer than this
ANODIC_GAIN = 0.25  # Ranck 1975: anodic thresholds of axons are 3.2 to 7.8 times the cathodic ones
MILLIVOLT_PER_VOLT = 1e3

BINS_PER_STEP = 8  # places a pulse within a step to an eighth of it

_SOURCE = monopolar([Contact("source")])


@dataclass(frozen=True)
class PointSourceDrive:
    """How strongly current at each contact drives each region. Built by `point_source_drive`.

    Attributes:
        potential_mv_per_ma: Potential at each region of 1 mA at each contact.
        half_mv: Potential at which a phase much longer than the chronaxie recruits half of the axons. Together with
            `spikes` it stands for everything between a field and a synapse, and is chosen, not measured.
        spikes: Afferent spikes per phase, per synapse counted in the circuit's drive, with all axons recruited.
        follow_hz: Rate at which recruited axons follow every second pulse only; what arrives is largest there. Block
            was seen from 50 Hz on; the curve 1 / (1 + (f / follow_hz)^2) is chosen.
        chronaxie_us: Width at which twice the current of an endless phase is needed.
        cathodic_gain: Weight of a phase that lowers the potential at the region.
        anodic_gain: Weight of a phase that raises it.
    """

    potential_mv_per_ma: Float[Tensor, "region contact"]
    half_mv: float = 40.0
    spikes: float = 18.0
    follow_hz: float = 80.0
    chronaxie_us: float = CHRONAXIE_US
    cathodic_gain: float = 1.0
    anodic_gain: float = ANODIC_GAIN

    def field_mv(self, stimulus: Stimulus) -> Float[Tensor, "*batch region"]:
        """Potential at each region during the first phase."""
        return stimulus.amplitude_ma @ self.potential_mv_per_ma.mT

    def recruited(self, stimulus: Stimulus) -> Float[Tensor, "*batch region"]:
        """Share of the axons at each region that one phase recruits, 0 to 1, before polarity is weighed."""
        width = stimulus.pulse_width_us.unsqueeze(-1)
        strength = self.field_mv(stimulus) / self.half_mv * width / (width + self.chronaxie_us)
        return strength.square() / (1 + strength.square())

    def firing_hz(self, stimulus: Stimulus, dt_s: float, steps: int) -> Float[Tensor, "step 3 *batch region"]:
        """Afferent firing at start, middle and end of each integration step from the window's start.

        Charge is integrated exactly, so a pulse counts the same wherever it falls (see `stage_drive`).
        Differentiable in amplitude, width and frequency.

        Raises:
            StimulusError: If the stimulus also reaches the senses, which this drive has not.
        """
        if stimulus.sensory is not None and bool((stimulus.sensory.intensity != 0).any()):
            raise StimulusError("this circuit has contacts but no senses; give a stimulus without a sensory part.")
        one_ma = replace(stimulus, montage=_SOURCE, amplitude_ma=torch.ones_like(stimulus.pulses).unsqueeze(-1))
        second, first = rectified_current_ma(one_ma, BINS_PER_STEP / dt_s, dt_s * steps)  # [*batch, 1, bin], shares
        phases = torch.cat([first, second], -2)  # [*batch, phase, bin]
        covered = stage_drive(phases, BINS_PER_STEP)  # [step, 3, *batch, phase]
        width_s = stimulus.pulse_width_us * 1e-6
        spikes = self.arriving_spikes(stimulus) / width_s.unsqueeze(-1).unsqueeze(-1)
        return (covered.unsqueeze(-2) @ spikes).squeeze(-2)

    def arriving_spikes(self, stimulus: Stimulus) -> Float[Tensor, "*batch 2 region"]:
        """Afferent spikes that the first and the second phase of each pulse bring to each region."""
        followed = 1 / (1 + (stimulus.frequency_hz / self.follow_hz).square())
        spikes = self.spikes * followed.unsqueeze(-1) * self.recruited(stimulus)
        lowers = self.field_mv(stimulus) < 0
        first = torch.where(lowers, self.cathodic_gain, self.anodic_gain)
        second = torch.where(lowers, self.anodic_gain, self.cathodic_gain)
        return torch.stack([spikes * first, spikes * second], -2)


def point_source_potential(
    source_mm: Float[Tensor, "source 3"],
    place_mm: Float[Tensor, "place 3"],
    *,
    conductivity_s_m: float = CONDUCTIVITY_S_M,
) -> Float[Tensor, "place source"]:
    """Potential in mV at each place of 1 mA at each source, 1 / (4 pi sigma r), r at least `SMALLEST_DISTANCE_MM`."""
    distance_mm = torch.cdist(place_mm, source_mm).clamp_min(SMALLEST_DISTANCE_MM)
    return MILLIVOLT_PER_VOLT / (4 * math.pi * conductivity_s_m * distance_mm)  # mA per mm is A per m


def point_source_drive(
    montage: Montage,
    region_mm: Float[Tensor, "region 3"],
    *,
    half_mv: float = 40.0,
    spikes: float = 18.0,
    follow_hz: float = 80.0,
) -> PointSourceDrive:
    """The drive of regions at `region_mm` by the contacts of a montage, in region's dtype and device.

    Raises:
        MontageError: If the place of a contact is not known.
    """
    places = montage.contact_position_mm.to(region_mm)
    if bool(places.isnan().any()):
        missing = [c.name for c, place in zip(montage.contacts, places, strict=True) if bool(place.isnan().any())]
        raise MontageError(f"contacts {', '.join(missing)} have no position_mm; a field needs a place for each.")
    return PointSourceDrive(point_source_potential(places, region_mm), half_mv, spikes, follow_hz)
