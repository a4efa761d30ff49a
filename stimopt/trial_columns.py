"""Columns of a table file, laid out one row a trial: netCDF, CSV or Parquet behind one face.

A netCDF variable may have a `trial` axis, or one axis per knob and a `repetition` axis (a
full grid). The axes of the parameters, groups and repetitions make the rows; what an
outcome has beyond them are its labels, such as the region or the muscle. Measurements that
need arithmetic first are derived by one of a few named functions.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from .errors import DataError
from .netcdf import read_netcdf
from .trial_card import OutcomeCard, TrialCard

ROW_AXES = ("trial", "repetition")


@dataclass(frozen=True)
class Columns:
    """A file in memory.

    Attributes:
        data: Its variables.
        rows: Axes that together make the rows, the first running slowest.
        file: Named in sentences.
    """

    data: xr.Dataset
    rows: tuple[str, ...]
    file: Path

    def array(self, variable: xr.DataArray) -> NDArray[Any]:
        """A variable as [row, further axes]; one that lacks a row axis is repeated along it."""
        sizes = [self.data.sizes[axis] for axis in self.rows]
        rest = [str(axis) for axis in variable.dims if axis not in self.rows]
        missing = {axis: self.data.sizes[axis] for axis in self.rows if axis not in variable.dims}
        full = variable.expand_dims(missing).transpose(*self.rows, *rest)
        return np.asarray(full.values).reshape(int(np.prod(sizes)), *full.shape[len(sizes) :])

    def numbers(self, name: str) -> Float[Tensor, "trial ..."]:
        """A column of numbers, NaN where missing or infinite.

        Raises:
            DataError: If there is no such column, or a cell is no number.
        """
        return self.tensor(variable_of(self.data, name, self.file))

    def tensor(self, variable: xr.DataArray) -> Float[Tensor, "trial ..."]:
        """A variable as numbers `[trial, ...]` (float64), NaN where missing or infinite.

        Raises:
            DataError: If a cell is no number.
        """
        cells = self.array(variable)
        try:
            numbers = cells.astype(np.float64)
        except (TypeError, ValueError) as error:
            bad = next((str(cell) for cell in cells.reshape(-1) if not _is_number(cell)), "?")
            raise DataError(
                f"{self.file}: column {variable.name!r} must hold numbers, but one cell is {bad!r}."
            ) from error
        numbers[~np.isfinite(numbers)] = np.nan
        return torch.from_numpy(np.ascontiguousarray(numbers))

    def texts(self, name: str) -> list[str]:
        """A column of names, as written: whole numbers lose their point, nothing else changes.

        Raises:
            DataError: If there is no such column, or it has further axes.
        """
        cells = self.array(variable_of(self.data, name, self.file))
        if cells.ndim != 1:
            raise DataError(f"{self.file}: column {name!r} has several values a trial; it must have one name.")
        return [text_of(cell) for cell in cells]

    def outcomes(self, name: str, card: OutcomeCard) -> dict[str, tuple[Float[Tensor, " trial"], dict[str, int]]]:
        """Values of an outcome by name, one per label, and where on its further axis each lies.

        Raises:
            DataError: If a variable, label or derivation is unknown, or there is more than one further axis.
        """
        values = self._derived(name, card)
        rest = [str(axis) for axis in values.dims if axis not in self.rows]
        if not rest:
            return {name: (self.tensor(values), {})}
        if len(rest) > 1:
            raise DataError(
                f"outcome {name!r} has the axes {', '.join(rest)} beside the trials; pick labels with 'select' until "
                "one is left, or derive a number."
            )
        labels = [text_of(label) for label in _labels(self.data, rest[0])]
        pages = self.tensor(values)  # [trial, label]
        return {f"{name}_{label}": (pages[:, i].clone(), {rest[0]: i}) for i, label in enumerate(labels)}

    def valid(self, name: str, at: Mapping[str, int]) -> Bool[Tensor, " trial"]:
        """Where a 0/1 mask is 1, at the given places on its further axes; -1 and missing count as 0.

        Raises:
            DataError: If there is no such column, it holds anything else, or has an axis that the outcome lacks.
        """
        mask = variable_of(self.data, name, self.file)
        mask = mask.isel({axis: i for axis, i in at.items() if axis in mask.dims})
        flags = self.tensor(mask)
        if flags.ndim != 1:
            raise DataError(f"mask {name!r} has the axes {', '.join(map(str, mask.dims))}; the outcome has not.")
        if not bool((flags.isnan() | torch.isin(flags, flags.new_tensor([-1.0, 0.0, 1.0]))).all()):
            raise DataError(f"mask {name!r} must hold 0 and 1 only; it goes from {flags.min():g} to {flags.max():g}.")
        return flags == 1.0

    def _derived(self, name: str, card: OutcomeCard) -> xr.DataArray:
        data = self.data
        for axis, label in card.select.items():
            labels = [text_of(item) for item in _labels(data, axis)] if axis in data.dims else []
            if text_of(label) not in labels:
                known = f"it has {', '.join(labels)}" if labels else f"the axes are {', '.join(map(str, data.dims))}"
                raise DataError(f"outcome {name!r} selects {axis} {label!r}, which {self.file.name} has not; {known}.")
            data = data.isel({axis: labels.index(text_of(label))})
        if not card.derive:
            return variable_of(data, card.variable or name, self.file)
        arguments = dict(card.derive)
        kind = arguments.pop("kind", None)
        if kind not in DERIVATIONS:
            raise DataError(f"outcome {name!r} derives {kind!r}; write kind: {' or '.join(DERIVATIONS)}.")
        derive = DERIVATIONS[kind]
        read = {
            key: variable_of(data, v, self.file) if isinstance(v, str) else v
            for key, v in arguments.items()
            if key != "axis"
        }
        read |= {"axis": arguments["axis"]} if "axis" in arguments else {}
        try:
            inspect.signature(derive).bind(**read)
        except TypeError as error:
            known = ", ".join(inspect.signature(derive).parameters)
            raise DataError(f"outcome {name!r}: {error}; {kind} takes {known}.") from error
        return derive(**read)


def log_band_ratio(
    numerator: xr.DataArray, denominator: xr.DataArray, axis: str, band_hz: Sequence[float], bin_hz: float
) -> xr.DataArray:
    """Mean over the bins of a band of log10(numerator / denominator); bin k of `axis` lies at `k * bin_hz`.

    Raises:
        DataError: If there is no such axis or no bin lies in the band.
    """
    if axis not in numerator.dims:
        raise DataError(f"{numerator.name!r} has no axis {axis!r}; it has {', '.join(map(str, numerator.dims))}.")
    frequency_hz = np.arange(numerator.sizes[axis]) * bin_hz
    inside = np.flatnonzero((frequency_hz >= band_hz[0]) & (frequency_hz <= band_hz[1]))
    if not len(inside):
        raise DataError(f"band_hz {list(band_hz)} holds no bin of {axis!r}; it ends at {frequency_hz[-1]:.1f} Hz.")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = numerator.isel({axis: inside}).astype(float) / denominator.isel({axis: inside}).astype(float)
        decades: xr.DataArray = xr.DataArray(np.log10(ratio))
        return decades.mean(axis, skipna=False)


def log10(variable: xr.DataArray) -> xr.DataArray:
    """Decimal logarithm: for amplitudes whose spread grows with their size. Zero and less have none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return xr.DataArray(np.log10(variable.astype(float)))


