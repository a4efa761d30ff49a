"""Where a stimulus enters a circuit: what of it reaches which input, with which sign and gain.

Circuits take firing, membrane potential or a number without a unit. An `Entry` says, for one input, how much of the
firing that a stimulus causes arrives there, and how much of the potential itself, cathodic and anodic phases apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stimopt.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """What of a stimulus reaches one input of a circuit, in the input's unit per unit of each, signed.

    A membrane that -1 mV outside depolarises by 0.1 mV has `cathodic_mv=0.1, anodic_mv=-0.1`; over whole balanced
    pulses that averages to nothing, and only a circuit fast or nonlinear enough can answer it. Unequal weights rectify.

    Attributes:
        afferent_hz: Firing of the recruited axons, both polarities as the drive weighs them.
        cathodic_hz: Firing that cathodic phases cause, not weighed.
        anodic_hz: Firing that anodic phases cause, not weighed.
        cathodic_mv: Size of the potential while it is below zero at the region.
        anodic_mv: Size of the potential while it is above zero.
        sensory_hz: Firing that the senses send.
    """

    afferent_hz: float = 0.0
    cathodic_hz: float = 0.0
    anodic_hz: float = 0.0
    cathodic_mv: float = 0.0
    anodic_mv: float = 0.0
    sensory_hz: float = 0.0


def entries_of(given: Mapping[str, float | Entry] | None, inputs: Sequence[str]) -> tuple[Entry, ...]:
    """One entry for each input of a circuit, in their order.

    Args:
        given: By the input's name: an entry, or a number for all firing, of stimulated axons and of the senses. None
            sends all firing to the first input as it is.
        inputs: Names of the circuit's inputs.

    Raises:
        ConfigError: If an input is not the circuit's.
    """
    named: Mapping[str, float | Entry] = {inputs[0]: 1.0} if given is None else given
    unknown = sorted(set(named) - set(inputs))
    if unknown:
        raise ConfigError(f"entry names {', '.join(unknown)}; the inputs of this circuit are {', '.join(inputs)}.")
    weights = [named.get(name, 0.0) for name in inputs]
    return tuple(w if isinstance(w, Entry) else Entry(afferent_hz=w, sensory_hz=w) for w in weights)


def background_weights(entries: Sequence[Entry]) -> list[float]:
    """Where slow changes of the background go: with the firing of stimulated axons, or else to the first input."""
    weights = [entry.afferent_hz for entry in entries]
    return weights if any(weights) else [1.0] + [0.0] * (len(entries) - 1)
