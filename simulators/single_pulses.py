"""Schedules of single-pulse stimulation as hospitals run them: pair after pair, ten pulses each, seconds apart.

Two protocols, from the papers and the read-me files of the recordings published with them.
Pairs are neighbours on one electrode, taken in order along it. Pulses are biphasic here
whatever the protocol says, since a `Stimulus` is always charge-balanced.

References: van Blooijs et al. 2023, Nat Neurosci 26:537-541 (74 patients, ds004080);
Miller, Mueller and Hermes 2021, PLoS Comput Biol 17:e1008710 (ds003708);
Ojeda Valencia et al. 2023, J Neurosci, doi 10.1523/JNEUROSCI.2201-22.2023 (ds004696);
Huang et al. 2024, J Neurosci Methods 110153 (ds004977).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.montage import Montage
from stimopt.stimulus import Stimulus, pulse_train
from stimopt.tensors import concatenate, map_tensors


@dataclass(frozen=True)
class Protocol:
    """How one hospital maps.

    Attributes:
        pulses: At each pair.
        reversed_share: Share of a pair's pulses given with the poles exchanged, after the others.
        current_ma: The usual current.
        reduced_ma: The current where the usual one would move a limb or cause spikes.
        reduced_share: Share of pairs that get it.
        pulse_width_us: Of one phase.
        interval_s: Median time from pulse to pulse at a pair.
        interval_log_spread: Scatter of its natural logarithm; 0 for a clock.
        change_s: Median time from the last pulse at a pair to the first at the next.
        source: Where the numbers stand.
    """

    pulses: int
    reversed_share: float
    current_ma: float
    reduced_ma: float
    reduced_share: float
    pulse_width_us: float
    interval_s: float
    interval_log_spread: float
    change_s: float
    source: str


# The Mayo papers give 200 us for a biphasic pulse, read here as the width of each phase: the larger charge of the two.
# Currents, pulses and widths as published; shares, scatter and the time between pairs are rounded from the events
UTRECHT = Protocol(
    10, 0.5, 8.0, 4.0, 0.06, 1000.0, 5.0, 0.0, 6.2, "van Blooijs et al. 2023, with the events of ds004080"
)
MAYO = Protocol(
    10, 0.0, 6.0, 4.0, 0.07, 200.0, 4.4, 0.25, 22.0, "Miller et al. 2021, Ojeda Valencia et al. 2023, their events"
)


@dataclass(frozen=True)
class Block:
    """Pulses at one pair, all alike.

    Attributes:
        site: The pair, cathode of the first phase first, such as "A1-A2".
        current_ma: Of each phase.
        onset_s: Start of each pulse, from the start of the session.
    """

    site: str
    current_ma: float
    onset_s: tuple[float, ...]


@dataclass(frozen=True)
class PulseSchedule:
    """A whole mapping session: which pulses, where, when."""

    blocks: tuple[Block, ...]
    pulse_width_us: float

    @property
    def onset_s(self) -> Float[Tensor, " pulse"]:
        """Start of every pulse, from the start of the session (float64)."""
        return torch.tensor([onset for block in self.blocks for onset in block.onset_s], dtype=torch.float64)

    def stimuli(self, montage: Montage) -> Stimulus:
        """Every pulse as a stimulus of its own that starts with its window; the batch runs over pulses.

        Raises:
            MontageError: If a site names a contact that the montage lacks.
        """
        each = [
            pulse_train(montage, b.site, amplitude_ma=b.current_ma, pulse_width_us=self.pulse_width_us)
            for b in self.blocks
        ]
        repeated = [map_tensors(one, _repeat(len(b.onset_s))) for one, b in zip(each, self.blocks, strict=True)]
        return concatenate(repeated)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        blocks = [[block.site, block.current_ma, list(block.onset_s)] for block in self.blocks]
        return {"pulse_width_us": self.pulse_width_us, "blocks": blocks}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "PulseSchedule":
        """What `to_dict` wrote."""
        blocks = tuple(Block(site, current_ma, tuple(onset_s)) for site, current_ma, onset_s in plain["blocks"])
        return cls(blocks, plain["pulse_width_us"])


def single_pulse_schedule(
    montage: Montage, source: torch.Generator, *, protocol: Protocol = MAYO, sites: int | None = None
) -> PulseSchedule:
    """A schedule over the neighbouring pairs of a montage. Times are rounded to milliseconds, as event files are.

    Args:
        montage: Its pairs are stimulated.
        source: Draws which pairs, which of them get less current, and the times.
        protocol: How.
        sites: How many pairs, drawn at random and taken in order; all by default.

    Raises:
        ConfigError: If there are no pairs, or fewer than were asked.
    """
    pairs = montage.neighbour_pairs()
    sites = len(pairs) if sites is None else sites
    if not 1 <= sites <= len(pairs):
        raise ConfigError(f"sites is {sites}; this montage has {len(pairs)} neighbouring pairs, choose 1 to that many.")
    chosen = sorted(torch.randperm(len(pairs), generator=source)[:sites].tolist())
    reduced = torch.rand(sites, generator=source, dtype=torch.float64) < protocol.reduced_share
    blocks: list[Block] = []
    now_s = 0.0
    for pair, less in zip(chosen, reduced.tolist(), strict=True):
        current_ma = protocol.reduced_ma if less else protocol.current_ma
        for site, count in _directions(pairs[pair], protocol):
            scatter = torch.randn(count, generator=source, dtype=torch.float64) * protocol.interval_log_spread
            waits = [protocol.change_s, *(protocol.interval_s * math.exp(z) for z in scatter.tolist()[1:])]
            onsets = tuple(round(now_s + sum(waits[: i + 1]), 3) for i in range(count))
            blocks.append(Block(site, current_ma, onsets))
            now_s = onsets[-1]
    return PulseSchedule(tuple(blocks), protocol.pulse_width_us)


def _directions(pair: str, protocol: Protocol) -> list[tuple[str, int]]:
    turned = round(protocol.pulses * protocol.reversed_share)
    ways = [(pair, protocol.pulses - turned), ("-".join(reversed(pair.split("-"))), turned)]
    return [(site, count) for site, count in ways if count]


def _repeat(times: int) -> Any:
    return lambda tensor: tensor.expand(times, *tensor.shape)
