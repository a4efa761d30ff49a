"""Awake or drowsy: a patient's state that changes between windows and moves the background of every region.

A Markov chain of two states, drawn from each row's own key, so that a row's session does not depend on the batch. How
large the change is and how often it comes is chosen by who makes the patient. Nothing in a response names the state.

State   "drowsy"   [*batch]   1 while drowsy, 0 while awake; a session begins awake
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.tensors import row_noise

_CHANGE = -3  # a salt that no other use of a row's key has


@dataclass(frozen=True)
class Vigilance:
    """How drowsiness comes, goes, and what it does.

    Attributes:
        drowsy_drive: Added to the background drive while drowsy, in units of the circuit's drive, signed.
        drowsing: Probability per window that one who is awake becomes drowsy.
        waking: Probability per window that one who is drowsy wakes up.

    Raises:
        ConfigError: If a probability is not between 0 and 1.
    """

    drowsy_drive: float
    drowsing: float = 0.02
    waking: float = 0.05

    def __post_init__(self) -> None:
        for name in ("drowsing", "waking"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a probability from 0 to 1.")

    def next(self, keys: Int[Tensor, "*batch"], drowsy: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The state of the next window, 0 or 1; no gradient passes a change of state."""
        drawn = torch.special.ndtr(row_noise(keys, (1,), _CHANGE, drowsy)[..., 0])
        stays = (drowsy > 0) & (drawn >= self.waking)
        falls = (drowsy == 0) & (drawn < self.drowsing)
        after: Tensor = (stays | falls).to(drowsy)
        return after
