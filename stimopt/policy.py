"""CONTRACT Policy: a pure function of the past that chooses the next stimulus.

A policy keeps no memory: the history and the generator decide. So a run resumes after a
crash with the stimuli that it would have chosen anyway, and a replay judges a policy as
it would have acted.
"""

from abc import ABC, abstractmethod

import torch

from .history import History
from .stimulus import Stimulus


class Policy(ABC):
    """Chooses stimuli inside its space and its envelope."""

    @abstractmethod
    def propose(self, history: History, generator: torch.Generator) -> Stimulus:
        """The next stimulus, batch shape (); the session's envelope stands behind it and refuses the forbidden."""

    def recommend(self, history: History, generator: torch.Generator) -> Stimulus:
        """The stimulus to keep when the search ends now: the best mean score among those tried.

        A policy with a model overrides this with the best posterior mean.

        Raises:
            RunError: If nothing has been tried.
        """
        return history.best_tried()
