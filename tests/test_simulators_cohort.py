"""Virtual patients are drawn within published ranges, differ as heads do, and come back from a file to the bit."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from stimopt.errors import ConfigError, DataError, MontageError, ShapeError
from stimopt.simulators.artefact import Artefact
from stimopt.simulators.cohort import cohort, jansen_rit_patient
from stimopt.simulators.connectome import (
    Connectome,
    ball_connectome,
    perturbed,
    read_connectome,
    without_regions,
    without_tracts,
)
from stimopt.simulators.implanted import fitting_step, implanted, joined_by
from stimopt.simulators.implants import head_around
from stimopt.simulators.interference import Background, LineNoise
from stimopt.simulators.jansen_rit import JansenRit
from stimopt.simulators.linear import LinearOscillator
from stimopt.simulators.network import Network
from stimopt.simulators.patient import VirtualPatient, load_patient
from stimopt.simulators.population import JANSEN_RIT_RANGES, Population, Range
from stimopt.simulators.populations import POPULATIONS, at_the_bedside
from stimopt.simulators.rails import Saturation
from stimopt.simulators.simulate import simulate
from stimopt.simulators.twin import Twin
from stimopt.stimulus import no_stimulus, pulse_train
from stimopt.tensors import concatenate, generator, map_tensors
from stimopt.testing import check_system

QUICK = Population(window_s=0.05, sites=3)
OSCILLATORS = Population(
    circuit=LinearOscillator,
    ranges=(
        Range("natural_per_s", 40.0, 90.0, "region", (30.0, 100.0), "this test"),
        Range("damping_per_s", 4.0, 10.0, "patient", (0.0, 20.0), "this test"),
    ),
    speed_m_s=None,
    window_s=0.05,
)


def response_hash(twin: Twin) -> str:
    """Two windows of a twin, to the bit."""
    twin = replace(twin, settle_s=0.02)
    stimulus = pulse_train(twin.montage, twin.montage.neighbour_pairs()[0], amplitude_ma=3.0, onset_s=0.01).expand(2)
    state, digest = twin.start((2,), generator(0)), hashlib.sha256()
    for window in range(2):
        response, state = twin.respond(state, stimulus, generator(1, window))
        digest.update(response.signal_uv.numpy().tobytes())
    return digest.hexdigest()


AGAIN = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from test_simulators_cohort import load_patient, response_hash
print(response_hash(load_patient(sys.argv[1]).twin()))
"""


def test_a_saved_patient_answers_the_same_to_the_bit_in_another_process(tmp_path):
    patient = cohort(3, seed=5, population=QUICK)[2]
    file = patient.save(tmp_path / "patient.json")
    here = str(__file__).rsplit("/", 1)[0]
    again = subprocess.run(
        [sys.executable, "-c", AGAIN, str(file), here], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert again == response_hash(patient.twin())
    assert file.stat().st_size < 20_000  # a small file


def test_a_loaded_patient_equals_the_saved_one(tmp_path):
    for patient in cohort(4, seed=1, population=QUICK):
        assert load_patient(patient.save(tmp_path / "patient.json")) == patient


def test_a_patient_of_a_group_needs_the_group_again(tmp_path):
    group = ball_connectome(10, seed=3)
    file = cohort(1, seed=1, group=group, population=QUICK)[0].save(tmp_path / "patient.json")
    assert (
        load_patient(file, group=group).connectome.names
        == cohort(1, 1, group=group, population=QUICK)[0].connectome.names
    )
    with pytest.raises(DataError, match="none was given"):
        load_patient(file)
    with pytest.raises(DataError, match="was given; pass `group`"):
        load_patient(file, group=ball_connectome(10, seed=4))


def spoilt(file, change) -> None:
    plain = json.loads(file.read_text(encoding="utf-8"))
    change(plain)
    file.write_text(json.dumps(plain), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda plain: plain.update(version=3), "has version 3"),
        (lambda plain: plain.update(format="something else"), "is not a stimopt virtual patient"),
        (lambda plain: plain["patient"].update(gain=7.0), "changed after it was saved"),
        (lambda plain: plain["patient"]["side_effect_ma"].append(1.0), "changed after it was saved"),
        (lambda plain: plain.pop("patient"), "changed after it was saved"),
    ],
)
def test_a_spoilt_file_is_refused(tmp_path, change, sentence):
    file = cohort(1, seed=1, population=QUICK)[0].save(tmp_path / "patient.json")
    spoilt(file, change)
    with pytest.raises(DataError, match=sentence):
        load_patient(file)


