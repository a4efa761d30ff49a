"""What commands share: options of one meaning, and how results and progress reach a person or a script."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

Out = Annotated[Path, typer.Option("--out", help="Folder to create.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
Seed = Annotated[Optional[int], typer.Option("--seed", min=0, help="Names every random stream.")]  # noqa: UP045
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a stopped run left off.")]
Names = Optional[list[str]]  # noqa: UP045  # Typer reads it at run time

_SHOWN = 8  # numbers of a list that a person reads; scripts ask for --json


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result: one JSON object, or lines for a person."""
    if as_json:
        print(json.dumps(result, allow_nan=True))
        return
    for key, value in result.items():
        if isinstance(value, dict):
            print(f"{key}:")
            width = max((len(str(name)) for name in value), default=0)
            for name, item in value.items():
                print(f"  {name!s:<{width}}  {_plain(item)}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            print(f"{key}:")
            for row in value:
                print("  " + ", ".join(f"{name} {_plain(item)}" for name, item in row.items()))
        else:
            print(f"{key}: {_plain(value)}")


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and len(value) > _SHOWN:
        return f"{_plain(value[:3])} ... {_plain(value[-1])} ({len(value)} values; --json prints all)"
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return str(value)


def say(text: str) -> None:
    """Tell a person something on standard error, since standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def counted(word: str) -> Callable[[int], None]:
    """Tells a person how many there are so far, over the same line."""
    return lambda number: print(f"\r{word} {number}", end="", file=sys.stderr, flush=True)


def of_all(done: int, total: int) -> None:
    """Tell a person how much is done."""
    print(f"\r{done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)
