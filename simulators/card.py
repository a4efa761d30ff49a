"""What a simulation was: a fingerprint of all its parameters, for the card of a twin.

Two twins with one fingerprint have the same parameters by name and to nine digits. Later digits are left out, because
machines round distances and exponentials differently, and the same patient must be the same everywhere.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from stimopt.errors import ConfigError


def parameter_hash(noun: Any) -> str:
    """SHA-256 over names and values of all fields of a dataclass, nested ones included, as 64 hexadecimal digits.

    A class or function counts by its name; what a function has closed over is not seen.

    Raises:
        ConfigError: If a field holds something whose value cannot be written down.
    """
    digest = hashlib.sha256()
    for line in _lines(type(noun).__name__, noun):
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _lines(name: str, value: Any) -> Iterator[str]:
    """One line for each number or word below `value`, with the path that leads to it."""
    if is_dataclass(value) and not isinstance(value, type):
        yield f"{name}: {type(value).__name__}"
        for field in fields(value):
            yield from _lines(f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield from _lines(f"{name}[{key}]", value[key])
    elif isinstance(value, tuple | list):
        for place, item in enumerate(value):
            yield from _lines(f"{name}[{place}]", item)
    else:
        yield f"{name} = {_written(name, value)}"


def _written(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} " + " ".join(map(_digits, value.detach().double().flatten().tolist()))
    if isinstance(value, bool | str) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return _digits(float(value))
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    raise ConfigError(f"{name} is a {type(value).__name__}, which has no fingerprint; keep numbers, words or tensors.")


def _digits(number: float) -> str:
    return f"{number + 0.0:.9g}"  # + 0.0 makes minus zero zero
