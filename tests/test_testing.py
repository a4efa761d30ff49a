"""The checkers catch what they are for: one small offender per clause, and an honest one that passes."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from stimopt.errors import ContractError, ShapeError
from stimopt.forecaster import Context, Forecast, Forecaster, GaussianForecast
from stimopt.history import History, empty_history
from stimopt.montage import Contact, monopolar
from stimopt.objective import Objective
from stimopt.policy import Policy
from stimopt.response import Response
from stimopt.safety_profiles import PROFILES
from stimopt.space import Parameter, StimulationSpace
from stimopt.stimulus import Stimulus, pulse_train
from stimopt.system import System
from stimopt.tensors import row_keys, row_noise
from stimopt.testing import check_forecaster, check_objective, check_policy, check_system

MONTAGE = monopolar([Contact(f"A{i}", (3.5 * i, 0.0, 0.0), 0.05, "depth", "A") for i in range(1, 4)])
TEMPLATE = pulse_train(MONTAGE, "A1-A2", amplitude_ma=1.0, frequency_hz=50.0, pulses=5)
SPACE = StimulationSpace(
    (
        Parameter("amplitude_ma", "continuous", 0.5, 12.0),
        Parameter("pulse_width_us", "ordinal", choices=(200.0, 300.0)),
    ),
    TEMPLATE,
)
ENVELOPE = PROFILES["mapping-50hz-seeg"]  # 10 mA at a contact
STIMULI = SPACE.stimulus(torch.tensor([[0.1, 0.0], [0.5, 1.0], [0.3, 0.0]], dtype=torch.float64))
RATE_HZ, SAMPLES = 50.0, 10


# --- systems -----------------------------------------------------------------------------------------------------


@dataclass
class Leaky(System):
    """A leaky integrator of the current with noise of each row's own; honest until told to break a clause."""

    breaks: str = ""
    montage: Any = MONTAGE
    window_s: float = SAMPLES / RATE_HZ
    calls: list[int] = field(default_factory=list)

    def start(self, batch_shape, generator):
        keys = row_keys(batch_shape, generator)
        if self.breaks == "start":
            keys = torch.randint(0, 2**40, tuple(batch_shape), generator=torch.Generator().manual_seed(len(self.calls)))
            self.calls.append(1)
        level = torch.zeros(tuple(batch_shape), dtype=torch.float64)
        state = {"level": level, "key": keys, "windows": torch.zeros_like(keys)}
        return {**state, "shared": torch.zeros(7)} if self.breaks == "batchless" else state

    def respond(self, state, stimulus, generator):
        if state["level"].shape != stimulus.batch_shape and self.breaks != "broadcasts":
            raise ShapeError("the batch of the stimulus is not that of the state.")
        level = 0.5 * state["level"] + stimulus.amplitude_ma.abs().amax(-1)
        keys = state["key"] + state["windows"]
        noise = row_noise(keys, (len(MONTAGE.channels), SAMPLES), 0, level)
        signal = level[..., None, None] + 0.1 * noise
        after = {**state, "level": level, "windows": state["windows"] + 1}
        return self._broken(signal, after, state, stimulus, generator)

    def _broken(self, signal, after, state, stimulus, generator):
        outcomes = {}
        if self.breaks == "leaks":
            signal = signal + signal.mean(0, keepdim=True)
        if self.breaks == "outcome leaks":
            outcomes = {"share": after["level"] / after["level"].sum(0)}
        if self.breaks == "irreproducible":
            self.calls.append(1)
            signal = signal + 1e-9 * len(self.calls)
        if self.breaks == "global":
            signal = signal + 0 * torch.randn(())
        if self.breaks == "nan" and bool((state["windows"] > 0).any()):
            signal = signal * torch.nan
        if self.breaks == "first nan" and bool((state["windows"] == 0).any()):
            outcomes = {"size": after["level"] * torch.nan}
        if self.breaks == "state nan" and bool((state["windows"] > 0).any()):
            after = {**after, "level": after["level"] * torch.inf}
        if self.breaks == "short":
            signal = signal[..., :-1]
        if self.breaks == "renames":
            after = {"volume" if name == "level" else name: tensor for name, tensor in after.items()}
        if self.breaks == "grows":
            after = {**after, "windows": torch.stack([after["windows"]] * 2, -1)}
        if self.breaks == "in place":
            state["level"].add_(1.0)
        if self.breaks == "remembers":
            self.calls.append(1)
            signal = signal + (1e-9 * len(self.calls) if bool((state["windows"] == 2).any()) else 0.0)
        if self.breaks == "detached":
            after = {**after, "level": after["level"].detach()}
        if self.breaks == "flat":
            after = {**after, "level": 0 * after["level"]}
        montage = MONTAGE.bipolar() if self.breaks == "channels" else MONTAGE
        signal = signal[..., : len(montage.channels), :]
        if self.breaks == "drops batch" and stimulus.batch_shape == ():
            signal, outcomes = signal.unsqueeze(0), {}
        return Response(montage, signal, RATE_HZ, outcomes=outcomes), after


