"""The envelope refuses, and says why; what it projects it allows; published settings are judged as their sources do."""

import math
import re
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stimopt.errors import EnvelopeError, MontageError, ShapeError, StimulusError
from stimopt.history import empty_history
from stimopt.montage import NO_MONTAGE, Contact, monopolar
from stimopt.safety import Envelope, Limit
from stimopt.safety_profiles import PROFILES
from stimopt.stimulus import Stimulus, no_stimulus, pulse_train, table_stimulus
from stimopt.tensors import concatenate, generator, map_tensors

RING_CM2 = math.pi * 0.127 * 0.15  # 3387 lead: 1.27 mm across, 1.5 mm long
SEEG_CM2 = math.pi * 0.08 * 0.2  # 0.8 mm across, 2 mm long
RNS_DEPTH_CM2 = math.pi * 0.127 * 0.2
DISC_CM2 = math.pi * 0.3175**2 / 4  # 3.175 mm exposed, Gordon et al. 1990
KINDS = {"dbs-chronic": "dbs", "rns": "depth", "spes-seeg": "depth", "mapping-50hz-subdural": "subdural",
         "mapping-50hz-seeg": "depth", "microstimulation": "micro"}  # fmt: skip
HOUSE = "test"


def montage_of(kind: str, area_cm2: float, contacts: int = 4):
    return monopolar([Contact(f"C{i}", area_cm2=area_cm2, kind=kind) for i in range(contacts)])


def verdicts(profile: str, stimulus: Stimulus) -> dict[str, tuple[str, float]]:
    return {row.limit: (row.verdict, row.value) for row in PROFILES[profile].report(stimulus)}


@dataclass(frozen=True)
class Trials:
    stimuli: Stimulus
    times_s: torch.Tensor
    in_flight: tuple[Stimulus, float] | None = None


def past_of(*trials: tuple[Stimulus, float]) -> Trials:
    stimuli = concatenate([map_tensors(s, lambda t: t.unsqueeze(0)) for s, _ in trials])
    return Trials(stimuli, torch.tensor([t for _, t in trials], dtype=torch.float64))


def house(*limits: Limit, **fields) -> Envelope:
    return Envelope("house", "for tests", limits, ("depth", "dbs"), **fields)


def a_limit(name: str, value: float, unit: str, **fields) -> Limit:
    return Limit(name, value, unit, HOUSE, **fields)


# --- published settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("area", "printed"),
    [(RING_CM2, 0.0598), (SEEG_CM2, 0.0503), (RNS_DEPTH_CM2, 0.0798), (math.pi * 0.23**2 / 4, 0.0415)],
)
def test_contact_areas_are_those_of_the_devices(area, printed):
    assert area == pytest.approx(printed, abs=5e-5)


@pytest.mark.parametrize(
    ("profile", "area", "current_ma", "width_us", "density", "k"),
    [
        ("dbs-chronic", RING_CM2, 3.0, 60.0, 3.0, -0.27),
        ("dbs-chronic", RING_CM2, 5.0, 450.0, 37.6, 1.93),
        ("dbs-chronic", 0.0199, 10.0, 60.0, 30.1, 1.26),
        ("rns", RNS_DEPTH_CM2, 12.0, 160.0, 24.1, 1.66),
        ("spes-seeg", SEEG_CM2, 6.0, 150.0, 17.9, 1.21),
        ("spes-seeg", SEEG_CM2, 5.0, 1000.0, 99.5, 2.70),
        ("mapping-50hz-seeg", SEEG_CM2, 5.0, 500.0, 49.7, 2.09),
        ("mapping-50hz-subdural", math.pi * 0.23**2 / 4, 15.0, 300.0, 108.0, None),
        ("mapping-50hz-subdural", DISC_CM2, 15.0, 300.0, 56.8, None),
    ],
)
def test_density_and_k_are_the_published_ones(profile, area, current_ma, width_us, density, k):
    montage = montage_of(KINDS[profile], area)
    found = verdicts(profile, pulse_train(montage, "C0-C1", amplitude_ma=current_ma, pulse_width_us=width_us))
    assert found["charge_density_uc_cm2"][1] == pytest.approx(density, rel=6e-3)
    if k is not None:
        assert found["shannon_k"][1] == pytest.approx(k, abs=6e-3)


def test_a_strong_dbs_setting_fails_by_density_and_by_k():
    stimulus = pulse_train(
        montage_of("dbs", RING_CM2), "C0", amplitude_ma=5.0, pulse_width_us=450.0, frequency_hz=130.0, pulses=130
    )
    found = verdicts("dbs-chronic", stimulus)
    assert found["charge_density_uc_cm2"][0] == found["shannon_k"][0] == "FAIL"
    usual = replace(stimulus, pulse_width_us=torch.tensor(60.0, dtype=torch.float64))
    assert bool(PROFILES["dbs-chronic"].allowed(usual))