DERIVATIONS: dict[str, Callable[..., xr.DataArray]] = {"log_band_ratio": log_band_ratio, "log10": log10}


def read_columns(card: TrialCard, file: Path) -> Columns:
    """The file of a card, in memory.

    Raises:
        DataError: If it is missing, truncated, of an unknown kind, or lacks a column that the card names.
    """
    data = _opened(file, _text_columns(card))
    groups = [name for name in card.groups.model_dump().values() if name is not None]
    named = [spec.variable or name for name, spec in card.parameters.items()] + groups
    axes: dict[str, None] = {}
    for name in named:
        axes |= {str(axis): None for axis in variable_of(data, name, file).dims}
    axes |= {axis: None for axis in ROW_AXES if axis in data.sizes}
    order = [str(axis) for axis in data.sizes if axis in axes]  # as in the file
    return Columns(data, tuple(order), file)


def variable_of(data: xr.Dataset, name: str, file: Path) -> xr.DataArray:
    """A variable, or the numbers 0, 1, .. of an axis that has no labels.

    Raises:
        DataError: If there is neither, with the nearest name.
    """
    if name in data.variables:
        return data[name]
    if name in data.sizes:
        return xr.DataArray(np.arange(data.sizes[name]), dims=[name], name=name)
    known = [str(variable) for variable in data.variables]
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known[:16])}."
    raise DataError(f"column {name!r} is not in {file}; {hint}")


def text_of(cell: object) -> str:
    """A name as text: 3.0 is "3", bytes are decoded, text is stripped of spaces around it."""
    if isinstance(cell, bytes):
        return cell.decode("utf-8").strip()
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    return str(cell).strip()


def _labels(data: xr.Dataset, axis: str) -> Iterable[object]:
    return list(data[axis].values) if axis in data.coords else list(range(data.sizes[axis]))


def _text_columns(card: TrialCard) -> list[str]:
    named = [spec.variable or name for name, spec in card.parameters.items() if spec.kind in ("categorical", "site")]
    groups = card.groups
    return named + [name for name in (groups.patient, groups.session, groups.block, groups.channel) if name is not None]


def _opened(file: Path, text_columns: Sequence[str]) -> xr.Dataset:
    if not file.is_file():
        raise DataError(f"{file} does not exist; check the path.")
    if file.name.endswith(".nc"):
        return read_netcdf(file)
    try:
        frame = _frame(file, text_columns)
    except ImportError as error:
        raise DataError(f"{file} needs pyarrow; install stimopt[parquet].") from error
    except DataError:
        raise
    except Exception as error:  # every reader has its own errors for a damaged file
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file} cannot be read; it is truncated or not what its name says ({reason}).") from error
    return xr.Dataset({str(name): ("trial", frame[name].to_numpy(dtype=_kept(frame[name]))) for name in frame.columns})


def _frame(file: Path, text_columns: Sequence[str]) -> pd.DataFrame:
    if file.name.endswith(".parquet"):
        return pd.read_parquet(file)
    if not file.name.endswith((".csv", ".csv.gz", ".tsv")):
        raise DataError(f"{file} is none of .nc, .csv, .csv.gz, .tsv and .parquet; convert it to one of them.")
    separator = "\t" if file.name.endswith(".tsv") else ","
    # converters see the raw text, so that the patient 2e114 stays a name and 007 keeps its zeros
    return pd.read_csv(file, sep=separator, converters=dict.fromkeys(text_columns, str), encoding="utf-8-sig")


def _kept(column: pd.Series) -> Any:
    return object if not pd.api.types.is_numeric_dtype(column) else np.float64 if column.isna().any() else None


def _is_number(cell: object) -> bool:
    try:
        float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
