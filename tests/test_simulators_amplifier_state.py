"""What an amplifier still holds as a window ends reaches the next one: two windows read as one of twice the length."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import load, save

from stimopt.errors import ShapeError
from stimopt.montage import Contact, monopolar
from stimopt.objective import LineLength
from stimopt.rollout import begin, decide, merged
from stimopt.safety_profiles import PROFILES
from stimopt.simulators import Network, Twin, linear_patient, simulate
from stimopt.simulators.amplifier import CommonAverage, Delay, SensedWindow, StatefulPart
from stimopt.simulators.artefact import Artefact, artefact_coupling
from stimopt.simulators.band import Band
from stimopt.simulators.compiled import compiled_simulate
from stimopt.simulators.interference import WhiteNoise
from stimopt.simulators.rails import Saturation, SoftSaturation
from stimopt.simulators.sensing import Sensing, clinical_amplifier, lead_field_sensing
from stimopt.space import Parameter, StimulationSpace
from stimopt.stimulus import Stimulus, no_stimulus, pulse_train
from stimopt.system import State, sliced
from stimopt.task import Task
from stimopt.tensors import concatenate, generator, map_tensors, row_keys
from stimopt.testing import check_system

MONTAGE = monopolar([Contact(f"A{i + 1}", (3.5 * i, 0.0, 0.0), shaft="A") for i in range(5)])
CAP = monopolar([Contact(name, (10.0 * i, 0.0, 85.0), kind="scalp") for i, name in enumerate(("Fz", "Cz", "Oz"))])
RATE_HZ = 500.0
WINDOW_S = 0.01  # the shortest that twins are meant for
SUMS = 1e-9  # uV of some hundreds: the same sums in another order

PARTS = (
    Artefact(artefact_coupling(MONTAGE), late=0.3, tail_s=20e-3),
    Band(low_hz=0.3),
    Band(low_hz=2.0, high_hz=90.0, order=3),
    Saturation(40.0, recovery_s=0.013),
    Delay(0.010),
    Delay(0.0473),
)


def train(montage=MONTAGE, **changes: float) -> Stimulus:
    options = {"amplitude_ma": 2.0, "frequency_hz": 300.0, "pulses": 2, "onset_s": 0.0013}
    return pulse_train(montage, montage.neighbour_pairs()[0], **(options | changes))


def windows_read(part: StatefulPart, state: State, signal: torch.Tensor, lengths: list[int], stimulus: Stimulus):
    """The signal in windows of these lengths, the stimulus in the first, and the state after the last."""
    keys, seen = row_keys((2,), generator(0)), []
    for number, piece in enumerate(signal.split(lengths, -1)):
        given = stimulus if number == 0 else no_stimulus(MONTAGE)
        read, state = part.continued(state, piece, SensedWindow(given.expand(2), RATE_HZ, keys, number))
        seen.append(read)
    return torch.cat(seen, -1), state


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("lengths", [[30, 30], [5] * 12, [17, 1, 40, 2]], ids=str)
def test_a_part_reads_windows_as_it_reads_one(part, lengths):
    signal = 40 * torch.randn(2, 5, 80, generator=generator(1), dtype=torch.float64) + 15
    before, signal = signal.split([20, 60], -1)
    window = SensedWindow(no_stimulus(MONTAGE, (2,)), RATE_HZ, row_keys((2,), generator(0)), 1)
    state = part.continued(part.start(before, window), before, window)[1]
    whole, end = windows_read(part, state, signal, [60], train())
    pieces, end_of_pieces = windows_read(part, state, signal, lengths, train())
    torch.testing.assert_close(pieces, whole, rtol=0, atol=SUMS)
    assert {name: tensor.shape for name, tensor in end.items()} == {name: t.shape for name, t in state.items()}
    for name in end:
        torch.testing.assert_close(end_of_pieces[name], end[name], rtol=0, atol=SUMS)
    apart = torch.cat([part.applied(piece, window) for piece in signal.split(lengths, -1)], -1)
    assert float((apart - whole).abs().max()) > 1.0  # each window by itself is another reading


def test_a_part_without_anything_to_hold_has_no_state():
    window = SensedWindow(no_stimulus(MONTAGE, (1,)), RATE_HZ, row_keys((1,), generator(0)), 1)
    signal = torch.randn(1, 5, 10, generator=generator(1), dtype=torch.float64)
    for part in (Delay(0.0), Saturation(40.0), Band()):
        assert part.start(signal, window) == {}
        assert part.continued({}, signal, window)[1] == {}


def test_an_offset_of_millivolts_costs_no_digits_in_single_precision():
    wave = 10 * torch.randn(1, 1, 5000, generator=generator(1), dtype=torch.float64) + 8000.0
    keys, reads = row_keys((1,), generator(0)), []
    for signal in (wave, wave.float()):
        band, seen = Band(0.3, 100.0, order=2), []
        window = SensedWindow(no_stimulus(MONTAGE, (1,)), RATE_HZ, keys, 1)
        state = band.start(signal[..., :5], window)
        for piece in signal.split(5, -1):
            read, state = band.continued(state, piece, window)
            seen.append(read)
        reads.append(torch.cat(seen, -1).double())
    # 8000 uV in single precision are rounded by 2e-4 uV, and the filter of 0.3 Hz sums some hundreds of them
    assert float((reads[0] - reads[1]).abs().max()) < 0.05


@cache
def quiet(window_s: float = WINDOW_S, *, settle_s: float = 0.1, play=simulate) -> Twin:
    """A twin without noise, behind every part of an amplifier that draws none."""
    twin = linear_patient(patient=1, regions=4, contacts=6, window_s=window_s, drift=0.0)
    assert isinstance(twin.circuit, Network)
    circuit = replace(twin.circuit, circuit=replace(twin.circuit.circuit, noise_gain=0.0))
    parts = (
        Artefact(artefact_coupling(twin.montage), late=0.3),
        Band(0.3, 150.0, order=2),
        Saturation(300.0, recovery_s=0.012),
        SoftSaturation(4000.0),
        CommonAverage(),
        Delay(WINDOW_S),
    )
    sensing = replace(twin.sensing, noise_uv=0.0, parts=parts)
    return replace(twin, circuit=circuit, sensing=sensing, settle_s=settle_s, play=play)


def session(twin: Twin, windows: int, state: State | None = None, rows: int = 2) -> torch.Tensor:
    """The recording of some windows, stimulated in the first."""
    state, seen = twin.start((rows,), generator(0)) if state is None else state, []
    for number in range(windows):
        stimulus = train(twin.montage) if number == 0 else no_stimulus(twin.montage)
        response, state = twin.respond(state, stimulus.expand(rows), generator(1, number))
        seen.append(response.signal_uv)
    return torch.cat(seen, -1)


@pytest.mark.parametrize("play", [simulate, compiled_simulate], ids=["plain", "compiled"])
@pytest.mark.parametrize("settle_s", [0.0, 0.001, 0.1, 0.101], ids=str)
def test_a_session_of_short_windows_reads_as_one_long_window(play, settle_s):
    long, short = (quiet(window_s, settle_s=settle_s, play=play) for window_s in (8 * WINDOW_S, WINDOW_S))
    whole, pieces = session(long, 1), session(short, 8)
    assert float(whole.std()) > 10.0
    torch.testing.assert_close(pieces, whole, rtol=0, atol=SUMS)


def test_a_recording_that_is_late_by_a_window_shows_the_window_before():
    late = quiet()
    prompt = replace(late, sensing=replace(late.sensing, parts=late.sensing.parts[:-1]))
    seen, expected = session(late, 6), session(prompt, 6)
    assert bool((seen.unflatten(-1, (6, -1)).std(-1) > 0).all(0).all(0)[1:].all())  # no window is a constant
    torch.testing.assert_close(seen[..., 5:], expected[..., :-5], rtol=0, atol=SUMS)


def test_a_session_begins_with_an_amplifier_that_was_on_while_the_twin_settled():
    twin = linear_patient(patient=1, regions=4, contacts=6, window_s=WINDOW_S)
    late = replace(twin, sensing=replace(twin.sensing, noise_uv=0.0, parts=(Delay(WINDOW_S),)))
    waiting_uv = late.start((2,), generator(0))["sensing_0_waiting_uv"]
    assert waiting_uv.shape == (2, len(twin.montage.channels), 5)
    assert float(waiting_uv.std(-1).min()) > 0  # noise of the circuit went on
    first, _ = late.respond(late.start((2,), generator(0)), no_stimulus(twin.montage, (2,)), generator(1))
    assert torch.equal(first.signal_uv, waiting_uv)
    assert set(twin.start((2,), generator(0))) == {"circuit", "drift", "key"}  # without an amplifier, no state of one


def test_a_gradient_reaches_the_next_window_through_what_the_amplifier_holds():
    twin = quiet()
    stimulus, state = train(twin.montage), twin.start((), generator(0))
    weight = torch.rand(len(twin.montage.channels), 5, generator=generator(2), dtype=torch.float64)

    def score(amplitude_ma: torch.Tensor) -> torch.Tensor:
        _, after = twin.respond(state, replace(stimulus, amplitude_ma=amplitude_ma), generator(1))
        after = {name: t if name.startswith("sensing") else t.detach() for name, t in after.items()}
        response, _ = twin.respond(after, no_stimulus(twin.montage), generator(2))
        return (weight * response.signal_uv).sum()

    amplitude_ma = stimulus.amplitude_ma.clone().requires_grad_()
    (slope,) = torch.autograd.grad(score(amplitude_ma), amplitude_ma)
    direction = torch.rand(6, generator=generator(3), dtype=torch.float64)
    step = 1e-5 * direction
    numeric = (score(stimulus.amplitude_ma + step) - score(stimulus.amplitude_ma - step)) / 2e-5
    assert float(numeric.abs()) > 1.0
    torch.testing.assert_close(slope @ direction, numeric, rtol=1e-5, atol=0)


def test_a_saved_state_goes_on_where_it_was_and_a_row_as_in_its_batch():
    twin = quiet()
    _, state = twin.respond(twin.start((2,), generator(0)), train(twin.montage).expand(2), generator(1))
    there = session(twin, 3, state)
    back = load(save({name: tensor.contiguous() for name, tensor in state.items()}))
    assert torch.equal(session(twin, 3, back), there)
    torch.testing.assert_close(session(twin, 3, sliced(state, slice(1, 2)), rows=1)[0], there[1], rtol=0, atol=SUMS)


@pytest.mark.parametrize("noise", [(), (WhiteNoise(5.0),)], ids=["silent", "noisy"])
def test_a_twin_behind_a_late_and_filtering_amplifier_keeps_the_contract_of_a_system(noise):
    twin = quiet()
    twin = replace(twin, sensing=replace(twin.sensing, parts=(*noise, *clinical_amplifier(twin.montage), Delay(0.004))))
    stimuli = [map_tensors(train(twin.montage, amplitude_ma=a), lambda t: t.unsqueeze(0)) for a in (1.0, 3.0)]
    check_system(twin, concatenate(stimuli), differentiable=True)


def test_a_state_without_an_amplifier_begins_with_its_window():
    twin = quiet()
    state = twin.start((2,), generator(0))
    old = {name: tensor for name, tensor in state.items() if not name.startswith("sensing")}
    window = twin.respond(old, train(twin.montage).expand(2), generator(1))
    potential_mv, _ = twin.activity_mv(old, train(twin.montage).expand(2), generator(1))
    alone = twin.sensing.signal_uv(potential_mv, train(twin.montage).expand(2), RATE_HZ, keys=old["key"], salt=0)
    assert torch.equal(window[0].signal_uv, alone)
    assert set(window[1]) == set(state)


def test_a_state_of_another_amplifier_is_refused():
    twin, state = quiet(), quiet().start((2,), generator(0))
    later = replace(twin, sensing=replace(twin.sensing, parts=(*twin.sensing.parts[:-1], Delay(0.02))))
    with pytest.raises(ShapeError, match=r"part 5 of the sensing, Delay.*start a new session"):
        later.respond(state, no_stimulus(twin.montage, (2,)), generator(1))
    less = {name: tensor for name, tensor in state.items() if name != "sensing_1_low_pass"}
    with pytest.raises(ShapeError, match="part 1 of the sensing, Band"):
        twin.respond(less, no_stimulus(twin.montage, (2,)), generator(1))


def test_activity_that_others_read_leaves_the_amplifier_as_a_response_does():
    twin, stimulus = quiet(), train(quiet().montage).expand(2)
    state = twin.start((2,), generator(0))
    after, same = (way(state, stimulus, generator(1))[1] for way in (twin.respond, twin.activity_mv))
    assert set(after) == set(same)
    assert all(torch.equal(after[name], same[name]) for name in after)


def scalp(regions: int) -> Sensing:
    field = torch.rand(3, regions, generator=generator(3), dtype=torch.float64)
    return lead_field_sensing(CAP, field, parts=(Band(0.3, 40.0), Delay(0.015)))


def paired(twin: Twin, windows: int) -> torch.Tensor:
    others = {"scalp": (CAP, scalp(twin.regions))}
    state, seen = twin.start_paired((2,), generator(0), others), []
    for number in range(windows):
        stimulus = train(twin.montage) if number == 0 else no_stimulus(twin.montage)
        both = twin.respond_paired(state, stimulus.expand(2), generator(1, number), others)
        seen.append(both.others["scalp"].signal_uv)
        state = both.after
    return torch.cat(seen, -1)


def test_another_recording_of_short_windows_reads_as_one_long_window_too():
    whole, pieces = paired(quiet(8 * WINDOW_S), 1), paired(quiet(), 8)
    assert float(whole.std()) > 1e-3
    torch.testing.assert_close(pieces, whole, rtol=0, atol=SUMS)


def test_another_recording_does_not_touch_the_twins_own_state():
    twin = quiet()
    others = {"scalp": (CAP, scalp(twin.regions))}
    plain, more = twin.start((2,), generator(0)), twin.start_paired((2,), generator(0), others)
    assert all(torch.equal(plain[name], more[name]) for name in plain)
    assert sorted(more.keys() - plain.keys()) == [
        "scalp/sensing_0_high_pass", "scalp/sensing_0_low_pass", "scalp/sensing_1_waiting_uv"
    ]  # fmt: skip


def test_loops_that_are_renewed_begin_with_an_amplifier_of_their_own():
    twin = quiet()
    space = StimulationSpace((Parameter("amplitude_ma", "continuous", 0.0, 3.0),), train(twin.montage))
    task = Task(twin, LineLength(), space, PROFILES["mapping-50hz-seeg"])
    fresh, running = (begin(task, 2, generator(seed)) for seed in (0, 1))
    pulse = train(twin.montage, frequency_hz=50.0, pulses=1)
    judged, running = decide(task, running, pulse.expand(2), generator(2))
    assert not judged.refused.any()
    both = merged(torch.tensor([True, False]), fresh, running)
    waiting = "sensing_5_waiting_uv"
    assert torch.equal(both.state[waiting][0], fresh.state[waiting][0])
    assert torch.equal(both.state[waiting][1], running.state[waiting][1])
    assert not torch.equal(running.state[waiting], fresh.state[waiting])