@pytest.mark.parametrize(("current_ma", "width_us", "word"), [(5.0, 1000.0, "CAUTION"), (6.0, 200.0, "NOT EVALUATED")])
def test_routine_single_pulses_pass_though_a_flat_density_would_forbid_them(current_ma, width_us, word):
    montage = montage_of("depth", SEEG_CM2)
    stimulus = pulse_train(montage, "C0-C1", amplitude_ma=current_ma, pulse_width_us=width_us)
    PROFILES["spes-seeg"].require(stimulus)
    assert verdicts("spes-seeg", stimulus)["charge_density_uc_cm2"][0] == word


def test_gordons_mapping_setting_is_allowed_with_caution_and_refused_on_a_smaller_disc():
    large, small = (pulse_train(montage_of("subdural", area), "C0-C1", amplitude_ma=15.0, pulse_width_us=300.0,
                                frequency_hz=50.0, pulses=250) for area in (DISC_CM2, 0.0415))  # fmt: skip
    assert verdicts("mapping-50hz-subdural", large)["charge_density_uc_cm2"][0] == "CAUTION"
    assert verdicts("mapping-50hz-subdural", small)["charge_density_uc_cm2"][0] == "FAIL"


def test_microelectrodes_are_held_to_four_nanocoulombs_and_not_to_shannon():
    montage = montage_of("micro", 2e-5)
    envelope = PROFILES["microstimulation"]
    assert bool(envelope.allowed(pulse_train(montage, "C0", amplitude_ma=0.02, pulse_width_us=200.0)))  # 4 nC
    over = pulse_train(montage, "C0", amplitude_ma=0.0201, pulse_width_us=200.0)
    assert envelope.margins(over).binding == ("phase_charge_uc",)
    assert verdicts("microstimulation", over)["shannon_k"][0] == "NOT EVALUATED"


def test_every_limit_of_every_profile_has_value_unit_and_source():
    for envelope in PROFILES.values():
        for limit in envelope.limits:
            assert limit.source
            assert limit.evaluated or limit.reason
    assert set(KINDS) == set(PROFILES)


# --- the arithmetic of each limit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "at_the_limit"),
    [
        (a_limit("contact_current_ma", 2.0, "mA"), {"amplitude_ma": 2.0}),
        (a_limit("total_current_ma", 2.0, "mA"), {"amplitude_ma": 2.0}),
        (a_limit("pulse_width_max_us", 300.0, "us"), {"pulse_width_us": 300.0}),
        (a_limit("frequency_max_hz", 50.0, "Hz"), {"frequency_hz": 50.0}),
        (a_limit("pulses", 20.0, ""), {"pulses": 20}),
        (a_limit("train_s", 0.3804, "s"), {"frequency_hz": 50.0, "pulses": 20}),
        (a_limit("window_s", 0.8804, "s"), {"frequency_hz": 50.0, "pulses": 20, "onset_s": 0.5}),
        (a_limit("phase_charge_uc", 0.4, "uC"), {"amplitude_ma": 2.0}),  # 2 mA for 200 us
        (a_limit("charge_density_uc_cm2", 8.0, "uC/cm2"), {"amplitude_ma": 2.0}),  # 0.4 uC over 0.05 cm2
        (a_limit("shannon_k", math.log10(0.4 * 8.0), ""), {"amplitude_ma": 2.0}),
        (a_limit("duty_cycle", 0.02, ""), {"frequency_hz": 50.0}),  # 2 x 200 us x 50 Hz
        (a_limit("dose_minute_uc", 4.0, "uC"), {"amplitude_ma": 2.0, "pulses": 10}),
        (a_limit("dose_hour_uc", 4.0, "uC"), {"amplitude_ma": 2.0, "pulses": 10}),
        (a_limit("ramp_ma", 2.0, "mA"), {"amplitude_ma": 2.0}),
    ],
    ids=lambda x: x.name if isinstance(x, Limit) else "",
)
def test_a_limit_is_reached_where_hand_arithmetic_says(limit, at_the_limit):
    usual = {"amplitude_ma": 1.0, "pulse_width_us": 200.0, "frequency_hz": 20.0, "pulses": 5}
    stimulus = pulse_train(montage_of("depth", 0.05), "C0-C1", **{**usual, **at_the_limit})
    margins = house(limit).margins(stimulus)
    assert float(margins.worst) == pytest.approx(0.0, abs=1e-12)
    assert bool(house(limit).allowed(stimulus))
    step = {
        "amplitude_ma": 0.001,
        "pulse_width_us": 0.1,
        "frequency_hz": -0.01 if limit.name in ("train_s", "window_s") else 0.01,
        "pulses": 1,
    }
    name = next(iter(at_the_limit))
    field = {**usual, **at_the_limit}
    assert not bool(
        house(limit).allowed(
            pulse_train(montage_of("depth", 0.05), "C0-C1", **{**field, name: field[name] + step[name]})
        )
    )


