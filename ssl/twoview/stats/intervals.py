"""How sure a number is: intervals of means, of shares and of differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from twoview.errors import UserError

Z95 = 1.959963984540054  # of the normal distribution, two-sided


@dataclass(frozen=True)
class Interval:
    """A mean over n values with the limits of its interval. Without any value there is no mean, and one value alone
    has no limits: None.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def limits(self) -> list[float] | None:
        """[low, high], as it stands in JSON files."""
        return None if self.low is None or self.high is None else [self.low, self.high]


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The t interval of a mean, for a handful of values, one per seed. Values that are not finite count as missing."""
    special, found = scipy().special, finite(values)
    n = len(found)
    if n < 2:
        return Interval(float(found[0]) if n else None, None, None, n)
    mean = float(found.mean())
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2) * found.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def bootstrap_interval(values: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """The bootstrap interval of a mean, for many values of any distribution (BCa: Efron, "Better bootstrap confidence
    intervals", JASA 1987). It is too narrow for a handful of values. Values that are not finite count as missing.
    """
    stats, found = scipy().stats, finite(values)
    n = len(found)
    if n < 2 or np.ptp(found) == 0:
        mean = float(found[0]) if n else None
        return Interval(mean, *((mean, mean) if n > 1 else (None, None)), n)
    batch = max(1, 2**22 // n)  # resamples at a time: 32 MiB
    method = "BCa" if n <= 2000 else "percentile"  # indistinguishable for more values, and BCa takes n^2 operations
    rng = np.random.default_rng(seed)
    limits = stats.bootstrap(
        (found,), np.mean, confidence_level=confidence, n_resamples=resamples, batch=batch, method=method, rng=rng
    ).confidence_interval
    return Interval(float(found.mean()), float(limits.low), float(limits.high), n)


@dataclass(frozen=True)
class Share(Interval):
    """A share of n, between 0 and 1, with its limits."""

    mean: float
    low: float
    high: float


def wilson(correct: int, total: int) -> Share:
    """The 95 % interval of a share (Wilson, "Probable inference", JASA 1927)."""
    share, spread = correct / total, Z95 * Z95 / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return Share(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), total)


def bootstrap_share(correct: int, total: int) -> Share:
    """The 95 % percentile bootstrap interval of a share (Efron, "Bootstrap methods", Annals of Statistics 1979).

    The number of correct answers in a resample is binomial with the observed share, so the percentiles are known
    exactly: this is the limit of infinitely many resamples.
    """
    share = correct / total
    if share in (0.0, 1.0):
        return Share(share, share, share, total)
    k = torch.arange(total + 1, dtype=torch.float64)
    log_ways = math.lgamma(total + 1) - torch.lgamma(k + 1) - torch.lgamma(total - k + 1)
    cumulative = (log_ways + k * math.log(share) + (total - k) * math.log1p(-share)).exp().cumsum(0)
    low, high = (int(torch.searchsorted(cumulative, q)) for q in (0.025, 0.975))
    return Share(share, low / total, high / total, total)


def finite(values: ArrayLike) -> NDArray[np.float64]:
    """The finite numbers of a flat list."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1:
        raise ValueError(f"values must be a flat list, not of shape {found.shape}")
    return found[np.isfinite(found)]


def scipy() -> Any:
    """The package, which is an extra."""
    try:
        import scipy
    except ImportError as error:
        raise UserError("intervals and tests need scipy: pip install 'twoview[report]'") from error
    return scipy
