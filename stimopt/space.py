"""The knobs a search may turn: named, bounded, with units, laid out as a unit cube.

Every parameter knows its kind:

| kind | values | on the cube | gradient |
| --- | --- | --- | --- |
| continuous | low .. high | linear | yes |
| log | low .. high, low > 0 | linear in the logarithm | yes |
| integer | whole numbers low .. high | linear, nearest | none |
| ordinal | listed numbers | linear in the number, nearest | none |
| categorical | listed names or numbers | equal intervals | none |
| site | listed contacts or pairs, with places | one axis per coordinate, nearest | none |

`stimulus(unit)` lays the values over a template stimulus, `locate` finds them again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import SpaceError
from .stimulus import Sensory, Stimulus, contact_weights
from .tensors import batch_innermost, require_shape

Kind = Literal["continuous", "log", "integer", "ordinal", "categorical", "site"]
Value = float | str

_TRAIN_FIELDS = ("frequency_hz", "pulse_width_us", "pulses", "onset_s", "interphase_us")
_SENSORY_FIELDS = {"sensory_intensity": "intensity", "sensory_frequency_hz": "frequency_hz",
                   "sensory_duration_s": "duration_s", "sensory_onset_s": "onset_s"}  # fmt: skip
_TOLERANCE = 1e-9  # relative; values read back from files carry the last bit's rounding


@dataclass(frozen=True)
class Parameter:
    """One knob.

    Attributes:
        name: A field of the stimulus ("amplitude_ma", "frequency_hz", "pulse_width_us", "pulses", "duration_s",
            "onset_s", "interphase_us", "contacts", "sensory_intensity", ...) or one of its feature names.
        kind: See the table above.
        low: Smallest value, for continuous, log and integer.
        high: Largest value.
        choices: The values of ordinal (numbers), categorical and site (names).
        coordinates: For a site, one point per choice.
        unit: As shown to people.

    Raises:
        SpaceError: If the bounds are upside down, missing or not finite, or choices are doubled.
    """

    name: str
    kind: Kind
    low: float = math.nan
    high: float = math.nan
    choices: tuple[Value, ...] = ()
    coordinates: tuple[tuple[float, ...], ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SpaceError(f"{self.name} has kind {self.kind!r}; write one of {', '.join(get_args(Kind))}.")
        if self.choices or self.kind in ("ordinal", "categorical", "site"):
            self._check_choices()
        else:
            self._check_bounds()
        if self.kind == "ordinal":
            object.__setattr__(self, "choices", tuple(sorted(float(c) for c in self.choices)))
            object.__setattr__(self, "low", float(self.choices[0]))
            object.__setattr__(self, "high", float(self.choices[-1]))

    def _check_bounds(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise SpaceError(f"{self.name} needs finite low and high, got {self.low} and {self.high}.")
        if not self.low < self.high:
            raise SpaceError(
                f"{self.name} has low {self.low} and high {self.high} {self.unit}; low must be below high."
            )
        if self.kind == "log" and self.low <= 0:
            raise SpaceError(f"{self.name} is logarithmic from {self.low}; low must be positive.")
        if self.kind == "integer" and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise SpaceError(f"{self.name} is an integer from {self.low} to {self.high}; both must be whole numbers.")

    def _check_choices(self) -> None:
        if len(self.choices) < 1 or len(set(self.choices)) != len(self.choices):
            raise SpaceError(f"{self.name} has choices {list(self.choices)}; list each allowed value once.")
        if self.kind == "ordinal" and not all(isinstance(c, int | float) and math.isfinite(c) for c in self.choices):
            raise SpaceError(
                f"{self.name} is ordinal, so its choices must be finite numbers, got {list(self.choices)}."
            )
        widths = {len(point) for point in self.coordinates}
        if self.kind == "site" and (len(self.coordinates) != len(self.choices) or len(widths) != 1):
            raise SpaceError(f"{self.name} is a site; give every choice one point with the same number of coordinates.")

    @property
    def width(self) -> int:
        """How many axes of the unit cube it takes."""
        return len(self.coordinates[0]) if self.kind == "site" else 1

    @property
    def discrete(self) -> bool:
        """Whether it takes listed or whole values only."""
        return self.kind not in ("continuous", "log")

    @property
    def numbered(self) -> bool:
        """Whether it is categorical or a site whose choices are all numbers; a stimulus then holds the number."""
        named = any(isinstance(choice, str) for choice in self.choices)
        return self.kind in ("categorical", "site") and not named

    def values(self) -> tuple[Value, ...]:
        """All values of a discrete parameter.

        Raises:
            SpaceError: If it is continuous or logarithmic.
        """
        if self.kind == "integer":
            return tuple(float(v) for v in range(int(self.low), int(self.high) + 1))
        if not self.discrete:
            raise SpaceError(f"{self.name} is {self.kind}; it has no list of values. Use a grid of your own.")
        return self.choices

    def grid_like(self, unit: Tensor) -> Float[Tensor, "choice width"]:
        """Cube points of all values of a discrete parameter."""
        if self.kind == "site":
            points = unit.new_tensor(self.coordinates)
            low, span = points.min(0).values, points.max(0).values - points.min(0).values
            return torch.where(span > 0, (points - low) / torch.where(span > 0, span, 1.0), 0.5)
        if self.kind == "categorical":
            return ((torch.arange(len(self.choices)) + 0.5) / len(self.choices)).to(unit).unsqueeze(-1)
        numbers = unit.new_tensor([float(v) for v in self.values()])
        return ((numbers - self.low) / ((self.high - self.low) or 1.0)).unsqueeze(-1)

    def nearest(self, unit: Float[Tensor, "*batch width"]) -> Tensor:
        """Index into `values()` of the value nearest on the cube, `[*batch]`."""
        return (unit.unsqueeze(-2) - self.grid_like(unit)).square().sum(-1).argmin(-1)


@dataclass(frozen=True)
class StimulationSpace:
    """Parameters over a template stimulus of batch shape ().

    Attributes:
        parameters: What may vary.
        template: Everything else.
        duration_s: Length of every train, whatever its frequency: the pulses that begin within it. None keeps the
            template's number of pulses.

    Raises:
        SpaceError: If a name is doubled or is no part of the template, or the duration is fixed twice.
    """

    parameters: tuple[Parameter, ...]
    template: Stimulus
    duration_s: float | None = None

    def __post_init__(self) -> None:
        names = [p.name for p in self.parameters]
        if not names or len(set(names)) != len(names):
            raise SpaceError(f"a space needs parameters with names of their own, got {names}.")
        electrical = [p for p in self.parameters if p.name not in self._features]
        own = {p.name for p in electrical}
        if len({"pulses", "duration_s"} & own) + (self.duration_s is not None) > 1:
            raise SpaceError("pulses and duration_s fix each other: let one of them vary, or hold one, not both.")
        if self.duration_s is not None and not self.duration_s > 0:
            raise SpaceError(f"duration_s is {self.duration_s} s; it must be positive, or None to keep the pulses.")
        for name in set(names) - set(self.known_names):
            raise SpaceError(
                f"parameter {name!r} is no part of this stimulus; write one of {', '.join(self.known_names)}."
            )
        for parameter in electrical:
            if parameter.name == "contacts":
                for choice in parameter.values():
                    contact_weights(self.template.montage, str(choice))
        if "amplitude_ma" in own and "contacts" not in own and not bool((self.template.amplitude_ma != 0).any()):
            raise SpaceError("amplitude_ma needs contacts: add a 'contacts' parameter, or a template with current.")

    @property
    def _features(self) -> tuple[str, ...]:
        """Feature names of the template; one that is named like a field of the stimulus means the feature."""
        return self.template.sensory.feature_names if self.template.sensory else ()

    @property
    def known_names(self) -> tuple[str, ...]:
        """Names that a parameter of this template may have."""
        sensory = self.template.sensory
        electrical = ("amplitude_ma", "contacts", "duration_s", *_TRAIN_FIELDS)
        return electrical + ((*_SENSORY_FIELDS, *sensory.feature_names) if sensory else ())

    @property
    def dimension(self) -> int:
        """Axes of the unit cube."""
        return sum(p.width for p in self.parameters)

    @property
    def discrete(self) -> bool:
        """Whether every parameter is, so that the space can be listed."""
        return all(p.discrete for p in self.parameters)

    def slices(self) -> dict[str, slice]:
        """Axes of the cube taken by each parameter."""
        edges = [0]
        for parameter in self.parameters:
            edges.append(edges[-1] + parameter.width)
        return {p.name: slice(a, b) for p, a, b in zip(self.parameters, edges, edges[1:], strict=False)}

    def snap(self, unit: Float[Tensor, "*batch dimension"]) -> Float[Tensor, "*batch dimension"]:
        """The nearest point that stands for a stimulus: into the cube, discrete axes to their values. Idempotent."""
        require_shape("unit", unit, (self.dimension,), "dimension")
        unit = unit.clamp(0.0, 1.0)
        parts = []
        for parameter, axes in zip(self.parameters, self.slices().values(), strict=True):
            part = unit[..., axes]
            parts.append(parameter.grid_like(part)[parameter.nearest(part)] if parameter.discrete else part)
        return torch.cat(parts, -1)

    def decode(self, unit: Float[Tensor, "*batch dimension"]) -> dict[str, Tensor]:
        """Values by name, `[*batch]`; categorical and site give the index into `choices`. Differentiable in
        continuous and log axes; points outside the cube are moved onto it.

        Raises:
            ShapeError: If the last axis is not `dimension`.
        """
        require_shape("unit", unit, (self.dimension,), "dimension")
        unit, values = unit.clamp(0.0, 1.0), {}
        for parameter, axes in zip(self.parameters, self.slices().values(), strict=True):
            part = unit[..., axes]
            if parameter.kind in ("categorical", "site"):
                values[parameter.name] = parameter.nearest(part)
            elif parameter.discrete:
                values[parameter.name] = part.new_tensor([float(v) for v in parameter.values()])[
                    parameter.nearest(part)
                ]
            elif parameter.kind == "log":
                ratio = math.log(parameter.high / parameter.low)
                values[parameter.name] = (part[..., 0] * ratio + math.log(parameter.low)).exp()
            else:
                values[parameter.name] = parameter.low + part[..., 0] * (parameter.high - parameter.low)
        return values

    def encode(self, values: Mapping[str, Value | Tensor]) -> Float[Tensor, "*batch dimension"]:
        """Cube point of values by name; names and numbers for single points, tensors as `decode` gives for batches.

        Raises:
            SpaceError: If a name is missing or unknown, or a value lies outside its bounds or choices.
        """
        names = {p.name for p in self.parameters}
        if set(values) != names:
            raise SpaceError(f"values name {sorted(values)}; this space has {sorted(names)}.")
        return torch.cat([self._encoded(p, values[p.name]) for p in self.parameters], -1)

    def _encoded(self, parameter: Parameter, value: Value | Tensor) -> Tensor:
        if parameter.kind in ("categorical", "site"):
            index = value if isinstance(value, Tensor) else torch.tensor(_index_of(parameter, value))
            return parameter.grid_like(torch.zeros(1, dtype=torch.float64))[index.long()]
        number = value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
        slack = _TOLERANCE * max(abs(parameter.low), abs(parameter.high))
        if bool(((number < parameter.low - slack) | (number > parameter.high + slack) | number.isnan()).any()):
            raise SpaceError(
                f"{parameter.name} {number.tolist()} lies outside {parameter.low} to {parameter.high} "
                f"{parameter.unit}; "
                "choose a value inside."
            )
        if parameter.discrete:
            allowed = number.new_tensor([float(v) for v in parameter.values()])
            gaps = (number.unsqueeze(-1) - allowed).abs()
            if bool((gaps.min(-1).values > slack).any()):
                raise SpaceError(f"{parameter.name} {number.tolist()} is not one of {list(parameter.values())}.")
            return parameter.grid_like(number)[gaps.argmin(-1)]
        if parameter.kind == "log":
            return ((number / parameter.low).log() / math.log(parameter.high / parameter.low)).clamp(0, 1).unsqueeze(-1)
        return ((number - parameter.low) / (parameter.high - parameter.low)).clamp(0, 1).unsqueeze(-1)

    def stimulus(self, unit: Float[Tensor, "*batch dimension"]) -> Stimulus:
        """The template with the values of `unit` laid over it, batch shape `*batch`, in unit's dtype and device.

        Pulses are whole: with a `duration_s`, as many as begin within it. Differentiable in continuous and log axes.
        """
        numbers = self._numbers(self.decode(unit))
        values = {name: value for name, value in numbers.items() if name not in self._features}
        stimulus = self.template.to(unit).expand(*unit.shape[:-1])
        changes: dict[str, Any] = {name: values[name].to(unit) for name in _TRAIN_FIELDS if name in values}
        duration_s = values.get("duration_s", self.duration_s)
        if duration_s is not None:
            frequency = changes.get("frequency_hz", stimulus.frequency_hz)
            changes["pulses"] = (duration_s * frequency - 1e-6).detach().ceil().clamp_min(1.0)
        if "contacts" in values or "amplitude_ma" in values:
            changes["amplitude_ma"] = self._amplitude(values, stimulus)
        return replace(stimulus, **changes, sensory=self._sensory(numbers, stimulus))

    def _numbers(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the stimulus holds of decoded values: listed numbers themselves, for listed names their index."""
        for parameter in self.parameters:
            if parameter.numbered:
                index = values[parameter.name]
                choices = torch.tensor([float(c) for c in parameter.choices], dtype=torch.float64, device=index.device)
                values[parameter.name] = choices[index]
        return values

    def _amplitude(self, values: Mapping[str, Tensor], stimulus: Stimulus) -> Tensor:
        strength = stimulus.amplitude_ma.abs().amax(-1, keepdim=True)
        weights = stimulus.amplitude_ma / torch.where(strength > 0, strength, 1.0)
        if "contacts" in values:
            weights = self._site_weights(stimulus.amplitude_ma)[values["contacts"]]
        size = values["amplitude_ma"].unsqueeze(-1) if "amplitude_ma" in values else strength
        return batch_innermost(weights * size)

    def _site_weights(self, like: Tensor) -> Float[Tensor, "choice contact"]:
        sites = next(p for p in self.parameters if p.name == "contacts").values()
        return torch.stack([contact_weights(self.template.montage, str(site)) for site in sites]).to(like)

    def _sensory(self, values: Mapping[str, Tensor], stimulus: Stimulus) -> Sensory | None:
        sensory = stimulus.sensory
        if sensory is None:
            return None
        fields = {name: field for name, field in _SENSORY_FIELDS.items() if name not in self._features}
        changes: dict[str, Any] = {field: values[name] for name, field in fields.items() if name in values}
        columns = [values.get(name, sensory.features[..., i]) for i, name in enumerate(sensory.feature_names)]
        features = torch.stack(columns, -1).to(sensory.features) if columns else sensory.features
        return replace(sensory, **changes, features=features)

    def locate(self, stimulus: Stimulus) -> Float[Tensor, "*batch dimension"]:
        """Cube point of a stimulus made by `stimulus` (float64): `locate(stimulus(u))` is `snap(u)`.

        A zero current tells no contacts, so its site is the first. Duration is read back as whole pulses.

        Raises:
            SpaceError: If a value lies outside the space.
        """
        stimulus = stimulus.to(torch.zeros((), dtype=torch.float64))
        values: dict[str, Value | Tensor] = {}
        for parameter in self.parameters:
            values[parameter.name] = self._read(parameter, stimulus)
        return self.encode(values)

    def _read(self, parameter: Parameter, stimulus: Stimulus) -> Tensor:
        name = parameter.name
        if name in self._features:
            assert stimulus.sensory is not None  # features exist only where the template has them
            value: Tensor = stimulus.sensory.features[..., stimulus.sensory.feature_names.index(name)]
        elif name in _TRAIN_FIELDS:
            value = getattr(stimulus, name)
        elif name == "duration_s":
            value = stimulus.duration_s.clamp(parameter.low, parameter.high)
        elif name in ("amplitude_ma", "contacts"):
            return self._read_current(stimulus)[name]
        else:
            value = getattr(stimulus.sensory, _SENSORY_FIELDS[name])
        if parameter.kind in ("categorical", "site") and not parameter.numbered:
            return value.round().long().clamp(0, len(parameter.choices) - 1)
        if parameter.numbered:
            return (value.unsqueeze(-1) - value.new_tensor([float(v) for v in parameter.choices])).abs().argmin(-1)
        return value

    def _read_current(self, stimulus: Stimulus) -> dict[str, Tensor]:
        current = stimulus.amplitude_ma
        if any(p.name == "contacts" for p in self.parameters):
            weights = self._site_weights(current)
        else:
            weights = (self.template.amplitude_ma / self.template.amplitude_ma.abs().max()).to(current).unsqueeze(0)
        along = torch.einsum("...c,sc->...s", current, weights) / weights.square().sum(-1)
        residual = (current.unsqueeze(-2) - along.unsqueeze(-1) * weights).square().sum(-1)
        site = residual.argmin(-1)  # the first site for a zero current; a site's opposite fits with minus the amplitude
        fits = residual <= residual.min(-1, keepdim=True).values + 1e-12
        best = torch.where(fits, along, -torch.inf).argmax(-1)
        site = torch.where(current.abs().amax(-1) > 0, best, site)
        if bool((residual.min(-1).values > 1e-9).any()):
            raise SpaceError("this stimulus spreads current over contacts that no site of this space has.")
        return {"contacts": site, "amplitude_ma": along.gather(-1, site.unsqueeze(-1)).squeeze(-1)}

    def points(self) -> Float[Tensor, "point dimension"]:
        """Every point of a discrete space (float64), the last parameter running fastest.

        Raises:
            SpaceError: If a parameter is continuous.
        """
        like = torch.zeros(1, dtype=torch.float64)
        grids = [range(len(p.values())) for p in self.parameters]
        cells = [p.grid_like(like) for p in self.parameters]
        return torch.stack([torch.cat([c[i] for c, i in zip(cells, row, strict=True)]) for row in product(*grids)])

    def describe(self, unit: Float[Tensor, " dimension"]) -> dict[str, Value]:
        """One point as plain values by name, categorical and site as their names."""
        plain: dict[str, Value] = {}
        for parameter, value in zip(self.parameters, self.decode(unit).values(), strict=True):
            named = parameter.kind in ("categorical", "site")
            plain[parameter.name] = parameter.choices[int(value)] if named else float(value)
        return plain


def contact_site(template: Stimulus, pairs: Sequence[str]) -> Parameter:
    """The 'contacts' parameter over pairs: a site with the places of the pairs' middles where all are known,
    else a categorical one.
    """
    montage = template.montage
    middles = [
        montage.contact_position_mm[[montage.contact_index(name) for name in pair.split("-")]].mean(0) for pair in pairs
    ]
    known = all(bool(middle.isfinite().all()) for middle in middles)
    if not known or len(pairs) < 2:
        return Parameter("contacts", "categorical", choices=tuple(pairs))
    points = tuple(tuple(middle.tolist()) for middle in middles)
    return Parameter("contacts", "site", choices=tuple(pairs), coordinates=points, unit="mm")


def _index_of(parameter: Parameter, value: Value) -> int:
    if value not in parameter.choices:
        raise SpaceError(f"{parameter.name} {value!r} is not one of {list(parameter.choices)}.")
    return parameter.choices.index(value)
