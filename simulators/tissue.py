"""A circuit with one patient's parameters, in one patient's tissue: what ready virtual patients are made with.

Parameters are drawn within published ranges (`Range`), the focus, which one shaft aims at, and the region that sends
most to it from ranges of their own. The head, electrodes and tracts are those of `implanted`.
"""

from collections.abc import Mapping
from typing import Any

import torch

from stimopt.errors import ConfigError
from stimopt.tensors import generator

from .dynamics import Dynamics
from .entry import Entry
from .implanted import ball_anatomy, implanted
from .population import Interval, Range, drawn, drawn_parameters
from .twin import Twin

FOLLOW_HZ = (45.0, 90.0)  # chosen around Jensen and Durand 2009, see PointSourceDrive
SPEED_M_S = (2.5, 6.0)  # chosen around the median of 3.9 m/s in Lemarechal et al. 2022, Brain 145:1653-1667


def drawn_circuit(
    kind: type[Dynamics], ranges: tuple[Range, ...], patient: int, regions: int, contacts: int, **fixed: Any
) -> Dynamics:
    """The circuit with this patient's parameters, in float64.

    Args:
        kind: Of circuit; its first field must have a range for regions.
        ranges: What is drawn.
        patient: Which patient; any whole number.
        regions: How many regions.
        contacts: As `implanted` will get them, since the focus depends on the head.
        fixed: All other parameters.

    Raises:
        ConfigError: If there is no region, or fewer than 4 contacts.
    """
    if regions < 1:
        raise ConfigError(f"regions is {regions}; a virtual patient needs at least 1.")
    connectome, _, focus = ball_anatomy(patient, regions, contacts)
    foci = [focus, int(connectome.weights[focus].argmax())]
    values = drawn_parameters(ranges, regions, foci, generator(patient, kind.__name__, "parameters"))
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    return kind(**tensors, **fixed)


def in_tissue(
    circuit: Dynamics,
    patient: int,
    contacts: int,
    entry: Mapping[str, float | Entry],
    *,
    gain: Interval,
    speed_m_s: Interval | None = SPEED_M_S,
    **options: Any,
) -> Twin:
    """`implanted`, with what the patient's number decides of tracts and axons.

    Args:
        circuit: From `drawn_circuit`.
        patient: Which patient.
        contacts: How many.
        entry: See `Twin`.
        gain: Lowest and highest drive per emission.
        speed_m_s: Lowest and highest conduction speed; None for no delays.
        options: As for `implanted`.
    """
    source = generator(patient, type(circuit).__name__, "tracts")
    strength, follow_hz = drawn(gain, source), drawn(FOLLOW_HZ, source)
    speed = None if speed_m_s is None else drawn(speed_m_s, source)
    return implanted(
        circuit, patient=patient, contacts=contacts, gain=strength, speed_m_s=speed, entry=entry, follow_hz=follow_hz,
        **options,
    )  # fmt: skip
