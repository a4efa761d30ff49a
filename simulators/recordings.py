"""Recordings of the same windows: a twin's own, and others such as scalp EEG that hear the same regions.

What the amplifiers hold between windows goes into the twin's state: the own one's under the
names that its `Sensing` gives, those of another with that recording's name before them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from stimopt.errors import ConfigError
from stimopt.montage import Montage
from stimopt.response import Response
from stimopt.stimulus import Stimulus
from stimopt.system import State

from .sensing import Sensing

_OWN = 1  # what a recording adds to the salt of a window; 0, 2 and 3 are for other uses of a row's key
_OTHERS = (4, 5, 6, 7)
SALTS = 8


class PairedWindow(NamedTuple):
    """One window as several recordings saw it.

    Attributes:
        response: Of the twin's own channels.
        others: Of the other recordings, by name.
        potential_mv: Of the regions, `[*batch, region, time]`.
        after: The state after the window, with what all amplifiers hold.
    """

    response: Response
    others: dict[str, Response]
    potential_mv: Tensor
    after: State


class _Recording(NamedTuple):
    montage: Montage
    sensing: Sensing
    salt: int
    prefix: str  # of its names in a state


@dataclass(frozen=True)
class Recordings:
    """All that hear one window. Built by `recordings_of`.

    Attributes:
        each: The twin's own first.
        rate_hz: Samples per second.
    """

    each: tuple[_Recording, ...]
    rate_hz: float

    @property
    def montages(self) -> tuple[Montage, ...]:
        """Of each recording."""
        return tuple(one.montage for one in self.each)

    @property
    def stateful(self) -> bool:
        """Whether any amplifier holds something between windows."""
        return any(one.sensing.stateful for one in self.each)

    def heard(
        self,
        state: State,
        potential_mv: Float[Tensor, "*batch region time"],
        delivered: Stimulus,
        keys: Int[Tensor, "*batch"],
        salt: int,
    ) -> tuple[list[Tensor], State]:
        """What each reads of a window, `[*batch, channel, time]` in uV, and what their amplifiers hold after it.

        Args:
            state: Of the twin; an amplifier of which it holds nothing begins with this window.
            potential_mv: Of the regions.
            delivered: What is delivered during the window.
            keys: One per row.
            salt: Of the window.

        Raises:
            ShapeError: If the state is of another amplifier, see `Sensing.continued`.
        """
        signals: list[Tensor] = []
        held: State = {}
        for one in self.each:
            theirs = {name.removeprefix(one.prefix): state[name] for name in state if name.startswith(one.prefix)}
            signal_uv, after = one.sensing.continued(
                theirs, potential_mv, delivered, self.rate_hz, keys=keys, salt=SALTS * salt + one.salt
            )
            signals.append(signal_uv)
            held |= {one.prefix + name: tensor for name, tensor in after.items()}
        return signals, held


def recordings_of(
    own: tuple[Montage, Sensing], others: Mapping[str, tuple[Montage, Sensing]], rate_hz: float
) -> Recordings:
    """The twin's own recording and others by name, each with noise of its own.

    Raises:
        ConfigError: If there are more than four others.
    """
    if len(others) > len(_OTHERS):
        raise ConfigError(f"{len(others)} recordings beside the twin's own; give {len(_OTHERS)} at most.")
    named = zip(_OTHERS, others.items(), strict=False)
    more = (_Recording(montage, sensing, salt, f"{name}/") for salt, (name, (montage, sensing)) in named)
    return Recordings((_Recording(*own, _OWN, ""), *more), rate_hz)
