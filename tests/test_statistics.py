"""Intervals held to what they claim: how often they cover, and what scipy says."""

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from stimopt.errors import DataError
from stimopt.statistics import bootstrap_band, bootstrap_interval, paired_difference
from stimopt.tensors import stream_seed

GAUSSIAN = np.random.default_rng(3)


def coverage(interval_of, repeats=300):
    source = np.random.default_rng(11)
    found = [interval_of(source) for _ in range(repeats)]
    return sum(interval.low <= 0.0 <= interval.high for interval in found) / repeats


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_a_nominal_95_percent_covers_a_gaussian_centre_about_that_often(statistic):
    share = coverage(lambda source: bootstrap_interval(source.normal(size=40), statistic, draws=500))
    assert 0.90 < share < 0.98  # 300 repeats: standard error 0.013 around 0.94


def test_runs_of_the_same_patient_do_not_pass_for_independent_ones():
    # 12 patients x 5 seeds, spread between patients as large as within: pooled, 95 % would cover 73 % (measured)
    units = np.repeat(np.arange(12), 5).tolist()

    def of_units(source):
        values = source.normal(size=(12, 1)) + source.normal(size=(12, 5))
        return bootstrap_interval(values.ravel(), "mean", draws=500, units=units)

    assert 0.90 < coverage(of_units) < 0.99


def test_the_interval_of_a_mean_has_the_textbook_width():
    values = GAUSSIAN.normal(size=400)
    interval = bootstrap_interval(values, "mean", draws=4000)
    textbook = 2 * 1.96 * values.std() / np.sqrt(400)
    assert interval.high - interval.low == pytest.approx(textbook, rel=0.05)  # 4000 draws: about 2 % on an edge
    assert interval.estimate == pytest.approx(values.mean(), rel=1e-12)


def test_the_interval_is_the_one_scipy_gives():
    values = GAUSSIAN.normal(size=25)
    interval = bootstrap_interval(values, "median", draws=700, seed=5)
    theirs = bootstrap(
        (values,), np.median, n_resamples=700, method="percentile",
        rng=np.random.default_rng(stream_seed(5, "bootstrap")),
    ).confidence_interval  # fmt: skip
    assert (interval.low, interval.high) == (theirs.low, theirs.high)


def test_the_seed_fixes_the_interval():
    values = GAUSSIAN.normal(size=25)
    same = [bootstrap_interval(values, "mean", seed=5) for _ in range(2)]
    assert same[0] == same[1] != bootstrap_interval(values, "mean", seed=6)
    units = ["a", "b", "c", "d", "e"] * 5
    assert bootstrap_interval(values, seed=5, units=units) == bootstrap_interval(values, seed=5, units=units)


def test_a_pairing_takes_out_what_both_share():
    patients = 100.0 * GAUSSIAN.normal(size=30)
    interval = paired_difference(patients + 1.0, patients)
    assert (interval.low, interval.estimate, interval.high) == pytest.approx((1.0, 1.0, 1.0))
    assert interval.excludes_zero


def test_every_unit_counts_once_however_many_runs_it_has():
    interval = bootstrap_interval([0.0] * 9 + [1.0], "mean", units=["a"] * 9 + ["b"])
    assert interval.estimate == 0.5


def test_pairs_of_one_patient_give_an_estimate_and_no_range():
    interval = paired_difference([1.0, 2.0, 4.0], [0.0, 0.0, 0.0], units=["p1", "p1", "p1"], statistic="mean")
    assert interval.estimate == pytest.approx(7 / 3)
    assert np.isnan(interval.low)
    assert not interval.excludes_zero


def test_a_band_reads_each_step_as_an_interval_would():
    curves = torch.from_numpy(GAUSSIAN.normal(size=(20, 4))) + torch.arange(4.0)
    middle, low, high = bootstrap_band(curves, "mean", draws=1000)
    np.testing.assert_allclose(middle, curves.mean(0).numpy(), rtol=1e-12)
    alone = bootstrap_interval(curves[:, 2], "mean", draws=1000)
    assert low[2] == pytest.approx(alone.low)
    assert high[2] == pytest.approx(alone.high)


def test_a_single_run_has_no_band():
    middle, low, high = bootstrap_band([[1.0, 2.0]])
    assert middle.tolist() == [1.0, 2.0]
    assert np.isnan(low).all()
    assert np.isnan(high).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bootstrap_interval([]), "at least one number"),
        (lambda: bootstrap_interval([1.0, float("nan")]), "1 of 2 numbers that are not finite"),
        (lambda: bootstrap_interval([1.0, 2.0], level=95.0), "level is 95"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "a has 2 values and b 1"),
        (lambda: bootstrap_interval([1.0, 2.0], units=["p1"]), "2 values and 1 units"),
    ],
)
def test_what_cannot_be_resampled_is_refused(call, says):
    with pytest.raises(DataError, match=says):
        call()
