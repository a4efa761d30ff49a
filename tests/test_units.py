import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stimopt.errors import UnitError
from stimopt.units import canonical_unit, convert, parse_quantity, phase_charge_uc, quantity


def test_a_milliampere_for_two_hundred_microseconds_is_a_fifth_of_a_microcoulomb():
    assert phase_charge_uc(torch.tensor(1.0), torch.tensor(200.0)).item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("text", "to", "value"),
    [("6.0 mA", "mA", 6.0), ("300uA", "mA", 0.3), ("1 ms", "us", 1000.0), ("1e-3 A", "mA", 1.0)],
)
def test_a_quantity_is_read_in_the_unit_asked_for(text, to, value):
    assert parse_quantity(text, to) == pytest.approx(value)


@pytest.mark.parametrize("text", ["6.0", "mA", "six mA", "6 Hz", "nan mA", "6 furlongs"])
def test_a_quantity_without_a_current_unit_is_refused(text):
    with pytest.raises(UnitError):
        parse_quantity(text, "mA")


@given(st.floats(-1e6, 1e6), st.sampled_from([("mA", "uA"), ("s", "ms"), ("m", "mm"), ("V", "uV"), ("cm2", "mm2")]))
def test_conversion_there_and_back_is_the_identity(value, units):
    assert math.isclose(convert(convert(value, *units), *reversed(units)), value, rel_tol=1e-12, abs_tol=1e-12)


def test_a_name_promises_its_unit():
    assert canonical_unit("amplitude_ma") == "mA"
    assert canonical_unit("pulses") == ""
    assert quantity("charge_density_uc_cm2", "0.03 mC/cm2") == pytest.approx(30.0)
    assert quantity("pulse_width_us", "0.2 ms") == pytest.approx(200.0)
    with pytest.raises(UnitError, match="amplitude_ma"):
        quantity("amplitude_ma", "130 Hz")
