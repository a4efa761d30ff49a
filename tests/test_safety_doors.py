"""Nothing outside the envelope is ever delivered, whatever the policy, the past, the clock or the crash.

A spy stands where the brain would be. It judges each stimulus at the moment of delivery against what it has
itself delivered so far: once with the envelope, once with arithmetic of its own.
"""

import math
import random
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from stimopt.errors import DataError, EnvelopeError, RunError, StimulusError
from stimopt.forecaster import Context, Forecaster, GaussianForecast
from stimopt.history import TrialStore, empty_history
from stimopt.landscape import calibrate, dense_search
from stimopt.montage import Contact, Montage, monopolar
from stimopt.objective import Charge, EvokedAmplitude, WeightedSum
from stimopt.policies import (
    BayesianPolicy,
    ConstantPolicy,
    GradientPolicy,
    GridPolicy,
    NoStimulationPolicy,
    RandomPolicy,
    SobolPolicy,
)
from stimopt.policy import Policy
from stimopt.response import Response
from stimopt.safety import Envelope
from stimopt.safety_profiles import PROFILES
from stimopt.session import Session
from stimopt.space import Parameter, StimulationSpace
from stimopt.stimulus import Stimulus, pulse_train
from stimopt.system import System
from stimopt.tensors import concatenate, generator
from stimopt.waveform import current_ma, rectified_current_ma, train_s

SEEDS = st.integers(0, 2**31)
SLACK = 1e-6  # relative; the envelope itself allows 1e-9 for rounding


# --- random situations -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Situation:
    """A protocol with limits of the house on top, a montage that fits it more or less, a space that reaches beyond."""

    envelope: Envelope
    space: StimulationSpace
    interval_s: float
    seed: int


def situation_of(seed: int) -> Situation:
    draw = random.Random(seed)
    envelope = envelope_of(draw)
    montage = montage_of(draw, envelope)
    return Situation(envelope, space_of(draw, envelope, montage), draw.choice([0.5, 2.0, 5.0, 30.0]), seed)


def envelope_of(draw: random.Random) -> Envelope:
    envelope = PROFILES[draw.choice(sorted(PROFILES))]
    values = {limit.name: limit.value for limit in envelope.limits if limit.evaluated}
    top_ma, charge_uc = values["contact_current_ma"], values["phase_charge_uc"]
    own = {
        "ramp_ma": top_ma * draw.uniform(0.05, 0.6),
        "dose_minute_uc": min(values.get("dose_minute_uc", math.inf), charge_uc * draw.uniform(2, 200)),
        "dose_hour_uc": charge_uc * draw.uniform(5, 400),
        "interval_s": max(values.get("interval_s", 0.0), draw.uniform(0.3, 4.0)),
        "contact_current_ma": top_ma * draw.uniform(0.3, 1.0),
        "pulses": draw.randint(1, 60),
        "window_s": draw.uniform(0.05, 2.0),
    }
    chosen = {name: value for name, value in own.items() if draw.random() < 0.3}
    return envelope.with_limits(**chosen)


def montage_of(draw: random.Random, envelope: Envelope) -> Montage:
    area = {"micro": 2e-5, "subdural": 0.05}.get(envelope.kinds[0], 0.06)
    contacts = []
    for i in range(draw.randint(3, 5)):
        kind = draw.choice(envelope.kinds) if draw.random() < 0.95 else "scalp"
        own = math.nan if draw.random() < 0.1 else area * draw.uniform(0.5, 1.5)
        contacts.append(Contact(f"C{i}", (3.5 * i, 0.0, 0.0), own, kind, "C"))
    return monopolar(contacts)


