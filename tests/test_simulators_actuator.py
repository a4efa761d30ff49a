"""A device delivers less than commanded, never more; what it delivers can be seen."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stimopt.errors import ConfigError
from stimopt.montage import Contact, monopolar
from stimopt.safety import Envelope, Limit
from stimopt.safety_limits import LIMITS, ROUNDING
from stimopt.safety_profiles import PROFILES
from stimopt.simulators import Twin, jansen_rit_patient
from stimopt.simulators.actuator import Actuator
from stimopt.stimulus import Stimulus, no_stimulus, pulse_train
from stimopt.system import State
from stimopt.tensors import concatenate, generator, map_tensors, row_keys
from stimopt.testing import check_system

MONTAGE = monopolar([Contact(f"A{i}", (3.5 * i, 0.0, 0.0), 0.05, "depth", "A") for i in range(4)])
WINDOW_S = 0.5
FROM_ABOVE = ("contact_current_ma", "total_current_ma", "pulse_width_max_us", "frequency_max_hz", "pulses", "train_s",
              "window_s", "phase_charge_uc", "charge_density_uc_cm2", "duty_cycle", "ramp_ma", "dose_minute_uc",
              "dose_hour_uc", "net_charge_uc")  # fmt: skip
VALUES = dict.fromkeys(FROM_ABOVE, 7.3) | {"pulse_width_max_us": 900.0, "frequency_max_hz": 300.0, "pulses": 90.0}


def one(contacts: str = "A1-A2", **changes: float) -> Stimulus:
    numbers = {"amplitude_ma": 2.03, "frequency_hz": 47.3, "pulse_width_us": 207.0, "pulses": 8, "onset_s": 0.0121}
    return pulse_train(MONTAGE, contacts, **{**numbers, **changes})


def off(actuator: Actuator, rows: int = 1, seed: int = 0) -> State:
    keys = row_keys((rows,), generator(seed))
    return {"key": keys, **actuator.start(keys, torch.zeros(4, dtype=torch.float64))}


def delivered(actuator: Actuator, *commands: Stimulus) -> list[Stimulus]:
    """What comes out in one window after the other, one row."""
    state, given = off(actuator), []
    for command in commands:
        out, device = actuator.deliver(state, command.expand(1), WINDOW_S)
        state = {**state, **device}
        given.append(out[0])
    return given


def test_settings_are_rounded_down_to_the_devices_steps():
    (out,) = delivered(Actuator(amplitude_step_ma=0.1, frequency_step_hz=5.0, width_step_us=10.0), one())
    assert out.amplitude_ma.tolist() == pytest.approx([0.0, -2.0, 2.0, 0.0], abs=1e-12)
    assert (float(out.frequency_hz), float(out.pulse_width_us)) == (45.0, 200.0)
    assert float(out.pulses) == 7  # eight at 45 Hz would last longer than eight at 47.3


def test_settings_on_a_step_stay_in_every_precision():
    """0.3 / 0.1 is 2.9999999999999996."""
    for like in (torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float32)):
        actuator = Actuator(amplitude_step_ma=0.1, frequency_step_hz=0.1, width_step_us=0.1)
        command = one(amplitude_ma=0.3, frequency_hz=49.7, pulse_width_us=200.7).to(like).expand(1)
        state = {name: t.to(like) if t.is_floating_point() else t for name, t in off(actuator).items()}
        out, _ = actuator.deliver(state, command, WINDOW_S)
        for name in ("amplitude_ma", "frequency_hz", "pulse_width_us", "pulses"):
            torch.testing.assert_close(getattr(out, name), getattr(command, name), rtol=1e-6, atol=0.0)


def test_contacts_keep_their_shares_when_a_current_is_rounded():
    field = torch.tensor([-2.05, 1.02, 1.03, 0.0], dtype=torch.float64)
    (out,) = delivered(Actuator(amplitude_step_ma=0.5), replace(one(), amplitude_ma=field))
    torch.testing.assert_close(out.amplitude_ma, field * (2.0 / 2.05), rtol=1e-12, atol=0.0)
    assert abs(float(out.amplitude_ma.sum())) < 1e-12


def test_a_setting_below_the_first_step_delivers_nothing():
    (out,) = delivered(Actuator(width_step_us=300.0), one())
    assert bool(out.silent)


def test_a_rise_takes_windows_and_a_fall_does_not():
    commands = [one(amplitude_ma=a) for a in (3.0, 3.0, 3.0, 3.0, 0.5, 3.0)]
    peaks = [float(out.amplitude_ma.max()) for out in delivered(Actuator(rise_ma=1.2), *commands)]
    assert peaks == pytest.approx([1.2, 2.4, 3.0, 3.0, 0.5, 1.7])


def test_silence_stops_at_once_and_the_ramp_begins_again():
    commands = [one(), no_stimulus(MONTAGE), one()]
    peaks = [float(out.amplitude_ma.max()) for out in delivered(Actuator(rise_ma=1.5), *commands)]
    assert peaks == pytest.approx([1.5, 0.0, 1.5])


def test_a_contact_that_changes_its_sign_begins_at_zero():
    peaks = delivered(Actuator(rise_ma=1.5), one(amplitude_ma=1.5), one(amplitude_ma=-2.0))
    assert float(peaks[1].amplitude_ma.abs().max()) == pytest.approx(1.5)


def test_a_late_train_begins_late_and_loses_the_pulses_that_its_window_cannot_hold():
    (out,) = delivered(Actuator(delay_s=0.4), one(frequency_hz=50.0))
    assert float(out.onset_s) == pytest.approx(0.4121)
    assert float(out.pulses) == 5  # at 0.4121, ..., 0.4921; the next would begin at 0.5121


def test_a_command_comes_out_windows_later_and_silence_first():
    commands = [one(amplitude_ma=a) for a in (1.0, 2.0, 3.0)]
    peaks = [float(out.amplitude_ma.max()) for out in delivered(Actuator(delay_windows=2), *commands)]
    assert peaks == [0.0, 0.0, 1.0]


def test_a_gain_is_drawn_once_a_row_and_takes_away_up_to_its_size():
    actuator = Actuator(gain_error=0.2)
    state = off(actuator, 2000)
    out, _ = actuator.deliver(state, one(amplitude_ma=2.0).expand(2000), WINDOW_S)
    share = out.amplitude_ma.amax(-1) / 2.0
    assert 0.8 <= float(share.min()) < 0.805
    assert 0.995 < float(share.max()) <= 1.0
    assert abs(float(share.mean()) - 0.9) < 4 * 0.2 / (12 * 2000) ** 0.5  # four standard errors


def test_a_train_breaks_off_as_often_as_it_says_and_another_key_draws_anew():
    actuator = Actuator(break_off=0.25)
    command = one(pulses=20, frequency_hz=100.0).expand(4000)
    out, _ = actuator.deliver(off(actuator, 4000), command, WINDOW_S)
    short = out.pulses < 20
    assert abs(float(short.double().mean()) - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert abs(float(out.pulses[short].mean()) - 9.5) < 4 * (400 / 12 / 1000) ** 0.5  # whole numbers 0 to 19, evenly
    other, _ = actuator.deliver(off(actuator, 4000, seed=1), command, WINDOW_S)
    assert not torch.equal(out.pulses, other.pulses)


AMPLITUDES = st.lists(st.floats(-5.0, 5.0), min_size=4, max_size=4)
DEVICES = st.builds(
    Actuator,
    amplitude_step_ma=st.sampled_from([0.0, 0.05, 0.1, 1.0]),
    frequency_step_hz=st.sampled_from([0.0, 0.5, 1.0, 7.0]),
    width_step_us=st.sampled_from([0.0, 10.0, 60.0]),
    rise_ma=st.floats(0.1, 10.0),
    gain_error=st.floats(0.0, 1.0),
    break_off=st.floats(0.0, 1.0),
)


ENVELOPE = Envelope(
    "every limit from above", "", tuple(Limit(n, VALUES[n], LIMITS[n][0], "test") for n in FROM_ABOVE), ("depth",)
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(DEVICES, AMPLITUDES, st.floats(1.0, 300.0), st.floats(20.0, 900.0), st.integers(0, 60), st.floats(0.0, 0.2),
       st.floats(0.0, 300.0), st.integers(0, 5))  # fmt: skip
def test_no_limit_from_above_is_nearer_to_what_is_delivered_than_to_the_command(
    device, currents, frequency, width, pulses, onset, gap, seed
):
    """The commanded train ends in its window, so only the device shortens it; slack: the envelope's rounding."""
    period_us, amplitude = 1e6 / frequency, torch.tensor(currents, dtype=torch.float64)
    width = min(width, 0.49 * (period_us - min(gap, 0.1 * period_us)))
    fitting = min(pulses, int((WINDOW_S - onset - 2.1e-6 * width - 1e-6 * gap) * frequency))
    train = one(
        frequency_hz=frequency, pulse_width_us=width, pulses=fitting, onset_s=onset,
        interphase_us=min(gap, 0.1 * period_us),
    )  # fmt: skip
    command = replace(train, amplitude_ma=amplitude).expand(1)
    out, _ = device.deliver(off(device, seed=seed), command, WINDOW_S)
    assert bool((out.amplitude_ma.abs() <= command.amplitude_ma.abs()).all())
    commanded, given_ = (ENVELOPE.margins(stimulus) for stimulus in (command, out))
    nearer = (given_.values < commanded.values - ROUNDING)[0].tolist()
    assert not any(nearer), [name for name, worse in zip(given_.names, nearer, strict=True) if worse]


