"""Every example runs and prints; every example file is read and becomes a setting."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from stimopt.assembly import require_buildable, setting_of
from stimopt.config import Experiment, Study, read_experiment, read_study
from stimopt.models import load_foundation
from stimopt.models.ieeg_recipe import recipe_of
from stimopt.models.ieeg_sources_training import source_recipe_of
from stimopt.pretraining import read_pretraining
from stimopt.published import near, publish, section

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
PUBLISHED = sorted(FOLDER.glob("published_*.py"))
FILES = sorted(path for path in FOLDER.glob("*.yaml") if not path.name.startswith("pretrain"))  # no search
STUDIES = ("study.yaml",)
PRETRAININGS = sorted(FOLDER.glob("pretrain*.yaml"))


def loaded(path):
    """The example as a module, by its path, as a reader runs it."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path):
    return read_study(path) if path.name in STUDIES else read_experiment(path)


# Rows of published pages that lie outside their tolerance: a cube that drifts cannot be simulated as it was released; a
# quarter of a second is too short for an error index
KNOWN_OUTSIDE = {
    "published_ensembles": [
        "environment 2: scored beta under pulses of 5, share of none",
        "environment 2: the same under random pulses, -5 to 5",
    ],
}
KNOWN_OUTSIDE_QUICK = {"published_ensembles": ["parkinsonian"]}


def outside(printed):
    """Quantities that a published page holds outside their tolerance."""
    return re.findall(r"^  (.+?): paper .*within: NO$", printed, re.MULTILINE)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_example_runs_and_prints_numbers_that_are_finite(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded(path).main(quick=True)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) >= 3
    assert re.search(r"\d", printed)
    assert not re.search(r"\b(nan|inf)\b", printed, re.IGNORECASE)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    assert outside(printed) == KNOWN_OUTSIDE_QUICK.get(path.stem, [])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_example_says_what_it_shows_and_has_a_quick_form(path):
    module = loaded(path)
    assert len(inspect.getdoc(module).splitlines()) >= 3
    quick = inspect.signature(module.main).parameters["quick"]
    assert (quick.annotation, quick.default) == (bool, False)


def test_a_row_outside_its_tolerance_stands_on_the_page_and_is_found(capsys, tmp_path):
    part = section("A part", "", [near("peak, Hz", "10", 10.6, 10, 0.5), near("share", "1", 1.0, 1, 0.1)], "")
    publish([part], tmp_path / "page.html", "0")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert outside(capsys.readouterr().out) == ["peak, Hz"]
    assert page.count("NO<") == 1
    assert "1 of 2 simulated numbers lie within" in page


def run_in_full(path, folder):
    """What a reader sees who runs the script in a folder; without the checks of types, which take twice as long."""
    return subprocess.run([sys.executable, path], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_page_in_full_holds_every_row_but_those_known(path, tmp_path):
    known = KNOWN_OUTSIDE.get(path.stem, [])
    assert outside(run_in_full(path, tmp_path)) == known
    page = (tmp_path / f"{path.stem}.html").read_text(encoding="utf-8")
    assert page.count("NO<") == len(known)
    assert page.count("<svg") >= 2


@pytest.mark.slow
def test_the_atlas_is_painted(tmp_path):
    run_in_full(FOLDER / "stimulation_atlas.py", tmp_path)
    picture = imread(tmp_path / "stimulation_atlas.png")
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.1  # of 0 to 1; not one colour


def test_the_replay_example_says_why_it_skips_recordings(capsys, monkeypatch):
    monkeypatch.delenv("STIMOPT_DATA", raising=False)
    loaded(FOLDER / "replay_recorded_trials.py").main(quick=True)
    assert "skipped, because STIMOPT_DATA is unset" in capsys.readouterr().out


def test_the_bedside_example_refuses_and_locks(capsys):
    loaded(FOLDER / "bedside_ask_tell.py").main(quick=True)
    printed = capsys.readouterr().out
    assert "limit 'phase_charge_uc'" in printed
    assert "Lower amplitude_ma to 6.66" in printed  # 2 uC in 300 us is 6.67 mA
    assert "limit 'forbidden_contacts'" in printed
    assert re.search(r"locked: .*after-discharge", printed)


def test_the_circuit_example_rests_on_the_cycle_of_its_equation(monkeypatch):
    """Without noise or push the rhythm of dz/dt = (a + i omega - b |z|^2) z has the amplitude sqrt(a / b)."""
    circuit = loaded(FOLDER / "bring_your_own_circuit.py").StuartLandau(
        torch.tensor([20.0], dtype=torch.float64), torch.tensor([10.0], dtype=torch.float64), bend_per_s_mv2=5.0
    )
    cycle = torch.tensor([[2.0, 0.0]], dtype=torch.float64)  # sqrt(20 / 5) mV
    rate = circuit.drift(cycle, torch.zeros(1, dtype=torch.float64))
    turning = torch.tensor([[0.0, 2 * torch.pi * 10.0 * 2.0]], dtype=torch.float64)  # mV/s, along the circle alone
    assert torch.allclose(rate, turning, atol=1e-12)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_example_file_is_read_and_becomes_a_setting(path):
    search = read(path)
    if isinstance(search, Study):
        settings = [setting_of(search, patient) for patient in search.patients]
        policies = search.policies
    else:
        assert isinstance(search, Experiment)
        settings, policies = [setting_of(search)], [search.policy]
    for setting in settings:
        drawn = setting.space.snap(torch.rand(64, setting.space.dimension, dtype=torch.float64, generator=source()))
        allowed = setting.envelope.allowed(setting.space.stimulus(drawn))
        assert float(allowed.double().mean()) > 0.5  # bounds that the envelope mostly allows: a search worth running
        for policy in policies:
            require_buildable(policy, setting, search.model is not None)


def test_the_study_is_the_one_that_was_promised():
    study = read(FOLDER / "study.yaml")
    assert (len(study.policies), list(study.patients), study.seeds, study.trials) == (3, [5, 6, 7, 8, 9], 3, 20)
    setting = setting_of(study, 5)
    low = setting.space.stimulus(torch.zeros(setting.space.dimension, dtype=torch.float64))
    assert float(low.onset_s) == 0.0
    assert float(low.frequency_hz) == pytest.approx(20.0)
    assert setting.space.duration_s == setting.system.window_s == 0.5


def test_the_page_of_examples_names_every_file_and_no_other():
    named = re.findall(r"^\| `([^`]+)`", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in (*SCRIPTS, *FILES, *PRETRAININGS))


def source():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("path", PRETRAININGS, ids=lambda path: path.stem)
def test_every_pretraining_file_is_read_and_is_a_recipe(path):
    plan = read_pretraining(path)
    read = {"ieeg-foundation": recipe_of, "ieeg-sources": source_recipe_of}[plan.trainer]
    assert read({**plan.recipe, "seed": plan.seed}).steps == plan.recipe["steps"]


def test_the_shipped_checkpoint_has_the_size_that_its_recipe_says():
    size = read_pretraining(FOLDER / "pretrain_ieeg_tiny.yaml").recipe["size"]
    assert vars(load_foundation("ieeg-tiny").size).items() >= size.items()
