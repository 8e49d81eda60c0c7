"""Intervals of means and shares beside scipy, resampling and closed forms."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from twoview.errors import UserError
from twoview.stats.intervals import Interval, bootstrap_interval, bootstrap_share, mean_interval, wilson


@pytest.mark.parametrize(("correct", "total"), [(9, 10), (1, 3), (7000, 10_000), (0, 10), (10, 10)])
def test_wilson_interval_is_where_the_score_test_turns(correct: int, total: int) -> None:
    """At each end p of the interval, the observed share lies 1.96 standard errors of p away."""
    share = correct / total
    found = wilson(correct, total)
    low, high = found.low, found.high
    assert (found.mean, found.n) == (share, total)
    assert 0 <= low <= share <= high <= 1
    for p in {low, high} - {0.0, 1.0}:
        assert abs(share - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / total), rel=1e-5)
    assert wilson(total - correct, total).limits == pytest.approx([1 - high, 1 - low])


@pytest.mark.parametrize(("correct", "total"), [(150, 200), (3, 200), (1, 1), (0, 7)])
def test_bootstrap_is_what_resampling_gives(correct: int, total: int) -> None:
    g = torch.Generator().manual_seed(0)
    right = (torch.arange(total) < correct).double()
    means = right[torch.randint(total, (20_000, total), generator=g)].mean(1)
    expected = torch.quantile(means, torch.tensor([0.025, 0.975]).double(), interpolation="nearest")
    assert bootstrap_share(correct, total).limits == pytest.approx(expected.tolist(), abs=1.01 / total)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_bootstrap_contains_the_share(case: tuple[int, int]) -> None:
    found = bootstrap_share(*case)
    assert 0 <= found.low <= found.mean == case[0] / case[1] <= found.high <= 1


def test_bootstrap_and_wilson_agree_on_a_large_test_set() -> None:
    assert bootstrap_share(70_000, 100_000).limits == pytest.approx(wilson(70_000, 100_000).limits, abs=2e-5)


def test_mean_interval_is_scipys() -> None:
    some = [70.1, 71.4, 69.8, 70.9]
    for confidence in (0.5, 0.95):
        low, high = stats.t.interval(confidence, 3, loc=np.mean(some), scale=stats.sem(some))
        found = mean_interval(some, confidence)
        assert [found.mean, found.low, found.high, found.n] == pytest.approx([np.mean(some), low, high, 4])
    assert mean_interval([0.0, 2.0]).high == pytest.approx(1 + math.tan(math.pi * 0.475))  # Cauchy's: a closed form
    assert mean_interval([5.0] * 3) == Interval(5, 5, 5, 3)


@pytest.mark.parametrize("interval", [mean_interval, bootstrap_interval])
def test_one_value_has_no_interval(interval: object) -> None:
    assert callable(interval)
    assert interval([3.0]) == Interval(3.0, None, None, 1)
    assert interval([]) == interval([math.nan]) == Interval(None, None, None, 0)
    assert interval([2.0, 2.0]) == Interval(2.0, 2.0, 2.0, 2)
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        interval([[1.0], [2.0]])


def test_bootstrap_covers_means_of_skewed_values() -> None:
    samples = np.random.default_rng(0).exponential(size=(400, 100))
    found = [bootstrap_interval(sample, resamples=1000, seed=i) for i, sample in enumerate(samples)]
    covered = sum(f.low <= 1 <= f.high for f in found if f.low is not None and f.high is not None)
    low, high = stats.binom(len(found), 0.95).interval(0.999)
    assert low <= covered <= high
    leaning = [f.high + f.low - 2 * f.mean for f in found if None not in (f.low, f.high)]
    assert np.mean(leaning) > 0  # further to the side of the long tail, as a t interval is not


def test_bootstrap_is_reproducible_and_near_the_t_interval() -> None:
    sample = np.random.default_rng(1).normal(70, 3, size=20_000)
    found = bootstrap_interval(sample, resamples=500)
    assert found == bootstrap_interval(sample, resamples=500) != bootstrap_interval(sample, resamples=500, seed=1)
    t = mean_interval(sample)
    assert t.high is not None
    assert found.mean == pytest.approx(t.mean)
    assert [found.low, found.high] == pytest.approx([t.low, t.high], abs=0.25 * (t.high - sample.mean()))


@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_as_missing(missing: float) -> None:
    assert mean_interval([1.0, missing, 3.0]) == mean_interval([1.0, 3.0])


def test_limits_are_those_of_json_files() -> None:
    assert Interval(1.0, 0.5, 1.5, 3).limits == [0.5, 1.5]
    assert Interval(1.0, None, None, 1).limits is None


@pytest.mark.parametrize("interval", [mean_interval, bootstrap_interval])
def test_a_missing_scipy_is_asked_for(interval: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(interval)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UserError, match=r"need scipy: pip install 'twoview\[report\]'"):
        interval([1.0])
