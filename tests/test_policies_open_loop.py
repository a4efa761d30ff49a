"""Policies that do not learn: even draws, order, and what they do at the edge of the envelope."""

from dataclasses import replace

import pytest
import torch

from stimopt.errors import ConfigError, EnvelopeError, SpaceError
from stimopt.history import History, empty_history
from stimopt.montage import Contact, monopolar
from stimopt.policies import ConstantPolicy, GridPolicy, NoStimulationPolicy, RandomPolicy, SobolPolicy
from stimopt.safety import Envelope, Limit
from stimopt.space import Parameter, StimulationSpace
from stimopt.stimulus import pulse_train, table_stimulus
from stimopt.tensors import generator
from stimopt.testing import check_policy

MONTAGE = monopolar([Contact(f"A{i}", (0.0, 0.0, 5.0 * i), 0.05, "depth", "A") for i in range(1, 4)], "test")


def below(limit_ma: float) -> Envelope:
    """Allows currents up to a limit at each contact."""
    limits = {"contact_current_ma": limit_ma}
    return Envelope("below", "of tests", tuple(Limit(n, v, "mA", "these tests") for n, v in limits.items()), ("depth",))


def electrical_space() -> StimulationSpace:
    parameters = (
        Parameter("amplitude_ma", "continuous", 0.5, 5.0),
        Parameter("frequency_hz", "log", 5.0, 130.0),
        Parameter("contacts", "categorical", choices=("A1-A2", "A2-A3")),
    )
    return StimulationSpace(parameters, pulse_train(MONTAGE, "A1-A2", amplitude_ma=1.0, pulses=5))


def run(policy, space, trials: int, score=lambda point: 0.0) -> History:
    history = empty_history(space.template)
    for number in range(trials):
        stimulus = policy.propose(history, generator(3, number))
        assert stimulus.batch_shape == ()
        history = history.with_trial(stimulus, score(space.locate(stimulus)), 5.0 * number, None)
        history = replace(history, next_time_s=5.0 * (number + 1))
    return history


@pytest.mark.parametrize("policy", [RandomPolicy, SobolPolicy, GridPolicy])
@pytest.mark.parametrize("trials", [0, 7])
def test_the_contract_is_kept(policy, trials):
    space, envelope = electrical_space(), below(2.0)
    check_policy(policy(space, envelope), space, envelope, run(policy(space, envelope), space, trials))


@pytest.mark.parametrize("policy", [RandomPolicy, SobolPolicy, GridPolicy])
def test_every_proposal_is_allowed_and_in_the_space(policy):
    space, envelope = electrical_space(), below(2.0)
    history = run(policy(space, envelope), space, 40)
    assert bool(envelope.allowed(history.stimuli).all())
    points = space.locate(history.stimuli)
    assert torch.allclose(space.snap(points), points)


def test_random_draws_fill_what_is_allowed_evenly():
    space = electrical_space()
    history = run(RandomPolicy(space, below(2.0)), space, 150)
    points = space.locate(history.stimuli)
    # amplitudes are even on 0.5 to 2.0 mA, so the mean cube point is 1/6; its sd over 150 draws is 0.0079
    assert abs(float(points[:, 0].mean()) - 1 / 6) < 0.03
    assert abs(float(points[:, 2].mean()) - 0.5) < 0.08  # sd 0.02; both pairs as often


def test_random_draws_are_even_over_listed_values_however_they_lie():
    template = table_stimulus(MONTAGE, torch.zeros(1, dtype=torch.float64), ["dose"])
    space = StimulationSpace((Parameter("dose", "ordinal", choices=(0, 1, 2, 100)),), template)
    history = run(RandomPolicy(space, below(1.0)), space, 200)
    counts = torch.bincount((space.locate(history.stimuli)[:, 0] * 100).round().long(), minlength=101)[[0, 1, 2, 100]]
    assert int(counts.min()) > 30  # 50 expected, sd 6; nearest-value rounding would give the first 2


