"""The command line as a person meets it: one sentence and exit code 2 on mistakes, nothing left behind."""

import json
import os
import subprocess
import sys

import pytest
from experiments import EXPERIMENT, LIVE, STUDY
from typer.testing import CliRunner

from stimopt import cli
from stimopt.errors import StimoptError


def run(*arguments):
    """Exit code, what was printed, and the sentence of a refusal, within this process."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if isinstance(result.exception, StimoptError | FileNotFoundError):
        return 2, result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def written(tmp_path, text, name="file.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_help_answers_at_once():
    seconds = []
    for _ in range(3):
        before = os.times()
        asked = subprocess.run([sys.executable, "-m", "stimopt", "--help"], capture_output=True, text=True, check=True)
        after = os.times()  # processor time of the child: other tests run beside this one
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        seconds.append(spent)
    assert "demo" in asked.stdout
    assert min(seconds) < 0.5


def test_a_refusal_is_one_line_on_standard_error_with_exit_code_2(tmp_path):
    path = written(tmp_path, EXPERIMENT.replace("sobol", "sobool"))
    out = tmp_path / "run"
    asked = subprocess.run(
        [sys.executable, "-m", "stimopt", "search", str(path), "--out", str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert asked.returncode == 2
    assert asked.stderr.count("\n") == 1
    assert "did you mean 'sobol'" in asked.stderr
    assert "Traceback" not in asked.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("high: 5 mA", "high: 0.1 mA", "low must be below high"),
        ("high: 5 mA", "high: 5 Hz", "measures frequency"),
        ("choices: neighbours", "choices: [A1-Z9]", "'Z9' is not in the montage"),
        ("frequency_hz: {kind", "frequency: {kind", "space.frequency"),
        ("band_hz: [8, 30]", "band_hz: [8, 30], channels: [Q]", "'Q' is not in the montage"),
        ("{profile: mapping-50hz-seeg}", "{profile: mapping-50hz-seeg, forbidden: [Q1]}", "'Q1' is not in the montage"),
        (
            "{profile: mapping-50hz-seeg}",
            "{profile: mapping-50hz-seeg, limits: {contact_current_ma: 99}}",
            "would loosen it",
        ),
        ("{name: sobol}", "{name: gradient}", "needs a forecaster"),
    ],
)
def test_a_wrong_experiment_creates_nothing(tmp_path, old, new, words):
    assert old in EXPERIMENT
    out = tmp_path / "runs" / "run"
    code, _, said = run("search", written(tmp_path, EXPERIMENT.replace(old, new)), "--out", out)
    assert code == 2
    assert words in said
    assert not out.parent.exists()


def test_a_search_writes_its_run_and_its_page(tmp_path):
    path, out = written(tmp_path, EXPERIMENT), tmp_path / "run"
    code, printed, _ = run("search", path, "--out", out, "--json")
    result = json.loads(printed)
    assert code == 0
    assert result["trials"] == 8
    assert {"experiment.yaml", "run.json", "trials.sqlite", "responses.zarr", "report.html"} <= {
        p.name for p in out.iterdir()
    }
    told = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert told["system circuit"] == "LinearOscillator"
    assert len(told["system parameters_sha256"]) == 64
    assert run("search", path, "--out", out)[2].startswith(f"{out} exists")
    assert run("search", path, "--out", out, "--resume", "--json")[0] == 0
    other = written(tmp_path, EXPERIMENT.replace("seed: 4", "seed: 5"), "other.yaml")
    assert "differs from" in run("search", other, "--out", out, "--resume")[2]


def test_ask_and_tell_serve_a_person(tmp_path):
    run_folder, path = tmp_path / "bedside", written(tmp_path, LIVE)
    code, printed, _ = run("ask", run_folder, "--experiment", path, "--json")
    first = json.loads(printed)
    assert code == 0
    assert set(first["amplitude_ma"]) == {"A1", "A2"}  # A3 is forbidden, so A2-A3 never comes
    assert sum(first["amplitude_ma"].values()) == pytest.approx(0.0)
    assert {row["verdict"] for row in first["safety"]} <= {"PASS", "CAUTION", "NOT EVALUATED"}
    assert json.loads(run("ask", run_folder, "--json")[1])["parameters"] == first["parameters"]
    assert run("tell", run_folder)[0] == 2
    assert run("tell", run_folder, "--score", "nan")[0] == 2
    assert json.loads(run("tell", run_folder, "--score", "12.5", "--json")[1])["score"] == 12.5
    assert "no stimulus is in flight" in run("tell", run_folder, "--score", "1")[2]
    assert "lengthen interval_s" in run("ask", run_folder)[2]  # the profile asks for a second between pulses


def test_a_study_in_the_way_of_another_is_refused(tmp_path):
    out = tmp_path / "study"
    out.mkdir()
    (out / "precious.txt").write_text("keep")
    assert "not a study" in run("evaluate", written(tmp_path, STUDY), "--out", out)[2]
    assert [p.name for p in out.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("report", "nowhere"), "not a run"),
        (("ask", "nowhere"), "not a run"),
        (("tell", "nowhere", "--score", "1"), "not a run"),
        (("search", "absent.yaml", "--out", "x"), "not a file"),
        (("fit", "absent.nc", "--out", "x"), "absent.nc"),
        (("replay", "no-such-dataset"), "no-such-dataset"),
        (("list", "colours"), "cannot be listed"),
    ],
)
def test_what_is_not_there_is_said_so(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, said = run(*arguments)
    assert code == 2
    assert words in said
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_recording_is_one_sentence(tmp_path):
    path = written(tmp_path, "not really netCDF", "cut.nc")
    code, _, said = run("fit", path, "--out", tmp_path / "model")
    assert code == 2
    assert "cut.nc" in said
    assert not (tmp_path / "model").exists()


def test_a_trial_table_with_a_missing_number_is_refused(tmp_path):
    written(tmp_path, "dose,gain\n1,2\n2,\n1,3\n2,4\n", "table.csv")
    card = "name: mine\nfile: table.csv\nparameters: {dose: {unit: a.u., kind: ordinal}}\n"
    card += "outcomes: {gain: {better: higher}}\n"
    code, _, said = run("replay", written(tmp_path, card, "dataset.yaml"), "--policy", "random", "--trials", "2")
    assert code == 2
    assert "gain" in said


@pytest.mark.parametrize(
    "kind", ["systems", "models", "dose_models", "policies", "objectives", "checkpoints", "datasets", "profiles"]
)
def test_every_kind_can_be_listed(kind):
    code, printed, _ = run("list", kind, "--json")
    assert code == 0
    assert all(json.loads(printed)[kind].values())


def test_a_replay_on_recorded_trials_gives_curves_and_a_paired_gap(recordings):
    arguments = ("replay", "rat-m1-maps", "--policy", "sobol", "--trials", "6", "--repeats", "2", "--json")
    result = json.loads(run(*arguments)[1])
    assert len(result["curves"]["sobol"]["exploration"]["median"]) == 6
    assert result["difference"]["low"] <= result["difference"]["mean"] <= result["difference"]["high"]
