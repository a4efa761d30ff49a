"""A running account refuses whatever the whole history refuses, and little more."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stimopt.errors import ShapeError
from stimopt.history import empty_history
from stimopt.ledger import empty_ledger
from stimopt.montage import Contact, monopolar
from stimopt.safety_profiles import PROFILES
from stimopt.stimulus import Stimulus, no_stimulus, pulse_train
from stimopt.tensors import concatenate, map_tensors

MONTAGE = monopolar([Contact(f"A{i}", (3.5 * i, 0.0, 0.0), 0.05, "depth", "A") for i in range(1, 4)])
ENVELOPE = PROFILES["mapping-50hz-seeg"].with_limits(
    ramp_ma=1.0, dose_minute_uc=40.0, dose_hour_uc=90.0, interval_s=2.0
)


def train(pair: str, amplitude_ma: float, pulses: int) -> Stimulus:
    if pulses == 0:
        return no_stimulus(MONTAGE)
    return pulse_train(MONTAGE, pair, amplitude_ma=amplitude_ma, frequency_hz=50.0, pulses=float(pulses))


TRIALS = st.lists(
    st.tuples(
        st.sampled_from(["A1-A2", "A2-A3", "A3-A1"]),
        st.floats(0.1, 4.0),
        st.integers(0, 40),
        st.floats(0.1, 700.0),
    ),
    min_size=1,
    max_size=8,
)


@given(TRIALS)
@settings(max_examples=60, deadline=None)
def test_what_the_history_refuses_the_ledger_refuses(trials):
    history, ledger, time_s = empty_history(no_stimulus(MONTAGE)), empty_ledger(no_stimulus(MONTAGE), (1,)), 0.0
    for pair, amplitude_ma, pulses, gap_s in trials:
        asked = train(pair, amplitude_ma, pulses)
        by_history = bool(ENVELOPE.allowed(asked, history, time_s))
        by_ledger = bool(ENVELOPE.allowed(asked.reshape(1), ledger))
        assert by_history or not by_ledger
        delivered = asked if by_ledger else no_stimulus(MONTAGE)
        history = history.with_trial(delivered, 0.0, time_s, None)
        ledger = ledger.after(delivered.reshape(1))
        time_s += gap_s
        ledger = ledger.at(torch.tensor([time_s], dtype=torch.float64))


def test_margins_agree_where_no_dose_is_near_its_window():
    """Ramp, interval and doses read alike; doses to a bucket's width."""
    history, ledger = empty_history(no_stimulus(MONTAGE)), empty_ledger(no_stimulus(MONTAGE), (1,))
    for number, amplitude_ma in enumerate((0.5, 1.0, 1.5)):
        delivered = train("A1-A2", amplitude_ma, 10)
        history = history.with_trial(delivered, 0.0, 5.0 * number, None)
        ledger = ledger.after(delivered.reshape(1)).at(torch.tensor([5.0 * (number + 1)], dtype=torch.float64))
    asked = train("A1-A2", 2.2, 12)
    exact, running = ENVELOPE.margins(asked, history, 15.0), ENVELOPE.margins(asked.reshape(1), ledger)
    torch.testing.assert_close(running.values[0], exact.values, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_a_dose_is_forgotten_once_its_window_is_over_and_not_before():
    ledger = empty_ledger(no_stimulus(MONTAGE), (2,)).after(
        concatenate([train("A1-A2", 2.0, 10).reshape(1), no_stimulus(MONTAGE).reshape(1)])
    )
    dose = 2.0 * 10 * 0.2  # 2 mA for 200 us is 0.4 uC
    for at_s, kept in ((59.0, dose), (64.9, dose), (70.0, 0.0)):
        later = ledger.at(torch.full((2,), at_s, dtype=torch.float64))
        torch.testing.assert_close(later.dose_within(60.0)[:, 0], torch.tensor([kept, 0.0], dtype=torch.float64))
    assert float(later.dose_within(3600.0)[0, 0]) == pytest.approx(dose)


def test_rows_have_accounts_of_their_own():
    both = empty_ledger(no_stimulus(MONTAGE), (2,))
    trains = concatenate([train("A1-A2", 3.0, 5).reshape(1), train("A2-A3", 1.0, 5).reshape(1)])
    after = both.after(trains)
    assert after.last_ma.tolist() == trains.amplitude_ma.double().tolist()
    first = torch.tensor([True, False])
    mixed = after.where(first, both)
    assert float(mixed.dose_within(60.0)[1].sum()) == 0.0
    assert float(mixed.dose_within(60.0)[0].sum()) > 0.0


def test_a_stimulus_for_another_number_of_rows_is_refused():
    with pytest.raises(ShapeError, match="one ledger for the rows"):
        empty_ledger(no_stimulus(MONTAGE), (3,)).after(map_tensors(train("A1-A2", 1.0, 2), lambda x: x.unsqueeze(0)))


def test_a_clock_set_back_frees_nothing():
    ledger = empty_ledger(no_stimulus(MONTAGE), (1,)).after(train("A1-A2", 2.0, 10).reshape(1))
    back = ledger.at(torch.tensor([-1e6], dtype=torch.float64))
    assert float(back.dose_within(60.0).sum()) == float(ledger.dose_within(60.0).sum())
    assert not bool(ENVELOPE.allowed(train("A1-A2", 0.5, 2).reshape(1), replace(back)))