def space_of(draw: random.Random, envelope: Envelope, montage: Montage) -> StimulationSpace:
    """Some of the knobs; each may reach far beyond what the protocol allows."""
    values = {limit.name: limit.value for limit in envelope.limits if limit.evaluated}
    top_ma, longest_us = values["contact_current_ma"], values["pulse_width_max_us"]
    width_us, low_ma = min(200.0, longest_us), top_ma * draw.choice([0.01, 0.05])
    sites = (*montage.neighbour_pairs(), *(contact.name for contact in montage.contacts))
    knobs = [
        Parameter("contacts", "categorical", choices=tuple(draw.sample(sites, 3))),
        Parameter("pulse_width_us", "continuous", 0.3 * width_us, 1.5 * longest_us),
        Parameter("frequency_hz", "log", 0.5, 1.5 * values["frequency_max_hz"]),
        draw.choice([Parameter("pulses", "integer", 1, 50), Parameter("duration_s", "continuous", 0.01, 3.0)]),
        Parameter("interphase_us", "ordinal", choices=(0.0, 50.0, 150.0)),
        Parameter("onset_s", "continuous", 0.0, 1.0),
    ]
    amplitude = Parameter("amplitude_ma", draw.choice(["continuous", "log"]), low_ma, draw.choice([1.0, 3.0]) * top_ma)
    chosen = [knob for knob in knobs if draw.random() < 0.5]
    hertz = min(50.0, values["frequency_max_hz"])
    template = pulse_train(
        montage, sites[0], amplitude_ma=low_ma, frequency_hz=hertz, pulses=draw.randint(1, 5), pulse_width_us=width_us
    )
    return StimulationSpace((amplitude, *chosen), template)


def deliverable(space: StimulationSpace, count: int, seed: int) -> Stimulus:
    """Random stimuli of the space, those left out that no device could deliver; one batch axis."""
    found = []
    for unit in torch.rand(count, space.dimension, generator=generator(seed, "units"), dtype=torch.float64):
        with suppress(StimulusError):
            found.append(space.stimulus(unit.unsqueeze(0)))
    return concatenate(found) if found else space.template.expand(1)[:0]


# --- the spy -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delivered:
    """What a spy has delivered, as the envelope reads a past."""

    stimuli: Stimulus
    times_s: torch.Tensor
    in_flight: None = None


