"""Two classifiers on the same images: is one of them better?

Images that both get right, or both get wrong, do not tell. What counts are the discordant ones, which exactly one of
the two gets right.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twoview.stats.intervals import Z95, Interval


@dataclass(frozen=True)
class Paired(Interval):
    """Accuracy of the first classifier minus that of the second, with its 95 % limits, over n images. `p` is the
    probability of a split of the discordant images at least as uneven as the observed one, were the two equally good.
    """

    mean: float
    low: float
    high: float
    p: float
    only_first: int  # images that the first alone gets right
    only_second: int

    def plain(self) -> dict[str, Any]:
        """As it stands in JSON files."""
        counts = {"only_first": self.only_first, "only_second": self.only_second, "n": self.n}
        return {"difference": self.mean, "interval": self.limits, "p": self.p, **counts}


def paired(first: Tensor, second: Tensor) -> Paired:
    """Compares two bool (M,), whether each image is classified correctly.

    `p` is that of McNemar's exact test (Psychometrika 1947): a fair coin for every discordant image. The interval is
    that of Agresti & Min (Statistics in Medicine 2005): Wald's, with half an image added to each of the four cells.
    """
    if first.shape != second.shape or first.dim() != 1 or len(first) == 0:
        raise ValueError(f"need the same images for both, got {tuple(first.shape)} and {tuple(second.shape)}")
    n, b, c = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    total, half_b, half_c = n + 2, b + 0.5, c + 0.5
    centre = (half_b - half_c) / total
    half = Z95 * math.sqrt(half_b + half_c - (half_b - half_c) ** 2 / total) / total
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Paired((b - c) / n, low, high, n, coin(b, c), b, c)


def coin(heads: int, tails: int) -> float:
    """Two-sided p of so uneven a number of heads and tails of a fair coin."""
    n = heads + tails
    k = torch.arange(min(heads, tails) + 1, dtype=torch.float64)
    log_ways = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return min(1.0, 2 * float((log_ways - n * math.log(2)).exp().sum()))
