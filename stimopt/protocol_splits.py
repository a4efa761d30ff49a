"""Which stimuli a forecaster has seen and which it has not: splits of a stimulation space, always by group.

Amplitudes, log frequencies and widths are cut into fifths of their range. Past trials never
come from the third fifth of any of them, nor from the top fifth of amplitude; a split
opens one such band and leaves the rest as it was. Sites are neighbouring pairs of contacts.

| split | what is new |
| --- | --- |
| trials | nothing but the moment |
| amplitude-inside | amplitudes between those seen |
| amplitude-beyond | amplitudes above all seen |
| frequency | frequencies between those seen |
| width | pulse widths between those seen |
| sites-touching | the pair; one of its contacts was seen in another pair |
| sites | the pair, and both contacts where the montage allows |

Instead of single pairs a whole shaft can be kept out of the past (`shaft_out`): "sites" are then its pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import ConfigError
from .montage import Montage
from .space import Parameter, StimulationSpace, contact_site
from .stimulus import Stimulus, contact_weights, pulse_train
from .tensors import generator

Bands = tuple[tuple[float, float], ...]

SPLITS = ("trials", "amplitude-inside", "amplitude-beyond", "frequency", "width", "sites-touching", "sites")
SILENT_EVERY = 5  # past trials; without silence among them the effect of a stimulus would be an extrapolation
_WHOLE: Bands = ((0.0, 1.0),)
_INSIDE: Bands = ((0.4, 0.6),)
_BEYOND: Bands = ((0.8, 1.0),)
_SEEN: Mapping[str, Bands] = {
    "amplitude_ma": ((0.0, 0.4), (0.6, 0.8)), "frequency_hz": ((0.0, 0.4), (0.6, 1.0)),
    "pulse_width_us": ((0.0, 0.4), (0.6, 1.0)),
}  # fmt: skip
_OPENED: Mapping[str, tuple[str, Bands]] = {
    "amplitude-inside": ("amplitude_ma", _INSIDE), "amplitude-beyond": ("amplitude_ma", _BEYOND),
    "frequency": ("frequency_hz", _INSIDE), "width": ("pulse_width_us", _INSIDE),
}  # fmt: skip


@dataclass(frozen=True)
class StimulusRanges:
    """What is delivered: trains that begin with the window and end within half a second.

    Attributes:
        amplitude_ma: Smallest and largest current.
        frequency_hz: Slowest and fastest train, drawn in log.
        pulse_width_us: Shortest and longest phase.
        pulses: Fewest and most.
    """

    amplitude_ma: tuple[float, float] = (0.5, 6.0)
    frequency_hz: tuple[float, float] = (16.0, 100.0)
    pulse_width_us: tuple[float, float] = (100.0, 400.0)
    pulses: tuple[int, int] = (1, 8)

    def space(self, montage: Montage) -> StimulationSpace:
        """All of it at every neighbouring pair, for models that are fitted on a space.

        Raises:
            ConfigError: If the montage has fewer than two neighbouring pairs.
        """
        pairs = _pairs(montage)
        template = pulse_train(montage, pairs[0], amplitude_ma=1.0, frequency_hz=self.frequency_hz[0])
        return StimulationSpace(
            (
                contact_site(template, pairs),
                Parameter("amplitude_ma", "continuous", *self.amplitude_ma, unit="mA"),
                Parameter("frequency_hz", "log", *self.frequency_hz, unit="Hz"),
                Parameter("pulse_width_us", "continuous", *self.pulse_width_us, unit="us"),
                Parameter("pulses", "integer", *self.pulses),
            ),
            template,
        )

    def numbers(self, unit: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Amplitude, frequency and width at shares 0 to 1 of their ranges."""
        low, high = self.frequency_hz
        return {
            "amplitude_ma": _between(unit["amplitude_ma"], self.amplitude_ma),
            "frequency_hz": low * (high / low) ** unit["frequency_hz"],
            "pulse_width_us": _between(unit["pulse_width_us"], self.pulse_width_us),
        }


