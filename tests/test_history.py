import pytest
import torch

from stimopt.errors import RunError
from stimopt.history import TrialStore, empty_history
from stimopt.montage import Contact, monopolar
from stimopt.response import Response
from stimopt.stimulus import pulse_train, table_stimulus

MONTAGE = monopolar([Contact(f"A{i}", (3.5 * i, 0.0, 0.0), 0.05) for i in range(1, 4)])
TEMPLATE = pulse_train(MONTAGE, "A1-A2", amplitude_ma=1.0)


def stimulus(amplitude_ma):
    return pulse_train(MONTAGE, "A1-A2", amplitude_ma=amplitude_ma, frequency_hz=50.0, pulses=5, onset_s=0.05)


def response(value):
    signal = torch.full((3, 20), value, dtype=torch.float64)
    return Response(MONTAGE, signal, 100.0, 0.01, {"pain": torch.tensor(value, dtype=torch.float64)})


def filled(store, scores):
    for number, score in enumerate(scores):
        store.ask(number, stimulus(1.0 + number), 5.0 * number)
        store.tell(number, score, response(float(number)), {"y": torch.full((2,), float(number))})


def test_trials_come_back_from_disk_as_they_were(tmp_path):
    with TrialStore(tmp_path / "run", TEMPLATE) as store:
        filled(store, [0.1, 0.7, 1 / 3])
    with TrialStore(tmp_path / "run", TEMPLATE) as store:
        history, state = store.history(), store.state()
    assert history.scores.tolist() == [0.1, 0.7, 1 / 3]
    assert history.times_s.tolist() == [0.0, 5.0, 10.0]
    assert torch.equal(history.stimuli.amplitude_ma[:, 1], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert history.responses.signal_uv[:, 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert (history.responses.rate_hz, history.responses.start_s) == (100.0, 0.01)
    assert history.responses.outcomes["pain"].tolist() == [0.0, 1.0, 2.0]
    assert state["y"].tolist() == [2.0, 2.0]


def test_a_stimulus_in_flight_is_remembered_and_not_told(tmp_path):
    with TrialStore(tmp_path, TEMPLATE) as store:
        filled(store, [1.0])
        store.ask(1, stimulus(4.0), 5.0)
    with TrialStore(tmp_path, TEMPLATE) as store:
        history = store.history()
        assert len(history) == 1
        assert history.in_flight[0].amplitude_ma.abs().max() == 4.0
        assert history.in_flight[1] == 5.0
        store.forget_asked()
        assert store.history().in_flight is None


def test_telling_what_was_not_asked_changes_nothing(tmp_path):
    with TrialStore(tmp_path, TEMPLATE) as store:
        filled(store, [1.0])
        with pytest.raises(RunError, match="not in flight"):
            store.tell(1, 2.0, None, {"y": torch.zeros(1)}, lock="reason")
        with pytest.raises(RunError, match="already"):
            store.ask(0, stimulus(1.0), 0.0)
        assert store.history().scores.tolist() == [1.0]
        assert store.state()["y"].tolist() == [0.0, 0.0]
        assert store.lock_reason == ""


def test_a_signal_left_by_a_killed_process_is_overwritten(tmp_path):
    with TrialStore(tmp_path, TEMPLATE) as store:
        filled(store, [1.0])
        store._write_signal(1, response(99.0))  # the process dies before the row is committed
    with TrialStore(tmp_path, TEMPLATE) as store:
        assert store.history().responses.signal_uv.shape[0] == 1
        store.ask(1, stimulus(2.0), 5.0)
        store.tell(1, 2.0, response(7.0))
        assert store.history().responses.signal_uv[1].unique().item() == 7.0


def test_a_lock_stays(tmp_path):
    with TrialStore(tmp_path, TEMPLATE) as store:
        store.ask(0, stimulus(1.0), 0.0)
        store.tell(0, 0.0, response(1.0), lock="after-discharge")
    with TrialStore(tmp_path, TEMPLATE) as store:
        assert store.lock_reason == "after-discharge"


def test_parameters_of_a_trial_table_are_kept_too(tmp_path):
    template = table_stimulus(monopolar([]), torch.tensor([1.0, 2.0], dtype=torch.float64), ("dose", "rate"))
    with TrialStore(tmp_path, template) as store:
        store.ask(0, template, 0.0)
        store.tell(0, 3.0, None)
        history = store.history()
    assert history.stimuli.sensory.features.tolist() == [[1.0, 2.0]]
    assert history.responses is None


def test_the_best_tried_is_the_best_mean_not_the_luckiest_trial():
    history = empty_history(TEMPLATE)
    for amplitude, score in [(1.0, 0.0), (1.0, 5.0), (2.0, 3.0), (2.0, 3.0)]:
        history = history.with_trial(stimulus(amplitude), score, 0.0, None)
    assert history.best_tried().amplitude_ma[1].item() == 2.0
    assert history.until(2).best_tried().amplitude_ma[1].item() == 1.0
    with pytest.raises(RunError):
        empty_history(TEMPLATE).best_tried()