@pytest.mark.parametrize("profile", ["mapping-50hz-seeg", "spes-seeg", "rns"])
def test_a_command_that_a_profile_allows_is_allowed_as_delivered(profile):
    device = Actuator(amplitude_step_ma=0.1, frequency_step_hz=1.0, width_step_us=10.0, rise_ma=0.7, gain_error=0.1)
    source = generator(4)
    draw = torch.rand(64, 3, generator=source, dtype=torch.float64)
    train = one(pulses=10, frequency_hz=50.0, onset_s=0.0).expand(64)
    commands = replace(
        train,
        amplitude_ma=train.amplitude_ma / 2.03 * (0.2 + 6 * draw[:, :1]),
        frequency_hz=30 + 30 * draw[:, 1],
        pulse_width_us=100 + 300 * draw[:, 2],
    )
    allowed = PROFILES[profile].project(commands)
    out, _ = device.deliver(off(device, 64), allowed, WINDOW_S)
    assert bool(PROFILES[profile].allowed(out).all())


@pytest.mark.parametrize("wrong", [{"delay_s": -0.1}, {"rise_ma": 0.0}, {"break_off": 1.5}, {"gain_error": -0.1}])
def test_an_impossible_device_is_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Actuator(**wrong)


WORN = Actuator(
    amplitude_step_ma=0.1, frequency_step_hz=1.0, width_step_us=10.0, rise_ma=1.1, delay_s=0.003, gain_error=0.2,
    break_off=0.3, delay_windows=1,
)  # fmt: skip


