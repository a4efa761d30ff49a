"""The house stands: imports point down, wings do not know each other, nobody imports a wing by its bare name."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WINGS = ("simulators", "models", "policies")
FLOORS = {
    "errors": 1, "units": 1,
    "tensors": 2, "montage": 2, "netcdf": 2, "statistics": 2, "provenance": 2,
    "stimulus": 3, "response": 3,
    "safety_limits": 4, "safety_readings": 4, "safety_projection": 4, "safety_refusal": 4,
    "waveform": 4, "safety": 4, "safety_profiles": 4, "stop_rule": 4, "space": 4, "system": 4, "forecaster": 4,
    "ledger": 4, "features": 4, "recording": 5, "trial_card": 4, "trial_columns": 4, "trial_table": 4,
    "objective": 5, "history": 5, "checkpoint": 5,
    "dose_trials": 5, "recorded": 5, "replay_envelope": 5, "replay_curves": 5, "skill": 5, "picture": 5,
    "task": 6, "policy": 6, "replay": 6, "figures": 6, "maps": 6, "report": 6, "evidence": 6, "published": 6,
    "rollout": 7, "session": 7, "logged": 7, "offline": 7, "landscape": 7, "testing": 7,
    "environment": 8, "environments": 8, "environment_sb3": 8,
    "listing": 8, "replaying": 8, "plugins": 8, "config": 8, "assembly": 8, "datasets": 8, "bids": 8, "runs": 8,
    "study": 8, "best_constant": 8, "virtual_corpus": 8,
    "protocol_splits": 5, "protocol_trials": 6, "protocol_readings": 6, "gradient_fidelity": 7, "protocol_table": 6,
    "protocol_bars": 7, "contenders": 8, "protocol": 8, "recorded_protocol": 8, "pretraining": 8, "cli_models": 9,
    "dose_splits": 6, "dose_table": 6, "dose_protocol": 8,
    "cli_output": 8, "demo": 8, "pages": 8, "fitting": 8, "cli": 9, "__init__": 0, "__main__": 9,
}  # fmt: skip
BOTORCH_ALLOWED = {"models/score.py", "policies/improvement.py"}


def imports_of(path: Path) -> list[str]:
    """Absolute dotted names that a file imports, relative ones resolved, those inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = "stimopt" if path.parent.name == "stimopt" else f"stimopt.{path.parent.name}"
            base = home if node.level == 1 else "stimopt"
            found += [f"{base}.{node.module}"] if node.module else [f"{base}.{alias.name}" for alias in node.names]
    return found


def broken_rules(root: Path) -> list[str]:
    """Every import under `root` that runs up, between wings or to a bare wing, and BoTorch out of place."""
    broken = []
    for folder in ("stimopt", *WINGS):
        for path in sorted((root / folder).glob("*.py")):
            for name in imports_of(path):
                broken += [f"{folder}/{path.name}: {reason}" for reason in _reasons(folder, path, name)]
    return broken


def _reasons(folder: str, path: Path, name: str) -> list[str]:
    parts = name.split(".")
    reasons = []
    if parts[0] in WINGS:
        reasons.append(f"imports the bare name {name}")
    if parts[0] == "stimopt" and len(parts) > 1:
        target = parts[1]
        if target in WINGS and target != folder:
            reasons.append(f"imports the wing {target}")
        if folder == "stimopt" and target in FLOORS and path.stem in FLOORS and FLOORS[target] > FLOORS[path.stem]:
            reasons.append(f"imports {target}, which lies on a floor above")
        if folder in WINGS and FLOORS.get(target, 0) >= 7:
            reasons.append(f"imports {target}, a door or a runner")
    if parts[0] in ("botorch", "gpytorch") and f"{folder}/{path.name}" not in BOTORCH_ALLOWED:
        reasons.append(
            f"imports {parts[0]} outside the models that present a posterior and the policies that acquire on it"
        )
    return reasons


def test_no_import_runs_up_or_between_wings():
    assert broken_rules(ROOT) == []


def test_every_ground_file_has_its_floor():
    missing = {path.stem for path in (ROOT / "stimopt").glob("*.py")} - set(FLOORS)
    assert not missing, f"give these files a floor: {sorted(missing)}"


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("stimopt/stimulus.py", "from .session import Session", "floor above"),
        ("stimopt/session.py", "from stimopt.policies import RandomPolicy", "the wing policies"),
        ("models/arx.py", "from stimopt.simulators import Twin", "the wing simulators"),
        ("policies/bayesian.py", "import models", "bare name"),
        ("stimopt/objective.py", "def late():\n    import botorch", "botorch"),
        ("simulators/twin.py", "from stimopt.cli import main", "a door"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, file, line, reason):
    for folder in ("stimopt", *WINGS):
        (tmp_path / folder).mkdir()
    assert broken_rules(tmp_path) == []
    (tmp_path / file).write_text(line)
    assert any(reason in sentence for sentence in broken_rules(tmp_path))


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_refuses_to_be_imported_by_its_bare_name(wing):
    asked = subprocess.run(
        [sys.executable, "-c", f"import {wing}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode != 0
    assert "second copy" in asked.stderr
