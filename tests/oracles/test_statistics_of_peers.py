"""Intervals, tests and power of statsmodels and scipy: the same numbers."""

from typing import Any

import numpy as np
import pytest
import torch

from twoview.stats.blocks import compare
from twoview.stats.intervals import mean_interval, wilson
from twoview.stats.paired import paired

stats = pytest.importorskip("scipy.stats")


@pytest.fixture
def statsmodels() -> Any:
    pytest.importorskip("statsmodels", reason="the extra `bench` is not installed")
    import statsmodels.api
    import statsmodels.stats.api
    import statsmodels.stats.contingency_tables

    return statsmodels


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (1, 3), (784, 1000), (9_999, 10_000), (50, 50)])
def test_wilson(correct: int, total: int, statsmodels: Any) -> None:
    found = wilson(correct, total).limits
    theirs = statsmodels.stats.api.proportion_confint(correct, total, method="wilson")
    assert found == pytest.approx(theirs, rel=1e-12, abs=1e-15)
    other = stats.binomtest(correct, total).proportion_ci(method="wilson")
    assert found == pytest.approx([other.low, other.high], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("both", "first", "second", "neither"), [(50, 10, 3, 7), (900, 40, 41, 19), (5, 0, 6, 1)])
def test_mcnemar(both: int, first: int, second: int, neither: int, statsmodels: Any) -> None:
    counts = torch.tensor([both, first, second, neither])
    a = torch.tensor([True, True, False, False]).repeat_interleave(counts)
    b = torch.tensor([True, False, True, False]).repeat_interleave(counts)
    theirs = statsmodels.stats.contingency_tables.mcnemar([[both, first], [second, neither]], exact=True)
    assert paired(a, b).p == pytest.approx(theirs.pvalue, rel=1e-10)
    assert paired(a, b).p == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-10)


def test_the_interval_of_a_mean(statsmodels: Any) -> None:
    values = [70.1, 71.4, 69.8, 70.9]
    theirs = statsmodels.stats.api.DescrStatsW(values).tconfint_mean()
    assert mean_interval(values).limits == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("missing", [(), ((2, 1), (3, 4))])
def test_arms_in_blocks(missing: tuple[tuple[int, int], ...], statsmodels: Any) -> None:
    """With all values, the arm's effect in the least-squares fit of arms and seeds; p values by Holm's method. Where
    some are missing the fit also uses seeds that only one of two arms has; here a difference is of common seeds alone,
    with the fit's residuals.
    """
    rng = np.random.default_rng(3)
    table = rng.normal(size=(4, 5)) + 0.8 * rng.normal(size=5) + np.array([0, 0.2, 2.5, -1.0])[:, None]
    for row, seed in missing:
        table[row, seed] = np.nan
    row, seed = np.nonzero(np.isfinite(table))
    design = np.hstack([np.ones((len(row), 1)), np.eye(4)[row][:, 1:], np.eye(5)[seed][:, 1:]])
    fit = statsmodels.api.OLS(table[row, seed], design).fit()
    values = {f"arm {i}": {s: table[i, s] for s in range(5) if np.isfinite(table[i, s])} for i in range(4)}
    found = compare(values, "arm 0")
    for i in range(1, 4):
        one = found[f"arm {i}"]
        n = int(np.isfinite(table[0] - table[i]).sum())
        half = stats.t.isf(0.025, fit.df_resid) * np.sqrt(2 * fit.mse_resid / n)
        assert one.limits == pytest.approx([one.mean - half, one.mean + half], rel=1e-9)
        if not missing:
            assert one.mean == pytest.approx(fit.params[i], rel=1e-9)
            assert one.p == pytest.approx(fit.pvalues[i], rel=1e-9)
            assert one.limits == pytest.approx(fit.conf_int()[i], rel=1e-9)
    p = [found[f"arm {i}"].p for i in range(1, 4)]
    corrected = statsmodels.stats.api.multipletests(p, method="holm")[1]
    assert [found[f"arm {i}"].p_corrected for i in range(1, 4)] == pytest.approx(corrected, rel=1e-12)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_what_can_be_detected(seeds: int, statsmodels: Any) -> None:
    """statsmodels counts both sides; the other one adds less than 1e-5 to the power."""
    values = np.random.default_rng(0).normal(size=(2, seeds))
    one = compare({"a": dict(enumerate(values[0])), "b": dict(enumerate(values[1]))}, "a")["b"]
    spread = (values[1] - values[0]).std(ddof=1)
    theirs = statsmodels.stats.api.TTestPower().solve_power(nobs=seeds, alpha=0.05, power=0.8)
    assert one.detectable == pytest.approx(theirs * spread, rel=1e-3)
