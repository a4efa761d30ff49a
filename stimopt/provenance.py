"""Where a result comes from: versions, commit, machine, command, time."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("torch", "botorch", "gpytorch", "numpy", "xarray")


def provenance(**more: object) -> dict[str, str]:
    """What is needed to make a result again, as text; `more` adds lines such as `seed=1`."""
    lines = {
        "stimopt": version("stimopt"),
        "commit": _commit() or "not a git checkout",
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return lines | {key: str(value) for key, value in more.items()}


def write_atomically(path: Path, text: str) -> None:
    """Write a whole text file or nothing; parents are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _commit() -> str:
    folder = Path(__file__).resolve().parent
    try:
        asked = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""
