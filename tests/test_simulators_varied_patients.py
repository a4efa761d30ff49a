"""Patients unlike their kind: what is drawn differs, and does what it says."""

import pytest
import torch

from stimopt.simulators.corpus_patients import (
    hopf_corpus_patient,
    jansen_rit_corpus_patient,
    kuramoto_corpus_patient,
    linear_corpus_patient,
    wendling_corpus_patient,
)
from stimopt.simulators.drive import train_shares
from stimopt.simulators.varied_patients import PACE, varied, varied_corpus_patient
from stimopt.stimulus import no_stimulus, pulse_train
from stimopt.tensors import concatenate, generator

MAKERS = (
    jansen_rit_corpus_patient,
    wendling_corpus_patient,
    hopf_corpus_patient,
    kuramoto_corpus_patient,
    linear_corpus_patient,
)


@pytest.mark.parametrize("make", MAKERS)
def test_a_varied_patient_plays_on_and_answers_in_the_precision_of_its_kind(make):
    twin = varied(make(patient=3), generator(0, "varied"))
    pair = next(iter(twin.montage.neighbour_pairs()))
    loud = pulse_train(twin.montage, pair, amplitude_ma=6.0, frequency_hz=50.0, pulses=20, pulse_width_us=300.0)
    both = concatenate([loud.reshape(1), no_stimulus(twin.montage, (1,))])
    response, _ = twin.respond(twin.start((2,), generator(0, "start")), both, generator(0, "noise"))
    assert response.signal_uv.dtype == torch.float32
    assert bool(response.signal_uv.isfinite().all())
    assert float((response.signal_uv[0] - response.signal_uv[1]).abs().max()) > 0.0


def test_a_slower_column_has_the_same_fixed_points():
    """Rates and sizes of synapses go together, so what a column rests at does not move with its pace."""
    plain = jansen_rit_corpus_patient(patient=5)
    other = varied(plain, generator(1, "varied"))
    before, after = plain.circuit.circuit, other.circuit.circuit
    gain = before.excitation_mv / before.excitation_per_s
    torch.testing.assert_close(after.excitation_mv / after.excitation_per_s, torch.full((plain.regions,), gain))
    pace = after.excitation_per_s / before.excitation_per_s
    assert bool(((pace >= PACE[0]) & (pace <= PACE[1])).all())
    assert len(pace.unique()) > 1  # regions differ
    assert other.dt_s == (plain.dt_s / 2 if float(pace.max()) > 1 else plain.dt_s)


def test_numbers_choose_kinds_and_how_trains_count():
    twins = [varied_corpus_patient(patient=number) for number in range(12)]
    assert len({type(twin.circuit.circuit) for twin in twins}) >= 3
    even = [twin.drive.shares is train_shares for twin in twins]
    assert any(even)
    assert not all(even)