@dataclass
class Spy(System):
    """A brain that notes every stimulus that should never have reached it."""

    envelope: Envelope
    template: Stimulus
    interval_s: float
    windows_per_trial: int = 1
    window_s: float = 1.0
    before: list[tuple[Stimulus, float]] = field(default_factory=list)
    lives: list[list[tuple[Stimulus, float]]] = field(default_factory=list)  # the same for each row of a batch
    offences: list[str] = field(default_factory=list)
    windows: int = 0
    driven: int = 0

    def __post_init__(self) -> None:
        self.montage = self.template.montage

    def start(self, batch_shape, generator):
        windows = torch.zeros(tuple(batch_shape), dtype=torch.float64)
        lives = torch.arange(windows.numel()) + len(self.lives)
        self.lives += [[] for _ in lives]
        return {"windows": windows, "life": lives.reshape(windows.shape)}

    def respond(self, state, stimulus, generator):
        if stimulus.batch_shape == ():
            self.deliver(stimulus, self.windows // self.windows_per_trial * self.interval_s)
        else:  # rows of a batch are lives of their own, each with its own past
            for row, (life, windows) in enumerate(zip(state["life"].tolist(), state["windows"].tolist(), strict=True)):
                time_s = windows // self.windows_per_trial * self.interval_s
                del self.lives[life][int(windows) :]  # of another branch of this life
                self.judge(stimulus[row], self.lives[life], time_s)
                self.lives[life].append((stimulus[row], time_s))
        self.windows += 1
        size = stimulus.amplitude_ma.abs().amax(-1)[..., None, None]
        signal = size * torch.ones(len(self.montage.channels), 4, dtype=torch.float64)
        return Response(self.montage, signal, 4.0), {**state, "windows": state["windows"] + 1}

    def deliver(self, stimulus: Stimulus, time_s: float) -> None:
        self.judge(stimulus, self.before, time_s)
        self.before.append((stimulus, time_s))

    def judge(self, stimulus: Stimulus, before: list[tuple[Stimulus, float]], time_s: float) -> None:
        past = Delivered(
            concatenate([s.reshape(1) for s, _ in before]) if before else self.template.expand(1)[:0],
            torch.tensor([t for _, t in before], dtype=torch.float64),
        )
        self.driven += not bool(stimulus.silent)
        if not bool(self.envelope.allowed(stimulus, past, time_s)):
            self.offences.append(f"{self.envelope.report(stimulus, past, time_s)}")
        self.offences += broken_by_hand(self.envelope, stimulus, before, time_s)


def broken_by_hand(
    envelope: Envelope, stimulus: Stimulus, before: list[tuple[Stimulus, float]], time_s: float
) -> list[str]:
    """Limits that are passed, by arithmetic that shares nothing with the envelope's."""
    if bool(stimulus.silent):
        return []
    limits = {limit.name: limit.value for limit in envelope.limits if limit.evaluated}
    current, width_us, hertz, pulses, onset_s, gap_us = plain(stimulus)
    driven = [i for i, ma in enumerate(current) if ma]
    charge = [abs(ma) * width_us * 1e-3 for ma in current]  # 1 mA for 1 us is 1 nC
    areas = [contact.area_cm2 for contact in stimulus.montage.contacts]
    train = (pulses - 1) / hertz + (2 * width_us + gap_us) * 1e-6
    asked = {
        "contact_current_ma": max(map(abs, current)),
        "total_current_ma": max(sum(ma for ma in current if ma > 0), -sum(ma for ma in current if ma < 0)),
        "pulse_width_max_us": width_us,
        "frequency_max_hz": hertz if pulses > 1 else 0.0,
        "pulses": pulses,
        "train_s": train,
        "window_s": onset_s + train,
        "phase_charge_uc": max(charge),
        "charge_density_uc_cm2": max((charge[i] / areas[i] for i in driven if areas[i] == areas[i]), default=0.0),
        "shannon_k": max(
            (math.log10(charge[i]) + math.log10(charge[i] / areas[i]) for i in driven if areas[i] == areas[i]),
            default=-math.inf,
        ),
        **asked_with_the_past(current, charge, pulses, before, time_s),
    }
    broken = [
        name for name, value in asked.items() if name in limits and value > limits[name] + SLACK * abs(limits[name])
    ]
    since_s = [time_s + onset_s - at_s - float(s.onset_s) for s, at_s in before if not bool(s.silent)]
    least = {
        "pulse_width_min_us": width_us,
        "frequency_min_hz": hertz if pulses > 1 else math.inf,
        "interval_s": min(since_s, default=math.inf),
    }
    broken += [name for name, value in least.items() if name in limits and value < limits[name] * (1 - SLACK)]
    kinds = {stimulus.montage.contacts[i].kind for i in driven}
    names = {stimulus.montage.contacts[i].name for i in driven}
    return broken + [f"kind {kind}" for kind in kinds - {*envelope.kinds}] + [*names & {*envelope.forbidden}]


def asked_with_the_past(current, charge, pulses, before, time_s) -> dict[str, float]:
    """Doses of each window and the rise above the last stimulus."""
    asked = {}
    driven = [i for i, ma in enumerate(current) if ma]
    felt = [(plain(s), at_s) for s, at_s in before if not bool(s.silent)]
    for name, window_s in (("dose_minute_uc", 60.0), ("dose_hour_uc", 3600.0)):
        dose = [uc * pulses for uc in charge]
        for (was, width_us, _, count, onset_s, _), at_s in felt:
            if at_s + onset_s >= time_s - window_s:
                dose = [d + abs(ma) * width_us * 1e-3 * count for d, ma in zip(dose, was, strict=True)]
        asked[name] = max(dose[i] for i in driven)
    last = max(felt, key=lambda trial: trial[1] + trial[0][4])[0][0] if felt else [0.0] * len(current)
    asked["ramp_ma"] = max(abs(current[i]) - (abs(last[i]) if last[i] * current[i] > 0 else 0.0) for i in driven)
    return asked


def plain(stimulus: Stimulus) -> tuple[list[float], float, float, float, float, float]:
    numbers = ("pulse_width_us", "frequency_hz", "pulses", "onset_s", "interphase_us")
    return (stimulus.amplitude_ma.tolist(), *(float(getattr(stimulus, name)) for name in numbers))


# --- policies ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Greedy(Forecaster):
    """More current, wider, faster: always a larger answer. Its gradient points out of every envelope."""

    montage: Montage

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        strength = stimulus.amplitude_ma.abs().sum(-1) * stimulus.pulse_width_us * stimulus.frequency_hz.sqrt()
        signal = strength[..., None, None] * torch.ones(len(self.montage.channels), 8).to(strength)
        factors = signal.new_zeros(*signal.shape[:-2], 0, *signal.shape[-2:])
        return GaussianForecast(Response(self.montage, signal, 8.0), torch.ones_like(signal), factors)


@dataclass(frozen=True)
class Wild(Policy):
    """Anything in the space, and a tenfold of it, the envelope forgotten."""

    space: StimulationSpace

    def propose(self, history, generator):
        unit = torch.rand(self.space.dimension, generator=generator, dtype=torch.float64)
        stimulus = self.space.stimulus(unit)
        scale = 10.0 ** (2 * torch.rand((), generator=generator, dtype=torch.float64) - 1)
        return replace(stimulus, amplitude_ma=scale * stimulus.amplitude_ma)


def gradient(now: Situation, **options) -> GradientPolicy:
    montage = now.space.template.montage
    context = Context(montage, torch.zeros(len(montage.channels), 8, dtype=torch.float64), 8.0)
    judged = WeightedSum((EvokedAmplitude((0.0, 1.0)), Charge()), (1.0, 1e-3))
    options = {"starts": 2, "steps": 4, "rate": 0.3, "samples": 2, **options}
    return GradientPolicy(now.space, now.envelope, Greedy(montage), judged, context, **options)


def bayesian(now: Situation, acquisition: str) -> BayesianPolicy:
    return BayesianPolicy(now.space, now.envelope, startup=2, samples=8, acquisition=acquisition)


def constant(now: Situation) -> ConstantPolicy:
    return ConstantPolicy(now.space, now.space.describe(torch.full((now.space.dimension,), 0.05, dtype=torch.float64)))


POLICIES = {
    "wild": lambda now: Wild(now.space),
    "random": lambda now: RandomPolicy(now.space, now.envelope),
    "sobol": lambda now: SobolPolicy(now.space, now.envelope),
    "grid": lambda now: GridPolicy(now.space, now.envelope, levels=3),
    "constant": constant,
    "no stimulation": lambda now: NoStimulationPolicy(now.space),
    "log_nei": lambda now: bayesian(now, "log_nei"),
    "ucb": lambda now: bayesian(now, "ucb"),
    "thompson": lambda now: bayesian(now, "thompson"),
    "gradient": gradient,
}


def session_of(now: Situation, policy: Policy, store: TrialStore | None = None, **options) -> Session:
    options = {"interval_s": now.interval_s, "seed": now.seed, **options}
    return Session(policy, Charge(), now.envelope, now.space.template, store=store, **options)


def spy_of(now: Situation, **options) -> Spy:
    return Spy(now.envelope, now.space.template, now.interval_s, **options)


# --- the doors ---------------------------------------------------------------------------------------------------


def test_the_spy_sees_what_it_is_for():
    now = situation_of(1)
    now = replace(now, envelope=PROFILES["dbs-chronic"].with_limits(ramp_ma=1.0, dose_minute_uc=2.0, interval_s=2.0))
    montage = monopolar([Contact(f"C{i}", area_cm2=0.06, kind="dbs") for i in range(3)])
    weak = pulse_train(montage, "C0-C1", amplitude_ma=0.9, pulse_width_us=100.0, frequency_hz=100.0, pulses=10)
    for changes, name in [
        ({"amplitude_ma": 2.0 * weak.amplitude_ma}, "ramp_ma"),
        ({"amplitude_ma": 1000 * weak.amplitude_ma}, "charge_density_uc_cm2"),
        ({"pulses": 30.0 + 0 * weak.pulses}, "dose_minute_uc"),
        ({"pulse_width_us": 5.0 + 0 * weak.pulses}, "pulse_width_min_us"),
    ]:
        spy = Spy(now.envelope, weak, 5.0)
        spy.deliver(replace(weak, **changes), 0.0)
        assert name in spy.offences, spy.offences
        assert len(spy.offences) >= 2, "the envelope and the arithmetic agree"
    spy = Spy(now.envelope, weak, 5.0)
    spy.deliver(weak, 0.0)
    assert spy.offences == []
    spy.deliver(weak, 1.0)
    assert "interval_s" in spy.offences


@pytest.mark.parametrize("name", POLICIES)
@given(seed=SEEDS)
@settings(max_examples=3, deadline=None)
def test_no_policy_gets_anything_past_the_session(name, seed):
    now = situation_of(seed)
    run, spy = session_of(now, POLICIES[name](now)), spy_of(now)
    with suppress(EnvelopeError, StimulusError):
        run.run(spy, 5)
    assert spy.offences == []
    assert len(run.history) == spy.windows


@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_what_a_policy_that_knows_the_envelope_proposes_the_envelope_allows(seed):
    now = situation_of(seed)
    name = sorted({*POLICIES} - {"wild", "constant"})[seed % (len(POLICIES) - 2)]
    policy, history = POLICIES[name](now), empty_history(now.space.template)
    for number in range(3):
        history = replace(history, next_time_s=number * now.interval_s)
        try:
            stimulus = policy.propose(history, generator(seed, number))
        except EnvelopeError:
            return
        assert bool(now.envelope.allowed(stimulus, history, history.next_time_s))
        history = history.with_trial(stimulus, float(number % 2), number * now.interval_s, None)


@pytest.mark.parametrize("name", sorted({*POLICIES} - {"wild"}))
def test_corners_of_a_space_that_no_device_could_deliver_stop_no_policy(name):
    montage = monopolar([Contact(f"C{i}", area_cm2=0.08) for i in range(2)])
    knobs = (
        Parameter("amplitude_ma", "continuous", 0.1, 1.0),
        Parameter("pulse_width_us", "categorical", choices=(100.0, 1000.0, 2000.0)),
        Parameter("frequency_hz", "log", 5.0, 400.0),
        Parameter("pulses", "integer", 1, 4),
    )
    space = StimulationSpace(knobs, pulse_train(montage, "C0-C1", amplitude_ma=0.1))
    now = Situation(PROFILES["rns"], space, 5.0, 3)
    spy = spy_of(now)
    session_of(now, POLICIES[name](now)).run(spy, 5)
    assert spy.offences == []
    assert spy.driven == (0 if name == "no stimulation" else 5)


@given(seed=SEEDS, rate=st.floats(0.01, 3.0))
@settings(max_examples=8, deadline=None)
def test_no_projected_gradient_step_leaves_the_envelope(seed, rate):
    now = situation_of(seed)
    stimuli, forecaster = deliverable(now.space, 4, seed), Greedy(now.space.template.montage)
    assume(len(stimuli.pulses))
    rest = Context(forecaster.montage, torch.zeros(len(forecaster.montage.channels), 8, dtype=torch.float64), 8.0)
    past = empty_history(now.space.template).with_trial(stimuli[0], 0.0, 0.0, None)
    stimuli = now.envelope.project(stimuli, past, now.interval_s)
    for _ in range(3):
        amplitude = stimuli.amplitude_ma.detach().requires_grad_()
        mean = forecaster.forecast(rest, replace(stimuli, amplitude_ma=amplitude)).mean
        (slope,) = torch.autograd.grad(mean.sum(), amplitude)
        size = slope.abs().amax().clamp_min(1e-9)
        stepped = replace(stimuli, amplitude_ma=(amplitude + rate * amplitude.abs().amax() * slope / size).detach())
        stimuli = now.envelope.project(stepped, past, now.interval_s)
        for row in range(len(stimuli.pulses)):
            spy = spy_of(now)
            spy.before.append((past.stimuli[0], 0.0))
            spy.deliver(stimuli[row], now.interval_s)
            assert spy.offences == []


@given(seed=SEEDS, told=st.integers(0, 3), name=st.sampled_from(["wild", "random", "sobol", "ucb", "gradient"]))
@settings(max_examples=6, deadline=None)
def test_a_run_that_was_killed_in_flight_stays_inside_when_resumed(seed, told, name):
    now, spy = situation_of(seed), None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, suppress(EnvelopeError, StimulusError):
        spy = spy_of(now)
        with TrialStore(Path(folder), now.space.template) as store:
            first = session_of(now, POLICIES[name](now), store)
            first.run(spy, told)
            first.ask()  # in flight, and the process dies here
        with TrialStore(Path(folder), now.space.template) as store:
            session_of(now, POLICIES[name](now), store).run(spy, told + 2)
    assert spy is not None
    assert spy.offences == []


@given(seed=SEEDS, resumes=st.booleans())
@settings(max_examples=6, deadline=None)
def test_a_run_resumed_over_any_past_stays_inside(seed, resumes):
    """The past may be one that no envelope would have allowed, at times in any order, with anything in flight."""
    now, draw, spy = situation_of(seed), random.Random(seed + 1), None
    stimuli = deliverable(now.space, 4, seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, suppress(EnvelopeError, StimulusError):
        spy = spy_of(now)
        with TrialStore(Path(folder), now.space.template) as store:
            for number, stimulus in enumerate(stimuli[i] for i in range(len(stimuli.pulses))):
                time_s = draw.uniform(0.0, 100.0)
                store.ask(number, stimulus, time_s)
                if number == 3:
                    break
                store.tell(number, 0.0, None)
                spy.before.append((stimulus, time_s))
                spy.windows += 1
            run = session_of(now, POLICIES["wild" if resumes else "random"](now), store)
            if resumes:
                run.run(spy, spy.windows + 3)
            else:
                stimulus = run.ask()
                spy.deliver(stimulus, run.history.in_flight[1])
    assert spy is not None
    assert spy.offences == []


@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_no_order_of_asking_and_telling_gets_anything_past_the_session(seed):
    now, draw, clock = situation_of(seed), random.Random(seed + 2), [0.0]
    run, spy = session_of(now, POLICIES["wild"](now), clock=lambda: clock[0]), spy_of(now)
    handed, told = None, 0
    for _ in range(16):
        clock[0] += draw.choice([0.0, 0.1, 1.0, 30.0, 30.0, -5.0])
        if draw.random() < 0.6:
            with suppress(EnvelopeError, StimulusError):
                stimulus = run.ask()
                if handed is None:
                    spy.deliver(stimulus, run.history.in_flight[1])
                else:
                    assert torch.equal(stimulus.amplitude_ma, handed.amplitude_ma)
                handed = stimulus
        else:
            score = draw.choice([1.0, -1e9, math.nan, None])
            with suppress(RunError, DataError):
                run.tell(score=score)
                handed, told = None, told + 1
        assert len(run.history) == told
        assert spy.offences == []
    delivered = torch.stack([s.amplitude_ma for s, _ in spy.before[:told]]) if told else torch.zeros(0)
    assert torch.equal(run.history.stimuli.amplitude_ma, delivered) or told == 0


@given(seed=SEEDS, sessions=st.sampled_from([1, 3]))
@settings(max_examples=8, deadline=None)
def test_calibration_records_all_trials_and_stays_inside(seed, sessions):
    now = situation_of(seed)
    spy = spy_of(now, windows_per_trial=2)
    with suppress(EnvelopeError, StimulusError):
        made = calibrate(
            spy, now.space, now.envelope, trials=7, seed=seed, interval_s=now.interval_s, sessions=sessions
        )
        assert len(made) == 7
    assert spy.offences == []


@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_the_dense_search_of_a_twin_stays_inside(seed):
    now, spy = situation_of(seed), None
    spy = spy_of(now)
    with suppress(EnvelopeError, StimulusError):
        dense_search(spy, now.space, now.envelope, Charge(), points=32, repeats=2, seed=seed, rounds=1)
    assert spy.offences == []


def test_a_dense_search_ends_where_every_step_around_the_best_leaves_the_envelope():
    montage = monopolar([Contact(f"C{i}", area_cm2=0.08) for i in range(2)])
    knob = Parameter("pulse_width_us", "continuous", 1.0, 100_000.0)  # of which 40 to 1000 us are allowed
    space = StimulationSpace((knob,), pulse_train(montage, "C0-C1", amplitude_ma=0.1))
    spy, alone = Spy(PROFILES["rns"], space.template, 5.0), 0
    for seed in range(12):
        with suppress(EnvelopeError):
            found = dense_search(spy, space, PROFILES["rns"], Charge(), points=64, repeats=2, seed=seed, rounds=1)
            alone += len(found.unit) == 1
    assert alone
    assert spy.offences == []


@given(seed=SEEDS, rate_hz=st.floats(100.0, 20000.0))
@example(seed=5192146, rate_hz=100.0)
@settings(max_examples=15, deadline=None)
def test_the_waveform_of_every_allowed_stimulus_leaves_no_charge(seed, rate_hz):
    now = situation_of(seed)
    stimuli = now.envelope.project(deliverable(now.space, 4, seed))
    assert bool(now.envelope.allowed(stimuli).all())
    stimuli = stimuli[(~stimuli.silent).nonzero().squeeze(-1)]  # a train without a current may last as it likes
    assume(len(stimuli.pulses))
    until_s = float((stimuli.onset_s + train_s(stimuli)).max()) + 0.01
    assert until_s < 35.0  # no profile allows a longer train
    per_bin = 1e3 / rate_hz  # uC of 1 mA
    left_uc = current_ma(stimuli, rate_hz, until_s).sum(-1) * per_bin
    each_way_uc = stimuli.phase_charge_uc.abs() * stimuli.pulses.unsqueeze(-1)
    cathodic_uc, anodic_uc = (share.sum(-1) * per_bin for share in rectified_current_ma(stimuli, rate_hz, until_s))
    assert torch.allclose(cathodic_uc, each_way_uc, rtol=1e-6, atol=1e-15)  # a difference of two times of 30 s
    assert torch.allclose(anodic_uc, each_way_uc, rtol=1e-6, atol=1e-15)
    assert bool((left_uc.abs() <= 1e-6 * each_way_uc).all())
