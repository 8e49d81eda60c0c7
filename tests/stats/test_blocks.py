"""Arms compared with a reference: simulated studies whose truth is known, and what must not change a comparison."""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import integrate, stats

from twoview.errors import UserError
from twoview.stats.blocks import ALPHA, POWER, SET_APART, Difference, compare

Table = NDArray[np.float64]  # (arms, seeds), the reference first
NOISE = "within the noise of the seeds"


def study(table: Table) -> dict[str, dict[int, float]]:
    """The values of `table` by arm and seed; NaN: not there."""
    return {
        f"arm {row}": {seed: float(value) for seed, value in enumerate(values) if not math.isnan(value)}
        for row, values in enumerate(table)
    }


def against_first(table: Table) -> list[Difference]:
    return list(compare(study(table), "arm 0").values())


def simulated(studies: int, arms: int, seeds: int, seed: int = 0) -> Table:
    """Studies without an effect, (studies, arms, seeds): residuals of sd 1, and seeds that differ by much more."""
    rng = np.random.default_rng(seed)
    return 70 + 5 * rng.normal(size=(studies, 1, seeds)) + rng.normal(size=(studies, arms, seeds))


def usual(count: int, total: int, share: float) -> bool:
    """Whether a binomial count is one of the usual 99.9 %."""
    low, high = stats.binom(total, share).interval(0.999)
    return bool(low <= count <= high)


def false_alarm(found: list[Difference]) -> bool:
    return any(d.verdict in ("better", "worse") for d in found)


@pytest.fixture(scope="module")
def without_effect() -> list[list[Difference]]:
    """2000 studies of five arms, all alike, with three seeds."""
    return [against_first(table) for table in simulated(2000, 5, 3)]


def test_intervals_cover_at_the_nominal_rate(without_effect: list[list[Difference]]) -> None:
    first = [found[0] for found in without_effect]  # independent, unlike the differences of one study
    covered = sum(d.low <= 0 <= d.high for d in first if d.low is not None and d.high is not None)
    assert usual(covered, len(first), 0.95)


def test_no_effect_is_not_found(without_effect: list[list[Difference]]) -> None:
    alarms = sum(map(false_alarm, without_effect))
    assert alarms <= stats.binom(len(without_effect), ALPHA).ppf(0.999)
    assert alarms > len(without_effect) * ALPHA / 5  # nor is the correction too timid to find anything


def test_no_effect_is_not_found_where_runs_are_missing() -> None:
    tables = simulated(1000, 5, 4)
    tables[:, 0, 1] = tables[:, 2, 0] = tables[:, 3, 2:] = np.nan
    found = [against_first(table) for table in tables]
    assert [d.n for d in found[0]] == [3, 2, 1, 3]
    assert sum(map(false_alarm, found)) <= stats.binom(len(found), ALPHA).ppf(0.999)
    first = [f[0] for f in found]
    covered = sum(d.low <= 0 <= d.high for d in first if d.low is not None and d.high is not None)
    assert usual(covered, len(first), 0.95)


def planted(arms: int, seeds: int) -> float:
    """The effect that a study of residuals of sd 1 promises to find, by the noncentral t distribution."""
    found = against_first(simulated(1, arms, seeds)[0])[0]
    assert found.detectable is not None
    assert found.high is not None
    assert found.low is not None
    error = (found.high - found.low) / 2 / stats.t.ppf(0.975, (arms - 1) * (seeds - 1))
    return float(found.detectable / error * math.sqrt(2 / seeds))


@pytest.mark.parametrize(("arms", "seeds"), [(2, 4), (5, 3)])
def test_an_effect_of_the_detectable_size_is_found(arms: int, seeds: int) -> None:
    tables = simulated(1000, arms, seeds, seed=1)
    tables[:, 1] += planted(arms, seeds)
    found = [against_first(table)[0] for table in tables]
    assert usual(sum(d.verdict == "better" for d in found), len(found), POWER)
    assert not any(d.verdict == "worse" for d in found)


def test_an_arm_that_collapses_for_some_seeds_hides_no_other() -> None:
    tables = simulated(500, 6, 3, seed=2)
    tables[:, 1] += 1.3 * planted(6, 3)
    tables[:, 5] += 30 * np.random.default_rng(3).normal(size=(500, 3))
    found = [against_first(table) for table in tables]
    assert sum(f[0].verdict == "better" for f in found) > 0.8 * len(found)
    assert sum(f[4].verdict != NOISE for f in found) <= stats.binom(len(found), ALPHA).ppf(0.999)
    assert sum(false_alarm(f[1:]) for f in found) <= stats.binom(len(found), ALPHA).ppf(0.999)


