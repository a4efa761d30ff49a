"""What is left out of a dose table at once, and what may be learnt from meanwhile.

Blocks of a patient: the others teach, earlier and later ones, where they share what the card says must be the same
(the stimulated pair). The chosen channel is the one whose outcome rises most steadily with the dose (Spearman) in the
blocks learnt from, chosen anew for each block; the tested block has no say in it.
Settings: each in turn, then each repetition of all settings in the order recorded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from .dose_trials import DoseTrials, setting_means
from .errors import DataError
from .trial_card import DoseCard
from .trial_table import TrialTable

LEAST_TRIALS = 50  # of a channel in the blocks learnt from; of fewer, a correlation with the dose is mostly chance


@dataclass(frozen=True)
class DosePart:
    """Trials held out at once, and those that a model may learn from.

    Attributes:
        past: To learn from.
        settings: Of the held-out trials.
        outcome: Theirs.
        noise: Squared distance of each outcome from its setting's mean among tested trials, n / (n - 1) times.
        rows: Where sums go: "split", "outcome", "channel", and "unit" of each held-out trial.
    """

    past: DoseTrials
    settings: Float[Tensor, "trial parameter"]
    outcome: Float[Tensor, " trial"]
    noise: Float[Tensor, " trial"]
    rows: Mapping[str, str | Sequence[str]]


def block_parts(own: TrialTable, dose: DoseCard, patient: str) -> Iterator[DosePart]:
    """Each block of a patient and channel that others with the same pair can teach about."""
    for block in dict.fromkeys(own.groups["block"]):
        held, past = _held_and_past(own, dose, block)
        for name, shown in outcomes_of(dose):
            labels = labels_of(own, name)
            chosen = _chosen_channel(own, dose, labels, past)
            for label in labels:
                tested, learnt = held & own.valid[label], past & own.valid[label]
                if int(tested.sum()) < 2 or int(learnt.sum()) < LEAST_TRIALS:
                    continue
                part = _part(own, dose, label, tested, learnt, "unseen blocks", [patient] * int(tested.sum()))
                if len(labels) == 1:
                    yield replace(part, rows={**part.rows, "outcome": shown})
                    continue
                yield replace(part, rows={**part.rows, "outcome": f"{shown}, all channels"})
                if label == chosen:
                    yield replace(part, rows={**part.rows, "outcome": f"{shown}, chosen channel", "channel": ""})


def setting_parts(own: TrialTable, dose: DoseCard, label: str, shown: str) -> Iterator[DosePart]:
    """Each setting, then each repetition of all settings in the order recorded."""
    _, _, counts, group = setting_means(own.values, own.outcomes[label])
    if len(counts) < 3 or int(counts.min()) < 2:
        raise DataError(
            f"{own.card.name!r} has {len(counts)} settings of {int(counts.min())} trials or more for {label!r}; "
            "leaving a setting out takes three settings of two trials at least."
        )
    if len(own.outcomes[label].unique()) == 1:
        raise DataError(f"{label!r} of {own.card.name!r} is the same in all trials; there is nothing to forecast.")
    units = [own.space.describe(unit) for unit in own.space.locate(own.stimuli)]
    words = [", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                       for key, value in one.items()) for one in units]  # fmt: skip
    noise = _noise(own.values, own.outcomes[label])
    for split, fold in (("unseen settings", group), ("unseen trials", _repetition(own, group))):
        for index in range(int(fold.max()) + 1):
            held = fold == index
            part = _part(own, dose, label, held, ~held, split, [words[int(i)] for i in held.nonzero()])
            yield replace(part, rows={**part.rows, "outcome": shown}, noise=noise[held])


def _part(
    own: TrialTable, dose: DoseCard, label: str, held: Bool[Tensor, " trial"], past: Bool[Tensor, " trial"],
    split: str, units: list[str],
) -> DosePart:  # fmt: skip
    outcome, column = own.outcomes[label], list(own.card.parameters).index(dose.parameter)
    rows = {"split": split, "channel": label, "unit": units}
    trials = DoseTrials(own.space, own.values[past], outcome[past], column)
    return DosePart(trials, own.values[held], outcome[held], _noise(own.values[held], outcome[held]), rows)


def _noise(settings: Float[Tensor, "trial parameter"], outcome: Float[Tensor, " trial"]) -> Float[Tensor, " trial"]:
    _, means, counts, group = setting_means(settings, outcome)
    return (outcome - means[group]).square() * (counts / (counts - 1).clamp_min(1))[group]


def _held_and_past(
    own: TrialTable, dose: DoseCard, block: str
) -> tuple[Bool[Tensor, " trial"], Bool[Tensor, " trial"]]:
    """Trials of a block, and of the others that agree with its first trial in what must be the same."""
    held = torch.tensor([name == block for name in own.groups["block"]])
    first = int(held.nonzero()[0])
    alike = torch.ones_like(held)
    for name in dose.same:
        alike &= own.context[name] == own.context[name][first]
    return held & alike, ~held & alike


def _chosen_channel(own: TrialTable, dose: DoseCard, labels: Sequence[str], past: Bool[Tensor, " trial"]) -> str | None:
    """The channel whose outcome rises most steadily with the dose in the past; None where none has enough trials."""
    doses = own.values[:, list(own.card.parameters).index(dose.parameter)]
    rated: dict[str, float] = {}
    for label in labels:
        learnt = past & own.valid[label]
        x, y = doses[learnt], own.outcomes[label][learnt]
        if len(x) >= LEAST_TRIALS and len(x.unique()) > 1 and len(y.unique()) > 1:
            rated[label] = float(spearmanr(x.numpy(), y.numpy()).statistic)
    return max(rated, key=lambda label: rated[label]) if rated else None


def _repetition(own: TrialTable, group: Int[Tensor, " trial"]) -> Int[Tensor, " trial"]:
    """How many trials of the same setting came before each."""
    earlier = (group.unsqueeze(0) == group.unsqueeze(1)) & (own.order.unsqueeze(0) < own.order.unsqueeze(1))
    return earlier.sum(-1)


def outcomes_of(dose: DoseCard) -> list[tuple[str, str]]:
    """What is judged: each key of the card, and how it is shown."""
    return [(name, name) for name in dose.outcomes] + [(name, f"{name} (control)") for name in dose.controls]


def labels_of(table: TrialTable, name: str) -> list[str]:
    """The table's outcomes behind a key of its card: `log10_pp_1`, `log10_pp_2` for `log10_pp`."""
    return [label for label in table.outcomes if table.outcome_of(label) == name]
