"""Every example runs and prints; every example file is read and becomes a setting."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch

from stimopt.assembly import require_buildable, setting_of
from stimopt.config import Experiment, Study, read_experiment, read_study
from stimopt.models import load_foundation
from stimopt.models.ieeg_pretrain import recipe_of
from stimopt.pretraining import read_pretraining

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
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


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_example_runs_and_prints_numbers_that_are_finite(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded(path).main(quick=True)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) >= 3
    assert re.search(r"\d", printed)
    assert not re.search(r"\b(nan|inf)\b", printed, re.IGNORECASE)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_example_says_what_it_shows_and_has_a_quick_form(path):
    module = loaded(path)
    assert len(inspect.getdoc(module).splitlines()) >= 3
    quick = inspect.signature(module.main).parameters["quick"]
    assert (quick.annotation, quick.default) == (bool, False)


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
    assert recipe_of({**plan.recipe, "seed": plan.seed}).steps == plan.recipe["steps"]


def test_the_shipped_checkpoint_has_the_size_that_its_recipe_says():
    size = read_pretraining(FOLDER / "pretrain_ieeg_tiny.yaml").recipe["size"]
    assert vars(load_foundation("ieeg-tiny").size).items() >= size.items()