def test_an_honest_system_passes():
    check_system(Leaky(), STIMULI, differentiable=True)


@pytest.mark.parametrize(
    ("breaks", "clause"),
    [
        ("start", "same shape and seed, same start"),
        ("batchless", "every tensor of the state begins with the batch"),
        ("leaks", "rows of a batch do not see each other"),
        ("outcome leaks", "rows of a batch do not see each other"),
        ("irreproducible", "same state, stimulus and seed, same response"),
        ("global", "no global generator is touched"),
        ("nan", r"responses stay finite over windows \(window 2\)"),
        ("first nan", r"responses stay finite over windows \(window 1\)"),
        ("state nan", "the state stays finite over windows"),
        ("short", r"a window holds window_s \* rate_hz = 10 samples"),
        ("renames", "the state keeps its names"),
        ("grows", "the state keeps its shapes"),
        ("in place", "a state handed in is not changed"),
        ("remembers", "a stored state resumes where it was"),
        ("broadcasts", "refused with a ShapeError"),
        ("channels", "responses carry the system's channels"),
        ("drops batch", r"a batch of shape \(\) is answered with shape \(\)"),
        ("detached", "gradients pass from one window's stimulus into the next window"),
        ("flat", "gradients through two windows are not all zero"),
    ],
)
def test_a_system_that_breaks_a_clause_is_caught(breaks, clause):
    with pytest.raises(ContractError, match=clause):
        check_system(Leaky(breaks), STIMULI, differentiable=True)


def test_a_check_needs_two_stimuli():
    with pytest.raises(ContractError, match="two or more stimuli"):
        check_system(Leaky(), STIMULI[:1])


# --- forecasters -------------------------------------------------------------------------------------------------

CONTEXT = Context(MONTAGE, torch.zeros(3, 3, SAMPLES, dtype=torch.float64) + torch.arange(3.0)[:, None, None], RATE_HZ)


@dataclass(frozen=True)
class Broken(Forecast):
    """A Gaussian forecast with one method told to break a clause."""

    template: Response
    honest: GaussianForecast
    breaks: str

    def rsample(self, n, generator):
        draws = self.honest.rsample(n, generator)
        own = torch.randn(draws.shape, generator=generator, dtype=torch.float64)
        return {
            "own noise": self.mean + own,
            "no seed": draws + 1e-6 * id(draws) % 1,
            "one draw": self.honest.rsample(n, torch.Generator().manual_seed(0)),
            "no sample axis": draws[0],
            "microvolts": self.mean + 1000 * (draws - self.mean),
            "timid": self.mean + 0.001 * (draws - self.mean),
        }.get(self.breaks, draws)

    def quantile(self, q):
        if self.breaks == "crossed":
            return self.honest.quantile(1 - q)
        if self.breaks == "certain":
            return self.honest.quantile(0.5)
        return self.honest.quantile(q)[0] if self.breaks == "quantile drops batch" else self.honest.quantile(q)

    def log_prob(self, signal_uv):
        value = self.honest.log_prob(signal_uv)
        broken = {"density nan": value * torch.nan, "density flat": 0 * value, "density sum": value.sum()}
        return broken.get(self.breaks, value)


