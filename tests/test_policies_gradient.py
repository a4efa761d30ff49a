"""Gradient ascent through a forecaster: on a brain whose optimum is known, right and wrong about it."""

from dataclasses import dataclass, replace

import pytest
import torch

from stimopt.errors import ConfigError, EnvelopeError, RunError, ShapeError
from stimopt.forecaster import Context, Forecaster, GaussianForecast
from stimopt.history import History, empty_history
from stimopt.montage import Contact, Montage, monopolar
from stimopt.objective import EvokedAmplitude, Objective
from stimopt.policies import GradientPolicy
from stimopt.response import Response
from stimopt.safety import Envelope, Limit
from stimopt.space import Parameter, StimulationSpace
from stimopt.stimulus import Stimulus, pulse_train
from stimopt.tensors import generator
from stimopt.testing import check_policy

MONTAGE = monopolar([Contact(f"A{i}", (0.0, 0.0, 5.0 * i), 0.05, "depth", "A") for i in range(1, 4)], "test")
RATE_HZ, SAMPLES = 100.0, 50
BEST_MA, BEST_HZ = 2.0, 40.0


@dataclass(frozen=True)
class TunedBrain(Forecaster):
    """Answers with a sine that is largest at one amplitude and frequency, and twice as large from the second pair."""

    montage: Montage
    best_ma: float = BEST_MA
    gain_uv: float = 100.0
    noise_uv: float = 1.0

    def size_uv(self, stimulus: Stimulus) -> torch.Tensor:
        """Amplitude of the sine."""
        current = stimulus.amplitude_ma.abs().amax(-1)
        octaves = (stimulus.frequency_hz / BEST_HZ).log2()
        second = (stimulus.amplitude_ma[..., 2].abs() > 0).to(current)
        tuned = torch.exp(-0.5 * ((current - self.best_ma) / 0.8).square() - 0.5 * octaves.square())
        return self.gain_uv * (1 + second) * tuned

    def forecast(self, context: Context, stimulus: Stimulus) -> GaussianForecast:
        """See Forecaster."""
        time_s = torch.arange(SAMPLES).to(stimulus.frequency_hz) / RATE_HZ
        wave = (2 * torch.pi * 10.0 * time_s).sin()
        signal = self.size_uv(stimulus)[..., None, None] * wave.expand(len(self.montage.channels), -1)
        scale = torch.full_like(signal, self.noise_uv)
        return GaussianForecast(
            Response(self.montage, signal, RATE_HZ), scale, signal.new_zeros(*signal.shape[:-2], 0, *signal.shape[-2:])
        )


def below(limit_ma: float) -> Envelope:
    """Allows currents up to a limit at each contact."""
    limits = {"contact_current_ma": limit_ma}
    return Envelope("below", "of tests", tuple(Limit(n, v, "mA", "these tests") for n, v in limits.items()), ("depth",))


SPACE = StimulationSpace(
    (
        Parameter("amplitude_ma", "continuous", 0.2, 5.0),
        Parameter("frequency_hz", "log", 5.0, 130.0),
        Parameter("contacts", "categorical", choices=("A1-A2", "A2-A3")),
    ),
    pulse_train(MONTAGE, "A1-A2", amplitude_ma=1.0, pulses=5),
)
AMPLITUDE = EvokedAmplitude((0.0, 0.5))
SILENCE = Context(MONTAGE, torch.zeros(3, SAMPLES, dtype=torch.float64), RATE_HZ)


def policy(
    brain: Forecaster | None = None, limit_ma: float = 9.0, space: StimulationSpace = SPACE, **options
) -> GradientPolicy:
    return GradientPolicy(space, below(limit_ma), brain or TunedBrain(MONTAGE), AMPLITUDE, SILENCE, **options)


def nothing() -> History:
    return empty_history(SPACE.template)


def searched(search: GradientPolicy, truth: TunedBrain, trials: int) -> Stimulus:
    """What the policy recommends after a search on another brain than it believes in."""
    history = nothing()
    for number in range(trials):
        stimulus = search.propose(history, generator(0, "propose", number))
        response = truth.forecast(SILENCE, stimulus).responses(1, generator(0, "respond", number))[0]
        history = history.with_trial(stimulus, float(AMPLITUDE(response, stimulus)), 5.0 * number, None)
        history = replace(history, next_time_s=5.0 * (number + 1))
    return search.recommend(history, generator(0))


def test_it_climbs_to_the_optimum_that_the_forecaster_has():
    stimulus = policy(steps=40).propose(nothing(), generator(0))
    assert float(stimulus.amplitude_ma.abs().max()) == pytest.approx(BEST_MA, abs=0.02)  # mA, of a 4.8 mA range
    assert float(stimulus.frequency_hz) == pytest.approx(BEST_HZ, rel=0.02)
    assert float(stimulus.amplitude_ma[2]) > 0  # the second pair


