"""Signal at rest: one continuous recording, its montage and what was delivered while it ran.

On disk a recording is an xarray dataset, netCDF (`.nc`) or Zarr (`.zarr`), that gives back
every bit of it. In flight it becomes `Trials`: windows before and after each stimulus.

signal_uv   [channel, time]   first sample at 0 s on the recording's clock
onsets_s    [trial]           start of each trial's window on that clock; stimuli's `onset_s` counts from there
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import DataError, ShapeError
from .forecaster import Context, Trials
from .montage import Montage, montage_from_dict, montage_to_dict
from .netcdf import read_netcdf, write_netcdf
from .response import Response
from .stimulus import Sensory, Stimulus

SCHEMA = "stimopt recording 1"
_TRAIN = ("frequency_hz", "pulse_width_us", "pulses", "onset_s", "interphase_us")
_SENSORY = ("intensity", "frequency_hz", "duration_s", "onset_s")
_REQUIRED = ("signal_uv", "onsets_s", "amplitude_ma", *(f"stimulus_{name}" for name in _TRAIN))
_ROUNDING = 1e-6  # of a sample; an onset of 0.3 s at 10 Hz is sample 3, not 2.9999999


@dataclass(frozen=True)
class Recording:
    """A continuous recording with its stimuli.

    Attributes:
        montage: Contacts and the channels read.
        signal_uv: Voltage.
        rate_hz: Samples per second.
        stimuli: What was delivered, batch `[trial]`.
        onsets_s: When each trial's window begins.
        metadata: Anything JSON can hold: subject, session, bad channels, source.

    Raises:
        ShapeError: If channels, trials or rate do not fit.
        DataError: If a sample or an onset is not finite.
    """

    montage: Montage
    signal_uv: Float[Tensor, "channel time"]
    rate_hz: float
    stimuli: Stimulus
    onsets_s: Float[Tensor, " trial"]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Response(self.montage, self.signal_uv, self.rate_hz)  # checks channels and rate
        if self.stimuli.batch_shape != self.onsets_s.shape:
            raise ShapeError(
                f"stimuli have the batch {list(self.stimuli.batch_shape)} and onsets_s {list(self.onsets_s.shape)}; "
                "give one onset per stimulus."
            )
        bad = ~self.signal_uv.isfinite()
        if bool(bad.any()):
            names = [c.name for c, hit in zip(self.montage.channels, bad.any(-1).tolist(), strict=True) if hit]
            where = ", ".join(names[:8]) + (" and others" if len(names) > 8 else "")
            raise DataError(
                f"signal_uv has {int(bad.sum())} of {bad.numel()} samples that are not finite, in {where}; leave those "
                "channels out or cut the recording there."
            )
        if not bool(self.onsets_s.isfinite().all()):
            raise DataError("onsets_s holds a number that is not finite; leave those trials out.")

    @property
    def duration_s(self) -> float:
        """Length of the signal."""
        return self.signal_uv.shape[-1] / self.rate_hz

    def trials(self, before_s: float, after_s: float, *, unfit: Literal["refuse", "drop"] = "refuse") -> Trials:
        """Windows around the onsets: context the `before_s` before, response the `after_s` after, in time order.

        A window begins at the last sample at or before its onset, so no context contains a stimulus; what is
        left of the onset, less than a sample, is added to the stimulus's `onset_s`.

        Args:
            before_s: Length of the context.
            after_s: Length of the response, whose `start_s` is 0.
            unfit: What to do with a trial whose window is cut by an end of the recording or overlaps the window
                before it: refuse them all, or drop that trial.

        Raises:
            DataError: If a trial is unfit and not to be dropped, or none is left.
        """
        before, after = round(before_s * self.rate_hz), round(after_s * self.rate_hz)
        if before < 1 or after < 1:
            raise DataError(
                f"before_s {before_s} and after_s {after_s} must each hold a sample of {1 / self.rate_hz:g} s."
            )
        order = self.onsets_s.argsort(stable=True)
        exact = self.onsets_s[order].double() * self.rate_hz
        first = (exact + _ROUNDING).floor().long()  # sample at which each response begins
        cut = (first - before < 0) | (first + after > self.signal_uv.shape[-1])
        keep = ~cut & ~_overlapping(first, before, after, cut)
        if unfit == "refuse" and not bool(keep.all()):
            raise DataError(
                f"{int(cut.sum())} trials are cut by an end of the recording ({self.duration_s:g} s) and "
                f"{int((~keep & ~cut).sum())} overlap the trial before, of {len(keep)}, with {before_s:g} s before and "
                f"{after_s:g} s after; shorten the windows or pass unfit='drop'."
            )
        if not bool(keep.any()):
            raise DataError(
                f"no trial has {before_s:g} s before and {after_s:g} s after it in this recording; shorten them."
            )
        late_s = ((exact - first) / self.rate_hz).clamp_min(0.0)[keep]
        stimuli = self.stimuli[order[keep]]
        stimuli = replace(stimuli, onset_s=stimuli.onset_s + late_s.to(stimuli.onset_s))
        windows = self._windows(first[keep], before, after)
        response = Response(self.montage, windows[..., before:], self.rate_hz)
        return Trials(Context(self.montage, windows[..., :before], self.rate_hz), stimuli, response)

    def bipolar(self) -> "Recording":
        """The same recording read as neighbouring contacts of a shaft; pairs with an unread contact are left out.

        Raises:
            DataError: If a channel is already a pair, or no pair is left.
        """
        if any(channel.minus is not None for channel in self.montage.channels):
            raise DataError("this recording is read in pairs already; use it as it is.")
        montage, plus, minus = self.montage.read_in_pairs()
        if not plus:
            raise DataError("no two neighbouring contacts of a shaft are both read; use the channels as they are.")
        signal_uv = self.signal_uv[plus] - self.signal_uv[minus]
        return replace(self, montage=montage, signal_uv=signal_uv, stimuli=replace(self.stimuli, montage=montage))

    def to_dataset(self) -> xr.Dataset:
        """The recording as xarray: `signal_uv` [channel, time], stimuli along `trial`, the montage in `attrs`."""
        arrays: dict[str, tuple[tuple[str, ...], Tensor]] = {
            "signal_uv": (("channel", "time"), self.signal_uv),
            "onsets_s": (("trial",), self.onsets_s),
            "amplitude_ma": (("trial", "contact"), self.stimuli.amplitude_ma),
        }
        arrays |= {f"stimulus_{name}": (("trial",), getattr(self.stimuli, name)) for name in _TRAIN}
        attributes = {
            "schema": SCHEMA,
            "rate_hz": float(self.rate_hz),
            "montage": json.dumps(montage_to_dict(self.montage)),
            "metadata": json.dumps(dict(self.metadata)),
        }
        sensory = self.stimuli.sensory
        if sensory is not None:
            arrays |= {f"sensory_{name}": (("trial",), getattr(sensory, name)) for name in _SENSORY}
            arrays["sensory_features"] = (("trial", "feature"), sensory.features)
            attributes["sensory"] = json.dumps({"modality": sensory.modality, "feature_names": sensory.feature_names})
        kept = {name: (axes, value.detach().cpu().numpy()) for name, (axes, value) in arrays.items()}
        return xr.Dataset(kept, attrs=attributes)

    def _windows(self, first: Tensor, before: int, after: int) -> Float[Tensor, "trial channel window"]:
        steps = torch.arange(-before, after, device=first.device)
        return self.signal_uv[:, first.unsqueeze(-1) + steps].movedim(1, 0)


def from_dataset(data: xr.Dataset) -> Recording:
    """The recording in a dataset written by `Recording.to_dataset`.

    Raises:
        DataError: If variables or attributes are missing or hold impossible values.
    """
    missing = [name for name in _REQUIRED if name not in data] + [
        k for k in ("rate_hz", "montage") if k not in data.attrs
    ]
    if missing:
        raise DataError(f"this is no stimopt recording: {', '.join(missing)} missing; write it with write_recording.")
    try:
        montage = montage_from_dict(json.loads(data.attrs["montage"]))
        tensors = {str(name): torch.from_numpy(np.array(data[name].values)) for name in data.data_vars}
        train = {name: tensors[f"stimulus_{name}"] for name in _TRAIN}
        stimuli = Stimulus(montage, tensors["amplitude_ma"], **train, sensory=_sensory(data, tensors))
        metadata = json.loads(data.attrs.get("metadata", "{}"))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"this recording's montage or stimuli cannot be read ({error!r}); write it again.") from error
    return Recording(
        montage, tensors["signal_uv"], float(data.attrs["rate_hz"]), stimuli, tensors["onsets_s"], metadata
    )


def write_recording(recording: Recording, path: Path) -> None:
    """Write `.nc` (netCDF 4) or `.zarr`, by the suffix. An interrupted write leaves what was there before.

    Raises:
        DataError: If the suffix is another or the folder does not exist.
    """
    _require_suffix(path)
    if not path.parent.is_dir():
        raise DataError(f"folder {path.parent} does not exist; create it first.")
    data = recording.to_dataset()
    if path.suffix == ".nc":
        write_netcdf(data, path)
        return
    part, old = (path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)
    try:
        data.to_zarr(part, mode="w-", consolidated=False)
        if path.exists():
            path.replace(old)  # a folder cannot be replaced in one step where one stands
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def read_recording(path: Path) -> Recording:
    """Read what `write_recording` wrote.

    Raises:
        DataError: If it is missing, truncated, of another kind, or holds samples that are not finite.
    """
    _require_suffix(path)
    try:
        return from_dataset(read_netcdf(path) if path.suffix == ".nc" else _read_zarr(path))
    except DataError as error:
        sentence = str(error)
        raise DataError(sentence if str(path) in sentence else f"{path}: {sentence}") from error


def _read_zarr(path: Path) -> xr.Dataset:
    if not path.is_dir():
        raise DataError(f"{path} does not exist; check the path.")
    try:
        with xr.open_zarr(path, consolidated=False, decode_times=False, decode_timedelta=False) as data:
            loaded: xr.Dataset = data.load()
            return loaded
    except Exception as error:  # zarr's stores and codecs each have their own
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path} is no complete Zarr group; copy or write it again ({reason}).") from error


def _require_suffix(path: Path) -> None:
    if path.suffix not in (".nc", ".zarr"):
        raise DataError(f"{path} must end in .nc (netCDF) or .zarr (Zarr); a recording is kept in one of the two.")


def _overlapping(first: Tensor, before: int, after: int, cut: Bool[Tensor, " trial"]) -> Bool[Tensor, " trial"]:
    """Which windows begin before the last kept one has ended; cut ones do not count."""
    free, hits = -(2**62), []
    for start, lost in zip(first.tolist(), cut.tolist(), strict=True):
        hits.append(not lost and start - before < free)
        free = free if lost or hits[-1] else start + after
    return torch.tensor(hits, dtype=torch.bool, device=first.device)


def _sensory(data: xr.Dataset, tensors: Mapping[str, Tensor]) -> Sensory | None:
    if "sensory" not in data.attrs:
        return None
    words = json.loads(data.attrs["sensory"])
    numbers = {name: tensors[f"sensory_{name}"] for name in _SENSORY}
    return Sensory(
        words["modality"], **numbers, features=tensors["sensory_features"], feature_names=tuple(words["feature_names"])
    )
