import functools
import math
import sys
from dataclasses import dataclass, replace
from functools import cached_property

import pytest
import torch
import yaml

from stimopt.datasets import load_table
from stimopt.errors import DataError, EnvelopeError, NotRecordedError
from stimopt.history import empty_history
from stimopt.montage import NO_MONTAGE
from stimopt.policy import Policy
from stimopt.replay import ReplaySystem, replay_policy
from stimopt.replay_curves import ReplayCurves
from stimopt.safety import Envelope
from stimopt.space import StimulationSpace
from stimopt.stimulus import no_stimulus, table_stimulus
from stimopt.tensors import generator
from stimopt.trial_table import TrialTable, read_trial_table

CHOOSER = """
from dataclasses import dataclass
from functools import cached_property
import torch
from stimopt.policy import Policy

@dataclass(frozen=True)
class Chooser(Policy):
    space: object
    envelope: object
    seed: int

    @cached_property
    def points(self):
        return self.space.points()

    def propose(self, history, generator):
        left = self.points[self.envelope.allowed(self.space.stimulus(self.points), history, history.next_time_s)]
        return self.space.stimulus(left[int(torch.randint(len(left), (), generator=generator))])
"""


@dataclass(frozen=True)
class EvenPolicy(Policy):
    """Even draws from what is left."""

    space: StimulationSpace
    envelope: Envelope
    seed: int = 0

    @cached_property
    def points(self):
        return self.space.points()

    def propose(self, history, generator):
        left = self.points[self.envelope.allowed(self.space.stimulus(self.points), history, history.next_time_s)]
        return self.space.stimulus(left[int(torch.randint(len(left), (), generator=generator))])


@dataclass(frozen=True)
class StubbornPolicy(Policy):
    """One setting, whatever happens."""

    space: StimulationSpace
    point: tuple[float, ...]

    def propose(self, history, generator):
        return self.space.stimulus(torch.tensor(self.point, dtype=torch.float64))


def stubborn(*point):
    return lambda space, envelope, seed: StubbornPolicy(space, point)


def table(tmp_path, rows, parameters=None, **changes) -> TrialTable:
    parameters = parameters or {"dose": {"kind": "ordinal"}}
    card = {"name": "small", "parameters": parameters, "outcomes": {"gain": None}, **changes}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    (tmp_path / "rows.csv").write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    return read_trial_table(tmp_path)


DOSES = [("dose", "gain"), (1, 10.0), (1, 14.0), (1, 12.0), (2, 30.0), (2, 50.0), (4, 20.0), (4, 20.0), (4, 20.0)]


def dose(*values):
    numbers = torch.tensor(values, dtype=torch.float64).unsqueeze(-1)
    return table_stimulus(NO_MONTAGE, numbers if len(values) > 1 else numbers[0], ("dose",))


def drawn(system, stimulus, times, seed=0):
    state, values = system.start(stimulus.batch_shape, generator(seed)), []
    for _ in range(times):
        response, state = system.respond(state, stimulus, generator(99))
        values.append(response.outcomes["gain"])
    return torch.stack(values)


def test_every_repetition_is_given_once_in_an_order_of_its_own(tmp_path):
    system = ReplaySystem(table(tmp_path, DOSES), "gain")
    orders = {tuple(drawn(system, dose(1.0), 3, seed).tolist()) for seed in range(40)}
    assert {tuple(sorted(order)) for order in orders} == {(10.0, 12.0, 14.0)}
    assert len(orders) == 6
    assert drawn(system, dose(1.0), 3, 5).tolist() == drawn(system, dose(1.0), 3, 5).tolist()
    assert drawn(ReplaySystem(table(tmp_path, DOSES), "gain", draw="recorded"), dose(1.0), 3).tolist() == [
        10.0,
        14.0,
        12.0,
    ]


def test_recorded_order_follows_the_clock_of_the_card(tmp_path):
    rows = [("dose", "gain", "clock"), (1, 10.0, 9), (1, 14.0, 7), (1, 12.0, 8)]
    read = table(tmp_path, rows, groups={"order": "clock"})
    assert drawn(ReplaySystem(read, "gain", draw="recorded"), dose(1.0), 3).tolist() == [14.0, 12.0, 10.0]


def test_the_rows_of_a_batch_do_not_see_each_other(tmp_path):
    system = ReplaySystem(table(tmp_path, DOSES), "gain")
    together = drawn(system, dose(1.0, 1.0, 4.0), 3)
    assert [sorted(row) for row in together.mT.tolist()] == [[10.0, 12.0, 14.0]] * 2 + [[20.0] * 3]
    state = system.start((3,), generator(0))
    alone = {name: value[1] for name, value in state.items()}
    response, _ = system.respond(alone, dose(1.0), generator(1))
    assert response.outcomes["gain"] == together[0, 1]


