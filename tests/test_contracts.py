"""Everything that keeps a contract is held to it; nothing that should be listed in instances.py is missing."""

import inspect
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest
import torch
from instances import (
    FORECASTERS,
    OBJECTIVES,
    POLICIES,
    SYSTEMS,
    Instance,
    envelope,
    name_of,
    new_stimuli,
    searched,
    space,
    stimuli_for,
    trials,
    windows,
)

import stimopt.models
import stimopt.objective
import stimopt.policies
import stimopt.simulators
from stimopt import plugins
from stimopt.checkpoint import Saveable, load_checkpoint, save_checkpoint
from stimopt.forecaster import Forecaster
from stimopt.objective import Objective
from stimopt.policy import Policy
from stimopt.simulators import Dynamics, Joined, Twin
from stimopt.system import System
from stimopt.testing import check_forecaster, check_objective, check_policy, check_system

CONTRACTS = (System, Forecaster, Policy, Objective, Dynamics)
EVERYTHING = (*SYSTEMS, *FORECASTERS, *POLICIES, *OBJECTIVES)
PYPROJECT = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
NAMES = [(kind, name) for kind in plugins.KINDS for name in plugins.names(kind)]


@pytest.mark.parametrize("instance", SYSTEMS, ids=name_of)
def test_every_system_keeps_the_contract(instance):
    check_system(instance.made, stimuli_for(instance.made), differentiable=instance.differentiable)


@pytest.mark.parametrize("instance", FORECASTERS, ids=name_of)
def test_every_forecaster_keeps_the_contract(instance):
    check_forecaster(instance.made, trials().context[:3], new_stimuli(3), differentiable=instance.differentiable)


@pytest.mark.parametrize("instance", FORECASTERS, ids=name_of)
def test_what_says_that_it_is_not_differentiable_is_listed_so(instance):
    refuses = "not differentiable" in (inspect.getdoc(type(instance.made)) or "").lower()
    assert instance.differentiable is not refuses


@pytest.mark.parametrize("instance", POLICIES, ids=name_of)
@pytest.mark.parametrize("told", [0, 6])
def test_every_policy_keeps_the_contract(instance, told):
    check_policy(instance.made, space(), envelope(), searched(told), seeds=2)


@pytest.mark.parametrize("instance", OBJECTIVES, ids=name_of)
def test_every_objective_keeps_the_contract(instance):
    check_objective(instance.made, *windows(4))


@pytest.mark.parametrize("instance", FORECASTERS, ids=name_of)
def test_a_forecaster_that_was_saved_and_loaded_keeps_the_contract(instance, tmp_path):
    assert isinstance(instance.made, Saveable)
    save_checkpoint(tmp_path / "model", "here", instance.made, {"simulated": True})
    loaded = load_checkpoint(tmp_path / "model", {"here": type(instance.made)})
    context, stimuli = trials().context[:3], new_stimuli(3)
    assert torch.equal(loaded.forecast(context, stimuli).mean, instance.made.forecast(context, stimuli).mean)
    check_forecaster(loaded, context, stimuli, differentiable=instance.differentiable)


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=["-".join(pair) for pair in NAMES])
def test_every_name_on_the_command_line_loads_and_says_what_it_is(kind, name):
    assert callable(plugins.find(kind, name))
    assert len(plugins.summary(kind, name).split()) >= 3
    assert isinstance(plugins.option_defaults(kind, name), dict)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_the_installed_names_are_those_of_the_project_file(kind):
    assert {*PYPROJECT["project"]["entry-points"][f"stimopt.{kind}"]} <= {*plugins.names(kind)}


@pytest.mark.parametrize("kind", ["systems", "models", "policies", "objectives"])
def test_every_name_on_the_command_line_has_a_line_in_instances(kind):
    covered = made_by(EVERYTHING)
    assert [name for name in plugins.names(kind) if plugins.find(kind, name) not in covered] == []


@pytest.mark.parametrize("kind", ["checkpoints"])
def test_every_kind_of_checkpoint_is_restored_by_some_instance(kind):
    covered = set(made_by(FORECASTERS))
    found = {name: plugins.find(kind, name) for name in plugins.names(kind)}
    assert [name for name, one in found.items() if not {*getattr(one, "forecasters", (one,))} <= covered] == []


@pytest.mark.parametrize("home", [stimopt.simulators, stimopt.models, stimopt.policies, stimopt.objective])
def test_everything_that_keeps_a_contract_has_a_line_in_instances(home):
    assert missing(home, made_by(EVERYTHING)) == []


def test_a_policy_without_a_line_in_instances_is_noticed():
    class Forgotten(Policy):
        def propose(self, history, generator):
            return history.stimuli[-1]

    wing = ModuleType("wing")
    wing.__all__, wing.Forgotten = ["Forgotten"], Forgotten
    assert missing(wing, made_by(EVERYTHING)) == ["Forgotten"]


def test_a_fit_without_a_line_in_instances_is_noticed():
    def fit_forgotten(trials) -> Forecaster:
        return trials

    wing = ModuleType("wing")
    wing.__all__, wing.fit_forgotten = ["fit_forgotten"], fit_forgotten
    assert missing(wing, made_by(EVERYTHING)) == ["fit_forgotten"]


def missing(home: ModuleType, covered: set[Any]) -> list[str]:
    """Public names of a module that are or return what keeps a contract, and that no instance made."""
    names = getattr(home, "__all__", None) or [
        n for n, v in vars(home).items() if getattr(v, "__module__", "") == home.__name__
    ]
    return [name for name in names if keeps_a_contract(getattr(home, name)) and getattr(home, name) not in covered]


def keeps_a_contract(thing: Any) -> bool:
    """Whether it is a class that can be built and keeps a contract, or a function that returns one."""
    made = thing if inspect.isclass(thing) else get_type_hints(thing).get("return") if callable(thing) else None
    if not inspect.isclass(made) or not issubclass(made, CONTRACTS):
        return False
    if issubclass(made, Dynamics) and not inspect.isclass(thing):
        return False  # a function that builds a circuit: the circuit's class has a line
    return not inspect.isabstract(made) or not inspect.isclass(thing)


def made_by(instances: tuple[Instance, ...]) -> set[Any]:
    """Functions and classes that instances are made by and of, the circuits of twins included."""
    found: set[Any] = set()
    for instance in instances:
        found |= {instance.maker, type(instance.made)}
        circuit = instance.made.circuit if isinstance(instance.made, Twin) else None
        while circuit is not None:
            found.add(type(circuit))
            circuit = circuit.circuit if isinstance(circuit, Joined) else None
    return found
