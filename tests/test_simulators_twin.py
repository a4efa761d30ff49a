"""Twins keep the System contract, pass gradients through windows, and make a search worth running."""

from dataclasses import replace

import pytest
import torch

from stimopt.errors import ConfigError, ContractError, MontageError, ShapeError, StimulusError
from stimopt.montage import Contact, monopolar
from stimopt.objective import BandPower
from stimopt.simulators import Twin, jansen_rit_patient, linear_patient
from stimopt.stimulus import Sensory, Stimulus, no_stimulus, pulse_train
from stimopt.system import State, System, sliced
from stimopt.tensors import concatenate, generator, map_tensors
from stimopt.testing import check_objective, check_system

PATIENTS = (jansen_rit_patient, linear_patient)


def small(make) -> Twin:
    return make(patient=1, regions=6, contacts=8, window_s=0.1)


def stimuli_for(system: System) -> Stimulus:
    pairs = system.montage.neighbour_pairs()
    trains = [
        pulse_train(system.montage, pairs[0], amplitude_ma=2.0, frequency_hz=60.0, pulses=5, onset_s=0.013),
        pulse_train(system.montage, pairs[-1], amplitude_ma=4.0, frequency_hz=25.0, pulses=2, onset_s=0.021),
        no_stimulus(system.montage),
    ]
    return concatenate([map_tensors(train, lambda tensor: tensor.unsqueeze(0)) for train in trains])


@pytest.mark.parametrize("make", PATIENTS)
def test_a_virtual_patient_keeps_the_contract_of_a_system(make):
    twin = replace(small(make), settle_s=0.1)
    check_system(twin, stimuli_for(twin), differentiable=True)


@pytest.mark.parametrize("make", PATIENTS)
def test_a_virtual_patient_keeps_the_contract_in_single_precision(make):
    twin = replace(small(make), settle_s=0.1).to(torch.zeros((), dtype=torch.float32))
    state = twin.start((2,), generator(0))
    response, _ = twin.respond(state, stimuli_for(twin)[:2], generator(1))
    assert response.signal_uv.dtype == torch.float32
    check_system(twin, stimuli_for(twin))


class Leaky(System):
    """Answers every row with the mean over the batch: what the contract forbids."""

    def __init__(self, twin: Twin) -> None:
        self.twin, self.montage, self.window_s = twin, twin.montage, twin.window_s

    def start(self, batch_shape, generator):
        return self.twin.start(batch_shape, generator)

    def respond(self, state: State, stimulus, generator):
        response, after = self.twin.respond(state, stimulus, generator)
        mixed = response.signal_uv + response.signal_uv.mean(0, keepdim=True)
        return replace(response, signal_uv=mixed), after


def test_the_check_names_the_clause_when_rows_see_each_other():
    twin = replace(small(linear_patient), settle_s=0.0)
    with pytest.raises(ContractError, match="rows of a batch do not see each other"):
        check_system(Leaky(twin), stimuli_for(twin))


class Forgetful(Leaky):
    """Draws from a generator of its own."""

    def respond(self, state: State, stimulus, generator):
        response, after = self.twin.respond(state, stimulus, generator)
        return replace(response, signal_uv=response.signal_uv + torch.rand((), generator=self.source)), after

    source = generator(3)


def test_the_check_names_the_clause_when_a_seed_does_not_decide():
    twin = replace(small(linear_patient), settle_s=0.0)
    with pytest.raises(ContractError, match="same state, stimulus and seed, same response"):
        check_system(Forgetful(twin), stimuli_for(twin))


def test_a_row_answers_the_same_alone_and_in_any_batch():
    twin = small(jansen_rit_patient)
    state = twin.start((3,), generator(5))
    stimuli = stimuli_for(twin)
    together, _ = twin.respond(state, stimuli, generator(6))
    for row in range(3):
        alone, _ = twin.respond(sliced(state, slice(row, row + 1)), stimuli[row : row + 1], generator(6))
        torch.testing.assert_close(alone.signal_uv[0], together.signal_uv[row], rtol=0, atol=1e-9)


def test_rows_that_begin_together_have_noise_of_their_own():
    twin = small(jansen_rit_patient)
    response, _ = twin.respond(twin.start((2,), generator(5)), no_stimulus(twin.montage, (2,)), generator(6))
    assert not torch.allclose(response.signal_uv[0], response.signal_uv[1])


def test_two_windows_with_one_seed_draw_different_noise():
    twin = replace(small(linear_patient), settle_s=0.0)
    silence = no_stimulus(twin.montage)
    first, state = twin.respond(twin.start((), generator(0)), silence, generator(1))
    second, _ = twin.respond({**state, "circuit": torch.zeros_like(state["circuit"])}, silence, generator(1))
    assert not torch.allclose(first.signal_uv, second.signal_uv)


def two_window_score(twin: Twin, state: State, stimulus: Stimulus) -> torch.Tensor:
    objective = BandPower((10.0, 30.0))
    for window in range(2):
        response, state = twin.respond(state, stimulus, generator(2, window))
    return objective(response, stimulus)