def test_no_file_a_cut_file_and_another_circuit_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_patient(tmp_path / "none.json")
    file = cohort(1, seed=1, population=QUICK)[0].save(tmp_path / "patient.json")
    with pytest.raises(DataError, match="a patient of JansenRit, LinearOscillator was given"):
        load_patient(file, circuit=LinearOscillator)
    file.write_text(file.read_text()[:100])
    with pytest.raises(DataError, match="no complete JSON"):
        load_patient(file)


def test_a_recipe_that_makes_other_tracts_is_refused():
    patient = cohort(1, seed=1, population=QUICK)[0]
    with pytest.raises(DataError, match="come out as"):
        replace(patient, anatomy=replace(patient.anatomy, seed=9)).twin()


def test_a_patient_is_the_same_in_a_cohort_of_any_size_and_differs_from_the_others():
    few, many = cohort(2, seed=4), cohort(5, seed=4)
    assert few == many[:2]
    assert len({patient.anatomy.fingerprint for patient in many}) == 5
    assert cohort(1, seed=5)[0] != few[0]


def test_parameters_stay_within_what_was_published():
    for patient in cohort(20, seed=7):
        for one in JANSEN_RIT_RANGES:
            value = patient.parameters[one.parameter]
            low = 0.0 if one.parameter == "afferents_hz" else one.published[0]
            values = value if isinstance(value, tuple) else (value,)
            assert all(low <= v <= one.published[1] for v in values), one.parameter


def test_two_regions_are_driven_into_alpha_and_the_others_rest():
    for patient in cohort(10, seed=2):
        afferents = torch.tensor(patient.parameters["afferents_hz"])
        assert int((afferents > 89.83).sum()) == 2  # the Hopf point, Grimbert and Faugeras 2006
        assert len(afferents) == len(patient.connectome.names)


@pytest.mark.slow
def test_numbers_fill_their_ranges_evenly():
    patients = cohort(300, seed=11, population=replace(Population(), shafts=(1, 1), strips=(0, 0), leads=(0, 0)))
    low, high = Population().gain
    share = (torch.tensor([patient.gain for patient in patients]) - low) / (high - low)
    counts = torch.histc(share, 5, 0, 1)
    assert float(((counts - 60) ** 2 / 60).sum()) < 18.5  # chi squared, 4 degrees: one seed in a thousand
    limits = torch.cat([torch.tensor(patient.side_effect_ma, dtype=torch.float64) for patient in patients])
    assert abs(float(limits.mean()) / 5.4 - 1) < 0.05  # 1500 draws of spread 2.8 / 5.4: standard error 1.3 %
    assert abs(float(limits.std()) / 2.8 - 1) < 0.15


def test_side_effects_and_drowsiness_are_the_patient_s_own_and_act():
    patient = cohort(1, seed=1, population=QUICK)[0]
    twin = replace(patient.twin(), settle_s=0.0)
    assert twin.vigilance is not None
    assert 0.01 <= twin.vigilance.drowsing <= 0.03
    limit_ma = patient.side_effect_ma[0]
    weak, strong = (
        pulse_train(twin.montage, twin.montage.contacts[0].name, amplitude_ma=share * limit_ma) for share in (0.9, 1.1)
    )
    stimuli = concatenate([map_tensors(train, lambda tensor: tensor.unsqueeze(0)) for train in (weak, strong)])
    response, _ = twin.respond(twin.start((2,), generator(0)), stimuli, generator(1))
    assert response.outcomes["side_effect"].tolist() == [0.0, 1.0]


def test_further_numbers_of_a_twin_are_drawn_by_name():
    patients = cohort(3, seed=1, population=replace(QUICK, more={"half_mv": (30.0, 50.0), "settle_s": (0.1, 0.2)}))
    twins = [patient.twin() for patient in patients]
    assert len({twin.drive.half_mv for twin in twins}) == 3
    assert all(30.0 <= twin.drive.half_mv <= 50.0 and 0.1 <= twin.settle_s <= 0.2 for twin in twins)