def test_climbing_beats_looking_at_the_starts_alone():
    climbing, looking = (policy(steps=steps, starts=2) for steps in (30, 0))
    scores = [
        p.forecast_score(SPACE.locate(p.propose(nothing(), generator(1))).unsqueeze(0)) for p in (climbing, looking)
    ]
    assert float(scores[0]) > float(scores[1])


def test_an_optimum_outside_the_envelope_is_met_at_its_boundary():
    search = policy(limit_ma=1.3, steps=40)
    stimulus = search.propose(nothing(), generator(0))
    size = float(stimulus.amplitude_ma.abs().max())
    assert 1.29 < size <= 1.3 + 1e-12


def test_trials_correct_a_forecaster_that_is_wrong():
    wrong, truth = TunedBrain(MONTAGE, best_ma=4.0), TunedBrain(MONTAGE)
    kept = searched(policy(wrong, steps=10), truth, 20)
    best = float(
        truth.size_uv(SPACE.stimulus(SPACE.encode({"amplitude_ma": 2.0, "frequency_hz": 40.0, "contacts": "A2-A3"})))
    )
    believed = policy(wrong).propose(nothing(), generator(0))
    assert float(truth.size_uv(believed)) < 0.15 * best  # what it would do without learning
    assert float(truth.size_uv(kept)) > 0.85 * best


@pytest.mark.parametrize("gain_uv", [0.1, 100.0, 1e5])
def test_the_unit_of_the_score_does_not_matter(gain_uv):
    brain = TunedBrain(MONTAGE, gain_uv=gain_uv, noise_uv=0.01 * gain_uv)
    kept = searched(policy(brain), brain, 4)
    assert float(kept.amplitude_ma.abs().max()) == pytest.approx(BEST_MA, abs=0.5)


def test_the_same_history_and_seed_propose_the_same():
    history = nothing().with_trial(SPACE.stimulus(torch.full((3,), 0.5, dtype=torch.float64)), 3.0, 0.0, None)
    before = torch.get_rng_state()
    first, second = (policy().propose(history, generator(4)).amplitude_ma for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("trials", [0, 5])
def test_the_contract_is_kept(trials):
    points = torch.rand(trials, 3, generator=generator(1), dtype=torch.float64) * torch.tensor([0.2, 1.0, 1.0])
    history = nothing()
    for number, point in enumerate(points):
        history = history.with_trial(SPACE.stimulus(SPACE.snap(point)), float(number % 2), 5.0 * number, None)
    check_policy(policy(limit_ma=1.5, steps=5), SPACE, below(1.5), history, seeds=1)


def test_gradient_of_the_forecast_score_agrees_with_finite_differences():
    point = torch.tensor([[0.3, 0.6, 0.75]], dtype=torch.float64)

    def score(free: torch.Tensor) -> torch.Tensor:
        return policy().forecast_score(torch.cat([free, point[:, 2:]], -1))

    assert torch.autograd.gradcheck(score, (point[:, :2].clone().requires_grad_(),), eps=1e-6, atol=1e-4)


def test_a_listed_space_is_looked_through_whole():
    parameters = (
        Parameter("amplitude_ma", "ordinal", choices=(0.5, 1, 2, 3)),
        Parameter("frequency_hz", "ordinal", choices=(10, 40, 100)),
    )
    space = StimulationSpace(parameters, SPACE.template)
    stimulus = policy(space=space).propose(empty_history(space.template), generator(0))
    assert (float(stimulus.amplitude_ma[1]), float(stimulus.frequency_hz)) == (2.0, 40.0)


@dataclass(frozen=True)
class Constant(Objective):
    """Judges everything the same, without a gradient."""

    def __call__(self, response, stimulus):
        return torch.zeros(response.batch_shape, dtype=torch.float64)


def test_a_score_without_gradient_still_gets_an_allowed_proposal():
    search = replace(policy(limit_ma=2.0), objective=Constant())
    history = nothing()
    for number in range(3):
        stimulus = search.propose(history, generator(number))
        assert bool(below(2.0).allowed(stimulus))
        history = history.with_trial(stimulus, 0.0, 5.0 * number, None)


def test_it_says_so_when_nothing_is_allowed():
    with pytest.raises(EnvelopeError, match="the envelope allows none"):
        policy(limit_ma=0.1).propose(nothing(), generator(0))


def test_nothing_is_recommended_before_the_first_trial():
    with pytest.raises(RunError, match="no trial"):
        policy().recommend(nothing(), generator(0))


def test_a_batch_of_contexts_is_refused():
    many = Context(MONTAGE, torch.zeros(4, 3, SAMPLES, dtype=torch.float64), RATE_HZ)
    with pytest.raises(ShapeError, match="one window"):
        GradientPolicy(SPACE, below(2.0), TunedBrain(MONTAGE), AMPLITUDE, many)


def test_impossible_options_are_refused():
    with pytest.raises(ConfigError, match="starts 0"):
        policy(starts=0)