@dataclass(frozen=True)
class Sites:
    """Neighbouring pairs by what past trials know of them.

    Attributes:
        seen: Stimulated in past trials.
        touching: Never stimulated; share a contact with a seen pair and one with an unseen pair.
        unseen: Never stimulated.
        contacts_unseen: Whether no contact of an unseen pair was ever stimulated; a small montage does not allow it.
    """

    seen: tuple[str, ...]
    touching: tuple[str, ...]
    unseen: tuple[str, ...]
    contacts_unseen: bool

    def of(self, split: str) -> tuple[str, ...]:
        """The sites that a split stimulates; none where the montage does not allow the split."""
        return {"sites": self.unseen, "sites-touching": self.touching}.get(split, self.seen)


def split_sites(montage: Montage, seed: int) -> Sites:
    """Hold about a fifth of the neighbouring pairs out, and of their neighbours those that share a contact.

    Args:
        montage: Of the patient.
        seed: Of the draw.

    Raises:
        ConfigError: If the montage has fewer than two neighbouring pairs.
    """
    pairs = _pairs(montage)
    order = [pairs[i] for i in torch.randperm(len(pairs), generator=generator(seed, "sites")).tolist()]
    unseen: list[str] = []
    while len(unseen) < max(1, len(pairs) // 5):
        left = [p for p in order if p not in unseen and len(_apart(pairs, [*unseen, p])) >= max(2, len(pairs) // 3)]
        if not left:
            break
        unseen.append(min(left, key=lambda pair: _on_its_shaft(montage, pair, unseen)))  # shafts take turns
    if not unseen:  # too few contacts to leave both of a pair's unseen
        return Sites(tuple(p for p in pairs if p != order[0]), (), (order[0],), False)
    seen = _apart(pairs, unseen)
    touching = tuple(p for p in pairs if p not in unseen and p not in seen)
    return Sites(seen, touching, tuple(p for p in pairs if p in unseen), True)


def shaft_out(montage: Montage, seed: int) -> Sites:
    """Hold all pairs of one shaft out.

    Args:
        montage: Of the patient.
        seed: Of the draw.

    Raises:
        ConfigError: If fewer than two shafts have a pair, or the others have fewer than two pairs.
    """
    pairs, shaft = _pairs(montage), {contact.name: contact.shaft for contact in montage.contacts}
    names = list(dict.fromkeys(shaft[pair.split("-")[0]] for pair in pairs))
    held = names[int(torch.randint(len(names), (), generator=generator(seed, "shaft")))]
    unseen = tuple(pair for pair in pairs if shaft[pair.split("-")[0]] == held)
    seen = tuple(pair for pair in pairs if pair not in unseen)
    if len(seen) < 2:
        raise ConfigError(
            f"{len(seen)} of this montage's {len(pairs)} pairs lie beside shaft {held}; to hold a whole shaft out "
            "takes two pairs on others."
        )
    return Sites(seen, (), unseen, True)


@dataclass(frozen=True)
class Design:
    """Draws the stimuli of past trials and of every split.

    Attributes:
        montage: Of the patient.
        sites: See `split_sites`.
        ranges: Of the numbers.
    """

    montage: Montage
    sites: Sites
    ranges: StimulusRanges = field(default_factory=StimulusRanges)

    def past(self, count: int, source: torch.Generator) -> Stimulus:
        """Stimuli of past trials, every fifth of them silent; the sites take turns."""
        drawn = self._drawn(self.sites.seen, count, _SEEN, self.ranges.pulses, source)
        loud = (torch.arange(count) % SILENT_EVERY != SILENT_EVERY - 1).to(drawn.pulses)
        return _scaled(drawn, loud)

    def test(self, split: str, count: int, source: torch.Generator) -> Stimulus | None:
        """Stimuli of a split, none silent; None where the montage has no site for it.

        Raises:
            ConfigError: If there is no such split.
        """
        if split not in SPLITS:
            raise ConfigError(f"split {split!r} is not known; there are {', '.join(SPLITS)}.")
        sites = self.sites.of(split)
        name, bands = _OPENED.get(split, ("", _WHOLE))
        opened = {**_SEEN, name: bands} if name else _SEEN
        return self._drawn(sites, count, opened, self.ranges.pulses, source) if sites else None

    def anywhere(self, count: int, pulses: tuple[int, int], source: torch.Generator) -> tuple[Stimulus, list[str]]:
        """Trains of the inner 80 % of all ranges at any pair, and the pair of each."""
        pairs = _pairs(self.montage)
        order = torch.randperm(len(pairs), generator=source).tolist()
        bands: Mapping[str, Bands] = dict.fromkeys(_SEEN, ((0.1, 0.9),))
        names = [pairs[order[i % len(pairs)]] for i in range(count)]
        return self._at(names, bands, pulses, source), names

    def _drawn(
        self, sites: Sequence[str], count: int, bands: Mapping[str, Bands], pulses: tuple[int, int],
        source: torch.Generator,
    ) -> Stimulus:  # fmt: skip
        order = torch.randperm(len(sites), generator=source).tolist()
        return self._at([sites[order[i % len(sites)]] for i in range(count)], bands, pulses, source)

    def _at(
        self, names: Sequence[str], bands: Mapping[str, Bands], pulses: tuple[int, int], source: torch.Generator
    ) -> Stimulus:
        unit = {name: _uniform(bands[name], len(names), source) for name in _SEEN}
        numbers = self.ranges.numbers(unit)
        weights = torch.stack([contact_weights(self.montage, name) for name in names])
        counts = torch.randint(pulses[0], pulses[1] + 1, (len(names),), generator=source).double()
        zero = torch.zeros(len(names), dtype=torch.float64)
        current = weights * numbers["amplitude_ma"].unsqueeze(-1)
        return Stimulus(
            self.montage, current, numbers["frequency_hz"], numbers["pulse_width_us"], counts, zero, zero
        )  # fmt: skip


def _pairs(montage: Montage) -> tuple[str, ...]:
    pairs = montage.neighbour_pairs()
    if len(pairs) < 2:
        raise ConfigError(
            f"this montage has {len(pairs)} pairs of neighbouring contacts; to hold a site out takes two or more."
        )
    return pairs


def _apart(pairs: Sequence[str], unseen: Sequence[str]) -> tuple[str, ...]:
    """Pairs that share no contact with the unseen ones."""
    taken = {contact for pair in unseen for contact in pair.split("-")}
    return tuple(pair for pair in pairs if not taken & set(pair.split("-")))


def _on_its_shaft(montage: Montage, pair: str, others: Sequence[str]) -> int:
    shafts = {contact.name: contact.shaft for contact in montage.contacts}
    return sum(shafts[other.split("-")[0]] == shafts[pair.split("-")[0]] for other in others)


def _uniform(bands: Bands, count: int, source: torch.Generator) -> Float[Tensor, " stimulus"]:
    """Uniform over the union of bands."""
    at = torch.rand(count, generator=source, dtype=torch.float64) * sum(high - low for low, high in bands)
    value = torch.zeros_like(at)
    for low, high in bands:
        inside = (at >= 0) & (at <= high - low)
        value, at = torch.where(inside, low + at, value), torch.where(inside, -1.0, at - (high - low))
    return value


def _between(unit: Tensor, bounds: tuple[float, float]) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * unit


def _scaled(stimulus: Stimulus, loud: Tensor) -> Stimulus:
    """Silence where `loud` is 0."""
    return Stimulus(
        stimulus.montage, stimulus.amplitude_ma * loud.unsqueeze(-1), stimulus.frequency_hz, stimulus.pulse_width_us,
        stimulus.pulses * loud, stimulus.onset_s, stimulus.interphase_us,
    )  # fmt: skip