@pytest.mark.parametrize(
    ("name", "unit", "field"),
    [("pulse_width_min_us", "us", "pulse_width_us"), ("frequency_min_hz", "Hz", "frequency_hz")],
)
def test_a_limit_from_below_refuses_what_is_less(name, unit, field):
    envelope = house(a_limit(name, 100.0, unit))
    for value, fine in ((99.0, False), (100.0, True), (101.0, True)):
        stimulus = pulse_train(montage_of("depth", 0.05), "C0-C1", amplitude_ma=1.0, pulses=2, **{field: value})
        assert bool(envelope.allowed(stimulus)) is fine


def test_the_case_counts_in_the_total_current():
    envelope = house(a_limit("total_current_ma", 5.0, "mA"))
    montage = montage_of("depth", 0.05)
    pair = no_stimulus(montage)
    steered = torch.tensor([-3.0, -3.0, 1.0, 0.0], dtype=torch.float64)  # 5 mA of 6 return through the case
    found = envelope.report(replace(pair, amplitude_ma=steered, pulses=pair.pulses + 1))
    assert next(row.value for row in found if row.limit == "total_current_ma") == pytest.approx(6.0)


def test_a_thousand_times_the_current_is_a_thousand_times_the_charge():
    montage = montage_of("depth", 0.05)
    envelope = house(
        a_limit("phase_charge_uc", 1.0, "uC"),
        a_limit("charge_density_uc_cm2", 1.0, "uC/cm2"),
        a_limit("shannon_k", 0.0, ""),
    )
    one, many = (pulse_train(montage, "C0-C1", amplitude_ma=a, pulse_width_us=100.0) for a in (0.005, 5.0))
    used = [1 - envelope.margins(s).values[2:] for s in (one, many)]
    assert torch.allclose(used[1] / used[0], torch.full((3,), 1000.0, dtype=torch.float64))


def test_a_single_pulse_has_no_frequency_to_break():
    envelope = house(a_limit("frequency_min_hz", 2.0, "Hz"), a_limit("frequency_max_hz", 10.0, "Hz"))
    for frequency in (0.2, 100.0):
        assert bool(
            envelope.allowed(pulse_train(montage_of("depth", 0.05), "C0", amplitude_ma=1.0, frequency_hz=frequency))
        )


def test_a_train_cut_by_the_window_has_net_charge():
    limits = (a_limit("net_charge_uc", 1e-6, "uC"), a_limit("window_s", 1.0, "s"))
    stimulus = pulse_train(montage_of("depth", 0.05), "C0", amplitude_ma=1.0, pulse_width_us=200.0, onset_s=0.9998)
    found = {row.limit: row for row in house(*limits).report(stimulus)}
    assert found["net_charge_uc"].value == pytest.approx(0.2)
    assert found["net_charge_uc"].verdict == "FAIL"
    assert house(limits[0]).report(stimulus)[-1].verdict == "PASS"


# --- the past -----------------------------------------------------------------------------------------------------


def test_the_dose_counts_the_last_minute_and_what_is_in_flight():
    stimulus = pulse_train(
        montage_of("depth", 0.05), "C0-C1", amplitude_ma=5.0, pulse_width_us=200.0, pulses=10, frequency_hz=50.0
    )  # 10 uC
    envelope = house(a_limit("dose_minute_uc", 25.0, "uC"))
    past = past_of((stimulus, 0.0), (stimulus, 30.0))
    assert not bool(envelope.allowed(stimulus, past, 40.0))
    assert bool(envelope.allowed(stimulus, past, 61.0))
    assert not bool(envelope.allowed(stimulus, replace(past, in_flight=(stimulus, 55.0)), 61.0))
    other = pulse_train(stimulus.montage, "C2-C3", amplitude_ma=5.0, pulse_width_us=200.0, pulses=10, frequency_hz=50.0)
    assert bool(envelope.allowed(other, past, 40.0))


def test_an_hour_is_sixty_minutes():
    stimulus = pulse_train(montage_of("depth", 0.05), "C0-C1", amplitude_ma=5.0, pulses=1)
    envelope = house(a_limit("dose_hour_uc", 1.5, "uC"))
    assert not bool(envelope.allowed(stimulus, past_of((stimulus, 0.0)), 3599.0))
    assert bool(envelope.allowed(stimulus, past_of((stimulus, 0.0)), 3601.0))


def test_the_interval_runs_from_start_to_start():
    montage = montage_of("depth", 0.05)
    envelope = house(a_limit("interval_s", 2.0, "s"))
    last, late = (pulse_train(montage, "C0-C1", amplitude_ma=1.0, onset_s=onset) for onset in (0.1, 0.3))
    past = past_of((last, 10.0))
    assert not bool(envelope.allowed(last, past, 11.9))
    assert bool(envelope.allowed(late, past, 11.9))
    assert bool(envelope.allowed(last, past, 12.0))
    with pytest.raises(EnvelopeError, match="Wait"):
        envelope.require(last, past, 11.0)


