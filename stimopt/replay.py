"""A search judged on recorded trials alone: the archive answers, and nothing else does.

`ReplaySystem` gives each repetition of a recorded stimulus once, in an order drawn when the
session starts, so that two policies of one seed meet the same trials. `ReplayEnvelope`
allows what is recorded and left. `replay_policy` runs a policy many times and reads

exploitation[n]  the truth of the stimulus chosen at trial n
exploration[n]   the truth of the stimulus it would recommend after trial n

as shares of the best recorded stimulus. Truth is the mean over all valid repetitions. The
best of noisy means is optimistic, for every policy alike.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import DataError, NotRecordedError, ShapeError
from .history import empty_history
from .montage import NO_MONTAGE
from .objective import Outcome
from .policy import Policy
from .recorded import RecordedStimuli, replay_units
from .replay_curves import ReplayCurves
from .replay_envelope import ReplayEnvelope, replay_envelope
from .response import Response
from .space import StimulationSpace
from .stimulus import Stimulus
from .system import State, System
from .tensors import generator as named_generator
from .tensors import one_thread, row_keys, row_noise, stream_seed
from .trial_table import TrialTable

TOLERANCE = 0.05  # share of the space; recorded values of listed parameters are met exactly
PolicyFactory = Callable[[StimulationSpace, Any, int], Policy]  # space, envelope, seed of the run

_INTERVAL_S = 5.0  # between trials; a table of scores keeps no clock, and a policy only needs time to pass


class ReplaySystem(System):
    """Answers with recorded trials, each once. Passes no gradient; responses carry the outcome and no signal.

    Args:
        table: Recorded trials, of one patient and session.
        outcome: Which outcome to answer with.
        tolerance: How far, as a share of the space, an asked stimulus may lie from the recorded one that answers.
        draw: "shuffled" gives the repetitions of a stimulus in an order drawn by `start`'s generator, "recorded" in
            the order in which they were recorded.
        used_up: What happens when a stimulus has no repetition left: "refuse", or "redraw" from all of them anew.
            None does what the card says.

    Raises:
        DataError: If the table has no valid trial of that outcome.
    """

    def __init__(
        self,
        table: TrialTable,
        outcome: str,
        *,
        tolerance: float = TOLERANCE,
        draw: Literal["shuffled", "recorded"] = "shuffled",
        used_up: Literal["refuse", "redraw"] | None = None,
    ) -> None:
        self.montage, self.window_s = NO_MONTAGE, 0.0
        self.recorded, self.outcome, self.tolerance = RecordedStimuli(table, outcome), outcome, tolerance
        self.draw, self.used_up = draw, used_up or table.card.used_up

    @property
    def space(self) -> StimulationSpace:
        """The space of the recorded stimuli."""
        return self.recorded.table.space

    @property
    def envelope(self) -> ReplayEnvelope:
        """Allows what is recorded and, where used-up stimuli are refused, left."""
        return replay_envelope(self.recorded, self.tolerance, self.used_up == "redraw")

    def truth(self, stimulus: Stimulus) -> Float[Tensor, "*batch"]:
        """Mean outcome over all valid repetitions of the recorded stimulus (float64).

        Raises:
            NotRecordedError: If nobody recorded it.
        """
        return self.recorded.means[self.recorded.require(stimulus, self.tolerance)]

    def start(self, batch_shape: Sequence[int], generator: torch.Generator) -> State:
        """See System. Nothing is used yet; `rank` is the order in which repetitions will be given."""
        count = len(self.recorded.values)
        if self.draw == "recorded":
            rank = self.recorded.table.order.expand(*batch_shape, count).clone()
        else:
            noise = row_noise(row_keys(batch_shape, generator), (count,), 0, torch.zeros(1, dtype=torch.float64))
            rank = noise.argsort(-1).argsort(-1)
        return {"used": torch.zeros(*batch_shape, count, dtype=torch.bool), "rank": rank}

    def respond(self, state: State, stimulus: Stimulus, generator: torch.Generator) -> tuple[Response, State]:
        """See System. The generator is not used: `start` has drawn everything.

        Raises:
            NotRecordedError: If nobody recorded a stimulus, or its repetitions are used up.
        """
        used, rank = state["used"], state["rank"]
        if used.shape[:-1] != stimulus.batch_shape:
            raise ShapeError(
                f"the state has the batch {list(used.shape[:-1])}, the stimulus {list(stimulus.batch_shape)}."
            )
        cell = self.recorded.require(stimulus, self.tolerance)
        own = self.recorded.cell == cell.unsqueeze(-1)  # [*batch, trial]
        spent = ~(own & ~used).any(-1)
        if bool(spent.any()):
            used = self._renewed(used, own, spent, cell)
        trial = torch.where(own & ~used, rank, rank.shape[-1]).argmin(-1)
        used = used.scatter(-1, trial.unsqueeze(-1), True)
        value = self.recorded.values[trial].to(stimulus.amplitude_ma)
        signal = value.new_zeros(*stimulus.batch_shape, 0, 0)
        return Response(NO_MONTAGE, signal, 1.0, outcomes={self.outcome: value}), {"used": used, "rank": rank}

    def _renewed(self, used: Tensor, own: Tensor, spent: Tensor, cell: Tensor) -> Tensor:
        if self.used_up == "redraw":
            return used & ~(own & spent.unsqueeze(-1))
        first = int(cell.reshape(-1)[int(spent.reshape(-1).nonzero()[0])])
        raise NotRecordedError(
            f"all {int(self.recorded.repetitions[first])} repetitions of {self.recorded.describe(first)} are used up; "
            "ask for another stimulus, or set used_up to 'redraw' and say so in the report."
        )


@dataclass(frozen=True)
class _Plan:
    """Everything a run needs but its number; sent to worker processes."""

    factory: PolicyFactory
    unit: str
    table: TrialTable
    outcome: str
    trials: int
    seed: int
    tolerance: float


def replay_policy(
    policy_factory: PolicyFactory,
    table: TrialTable,
    outcome: str,
    trials: int,
    repeats: int,
    seed: int,
    *,
    tolerance: float = TOLERANCE,
    workers: int = 1,
    name: str = "policy",
    progress: Callable[[int, int], None] | None = None,
) -> ReplayCurves:
    """Run a policy `repeats` times on every patient, channel and outcome label of a table.

    The trials that repeat r of a unit draws depend on `seed`, the unit and r alone, so policies are compared
    pair by pair. Results do not depend on `workers`.

    Args:
        policy_factory: Makes the policy from a space, an envelope and the seed of the run; importable by name
            where `workers` > 1.
        table: Recorded trials.
        outcome: An outcome, or a key of the card that stands for several labels.
        trials: Length of each run.
        repeats: Runs on each unit.
        seed: Names every random stream.
        tolerance: As in ReplaySystem.
        workers: Processes.
        name: Of the policy, in the curves.
        progress: Called with the runs done and all runs.

    Raises:
        DataError: If the outcome is unknown, or a unit has fewer recorded trials than `trials`.
        EnvelopeError: If the policy finds nothing that is recorded and left.
        NotRecordedError: If it proposes or recommends what nobody recorded.
    """
    units = replay_units(table, outcomes_named(table, outcome))
    _require_budget(units, table, trials)
    plans = [
        _Plan(policy_factory, unit, replace(some.table, context={}), some.outcome, trials, seed, tolerance)
        for unit, some in units.items()
    ]
    jobs = [(plan, repeat) for plan in plans for repeat in range(repeats)]
    cells = _all_runs(jobs, workers, progress)  # [unit * repeat, 2, trial]
    shares = []
    for some, runs in zip(units.values(), cells.split(repeats), strict=True):
        shares.append(some.share(some.means[runs]))
    curves = torch.stack(shares)  # [unit, repeat, 2, trial]
    flat = tuple(unit for unit, some in units.items() if some.flat)
    return ReplayCurves(name, outcome, tuple(units), flat, curves[:, :, 0], curves[:, :, 1])


def outcomes_named(table: TrialTable, outcome: str) -> tuple[str, ...]:
    """The outcomes that a name stands for: itself, or all labels of a key of the card.

    Raises:
        DataError: If there is none.
    """
    if outcome in table.outcomes:
        return (outcome,)
    found = tuple(name for name in table.outcomes if table.outcome_of(name) == outcome)
    if not found:
        table.outcome_of(outcome)  # raises, naming what there is
    return found


def _require_budget(units: dict[str, RecordedStimuli], table: TrialTable, trials: int) -> None:
    fewest = min(units, key=lambda unit: len(units[unit].values))
    recorded = len(units[fewest].values)
    if trials > recorded and table.card.used_up == "refuse":
        raise DataError(
            f"{trials} trials were asked for, but {fewest} has {recorded} recorded; each is given once. Ask for "
            f"{recorded} or fewer, or write 'used_up: redraw' in the card."
        )


def _all_runs(jobs: Sequence[tuple[_Plan, int]], workers: int, progress: Callable[[int, int], None] | None) -> Tensor:
    results = []
    if workers == 1:
        for plan, repeat in jobs:
            results.append(_run_alone(plan, repeat))
            if progress:
                progress(len(results), len(jobs))
        return torch.stack(results)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        # lists, not tensors: tensors would travel through shared memory, which containers keep small
        for cells in pool.map(_run_elsewhere, *zip(*jobs, strict=True)):
            results.append(torch.tensor(cells))
            if progress:
                progress(len(results), len(jobs))
    return torch.stack(results)


def _run_elsewhere(plan: _Plan, repeat: int) -> list[list[int]]:
    cells: list[list[int]] = _run_alone(plan, repeat).tolist()
    return cells


def _run_alone(plan: _Plan, repeat: int) -> Tensor:
    """One run on one thread, because sums over several threads round differently."""
    with one_thread():
        return _run(plan, repeat)


def _run(plan: _Plan, repeat: int) -> Tensor:
    """Recorded stimuli recommended after each trial and chosen at it, `[2, trial]`."""
    system = ReplaySystem(plan.table, plan.outcome, tolerance=plan.tolerance)
    objective = Outcome(plan.outcome, "higher" if plan.table.better(plan.outcome) == "higher" else "lower")
    path = ("replay", plan.unit, repeat)
    policy = plan.factory(system.space, system.envelope, stream_seed(plan.seed, *path, "policy"))
    state = system.start((), named_generator(plan.seed, *path, "start"))
    history, chosen, recommended = empty_history(system.space.template), [], []
    for number in range(plan.trials):
        history = replace(history, next_time_s=number * _INTERVAL_S)
        stimulus = policy.propose(history, named_generator(plan.seed, *path, "propose", number))
        system.envelope.require(stimulus, history, history.next_time_s)
        response, state = system.respond(state, stimulus, named_generator(plan.seed, *path, "respond", number))
        score = float(objective(response, stimulus))
        history = history.with_trial(stimulus, score, number * _INTERVAL_S, response)
        best = policy.recommend(history, named_generator(plan.seed, *path, "recommend", number))
        chosen.append(system.recorded.require(stimulus, plan.tolerance))
        recommended.append(system.recorded.require(best, plan.tolerance))
    return torch.stack([torch.stack(recommended), torch.stack(chosen)])
