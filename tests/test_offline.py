"""Estimators held to bandits whose truth is known, and to numbers worked by hand."""

import math

import pytest
import torch

from stimopt.errors import DataError
from stimopt.logged import LoggedTrials, marginal_propensities
from stimopt.offline import ESTIMATORS, evaluate_offline, replay_learner

MEANS = torch.tensor([[0.2, 0.5, 0.9], [0.8, 0.5, 0.1]], dtype=torch.float64)  # [context, arm]
LOGGING = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
TARGET = torch.tensor([[0.1, 0.3, 0.6], [0.5, 0.3, 0.2]], dtype=torch.float64)
TRUTH = float((MEANS * TARGET).sum(-1).mean())  # contexts are equally likely


def simulated(trials, seed, units=None, show_context=True):
    source = torch.Generator().manual_seed(seed)
    contexts = torch.randint(2, (trials,), generator=source)
    arms = torch.multinomial(LOGGING[contexts], 1, generator=source).squeeze(-1)
    noise = 0.3 * torch.randn(trials, generator=source, dtype=torch.float64)
    log = LoggedTrials(
        arms, MEANS[contexts, arms] + noise, LOGGING[contexts, arms], 3, units, contexts if show_context else None
    )
    return log, TARGET[contexts]


def by_hand():
    return LoggedTrials(
        arms=torch.tensor([0, 0, 1, 1]), scores=torch.tensor([1.0, 3.0, 2.0, 6.0]),
        propensities=torch.tensor([0.5, 0.25, 0.5, 0.75]), count=2,
    )  # fmt: skip


def test_every_estimator_is_right_on_average_when_context_is_known():
    found = [evaluate_offline(*simulated(300, seed), draws=2).estimates for seed in range(200)]
    for name in ESTIMATORS:
        values = torch.tensor([estimates[name].estimate for estimates in found])
        error = float(values.std()) / math.sqrt(len(found))
        assert abs(float(values.mean()) - TRUTH) < 3.5 * error + 0.002, name  # SNIPS has a bias of order 1/trials


def test_a_table_blind_to_context_is_wrong_and_the_doubly_robust_estimate_is_not():
    estimates = evaluate_offline(*simulated(60_000, 1, show_context=False), draws=2).estimates
    assert abs(estimates["DM"].estimate - TRUTH) > 0.1
    assert estimates["DR"].estimate == pytest.approx(TRUTH, abs=0.015)  # standard error about 0.004
    assert estimates["IPS"].estimate == pytest.approx(TRUTH, abs=0.015)


def test_the_four_estimates_are_those_worked_by_hand():
    # target (0.75, 0.25): weights 1.5, 3, 0.5, 1/3; arm means 2 and 4; DM = 1.5 + 1
    estimates = evaluate_offline(by_hand(), torch.tensor([0.75, 0.25]), draws=2).estimates
    weighted = 1.5 * 1 + 3 * 3 + 0.5 * 2 + 6 / 3
    assert estimates["DM"].estimate == pytest.approx(2.5)
    assert estimates["IPS"].estimate == pytest.approx(weighted / 4)
    assert estimates["SNIPS"].estimate == pytest.approx(weighted / (1.5 + 3 + 0.5 + 1 / 3))
    assert estimates["DR"].estimate == pytest.approx(2.5 + (1.5 * -1 + 3 * 1 + 0.5 * -2 + 2 / 3) / 4)


def test_diagnostics_are_those_worked_by_hand():
    found = evaluate_offline(by_hand(), torch.tensor([0.75, 0.25]), draws=2).diagnostics
    weights = torch.tensor([1.5, 3.0, 0.5, 1 / 3])
    assert found.mean_weight == pytest.approx(float(weights.mean()))
    assert found.max_weight == pytest.approx(3.0)
    assert found.effective_trials == pytest.approx(float(weights.sum() ** 2 / (weights**2).sum()))
    assert (found.coverage, found.matched_share, found.min_propensity) == pytest.approx((1.0, 0.5, 0.25))