def test_a_reference_that_is_noisy_accuses_nobody() -> None:
    tables = simulated(500, 6, 5, seed=4)
    tables[:, 0] += 30 * np.random.default_rng(5).normal(size=(500, 5))
    assert sum(false_alarm(against_first(table)) for table in tables) <= stats.binom(500, ALPHA).ppf(0.999)


def test_two_arms_are_a_paired_t_test() -> None:
    for table in simulated(20, 2, 4):
        (found,) = against_first(table)
        oracle = stats.ttest_rel(table[1], table[0])
        low, high = oracle.confidence_interval(0.95)
        assert found.mean == pytest.approx(np.mean(table[1]) - np.mean(table[0]))
        assert [found.p, found.p_corrected] == pytest.approx([oracle.pvalue] * 2)
        assert [found.low, found.high] == pytest.approx([low, high])


def noisiest_p(table: Table) -> float:
    """The F test of the noisiest arm, from double-centred tables."""

    def squares(t: Table) -> float:
        return float(np.square(t - t.mean(0) - t.mean(1, keepdims=True) + t.mean()).sum())

    arms, seeds = table.shape
    rest = np.array([squares(np.delete(table, row, axis=0)) for row in range(arms)])
    df = (arms - 2) * (seeds - 1)
    return float(stats.f.sf((squares(table) - rest) / (seeds - 1) / (rest / df), seeds - 1, df).min())


def test_more_arms_are_a_randomised_block_design() -> None:
    tables = simulated(40, 5, 4)
    ordinary = [noisiest_p(table) > SET_APART for table in tables]
    assert 30 < sum(ordinary) < 40
    for table, pooled in zip(tables, ordinary, strict=True):
        residuals = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        error = math.sqrt(2 * np.square(residuals).sum() / 12 / 4)  # 12 degrees of freedom, 4 seeds
        differences = table[1:].mean(1) - table[0].mean()
        p = 2 * stats.t.sf(abs(differences) / error, 12)
        assert (np.allclose([d.p for d in against_first(table)], p)) is pooled


def test_an_arm_set_apart_is_judged_by_its_own_pairs() -> None:
    table = simulated(1, 6, 4)[0]
    noisy = table.copy()
    noisy[5] += [200, -300, 500, 100]
    found = against_first(noisy)
    assert found[4].p == pytest.approx(stats.ttest_rel(noisy[5], noisy[0]).pvalue)
    assert [d.p for d in found[:4]] == pytest.approx([d.p for d in against_first(table[:5])])


def test_holm_by_its_definition() -> None:
    for table in simulated(20, 6, 3):
        table[1:4] += 2
        p = [d.p for d in against_first(table) if d.p is not None]
        corrected = [max(q * sum(r >= q for r in p) for q in p if q <= own) for own in p]
        assert [d.p_corrected for d in against_first(table)] == pytest.approx(np.minimum(corrected, 1))


@pytest.mark.parametrize(("arms", "seeds"), [(2, 2), (2, 3), (3, 2), (6, 3), (20, 5), (36, 10)])
def test_detectable_by_integration(arms: int, seeds: int) -> None:
    df = (arms - 1) * (seeds - 1)
    effect = planted(arms, seeds) / math.sqrt(2 / seeds)
    limit = stats.t.isf(ALPHA / (arms - 1) / 2, df)

    def found(u: float) -> float:  # given the estimated variance, at its quantile u
        spread = math.sqrt(stats.chi2.ppf(u, df) / df)
        return float(stats.norm.sf(limit * spread - effect) + stats.norm.cdf(-limit * spread - effect))

    assert integrate.quad(found, 0, 1, limit=200)[0] == pytest.approx(POWER, abs=1e-4)


values = st.floats(0, 100).map(lambda x: round(x, 2))
tables = st.tuples(st.integers(2, 5), st.integers(2, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=values)
)


def same(some: Mapping[str, Difference], others: Mapping[str, Difference], scale: float = 1) -> None:
    """Equal within rounding, the others' units being `scale` times as small."""
    assert some.keys() == others.keys()
    for name, a in some.items():
        b = others[name]
        assert (a.verdict, a.n, a.p is None) == (b.verdict, b.n, b.p is None)
        if a.p is None:
            continue
        assert [b.p, b.p_corrected] == pytest.approx([a.p, a.p_corrected], rel=1e-6, abs=1e-9)
        for field in ("mean", "low", "high", "detectable"):
            assert getattr(b, field) == pytest.approx(scale * getattr(a, field), rel=1e-6, abs=1e-9 * scale)