def test_used_up_is_refused_or_drawn_anew_as_the_card_says(tmp_path):
    read = table(tmp_path, DOSES)
    with pytest.raises(NotRecordedError, match=r"all 3 repetitions of dose 1 are used up; .*'redraw'"):
        drawn(ReplaySystem(read, "gain"), dose(1.0), 4)
    again = drawn(ReplaySystem(table(tmp_path, DOSES, used_up="redraw"), "gain"), dose(1.0), 6)
    assert sorted(again[:3].tolist()) == sorted(again[3:].tolist()) == [10.0, 12.0, 14.0]


def test_what_nobody_recorded_is_refused_with_the_nearest(tmp_path):
    system = ReplaySystem(table(tmp_path, DOSES), "gain")
    with pytest.raises(
        NotRecordedError, match=r"differs by 0.33 of the space \(dose 3 asked, 2 recorded\); tolerance is 0.05"
    ):
        system.truth(dose(3.0))
    with pytest.raises(NotRecordedError, match="dose 130 asked, 4 recorded"):
        system.respond(system.start((), generator(0)), dose(130.0), generator(0))
    with pytest.raises(NotRecordedError, match="has no dose; ask a replay"):
        system.truth(no_stimulus(NO_MONTAGE))
    assert system.truth(dose(3.999)) == 20.0
    assert float(ReplaySystem(system.recorded.table, "gain", tolerance=0.4).truth(dose(3.0))) in (40.0, 20.0)


def test_truth_is_the_mean_over_valid_repetitions(tmp_path):
    rows = [("dose", "gain", "ok"), *[(*row, 1) for row in DOSES[1:]], (2, 1e6, 0)]
    system = ReplaySystem(table(tmp_path, rows, valid="ok"), "gain")
    assert system.truth(dose(1.0, 2.0, 4.0)).tolist() == [12.0, 40.0, 20.0]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ({"better": "higher"}, [0.0, 1.0, 8 / 28]),  # (truth - worst) / (best - worst)
        ({"better": "higher", "true_zero": True}, [0.3, 1.0, 0.5]),  # truth / best
        ({"better": "lower"}, [1.0, 0.0, 20 / 28]),
    ],
)
def test_shares_of_the_best_follow_their_definition(tmp_path, outcome, expected):
    known = ReplaySystem(table(tmp_path, DOSES, outcomes={"gain": outcome}), "gain").recorded
    assert known.share(known.means).tolist() == pytest.approx(expected)


def test_another_category_is_never_near_and_a_site_is_near_by_its_place(tmp_path):
    rows = [("drug", "site", "x", "gain"), ("a", "s1", 0, 1.0), ("b", "s2", 10, 2.0), ("b", "s3", 4, 3.0)]
    parameters = {"drug": {"kind": "categorical"}, "site": {"kind": "site", "coordinates": ["x"]}}
    system = ReplaySystem(table(tmp_path, rows, parameters), "gain", tolerance=0.7)
    asked = table_stimulus(NO_MONTAGE, torch.tensor([[0.0, 2.0], [1.0, 0.0]], dtype=torch.float64), ("drug", "site"))
    _, gap = system.recorded.nearest(asked)  # site s3 lies at 0.4 between s1 and s2
    assert gap.tolist() == pytest.approx([0.4, 0.4])
    assert system.truth(asked).tolist() == [1.0, 3.0]
    missing = table_stimulus(NO_MONTAGE, torch.tensor([0.0, 1.0], dtype=torch.float64), ("drug", "site"))
    with pytest.raises(NotRecordedError, match=r"differs by 1 of the space"):
        ReplaySystem(system.recorded.table, "gain", tolerance=0.5).truth(missing)


def test_the_envelope_counts_what_the_history_used(tmp_path):
    system = ReplaySystem(table(tmp_path, DOSES), "gain")
    envelope, history = system.envelope, empty_history(system.space.template)
    assert envelope.allowed(dose(1.0, 2.0, 3.0, 4.0)).tolist() == [True, True, False, True]
    for number in range(2):
        history = history.with_trial(dose(2.0), 1.0, float(number), None)
    assert envelope.allowed(dose(1.0, 2.0, 4.0), history).tolist() == [True, False, True]
    assert envelope.allowed(dose(1.0, 2.0, 4.0)).all()
    with pytest.raises(EnvelopeError, match="all 2 repetitions of dose 2 are used up") as caught:
        envelope.require(dose(2.0), history)
    assert caught.value.limit == "repetitions"
    with pytest.raises(NotRecordedError):
        envelope.require(dose(3.0), history)
    assert envelope.margins(dose(1.0, 2.0), history).values.tolist() == [[1.0, 1.0], [1.0, -1.0]]
    assert [row.verdict for row in envelope.report(dose(2.0), history)] == ["PASS", "FAIL"]
    in_flight = replace(history.until(1), in_flight=(dose(2.0), 5.0))
    assert not envelope.allowed(dose(2.0), in_flight)