def test_random_says_so_when_nothing_is_allowed():
    with pytest.raises(EnvelopeError, match="none of 4096 points"):
        run(RandomPolicy(electrical_space(), below(0.1)), electrical_space(), 1)


def test_sobol_proposes_its_sequence_in_order():
    space = electrical_space()
    first = space.locate(run(SobolPolicy(space, below(9.0), seed=5), space, 16).stimuli)[:, 0]
    assert sorted((first * 16).long().tolist()) == list(range(16))  # one point in each sixteenth


def test_sobol_delivers_a_point_that_was_forbidden_once_it_is_allowed():
    space = electrical_space()
    wide, narrow = SobolPolicy(space, below(9.0), seed=5), SobolPolicy(space, below(2.0), seed=5)
    before = run(narrow, space, 8)
    after = wide.propose(before, generator(0))
    whole = run(wide, space, 30).stimuli.amplitude_ma
    skipped = whole[whole.abs().amax(-1) > 2.0][0]
    assert torch.equal(after.amplitude_ma, skipped)


def test_sobol_does_not_depend_on_the_generator():
    space = electrical_space()
    policy = SobolPolicy(space, below(9.0), seed=5)
    history = run(policy, space, 3)
    assert torch.equal(
        policy.propose(history, generator(1)).amplitude_ma, policy.propose(history, generator(2)).amplitude_ma
    )


def test_grid_visits_every_allowed_point_once_before_any_twice():
    space = electrical_space()
    policy = GridPolicy(space, below(2.8), levels=3)  # 0.5, 2.75 of 0.5, 2.75, 5 mA
    twice = space.locate(run(policy, space, 24).stimuli)
    once, counts = torch.unique((twice[:12] * 1e6).round(), dim=0, return_counts=True)
    assert len(once) == 12
    assert int(counts.max()) == 1  # 2 amplitudes x 3 frequencies x 2 pairs
    _, counts = torch.unique((twice * 1e6).round(), dim=0, return_counts=True)
    assert counts.tolist() == [2] * 12


def test_grid_order_is_shuffled_by_its_seed():
    space = electrical_space()
    orders = [space.locate(run(GridPolicy(space, below(9.0), seed=seed), space, 10).stimuli) for seed in (0, 1)]
    assert not torch.equal(*orders)


def test_a_grid_too_large_to_walk_is_refused():
    with pytest.raises(ConfigError, match="too large"):
        GridPolicy(electrical_space(), below(9.0), levels=1000)


def test_constant_gives_its_setting_in_physical_units():
    setting = {"amplitude_ma": 2.0, "frequency_hz": 50.0, "contacts": "A2-A3"}
    stimulus = ConstantPolicy(electrical_space(), setting).propose(
        empty_history(electrical_space().template), generator(0)
    )
    assert torch.allclose(stimulus.amplitude_ma, torch.tensor([0.0, -2.0, 2.0], dtype=torch.float64))
    assert float(stimulus.frequency_hz) == pytest.approx(50.0)


def test_constant_refuses_a_setting_outside_the_space():
    with pytest.raises(SpaceError, match="amplitude_ma"):
        ConstantPolicy(electrical_space(), {"amplitude_ma": 50.0, "frequency_hz": 50.0, "contacts": "A2-A3"})


def test_no_stimulation_is_silent_and_fits_the_same_history():
    space = electrical_space()
    history = run(NoStimulationPolicy(space), space, 0)
    stimulus = NoStimulationPolicy(space).propose(history, generator(0))
    assert bool(stimulus.silent)
    assert float(stimulus.pulses) == 0
    assert len(history.with_trial(stimulus, 0.0, 0.0, None)) == 1


def test_open_loop_policies_recommend_the_best_mean():
    space = electrical_space()
    history = run(SobolPolicy(space, below(9.0)), space, 12, score=lambda point: -float((point[0] - 0.4).abs()))
    best = SobolPolicy(space, below(9.0)).recommend(history, generator(0))
    assert torch.equal(best.amplitude_ma, history.stimuli[int(history.scores.argmax())].amplitude_ma)