def patient(actuator: Actuator) -> Twin:
    twin = jansen_rit_patient(patient=1, regions=4, contacts=4, window_s=0.05)
    return replace(twin, settle_s=0.02, actuator=actuator)


def commands_for(twin: Twin) -> Stimulus:
    trains = [
        pulse_train(twin.montage, "A1-A2", amplitude_ma=2.0, frequency_hz=90.3, pulses=4, onset_s=0.003),
        pulse_train(twin.montage, "B1-B2", amplitude_ma=3.0, frequency_hz=60.0, pulses=2, onset_s=0.007),
        no_stimulus(twin.montage),
    ]
    return concatenate([map_tensors(train, lambda tensor: tensor.unsqueeze(0)) for train in trains])


def test_a_twin_with_a_worn_device_keeps_the_contract():
    check_system(patient(WORN), commands_for(patient(WORN)))


def test_gradients_pass_through_steps_and_ramp_into_the_next_window():
    twin = patient(replace(WORN, delay_windows=0, break_off=0.0))
    check_system(twin, commands_for(twin), differentiable=True)


def test_gradients_through_the_ramp_match_finite_differences():
    """Without rounding they are exact: here the second window's current is the first one's plus the rise."""
    actuator = Actuator(rise_ma=0.5, gain_error=0.3)

    def current(first: torch.Tensor) -> torch.Tensor:
        state = off(actuator)
        for amplitude in (first, torch.tensor(3.0, dtype=torch.float64)):
            command = replace(one(), amplitude_ma=one().amplitude_ma / 2.03 * amplitude).expand(1)
            out, device = actuator.deliver(state, command, WINDOW_S)
            state = {**state, **device}
        return out.amplitude_ma

    assert torch.autograd.gradcheck(current, torch.tensor(0.4, dtype=torch.float64, requires_grad=True))
    first = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(current(first).max(), first)
    assert float(slope) > 0.5


def test_a_twin_shows_what_it_delivers_and_answers_that():
    twin = patient(Actuator(amplitude_step_ma=0.5, rise_ma=1.2))
    state, commands = twin.start((3,), generator(0)), commands_for(twin)
    out = twin.delivered(state, commands)
    response, _ = twin.respond(state, commands, generator(1))
    assert response.outcomes["delivered_ma"].tolist() == pytest.approx([1.0, 1.0, 0.0])
    assert torch.equal(response.outcomes["delivered_pulses"], out.pulses)
    plain = replace(twin, actuator=None)
    same, _ = plain.respond({n: t for n, t in state.items() if "device" not in n}, out, generator(1))
    torch.testing.assert_close(same.signal_uv, response.signal_uv, rtol=0, atol=0)
    assert not same.outcomes
    assert plain.delivered(state, commands).amplitude_ma.equal(commands.amplitude_ma)