def test_projection_is_allowed_and_keeps_what_is(tmp_path):
    system = ReplaySystem(table(tmp_path, DOSES), "gain")
    asked = dose(1.0, 2.9, 100.0, 3.2)
    moved = system.envelope.project(asked)
    assert moved.sensory.features[:, 0].tolist() == [1.0, 2.0, 4.0, 4.0]
    assert bool(system.envelope.allowed(moved).all())
    assert torch.equal(system.envelope.project(moved).sensory.features, moved.sensory.features)
    history = empty_history(system.space.template)
    for number, value in enumerate((1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 4.0)):
        history = history.with_trial(dose(value), 0.0, float(number), None)
    with pytest.raises(EnvelopeError, match="every recorded trial is used up"):
        system.envelope.project(asked, history)


def test_curves_follow_choice_and_recommendation(tmp_path):
    always = replay_policy(stubborn(1 / 3), table(tmp_path, DOSES), "gain", 2, 4, seed=0)
    assert always.exploitation.tolist() == [[[1.0, 1.0]] * 4]
    worst = replay_policy(stubborn(0.0), table(tmp_path, DOSES), "gain", 3, 2, seed=0)
    assert worst.exploration.tolist() == [[[0.0] * 3] * 2]
    even = replay_policy(EvenPolicy, table(tmp_path, DOSES), "gain", 8, 5, seed=0)
    assert even.exploration[..., -1].tolist() == [[1.0] * 5]  # all trials used: the best observed mean is the truth
    assert even.exploitation.sum(-1)[0].tolist() == pytest.approx([3 * 0 + 2 * 1 + 3 * 8 / 28] * 5)


def test_lower_is_better_where_the_card_says_so(tmp_path):
    read = table(tmp_path, DOSES, outcomes={"gain": {"better": "lower"}})
    even = replay_policy(EvenPolicy, read, "gain", 8, 3, seed=0)
    assert even.exploration[..., -1].tolist() == [[1.0] * 3]
    assert replay_policy(stubborn(0.0), read, "gain", 2, 1, seed=0).exploitation.tolist() == [[[1.0, 1.0]]]


def test_two_policies_of_one_seed_meet_the_same_trials(tmp_path):
    read = table(tmp_path, DOSES)
    seen = {}

    @dataclass(frozen=True)
    class Noting(Policy):
        inner: Policy
        name: str

        def propose(self, history, generator):
            seen[self.name] = [float(s) for s in history.scores]
            return self.inner.propose(history, generator)

    for name, order in {"up": (0.0, 1 / 3), "down": (1 / 3, 0.0)}.items():

        def build(space, envelope, seed, name=name, order=order):
            return Noting(Alternating(space, order), name)

        replay_policy(build, read, "gain", 5, 1, seed=3)
    assert seen["up"][0::2][:2] == seen["down"][1::2][:2]
    assert seen["up"][1::2][:2] == seen["down"][0::2][:2]


@dataclass(frozen=True)
class Alternating(Policy):
    space: StimulationSpace
    points: tuple[float, ...]

    def propose(self, history, generator):
        n = len(history)
        point = self.points[n % 2] if n < 4 else 1.0
        return self.space.stimulus(torch.tensor([point], dtype=torch.float64))


def test_more_trials_than_were_recorded_stop_with_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"9 trials were asked for, but gain has 8 recorded; .* 8 or fewer"):
        replay_policy(EvenPolicy, table(tmp_path, DOSES), "gain", 9, 1, seed=0)
    with pytest.raises(EnvelopeError, match="all 2 repetitions of dose 2"):
        replay_policy(stubborn(1 / 3), table(tmp_path, DOSES), "gain", 3, 1, seed=0)
    more = replay_policy(EvenPolicy, table(tmp_path, DOSES, used_up="redraw"), "gain", 20, 1, seed=0)
    assert more.exploration.shape == (1, 1, 20)
    with pytest.raises(DataError, match="outcome 'gains' is not in"):
        replay_policy(EvenPolicy, table(tmp_path, DOSES), "gains", 2, 1, seed=0)


