"""What can be named: entry points, datasets, safety profiles."""

from . import plugins
from .datasets import dataset_names, find_dataset
from .errors import ConfigError
from .safety_profiles import PROFILES


def listing(kind: str) -> dict[str, str]:
    """Names of a kind and a line about each.

    Raises:
        ConfigError: If the kind is unknown.
    """
    if kind == "datasets":
        return {name: find_dataset(name).title for name in dataset_names()}
    if kind == "profiles":
        return {name: envelope.description for name, envelope in PROFILES.items()}
    if kind not in plugins.KINDS:
        raise ConfigError(
            f"{kind!r} cannot be listed; write one of {', '.join((*plugins.KINDS, 'datasets', 'profiles'))}."
        )
    return {name: _line(kind, name) for name in plugins.names(kind)}


def _line(kind: str, name: str) -> str:
    options = ", ".join(f"{key}={value}" for key, value in plugins.option_defaults(kind, name).items())
    return plugins.summary(kind, name) + (f" [{options}]" if options and kind != "checkpoints" else "")
