"""From current at contacts to input of regions: a field, the axons it recruits, what they fire.

Each contact is a point source in a homogeneous medium, so the currents of a bipolar pair
cancel at a distance. A phase recruits a share of the axons near a region, which rises
smoothly with the potential and, by Weiss's law, with the width of the phase. A recruited
axon fires once per phase, less often the faster the train. The cathodic phase recruits; the anodic one is weighed by
`anodic_gain`. Phases count by their sign at the region, not at the contact. A region is a point, or a ball of tissue
seen at some points (`spread_mm`), each of which recruits for itself.

An `Entry` says what of this reaches an input of a circuit: firing, or cathodic and anodic recruitment apart, or the
potential itself, for inputs that are potentials. Phases are played one by one (`pulse_shares`), or spread evenly over
the train (`train_shares`): the same mean, no pulses. For a Jansen-Rit column the two agree from 80 Hz on: mean
potential to 1 % of the response, power of a lasting alpha rhythm to 0.03 decades; sample by sample they differ by the
ripple of the pulses, 12 % of the response at 80 Hz and 5 % at 130. At 30 Hz they are different stimuli.

Input   Stimulus                   mA at contacts
Output  [*batch, region, input]    input on top of the background, in the input's own unit

References: Ranck 1975, Brain Res 98:417-440 (which elements, which polarity); Weiss 1901 (charge against width);
Nowak and Bullier 1998, Exp Brain Res 118:477-488 (chronaxie of axons in grey matter);
Jensen and Durand 2009, Exp Neurol 220:57-70 (axons fail to follow fast trains).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import MontageError, StimulusError
from stimopt.montage import Contact, Montage, monopolar
from stimopt.stimulus import Stimulus
from stimopt.units import SECONDS_PER_MICROSECOND
from stimopt.waveform import rectified_current_ma

from .entry import Entry
from .integrate import stage_drive

CONDUCTIVITY_S_M = 0.3  # Ranck 1963, Exp Neurol 7:144: rabbit cortex, 3.2 ohm metre
CHRONAXIE_US = 250.0  # Nowak and Bullier 1998: 200 to 270 us for axons in grey matter
SMALLEST_DISTANCE_MM = 1.0  # a contact is 0.8 mm thick: a point source is wrong nearer than this
ANODIC_GAIN = 0.25  # Ranck 1975: anodic thresholds of axons are 3.2 to 7.8 times the cathodic ones
MILLIVOLT_PER_VOLT = 1e3

BINS_PER_STEP = 8  # places a pulse within a step to an eighth of it

_SOURCE = monopolar([Contact("source")])

PhaseShares = Callable[[Stimulus, float, int], Tensor]  # (stimulus, dt_s, steps) -> [step, 3, *batch, phase or 1]


def pulse_shares(stimulus: Stimulus, dt_s: float, steps: int) -> Float[Tensor, "step 3 *batch phase"]:
    """Share of time that first and second phases take, at start, middle and end of each step; every pulse for itself.

    Charge is integrated exactly, so a pulse counts the same wherever it falls (see `stage_drive`). Differentiable in
    width, frequency, gap and onset.
    """
    one_ma = replace(
        stimulus, montage=_SOURCE, amplitude_ma=torch.ones_like(stimulus.pulses).unsqueeze(-1), sensory=None
    )
    second, first = rectified_current_ma(one_ma, BINS_PER_STEP / dt_s, dt_s * steps)  # [*batch, 1, bin], shares
    return stage_drive(torch.cat([first, second], -2), BINS_PER_STEP)


def train_shares(stimulus: Stimulus, dt_s: float, steps: int) -> Float[Tensor, "step 3 *batch 1"]:
    """The same share of time, spread evenly from the first pulse to the end of the last period: a train without pulses.

    Width times frequency, for both phases alike; over a whole train it sums to what `pulse_shares` gives.
    Differentiable in width, frequency and onset.
    """
    like = stimulus.amplitude_ma
    number = torch.arange(steps, dtype=like.dtype, device=like.device)
    number = number.reshape(-1, *(1,) * len(stimulus.batch_shape))  # [step, *batch]
    onset_s, lasted_s, width_us, frequency_hz = (
        x.double() for x in (stimulus.onset_s, stimulus.duration_s, stimulus.pulse_width_us, stimulus.frequency_hz)
    )
    edges = ((edge_s / dt_s).to(like) for edge_s in (onset_s, onset_s + lasted_s))
    first, last = ((edge - number).clamp(0.0, 1.0) for edge in edges)
    share = (last - first) * (width_us * SECONDS_PER_MICROSECOND * frequency_hz).to(like)
    half_rise = 3 * share * (last + first - 1)  # of the line that `stage_drive` would draw through ever finer bins
    return torch.stack([share - half_rise, share, share + half_rise], 1).unsqueeze(-1)


@dataclass(frozen=True)
class PointSourceDrive:
    """How strongly current at each contact drives each region. Built by `point_source_drive`.

    Attributes:
        potential_mv_per_ma: Potential at each region of 1 mA at each contact; the mean over a region of extent.
        half_mv: Potential at which a phase much longer than the chronaxie recruits half of the axons. Together with
            `spikes` it stands for everything between a field and a synapse, and is chosen, not measured.
        spikes: Afferent spikes per phase, per synapse counted in the circuit's drive, with all axons recruited.
        follow_hz: Rate at which recruited axons follow every second pulse only; what arrives is largest there. Block
            was seen from 50 Hz on; the curve 1 / (1 + (f / follow_hz)^2) is chosen.
        chronaxie_us: Width at which twice the current of an endless phase is needed.
        cathodic_gain: Weight of a phase that lowers the potential at the region.
        anodic_gain: Weight of a phase that raises it.
        point_mv_per_ma: Potential at each point of each region; None where a region is one point.
        point_share: Share of a region's tissue that each point stands for; they sum to 1.
        shares: How phases fill time: `pulse_shares` or `train_shares`.
    """

    potential_mv_per_ma: Float[Tensor, "region contact"]
    half_mv: float = 40.0
    spikes: float = 18.0
    follow_hz: float = 80.0
    chronaxie_us: float = CHRONAXIE_US
    cathodic_gain: float = 1.0
    anodic_gain: float = ANODIC_GAIN
    point_mv_per_ma: Float[Tensor, "point region contact"] | None = None
    point_share: Float[Tensor, " point"] | None = None
    shares: PhaseShares = pulse_shares

    def field_mv(self, stimulus: Stimulus) -> Float[Tensor, "*batch region"]:
        """Potential at each region during the first phase."""
        return stimulus.amplitude_ma @ self.potential_mv_per_ma.mT

    def recruited(self, stimulus: Stimulus) -> Float[Tensor, "*batch region"]:
        """Share of the axons at each region that one phase recruits, 0 to 1, before polarity is weighed."""
        return self._over_region(self._recruited(stimulus, self._points_mv(stimulus)))

    def firing_hz(self, stimulus: Stimulus, dt_s: float, steps: int) -> Float[Tensor, "step 3 *batch region"]:
        """Afferent firing at start, middle and end of each integration step from the window's start.

        Differentiable in amplitude, width and frequency.

        Raises:
            StimulusError: If the stimulus also reaches the senses, which this drive has not.
        """
        return self.input(stimulus, (Entry(afferent_hz=1.0),), dt_s, steps)[..., 0]

    def input(
        self, stimulus: Stimulus, entries: tuple[Entry, ...], dt_s: float, steps: int
    ) -> Float[Tensor, "step 3 *batch region input"]:
        """What reaches each input of a circuit, one for each of `entries`, at the stages of each integration step.

        Differentiable in amplitude, width and frequency. What the senses send is not in it.

        Raises:
            StimulusError: If the stimulus also reaches the senses, which this drive has not.
        """
        if stimulus.sensory is not None and bool((stimulus.sensory.intensity != 0).any()):
            raise StimulusError("this circuit has contacts but no senses; give a stimulus without a sensory part.")
        firing, weighed = self._phase_firing(stimulus), self._weights(entries)
        fields = any(lowered or raised for _, _, lowered, raised in weighed)
        field = self._phase_field_mv(stimulus) if fields else ()
        filled = self.shares(stimulus, dt_s, steps).unbind(-1)  # [step, 3, *batch], for each phase or for both alike
        phases = [(*firing, *field), (*reversed(firing), *reversed(field))]  # what the first lowers, the second raises
        nothing = filled[0].new_zeros(()).expand(steps, 3, firing[0].shape[-1], *stimulus.batch_shape)
        columns = []
        for weights in weighed:
            if not any(weights):
                columns.append(nothing)
                continue
            amounts = [_weighed(weights, phase) for phase in phases]
            amounts = amounts if len(filled) == 2 else [amounts[0] + amounts[1]]
            lanes = [amount.movedim(-1, 0).contiguous() for amount in amounts]  # the batch innermost is fast
            parts = [share.unsqueeze(2) * lane for share, lane in zip(filled, lanes, strict=True)]
            columns.append(sum(parts[1:], parts[0]))
        return torch.stack(columns, 2).movedim((2, 3), (-1, -2))

    def arriving_spikes(self, stimulus: Stimulus) -> Float[Tensor, "*batch 2 region"]:
        """Afferent spikes that the first and the second phase of each pulse bring to each region."""
        lowered, raised = self._phase_firing(stimulus, per_spike=True)
        first = self.cathodic_gain * lowered + self.anodic_gain * raised
        return torch.stack([first, self.cathodic_gain * raised + self.anodic_gain * lowered], -2)

    def _points_mv(self, stimulus: Stimulus) -> Float[Tensor, "*batch region point"]:
        if self.point_mv_per_ma is None:
            return self.field_mv(stimulus).unsqueeze(-1)
        return torch.einsum("...c,prc->...rp", stimulus.amplitude_ma, self.point_mv_per_ma)

    def _over_region(self, at_points: Float[Tensor, "*any point"]) -> Float[Tensor, "*any"]:
        return at_points[..., 0] if self.point_share is None else at_points @ self.point_share

    def _recruited(self, stimulus: Stimulus, potential_mv: Tensor) -> Tensor:
        width = stimulus.pulse_width_us.unsqueeze(-1).unsqueeze(-1)
        strength = potential_mv / self.half_mv * width / (width + self.chronaxie_us)
        return strength.square() / (1 + strength.square())

    def _phase_firing(self, stimulus: Stimulus, *, per_spike: bool = False) -> tuple[Tensor, Tensor]:
        """Firing of axons that the first phase's cathodic field recruits, and its anodic one, `[*batch, region]` in 1/s
        while the phase lasts; or the spikes that it brings.
        """
        potential_mv = self._points_mv(stimulus)
        recruited = self._recruited(stimulus, potential_mv)
        low = potential_mv < 0
        rate = self.spikes / (1 + (stimulus.frequency_hz / self.follow_hz).square())
        if not per_spike:
            rate = rate / (stimulus.pulse_width_us * SECONDS_PER_MICROSECOND)
        parts = (torch.where(low, recruited, 0.0), torch.where(low, 0.0, recruited))
        lowered, raised = (self._over_region(part) * rate.unsqueeze(-1) for part in parts)
        return lowered, raised

    def _phase_field_mv(self, stimulus: Stimulus) -> tuple[Tensor, Tensor]:
        """How far the first phase lowers and raises the potential at each region, `[*batch, region]`."""
        potential_mv = self._points_mv(stimulus)
        return self._over_region((-potential_mv).clamp_min(0.0)), self._over_region(potential_mv.clamp_min(0.0))

    def _weights(self, entries: tuple[Entry, ...]) -> list[tuple[float, float, float, float]]:
        """For each input: of cathodic and anodic firing, of lowered and raised potential."""
        return [
            (
                entry.cathodic_hz + self.cathodic_gain * entry.afferent_hz,
                entry.anodic_hz + self.anodic_gain * entry.afferent_hz,
                entry.cathodic_mv,
                entry.anodic_mv,
            )
            for entry in entries
        ]


def _weighed(weights: Sequence[float], lanes: Sequence[Tensor]) -> Tensor:
    """The weighted sum, without what counts nothing; one weight at least counts something.

    Lanes may be left out at the end where their weights are zero.
    """
    parts = [weight * lane for weight, lane in zip(weights, lanes, strict=False) if weight]
    return sum(parts[1:], parts[0])


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
    spread_mm: float = 0.0,
) -> PointSourceDrive:
    """The drive of regions at `region_mm` by the contacts of a montage, in region's dtype and device.

    Args:
        montage: Whose contacts drive.
        region_mm: Centres of the regions, in the montage's frame.
        half_mv: See `PointSourceDrive`.
        spikes: See `PointSourceDrive`.
        follow_hz: See `PointSourceDrive`.
        spread_mm: Standard deviation of a region's tissue around its centre, along each axis; 0 for a point.

    Raises:
        MontageError: If the place of a contact is not known.
    """
    places = montage.contact_position_mm.to(region_mm)
    if bool(places.isnan().any()):
        missing = [c.name for c, place in zip(montage.contacts, places, strict=True) if bool(place.isnan().any())]
        raise MontageError(f"contacts {', '.join(missing)} have no position_mm; a field needs a place for each.")
    if spread_mm == 0:
        return PointSourceDrive(point_source_potential(places, region_mm), half_mv, spikes, follow_hz)
    offsets, share = _gaussian_points(region_mm)
    at_points = (region_mm + spread_mm * offsets.unsqueeze(1)).flatten(0, 1)  # [point * region, 3]
    points = point_source_potential(places, at_points).unflatten(0, (len(share), -1))
    mean = torch.einsum("p,prc->rc", share, points)
    return PointSourceDrive(mean, half_mv, spikes, follow_hz, point_mv_per_ma=points, point_share=share)


def _gaussian_points(like: Tensor) -> tuple[Float[Tensor, "point 3"], Float[Tensor, " point"]]:
    """Three Gauss-Hermite points along each axis, 27 in all: exact for polynomials up to the fifth degree in each."""
    place, weight = like.new_tensor([-math.sqrt(3.0), 0.0, math.sqrt(3.0)]), like.new_tensor([1 / 6, 2 / 3, 1 / 6])
    return torch.cartesian_prod(place, place, place), torch.cartesian_prod(weight, weight, weight).prod(-1)
