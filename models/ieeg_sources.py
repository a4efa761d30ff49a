"""Sources in tissue that a train drives, that drive each other and are read: a patient's circuit, as trials tell it.

A foundation network says what patients usually answer; a circuit with places says what one patient's tissue must do
elsewhere if it did this here. Each of a few sources lies somewhere between the contacts:

    field       potential of the currents, 1/r, blunted near a contact, by Weiss's law of the pulse's width
    recruited   x^2 / (1 + x^2), x the field over what recruits half; anodic fields less; fast trains followed less
    answer      y'' = a^2 (f - y) - 2 a y',   f = s (tanh d - tanh b + p (tanh(d + u) - tanh d)) + m u p
                d = W y + h C sent + b
    read        by each contact as 1 / (1 + (r / reach)^2); pairs of contacts by their difference

for a few populations y of every source, p the pulses of a step, which counts them whole: one between two steps does
what it would do in one, so answers move smoothly with frequency. Without a current nothing moves. What is alike in all
patients (W, h, m and the middles of all else) is learned from virtual patients of many circuits, together with how
far patients differ from it; what is a patient's own (places, strengths, ties C between sources and deviations of the
rest) is found by gradient steps on their trials, drawn to what is usual. Several such circuits from different first
places are kept, and their mean is the answer: where trials do not tell, they differ, and agree less.

References: Weiss 1901 and Ranck, Brain Res 98 (1975) 417-440 (width, polarity); Jensen and Durand, Exp Neurol 220
(2009) 57-70 (fast trains); Jansen and Rit, Biol Cybern 73 (1995) 357-366 (the synapse); shared numbers are learned.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stimopt.checkpoint import load_checkpoint
from stimopt.errors import CheckpointError
from stimopt.stimulus import Stimulus
from stimopt.tensors import generator, map_tensors, named_under

from .drive import pulse_course
from .ieeg_course import Play, course
from .ieeg_foundation import checkpoint_folder
from .ieeg_waves import HORIZON_S

KIND = "ieeg-sources"
STEP_HZ = 250.0  # steps per second, whatever the rate of a recording
_ROWS = 64  # stimuli played at once
_UNIT_MM = 10.0  # of places, so that a step of a search moves them like other numbers
_SHARP = 20.0  # how suddenly an anodic field turns into a cathodic one
_ASIDE_MM = 4.0  # of first places, from the contacts
_DOUBT, _LEAST = 3.0, 1e-12  # weight of variance in agreement, and the least power that is divided by
_NOWHERE_MM = 1e4  # a place that is not known is as far

SHARED = {
    "half": 1.1, "anodic": -1.4, "chronaxie": math.log(250.0), "follow": math.log(65.0), "reach": math.log(4.0),
    "blunt": 0.0,
}  # fmt: skip
"""Logarithms of the shared numbers at first: what recruits half, weight of anodic fields, us, Hz, mm, mm."""
DEVIATIONS = {
    "half": 0.1, "follow": 0.25, "lead": 0.1, "bias": 0.4, "size": 0.4, "rate": 0.2, "tie": 0.3, "gain": 0.1,
    "reach": 0.2, "reading": 0.3, "hearing": 0.3, "coupling": 0.1, "anodic": 0.2, "blunt": 0.2,
}  # fmt: skip
"""How far patients may differ while the shared numbers are learned, in standard deviations; then as far as they did."""
OF_SOURCES = ("half", "lead", "gain", "bias", "size")  # alike for all sources but for chance


@dataclass(frozen=True)
class SourceSize:
    """How many sources a patient has, and populations a source."""

    sources: int = 12
    populations: int = 8


@dataclass(frozen=True)
class Tissue:
    """Where currents enter and who reads, for circuits side by side.

    Attributes:
        contact_mm: Places; what is not finite is as far as nothing matters.
        read: `channel_matrix` of the montage.
    """

    contact_mm: Float[Tensor, "circuit contact 3"]
    read: Float[Tensor, "circuit channel contact"]


@dataclass(frozen=True)
class Trains:
    """Stimuli as sources meet them.

    Attributes:
        current_ma: Signed, of the first phase.
        width_us: Of a phase.
        frequency_hz: Of the train.
        pulses: Delivered in each step of `STEP_HZ` from the window's start.
    """

    current_ma: Float[Tensor, "*batch contact"]
    width_us: Float[Tensor, "*batch"]
    frequency_hz: Float[Tensor, "*batch"]
    pulses: Float[Tensor, "*batch step"]


def trains_of(stimulus: Stimulus, steps: int) -> Trains:
    """A stimulus with one batch axis, over so many steps; differentiable."""
    pulses = pulse_course(stimulus, STEP_HZ, steps)
    return Trains(stimulus.amplitude_ma, stimulus.pulse_width_us, stimulus.frequency_hz, pulses)


def steps_of(samples: int, rate_hz: float) -> int:
    """How many steps a window takes."""
    return min(math.ceil(samples * STEP_HZ / rate_hz - 1e-9), round(HORIZON_S * STEP_HZ))


def first_shared(size: SourceSize, source: torch.Generator) -> dict[str, Tensor]:
    """What all patients share, before it is learned."""
    count = size.populations
    shared = {name: torch.tensor(value) for name, value in SHARED.items()}
    shared["rate"] = torch.linspace(math.log(25.0), math.log(170.0), count)  # 1/s; synapses of 6 to 40 ms
    shared["coupling"] = 0.5 * torch.randn(count, count, generator=source) / math.sqrt(count)
    shared["hearing"] = torch.randn(count, generator=source)
    shared["past_bound"] = torch.zeros(count)
    for name in ("bias", "reading", "sending", "listening"):
        shared[name] = 0.3 * torch.randn(count, generator=source)
    return shared


def first_own(size: SourceSize, tissue: Tissue, source: torch.Generator) -> dict[str, Tensor]:
    """What is a patient's own, before it is looked for: sources beside contacts, all else as is usual."""
    circuits, (count, populations) = len(tissue.contact_mm), (size.sources, size.populations)
    places = []
    for contacts in tissue.contact_mm:
        known = contacts[contacts.isfinite().all(-1)].float()
        order = torch.randperm(len(known), generator=source)
        places.append(known[order.repeat(math.ceil(count / len(known)))[:count]])
    place = torch.stack(places) + _ASIDE_MM * torch.randn(circuits, count, 3, generator=source)
    shapes = {
        "half": (count,), "lead": (count,), "gain": (count,), "follow": (1,), "reach": (1,), "anodic": (1,),
        "blunt": (1,), "rate": (1, populations), "bias": (count, populations), "size": (count, populations),
        "tie": (count, count), "reading": (populations,), "hearing": (populations,),
        "coupling": (populations, populations),
    }  # fmt: skip
    own = {name: torch.zeros(circuits, *shape) for name, shape in shapes.items()}
    for name in ("bias", "tie"):  # sources that are alike would stay alike
        own[name] = 0.1 * torch.randn(own[name].shape, generator=source)
    return {"place": place / _UNIT_MM, **own}