def test_a_range_outside_the_published_one_is_refused():
    with pytest.raises(ConfigError, match="published are"):
        replace(JANSEN_RIT_RANGES[2], high=20.0)
    with pytest.raises(ConfigError, match="lowest first"):
        Population(gain=(3.0, 1.0))
    with pytest.raises(ConfigError, match="for the focus alone"):
        cohort(1, seed=0, population=replace(QUICK, ranges=JANSEN_RIT_RANGES[1:]))


def test_contacts_of_a_cohort_lie_in_their_heads():
    for patient in cohort(20, seed=3):
        head = head_around(patient.connectome.centre_mm)
        assert bool(head.inside(patient.montage.contact_position_mm).all())


def test_dropped_channels_are_not_recorded_but_their_contacts_stay():
    patient = cohort(1, seed=3, population=replace(QUICK, dropped_share=0.4))[0]
    twin = patient.twin()
    assert len(twin.montage.channels) < len(twin.montage.contacts) == len(patient.side_effect_ma)
    assert len(cohort(1, seed=3, population=replace(QUICK, dropped_share=1.0))[0].montage.channels) == 1


def test_heads_scatter_around_the_group_lognormally_and_keep_its_tracts():
    group = without_tracts(ball_connectome(80, seed=2), [(0, 1), (5, 9)])
    head = perturbed(group, generator(4), weight_log_spread=0.3, length_log_spread=0.05)
    assert torch.equal(head.weights == 0, group.weights == 0)
    assert torch.equal(head.weights, head.weights.mT)
    used = group.weights.triu(1) > 0  # 3158 tracts: standard errors of 0.0053 and 1.3 %
    for one, other, spread in ((head.weights, group.weights, 0.3), (head.tract_mm, group.tract_mm, 0.05)):
        logarithm = (one[used] / other[used]).log()
        assert abs(float(logarithm.mean())) < 4 * spread / 3158**0.5
        assert abs(float(logarithm.std()) / spread - 1) < 0.05


def test_lesions_remove_what_they_name_and_nothing_else():
    whole = ball_connectome(8, seed=1)
    left = without_regions(whole, [2, 5])
    assert left.names == tuple(name for i, name in enumerate(whole.names) if i not in (2, 5))
    assert torch.equal(left.weights[2:4][:, 2:4], whole.weights[3:5][:, 3:5])
    cut = without_tracts(whole, [(0, 3)])
    assert float(cut.weights[0, 3]) == float(cut.weights[3, 0]) == 0.0
    assert int((cut.weights != whole.weights).sum()) == 2
    for lesion, named in ((without_regions, [8]), (without_tracts, [(0, 8)])):
        with pytest.raises(ShapeError, match="regions 0 to 7"):
            lesion(whole, named)
    with pytest.raises(ShapeError, match="leave at least one"):
        without_regions(whole, range(8))


def test_a_patient_has_the_lesion_that_was_drawn():
    hurt = replace(QUICK, lost_regions=(2, 2), lost_tract_share=(0.25, 0.25))
    patient = cohort(1, seed=6, population=hurt)[0]
    assert len(patient.connectome.names) == 14 == patient.twin().regions
    assert len(patient.anatomy.lost_tracts) == 30  # a quarter of 120
    whole = replace(patient.anatomy, lost_tracts=(), lost_regions=(), fingerprint="").connectome()
    for one, other in patient.anatomy.lost_tracts:
        names = [name for name in (whole.names[one], whole.names[other]) if name in patient.connectome.names]
        places = [patient.connectome.names.index(name) for name in names]
        assert len(places) < 2 or float(patient.connectome.weights[places[0], places[1]]) == 0.0


def heard_far_away(connectome: Connectome) -> float:
    """How much region 0 changes when region 1 is pushed."""
    circuit = joined_by(JansenRit(torch.full((6,), 60.0, dtype=torch.float64)), connectome, 40.0)
    drive = torch.zeros(100, 3, 2, 6, 2, dtype=torch.float64)
    drive[:, :, 1, 1, 0] = 200.0
    start = circuit.rest.expand(2, 6, 6)
    played = simulate(circuit, start, dt_s=1e-3, drive=drive, reading=circuit.potential_mv).readings
    return float((played[1, 0] - played[0, 0]).abs().max())


