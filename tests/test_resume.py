"""A run killed with SIGKILL at any moment, resumed, ends with the trials of one never killed."""

import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
import zarr
from experiments import EXPERIMENT, STUDY

COMMAND = [sys.executable, "-m", "stimopt"]
LONG = EXPERIMENT.replace("trials: 8", "trials: 16").replace("{name: sobol}", "{name: bayesian, startup: 4}")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")


def trials_of(folder):
    with sqlite3.connect(folder / "trials.sqlite") as connection:
        return connection.execute(
            "SELECT number, status, time_s, stimulus, score FROM trials ORDER BY number"
        ).fetchall()


def told(folder):
    if not (folder / "trials.sqlite").exists():
        return 0
    try:
        with sqlite3.connect(folder / "trials.sqlite") as connection:
            return connection.execute("SELECT count(*) FROM trials WHERE status='told'").fetchone()[0]
    except sqlite3.OperationalError:  # killed or asked before the tables were there
        return 0


def killed_after(command, folder, count, delay_s):
    """Start the command, wait until `count` trials are told and a little longer, then SIGKILL it."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while told(folder) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_search_killed_at_five_random_moments_ends_with_the_same_trials(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(LONG)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    search = [*COMMAND, "search", str(file), "--resume", "--out"]
    subprocess.run([*search, str(whole)], check=True, capture_output=True)
    source, goal = random.Random(7), 0
    for _ in range(5):
        goal += source.randint(1, 3)
        killed_after([*search, str(broken)], broken, goal, source.uniform(0, 0.05))
        assert told(broken) >= goal  # nothing that was told is ever lost
    subprocess.run([*search, str(broken)], check=True, capture_output=True)
    assert trials_of(broken) == trials_of(whole)
    assert len(trials_of(broken)) == 16
    signals = [zarr.open_group(str(folder / "responses.zarr"), mode="r")["signal_uv"][:] for folder in (whole, broken)]
    assert (signals[0] == signals[1]).all()


def test_a_study_killed_and_resumed_gives_the_same_table_with_any_number_of_workers(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    tables = []
    for name, workers, kill in (("one", "1", False), ("two", "2", False), ("killed", "1", True)):
        folder = tmp_path / name
        command = [*COMMAND, "evaluate", str(file), "--out", str(folder), "--workers", workers]
        if kill:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while len(list(folder.glob("runs/*/*/*/result.json"))) < 3 and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (folder / "table.csv").exists()
            command.append("--resume")
        subprocess.run(command, check=True, capture_output=True)
        tables.append((folder / "table.csv").read_text() + (folder / "runs.csv").read_text())
    assert tables[0] == tables[1] == tables[2]
    assert tables[0].count("no-stimulation") == 1 + 3  # once in the table, once per patient and seed