def effects(
    shared: Mapping[str, Tensor], own: Mapping[str, Tensor], tissue: Tissue, trains: Trains, *, play: Play = course
) -> Float[Tensor, "circuit row channel step"]:
    """What each circuit's channels answer to trains `[circuit, row]`, at the ends of steps.

    Args:
        shared: Numbers that all circuits have.
        own: A patient's own numbers, of each circuit.
        tissue: Of each circuit.
        trains: Of each circuit.
        play: Steps of the circuits; `QuickCourse` where no more than a gradient backwards is asked for.
    """
    both = {name: shared[name] + own[name] if name in own else shared[name] for name in shared}
    place = own["place"] * _UNIT_MM
    contact = tissue.contact_mm.to(place).nan_to_num(_NOWHERE_MM, _NOWHERE_MM, _NOWHERE_MM)
    apart = (place.unsqueeze(2) - contact.unsqueeze(1)).square().sum(-1)  # [circuit, source, contact], mm^2
    arriving = _arriving(both, own, apart, trains)
    read = play(both, own, shared, arriving, trains.pulses, STEP_HZ)
    reach = both["reach"].exp().square().unsqueeze(-1)
    lead = own["lead"].exp().unsqueeze(1) / (1 + apart.mT / reach)  # [circuit, contact, source]
    return torch.einsum("rcs,rnst->rnct", tissue.read.to(lead) @ lead, read)