def test_a_lesion_cuts_off_what_travelled_along_the_tract():
    whole = ball_connectome(6, seed=2)
    alone = without_tracts(whole, [(1, other) for other in (0, 2, 3, 4, 5)])
    assert heard_far_away(whole) > 1e-3
    assert heard_far_away(alone) == 0.0


def two_stimuli(twin: Twin):
    trains = [
        pulse_train(twin.montage, twin.montage.neighbour_pairs()[0], amplitude_ma=2.0, onset_s=0.013),
        no_stimulus(twin.montage),
    ]
    return concatenate([map_tensors(train, lambda tensor: tensor.unsqueeze(0)) for train in trains])


def test_a_patient_with_delays_lesions_and_lost_channels_keeps_the_contract():
    patient = cohort(1, seed=8, population=replace(QUICK, lost_regions=(8, 8), window_s=0.03))[0]
    twin = replace(patient.twin(), settle_s=0.02)
    assert isinstance(twin.circuit, Network)
    assert float(twin.circuit.delay_s[twin.circuit.late].min()) >= twin.dt_s
    check_system(twin, two_stimuli(twin), differentiable=True)


def test_a_cohort_of_another_circuit_is_drawn_and_comes_back(tmp_path):
    patient = cohort(1, seed=1, population=OSCILLATORS)[0]
    again = load_patient(patient.save(tmp_path / "patient.json"), circuit=LinearOscillator)
    assert response_hash(again.twin()) == response_hash(patient.twin())


@pytest.mark.parametrize("name", POPULATIONS)
def test_every_ready_population_makes_patients_that_answer_behind_a_clinical_amplifier_and_come_back(tmp_path, name):
    kind = replace(at_the_bedside(POPULATIONS[name]), window_s=0.05, sites=3)
    drawn = cohort(2, 5, population=kind)
    assert drawn[0].amplifier != drawn[1].amplifier
    assert drawn[0].device != drawn[1].device
    again = load_patient(drawn[0].save(tmp_path / "patient.json"))  # the circuit by its name
    assert again == drawn[0]
    twin = replace(again.twin(), settle_s=0.02)
    assert response_hash(twin) == response_hash(drawn[0].twin())
    assert {type(part) for part in twin.sensing.parts} >= {Artefact, LineNoise, Background, Saturation}
    assert twin.sensing.noise_uv == 0.0  # the amplifier's own takes its place
    train = pulse_train(twin.montage, twin.montage.neighbour_pairs()[0], amplitude_ma=2.17, onset_s=0.01).expand(3)
    state = twin.start((3,), generator(0))
    delivered = twin.delivered(state, train).amplitude_ma.abs().amax(-1)
    assert bool((delivered <= 2.1 + 1e-9).all())  # in steps of 0.1 mA, and up to a tenth less
    assert bool((delivered > 1.8).all())
    response, _ = twin.respond(state, train, generator(1))
    assert bool(response.signal_uv.isfinite().all())
    assert float(response.signal_uv.std()) > 1.0


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ConfigError, match="fewer than 4"):
        cohort(1, seed=0, regions=4)
    with pytest.raises(ConfigError, match="n is -1"):
        cohort(-1, seed=0)
    nowhere = replace(ball_connectome(8, seed=0), centre_mm=torch.full((8, 3), torch.nan, dtype=torch.float64))
    with pytest.raises(MontageError, match="no centres"):
        cohort(1, seed=0, group=nowhere)


@pytest.mark.slow
def test_a_recorded_connectome_makes_patients_that_answer(recordings, tmp_path):
    group = read_connectome(recordings / "connectomes" / "tvb76.nc")
    patient = cohort(1, seed=1, group=group, population=replace(QUICK, shafts=(10, 16)))[0]
    assert 60 <= len(patient.montage.contacts) <= 320
    again = load_patient(patient.save(tmp_path / "patient.json"), group=group)
    assert response_hash(again.twin()) == response_hash(patient.twin())
    assert (tmp_path / "patient.json").stat().st_size < 60_000


