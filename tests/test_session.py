import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stimopt.errors import DataError, EnvelopeError, RunError, SessionLockedError
from stimopt.history import TrialStore
from stimopt.montage import Contact, monopolar
from stimopt.objective import Charge, Outcome
from stimopt.policy import Policy
from stimopt.response import Response
from stimopt.safety_profiles import PROFILES
from stimopt.session import Session
from stimopt.stimulus import pulse_train
from stimopt.system import System
from stimopt.tensors import generator

MONTAGE = monopolar([Contact(f"A{i}", (3.5 * i, 0.0, 0.0), 0.05, "depth", "A") for i in range(1, 5)])
TEMPLATE = pulse_train(MONTAGE, "A1-A2", amplitude_ma=1.0, frequency_hz=50.0, pulses=5, pulse_width_us=200.0)
ENVELOPE = PROFILES["mapping-50hz-seeg"]


class Wild(Policy):
    """Proposes any amplitude at all, up to a hundred times what any profile allows."""

    def __init__(self, largest_ma=1000.0):
        self.largest_ma = largest_ma

    def propose(self, history, generator):
        amplitude = self.largest_ma * float(torch.rand((), generator=generator))
        return pulse_train(MONTAGE, "A2-A3", amplitude_ma=amplitude, frequency_hz=50.0, pulses=5)


class Echo(System):
    """Answers with the amplitude; its state counts the windows."""

    montage, window_s = MONTAGE, 1.0

    def start(self, batch_shape, generator):
        return {"windows": torch.zeros(tuple(batch_shape))}

    def respond(self, state, stimulus, generator):
        size = stimulus.amplitude_ma.abs().amax(-1)
        noise = torch.randn((), generator=generator, dtype=torch.float64)
        signal = torch.zeros(*stimulus.batch_shape, 4, 10, dtype=torch.float64) + size + state["windows"]
        return Response(MONTAGE, signal, 10.0, 0.0, {"size": size + noise}), {"windows": state["windows"] + 1}


def session(policy=None, **options):
    return Session(policy or Wild(2.0), Outcome("size"), ENVELOPE, TEMPLATE, interval_s=30.0, **options)


def test_a_run_ends_with_the_trials_asked_for():
    history = session(seed=3).run(Echo(), 6)
    assert len(history) == 6
    assert history.times_s.tolist() == [0.0, 30.0, 60.0, 90.0, 120.0, 150.0]
    assert history.responses.signal_uv.shape == (6, 4, 10)


def test_a_run_in_two_halves_is_the_run_in_one(tmp_path):
    with TrialStore(tmp_path / "one", TEMPLATE) as store:
        whole = session(seed=3, store=store).run(Echo(), 6)
    for trials in (2, 6):
        with TrialStore(tmp_path / "two", TEMPLATE) as store:
            halves = session(seed=3, store=store).run(Echo(), trials)
    assert torch.equal(whole.scores, halves.scores)
    assert torch.equal(whole.stimuli.amplitude_ma, halves.stimuli.amplitude_ma)
    assert torch.equal(whole.responses.signal_uv, halves.responses.signal_uv)


@given(st.integers(0, 2**31), st.sampled_from(sorted(PROFILES)))
@settings(max_examples=40, deadline=None)
def test_no_policy_gets_a_stimulus_past_the_envelope(seed, profile):
    envelope = PROFILES[profile]
    run = Session(Wild(), Charge(), envelope, TEMPLATE, seed=seed, interval_s=30.0)
    for _ in range(4):
        before = run.history
        proposal = run.policy.propose(before, generator(seed, "propose", len(before)))
        if not bool(envelope.allowed(proposal, before, before.next_time_s)):
            with pytest.raises(EnvelopeError) as refused:
                run.ask()
            assert refused.value.limit
            assert len(run.history) == len(before)
            break
        stimulus = run.ask()
        assert bool(envelope.allowed(stimulus, before, before.next_time_s))
        run.tell(score=0.0)


def test_a_stimulus_in_flight_that_is_no_longer_allowed_is_not_handed_out_again(tmp_path):
    with TrialStore(tmp_path, TEMPLATE) as store:
        store.ask(0, Wild(1000.0).propose(None, torch.Generator().manual_seed(1)), 0.0)  # a tampered or outdated run
        with pytest.raises(EnvelopeError):
            session(store=store).ask()


def test_asking_twice_gives_the_same_stimulus_and_telling_needs_asking():
    run = session(seed=1)
    with pytest.raises(RunError, match="no stimulus is in flight"):
        run.tell(score=1.0)
    first, second = run.ask(), run.ask()
    assert torch.equal(first.amplitude_ma, second.amplitude_ma)
    with pytest.raises(RunError, match="either a response or a score"):
        run.tell()
    for bad in (math.nan, math.inf):
        with pytest.raises(DataError, match="not a finite number"):
            run.tell(score=bad)
    assert run.tell(score=2.5) == 2.5
    assert len(run.history) == 1


def test_a_stop_rule_ends_and_locks_the_session_for_good(tmp_path):
    with TrialStore(tmp_path, TEMPLATE) as store:
        history = session(store=store, stop_rule=lambda r, s: "after-discharge" if r.signal_uv.mean() > 2 else "").run(
            Echo(), 9
        )
        assert len(history) < 9
    with TrialStore(tmp_path, TEMPLATE) as store:
        resumed = session(store=store)
        assert resumed.lock_reason == "after-discharge"
        with pytest.raises(SessionLockedError, match="after-discharge"):
            resumed.ask()
        assert len(resumed.run(Echo(), 9)) == len(history)


def test_a_live_session_keeps_the_time_of_its_clock():
    now = iter([100.0, 100.0, 107.0, 107.0, 107.0, 107.0])
    run = session(clock=lambda: next(now))
    run.ask()
    run.tell(score=1.0)
    assert run.history.times_s.tolist() == [100.0]


def test_a_score_alone_does_not_slip_past_the_stop_rule():
    run = session(stop_rule=lambda response, stimulus: "")
    run.ask()
    with pytest.raises(RunError, match="stop rule"):
        run.tell(score=1.0)
    assert run.tell(score=1.0, without_stop_rule=True) == 1.0
