"""What a closed loop is about: a system, what counts as good, what may be asked, what is never allowed.

A task is data: the same task is searched by a session, learnt by an agent, judged by a study.
The decision period is the system's window and what lies between two of them; it has nothing to do with the
integration step of a twin, and delays of sensing and delivery belong to the twin.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .errors import ConfigError
from .objective import Objective
from .response import Response
from .safety import Envelope
from .space import StimulationSpace
from .stimulus import Stimulus
from .system import System


@dataclass(frozen=True)
class Task:
    """A system, its objective, its space and its envelope.

    Attributes:
        system: Answers.
        objective: Judges each window; higher is better.
        space: What can be asked.
        envelope: What is delivered of it; nothing outside is.
        horizon: Decisions in one episode.
        interval_s: Time from the start of one window to the next; None for windows without a gap.
        stop_rule: Reads each response; a non-empty reason ends the episode for good. None for none.

    Raises:
        ConfigError: If the horizon is below 1, or windows would overlap.
    """

    system: System
    objective: Objective
    space: StimulationSpace
    envelope: Envelope
    horizon: int = 100
    interval_s: float | None = None
    stop_rule: Callable[[Response, Stimulus], str] | None = None

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ConfigError(f"horizon is {self.horizon}; an episode has 1 decision or more.")
        if self.interval_s is not None and self.interval_s < self.system.window_s:
            raise ConfigError(
                f"interval_s is {self.interval_s} s and a window lasts {self.system.window_s} s; windows may not "
                "overlap, so give an interval at least as long."
            )

    @property
    def period_s(self) -> float:
        """Seconds from one decision to the next."""
        return self.system.window_s if self.interval_s is None else self.interval_s