def test_the_ready_patient_is_the_one_that_landscapes_were_made_on():
    patient = jansen_rit_patient(patient=6)
    assert isinstance(patient.circuit, Network)
    assert (float(patient.circuit.gain), patient.drive.follow_hz) == FROZEN_SIX
    assert patient.montage.contacts[0].position_mm == FROZEN_CONTACT


FROZEN_SIX = (5.276390032234356, 62.99282771741145)
FROZEN_CONTACT = (-12.126267451589854, -2.780770718781691, 2.1702093416281008)


@pytest.mark.parametrize("regions", [1, 2, 3, 7])
def test_any_number_of_regions_is_implanted(regions):
    circuit = LinearOscillator(torch.full((regions,), 60.0, dtype=torch.float64), 6.0, 12.0)
    twin = implanted(circuit, patient=1, gain=4.0, contacts=6, window_s=0.05, settle_s=0.0, noise_uv=0.0)
    check_system(twin, two_stimuli(twin), differentiable=True)
    state = twin.start((2,), generator(0))
    signal = twin.respond(state, two_stimuli(twin), generator(1))[0].signal_uv
    assert float(signal[0].abs().max()) > 0.0
    assert not signal[1].any()  # nothing pushes


def test_units_of_a_circuit_are_met_by_scale_and_entry():
    circuit = JansenRit(torch.full((3,), 60.0, dtype=torch.float64), noise_hz=0.0)
    options = {"contacts": 4, "window_s": 0.05, "settle_s": 0.0, "noise_uv": 0.0}

    def answer(**more) -> torch.Tensor:
        twin = implanted(circuit, **options, **more)
        return twin.respond(twin.start((2,), generator(0)), two_stimuli(twin), generator(1))[0].signal_uv

    torch.testing.assert_close(answer(uv_per_mv=10.0), answer() / 10)
    assert not torch.allclose(answer(entry={"pyramidal_mv": 0.01}), answer())
    assert torch.equal(answer(entry={"afferents_hz": 0.0})[0], answer()[1])


def test_a_network_is_taken_as_it_is():
    weights = torch.ones(2, 2, dtype=torch.float64) - torch.eye(2, dtype=torch.float64)
    late = 5e-3 * weights
    network = Network(JansenRit(torch.full((2,), 60.0, dtype=torch.float64)), weights, 5.0, delay_s=late)
    assert implanted(network, contacts=4, window_s=0.1).circuit is network
    with pytest.raises(ConfigError, match="has its tracts already"):
        implanted(network, contacts=4, gain=3.0)


def test_the_step_fits_circuit_samples_and_delays():
    circuit = JansenRit(torch.full((2,), 60.0, dtype=torch.float64))
    assert fitting_step(circuit, 500.0) == 2e-3  # the largest tested
    assert fitting_step(circuit, 1000.0) == 1e-3
    assert fitting_step(circuit, 400.0) == 1.25e-3
    weights = torch.ones(2, 2, dtype=torch.float64) - torch.eye(2, dtype=torch.float64)
    assert fitting_step(Network(circuit, weights, delay_s=1.3e-3 * weights), 500.0) == 1e-3


def test_single_precision_circuits_make_single_precision_twins():
    twin = implanted(JansenRit(torch.full((3,), 60.0)), gain=5.0, speed_m_s=4.0, contacts=4, window_s=0.1)
    assert twin.drive.potential_mv_per_ma.dtype == twin.sensing.uv_per_mv.dtype == torch.float32


def test_a_patient_is_a_plain_noun():
    patient = cohort(1, seed=1, population=QUICK)[0]
    assert isinstance(patient, VirtualPatient)
    assert json.loads(json.dumps(patient.to_dict())) is not None


def test_tracts_that_run_one_way_only_are_cut_too():
    group = ball_connectome(8, seed=3)
    one_way = replace(group, weights=group.weights.tril())
    patient = cohort(1, seed=1, group=one_way, population=replace(QUICK, lost_tract_share=(1.0, 1.0)))[0]
    assert not patient.connectome.weights.any()
