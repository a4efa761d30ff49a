"""Virtual patients of every circuit: their contract, their steps, and what stimuli do to them, even extreme ones."""

import inspect
from dataclasses import replace

import pytest
import torch

from stimopt.errors import ConfigError
from stimopt.safety_profiles import PROFILES
from stimopt.simulators import Twin
from stimopt.simulators.card import parameter_hash
from stimopt.simulators.circuit_patients import hopf_patient, kuramoto_patient, montbrio_patient, wilson_cowan_patient
from stimopt.simulators.cohort import cohort, jansen_rit_patient, linear_patient
from stimopt.simulators.compiled import compiled_simulate
from stimopt.simulators.nuclei_patients import (
    basal_ganglia_patient,
    corticothalamic_patient,
    relaxation_patient,
    stn_gpe_patient,
)
from stimopt.simulators.population import Population
from stimopt.simulators.populations import at_the_bedside
from stimopt.simulators.seizure_patients import epileptor_patient, wendling_patient
from stimopt.stimulus import Stimulus, no_stimulus, pulse_train
from stimopt.tensors import concatenate, generator, map_tensors

CORTEX = (
    wendling_patient, wilson_cowan_patient, hopf_patient, montbrio_patient, epileptor_patient, kuramoto_patient
)  # fmt: skip
NUCLEI = (stn_gpe_patient, corticothalamic_patient, relaxation_patient, basal_ganglia_patient)
PATIENTS = (*CORTEX, *NUCLEI)
STEPPING = (montbrio_patient, basal_ganglia_patient)  # the most steps a second; instances.py has them, shorter still
MARKED = [pytest.param(make, marks=pytest.mark.slow) if make in STEPPING else make for make in PATIENTS]
SHORT_S = {montbrio_patient: 0.008, basal_ganglia_patient: 0.006}


def small(make, patient=1, **options) -> Twin:
    """Few regions and short windows, shortest where steps are: the spiking cells take 20 steps a millisecond."""
    window_s = SHORT_S.get(make, 0.02)
    sizes = {"settle_s": window_s, "regions": 4, "contacts": 4, "units": 12, "window_s": window_s, "patient": patient}
    known = inspect.signature(make).parameters
    options = {name: value for name, value in {**sizes, **options}.items() if name in known}
    return make(**options)


def sites(twin: Twin) -> list[str]:
    """Pairs of neighbours, those with the largest field at a region first."""

    def reach(name: str) -> float:
        current = pulse_train(twin.montage, name, amplitude_ma=1.0).amplitude_ma
        return float((twin.drive.potential_mv_per_ma @ current).abs().max())

    return sorted(twin.montage.neighbour_pairs(), key=reach, reverse=True)


def rows(trains: list[Stimulus]) -> Stimulus:
    return concatenate([map_tensors(train, lambda tensor: tensor.unsqueeze(0)) for train in trains])


@pytest.mark.parametrize("make", PATIENTS)
def test_a_number_makes_the_patient_and_another_number_another_one(make):
    first, again, other = (parameter_hash(small(make, patient=number)) for number in (2, 2, 3))
    assert first == again
    assert first != other


@pytest.mark.parametrize("make", PATIENTS)
def test_a_step_larger_than_was_tested_is_refused_and_the_largest_is_named(make):
    largest_s = small(make).circuit.largest_dt_s
    with pytest.raises(ConfigError, match=f"the largest step tested for .* is {largest_s:g} s"):
        small(make, dt_s=1.01 * largest_s)


@pytest.mark.parametrize("make", [*PATIENTS, jansen_rit_patient, linear_patient])
def test_a_card_says_whose_equations_at_which_step_and_what_noise_means(make):
    twin = small(make)
    card = twin.card()
    assert "not stated" not in str(card["source"])
    assert any(year in str(card["source"]) for year in map(str, range(1940, 2030)))
    assert "noise" in str(card["noise_convention"]) or "white" in str(card["noise_convention"])
    assert 0 < float(card["dt_s"]) <= float(card["largest_tested_dt_s"])
    assert card["scheme"] in twin.circuit.tested_schemes
    assert len(str(card["parameters_sha256"])) == 64


@pytest.mark.parametrize("make", CORTEX)
def test_a_patient_without_regions_is_refused(make):
    with pytest.raises(ConfigError, match="at least 1"):
        make(regions=0)


@pytest.mark.parametrize("make", MARKED)
def test_halving_the_step_changes_a_stimulated_response_little(make):
    """At 2 mA and 60 Hz, as a share of the potential's range: 1.2 % in the epileptor, below 0.7 % in other fields.

    A step keeps the charge of a pulse and its place to an eighth of a step, not its shape. Spiking cells are played at
    first order; their largest change, 7 %, is on the flank of a spike.
    """
    window_s, allowed = 3 * SHORT_S.get(make, 0.02), 0.1 if make is basal_ganglia_patient else 0.02
    twin = small(make, noise=0.0, window_s=window_s, settle_s=0.0)
    train = pulse_train(twin.montage, sites(twin)[0], amplitude_ma=2.0, frequency_hz=60.0, pulses=3, onset_s=0.005)
    with torch.no_grad():
        whole, half = (
            one.activity_mv(one.start((), generator(0)), train, generator(1))[0]
            for one in (twin, replace(twin, dt_s=twin.dt_s / 2))
        )
    assert float((whole - half).abs().max()) < allowed * float(whole.amax() - whole.amin())