@dataclass
class Tuned(Forecaster):
    """The context's last sample and a wave as large as the current; honest until told to break a clause."""

    breaks: str = ""
    calls: list[int] = field(default_factory=list)

    def forecast(self, context: Context, stimulus: Stimulus) -> Forecast:
        if [c.name for c in stimulus.montage.contacts] != ["A1", "A2", "A3"] and self.breaks != "any montage":
            raise ShapeError("another montage than the one that it was fitted on.")
        current = stimulus.amplitude_ma if self.breaks != "detached" else stimulus.amplitude_ma.detach()
        size = current.abs().amax(-1)[..., None, None]
        size = 0 * size if self.breaks == "ignores" else size
        wave = torch.arange(SAMPLES, dtype=torch.float64).expand(3, -1).sin()
        signal = size * wave + context.signal_uv[..., -1:]
        if self.breaks == "leaks":
            signal = signal + signal.mean(0, keepdim=True)
        if self.breaks == "first context" and context.signal_uv.ndim == 2:
            signal = signal + 1
        if self.breaks == "irreproducible":
            self.calls.append(1)
            signal = signal + 1e-9 * len(self.calls)
        if self.breaks == "global":
            torch.manual_seed(0)
        if self.breaks == "nan":
            signal = signal * torch.nan
        template = Response(MONTAGE, signal, RATE_HZ)
        honest = GaussianForecast(template, torch.ones_like(signal), 0.5 * torch.ones_like(signal).unsqueeze(-3))
        return Broken(template, honest, self.breaks) if self.breaks else honest


def test_an_honest_forecaster_passes():
    check_forecaster(Tuned(), CONTEXT, STIMULI, differentiable=True)


@pytest.mark.parametrize(
    ("breaks", "clause"),
    [
        ("irreproducible", "same question, same forecast"),
        ("global", "no global generator is touched"),
        ("leaks", "rows of a batch do not see each other"),
        ("first context", "one context serves a batch of stimuli as each alone"),
        ("any montage", "a montage that it was not fitted on is refused"),
        ("nan", "the mean is finite"),
        ("own noise", "common random numbers"),
        ("no seed", "the same generator draws the same samples"),
        ("one draw", "another generator draws other samples"),
        ("no sample axis", "rsample prepends a sample axis"),
        ("crossed", "quantiles rise with q"),
        ("certain", "the forecast admits doubt"),
        ("quantile drops batch", "a quantile has the shape of the mean"),
        ("microvolts", "samples lie between the quantiles"),
        ("timid", "samples lie between the quantiles"),
        ("density nan", "log_prob is finite at the mean"),
        ("density flat", "log_prob falls away from the mean"),
        ("density sum", "log_prob has one number per row"),
        ("detached", "the forecast is differentiable in the stimulus"),
        ("ignores", "its gradient is finite and not all zero"),
    ],
)
def test_a_forecaster_that_breaks_a_clause_is_caught(breaks, clause, kept_generator):
    with pytest.raises(ContractError, match=clause):
        check_forecaster(Tuned(breaks), CONTEXT, STIMULI, differentiable=True)


@pytest.fixture
def kept_generator():
    """Global generators as they were, for offenders that change them."""
    before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    yield
    torch.set_rng_state(before)
    np.random.set_state(numpy_before)  # noqa: NPY002


# --- policies ----------------------------------------------------------------------------------------------------


@dataclass
class Even(Policy):
    """Even draws of the current, kept below 9 mA; honest until told to break a clause."""

    breaks: str = ""
    calls: list[int] = field(default_factory=list)

    def propose(self, history: History, generator: torch.Generator) -> Stimulus:
        share = torch.rand((), generator=generator, dtype=torch.float64)
        if self.breaks == "global torch":
            share = torch.rand((), dtype=torch.float64)
        if self.breaks == "global numpy":
            share = torch.tensor(np.random.rand())  # noqa: NPY002
        if self.breaks == "remembers":
            self.calls.append(1)
            share = 0.99 * share + 0.001 * len(self.calls)
        stimulus = SPACE.stimulus(torch.stack([0.7 * share, torch.zeros_like(share)]))
        if self.breaks == "batch":
            return stimulus.reshape(1)
        changes = {
            "envelope": {"amplitude_ma": TEMPLATE.amplitude_ma * 11.0},
            "current outside": {"amplitude_ma": TEMPLATE.amplitude_ma * 0.1},
            "other contacts": {"amplitude_ma": stimulus.amplitude_ma.roll(1)},
            "unlisted width": {"pulse_width_us": stimulus.pulse_width_us + 20.0},
        }
        return replace(stimulus, **changes.get(self.breaks, {}))

    def recommend(self, history: History, generator: torch.Generator) -> Stimulus:
        if self.breaks == "recommends by chance":
            self.calls.append(1)
            return SPACE.stimulus(torch.tensor([0.01 * len(self.calls), 0.0], dtype=torch.float64))
        if self.breaks == "recommends outside":
            return pulse_train(MONTAGE, "A2-A3", amplitude_ma=1.0, frequency_hz=50.0, pulses=5)
        return history.stimuli if self.breaks == "recommends all" else history.best_tried()


