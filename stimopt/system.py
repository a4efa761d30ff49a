"""CONTRACT System: anything that answers a stimulus with a response.

A twin, a fitted forecaster played forward, a replay of recorded trials and a patient at
a device all fit it. A system keeps nothing: state goes in and comes out, so gradients
pass through many windows and a run resumes from a state on disk.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from .montage import Montage
from .response import Response
from .stimulus import Stimulus

State = dict[str, Tensor]  # every tensor begins with *batch; plain, so that it can be stored and sliced


class System(ABC):
    """Answers stimuli. Rows of a batch never see each other; the same state, stimulus and seed answer the same.

    Attributes:
        montage: The contacts that stimuli refer to and the channels that responses carry.
        window_s: Length of one window in seconds; 0 where a trial has no duration.
    """

    montage: Montage
    window_s: float

    @abstractmethod
    def start(self, batch_shape: Sequence[int], generator: torch.Generator) -> State:
        """A state at the beginning of a session, `batch_shape` of them."""

    @abstractmethod
    def respond(self, state: State, stimulus: Stimulus, generator: torch.Generator) -> tuple[Response, State]:
        """One window: the response to `stimulus`, and the state after it.

        Raises:
            ShapeError: If the batch of `stimulus` is not that of `state`.
        """

    def card(self) -> dict[str, str | float]:
        """What this system is, to be kept beside its results; nothing unless it says more."""
        return {}


def sliced(state: State, index: int | slice | Tensor) -> State:
    """Pick rows along the first batch axis of a state."""
    return {name: tensor[index] for name, tensor in state.items()}
