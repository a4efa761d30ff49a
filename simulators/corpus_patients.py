"""Patients for a corpus: one function a family, a number makes the patient, all windows alike (0.5 s at 250 Hz).

What a foundation model is trained on has to differ as patients do, and to be cheap: the ready
patients here vary in how many regions and contacts they have, those of the cohort in all that a
`Population` draws, over group connectomes where there are any. No patient has more than 24
recorded channels. All of it is simulated.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from stimopt.montage import Montage
from stimopt.tensors import generator, stream_seed

from .circuit_patients import hopf_patient, kuramoto_patient, montbrio_patient, wilson_cowan_patient
from .cohort import cohort, jansen_rit_patient, linear_patient
from .connectome import Connectome, read_connectome, without_regions
from .implanted import fitting_step
from .network import Network
from .nuclei_patients import corticothalamic_patient
from .population import Population, drawn_count
from .seizure_patients import epileptor_patient, wendling_patient
from .twin import Twin

WINDOW_S, RATE_HZ = 0.5, 250.0
MOST_CHANNELS = 24  # recorded ones of a montage; attention over channels is what a training step pays for
GROUPS = ("hcp_dk68.nc", "hcp400subj_schaefer200_counts_lengths.nc")  # with centres in mm and weights as counts
_MOST_REGIONS = 100  # larger groups are cut to one hemisphere, the slower half of whose cost brings no other response

_CONTACTS, _REGIONS = (8, 16), (8, 16)  # fewest and most, both even numbers of contacts


def jansen_rit_corpus_patient(*, patient: int = 0) -> Twin:
    """A `jansen_rit_patient` with 8 to 16 regions and contacts, 250 Hz.

    Args:
        patient: Any whole number.
    """
    return _in_single(jansen_rit_patient(**_asked("jansen-rit", patient), rate_hz=RATE_HZ, dt_s=2e-3))


def hopf_corpus_patient(*, patient: int = 0) -> Twin:
    """A `hopf_patient` with 8 to 16 regions and contacts, 250 Hz.

    Args:
        patient: Any whole number.
    """
    return _ready("hopf", hopf_patient, patient)


def wendling_corpus_patient(*, patient: int = 0) -> Twin:
    """A `wendling_patient` with 8 to 16 regions and contacts, 250 Hz.

    Args:
        patient: Any whole number.
    """
    return _ready("wendling", wendling_patient, patient)


def wilson_cowan_corpus_patient(*, patient: int = 0) -> Twin:
    """A `wilson_cowan_patient` with 8 to 16 regions and contacts, 250 Hz: the family that no training corpus holds.

    Args:
        patient: Any whole number.
    """
    return _ready("wilson-cowan", wilson_cowan_patient, patient)


def kuramoto_corpus_patient(*, patient: int = 0) -> Twin:
    """A `kuramoto_patient` with 8 to 16 regions and contacts, 250 Hz.

    Args:
        patient: Any whole number.
    """
    return _ready("kuramoto", kuramoto_patient, patient)


def montbrio_corpus_patient(*, patient: int = 0) -> Twin:
    """A `montbrio_patient` with 8 to 16 regions and contacts, 250 Hz; slow to play, its step is 0.1 ms.

    Args:
        patient: Any whole number.
    """
    return _ready("montbrio", montbrio_patient, patient)


def epileptor_corpus_patient(*, patient: int = 0) -> Twin:
    """An `epileptor_patient` with 8 to 16 regions and contacts, 250 Hz.

    Args:
        patient: Any whole number.
    """
    return _ready("epileptor", epileptor_patient, patient)


def linear_corpus_patient(*, patient: int = 0) -> Twin:
    """A `linear_patient` with 8 to 16 regions and contacts, 250 Hz.

    Args:
        patient: Any whole number.
    """
    twin = linear_patient(**_asked("linear", patient))
    return _in_single(replace(twin, rate_hz=RATE_HZ))


def corticothalamic_corpus_patient(*, patient: int = 0) -> Twin:
    """A `corticothalamic_patient` with 8 to 16 contacts, 250 Hz: no mix trains on it, so transfer may be chosen on it.

    Args:
        patient: Any whole number.
    """
    contacts = _asked("corticothalamic", patient)["contacts"]
    return _in_single(corticothalamic_patient(patient=patient, contacts=contacts, window_s=WINDOW_S, rate_hz=RATE_HZ))


def cohort_corpus_patient(*, patient: int = 0, connectomes: str | None = None) -> Twin:
    """A Jansen-Rit patient of a `Population` without delays, in a head around a group connectome.

    Args:
        patient: Any whole number; it also chooses the group.
        connectomes: A folder with files of `GROUPS`; without one, or where it holds none of them, every patient has a
            ball of tissue of its own.

    Raises:
        DataError: If a file there is no connectome.
    """
    source = generator(patient, "cohort", "corpus")
    groups = _groups(connectomes, left=bool(torch.randint(2, (), generator=source)))
    group = groups[int(torch.randint(len(groups), (), generator=source))] if groups else None
    kind = replace(Population(), speed_m_s=None, window_s=WINDOW_S, rate_hz=RATE_HZ, dt_s=2e-3)
    twin = cohort(1, stream_seed(patient, "cohort"), group=group, population=kind)[0].twin()
    return _in_single(with_channels(twin, _some_channels(twin.montage, source)))


def with_channels(twin: Twin, kept: list[int]) -> Twin:
    """The same twin with only these of its channels recorded, in this order; current enters where it did."""
    montage = replace(twin.montage, channels=tuple(twin.montage.channels[i] for i in kept))
    return replace(twin, montage=montage, sensing=replace(twin.sensing, uv_per_mv=twin.sensing.uv_per_mv[kept]))


def _some_channels(montage: Montage, source: torch.Generator) -> list[int]:
    channels = len(montage.channels)
    order: list[int] = torch.randperm(channels, generator=source).tolist()
    return sorted(order[:MOST_CHANNELS])


def _ready(family: str, make: Callable[..., Twin], patient: int) -> Twin:
    return _in_single(_at_once(make(**_asked(family, patient), rate_hz=RATE_HZ)))


def _asked(family: str, patient: int) -> dict[str, Any]:
    """Who the patient is, how many regions and contacts there are, and the window."""
    source = generator(patient, family, "sizes")
    regions, contacts = drawn_count(_REGIONS, source), 2 * drawn_count((_CONTACTS[0] // 2, _CONTACTS[1] // 2), source)
    return {"patient": patient, "regions": regions, "contacts": contacts, "window_s": WINDOW_S}


def _at_once(twin: Twin) -> Twin:
    """The same twin with tracts that take no time, and the step that this allows.

    In a ball of 15 mm they take some 5 ms at most, little beside what the circuits themselves take; playing them takes
    four fifths of the time of a window.
    """
    if not isinstance(twin.circuit, Network):
        return twin
    circuit = replace(twin.circuit, delay_s=None)
    return replace(twin, circuit=circuit, dt_s=fitting_step(circuit, twin.rate_hz))


def _in_single(twin: Twin) -> Twin:
    """In float32, which these circuits bear and which takes two thirds of the time."""
    return twin.to(torch.zeros((), dtype=torch.float32))


@cache
def _groups(folder: str | None, *, left: bool) -> tuple[Connectome, ...]:
    """Group connectomes that are there, large ones cut to one hemisphere."""
    files = [] if folder is None else [Path(folder) / name for name in GROUPS]
    return tuple(_one_side(read_connectome(file), left) for file in files if file.is_file())


def _one_side(group: Connectome, left: bool) -> Connectome:
    if len(group.names) <= _MOST_REGIONS:
        return group
    other = group.centre_mm[:, 0] >= 0 if left else group.centre_mm[:, 0] < 0
    return without_regions(group, other.nonzero()[:, 0].tolist())
