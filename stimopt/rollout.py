"""Many closed loops of one task side by side, one decision at a time, in torch.

The core under the reinforcement-learning environments, and of use without them: a step is a
pure function, so scores pass gradients to the asked stimulus through many decisions wherever
the system does. Each row has its own state, clock and ledger; what a row's envelope refuses
is not delivered, and the row gets silence instead, which is reported and never hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .ledger import Ledger, empty_ledger
from .response import Response
from .stimulus import Stimulus
from .system import State
from .task import Task
from .tensors import where_rows
from .units import phase_energy_uj_per_kohm


@dataclass(frozen=True)
class Situation:
    """Where each loop stands.

    Attributes:
        state: The system's.
        ledger: What was delivered to each row.
        decisions: How many decisions each row has made since it began.
    """

    state: State
    ledger: Ledger
    decisions: Int[Tensor, "*batch"]


@dataclass(frozen=True)
class Judged:
    """What came of one decision in every loop.

    Attributes:
        response: The window.
        delivered: What the system was given; silence where the envelope refused.
        score: The objective's number.
        refused: Where the stimulus that was asked is outside the envelope.
        margin: Worst margin of the stimulus that was asked; negative where it is refused.
        charge_uc: Charge of all first phases through all contacts.
        energy_uj_per_kohm: Current squared times time, both phases, per kilo-ohm of load.
    """

    response: Response
    delivered: Stimulus
    score: Float[Tensor, "*batch"]
    refused: Bool[Tensor, "*batch"]
    margin: Float[Tensor, "*batch"]
    charge_uc: Float[Tensor, "*batch"]
    energy_uj_per_kohm: Float[Tensor, "*batch"]


def begin(task: Task, count: int, generator: torch.Generator) -> Situation:
    """`count` loops at the start of a session."""
    ledger = empty_ledger(task.space.template, (count,))
    return Situation(task.system.start((count,), generator), ledger, ledger.now_s.long())


def decide(task: Task, situation: Situation, asked: Stimulus, generator: torch.Generator) -> tuple[Judged, Situation]:
    """One decision in every loop: judge what is asked, deliver what is allowed, score what comes back.

    Args:
        task: What it is about.
        situation: Where the loops stand.
        asked: One stimulus a row.
        generator: Draws what the system needs.

    Returns:
        What came of it, and where the loops stand then.

    Raises:
        ShapeError: If there is not one stimulus a row.
    """
    margins = task.envelope.margins(asked, situation.ledger)
    worst = margins.worst
    refused = worst < 0
    delivered = silenced(asked, refused)
    response, state = task.system.respond(situation.state, delivered, generator)
    after = situation.ledger.after(delivered)
    after = after.at(after.now_s + task.period_s)
    pulses, width_us = delivered.pulses.unsqueeze(-1), delivered.pulse_width_us.unsqueeze(-1)
    phase_uj = phase_energy_uj_per_kohm(delivered.amplitude_ma, width_us)
    judged = Judged(
        response=response,
        delivered=delivered,
        score=task.objective(response, delivered),
        refused=refused,
        margin=worst,
        charge_uc=(delivered.phase_charge_uc.abs() * pulses).sum(-1),
        energy_uj_per_kohm=2 * (phase_uj * pulses).sum(-1),
    )
    return judged, Situation(state, after, situation.decisions + 1)


def merged(renew: Bool[Tensor, " row"], fresh: Situation, situation: Situation) -> Situation:
    """Row by row, the fresh situation where `renew` holds and the running one elsewhere."""
    state = {name: where_rows(renew, fresh.state[name], old) for name, old in situation.state.items()}
    ledger = fresh.ledger.where(renew, situation.ledger)
    return Situation(state, ledger, where_rows(renew, fresh.decisions, situation.decisions))


def play(
    task: Task,
    choose: Callable[[Judged | None], Stimulus],
    count: int,
    generator: torch.Generator,
) -> list[Judged]:
    """One episode of `task.horizon` decisions in `count` loops, each chosen by `choose` from the last outcome."""
    situation, outcome, outcomes = begin(task, count, generator), None, []
    for _ in range(task.horizon):
        outcome, situation = decide(task, situation, choose(outcome), generator)
        outcomes.append(outcome)
    return outcomes


def silenced(asked: Stimulus, refused: Bool[Tensor, "*batch"]) -> Stimulus:
    """Silence where refused: no pulses and no current; sensory parts go as they are, they carry none."""
    if not bool(refused.any()):
        return asked
    return replace(
        asked,
        amplitude_ma=torch.where(refused.unsqueeze(-1), torch.zeros_like(asked.amplitude_ma), asked.amplitude_ma),
        pulses=torch.where(refused, torch.zeros_like(asked.pulses), asked.pulses),
    )