@settings(deadline=None, max_examples=60)
@given(tables, st.floats(-50, 50), st.sampled_from([0.01, 0.5, 3.0]))
def test_what_changes_nothing(table: Table, shift: float, scale: float) -> None:
    before = compare(study(table), "arm 0")
    same(before, compare(study(table + shift), "arm 0"))
    same(before, compare(study(table + np.linspace(-9, 40, table.shape[1])), "arm 0"))  # seeds that differ: pairing
    same(before, compare(study(table[:, ::-1]), "arm 0"))  # other numbers of the same seeds
    same(before, compare(study(scale * table), "arm 0"), scale)
    backwards = dict(reversed(study(table).items()))
    same(before, compare(backwards, "arm 0"))


@settings(deadline=None, max_examples=60)
@given(tables)
def test_a_difference_is_consistent_in_itself(table: Table) -> None:
    mirrored = compare(study(-table), "arm 0")
    for name, d in compare(study(table), "arm 0").items():
        m = mirrored[name]
        if d.mean is None or d.low is None or d.high is None or d.p is None or d.p_corrected is None:
            assert d.verdict.startswith("no interval")
            continue
        assert d.low <= d.mean <= d.high
        assert 0 <= d.p <= d.p_corrected <= 1
        assert (d.p < 0.05) == (d.low > 0 or d.high < 0) or d.p == pytest.approx(0.05)
        assert d.verdict == (NOISE if d.p_corrected >= ALPHA else "better" if d.mean > 0 else "worse")
        assert d.detectable is not None
        assert d.detectable > d.high - d.mean  # to find an effect four times of five it must exceed the limit
        assert m.verdict == {"better": "worse", "worse": "better"}.get(d.verdict, d.verdict)


def test_one_common_seed_gives_no_interval() -> None:
    found = compare({"a": {0: 70.0, 1: 71.0}, "b": {1: 75.0, 2: 74.0}, "c": {5: 1.0}, "d": {}}, "a")
    assert found["b"] == Difference(4.0, None, None, 1, None, None, None, "no interval: one seed")
    assert (
        found["c"] == found["d"] == Difference(None, None, None, 0, None, None, None, "no interval: no seed in common")
    )


def test_arms_that_cannot_be_compared_do_not_count_in_the_correction() -> None:
    table = simulated(1, 3, 3)[0]
    more = study(table) | {"lone": {0: 70.0}, "empty": {}}
    few, many = compare(study(table), "arm 0"), compare(more, "arm 0")
    for name, alone in few.items():  # sums over tables of other shapes may round otherwise
        assert asdict(many[name]) == pytest.approx(asdict(alone))
    assert list(many) == ["arm 1", "arm 2", "lone", "empty"]


@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_missing(missing: float) -> None:
    arms = study(simulated(1, 4, 3)[0])
    without = {name: {s: v for s, v in values.items() if (name, s) != ("arm 2", 1)} for name, values in arms.items()}
    arms["arm 2"][1] = missing
    assert compare(arms, "arm 0") == compare(without, "arm 0")
    assert compare(arms, "arm 0")["arm 2"].n == 2


def test_seeds_that_agree_exactly_prove_nothing() -> None:
    same_everywhere = {"a": dict.fromkeys(range(3), 0.1), "b": dict.fromkeys(range(3), 0.3)}
    (found,) = compare(same_everywhere, "a").values()
    assert (found.mean, found.low, found.p, found.detectable) == (pytest.approx(0.2), None, None, None)
    assert found.verdict == "no interval: the seeds agree exactly"
    rounding = {
        "a": {0: 0.1, 1: 0.7, 2: 0.2},
        "b": {0: 0.1 + 0.2, 1: 0.7 + 0.2, 2: 0.2 + 0.2},
        "c": {0: 0.3, 1: 0.9, 2: 0.4},
    }
    assert {d.verdict for d in compare(rounding, "a").values()} == {found.verdict}


def test_the_reference_again_is_within_the_noise() -> None:
    table = simulated(1, 4, 3)[0]
    table[1] = table[0]
    again = against_first(table)[0]
    assert (again.mean, again.p, again.verdict) == (0, 1, NOISE)


def test_the_reference_must_be_there() -> None:
    with pytest.raises(UserError, match=r"no arm 's=2' .* s=0, s=1"):
        compare({"s=0": {0: 1.0}, "s=1": {0: 1.0}}, "s=2")
    assert compare({"s=0": {0: 1.0, 1: 2.0}}, "s=0") == {}
    assert compare({"s=0": {}}, "s=0") == {}
    (found,) = compare({"s=0": {}, "s=1": {0: 1.0, 1: 2.0}}, "s=0").values()
    assert found.verdict == "no interval: no seed in common"


def test_scipy_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UserError, match=r"need scipy: pip install 'twoview\[report\]'"):
        compare({"a": {}}, "a")
