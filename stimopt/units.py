"""One canonical unit per quantity, and the arithmetic of charge.

| quantity | unit | suffix |
| --- | --- | --- |
| current | milliampere | `_ma` |
| frequency | hertz | `_hz` |
| pulse width, interphase gap | microsecond, per phase | `_us` |
| time | second | `_s` |
| potential | microvolt | `_uv` |
| length | millimetre | `_mm` |
| area | square centimetre | `_cm2` |
| charge | microcoulomb, per phase unless said | `_uc` |

The outside world is converted once, where it enters, by `convert` or `parse_quantity`.
"""

import math
import re

from torch import Tensor

from .errors import UnitError

SECONDS_PER_MICROSECOND = 1e-6
SECONDS_PER_MILLISECOND = 1e-3  # mm over m/s is ms
NANOJOULE_PER_MICROJOULE = 1e3  # 1 mA^2 for 1 us through 1 kohm is 1 nJ
NANOCOULOMB_PER_MICROCOULOMB = 1e3  # 1 mA for 1 us is 1 nC

# name of the unit -> (dimension, how many canonical units it is)
_UNITS: dict[str, tuple[str, float]] = {
    "mA": ("current", 1.0), "A": ("current", 1e3), "uA": ("current", 1e-3), "µA": ("current", 1e-3),
    "Hz": ("frequency", 1.0), "kHz": ("frequency", 1e3), "1/s": ("frequency", 1.0),
    "s": ("time", 1.0), "ms": ("time", 1e-3), "us": ("time", 1e-6), "µs": ("time", 1e-6), "min": ("time", 60.0),
    "uV": ("potential", 1.0), "µV": ("potential", 1.0), "mV": ("potential", 1e3), "V": ("potential", 1e6),
    "mm": ("length", 1.0), "m": ("length", 1e3), "cm": ("length", 10.0), "um": ("length", 1e-3),
    "cm2": ("area", 1.0), "mm2": ("area", 1e-2), "m2": ("area", 1e4),
    "uC": ("charge", 1.0), "µC": ("charge", 1.0), "nC": ("charge", 1e-3), "mC": ("charge", 1e3),
    "uC/cm2": ("charge density", 1.0), "mC/cm2": ("charge density", 1e3),
    "deg": ("angle", 1.0), "a.u.": ("arbitrary", 1.0), "": ("number", 1.0), "1": ("number", 1.0),
}  # fmt: skip

_SUFFIXES = {
    "_ma": "mA", "_hz": "Hz", "_us": "us", "_s": "s", "_uv": "uV", "_mm": "mm", "_cm2": "cm2", "_uc": "uC",
    "_uc_cm2": "uC/cm2",
}  # fmt: skip

_QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S.*?)?\s*")


def dimension(unit: str) -> str:
    """Which quantity a unit measures, such as "current" for "uA".

    Raises:
        UnitError: If the unit is not one that stimopt knows.
    """
    if unit not in _UNITS:
        raise UnitError(f"unit {unit!r} is not known; write one of {', '.join(u for u in _UNITS if u)}.")
    return _UNITS[unit][0]


def convert(value: float, unit: str, to: str) -> float:
    """The same quantity in another unit: `convert(6.0, "mA", "uA")` is 6000.0.

    Raises:
        UnitError: If a unit is unknown or the two measure different things.
    """
    if dimension(unit) != dimension(to):
        raise UnitError(
            f"{unit!r} measures {dimension(unit)} and {to!r} measures {dimension(to)}; give the value in {to}."
        )
    return value * (_UNITS[unit][1] / _UNITS[to][1])


def parse_quantity(text: str, to: str) -> float:
    """A number with its unit, as text, in the unit `to`: `parse_quantity("6.0 mA", "uA")` is 6000.0.

    Raises:
        UnitError: If the text has no number, no unit, or a unit of another dimension. A bare number
            is refused because a factor of a thousand hides in it.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] is None or not math.isfinite(float(match[1])):
        raise UnitError(f"{text!r} is not a number with a unit; write it like '6.0 {to}'.")
    return convert(float(match[1]), match[2], to)


def canonical_unit(name: str) -> str:
    """Unit that a name's ending promises: "mA" for "amplitude_ma", "" for "pulses"."""
    fitting = [suffix for suffix in _SUFFIXES if name.endswith(suffix)]
    return _SUFFIXES[max(fitting, key=len)] if fitting else ""


def quantity(name: str, value: float | str) -> float:
    """A value for `name` in its canonical unit; text needs a unit, a bare number is already in it.

    Raises:
        UnitError: If the text has no unit or one of another dimension.
    """
    if not isinstance(value, str):
        return float(value)
    unit = canonical_unit(name)
    try:
        return parse_quantity(value, unit or "1")
    except UnitError as error:
        raise UnitError(f"{name}: {error}") from error


def phase_charge_uc(amplitude_ma: Tensor, pulse_width_us: Tensor) -> Tensor:
    """Charge of one rectangular phase in uC, from current in mA and width in us (shapes broadcast)."""
    return amplitude_ma * pulse_width_us / NANOCOULOMB_PER_MICROCOULOMB


def phase_energy_uj_per_kohm(amplitude_ma: Tensor, pulse_width_us: Tensor) -> Tensor:
    """Energy of one rectangular phase in uJ per kilo-ohm of load, from current in mA and width in us."""
    return amplitude_ma.square() * pulse_width_us / NANOJOULE_PER_MICROJOULE
