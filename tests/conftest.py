"""Shapes are checked while tests run; a test that leaves global torch state changed fails."""

import os
import sys
from pathlib import Path

import jaxtyping
import pytest

os.environ.setdefault("PYTHONSAFEPATH", "1")  # children import what is installed, not the folder they start in
sys.path.insert(0, str(Path(__file__).parent))  # for typechecked, which the hook imports by name
if not any("benchmarks" in argument for argument in sys.argv):  # speed is that of the library without checks of types
    from typechecked import checked_at_first

    jaxtyping.jaxtyped = checked_at_first(jaxtyping.jaxtyped)  # what the hook puts before each function
    jaxtyping.install_import_hook("stimopt", "typechecked.checked")

import torch
from typechecked import Test

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def types_are_checked_anew():
    Test.number += 1


@pytest.fixture(autouse=True)
def global_torch_state_is_kept():
    before = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.initial_seed())
    yield
    after = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.initial_seed())
    assert after == before, f"the test changed global torch state from {before} to {after}"


@pytest.fixture
def remembered_regressions(monkeypatch):
    """Blends of the same trials share what is linear in them, from test to test."""
    from remembered import remembered

    monkeypatch.setattr("stimopt.models.ieeg_blended.fit_impulse_regression", remembered)


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of recorded data, or a skip that says why."""
    folder = os.environ.get("STIMOPT_DATA", "")
    if not folder:
        if os.environ.get("STIMOPT_REQUIRE_DATA") == "1":
            pytest.fail("STIMOPT_REQUIRE_DATA is 1 but STIMOPT_DATA is unset")
        pytest.skip("STIMOPT_DATA is unset: recorded data are not at hand")
    return Path(folder)
