"""What a table recorded of one outcome: its distinct stimuli, their repetitions and their mean outcomes.

Distance between an asked and a recorded stimulus is a share of the space: the largest over
the parameters of |difference| / range (in the logarithm for a log parameter), straight-line
distance over the diagonal for a site, and 1 for a different category.
"""

import math
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import DataError, NotRecordedError
from .space import Parameter
from .stimulus import Stimulus
from .trial_table import TrialTable


class RecordedStimuli:
    """Distinct stimuli of one outcome of a table, those with a valid trial.

    Args:
        table: The trials of one patient and session.
        outcome: Which outcome; trials that are not valid for it are left out.

    Attributes:
        table: The trials that count.
        outcome: Which outcome.
        settings: Parameters of each distinct stimulus, as in `table.values`.
        cell: Which distinct stimulus each trial delivered.
        means: Mean outcome of each distinct stimulus over all its valid repetitions: the truth of a replay.

    Raises:
        DataError: If the table has no such outcome or no valid trial of it.
    """

    def __init__(self, table: TrialTable, outcome: str) -> None:
        self.table, self.outcome = table.select(outcome=outcome), outcome
        self.settings, self.cell, self.repetitions = torch.unique(
            self.table.values, dim=0, return_inverse=True, return_counts=True
        )
        sums = torch.zeros(len(self.settings), dtype=torch.float64).index_add(0, self.cell, self.values)
        self.means: Float[Tensor, " cell"] = sums / self.repetitions

    @property
    def values(self) -> Float[Tensor, " trial"]:
        """The outcome of each trial that counts."""
        return self.table.outcomes[self.outcome]

    @cached_property
    def flat(self) -> bool:
        """Whether every stimulus has the same truth, so that there is nothing to find."""
        return float(self.means.max() - self.means.min()) <= 1e-12 * float(self.means.abs().max())

    def nearest(self, stimulus: Stimulus) -> tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """The nearest recorded stimulus and its distance as a share of the space.

        Raises:
            NotRecordedError: If the stimulus has no parameters of this table.
        """
        gap, cell = self.gaps(stimulus).min(-1)
        return cell, gap

    def gaps(self, stimulus: Stimulus) -> Float[Tensor, "*batch cell"]:
        """Distance of each stimulus to each recorded one, as a share of the space.

        Raises:
            NotRecordedError: If the stimulus has no parameters of this table.
        """
        asked, knobs = self.asked(stimulus), self.table.space.parameters
        return torch.stack([_gap(knob, asked[..., i], self.settings[:, i]) for i, knob in enumerate(knobs)]).amax(0)

    def asked(self, stimulus: Stimulus) -> Float[Tensor, "*batch parameter"]:
        """The parameters of a stimulus, in the table's order (float64, on the CPU as the table).

        Raises:
            NotRecordedError: If it has none of this table.
        """
        names = tuple(knob.name for knob in self.table.space.parameters)
        sensory = stimulus.sensory
        if sensory is None or not set(names) <= set(sensory.feature_names):
            raise NotRecordedError(
                f"this stimulus has no {', '.join(names)}; ask a replay with stimuli of its table's space only."
            )
        columns = [sensory.feature_names.index(name) for name in names]
        return sensory.features[..., columns].detach().to("cpu", torch.float64)

    def require(self, stimulus: Stimulus, tolerance: float) -> Int[Tensor, "*batch"]:
        """The recorded stimulus within `tolerance` of each asked one.

        Raises:
            NotRecordedError: If there is none, naming the first such stimulus and what differs most.
        """
        cell, gap = self.nearest(stimulus)
        far = gap.reshape(-1) > tolerance
        if not bool(far.any()):
            return cell
        row = int(far.nonzero()[0])
        asked = self.asked(stimulus).reshape(-1, self.settings.shape[-1])[row]
        found = self.settings[int(cell.reshape(-1)[row])]
        knobs = self.table.space.parameters
        gaps = [float(_gap(k, asked[i], found[i : i + 1])[..., 0]) for i, k in enumerate(knobs)]
        worst = gaps.index(max(gaps))
        knob = knobs[worst]
        raise NotRecordedError(
            f"the nearest recorded stimulus differs by {max(gaps):.2g} of the space ({knob.name} "
            f"{_shown(knob, float(asked[worst]))} asked, {_shown(knob, float(found[worst]))} recorded); tolerance is "
            f"{tolerance:g}. A replay answers only what was recorded: widen `tolerance`, or use an imagined system and "
            "report it as such."
        )

    def describe(self, cell: int) -> str:
        """A recorded stimulus in words: "stim_frequency 35, stim_amplitude 50"."""
        knobs = self.table.space.parameters
        return ", ".join(f"{k.name} {_shown(k, float(v))}" for k, v in zip(knobs, self.settings[cell], strict=True))

    def share(self, truth: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Truths as shares of what could be had: truth / best for an outcome with a true zero, higher better and a
        best above zero, else (truth - worst) / (best - worst). 1 everywhere where every truth is the same.
        """
        if self.flat:
            return torch.ones_like(truth)
        sign = 1.0 if self.table.better(self.outcome) == "higher" else -1.0
        best, worst = float((sign * self.means).max()), float((sign * self.means).min())
        card = self.table.card.outcomes[self.table.outcome_of(self.outcome)]
        zero = 0.0 if card.true_zero and sign > 0 and best > 0 else worst
        return (sign * truth - zero) / (best - zero)


def _gap(
    knob: Parameter, asked: Float[Tensor, "*batch"], known: Float[Tensor, " cell"]
) -> Float[Tensor, "*batch cell"]:
    if knob.kind == "categorical":
        return (asked.unsqueeze(-1).round() != known).double()
    if knob.kind == "site":
        places = knob.grid_like(known)  # [choice, coordinate], each 0 .. 1
        there = places[asked.round().long().clamp(0, len(places) - 1)].unsqueeze(-2)
        return (there - places[known.long()]).square().sum(-1).sqrt() / math.sqrt(places.shape[-1])
    low, high = (knob.low, knob.high)
    if knob.kind == "log":
        asked, known, low, high = asked.clamp_min(1e-300).log(), known.log(), math.log(low), math.log(high)
    return (asked.unsqueeze(-1) - known).abs() / ((high - low) or 1.0)


def _shown(knob: Parameter, number: float) -> str:
    if knob.kind in ("categorical", "site"):
        index = round(number)
        return repr(knob.choices[index]) if 0 <= index < len(knob.choices) else f"choice {index}"
    return f"{number:g}"


def replay_units(table: TrialTable, outcomes: tuple[str, ...]) -> dict[str, RecordedStimuli]:
    """What is replayed on its own: every patient, channel and outcome that has a valid trial, by name.

    Raises:
        DataError: If there is none.
    """
    units: dict[str, RecordedStimuli] = {}
    for patient in table.patients or (None,):
        own = table if patient is None else table.select(patient=patient)
        for channel in dict.fromkeys(own.groups.get("channel", ())) or (None,):
            part = own if channel is None else own.select(channel=channel)
            for outcome in outcomes:
                if bool(part.valid[outcome].any()):
                    name = "/".join(word for word in (patient, channel, outcome) if word is not None)
                    units[name] = RecordedStimuli(part, outcome)
    if not units:
        raise DataError(f"{table.card.name!r} has no valid trial of {', '.join(outcomes)}; choose another outcome.")
    return units