def test_every_patient_is_a_unit_and_flat_ones_are_left_out_of_the_numbers(tmp_path):
    rows = [("dose", "gain", "sid"), *[(*row, "2e114") for row in DOSES[1:]], *[(d, 0.0, "8e907") for d in (1, 2, 4)]]
    curves = replay_policy(EvenPolicy, table(tmp_path, rows, groups={"patient": "sid"}), "gain", 3, 6, seed=0)
    assert curves.units == ("2e114/gain", "8e907/gain")
    assert curves.flat == ("8e907/gain",)
    assert bool((curves.exploration[1] == 1).all())
    assert torch.equal(curves.kept("exploration"), curves.exploration[:1])
    alone = replay_policy(EvenPolicy, table(tmp_path, [("dose", "gain"), (1, 0.0), (2, 0.0)]), "gain", 2, 2, seed=0)
    assert alone.band("exploration")[0].tolist() == [1.0, 1.0]


def test_results_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    (tmp_path / "replay_chooser.py").write_text(CHOOSER)
    monkeypatch.syspath_prepend(tmp_path)
    from replay_chooser import Chooser

    read = table(tmp_path, DOSES)
    one = replay_policy(Chooser, read, "gain", 6, 4, seed=5)
    two = replay_policy(Chooser, read, "gain", 6, 4, seed=5, workers=2)
    assert torch.equal(one.exploration, two.exploration)
    assert torch.equal(one.exploitation, two.exploitation)
    assert not torch.equal(one.exploitation, replay_policy(Chooser, read, "gain", 6, 4, seed=6).exploitation)
    del sys.modules["replay_chooser"]


def curves_of(values):
    shares = torch.tensor(values, dtype=torch.float64)
    return ReplayCurves("p", "gain", tuple(f"u{i}" for i in range(len(shares))), (), shares, shares)


def test_the_difference_is_paired_and_zero_where_two_policies_agree():
    source = generator(0)
    base = torch.rand(1, 200, 3, generator=source, dtype=torch.float64)
    gain = 0.1 + 0.02 * torch.randn(1, 200, 3, generator=source, dtype=torch.float64)
    a, b = curves_of((base + gain).tolist()), curves_of(base.tolist())
    found = a.difference(b, 2)
    assert found.estimate == pytest.approx(0.1, abs=0.01)
    # paired, the interval is that of noise of 0.02 over 200 runs, not of shares that spread over 0.29
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.02 / math.sqrt(200), rel=0.25)
    assert a.difference(a, 1).estimate == 0.0
    with pytest.raises(DataError, match="not paired"):
        a.difference(curves_of(base[:, :50].tolist()), 1)
    with pytest.raises(DataError, match="trial 4 is not in a replay of 3 trials"):
        a.difference(b, 4)


def test_with_several_units_the_interval_is_over_units():
    runs = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64).reshape(5, 1, 1).expand(5, 100, 2)
    middle, low, high = curves_of(runs.tolist()).band("exploration")
    assert middle.tolist() == pytest.approx([0.6, 0.6])
    assert low[0] <= 0.4
    assert high[0] >= 0.8  # a hundred seeds do not make five patients more


def test_random_search_on_the_hippocampal_table_meets_its_mean_share(recordings):
    read = load_table("opto-septohippocampal")
    found = replay_policy(EvenPolicy, read, "gamma_log_ratio_ca1", 48, 4, seed=1)
    known = ReplaySystem(read, "gamma_log_ratio_ca1").recorded
    share = known.share(known.means)
    # even draws over cells: the mean of 192 choices lies within 4 standard errors of the mean over cells
    assert float(found.exploitation.mean()) == pytest.approx(
        float(share.mean()), abs=4 * float(share.std()) / math.sqrt(192)
    )
    assert float(found.exploration[..., 0].mean()) < float(found.exploration[..., 40].mean())
    assert float(found.exploration.max()) <= 1.0


def test_maps_of_twelve_rats_are_searched_each_on_its_own(recordings):
    found = replay_policy(EvenPolicy, load_table("rat-m1-maps"), "score", 8, 4, seed=0)
    assert len(found.units) == 12
    assert found.flat == ("3/score", "9/score", "10/score")
    reached = found.kept("exploration").mean(1).mean(0)
    # published for 20 rats in random order: 0.15, 0.34, 0.46, 0.60 after 1, 3, 5, 8; nine rats are here
    assert reached[[0, 2, 4, 7]].tolist() == pytest.approx([0.15, 0.34, 0.46, 0.60], abs=0.2)
    assert bool((reached.diff() >= 0).all())  # one score a site: the best seen is the best known


def test_a_replay_can_be_driven_by_a_partial(tmp_path):
    factory = functools.partial(EvenPolicy)
    assert replay_policy(factory, table(tmp_path, DOSES), "gain", 2, 1, seed=0, name="even").policy == "even"