@pytest.mark.parametrize("make", MARKED)
def test_a_clinical_train_changes_what_is_read_by_more_than_the_amplifiers_noise(make):
    """50 Hz, 3 mA, 200 us near a region, against silence with the same noise."""
    twin = small(make, window_s=4 * SHORT_S.get(make, 0.02))
    train = pulse_train(twin.montage, sites(twin)[0], amplitude_ma=3.0, frequency_hz=50.0, pulses=5)
    with torch.no_grad():
        state = twin.start((), generator(0))
        driven, silent = (
            twin.sensing.clean_uv(twin.activity_mv(state, stimulus, generator(1))[0])
            for stimulus in (train, no_stimulus(twin.montage))
        )
    assert float((driven - silent).square().mean(-1).sqrt().max()) > twin.sensing.noise_uv


def bedside_patient(*, window_s: float, **_: object) -> Twin:
    """One of a cohort: delays, a lesion, drift, drowsiness, a clinical amplifier and a device with faults."""
    return cohort(1, 8, population=replace(at_the_bedside(Population()), window_s=window_s))[0].twin()


LARGEST = {  # mA, us, Hz: the most current, charge and pulses that profiles allow at once
    "mapping-50hz-seeg": ((10.0, 500.0, 100.0), (10.0, 500.0, 20.0)),
    "rns": ((12.0, 104.0, 333.0), (2.5, 500.0, 70.0)),
    "dbs-chronic": ((12.7, 140.0, 255.0), (3.9, 450.0, 130.0)),
}
# Seconds at a stretch: what a circuit remembers ends long before, but for the epileptor's permittivity (57 s)
STRETCH_S = {
    linear_patient: 600.0, bedside_patient: 600.0,
    jansen_rit_patient: 10.0, wendling_patient: 5.0, wilson_cowan_patient: 5.0, hopf_patient: 5.0,
    montbrio_patient: 2.5, epileptor_patient: 60.0, kuramoto_patient: 10.0, stn_gpe_patient: 5.0,
    corticothalamic_patient: 10.0, relaxation_patient: 2.5, basal_ganglia_patient: 1.25,
}  # fmt: skip
TEN_MINUTES_S = 600.0


def extremes(twin: Twin, profile: str, window_s: float) -> Stimulus:
    """The largest trains at the two sites that reach most, in both polarities, for a whole window."""
    trains = [
        pulse_train(
            twin.montage, site, amplitude_ma=sign * current_ma, pulse_width_us=width_us, frequency_hz=rate_hz,
            pulses=int(rate_hz * window_s * 0.99),
        )
        for site in sites(twin)[:2] for current_ma, width_us, rate_hz in LARGEST[profile] for sign in (1, -1)
    ]  # fmt: skip
    return rows(trains)


def bounded_for(twin: Twin, stimuli: Stimulus, windows: int) -> float:
    """Largest voltage read over so many windows one after the other."""
    largest_uv = 0.0
    with torch.no_grad():
        state = twin.start(stimuli.batch_shape, generator(0))
        for number in range(windows):
            response, state = twin.respond(state, stimuli, generator(1, number))
            assert bool(response.signal_uv.isfinite().all())
            assert all(bool(part.isfinite().all()) for part in state.values())
            largest_uv = max(largest_uv, float(response.signal_uv.abs().max()))
    return largest_uv


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("make", STRETCH_S)
def test_ten_minutes_of_the_most_extreme_allowed_stimuli_leave_every_signal_finite_and_bounded(make):
    """Ten minutes in all: as many rows as it takes, each STRETCH_S long, windows without a gap.

    Largest voltages from 120 uV (relaxation) to 4000 uV (Montbrio-Pazo-Roxin), simulated. The spiking
    cells take 480 rows of 25,000 steps: some minutes.
    """
    window_s, stretch_s = 1.25, STRETCH_S[make]
    profile = _PROFILE_OF.get(make, "mapping-50hz-seeg")
    twin = small(make, window_s=window_s)
    if make not in (relaxation_patient, basal_ganglia_patient):  # a mean field is not compiled, and cells take long to
        twin = replace(twin, play=compiled_simulate)
    stimuli = extremes(twin, profile, window_s)
    assert bool(PROFILES[profile].allowed(stimuli).all())
    repeats = round(TEN_MINUTES_S / (stretch_s * len(stimuli.pulses)) + 0.5)
    many = concatenate([stimuli] * repeats)
    largest_uv = bounded_for(twin, many, round(stretch_s / window_s))
    assert 5 * twin.sensing.noise_uv < largest_uv < 1e4


_PROFILE_OF = {
    wendling_patient: "rns", epileptor_patient: "rns", stn_gpe_patient: "dbs-chronic",
    relaxation_patient: "dbs-chronic", basal_ganglia_patient: "dbs-chronic",
}  # fmt: skip
