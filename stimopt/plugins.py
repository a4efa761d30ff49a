"""Names on the command line and in experiment files, and what they build.

Names are entry points (`stimopt.systems`, `stimopt.models`, ...), so any installed package
can add its own. An entry point is a class or function. What it is given comes in two
kinds, told apart by parameter name: *parts* that the door already holds (`space`,
`envelope`, `objective`, `forecaster`, `context`, `trials`, `seed`) and *options* from the
file, checked against their type annotations.
"""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from .errors import ConfigError

KINDS = ("systems", "models", "dose_models", "policies", "objectives", "checkpoints")
PARTS = ("space", "envelope", "objective", "forecaster", "context", "trials", "seed")
_WHAT_BRINGS = {"forecaster": "a 'model:' section", "trials": "recorded trials", "context": "a 'model:' section"}


def names(kind: str) -> tuple[str, ...]:
    """All names of a kind, sorted: `names("policies")`."""
    return tuple(sorted(point.name for point in entry_points(group=f"stimopt.{kind}")))


def find(kind: str, name: str) -> Callable[..., Any]:
    """The class or function behind a name.

    Raises:
        ConfigError: If there is none, with the nearest name.
    """
    return _point(kind, name).load()  # type: ignore[no-any-return]


def _point(kind: str, name: str) -> EntryPoint:
    found = list(entry_points(group=f"stimopt.{kind}", name=name))
    if not found:
        known = names(kind)
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}."
        raise ConfigError(f"{kind}: {name!r} is not known; {hint}")
    return found[0]


def check_options(kind: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one entry point, with types checked and defaults left to it.

    Raises:
        ConfigError: If an option is unknown, missing or of a wrong type.
    """
    factory = find(kind, name)
    try:
        checked = _options_model(factory, name)(**options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        known = ", ".join(_option_parameters(factory)) or "none"
        reason = "is not an option" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise ConfigError(f"{kind} {name!r}: {key} {reason}; its options are {known}.") from error
    return {key: getattr(checked, key) for key in checked.model_fields_set}


def build(kind: str, name: str, options: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
    """What an entry point makes of its parts and options.

    Raises:
        ConfigError: If an option is wrong, or a part that it needs is not at hand.
    """
    factory = find(kind, name)
    checked = check_options(kind, name, options)
    given = {}
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.name in PARTS and parameter.name in parts:
            given[parameter.name] = parts[parameter.name]
        elif parameter.name in PARTS and parameter.default is inspect.Parameter.empty:
            bring = _WHAT_BRINGS.get(parameter.name, f"a {parameter.name!r} section")
            raise ConfigError(f"{kind} {name!r} needs a {parameter.name}; add {bring}.")
    return factory(**given, **checked)


def summary(kind: str, name: str) -> str:
    """First line of what an entry point says of itself."""
    return (inspect.getdoc(find(kind, name)) or "").partition("\n")[0]


def option_defaults(kind: str, name: str) -> dict[str, str]:
    """Options of an entry point and their defaults, as text; "required" where there is none."""
    parameters = _option_parameters(find(kind, name))
    empty = inspect.Parameter.empty
    return {key: "required" if p.default is empty else repr(p.default) for key, p in parameters.items()}


def _option_parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(factory).parameters
    return {key: p for key, p in parameters.items() if key not in PARTS}


def _options_model(factory: Callable[..., Any], name: str) -> Any:
    target = factory.__init__ if inspect.isclass(factory) else factory
    hints = get_type_hints(target) or get_type_hints(factory)
    fields = {
        key: (hints.get(key, Any), ... if p.default is inspect.Parameter.empty else p.default)
        for key, p in _option_parameters(factory).items()
    }
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return create_model(name, __config__=config, **fields)  # type: ignore[call-overload]