def test_a_train_must_be_over_before_the_next():
    envelope = PROFILES["mapping-50hz-seeg"]
    stimulus = pulse_train(montage_of("depth", 0.05), "C0-C1", amplitude_ma=1.0, frequency_hz=50.0, pulses=250)  # 5 s
    assert not bool(envelope.allowed(stimulus, past_of((stimulus, 0.0)), 4.0))
    assert bool(envelope.allowed(stimulus, past_of((stimulus, 0.0)), 5.0))


def test_an_earlier_train_that_still_runs_counts_too():
    montage = montage_of("depth", 0.05)
    long = pulse_train(montage, "C0-C1", amplitude_ma=1.0, frequency_hz=50.0, pulses=400)  # 8 s
    short = pulse_train(montage, "C0-C1", amplitude_ma=1.0)
    envelope = PROFILES["mapping-50hz-seeg"]
    assert not bool(envelope.allowed(short, past_of((long, 0.0), (short, 1.0)), 5.0))
    assert bool(envelope.allowed(short, past_of((long, 0.0), (short, 1.0)), 8.0))


def test_no_time_given_means_no_time_has_passed():
    envelope = house(a_limit("interval_s", 2.0, "s"))
    stimulus = pulse_train(montage_of("depth", 0.05), "C0-C1", amplitude_ma=1.0)
    assert not bool(envelope.allowed(stimulus, past_of((stimulus, 10.0))))


@pytest.mark.parametrize("time_s", [5.0, math.nan])
def test_a_clock_set_back_or_lost_counts_as_no_time(time_s):
    stimulus = pulse_train(montage_of("depth", 0.05), "C0-C1", amplitude_ma=5.0)
    past = past_of((stimulus, 100.0))
    assert not bool(house(a_limit("interval_s", 2.0, "s")).allowed(stimulus, past, time_s))
    assert not bool(house(a_limit("dose_minute_uc", 1.5, "uC")).allowed(stimulus, past, time_s))


def test_the_ramp_bounds_rises_and_frees_falls():
    montage = montage_of("depth", 0.05)
    envelope = house(a_limit("ramp_ma", 1.0, "mA"))
    at = {a: pulse_train(montage, "C0-C1", amplitude_ma=a) for a in (-2.0, 0.5, 2.0, 3.0, 3.1)}
    past = past_of((at[2.0], 0.0))
    allowed = {a: bool(envelope.allowed(s, past, 9.0)) for a, s in at.items()}
    assert allowed == {-2.0: False, 0.5: True, 2.0: True, 3.0: True, 3.1: False}
    assert not bool(envelope.allowed(pulse_train(montage, "C2-C3", amplitude_ma=2.0), past, 9.0))


def test_a_silent_trial_between_does_not_reset_the_ramp():
    montage = montage_of("depth", 0.05)
    envelope = house(a_limit("ramp_ma", 1.0, "mA"))
    past = past_of((pulse_train(montage, "C0-C1", amplitude_ma=2.0), 0.0), (no_stimulus(montage), 5.0))
    assert bool(envelope.allowed(pulse_train(montage, "C0-C1", amplitude_ma=3.0), past, 9.0))


def test_a_history_is_a_past():
    stimulus = pulse_train(montage_of("depth", 0.05), "C0-C1", amplitude_ma=5.0)
    history = empty_history(stimulus)
    envelope = house(a_limit("dose_minute_uc", 1.5, "uC"))
    assert bool(envelope.allowed(stimulus, history, 0.0))
    assert not bool(envelope.allowed(stimulus, history.with_trial(stimulus, 0.0, 0.0, None), 9.0))


def test_a_past_on_other_contacts_is_refused():
    stimulus = pulse_train(montage_of("depth", 0.05), "C0", amplitude_ma=1.0)
    with pytest.raises(ShapeError, match="other contacts"):
        PROFILES["spes-seeg"].margins(
            stimulus, past_of((pulse_train(montage_of("depth", 0.05, 5), "C0", amplitude_ma=1.0), 0.0)), 1.0
        )


# --- silence, unknowns, kinds, forbidden contacts ------------------------------------------------------------------


@pytest.mark.parametrize("envelope", PROFILES.values(), ids=list(PROFILES))
def test_silence_is_allowed_anywhere_at_any_time(envelope):
    strict = envelope.with_limits(interval_s=100.0, dose_minute_uc=1e-3, ramp_ma=0.01)
    for kind in ("depth", "micro"):
        stimulus = pulse_train(montage_of(kind, math.nan), "C0", amplitude_ma=5.0, pulses=50, frequency_hz=50.0)
        silent = replace(stimulus, amplitude_ma=stimulus.amplitude_ma * 0)
        assert bool(strict.allowed(silent, past_of((stimulus, 0.0)), 0.1))
        assert float(strict.margins(silent, past_of((stimulus, 0.0)), 0.1).worst) == 1.0


