"""Replay policies on recorded trials, where nothing can be asked that nobody delivered.

Shows the format of a trial table (a file and a `dataset.yaml` beside it) on a small table
that this script draws itself, then the same comparison on a recorded dataset, if the
environment variable STIMOPT_DATA points to the recordings.

Run: STIMOPT_DATA=... python examples/replay_recorded_trials.py
"""

import csv
import os
import tempfile
from pathlib import Path

import torch

from stimopt.datasets import load_table
from stimopt.errors import DataError
from stimopt.policies import BayesianPolicy, RandomPolicy
from stimopt.policy import Policy
from stimopt.replay import replay_policy
from stimopt.safety import Envelope
from stimopt.space import StimulationSpace
from stimopt.tensors import generator
from stimopt.trial_table import TrialTable

RECORDED = "opto-septohippocampal"

CARD = """\
name: tiny
title: Drawn by replay_recorded_trials.py, not recorded from anyone
file: trials.csv
parameters:
  frequency_hz: {unit: Hz, kind: ordinal}
  amplitude_ma: {unit: mA, kind: ordinal}
outcomes:
  gamma_gain: {better: higher, unit: decades}
groups: {order: trial}
propensity: uniform
"""


def main(quick: bool = False) -> None:
    trials, repeats = (10, 3) if quick else (24, 30)
    with tempfile.TemporaryDirectory() as folder:
        tiny = load_table(str(written_table(Path(folder))))
    compare("tiny table (drawn, not recorded)", tiny, "gamma_gain", trials, repeats)

    if not os.environ.get("STIMOPT_DATA"):
        print(f"{RECORDED}: skipped, because STIMOPT_DATA is unset; set it to the folder that holds the recordings")
        return
    try:
        recorded = load_table(RECORDED)
    except DataError as error:  # the folder holds other recordings
        print(f"{RECORDED}: skipped, because {error}")
        return
    compare(f"{RECORDED} (recorded)", recorded, next(iter(recorded.outcomes)), trials, repeats)


def compare(title: str, table: TrialTable, outcome: str, trials: int, repeats: int) -> None:
    """The same draws for both policies, so that they differ in what they chose alone."""
    card = table.card
    knobs = ", ".join(f"{name} ({spec.unit})" for name, spec in card.parameters.items())
    print(f"{title}: {len(table)} trials over {knobs}; {outcome} in {card.outcomes[table.outcome_of(outcome)].unit}")
    bayesian = replay_policy(bayesian_policy, table, outcome, trials, repeats, seed=1, name="bayesian")
    random = replay_policy(random_policy, table, outcome, trials, repeats, seed=1, name="random")
    for curves in (bayesian, random):
        middle, low, high = (float(edge[-1]) for edge in curves.band("exploration"))
        print(
            f"  {curves.policy:<9} after {trials} trials recommends {middle:.2f} of the best ({low:.2f} to {high:.2f})"
        )
    gap = bayesian.difference(random, trials)
    print(f"  bayesian less random {gap.estimate:+.3f} ({gap.low:+.3f} to {gap.high:+.3f}, {repeats} paired replays)")


def bayesian_policy(space: StimulationSpace, envelope: Envelope, seed: int) -> Policy:
    return BayesianPolicy(space, envelope, seed=seed)


def random_policy(space: StimulationSpace, envelope: Envelope, seed: int) -> Policy:
    return RandomPolicy(space, envelope)


def written_table(folder: Path) -> Path:
    """A full grid with five repetitions; the gain peaks at 40 Hz and 2 mA. Returns the path of the card."""
    noise, rows = generator(1, "tiny table"), []
    for repetition in range(5):
        for frequency_hz in (10, 20, 40, 80):
            for amplitude_ma in (0.5, 1.0, 2.0, 4.0):
                peak = abs(frequency_hz - 40) / 40 + abs(amplitude_ma - 2.0) / 2
                gain = 0.5 - 0.3 * peak + 0.15 * float(torch.randn((), generator=noise))
                rows.append([len(rows), repetition, frequency_hz, amplitude_ma, round(gain, 4)])
    with (folder / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "repetition", "frequency_hz", "amplitude_ma", "gamma_gain"])
        writer.writerows(rows)
    (folder / "dataset.yaml").write_text(CARD, encoding="utf-8")
    return folder / "dataset.yaml"


if __name__ == "__main__":
    main()
