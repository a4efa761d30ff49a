"""BIDS-iEEG in and out, through MNE-BIDS: volts become uV, metres become mm, "6.0 mA" becomes 6.0.

Signals come through MNE-BIDS; electrodes and events are read as they stand in their
tables, because the places, pairs and currents of stimulation have no home in MNE.
Needs the extra `stimopt[bids]`.
"""

import json
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from .errors import DataError, StimoptError, UnitError
from .montage import NOWHERE_MM, Channel, Contact, ContactKind, Montage
from .recording import Recording
from .stimulus import Stimulus, no_stimulus, pulse_train
from .tensors import concatenate, map_tensors
from .units import convert, parse_quantity

UV_PER_V = 1e6
_KINDS: dict[str, ContactKind] = {"seeg": "depth", "ecog": "subdural", "dbs": "dbs"}
_BIDS_TYPES = {"depth": "seeg", "subdural": "ecog", "dbs": "dbs", "micro": "seeg"}
_STIMULATED = "electrical_stimulation"


def read_bids(
    root: Path,
    subject: str,
    session: str | None = None,
    run: str | None = None,
    *,
    task: str | None = None,
    pulse_width_us: float = 200.0,
    contact_area_cm2: float = math.nan,
    dtype: torch.dtype = torch.float64,
) -> Recording:
    """One run of BIDS-iEEG, read against its reference, with every stimulation event that is not marked bad.

    A site "A1-A2" is one biphasic pulse whose first phase is cathodal at A1; BIDS does not say which contact came
    first, so the sign is a convention. Channels marked bad are left out of the montage's channels, not of its
    contacts, and named in `metadata["bad_channels"]`. Contacts without a place have NaN.

    Args:
        root: Folder of the data set.
        subject: Label without "sub-".
        session: Label, where there are sessions.
        run: Label, where there are runs.
        task: Label, where there are several.
        pulse_width_us: Of one phase, which BIDS does not require.
        contact_area_cm2: Of contacts whose electrodes table gives no size.
        dtype: Of the signal.

    Raises:
        DataError: If MNE-BIDS is not installed, no run or several match, or a table is missing or wrong.
        UnitError: If a current or a coordinate has no unit or a wrong one.
    """
    mne_bids = _mne_bids()
    found = _matching(root, subject, session, run, task)
    if len(found) != 1:
        names = ", ".join(path.basename for path in found) or "none"
        raise DataError(
            f"{root} has {len(found)} recordings for sub-{subject}: {names}; name session, task and run of one."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of optional side files, which are read here or not needed
            raw = mne_bids.read_raw_bids(found[0], verbose="error")
            signal_v = raw.get_data()
    except StimoptError:
        raise
    except Exception as error:  # MNE and MNE-BIDS raise many kinds for a damaged file
        raise DataError(
            f"{found[0].fpath} cannot be read ({str(error).splitlines()[0]}); check or copy it again."
        ) from error
    kinds = {
        name: _KINDS[kind] for name, kind in zip(raw.ch_names, raw.get_channel_types(), strict=True) if kind in _KINDS
    }
    montage, rows = _montage(found[0], kinds, contact_area_cm2)
    read = [i for i, channel in enumerate(montage.channels) if channel.name not in raw.info["bads"]]
    kept = Montage(montage.contacts, tuple(montage.channels[i] for i in read), montage.frame)
    signal_uv = torch.from_numpy(signal_v[[raw.ch_names.index(rows[i]) for i in read]] * UV_PER_V).to(dtype)
    stimuli, onsets_s = _events(found[0], kept, pulse_width_us)
    bad = [name for name in raw.info["bads"] if name in kinds]
    metadata = {"subject": subject, "session": session, "task": found[0].task, "run": found[0].run,
                "bad_channels": bad, "source": found[0].basename}  # fmt: skip
    return Recording(kept, signal_uv, float(raw.info["sfreq"]), stimuli, onsets_s, metadata)


def read_bids_runs(root: Path, subject: str, session: str | None = None, **options: Any) -> tuple[Recording, ...]:
    """Every run of a subject, in order; `options` as `read_bids`. Trials of several runs join by `concatenate`.

    Raises:
        DataError: If there is none, or as `read_bids`.
    """
    found = _matching(root, subject, session, None, options.pop("task", None))
    if not found:
        raise DataError(
            f"{root} has no iEEG recording for sub-{subject}{f' ses-{session}' if session else ''}; check both."
        )
    return tuple(read_bids(root, subject, p.session, p.run, task=p.task, **options) for p in found)


def write_bids(
    recording: Recording, root: Path, subject: str, session: str | None = None, run: str | None = None,
    *, task: str = "stim", line_hz: Literal[50, 60] = 50,
) -> Path:  # fmt: skip
    """One recording as BIDS-iEEG: BrainVision signal (float32), electrodes with places in mm, stimulation events.

    Only what BIDS has a place for is written: single-pulse trains at one contact or a pair. Read back, the signal
    agrees to float32.

    Returns:
        The header file.

    Raises:
        DataError: If MNE-BIDS is not installed, the run is there already, the session has other contacts, or a
            stimulus or channel does not fit.
    """
    mne_bids = _mne_bids()
    import mne

    kinds = [_BIDS_TYPES.get(_contact_of(recording.montage, channel).kind) for channel in recording.montage.channels]
    if None in kinds or any(channel.minus is not None for channel in recording.montage.channels):
        raise DataError(
            "only channels read against the reference, on depth, subdural, DBS or micro contacts, are iEEG here."
        )
    events = _event_rows(recording)
    path = mne_bids.BIDSPath(subject=subject, session=session, task=task, run=run, datatype="ieeg", root=root)
    electrodes = _electrodes_file(recording.montage, Path(path.directory), subject, session)
    _require_same(electrodes, _electrode_rows(recording.montage))
    info = mne.create_info([c.name for c in recording.montage.channels], recording.rate_hz, kinds)
    raw = mne.io.RawArray(recording.signal_uv.double().cpu().numpy() / UV_PER_V, info, verbose="error")
    raw.info["line_freq"] = float(line_hz)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            mne_bids.write_raw_bids(raw, path, format="BrainVision", allow_preload=True, verbose="error")
    except FileExistsError as error:
        raise DataError(f"{root} has this run already; write another run, or remove it first.") from error
    written = path.copy().update(suffix="ieeg", extension=".vhdr")
    folder, stem = written.fpath.parent, written.basename.removesuffix("_ieeg.vhdr")
    _write_table(folder / f"{stem}_events.tsv", events)
    _write_electrodes(electrodes, recording.montage)
    return Path(written.fpath)


def _mne_bids() -> Any:
    try:
        import mne_bids
    except ImportError as error:
        raise DataError("BIDS needs MNE-BIDS, which is not installed; run: pip install 'stimopt[bids]'") from error
    return mne_bids


def _matching(root: Path, subject: str, session: str | None, run: str | None, task: str | None) -> list[Any]:
    mne_bids = _mne_bids()
    if not (root / f"sub-{subject}").is_dir():
        raise DataError(
            f"{root / f'sub-{subject}'} does not exist; give the data set's root and the label after 'sub-'."
        )
    found = mne_bids.find_matching_paths(
        root, subjects=subject, sessions=session, runs=run, tasks=task, datatypes="ieeg", suffixes="ieeg",
        extensions=[".vhdr", ".edf", ".nwb", ".mefd", ".set"],
    )  # fmt: skip
    return sorted(found, key=lambda path: str(path.basename))


def _side_table(path: Any, suffix: str) -> Path | None:
    """The run's own side file, else the session's (electrodes carry no run)."""
    folder, stem = path.fpath.parent, path.basename.rpartition("_")[0]
    own = folder / f"{stem}_{suffix}"
    start = f"sub-{path.subject}" + (f"_ses-{path.session}" if path.session else "")
    found = [own] if own.is_file() else sorted(folder.glob(f"{start}*_{suffix}"))
    if len(found) > 1:
        raise DataError(
            f"{folder} has several {suffix}: {', '.join(p.name for p in found)}; keep one coordinate space."
        )
    return found[0] if found else None


def _rows(file: Path, needed: Sequence[str]) -> pd.DataFrame:
    frame = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    missing = [column for column in needed if column not in frame]
    if missing:
        raise DataError(f"{file} has no column {', '.join(missing)}; it has {', '.join(frame.columns)}.")
    return frame


def _montage(path: Any, kinds: dict[str, ContactKind], area_cm2: float) -> tuple[Montage, list[str]]:
    """The montage, and the channel of the file behind each of its channels."""
    names, places, areas, frame = _electrodes(path)
    pairs = {name: tuple(name.split("-")) for name in kinds if "-" in name}
    ends = {end: kinds[name] for name in kinds for end in pairs.get(name, (name,))}
    silent: ContactKind = next(iter(kinds.values()), "depth")  # contacts that stimulate and are read by no channel
    ends |= {name: silent for name in names if name not in ends and "-" not in name}
    contacts = tuple(
        Contact(name, places.get(name, NOWHERE_MM), areas.get(name, area_cm2), kind, re.sub(r"\d+$", "", name))
        for name, kind in ends.items()
    )
    channels = tuple(Channel(name, *pairs.get(name, (name,))) for name in kinds)
    return Montage(contacts, channels, frame), list(kinds)


def _electrodes(path: Any) -> tuple[list[str], dict[str, tuple[float, float, float]], dict[str, float], str]:
    file, system = _side_table(path, "electrodes.tsv"), _side_table(path, "coordsystem.json")
    if file is None:
        return [], {}, {}, "unknown"
    if system is None:
        raise DataError(f"{file} has no coordsystem.json beside it, so its unit is unknown; add one.")
    words = json.loads(system.read_text(encoding="utf-8"))
    unit, frame = str(words.get("iEEGCoordinateUnits", "n/a")), str(words.get("iEEGCoordinateSystem", "unknown"))
    places, areas = {}, {}
    rows = _rows(file, ["name", "x", "y", "z"]).to_dict("records")
    for row in rows:
        numbers = [_number(row[axis], file) for axis in "xyz"]
        if all(math.isfinite(number) for number in numbers):
            if unit not in ("m", "mm", "cm"):
                raise UnitError(f"{system}: coordinates are in {unit!r}; only m, cm and mm are places in the body.")
            x, y, z = (convert(number, unit, "mm") for number in numbers)
            places[row["name"]] = (x, y, z)
        size_mm2 = _number(row.get("size", "n/a"), file)
        if size_mm2 > 0:
            areas[row["name"]] = convert(size_mm2, "mm2", "cm2")
    return [row["name"] for row in rows], places, areas, frame


def _number(text: str, file: Path) -> float:
    if text.strip().lower() in ("n/a", "", "nan"):
        return math.nan
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{file}: {text!r} is no number; write one, or n/a.") from error


def _events(path: Any, montage: Montage, pulse_width_us: float) -> tuple[Stimulus, Tensor]:
    file = _side_table(path, "events.tsv")
    stimuli: list[Stimulus] = []
    onsets: list[float] = []
    if file is not None:
        for row in _rows(file, ["onset"]).to_dict("records"):
            if row.get("trial_type") == _STIMULATED and row.get("status", "good") != "bad":
                stimuli.append(_stimulus(row, montage, pulse_width_us, file))
                onsets.append(_number(row["onset"], file))
    if not stimuli:
        return no_stimulus(montage, (0,)), torch.zeros(0, dtype=torch.float64)
    joined = concatenate([map_tensors(stimulus, lambda tensor: tensor.unsqueeze(0)) for stimulus in stimuli])
    return joined, torch.tensor(onsets, dtype=torch.float64)


def _stimulus(row: dict[Any, Any], montage: Montage, pulse_width_us: float, file: Path) -> Stimulus:
    for column in ("electrical_stimulation_site", "electrical_stimulation_current"):
        if row.get(column, "n/a") in ("n/a", ""):
            raise DataError(f"{file}: the stimulation at {row['onset']} s has no {column}; fill it in or mark it bad.")
    current = parse_quantity(row["electrical_stimulation_current"], "mA")
    width = row.get("electrical_stimulation_pulsewidth", "n/a")
    width_us = pulse_width_us if width == "n/a" else parse_quantity(width, "us")
    return pulse_train(montage, row["electrical_stimulation_site"], amplitude_ma=current, pulse_width_us=width_us)


def _contact_of(montage: Montage, channel: Channel) -> Contact:
    return montage.contacts[montage.contact_index(channel.plus)]


def _event_rows(recording: Recording) -> pd.DataFrame:
    rows = []
    for trial in range(len(recording.onsets_s)):
        stimulus = recording.stimuli[trial]
        onset_s = float(recording.onsets_s[trial] + stimulus.onset_s)
        if stimulus.sensory is not None or float(stimulus.pulses) != 1 or float(stimulus.interphase_us) != 0:
            raise DataError(f"the stimulus at {onset_s:g} s is no plain single pulse; BIDS has no place for it here.")
        rows.append({
            "onset": repr(onset_s), "duration": repr(2e-6 * float(stimulus.pulse_width_us)), "trial_type": _STIMULATED,
            "electrical_stimulation_type": "biphasic", "electrical_stimulation_site": _site_of(stimulus, onset_s),
            "electrical_stimulation_current": f"{float(stimulus.amplitude_ma.abs().max())!r} mA",
            "electrical_stimulation_pulsewidth": f"{float(stimulus.pulse_width_us)!r} us", "status": "good",
        })  # fmt: skip
    columns = ["onset", "duration", "trial_type"] if not rows else None
    return pd.DataFrame(rows, columns=columns)


def _site_of(stimulus: Stimulus, onset_s: float) -> str:
    """Cathode first: the pair carries -amplitude and +amplitude."""
    current = stimulus.amplitude_ma.tolist()
    cathodes, anodes = (
        [c.name for c, i in zip(stimulus.montage.contacts, current, strict=True) if i * s > 0] for s in (-1, 1)
    )
    if len(cathodes) != 1 or len(anodes) > 1 or (anodes and abs(sum(current)) > 1e-9):
        raise DataError(
            f"the stimulus at {onset_s:g} s is not at one contact or one pair; BIDS has no place for it here."
        )
    return "-".join(cathodes + anodes)


def _electrode_rows(montage: Montage) -> pd.DataFrame:
    def text(number: float) -> str:
        return repr(number) if math.isfinite(number) else "n/a"

    return pd.DataFrame([
        {"name": c.name, **dict(zip("xyz", map(text, c.position_mm), strict=True)),
         "size": text(convert(c.area_cm2, "cm2", "mm2"))}
        for c in montage.contacts
    ])  # fmt: skip


def _electrodes_file(montage: Montage, folder: Path, subject: str, session: str | None) -> Path:
    label = montage.frame if montage.frame in ("ACPC", "ScanRAS") else "Other"
    return folder / (f"sub-{subject}" + (f"_ses-{session}" if session else "") + f"_space-{label}_electrodes.tsv")


def _require_same(file: Path, frame: pd.DataFrame) -> None:
    """The runs of a session share one table of electrodes."""
    if file.is_file() and file.read_text(encoding="utf-8") != _text(frame):
        raise DataError(f"{file} holds other contacts than this recording's; write it as another session.")


def _write_electrodes(file: Path, montage: Montage) -> None:
    # MNE-BIDS has written electrodes of its own, without places and without those contacts that are not read
    plain = file.with_name(re.sub("_space-[A-Za-z]+", "", file.name))
    for own in (
        plain,
        plain.with_suffix(".json"),
        plain.with_name(plain.name.replace("electrodes.tsv", "coordsystem.json")),
    ):
        own.unlink(missing_ok=True)
    _write_table(file, _electrode_rows(montage))
    system = {"iEEGCoordinateSystem": montage.frame, "iEEGCoordinateUnits": "mm",
              "iEEGCoordinateSystemDescription": f"frame {montage.frame!r} of the recording"}  # fmt: skip
    beside = file.with_name(file.name.replace("electrodes.tsv", "coordsystem.json"))
    beside.write_text(json.dumps(system, indent=1), encoding="utf-8")


def _write_table(file: Path, frame: pd.DataFrame) -> None:
    file.write_text(_text(frame), encoding="utf-8")


def _text(frame: pd.DataFrame) -> str:
    return str(frame.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n"))
