"""Twins keep the System contract, pass gradients through windows, and make a search worth running."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from stimopt.errors import ConfigError, ContractError, MontageError, ShapeError, StimulusError
from stimopt.montage import Contact, monopolar
from stimopt.objective import BandPower
from stimopt.simulators import JansenRit, Network, Twin, heun, jansen_rit_patient, linear_patient
from stimopt.simulators.actuator import Actuator
from stimopt.simulators.card import parameter_hash
from stimopt.simulators.drive import pulse_shares, train_shares
from stimopt.simulators.entry import Entry
from stimopt.simulators.senses import Pathway, declare_senses
from stimopt.simulators.vigilance import Vigilance
from stimopt.stimulus import Sensory, Stimulus, no_stimulus, pulse_train
from stimopt.system import State, System, sliced
from stimopt.tensors import concatenate, generator, map_tensors
from stimopt.testing import check_objective, check_system

PATIENTS = (jansen_rit_patient, linear_patient)


def small(make) -> Twin:
    return replace(make(patient=1, regions=6, contacts=8, window_s=0.06), settle_s=0.05)


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
    twin = small(make)
    check_system(twin, stimuli_for(twin), differentiable=True)


@pytest.mark.parametrize("make", PATIENTS)
def test_a_virtual_patient_keeps_the_contract_in_single_precision(make):
    twin = small(make).to(torch.zeros((), dtype=torch.float32))
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


@pytest.mark.parametrize(("knob", "step"), [("amplitude_ma", 1e-5), ("frequency_hz", 1e-4), ("pulse_width_us", 1e-3)])
def test_a_scores_gradient_through_two_windows_agrees_with_finite_differences(knob, step):
    twin = small(linear_patient)
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


def delayed() -> Twin:
    """Three columns with conduction delays of 3.4 to 11 ms, none of them whole steps."""
    twin = jansen_rit_patient(patient=1, regions=4, contacts=4, window_s=0.06)
    afferents_hz = torch.tensor([150.0, 60.0, 70.0, 180.0], dtype=torch.float64)
    weights = 1 - torch.eye(4, dtype=torch.float64)
    delay_s = torch.linspace(0.0034, 0.011, 16, dtype=torch.float64).reshape(4, 4)
    return replace(twin, circuit=Network(JansenRit(afferents_hz), weights, gain=8.0, delay_s=delay_s), settle_s=0.05)


KNOBS = {"amplitude_ma": 1e-5, "frequency_hz": 1e-4, "pulse_width_us": 1e-3, "coupling": 1e-5}  # finite steps


@pytest.mark.parametrize("shares", [pulse_shares, train_shares])
def test_gradients_of_a_delayed_network_through_two_windows_agree_with_finite_differences(shares):
    """All four at once: rows of one batch share noise and state, and each is moved along one knob."""
    twin = delayed()
    twin = replace(twin, drive=replace(twin.drive, shares=shares))
    base = pulse_train(
        twin.montage, "A1-A2", amplitude_ma=2.0, frequency_hz=71.3, pulse_width_us=213.0, pulses=4, onset_s=0.0041
    )
    begun = twin.start((), generator(0))

    def scores(moved: torch.Tensor) -> torch.Tensor:
        """Moved along each knob, [row, knob]."""
        rows, (current, frequency, width, coupling) = len(moved), moved.unbind(-1)
        train = base.expand(rows)
        stimuli = replace(
            train,
            amplitude_ma=train.amplitude_ma + train.amplitude_ma.sign() * current.unsqueeze(-1),
            frequency_hz=train.frequency_hz + frequency,
            pulse_width_us=train.pulse_width_us + width,
        )
        state = {name: tensor.expand(rows, *tensor.shape) for name, tensor in begun.items()}
        return two_window_score(replace(twin, circuit=replace(twin.circuit, gain=8.0 + coupling)), state, stimuli)

    here = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(scores(here).sum(), here)
    steps = torch.tensor(list(KNOBS.values()), dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = scores(torch.cat([steps.diag(), -steps.diag()])).chunk(2)
    assert bool((slope.abs() > 1e-6).all())
    torch.testing.assert_close(slope[0], (ahead - behind) / (2 * steps), rtol=1e-5, atol=0.0)


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
    fastest_per_s = float(twin.circuit.circuit.excitation_per_s)
    largest_s = 2e-3 * min(1.0, 150.0 / fastest_per_s)
    with pytest.raises(ConfigError, match=f"is {largest_s:g} s"):
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


@cache
def settled() -> tuple[Twin, State]:
    """A patient of usual size, six times at the beginning of a session."""
    twin = jansen_rit_patient(patient=1)
    with torch.no_grad():
        return twin, twin.start((6,), generator(0))


def test_the_focus_has_alpha_of_the_size_that_depth_electrodes_record():
    twin, state = settled()
    with torch.no_grad():
        response, _ = twin.respond(state, no_stimulus(twin.montage, (6,)), generator(1))
    loudest = float(response.signal_uv.std(-1).mean(0).max())
    assert 20.0 < loudest < 300.0  # uV; tens to hundreds are what sEEG shows (Frauscher et al. 2018, Brain 141:1130)


def test_stimulation_at_the_focus_silences_alpha_and_elsewhere_does_not():
    twin, state = settled()
    stimuli = [
        pulse_train(twin.montage, pair, amplitude_ma=3.0, frequency_hz=60.0, pulses=30) for pair in ("B2-B3", "A1-A2")
    ]
    rows = [*stimuli, no_stimulus(twin.montage)]
    batch = concatenate([map_tensors(r.expand(6), lambda t: t.clone()) for r in rows])
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


def tiny(**parts) -> Twin:
    return replace(jansen_rit_patient(patient=1, regions=4, contacts=4, window_s=0.05), settle_s=0.02, **parts)


def equipped() -> Twin:
    """Every part that a patient may have, on a network with delays."""
    return replace(
        delayed(),
        actuator=Actuator(amplitude_step_ma=0.1, rise_ma=1.5, gain_error=0.1),
        senses=declare_senses({"visual": Pathway(2, 0.03)}, delayed().circuit.circuit.afferents_hz),
        vigilance=Vigilance(-30.0, 0.3, 0.3),
        side_effect_ma=torch.full((4,), 1.2, dtype=torch.float64),
        drift=6.0,
    )


def test_a_patient_with_every_part_keeps_the_contract():
    twin = replace(equipped(), window_s=0.03)
    check_system(twin, stimuli_for(twin), differentiable=True)


def test_a_patient_with_every_part_moves_to_single_precision():
    twin = equipped().to(torch.zeros((), dtype=torch.float32))
    state = twin.start((3,), generator(0))
    response, after = twin.respond(state, stimuli_for(twin), generator(1))
    floats = [t for t in (response.signal_uv, *response.outcomes.values(), *after.values()) if t.is_floating_point()]
    assert {t.dtype for t in floats} == {torch.float32}


def test_a_current_above_a_contacts_limit_is_felt_and_nothing_else_shows_it():
    limits = torch.tensor([2.5, 2.5, 2.5, 1.5], dtype=torch.float64)
    plain, twin = tiny(), tiny(side_effect_ma=limits)
    pairs, rows = ("A1-A2", "B1-B2", "A1-A2"), (2.0, 2.0, 3.0)
    trains = [pulse_train(twin.montage, p, amplitude_ma=a, frequency_hz=60.0) for p, a in zip(pairs, rows, strict=True)]
    batch = concatenate(
        [map_tensors(t, lambda tensor: tensor.unsqueeze(0)) for t in [*trains, no_stimulus(twin.montage)]]
    )
    state = twin.start((4,), generator(0))
    response, _ = twin.respond(state, batch, generator(1))
    unfelt, _ = plain.respond(state, batch, generator(1))
    assert response.outcomes["side_effect"].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert torch.equal(response.signal_uv, unfelt.signal_uv)
    assert "side_effect" not in unfelt.outcomes


def test_a_device_that_delivers_less_spares_the_side_effect():
    twin = tiny(side_effect_ma=torch.full((4,), 1.5, dtype=torch.float64), actuator=Actuator(rise_ma=1.0))
    state, felt = twin.start((), generator(0)), []
    for window in range(2):
        train = pulse_train(twin.montage, "A1-A2", amplitude_ma=2.0, frequency_hz=60.0)
        response, state = twin.respond(state, train, generator(window))
        felt.append(float(response.outcomes["side_effect"]))
    assert felt == [0.0, 1.0]


def test_limits_of_another_montage_are_refused():
    with pytest.raises(ShapeError, match="side effects"):
        tiny(side_effect_ma=torch.ones(7, dtype=torch.float64))


def test_drowsiness_comes_and_goes_as_often_as_it_says():
    """A chain that falls with 0.1 and wakes with 0.3 is drowsy a quarter of the time, once forgotten how it began."""
    keys, vigilance = torch.arange(4000), Vigilance(10.0, drowsing=0.1, waking=0.3)
    drowsy = torch.zeros(4000, dtype=torch.float64)
    for window in range(12):
        before, drowsy = drowsy, vigilance.next(keys + 10_000 * window, drowsy)
    assert abs(float(drowsy.mean()) - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5 + 0.25 * 0.6**12
    woke = float((1 - drowsy)[before > 0].mean())
    assert abs(woke - 0.3) < 4 * (0.3 * 0.7 / 1000) ** 0.5


def test_drowsiness_moves_the_background_and_shows_in_no_outcome():
    twin = tiny(vigilance=Vigilance(-80.0, 0.5, 0.5))
    state = twin.start((2,), generator(0))
    assert not state["drowsy"].any()
    same = {name: tensor[:1].expand_as(tensor) for name, tensor in state.items()}
    one_drowsy = {**same, "drowsy": torch.tensor([0.0, 1.0], dtype=torch.float64)}
    activity, after = twin.activity_mv(one_drowsy, no_stimulus(twin.montage, (2,)), generator(1))
    assert float((activity[0] - activity[1]).mean()) > 0.1  # mV
    assert set(after["drowsy"].tolist()) <= {0.0, 1.0}
    response, _ = twin.respond(one_drowsy, no_stimulus(twin.montage, (2,)), generator(1))
    assert not response.outcomes


def test_a_stimulus_may_polarise_instead_of_recruiting():
    """-0.2 mV of membrane per mV outside: cathodic phases depolarise pyramidal cells, anodic ones do the reverse."""
    entries = ({"pyramidal_mv": Entry(cathodic_mv=0.2)}, {"pyramidal_mv": Entry(anodic_mv=-0.2)})
    up, down = (tiny(entry=entry, drift=0.0) for entry in entries)
    state = up.start((), generator(0))
    train = pulse_train(up.montage, "A1", amplitude_ma=2.0, frequency_hz=120.0, pulses=6, pulse_width_us=400.0)
    silent, _ = up.activity_mv(state, no_stimulus(up.montage), generator(1))
    change = [float((twin.activity_mv(state, train, generator(1))[0] - silent).mean()) for twin in (up, down)]
    assert change[0] > 1e-3
    assert change[1] < -1e-3


def test_slow_changes_reach_a_circuit_that_only_polarises():
    twin = tiny(entry={"pyramidal_mv": Entry(cathodic_mv=0.2)}, drift=30.0)
    state = twin.start((), generator(0))
    moved = {**state, "drift": torch.tensor(1.0, dtype=torch.float64)}
    calm, _ = twin.activity_mv(state, no_stimulus(twin.montage), generator(1))
    assert float((twin.activity_mv(moved, no_stimulus(twin.montage), generator(1))[0] - calm).mean()) > 0.05


def test_a_card_says_what_a_twin_is():
    twin = replace(tiny(), scheme=heun)
    card, largest_s = twin.card(), twin.circuit.largest_dt_s
    assert card["circuit"] == "JansenRit"
    assert card["source"] == JansenRit.source
    assert card["noise_convention"] == JansenRit.noise_convention
    assert (card["dt_s"], card["largest_tested_dt_s"], card["scheme"], card["regions"]) == (
        1e-3,
        largest_s,
        "heun",
        4.0,
    )
    assert len(str(card["parameters_sha256"])) == 64


def test_a_card_tells_parameters_apart_and_not_how_they_are_played():
    twin = equipped()
    circuit = twin.circuit
    others = [
        replace(twin, dt_s=5e-4),
        replace(twin, circuit=replace(circuit, gain=8.0001)),
        replace(twin, circuit=replace(circuit, circuit=replace(circuit.circuit, threshold_mv=6.01))),
        replace(twin, circuit=replace(circuit, delay_s=circuit.delay_s * 1.001)),
        replace(twin, drive=replace(twin.drive, shares=train_shares)),
        replace(twin, actuator=Actuator(amplitude_step_ma=0.2, rise_ma=1.5, gain_error=0.1)),
        replace(twin, side_effect_ma=None),
    ]
    cards = [str(other.card()["parameters_sha256"]) for other in (twin, *others)]
    assert len(set(cards)) == len(cards)
    assert equipped().card() == twin.card()
    assert replace(twin, play=lambda *a, **k: twin.play(*a, **k)).card() == twin.card()


def test_a_fingerprint_is_the_same_on_every_machine():
    """Written down here; the last digits of a number, where machines differ, are not in it."""
    column = JansenRit(torch.tensor([120.0, 1 / 3], dtype=torch.float64))
    assert parameter_hash(column) == "fec601894f9b68fd275f1d2f2aa28ee09a333e46cfac37921a75a7687fd10b51"
    nearby = JansenRit(torch.tensor([120.0, 1 / 3 + 1e-15], dtype=torch.float64))
    assert parameter_hash(nearby) == parameter_hash(column)
    assert parameter_hash(replace(column, noise_hz=1.84)) != parameter_hash(column)
