"""A search, trial by trial: the policy proposes, the envelope stands at the door, every trial is kept.

`ask` and `tell` serve a person or a device; `run` closes the loop around a simulated
system. Proposals depend on the history and the seed alone, so a killed run that is
resumed proposes what it would have proposed anyway.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from .errors import DataError, RunError, SessionLockedError
from .history import History, TrialStore, empty_history
from .objective import Objective
from .policy import Policy
from .response import Response
from .safety import Envelope
from .stimulus import Stimulus
from .system import State, System
from .tensors import generator

StopRule = Callable[[Response, Stimulus], str]


class Session:
    """One run of one policy under one envelope.

    Args:
        policy: Chooses.
        objective: Judges.
        envelope: Refuses; no stimulus leaves `ask` unless it allows it.
        template: A stimulus of the run's montage and kind, batch shape ().
        seed: Names every random stream of the run.
        store: Where trials are kept; None keeps them in memory only.
        interval_s: Time between the starts of two windows on the simulated clock.
        clock: Seconds now, for a live run (`time.time`); None for the simulated clock.
        stop_rule: Reads each response; a non-empty reason locks the session.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        envelope: Envelope,
        template: Stimulus,
        *,
        seed: int = 0,
        store: TrialStore | None = None,
        interval_s: float = 5.0,
        clock: Callable[[], float] | None = None,
        stop_rule: StopRule | None = None,
    ) -> None:
        self.policy, self.objective, self.envelope, self.template = policy, objective, envelope, template
        self.seed, self.store, self.interval_s = seed, store, interval_s
        self._clock, self._stop_rule = clock, stop_rule
        self._history = store.history() if store else empty_history(template)
        self._lock_reason = store.lock_reason if store else ""
        self.seconds_per_decision: list[float] = []

    @property
    def history(self) -> History:
        """The trials so far, the one in flight, and the time of the next window."""
        return replace(self._history, next_time_s=self._now())

    @property
    def lock_reason(self) -> str:
        """Why the session delivers nothing more; empty while it does."""
        return self._lock_reason

    def ask(self) -> Stimulus:
        """The next stimulus, written down before it is returned. Asked again before `tell`, the same one.

        Raises:
            SessionLockedError: If a stop rule ended the session.
            EnvelopeError: If the envelope refuses the proposal, or refuses now the one already in flight;
                nothing is delivered and nothing is changed.
        """
        if self._lock_reason:
            raise SessionLockedError(
                f"this session is locked: {self._lock_reason}. Start a new run once that is resolved."
            )
        if self._history.in_flight is not None:
            stimulus, time_s = self._history.in_flight
            self.envelope.require(stimulus, replace(self._history, in_flight=None), time_s)
            return stimulus
        before = time.perf_counter()
        history = self.history
        proposal = self.policy.propose(history, generator(self.seed, "propose", len(history)))
        stimulus = proposal.to(torch.zeros((), dtype=torch.float64))  # as it will be read back from disk
        self.seconds_per_decision.append(time.perf_counter() - before)
        self.envelope.require(stimulus, history, history.next_time_s)
        if self.store:
            self.store.ask(len(history), stimulus, history.next_time_s)
        self._history = replace(self._history, in_flight=(stimulus, history.next_time_s))
        return stimulus

    def tell(
        self,
        response: Response | None = None,
        score: float | None = None,
        state: State | None = None,
        note: str = "",
        *,
        without_stop_rule: bool = False,
    ) -> float:
        """Complete the trial in flight with its response, or with a score that was judged elsewhere.

        Args:
            response: What came back, batch shape (); the objective judges it.
            score: Instead of a response: the number itself, higher is better.
            state: The system's state after the trial, to resume a simulated run from.
            note: Anything worth keeping beside the trial.
            without_stop_rule: Says that a score alone is told although the session has a stop rule, which cannot
                read it; somebody else watches for after-discharges.

        Returns:
            The score.

        Raises:
            RunError: If no stimulus is in flight, or both or neither of response and score are given.
            DataError: If the score is not a finite number; the trial stays in flight.
        """
        if self._history.in_flight is None:
            raise RunError("no stimulus is in flight; ask for one before telling what came back.")
        if (response is None) == (score is None):
            raise RunError("tell either a response or a score, not both and not neither.")
        if score is not None and self._stop_rule and not without_stop_rule:
            raise RunError(
                "this session has a stop rule, which reads the response; tell the response, or say that you watched "
                "the signal yourself (--without-stop-rule)."
            )
        stimulus, time_s = self._history.in_flight
        value = float(self.objective(response, stimulus)) if response is not None else float(score or 0.0)
        if not math.isfinite(value):
            raise DataError(f"the score is {value}, not a finite number; check the response, then tell it again.")
        reason = self._stop_rule(response, stimulus) if self._stop_rule and response is not None else ""
        if self.store:
            self.store.tell(len(self._history), value, response, state, note, lock=reason)
        self._history = self._history.with_trial(stimulus, value, time_s, response)
        self._lock_reason = self._lock_reason or reason
        return value

    def run(self, system: System, trials: int, progress: Callable[[int], None] | None = None) -> History:
        """Close the loop until `trials` trials are told in all, or a stop rule locks the session.

        A trial left in flight by a killed process is dropped and proposed again: a simulated system cannot
        have felt it.

        Args:
            system: Answers.
            trials: How many trials the run has when it ends, those before a resume included.
            progress: Called with the number told after each trial.

        Raises:
            EnvelopeError: If the envelope refuses a proposal; the trials so far are kept.
        """
        self._drop_in_flight()
        state = self.store.state() if self.store and len(self._history) else None
        if state is None:
            state = system.start((), generator(self.seed, "start"))
        while len(self._history) < trials and not self._lock_reason:
            number = len(self._history)
            stimulus = self.ask()
            with torch.no_grad():
                response, state = system.respond(state, stimulus, generator(self.seed, "respond", number))
            self.tell(response, state=state)
            if progress:
                progress(number + 1)
        return self.history

    def recommend(self) -> Stimulus:
        """The stimulus that the policy would keep if the search ended now."""
        history = self.history
        return self.policy.recommend(history, generator(self.seed, "recommend", len(history)))

    def _drop_in_flight(self) -> None:
        if self.store:
            self.store.forget_asked()
        self._history = replace(self._history, in_flight=None)

    def _now(self) -> float:
        return self._clock() if self._clock else len(self._history) * self.interval_s