def _arriving(
    both: Mapping[str, Tensor], own: Mapping[str, Tensor], apart: Tensor, trains: Trains
) -> Float[Tensor, "circuit row source"]:
    """What a pulse brings to each source."""
    near = (apart + both["blunt"].exp().square().unsqueeze(-1)).rsqrt()
    field = torch.einsum("rnk,rsk->rns", trains.current_ma, near) * _UNIT_MM
    field = field * (trains.width_us / (trains.width_us + both["chronaxie"].exp())).unsqueeze(-1)
    strength = (field / both["half"].exp().unsqueeze(1)).square()
    cathodic = torch.sigmoid(-_SHARP * field)
    weight = cathodic + (1 - cathodic) * both["anodic"].exp().unsqueeze(-1)
    followed = 1 / (1 + (trains.frequency_hz / both["follow"].exp()).square())
    return strength / (1 + strength) * weight * followed.unsqueeze(-1) * own["gain"].exp().unsqueeze(1)


@dataclass(frozen=True)
class SourceModel:
    """What patients' circuits have in common, and how far they differ.

    Attributes:
        size: Of a circuit.
        shared: Numbers that all have.
        usual: Middles of a patient's own numbers.
        spread: Standard deviations around them, one for each kind.
    """

    size: SourceSize
    shared: Mapping[str, Tensor]
    usual: Mapping[str, Tensor]
    spread: Mapping[str, Tensor]

    def begun(self, tissue: Tissue, source: torch.Generator) -> dict[str, Tensor]:
        """A patient's own numbers before trials are asked: drawn around what is usual, half as far as patients vary."""
        own = first_own(self.size, tissue, source)
        for name in DEVIATIONS:  # in an order of their own, whatever that of a file
            usual = self.usual[name]
            own[name] = usual + 0.5 * self.spread[name] * torch.randn(own[name].shape, generator=source)
        return own

    def oddness(self, own: Mapping[str, Tensor]) -> Float[Tensor, " circuit"]:
        """Half the squared deviations from what is usual, in standard deviations, summed."""
        parts = [
            ((own[name] - usual) / self.spread[name]).square().flatten(1).sum(1) for name, usual in self.usual.items()
        ]
        return torch.stack(parts).sum(0) / 2

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Saveable."""
        parts = {"shared": self.shared, "usual": self.usual, "spread": self.spread}
        return {"size": asdict(self.size)}, {
            f"{part}.{name}": value for part, named in parts.items() for name, value in named.items()
        }

    @classmethod
    def restore(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "SourceModel":
        """See Saveable.

        Raises:
            CheckpointError: If the tensors are not those of circuits of this size.
        """
        size = SourceSize(**config["size"])
        parts = {part: named_under(tensors, f"{part}.") for part in ("shared", "usual", "spread")}
        nowhere = Tissue(torch.zeros(1, 1, 3), torch.zeros(1, 1, 1))
        own = {n: v[0] for n, v in first_own(size, nowhere, generator(0, "restore")).items() if n != "place"}
        shared, one = first_shared(size, generator(0, "restore")), torch.zeros(())
        wanted = {"shared": shared, "usual": own, "spread": dict.fromkeys(own, one)}
        given, needed = ({p: {n: v.shape for n, v in named.items()} for p, named in x.items()} for x in (parts, wanted))
        if given != needed or len(tensors) != sum(map(len, parts.values())):
            raise CheckpointError("the tensors are not those of circuits of this size; take the version that wrote it.")
        return cls(size, **parts)


@dataclass(frozen=True)
class Sources:
    """A patient's circuits. Differentiable in the stimulus, in its dtype.

    Attributes:
        model: What they have in common with other patients'.
        own: Numbers of each, `[circuit, ...]`.
        tissue: One for all circuits.
        unit: Of each channel's readings, in units of its spread at rest.
    """

    model: SourceModel
    own: Mapping[str, Tensor]
    tissue: Tissue
    unit: Float[Tensor, " channel"]

    def effect(self, stimulus: Stimulus, rate_hz: float, samples: int) -> Float[Tensor, "*batch channel time"]:
        """Mean over circuits of what a stimulus does, in units of each channel's spread; see `told`."""
        return self.told(stimulus, rate_hz, samples)[0]

    def told(
        self, stimulus: Stimulus, rate_hz: float, samples: int
    ) -> tuple[Float[Tensor, "*batch channel time"], Float[Tensor, "*batch channel 1"]]:
        """What a stimulus does, mean over circuits, in units of spread, and how far circuits agree on it.

        See `mean_and_agreement`, over the whole window.

        Args:
            stimulus: Any batch.
            rate_hz: Samples per second.
            samples: From the window's start on.
        """
        flat, like = stimulus.reshape(stimulus.batch_shape.numel()), stimulus.amplitude_ma
        shared, own = ({n: v.to(like) for n, v in part.items()} for part in (self.model.shared, self.own))
        steps, circuits = steps_of(samples, rate_hz), len(own["place"])
        tissue = map_tensors(self.tissue, lambda x: x.expand(circuits, -1, -1))
        parts, agreed = [like.new_zeros(0, len(self.unit), steps)], [like.new_zeros(0, len(self.unit), 1)]
        for first in range(0, flat.batch_shape.numel(), _ROWS):
            trains = side_by_side(trains_of(flat[first : first + _ROWS], steps), circuits)
            mean, agreement = mean_and_agreement(effects(shared, own, tissue, trains))
            parts.append(mean)
            agreed.append(agreement)
        read = torch.cat(parts) * self.unit.to(like).unsqueeze(-1)
        read = read @ at_samples(steps, rate_hz, samples, read)
        batch, channels = stimulus.batch_shape, len(self.unit)
        return read.reshape(*batch, channels, samples), torch.cat(agreed).reshape(*batch, channels, 1)