def test_the_logging_policy_itself_gets_the_mean_of_its_log():
    arms = torch.arange(30) % 3
    log = LoggedTrials(arms, torch.linspace(0, 1, 30), torch.full((30,), 1 / 3), 3)
    found = evaluate_offline(log, torch.full((3,), 1 / 3), draws=200)
    for name in ("IPS", "SNIPS", "DR"):
        assert found.estimates[name].estimate == pytest.approx(0.5)
    assert found.gains["IPS"].low == pytest.approx(0.0, abs=1e-12)  # every weight is 1, whatever is resampled
    assert found.gains["IPS"].high == pytest.approx(0.0, abs=1e-12)
    assert found.diagnostics.mean_weight == pytest.approx(1.0)
    assert found.diagnostics.effective_trials == pytest.approx(30.0)
    assert not [caution for caution in found.cautions if "propensities" in caution]


def test_weights_of_true_propensities_average_to_one():
    found = evaluate_offline(*simulated(20_000, 2), draws=2).diagnostics
    assert found.mean_weight == pytest.approx(1.0, abs=0.05)  # weights have SD about 1.6: standard error 0.011


def test_self_normalised_weights_forgive_a_factor_in_the_propensities():
    log, target = simulated(500, 3)
    halved = LoggedTrials(log.arms, log.scores, log.propensities / 2, 3, contexts=log.contexts)
    right, wrong = (evaluate_offline(x, target, draws=2).estimates for x in (log, halved))
    assert wrong["SNIPS"].estimate == pytest.approx(right["SNIPS"].estimate)
    assert wrong["IPS"].estimate == pytest.approx(2 * right["IPS"].estimate)


def test_propensities_that_cannot_be_right_are_said_so():
    log, target = simulated(2000, 3)
    halved = LoggedTrials(log.arms, log.scores, log.propensities / 2, 3, contexts=log.contexts)
    assert not [c for c in evaluate_offline(log, target, draws=50).cautions if "propensities" in c]
    assert [c for c in evaluate_offline(halved, target, draws=50).cautions if "propensities" in c]


def test_a_fixed_arm_gets_the_mean_of_its_own_trials():
    log, _ = simulated(400, 4)
    blind = LoggedTrials(log.arms, log.scores, marginal_propensities(log.arms, 3), 3)
    estimates = evaluate_offline(blind, torch.tensor([0.0, 0.0, 1.0]), draws=2).estimates
    own = float(log.scores[log.arms == 2].mean())
    for name in ESTIMATORS:
        assert estimates[name].estimate == pytest.approx(own)


def test_what_the_log_never_tried_is_not_guessed():
    log = LoggedTrials(torch.tensor([0, 1, 0, 1]), torch.ones(4), torch.full((4,), 0.5), 3)
    found = evaluate_offline(log, torch.tensor([0.5, 0.3, 0.2]), draws=20)
    assert found.verdict == "UNEVALUABLE"
    assert found.estimates == {}
    assert found.gains == {}
    assert found.diagnostics.coverage == pytest.approx(0.8)
    assert "arm 2 (20%)" in found.reason


def test_an_arm_tried_only_in_another_context_is_not_support():
    log = LoggedTrials(
        torch.tensor([0, 1, 0, 0]), torch.ones(4), torch.full((4,), 0.5), 2, contexts=torch.tensor([0, 0, 1, 1])
    )
    assert evaluate_offline(log, torch.tensor([0.5, 0.5]), draws=20).verdict == "UNEVALUABLE"
    found = evaluate_offline(log, torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0]]), draws=20)
    assert found.verdict == "EVALUATED"


