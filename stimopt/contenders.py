"""Contenders: ways to make a forecaster of a patient's few past trials, by names on the command line."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from . import plugins
from .errors import ConfigError
from .forecaster import Context, Forecaster, Trials
from .space import StimulationSpace

BASELINES = (
    "no-effect", "persistence", "mean-evoked", "nearest", "impulse-regression", "arx", "state-space",
    "gaussian-process", "basis-functions", "delay-embedding", "residual-mlp", "recurrent", "ieeg-network",
)  # fmt: skip
"""What every model has to beat, the plainest first; those that are not installed are left out."""
BASELINE_TRIALS = (5, 20)


@dataclass(frozen=True)
class Contender:
    """A way to make a forecaster, and how many past trials it is given.

    Attributes:
        model: Name of an entry point of `stimopt.models`.
        options: Its options.
        trials: Numbers of past trials; each makes a forecaster.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[int, ...] = (5, 20)

    @property
    def label(self) -> str:
        """Name in tables: the model, and its options where there are any."""
        return label_of(self.model, self.options)


def contender(text: str, trials: Sequence[int]) -> Contender:
    """A contender as written on the command line: `arx`, or `ieeg-foundation {adapt: context}`.

    Raises:
        ConfigError: If the model or an option is unknown, or the options are no YAML mapping.
    """
    return Contender(*named("models", text), tuple(trials))


def named(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """A name and its checked options as written on the command line, of a kind of entry points.

    Raises:
        ConfigError: If the name or an option is unknown, or the options are no YAML mapping.
    """
    name, _, written = text.strip().partition(" ")
    try:
        options = yaml.safe_load(written) if written.strip() else {}
    except yaml.YAMLError as error:
        raise ConfigError(f"options {written!r} of {name!r} are no YAML; write '{name} {{option: value}}'.") from error
    if not isinstance(options, dict):
        raise ConfigError(f"options {written!r} of {name!r} are no mapping; write '{name} {{option: value}}'.")
    return name, plugins.check_options(kind, name, options)


def label_of(name: str, options: Mapping[str, Any]) -> str:
    """Name in tables: the model, and its options where there are any."""
    words = ", ".join(f"{key}: {value}" for key, value in options.items())
    return f"{name} {{{words}}}" if words else name


def contenders(
    models: Sequence[str], trials: Sequence[int], against: Sequence[str] | None = None
) -> tuple[Contender, ...]:
    """Models to judge, then what they are compared with on 5 and 20 past trials.

    Args:
        models: As `contender` reads them.
        trials: Numbers of past trials of each.
        against: Baselines, read alike; None takes all of `BASELINES` that are installed.

    Raises:
        ConfigError: As `contender`.
    """
    known = plugins.names("models")
    others = [name for name in BASELINES if name in known] if against is None else against
    judged = [contender(text, trials) for text in models]
    beside = [contender(text, BASELINE_TRIALS) for text in others]
    labels = {one.label for one in judged}
    return (*judged, *(one for one in beside if one.label not in labels))


def fitted(one: Contender, trials: Trials, rest: Context, space: StimulationSpace, seed: int) -> Forecaster:
    """The forecaster that a contender makes of past trials, and of rest where it asks for it.

    Raises:
        StimoptError: If it cannot be made from so few.
    """
    asks = "rest" in inspect.signature(plugins.find("models", one.model)).parameters
    options = {**one.options, "rest": rest} if asks else one.options
    forecaster: Forecaster = plugins.build(
        "models", one.model, options, {"trials": trials, "space": space, "seed": seed}
    )
    return forecaster