def mean_and_agreement(
    answers: Float[Tensor, "circuit *batch time"],
) -> tuple[Float[Tensor, "*batch time"], Float[Tensor, "*batch 1"]]:
    """What circuits answer in the mean, and how far they agree on it: m / (m + 3 v).

    m is the power of the mean over time, and v that of circuits around it, as if from many: 1 where all say the same,
    as one alone does, and 0 where they say nothing.
    """
    mean, many = answers.mean(0), len(answers)
    doubt = (answers - mean).square().sum(0) / max(1, many - 1)
    size, doubt = (x.mean(-1, keepdim=True) for x in (mean.square(), doubt))
    return mean, size / (size + _DOUBT * doubt).clamp_min(_LEAST)


def side_by_side(trains: Trains, circuits: int) -> Trains:
    """The same trains for each of several circuits."""
    return map_tensors(trains, lambda x: x.expand(circuits, *x.shape))


def at_samples(steps: int, rate_hz: float, samples: int, like: Tensor) -> Float[Tensor, "step time"]:
    """From the ends of steps to the ends of samples, in straight lines from nothing at the window's start."""
    time = torch.arange(1, samples + 1, dtype=like.dtype, device=like.device) * (STEP_HZ / rate_hz)
    end = torch.arange(1, steps + 1, dtype=like.dtype, device=like.device).unsqueeze(-1)
    return (1 - (time.clamp_max(steps) - end).abs()).clamp_min(0)


def load_sources(name_or_folder: str | Path = "ieeg-sources") -> SourceModel:
    """What patients' circuits have in common, by the name of a shipped checkpoint or from a folder.

    Raises:
        CheckpointError: If there is none, or anything in it is not as its card says.
    """
    model = load_checkpoint(checkpoint_folder(name_or_folder), {KIND: SourceModel})
    if not isinstance(model, SourceModel):
        raise CheckpointError(f"{name_or_folder} holds no sources; give the folder of a checkpoint of {KIND}.")
    return model