def test_intervals_resample_patients_and_not_trials():
    source = torch.Generator().manual_seed(0)
    units = torch.arange(8).repeat_interleave(50)
    scores = torch.randn(8, generator=source).double()[units] + 0.1 * torch.randn(400, generator=source).double()
    arms = torch.randint(2, (400,), generator=source)
    half = torch.full((400,), 0.5)
    by_patient, by_trial = (
        evaluate_offline(LoggedTrials(arms, scores, half, 2, units=names), torch.tensor([0.2, 0.8])).estimates["SNIPS"]
        for names in (units, None)
    )
    # eight patients of 50 alike trials: the standard error grows by about sqrt(50)
    assert by_patient.high - by_patient.low > 3 * (by_trial.high - by_trial.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(120):
        log, target = simulated(400, 1000 + seed, units=torch.arange(40).repeat_interleave(10))
        interval = evaluate_offline(log, target, draws=300).estimates["DR"]
        hits += interval.low <= TRUTH <= interval.high
    assert 0.88 <= hits / 120 <= 0.99  # 120 repeats: standard error 0.02 around 0.94


def test_one_unit_gives_estimates_without_a_range():
    log, target = simulated(100, 5, units=torch.zeros(100, dtype=torch.int64))
    found = evaluate_offline(log, target)
    assert math.isfinite(found.estimates["IPS"].estimate)
    assert math.isnan(found.estimates["IPS"].low)
    assert any("one unit" in caution for caution in found.cautions)


def test_a_drift_larger_than_the_gain_is_said():
    units = torch.arange(10).repeat_interleave(40)
    scores = torch.linspace(0, 1, 40).repeat(10).double()  # rises over every session, whatever is chosen
    arms = torch.randint(2, (400,), generator=torch.Generator().manual_seed(0))
    log = LoggedTrials(arms, scores, torch.full((400,), 0.5), 2, units=units)
    found = evaluate_offline(log, torch.tensor([0.0, 1.0]), draws=200)
    assert found.diagnostics.drift.estimate == pytest.approx(30 / 39)  # quarters are 10 trials of 1/39 apart
    assert len(found.diagnostics.quarters) == 4
    assert any("drift" in caution for caution in found.cautions)


def test_the_seed_fixes_the_intervals():
    log, target = simulated(200, 6)
    first, again, other = (evaluate_offline(log, target, draws=100, seed=s).estimates["DR"] for s in (1, 1, 2))
    assert first == again != other


def test_a_fixed_arm_replayed_keeps_exactly_its_trials_of_a_uniform_log():
    arms = torch.tensor([0, 1, 1, 0, 1])
    log = LoggedTrials(arms, torch.arange(5.0), torch.full((5,), 0.5), 2)
    kept = replay_learner(log, lambda arms, scores, source: 1)
    assert kept.scores.tolist() == [1.0, 2.0, 4.0]
    assert kept.share == pytest.approx(0.6)


def test_a_replayed_policy_sees_only_what_was_kept():
    seen = []

    def always_zero(arms, scores, source):
        seen.append((arms, scores))
        return 0

    log = LoggedTrials(torch.tensor([0, 1, 0]), torch.tensor([5.0, 6.0, 7.0]), torch.full((3,), 0.5), 2)
    replay_learner(log, always_zero)
    assert seen == [((), ()), ((0,), (5.0,)), ((0,), (5.0,))]


def test_blocks_are_kept_whole():
    log = LoggedTrials(
        torch.tensor([0, 0, 1, 1, 0, 0]), torch.arange(6.0), torch.full((6,), 0.5), 2,
        blocks=torch.tensor([0, 0, 1, 1, 2, 2]),
    )  # fmt: skip
    calls = []
    kept = replay_learner(log, lambda arms, scores, source: calls.append(len(arms)) or 0)
    assert kept.scores.tolist() == [0.0, 1.0, 4.0, 5.0]
    assert calls == [0, 2, 2]


def test_thinning_makes_an_uneven_log_as_good_as_a_uniform_one():
    source = torch.Generator().manual_seed(0)
    chance = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    arms = torch.multinomial(chance, 6000, replacement=True, generator=source)
    log = LoggedTrials(arms, arms.double(), chance[arms], 3)
    draw = lambda arms, scores, generator: int(torch.randint(3, (1,), generator=generator))  # noqa: E731
    kept = replay_learner(log, draw)
    assert float(kept.scores.mean()) == pytest.approx(1.0, abs=0.09)  # 600 kept, SD 0.82: standard error 0.033
    assert kept.share == pytest.approx(0.1, abs=0.015)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"propensities": torch.tensor([0.5, 0.0, 0.5])}, "propensities must lie in"),
        ({"arms": torch.tensor([0, 1, 2])}, "arms must be 0 to 1"),
        ({"scores": torch.tensor([0.0, math.nan, 1.0])}, "not finite"),
        ({"blocks": torch.tensor([0, 0, 1])}, "different arms"),
    ],
)
def test_an_impossible_log_is_refused(change, says):
    log = {"arms": torch.tensor([0, 1, 0]), "scores": torch.ones(3), "propensities": torch.full((3,), 0.5), "count": 2}
    with pytest.raises(ValueError, match=says):
        LoggedTrials(**(log | change))


@pytest.mark.parametrize("target", [torch.tensor([0.5, 0.6]), torch.tensor([1.5, -0.5]), torch.ones(3) / 3])
def test_a_target_that_is_no_policy_is_refused(target):
    log = LoggedTrials(torch.tensor([0, 1]), torch.ones(2), torch.full((2,), 0.5), 2)
    with pytest.raises(DataError, match="target must"):
        evaluate_offline(log, target)
