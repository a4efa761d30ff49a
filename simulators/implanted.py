"""Any circuit in a small virtual head: a ball of tissue, two sEEG shafts, current in and voltage out.

What tests and environments use for every circuit. Circuits differ in units, so the strength
of tracts, of what a stimulus does (`entry`) and of what a contact sees (`uv_per_mv`) are
arguments; geometry, recruitment and sensing are the same for all.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.montage import Montage
from stimopt.tensors import generator, stream_seed

from .connectome import Connectome, ball_connectome
from .drive import point_source_drive
from .dynamics import Dynamics
from .entry import Entry
from .implants import two_shafts
from .lead_field import REACH_MM, UV_PER_MV
from .network import Network
from .sensing import distance_sensing
from .twin import Twin

SENSOR_NOISE_UV = 5.0  # standard deviation per sample, as of a clinical amplifier with its leads


def implanted(
    circuit: Dynamics,
    *,
    patient: int = 0,
    gain: float = 0.0,
    speed_m_s: float | None = None,
    tract_entry: Float[Tensor, "input output"] | None = None,
    diffusive: bool = False,
    contacts: int = 12,
    **options: Any,
) -> Twin:
    """A twin of a circuit with any number of regions: the head is made at run time, from the patient's number.

    The first region that the electrodes aim at is the innermost one. A `Network` is taken as it is, tracts and delays
    included; other circuits are joined by the ball's tracts, whose weights add up to 1 for each region.

    Args:
        circuit: What lives in the regions; its first field says how many.
        patient: Which head; any whole number.
        gain: Drive per emission, in the circuit's units; 0 leaves the regions alone.
        speed_m_s: Conduction speed along the tracts; None for no delays.
        tract_entry: How much of each output enters each input along a tract, as in `Network`.
        diffusive: Whether tracts carry differences, as in `Network`.
        contacts: How many contacts, half on each shaft.
        options: As for `twin_in_head`: entry, half_mv, spikes, follow_hz, uv_per_mv, noise_uv, window_s, dt_s, ...

    Raises:
        ConfigError: If a network comes with tracts to add, or there are fewer than 4 contacts.
    """
    regions = circuit.rest.shape[-2]
    connectome, montage, _ = ball_anatomy(patient, regions, contacts)
    if isinstance(circuit, Network):
        if gain or speed_m_s is not None or tract_entry is not None or diffusive:
            raise ConfigError(
                "this circuit is a Network, so it has its tracts already; leave out gain, speed_m_s, tract_entry and "
                "diffusive, or pass the circuit that lives in its regions."
            )
        return twin_in_head(circuit, connectome.centre_mm, montage, **options)
    joined = joined_by(circuit, connectome, gain, speed_m_s=speed_m_s, tract_entry=tract_entry, diffusive=diffusive)
    return twin_in_head(joined, connectome.centre_mm, montage, **options)


def joined_by(
    circuit: Dynamics,
    connectome: Connectome,
    gain: float,
    *,
    speed_m_s: float | None = None,
    shortest_s: float = 0.0,
    tract_entry: Float[Tensor, "input output"] | None = None,
    diffusive: bool = False,
) -> Dynamics:
    """A circuit's regions joined by a connectome's tracts, in the circuit's precision; the circuit itself at gain 0.

    Args:
        circuit: What lives in the regions.
        connectome: Its received weights are taken, and its lengths where there are delays.
        gain: Drive per emission.
        speed_m_s: Conduction speed; None for no delays.
        shortest_s: Delays below it are lengthened to it, so that a step is never longer than a delay.
        tract_entry: As in `Network`.
        diffusive: As in `Network`.
    """
    if gain == 0:
        return circuit
    rest = circuit.rest
    weights, delay_s = connectome.received.to(rest), None
    if speed_m_s is not None:
        delays = connectome.delays_s(speed_m_s).to(rest)
        delay_s = torch.where(weights != 0, delays.clamp_min(shortest_s), 0.0)
    return Network(circuit, weights, gain, delay_s=delay_s, entry=tract_entry, diffusive=diffusive)


def twin_in_head(
    circuit: Dynamics,
    region_mm: Float[Tensor, "region 3"],
    montage: Montage,
    *,
    entry: Mapping[str, float | Entry] | None = None,
    half_mv: float = 40.0,
    spikes: float = 18.0,
    follow_hz: float = 80.0,
    uv_per_mv: float = UV_PER_MV,
    reach_mm: float = REACH_MM,
    noise_uv: float = SENSOR_NOISE_UV,
    rate_hz: float = 500.0,
    dt_s: float | None = None,
    **options: Any,
) -> Twin:
    """A twin of a circuit in regions at these places, driven by point sources and sensed by distance.

    Args:
        circuit: A circuit or a network.
        region_mm: Places of its regions, in the montage's frame.
        montage: Contacts and channels.
        entry: What 1/s of recruited firing adds to each input, in the input's unit, as in `Twin`; the first input takes
            all of it as it is unless told.
        half_mv: Potential that recruits half of the axons.
        spikes: Afferent spikes per phase with all axons recruited.
        follow_hz: Rate at which axons follow every second pulse only.
        uv_per_mv: What a contact at the region itself reads per unit of the circuit's potential.
        reach_mm: Distance at which half of it is left.
        noise_uv: Of the amplifier, per sample.
        rate_hz: Samples per second of responses.
        dt_s: Integration step; the largest that fits circuit, delays and samples unless told (see `fitting_step`).
        options: Anything else a `Twin` takes: window_s, drift, drift_windows, settle_s, scheme, ...
    """
    places = region_mm.to(circuit.rest)
    return Twin(
        circuit=circuit,
        drive=point_source_drive(montage, places, half_mv=half_mv, spikes=spikes, follow_hz=follow_hz),
        sensing=distance_sensing(montage, places, reach_mm=reach_mm, uv_per_mv=uv_per_mv, noise_uv=noise_uv),
        montage=montage,
        rate_hz=rate_hz,
        dt_s=fitting_step(circuit, rate_hz) if dt_s is None else dt_s,
        entry=entry,
        **options,
    )


def fitting_step(circuit: Dynamics, rate_hz: float) -> float:
    """The largest step that was tested for a circuit, is no longer than its delays, and divides a sample's length."""
    longest_s = circuit.largest_dt_s
    late = circuit.late if isinstance(circuit, Network) else None
    if isinstance(circuit, Network) and circuit.delay_s is not None and late is not None:
        longest_s = min(longest_s, float(circuit.delay_s.detach()[late].min()))
    parts = math.ceil(1 / (rate_hz * longest_s) - 1e-9)
    return min(longest_s, 1 / (rate_hz * max(parts, 1)))


def ball_anatomy(patient: int, regions: int, contacts: int) -> tuple[Connectome, Montage, int]:
    """Regions and tracts, two shafts, and the focus: the innermost region, which one of the shafts aims at.

    Raises:
        ConfigError: If there are fewer than 4 contacts.
    """
    connectome = ball_connectome(regions, stream_seed(patient, "anatomy"))
    source = generator(patient, "electrodes")
    order = connectome.centre_mm.norm(dim=-1).argsort()
    focus, other = int(order[0]), int(order[0])
    if regions > 1:
        other = int(order[1 + int(torch.randint(regions // 2, (), generator=source))])
    first_hits = float(torch.rand((), generator=source)) < 0.5
    targets = [focus, other] if first_hits else [other, focus]
    return connectome, two_shafts(connectome.centre_mm[targets], contacts, source), focus