def test_a_table_of_parameters_carries_no_current():
    stimulus = table_stimulus(NO_MONTAGE, torch.rand(5, 2, generator=generator(1)), ("a", "b"))
    for envelope in PROFILES.values():
        assert envelope.allowed(stimulus).tolist() == [True] * 5
        assert envelope.project(stimulus) is stimulus
        assert {row.verdict for row in envelope.report(stimulus[0])} <= {"PASS", "NOT EVALUATED"}


def test_an_unknown_area_leaves_current_and_charge_to_bind():
    montage = montage_of("dbs", math.nan)
    found = verdicts("dbs-chronic", pulse_train(montage, "C0", amplitude_ma=3.0, pulse_width_us=60.0))
    assert found["charge_density_uc_cm2"][0] == found["shannon_k"][0] == "NOT EVALUATED"
    with pytest.raises(EnvelopeError) as refusal:
        PROFILES["dbs-chronic"].require(pulse_train(montage, "C0", amplitude_ma=5.0, pulse_width_us=450.0))
    assert refusal.value.limit == "phase_charge_uc"


def test_a_known_contact_still_fails_beside_an_unknown_one():
    montage = monopolar([Contact("K", area_cm2=0.001, kind="dbs"), Contact("U", kind="dbs")])
    margins = PROFILES["dbs-chronic"].margins(pulse_train(montage, "K-U", amplitude_ma=3.0, pulse_width_us=60.0))
    assert float(margins.values[margins.names.index("charge_density_uc_cm2")]) < 0


def test_the_smaller_contact_of_a_pair_binds():
    montage = monopolar([Contact("L", area_cm2=0.06, kind="dbs"), Contact("S", area_cm2=0.02, kind="dbs")])
    with pytest.raises(EnvelopeError, match="'S'"):
        PROFILES["dbs-chronic"].require(pulse_train(montage, "L-S", amplitude_ma=4.0, pulse_width_us=200.0))


def test_a_kind_that_the_profile_does_not_cover_is_refused():
    with pytest.raises(EnvelopeError, match="kind 'micro'") as refusal:
        PROFILES["dbs-chronic"].require(
            pulse_train(montage_of("micro", 1e-5), "C0", amplitude_ma=0.001, pulse_width_us=100.0)
        )
    assert refusal.value.limit == "contact_kinds"


