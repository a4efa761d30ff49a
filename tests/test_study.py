"""Studies: the comparators are fair, regret is never negative, intervals are over patients."""

import pandas as pd
import pytest
from experiments import STUDY

from stimopt.assembly import setting_of
from stimopt.best_constant import best_constant
from stimopt.config import read_study
from stimopt.landscape import dense_search, repeated_scores
from stimopt.study import judged_runs, policy_names, tabulate


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(STUDY.replace("better: lower", "better: higher"))
    return read_study(path)


def landscape_of(setting):
    return dense_search(
        setting.system, setting.space, setting.envelope, setting.objective, points=32, repeats=2, seed=1, rounds=1
    )


def test_the_comparators_are_always_there(study):
    assert policy_names(study) == ("sobol", "no-stimulation", "random", "best-constant")


def test_the_best_constant_comes_from_the_other_patients_alone(study):
    settings = {patient: setting_of(study, patient) for patient in study.patients}
    others = [(settings[p], landscape_of(settings[p])) for p in (1, 2)]
    plan = best_constant(settings[0], others, repeats=2, seed=1)
    assert plan in [s.space.describe(scape.unit[i]) for s, scape in others for i in range(len(scape.unit))]
    setting, scape = others[0]
    stimulus = setting.space.stimulus(setting.space.encode(plan).unsqueeze(0))
    gained = repeated_scores(setting.system, setting.objective, stimulus, repeats=2, seed=1).mean()
    assert float(gained) > scape.silence  # a setting that does nothing for the others would not be chosen


def test_a_constant_that_the_patient_may_not_have_is_not_chosen(study):
    settings = {patient: setting_of(study, patient) for patient in study.patients}
    others = [(settings[1], landscape_of(settings[1]))]
    names = [contact.name for contact in settings[0].montage.contacts]
    barred = type(settings[0])(**{**vars(settings[0]), "envelope": settings[0].envelope.forbidding(*names)})
    assert best_constant(barred, others, repeats=2, seed=1) is None


def test_regret_is_against_the_best_that_anybody_found():
    shared = {"patient": 1, "seed": 0, "silence": 0.0, "searched": 1.0, "violations": 0}
    found = judged_runs(
        [
            {**shared, "policy": "a", "recommended": [0.5, 0.9], "tried": [0.5, 2.0]},
            {**shared, "policy": "b", "recommended": [1.9, 2.0], "tried": [1.0, 1.0]},
        ]
    )
    assert found.regret.tolist() == pytest.approx([1.1, 0.0])
    assert found.cumulative_regret.tolist() == pytest.approx([1.5, 2.0])
    assert found.trials_to_90.tolist() == [float("inf"), 1.0]
    assert found.gain_over_silence.tolist() == pytest.approx([0.9, 2.0])


def test_a_patient_whom_nothing_helps_is_judged_too():
    silent = {"policy": "a", "patient": 1, "seed": 0, "silence": 1.0, "searched": 0.5, "violations": 0}
    found = judged_runs([{**silent, "recommended": [0.2, 1.0], "tried": [0.2, 1.0]}])
    assert found.regret.tolist() == [0.0]
    assert found.trials_to_90.tolist() == [2.0]


def test_the_table_pairs_each_policy_with_random_on_the_same_patients():
    rows = [
        {"policy": policy, "patient": patient, "seed": 0, "regret": patient + shift, "cumulative_regret": 0.0,
         "trials_to_90": 1.0, "trials_to_95": 1.0, "gain_over_silence": 0.0, "violations": 0}
        for policy, shift in (("random", 1.0), ("good", 0.25)) for patient in range(6)
    ]  # fmt: skip
    table = tabulate(pd.DataFrame(rows)).set_index("policy")
    good = table.loc["good"]
    assert (good.regret_vs_random, good.regret_vs_random_low, good.regret_vs_random_high) == pytest.approx((-0.75,) * 3)
    assert table.loc["random"].regret_vs_random == 0.0
    assert good.regret_low < good.regret < good.regret_high