@pytest.mark.parametrize("make", PATIENTS)
@pytest.mark.parametrize(("knob", "step"), [("amplitude_ma", 1e-5), ("frequency_hz", 1e-4), ("pulse_width_us", 1e-3)])
def test_a_scores_gradient_through_two_windows_agrees_with_finite_differences(make, knob, step):
    twin = small(make)
    state = twin.start((), generator(0))
    base = pulse_train(
        twin.montage, "A2-A3", amplitude_ma=2.0, frequency_hz=61.3, pulse_width_us=213.0, pulses=5, onset_s=0.0121
    )
    size = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    reference = getattr(base, knob)
    direction = torch.sign(reference)

    def score(by):
        return two_window_score(twin, state, replace(base, **{knob: reference + direction * by}))

    (slope,) = torch.autograd.grad(score(size - 1.0), size)
    with torch.no_grad():
        numeric = (score(step) - score(-step)) / (2 * step)
    assert abs(float(slope)) > 1e-6
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=0.0)


def test_drift_stays_at_zero_when_off_and_wanders_with_unit_variance_when_on():
    twin = replace(small(linear_patient), settle_s=0.0, drift_windows=2.0, window_s=0.004)
    state = twin.start((1500,), generator(0))
    assert not state["drift"].any()
    for window in range(8):
        _, state = twin.respond(state, no_stimulus(twin.montage, (1500,)), generator(1, window))
    spread = 1 - torch.exp(torch.tensor(-8.0))  # variance reached after four times drift_windows
    assert abs(float(state["drift"].var()) - float(spread)) < 0.15  # four standard errors of 1500 draws


def test_drift_shifts_the_excitability_of_all_regions():
    twin = replace(small(linear_patient), sensing=replace(small(linear_patient).sensing, noise_uv=0.0), drift=30.0)
    state = twin.start((2,), generator(0))
    same = {name: tensor[:1].expand_as(tensor) for name, tensor in state.items()}
    moved = {**same, "drift": torch.tensor([0.0, 1.0], dtype=torch.float64)}
    response, _ = twin.respond(moved, no_stimulus(twin.montage, (2,)), generator(1))
    assert float((response.signal_uv[1] - response.signal_uv[0]).mean()) > 0.1


def test_a_step_larger_than_tested_is_refused_with_the_largest():
    twin = small(jansen_rit_patient)
    with pytest.raises(ConfigError, match=r"0\.002"):
        replace(twin, dt_s=0.004, rate_hz=250.0)


def test_a_rate_that_steps_do_not_fit_is_refused():
    with pytest.raises(ConfigError, match="whole number"):
        replace(small(jansen_rit_patient), rate_hz=300.0)


def test_a_stimulus_of_another_batch_is_refused():
    twin = replace(small(linear_patient), settle_s=0.0)
    with pytest.raises(ShapeError, match="as many rows"):
        twin.respond(twin.start((2,), generator(0)), no_stimulus(twin.montage), generator(1))


def test_a_stimulus_for_other_contacts_is_refused():
    twin = replace(small(linear_patient), settle_s=0.0)
    other = monopolar([Contact(f"X{i}") for i in range(8)])
    with pytest.raises(MontageError, match="twin's montage"):
        twin.respond(twin.start((), generator(0)), no_stimulus(other), generator(1))


def test_a_flash_is_refused_by_a_circuit_without_senses():
    twin = replace(small(linear_patient), settle_s=0.0)
    one = torch.tensor(1.0, dtype=torch.float64)
    flash = Sensory("visual", one, one, one, one * 0, torch.zeros(0, dtype=torch.float64))
    with pytest.raises(StimulusError, match="no senses"):
        twin.respond(twin.start((), generator(0)), replace(no_stimulus(twin.montage), sensory=flash), generator(1))


def test_patients_differ_and_one_number_is_one_patient():
    first, again, other = (jansen_rit_patient(patient=p) for p in (3, 3, 4))
    assert torch.equal(first.circuit.weights, again.circuit.weights)
    assert first.montage == again.montage
    assert not torch.equal(first.circuit.weights, other.circuit.weights)


def test_the_focus_has_alpha_of_the_size_that_depth_electrodes_record():
    twin = jansen_rit_patient(patient=1)
    with torch.no_grad():
        response, _ = twin.respond(twin.start((4,), generator(0)), no_stimulus(twin.montage, (4,)), generator(1))
    loudest = float(response.signal_uv.std(-1).mean(0).max())
    assert 20.0 < loudest < 300.0  # uV; tens to hundreds are what sEEG shows (Frauscher et al. 2018, Brain 141:1130)


def test_stimulation_at_the_focus_silences_alpha_and_elsewhere_does_not():
    twin = jansen_rit_patient(patient=1)
    stimuli = [
        pulse_train(twin.montage, pair, amplitude_ma=3.0, frequency_hz=60.0, pulses=30) for pair in ("B2-B3", "A1-A2")
    ]
    rows = [*stimuli, no_stimulus(twin.montage)]
    batch = concatenate([map_tensors(r.expand(6), lambda t: t.clone()) for r in rows])
    state = twin.start((6,), generator(0))
    many = {name: tensor.repeat(3, *[1] * (tensor.ndim - 1)) for name, tensor in state.items()}
    with torch.no_grad():
        response, _ = twin.respond(many, batch, generator(1))
    at_focus, elsewhere, silence = BandPower((8, 13))(response, batch).reshape(3, 6).mean(-1).tolist()
    assert at_focus > silence + 0.5  # half a decade of alpha power
    assert elsewhere < silence + 0.1


def test_band_power_of_a_twins_response_keeps_the_contract_of_an_objective():
    twin = small(linear_patient)
    stimuli = stimuli_for(twin)
    response, _ = twin.respond(twin.start((3,), generator(0)), stimuli, generator(1))
    check_objective(BandPower((10.0, 30.0)), response, stimuli)