def history_of(trials: int) -> History:
    history = empty_history(TEMPLATE)
    for number in range(trials):
        history = history.with_trial(STIMULI[number], float(number), 5.0 * number, None)
    return replace(history, next_time_s=5.0 * trials)


@pytest.mark.parametrize("trials", [0, 3])
def test_an_honest_policy_passes(trials):
    check_policy(Even(), SPACE, ENVELOPE, history_of(trials))


@pytest.mark.parametrize(
    ("breaks", "clause"),
    [
        ("global torch", "no global generator is touched"),
        ("global numpy", "no global generator is touched"),
        ("remembers", "same history and seed, same proposal"),
        ("batch", r"a proposal has batch shape \(\)"),
        ("envelope", "the envelope allows every proposal"),
        ("current outside", "a proposal lies inside the space"),
        ("other contacts", "a proposal lies inside the space"),
        ("unlisted width", "a proposal lies inside the space"),
        ("recommends by chance", "same history, same recommendation"),
        ("recommends outside", "a recommendation lies inside the space"),
        ("recommends all", r"a recommendation has batch shape \(\)"),
    ],
)
def test_a_policy_that_breaks_a_clause_is_caught(breaks, clause, kept_generator):
    with pytest.raises(ContractError, match=clause):
        check_policy(Even(breaks), SPACE, ENVELOPE, history_of(3))


def test_a_policy_that_forgets_the_dose_is_caught():
    spent = ENVELOPE.with_limits(dose_minute_uc=2.0)  # the three trials put 9.5 uC through the pair
    with pytest.raises(ContractError, match="the envelope allows every proposal"):
        check_policy(Even(), SPACE, spent, history_of(3))
    check_policy(Even(), SPACE, ENVELOPE.with_limits(dose_minute_uc=200.0), history_of(3))


# --- objectives --------------------------------------------------------------------------------------------------

WINDOWS = Response(MONTAGE, torch.arange(3.0)[:, None, None] + torch.ones(3, 3, SAMPLES), RATE_HZ)


@dataclass
class Size(Objective):
    """Mean size of the signal; honest until told to break a clause."""

    breaks: str = ""
    calls: list[int] = field(default_factory=list)

    def __call__(self, response: Response, stimulus: Stimulus) -> torch.Tensor:
        score = response.signal_uv.mean((-1, -2))
        self.calls.append(1)
        return {
            "drops the batch": score.mean(),
            "keeps channels": response.signal_uv.mean(-1),
            "nan": score * torch.nan,
            "remembers": score + len(self.calls),
            "ranks": score - score.mean(-1, keepdim=True),
            "sums samples": score + (score.ndim > 1),
        }.get(self.breaks, score)


def test_an_honest_objective_passes():
    check_objective(Size(), WINDOWS, STIMULI)


@pytest.mark.parametrize(
    ("breaks", "clause"),
    [
        ("drops the batch", "one score per trial"),
        ("keeps channels", "one score per trial"),
        ("nan", "scores are finite"),
        ("remembers", "same trial, same score"),
        ("ranks", "rows of a batch do not see each other"),
        ("sums samples", "leading axes of a response do not change its score"),
    ],
)
def test_an_objective_that_breaks_a_clause_is_caught(breaks, clause):
    with pytest.raises(ContractError, match=clause):
        check_objective(Size(breaks), WINDOWS, STIMULI)
