"""What a cohort is drawn from: a circuit, its parameters within published ranges, and how heads and days differ.

Every range of a parameter carries the published one that it lies in, and refuses to leave it.
Where no figure was published that could be used as it stands, the number is chosen, and says so.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from stimopt.errors import ConfigError

from .connectome import LENGTH_LOG_SPREAD, WEIGHT_LOG_SPREAD
from .dynamics import Dynamics
from .jansen_rit import JansenRit
from .single_pulses import MAYO, Protocol

Interval = tuple[float, float]

# Zea Vera et al. 2017, Clin Neurophysiol 128: lowest current of a mapping train that moved a limb, 5.4 mA with a
# standard deviation of 2.8 over 122 patients aged 12 on average. A lognormal with these moments has the median
# and the spread below; taken for every contact it is cautious, since theirs is each patient's lowest.
SIDE_EFFECT_MEDIAN_MA = 5.4 / math.sqrt(1 + (2.8 / 5.4) ** 2)
SIDE_EFFECT_LOG_SPREAD = math.sqrt(math.log(1 + (2.8 / 5.4) ** 2))


@dataclass(frozen=True)
class Range:
    """Where a parameter of a circuit is drawn from, evenly.

    Attributes:
        parameter: The circuit's name for it.
        low: Smallest value.
        high: Largest value.
        each: "patient" for one value, "region" for one in each region, "focus" for the value of the focus and of the
            region that sends most to it, in place of the region's.
        published: The range that was published.
        source: Where.

    Raises:
        ConfigError: If the bounds are not ordered or leave the published range.
    """

    parameter: str
    low: float
    high: float
    each: Literal["patient", "region", "focus"]
    published: Interval
    source: str

    def __post_init__(self) -> None:
        if not self.published[0] <= self.low <= self.high <= self.published[1]:
            raise ConfigError(
                f"{self.parameter} is drawn from {self.low} to {self.high}; published are {self.published[0]} to "
                f"{self.published[1]} ({self.source}). Draw from within."
            )


_DOMAIN = "domains of the Jansen-Rit model in The Virtual Brain, after Jansen and Rit 1995"

# Narrow around the paper's values, so that the focus stays in the alpha of Jansen and Rit 1995 and the others at rest:
# the Hopf points lie at 89.8 and 315.7 /s for the paper's values (Grimbert and Faugeras 2006)
JANSEN_RIT_RANGES = (
    Range("afferents_hz", 40.0, 75.0, "region", (0.0, 320.0), _DOMAIN),
    Range("afferents_hz", 130.0, 200.0, "focus", (120.0, 320.0), "Jansen and Rit 1995: p from 120 to 320 /s"),
    Range("excitation_mv", 3.15, 3.35, "patient", (2.6, 9.75), _DOMAIN),
    Range("inhibition_mv", 21.3, 22.7, "patient", (17.6, 110.0), _DOMAIN),
    Range("excitation_per_s", 95.0, 105.0, "patient", (50.0, 150.0), _DOMAIN),
    Range("inhibition_per_s", 47.5, 52.5, "patient", (25.0, 75.0), _DOMAIN),
    Range("connectivity", 132.0, 138.0, "patient", (65.0, 1350.0), _DOMAIN),
)

# Probabilities per window: at 0.5 s drowsiness comes about twice a minute and lasts ten seconds; all three chosen
_DROWSINESS = {"drowsy_drive": (-15.0, -5.0), "drowsing": (0.01, 0.03), "waking": (0.03, 0.08)}


@dataclass(frozen=True)
class Population:
    """What patients of one kind have in common. Pairs are lowest and highest, drawn evenly unless said otherwise.

    Attributes:
        circuit: What lives in the regions.
        ranges: Of its parameters.
        gain: Drive per emission along tracts of weight 1 in all; as in `jansen_rit_patient`, chosen.
        speed_m_s: Conduction speed along tracts; None for no delays. Median 3.9 m/s in Lemarechal et al. 2022, Brain
            145:1653-1667, from 780 patients; the spread is chosen.
        follow_hz: Rate at which axons follow every second pulse, see `PointSourceDrive`.
        uv_per_mv: What a contact reads per unit of the circuit's potential.
        noise_uv: Of the amplifier, per sample; chosen.
        drift: Standard deviation of the slow excitability over a session, in the circuit's drive; chosen.
        drift_windows: Windows after which it forgets; chosen.
        vigilance: Of the numbers of a `Vigilance`, by name: how deep drowsiness goes, in the circuit's drive, and how
            often it comes and goes; chosen. None for patients who stay as they are.
        dropped_share: Share of channels that are not recorded; chosen.
        side_effect_ma: Median, and spread of the natural logarithm, of the current at which a contact does harm.
        shafts: Fewest and most sEEG shafts; the first one aims at the focus.
        strips: Fewest and most strips.
        leads: Fewest and most leads.
        lost_tract_share: Share of tracts that a lesion cut; chosen.
        lost_regions: Fewest and most regions that a lesion removed.
        weight_log_spread: Of one head's tract weights around the group.
        length_log_spread: Of its tract lengths.
        protocol: Of single-pulse mapping.
        sites: How many pairs are mapped at most; chosen.
        window_s: Length of a window.
        rate_hz: Samples per second.
        dt_s: Integration step; delays shorter than it are lengthened to it.
        constants: Numbers of the circuit that all patients share, by name.
        entry: What 1/s of recruited firing adds to each input of the circuit, as in `Twin`.
        tract_entry: Where what tracts bring enters, a row for each input, as in `Network`; None for the first.
        diffusive: Whether tracts bring differences, as in `Network`.
        amplifier: Of the numbers of `clinical_amplifier`, by name: mains_hz, noise_uv, range_uv. Then `noise_uv` above
            is left out. None for white noise alone.
        device: Of the numbers of an `Actuator`, by name. None for one that delivers what is commanded.
        more: Any other number that `twin_in_head` or `Twin` takes, by its name, with what it is drawn from: half_mv,
            reach_mm, settle_s.

    Raises:
        ConfigError: If a pair is not ordered.
    """

    circuit: type[Dynamics] = JansenRit
    ranges: tuple[Range, ...] = JANSEN_RIT_RANGES
    gain: Interval = (5.0, 10.0)
    speed_m_s: Interval | None = (2.5, 6.0)
    follow_hz: Interval = (45.0, 90.0)
    uv_per_mv: Interval = (60.0, 140.0)
    noise_uv: Interval = (3.0, 8.0)
    drift: Interval = (2.0, 8.0)
    drift_windows: Interval = (30.0, 100.0)
    vigilance: Mapping[str, Interval] | None = field(default_factory=lambda: dict(_DROWSINESS))
    dropped_share: float = 0.05
    side_effect_ma: Interval = (SIDE_EFFECT_MEDIAN_MA, SIDE_EFFECT_LOG_SPREAD)
    shafts: tuple[int, int] = (2, 3)
    strips: tuple[int, int] = (0, 1)
    leads: tuple[int, int] = (0, 1)
    lost_tract_share: Interval = (0.0, 0.1)
    lost_regions: tuple[int, int] = (0, 1)
    weight_log_spread: float = WEIGHT_LOG_SPREAD
    length_log_spread: float = LENGTH_LOG_SPREAD
    protocol: Protocol = MAYO
    sites: int = 12
    window_s: float = 0.5
    rate_hz: float = 500.0
    dt_s: float = 1e-3
    constants: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    entry: Mapping[str, float] | None = None
    tract_entry: tuple[tuple[float, ...], ...] | None = None
    diffusive: bool = False
    amplifier: Mapping[str, Interval] | None = None
    device: Mapping[str, Interval] | None = None
    more: Mapping[str, Interval] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pairs = ("gain", "speed_m_s", "follow_hz", "uv_per_mv", "noise_uv", "drift", "drift_windows", "shafts",
                 "strips", "leads", "lost_tract_share", "lost_regions")  # fmt: skip
        for name in pairs:
            pair = getattr(self, name)
            if pair is not None and not 0 <= pair[0] <= pair[1]:
                raise ConfigError(f"{name} is {pair}; give the lowest first, then the highest, neither negative.")


def drawn(interval: Interval, source: torch.Generator) -> float:
    """One number, evenly from an interval."""
    return float(drawn_each(interval, 1, source)[0])


def drawn_each(interval: Interval, count: int, source: torch.Generator) -> list[float]:
    """Several numbers, evenly from an interval."""
    low, high = interval
    evenly: list[float] = (low + (high - low) * torch.rand(count, generator=source, dtype=torch.float64)).tolist()
    return evenly


def drawn_count(interval: tuple[int, int], source: torch.Generator) -> int:
    """A whole number, both ends included."""
    return int(torch.randint(interval[0], interval[1] + 1, (), generator=source))


def drawn_parameters(
    ranges: tuple[Range, ...], regions: int, foci: list[int], source: torch.Generator
) -> dict[str, float | tuple[float, ...]]:
    """A value for each parameter: one number, or one for each region, with those of the foci put in place.

    Raises:
        ConfigError: If a parameter has a range for the focus and none for regions.
    """
    made: dict[str, float | tuple[float, ...]] = {}
    for one in ranges:
        interval = (one.low, one.high)
        if one.each == "patient":
            made[one.parameter] = drawn(interval, source)
        elif one.each == "region":
            made[one.parameter] = tuple(drawn_each(interval, regions, source))
        else:
            made[one.parameter] = _at_foci(made.get(one.parameter), one, foci, source)
    return made


def _at_foci(
    everywhere: float | tuple[float, ...] | None, one: Range, foci: list[int], source: torch.Generator
) -> tuple[float, ...]:
    if not isinstance(everywhere, tuple):
        raise ConfigError(f"{one.parameter} has a range for the focus alone; give one for each region before it.")
    values = list(everywhere)
    for region, value in zip(foci, drawn_each((one.low, one.high), len(foci), source), strict=True):
        values[region] = value
    return tuple(values)
