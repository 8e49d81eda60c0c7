"""What a few seeds can say: arms compared with a reference arm, paired by seed.

The layout is a randomised block design: the seeds are the blocks, and a value is an arm's effect plus a seed's effect
plus a residual (Montgomery, "Design and Analysis of Experiments", chapter 4). The seed's effect cancels in the paired
differences. Their spread is estimated from the residuals of *all* arms, with (arms - 1)(seeds - 1) degrees of freedom;
an arm's own pairs have only seeds - 1. With 6 arms, 3 seeds and an effect of 4 standard deviations, the paired t test
of each arm by itself finds the effect in 26 of 100 simulated studies, the pooled one in 90 (`benchmarks/power.py`).
For two arms the two tests are the same.

Pooling assumes that residuals are normal with the same variance in all arms. An arm that collapses for some seeds
violates this: it would hide the differences of the other arms, and its own mean would be trusted too much. So the
residuals of each arm are tested against those of the rest (the F test of the sum of squares that disappears when the
arm is left out, exact under the assumption), and an arm that stands out is set apart: its spread is not pooled and it
is judged by its own pairs alone. If the reference stands out, every arm is judged by its own pairs. This catches
collapses. What few seeds cannot show is an arm, or worse a reference, that is noisier by a factor of 2 to 5: then up
to 17 of 100 studies of 6 to 20 arms without any effect raise a false alarm with 3 seeds, and up to 12 with 5 seeds,
instead of 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twoview.errors import UserError
from twoview.stats.intervals import Interval, finite, scipy

ALPHA = 0.05  # share of studies without any effect in which at least one verdict may be wrong
POWER = 0.8
SET_APART = 0.01  # share of studies with equal variances in which an arm may be set apart, for each arm

Verdict = Literal[
    "better",
    "worse",
    "within the noise of the seeds",
    "no interval: no seed in common",
    "no interval: one seed",
    "no interval: the seeds agree exactly",  # they measure no noise, so nothing can be held against it
]


@dataclass(frozen=True)
class Difference(Interval):
    """An arm minus the reference arm, over the n seeds that both have, with 95 % limits that hold for this difference
    alone: the verdict is stricter. The mean is None where there is no common seed.
    """

    p: float | None  # two-sided
    p_corrected: float | None  # by Holm's method for all arms that are compared
    detectable: float | None  # true difference that such a study finds with probability POWER
    verdict: Verdict


def compare(arms: Mapping[str, Mapping[int, float]], reference: str) -> dict[str, Difference]:
    """Each other arm against the `reference`, from values by arm and seed; higher is better. Values that are not finite
    count as missing.

    The verdict is "better" or "worse" where the corrected p is below 0.05 (Holm, "A simple sequentially rejective
    multiple test procedure", 1979). `detectable` is for the level 0.05 / arms compared. Raises UserError where the
    reference arm is missing.
    """
    if reference not in arms:
        raise UserError(f"there is no arm {reference!r} to compare with; the reference may be one of {', '.join(arms)}")
    special = scipy().special
    names = [reference, *(name for name in arms if name != reference)]
    seeds = sorted({seed for values in arms.values() for seed in values})
    table = np.full((len(names), len(seeds)), np.nan)  # (arms, seeds)
    for row, name in enumerate(names):
        for seed, value in arms[name].items():
            table[row, seeds.index(seed)] = value
    table[~np.isfinite(table)] = np.nan

    pairs = {name: finite(table[row] - table[0]) for row, name in enumerate(names) if row}
    alike, variance, df = _residual_variance(table)
    errors: dict[str, tuple[float, int]] = {}  # standard error of the mean difference, degrees of freedom
    for row, name in enumerate(names[1:], start=1):
        own = pairs[name]
        if len(own) < 2:
            continue
        pooled = row in alike and 0 in alike
        error = np.sqrt((2 * variance if pooled else own.var(ddof=1)) / len(own))
        if error > _rounding(table):
            errors[name] = float(error), df if pooled else len(own) - 1
    p = {name: float(2 * special.stdtr(df, -abs(pairs[name].mean()) / error)) for name, (error, df) in errors.items()}
    corrected = _holm(p)

    found = {}
    for name, own in pairs.items():
        n, mean = len(own), float(own.mean()) if len(own) else None
        if mean is None or name not in errors:
            verdict: Verdict = "no interval: no seed in common"
            if n:
                verdict = "no interval: one seed" if n == 1 else "no interval: the seeds agree exactly"
            found[name] = Difference(mean, None, None, n, None, None, None, verdict)
            continue
        error, df = errors[name]
        half = float(special.stdtrit(df, 0.975)) * error
        verdict = "within the noise of the seeds"
        if corrected[name] < ALPHA:
            verdict = "better" if mean > 0 else "worse"
        detectable = _detectable(df, ALPHA / len(p)) * error
        found[name] = Difference(mean, mean - half, mean + half, n, p[name], corrected[name], detectable, verdict)
    return found


def _residual_variance(table: NDArray[np.float64]) -> tuple[list[int], float, int]:
    """Rows of `table` (arms, seeds) that vary alike, the variance of their residuals and its degrees of freedom."""
    special, alike = scipy().special, list(range(len(table)))
    squares, df = _residuals(table[alike])
    while len(alike) > 2 and squares > _rounding(table) ** 2:
        noisiest, smallest = None, SET_APART
        for row in alike:
            without, df_without = _residuals(table[[other for other in alike if other != row]])
            if 0 < df_without < df:
                ratio = (squares - without) / (df - df_without) / max(without / df_without, _rounding(table) ** 2)
                p = special.fdtrc(df - df_without, df_without, ratio)
                if p < smallest:
                    noisiest, smallest = row, p
        if noisiest is None:
            break
        alike.remove(noisiest)
        squares, df = _residuals(table[alike])
    return alike, squares / max(df, 1), df


def _residuals(table: NDArray[np.float64]) -> tuple[float, int]:
    """Residual sum of squares and degrees of freedom of `table` (arms, seeds) after the effects of arms and seeds."""
    row, column = np.nonzero(np.isfinite(table))
    if not len(row):
        return 0.0, 0
    design = np.hstack([np.eye(table.shape[0])[row], np.eye(table.shape[1])[column]])  # (values, arms + seeds)
    values = table[row, column] - table[row, column].mean()
    effects, _, rank, _ = np.linalg.lstsq(design, values)
    return float(np.square(values - design @ effects).sum()), len(values) - int(rank)


def _rounding(table: NDArray[np.float64]) -> float:
    """The largest spread that rounding alone can make."""
    return float(1e-12 * np.nanmax(np.abs(table), initial=0))


def _holm(p: Mapping[str, float]) -> dict[str, float]:
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        corrected[name] = largest
    return corrected


@cache
def _detectable(df: int, level: float) -> float:
    """The true difference, in standard errors, that a two-sided t test at `level` finds with probability POWER."""
    stats, optimize = scipy().stats, scipy().optimize
    limit = stats.t.isf(level / 2, df)
    most = 3 + limit * np.sqrt(stats.chi2.isf(0.05, df) / df)  # found with more than 90 %
    # Only the upper side counts: the lower one adds less than 1e-5.
    return float(optimize.brentq(lambda d: stats.nct.sf(limit, df, d) - POWER, 0, most))
