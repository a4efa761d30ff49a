"""netCDF files through xarray: numbers stay numbers, and a damaged file is one sentence.

Times are never decoded: a column with the unit "s" or "s since ..." is a measurement here,
and xarray would turn it into dates.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import xarray as xr

from .errors import DataError


def read_netcdf(path: Path) -> xr.Dataset:
    """A netCDF file (version 3 or 4) in memory.

    Raises:
        DataError: If it is missing, truncated or no netCDF, or nothing that reads netCDF is installed.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path.")
    with path.open("rb") as file:
        classic = file.read(3) == b"CDF"  # netCDF 3
    engine: Any = "scipy" if classic else _engine()
    try:
        with xr.open_dataset(path, engine=engine, decode_times=False, decode_timedelta=False) as data:
            return data.load()
    except Exception as error:  # each engine has its own errors for a damaged file
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path} is no complete netCDF file; copy or write it again ({reason}).") from error


def write_netcdf(data: xr.Dataset, path: Path) -> None:
    """Write netCDF 4 to a name of its own beside `path`, then rename it: `path` is the old file or the whole new one.

    Raises:
        DataError: If nothing that writes netCDF is installed.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        data.to_netcdf(part, engine=_engine(), encoding={name: {"_FillValue": None} for name in data.variables})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _engine() -> Any:
    """h5netcdf, which since 1.8 no longer brings h5py along; netCDF4 where only that is there."""
    if find_spec("h5netcdf") and find_spec("h5py"):
        return "h5netcdf"
    if find_spec("netCDF4"):
        return "netcdf4"
    raise DataError("netCDF needs h5py, which is not installed; run: pip install h5py")