def test_a_forbidden_contact_is_refused_and_projected_without_a_return_through_the_case():
    montage = montage_of("depth", 0.05)
    envelope = PROFILES["spes-seeg"].forbidding("C1")
    pair = pulse_train(montage, "C0-C1", amplitude_ma=2.0)
    with pytest.raises(EnvelopeError, match="'C1' is forbidden"):
        envelope.require(pair)
    assert envelope.project(pair).amplitude_ma.abs().max() == 0.0
    steered = replace(pair, amplitude_ma=torch.tensor([-3.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    assert envelope.project(steered).amplitude_ma.tolist() == pytest.approx([-2.0, 0.0, 1.0, 1.0])


@pytest.mark.parametrize("tiny_ma", [1e-12, 1e-26, 1e-300])
def test_the_least_current_at_a_forbidden_contact_is_refused_with_gradients_and_without(tiny_ma):
    envelope = PROFILES["spes-seeg"].forbidding("C1")
    train = pulse_train(montage_of("depth", 0.05), "C0-C1", amplitude_ma=tiny_ma)
    wanted = replace(train, amplitude_ma=train.amplitude_ma.clone().requires_grad_())
    for stimulus in (train, wanted):
        assert float(envelope.margins(stimulus).worst) < 0
        assert not bool(envelope.allowed(stimulus))


def test_a_forbidden_contact_that_does_not_exist_is_refused():
    with pytest.raises(MontageError, match="'C9'"):
        PROFILES["spes-seeg"].forbidding("C9").allowed(no_stimulus(montage_of("depth", 0.05)))


# --- refusals -------------------------------------------------------------------------------------------------------


def test_the_refusal_names_contact_value_limit_and_ways_out():
    stimulus = pulse_train(
        montage_of("dbs", 0.06), "C0", amplitude_ma=5.5, pulse_width_us=400.0, frequency_hz=130.0, pulses=10
    )
    with pytest.raises(EnvelopeError) as refusal:
        PROFILES["dbs-chronic"].require(stimulus)
    sentence = str(refusal.value)
    assert refusal.value.limit == "charge_density_uc_cm2"
    for part in (
        "'C0'",
        "36.7 uC/cm2",
        "5.5 mA for 400 us over 0.06 cm2",
        "allows 30 uC/cm2",
        "amplitude_ma to 4.5",
        "pulse_width_us to 327",
    ):
        assert part in sentence


@settings(max_examples=25, deadline=None)
@given(st.floats(1.9, 60.0), st.floats(80.0, 450.0), st.floats(2.1, 200.0), st.integers(1, 60), st.floats(0.002, 0.2))
def test_every_printed_maximum_is_allowed(current_ma, width_us, frequency_hz, pulses, area_cm2):
    montage = montage_of("dbs", area_cm2)
    stimulus = pulse_train(
        montage, "C0-C1", amplitude_ma=current_ma, pulse_width_us=width_us, frequency_hz=frequency_hz, pulses=pulses
    )
    envelope = PROFILES["dbs-chronic"].with_limits(duty_cycle=0.08, pulses=40, train_s=3.0, dose_minute_uc=40)
    assume(not bool(envelope.allowed(stimulus)))
    with pytest.raises(EnvelopeError) as refusal:
        envelope.require(stimulus)
    for name, text in re.findall(
        r"(amplitude_ma|pulse_width_us|frequency_hz|pulses) to ([0-9.e+-]+\d)", str(refusal.value)
    ):
        settings_ = {
            "amplitude_ma": current_ma,
            "pulse_width_us": width_us,
            "frequency_hz": frequency_hz,
            "pulses": pulses,
        }
        envelope.require(pulse_train(montage, "C0-C1", **{**settings_, name: float(text)}))


def test_a_batch_is_refused_for_its_first_bad_row():
    stimulus = concatenate(
        [
            map_tensors(pulse_train(montage_of("depth", 0.05), "C0", amplitude_ma=a), lambda t: t.unsqueeze(0))
            for a in (1.0, 11.0)
        ]
    )
    with pytest.raises(EnvelopeError, match="11 mA"):
        PROFILES["spes-seeg"].require(stimulus)


# --- changing an envelope ----------------------------------------------------------------------------------------


def test_a_limit_can_be_tightened_but_not_loosened():
    envelope = PROFILES["spes-seeg"]
    assert (
        next(x for x in envelope.with_limits(contact_current_ma=4.0).limits if x.name == "contact_current_ma").value
        == 4.0
    )
    with pytest.raises(EnvelopeError, match="loosen"):
        envelope.with_limits(contact_current_ma=12.0)
    with pytest.raises(EnvelopeError, match="loosen"):
        envelope.with_limits(interval_s=0.5)


def test_loosening_needs_a_reason_and_shows_it():
    envelope = PROFILES["spes-seeg"].loosened("protocol 7, amended", contact_current_ma=12.0)
    assert "loosened" in envelope.name
    assert any("protocol 7" in limit.source for limit in envelope.limits)
    with pytest.raises(EnvelopeError, match="reason"):
        PROFILES["spes-seeg"].loosened(" ", contact_current_ma=12.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
def test_an_impossible_limit_is_refused(value):
    with pytest.raises(EnvelopeError, match=r"positive, finite|loosen"):
        PROFILES["spes-seeg"].with_limits(contact_current_ma=value)


def test_an_unknown_limit_is_refused():
    with pytest.raises(EnvelopeError, match="not known"):
        PROFILES["spes-seeg"].with_limits(amplitude_ma=1.0)


# --- properties ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Situation:
    """A batch of random stimuli, an envelope and a past, far inside and far outside all limits."""

    stimuli: Stimulus
    envelope: Envelope
    past: Trials | None
    time_s: float | None


def spread(source: torch.Generator, low: float, high: float, *shape: int) -> torch.Tensor:
    share = torch.rand(*shape, generator=source, dtype=torch.float64)
    return (math.log(low) + share * math.log(high / low)).exp()


def pick(source: torch.Generator, choices):
    return choices[int(torch.randint(len(choices), (), generator=source))]


def random_stimuli(source: torch.Generator, montage, n: int, dtype) -> Stimulus:
    current = torch.randint(-1, 2, (n, 4), generator=source).double() * spread(source, 1e-4, 50.0, n, 4)
    current[: n // 2, 1] = -current[: n // 2, 0]  # half are bipolar pairs
    current[: n // 2, 2:] = 0.0
    frequency, width, gap = (spread(source, *bounds, n) for bounds in ((0.2, 400.0), (10.0, 2000.0), (1.0, 300.0)))
    fits = (2 * width + gap) * 1e-6 * frequency < 0.999
    count = torch.where(fits, spread(source, 0.6, 600.0, n).round(), 1.0)
    made = Stimulus(montage, current, frequency, width, count, spread(source, 0.01, 2.0, n), gap)
    return made.to(torch.zeros((), dtype=dtype))


EXTRA_LIMITS = ["ramp_ma", "duty_cycle", "dose_minute_uc", "dose_hour_uc", "interval_s", "window_s", "pulses",
                "total_current_ma", "charge_density_uc_cm2", "shannon_k"]  # fmt: skip


def situation_of(seed: int, dtype=torch.float64) -> Situation:
    source = generator(seed, "situation")
    name = pick(source, list(PROFILES))
    areas = [pick(source, [math.nan, 1e-5, 0.004, 0.05, 0.1]) for _ in range(4)]
    kinds = [KINDS[name]] * 3 + [pick(source, [KINDS[name], "scalp"])]
    montage = monopolar(
        [Contact(f"C{i}", area_cm2=a, kind=k) for i, (a, k) in enumerate(zip(areas, kinds, strict=True))]
    )
    envelope = PROFILES[name]
    for _ in range(pick(source, [0, 1, 2, 3])):
        limit = pick(source, EXTRA_LIMITS)
        envelope = envelope.loosened("test", **{limit: float(spread(source, 0.01, 10.0, 1))})
    envelope = pick(source, [envelope, envelope.forbidding("C2")])
    trials = pick(source, [None, 0, 3])
    if trials is None:
        return Situation(random_stimuli(source, montage, 6, dtype), envelope, None, None)
    in_flight = pick(source, [None, (random_stimuli(source, montage, 1, dtype)[0], 95.0)])
    past = Trials(
        random_stimuli(source, montage, trials, dtype), torch.linspace(0, 90, trials, dtype=torch.float64), in_flight
    )
    time_s = pick(source, [None, 95.0, 96.0, 120.0, 5000.0])
    return Situation(random_stimuli(source, montage, 6, dtype), envelope, past, time_s)


SEEDS = st.integers(0, 2**31)


def same(one: Stimulus, other: Stimulus) -> bool:
    names = ("amplitude_ma", "frequency_hz", "pulse_width_us", "pulses", "onset_s", "interphase_us")
    return all(torch.equal(getattr(one, n), getattr(other, n)) for n in names)


@settings(max_examples=120, deadline=None)
@given(SEEDS)
def test_a_projected_stimulus_is_allowed_and_stays_where_it_is(seed):
    now = situation_of(seed)
    stimuli, envelope, past, time_s = now.stimuli, now.envelope, now.past, now.time_s
    projected = envelope.project(stimuli, past, time_s)
    assert bool(envelope.allowed(projected, past, time_s).all())
    assert same(envelope.project(projected, past, time_s), projected)
    kept = envelope.allowed(stimuli, past, time_s)
    assert same(projected[kept], stimuli[kept])


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_what_is_projected_in_single_precision_passes_the_door_in_double(seed):
    now = situation_of(seed, torch.float32)
    stimuli, envelope, past, time_s = now.stimuli, now.envelope, now.past, now.time_s
    projected = envelope.project(stimuli, past, time_s)
    assert projected.amplitude_ma.dtype == torch.float32
    envelope.require(projected.to(torch.zeros((), dtype=torch.float64)), past, time_s)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.5, 50.0), st.floats(50.0, 450.0))
def test_single_precision_is_lowered_to_the_limit_and_not_to_silence(current_ma, width_us):
    envelope = house(a_limit("phase_charge_uc", 0.3, "uC"), a_limit("contact_current_ma", 1.1, "mA"))
    stimulus = pulse_train(montage_of("depth", 0.05), "C0-C1", amplitude_ma=current_ma, pulse_width_us=width_us)
    exact, single = (envelope.project(stimulus.to(torch.zeros((), dtype=d))) for d in (torch.float64, torch.float32))
    assert torch.allclose(single.amplitude_ma.double(), exact.amplitude_ma, rtol=2e-6)  # 16 roundings of 1e-7


@settings(max_examples=12, deadline=None)
@given(SEEDS)
def test_require_margins_and_report_agree_with_allowed(seed):
    now = situation_of(seed)
    stimuli, envelope, past, time_s = now.stimuli, now.envelope, now.past, now.time_s
    allowed = envelope.allowed(stimuli, past, time_s)
    margins = envelope.margins(stimuli, past, time_s)
    assert torch.equal(margins.worst >= 0, allowed)
    for row in range(len(allowed)):
        words = {v.verdict for v in envelope.report(stimuli[row], past, time_s)}
        assert ("FAIL" in words) is not bool(allowed[row])
        if allowed[row]:
            envelope.require(stimuli[row], past, time_s)
        else:
            with pytest.raises(EnvelopeError) as refusal:
                envelope.require(stimuli[row], past, time_s)
            assert refusal.value.limit == margins.binding[row]


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_a_projection_carries_no_more_through_the_case(seed):
    now = situation_of(seed)
    stimuli, envelope, past, time_s = now.stimuli, now.envelope, now.past, now.time_s
    before, after = (s.amplitude_ma.sum(-1).abs() for s in (stimuli, envelope.project(stimuli, past, time_s)))
    assert bool((after <= before * (1 + 1e-12) + 1e-12).all())


def test_a_stimulus_is_lowered_no_more_than_needed():
    envelope = PROFILES["mapping-50hz-seeg"]
    stimulus = pulse_train(
        montage_of("depth", 0.05), "C0-C1", amplitude_ma=12.0, pulse_width_us=600.0, frequency_hz=120.0, pulses=2000
    )
    found = envelope.project(stimulus)
    assert found.amplitude_ma[:2].tolist() == pytest.approx([-10.0, 10.0])
    assert float(found.pulse_width_us) == 500.0
    assert float(found.frequency_hz) == 100.0
    assert float(found.pulses) == 800  # 8 s at 100 Hz: the last of 800 pulses starts at 7.99 s


def test_a_width_below_the_least_is_raised_and_its_train_slowed():
    envelope = house(a_limit("pulse_width_min_us", 400.0, "us"))
    stimulus = pulse_train(
        montage_of("depth", 0.05), "C0", amplitude_ma=1.0, pulse_width_us=100.0, frequency_hz=4000.0, pulses=5
    )
    found = envelope.project(stimulus)
    assert (float(found.pulse_width_us), float(found.frequency_hz)) == pytest.approx((400.0, 1250.0))


def test_nothing_but_silence_is_left_when_the_dose_is_spent():
    stimulus = pulse_train(montage_of("depth", 0.05), "C0-C1", amplitude_ma=5.0)
    envelope = house(a_limit("dose_minute_uc", 1.0, "uC"))
    assert bool(envelope.project(stimulus, past_of((stimulus, 0.0)), 5.0).silent)


def test_nan_and_infinity_never_reach_the_envelope():
    for value in (math.nan, math.inf):
        with pytest.raises((ShapeError, StimulusError)):
            pulse_train(montage_of("depth", 0.05), "C0", amplitude_ma=value)


@pytest.mark.parametrize(
    "extreme",
    [
        {"frequency_hz": 1e-310, "pulses": 3},
        {"pulse_width_us": 1e300, "frequency_hz": 1e-300},
        {"amplitude_ma": 1e308},
        {"pulses": 1e300, "frequency_hz": 1.0},
    ],
)
def test_numbers_beyond_physics_are_refused(extreme):
    stimulus = pulse_train(montage_of("depth", 0.05), "C0-C1", **{"amplitude_ma": 1.0, **extreme})
    assert not bool(PROFILES["mapping-50hz-seeg"].allowed(stimulus))
    assert bool(PROFILES["mapping-50hz-seeg"].allowed(PROFILES["mapping-50hz-seeg"].project(stimulus)))


def gradient_case():
    montage = montage_of("dbs", 0.05)
    past = past_of((pulse_train(montage, "C0-C1", amplitude_ma=3.0, pulses=5, frequency_hz=20.0), 0.0))
    envelope = PROFILES["dbs-chronic"].with_limits(ramp_ma=1.0, dose_minute_uc=9.0, interval_s=0.5, duty_cycle=0.1)
    base = pulse_train(montage, "C0-C1", amplitude_ma=1.0, pulses=7)

    def built(amplitude, frequency, width, onset):
        return replace(
            base,
            amplitude_ma=base.amplitude_ma * amplitude,
            frequency_hz=frequency,
            pulse_width_us=width,
            onset_s=onset,
        )

    return envelope, past, built


def test_margins_have_the_gradient_of_finite_differences():
    envelope, past, built = gradient_case()
    start = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (3.3, 41.0, 333.0, 0.2)]
    evaluated = ~envelope.margins(built(*start), past, 0.4).values.isnan()
    assert torch.autograd.gradcheck(
        lambda *x: envelope.margins(built(*x), past, 0.4).values[evaluated], start, eps=1e-6, atol=1e-6
    )


def test_a_projection_has_the_gradient_of_finite_differences():
    envelope, past, built = gradient_case()
    start = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (7.0, 41.0, 333.0, 0.2)]

    def projected(*x):
        found = envelope.project(built(*x), past, 60.0)
        return found.amplitude_ma, found.frequency_hz, found.pulse_width_us

    assert not bool(envelope.allowed(built(*start), past, 60.0))
    assert torch.autograd.gradcheck(projected, start, eps=1e-6, atol=1e-6)


def test_a_silent_projection_has_a_finite_gradient():
    envelope, past, built = gradient_case()
    start = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (7.0, 41.0, 333.0, 0.2)]
    envelope.project(built(*start), past, 0.1).amplitude_ma.sum().backward()
    assert all(x.grad is None or bool(torch.isfinite(x.grad)) for x in start)


def test_rows_of_a_batch_do_not_see_each_other():
    source = generator(5, "rows")
    montage = montage_of("depth", 0.05, 16)
    n = 64
    current = torch.randn(n, 16, generator=source, dtype=torch.float64)
    number = torch.rand(3, n, generator=source, dtype=torch.float64)
    stimuli = Stimulus(
        montage, current, number[0] * 90 + 5, number[1] * 400 + 100, (number[2] * 30).round() + 1, number[0], number[1]
    )
    envelope = PROFILES["mapping-50hz-seeg"].with_limits(ramp_ma=0.5, dose_minute_uc=30.0)
    past = Trials(stimuli[:9], torch.arange(9, dtype=torch.float64))
    together = envelope.margins(stimuli, past, 12.0).values
    alone = torch.stack([envelope.margins(stimuli[i], past, 12.0).values for i in range(n)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-15, equal_nan=True)
