"""Two classifiers on the same images: is one of them better?

The images that both get right, or both wrong, say nothing of it. What is left are those that one alone gets right.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from twoview.stats.intervals import Z95


@dataclass(frozen=True)
class Paired:
    """The first classifier less the second: `difference` of their accuracies with its 95 % `interval`, and `p`, how
    likely a split of the discordant images as uneven as this one is between equals.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    only_first: int  # images that the first alone gets right
    only_second: int
    n: int


def paired(first: Tensor, second: Tensor) -> Paired:
    """From bool (M,), whether each image is classified rightly.

    `p` is that of McNemar's test in its exact form (Psychometrika 1947): a fair coin for every discordant image. The
    interval is Agresti & Min's (Statistics in Medicine 2005): Wald's, with half an image more in each of the four
    cells.
    """
    if first.shape != second.shape or first.dim() != 1 or len(first) == 0:
        raise ValueError(f"need the same images for both, got {tuple(first.shape)} and {tuple(second.shape)}")
    n, b, c = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    total, half_b, half_c = n + 2, b + 0.5, c + 0.5
    centre = (half_b - half_c) / total
    half = Z95 * math.sqrt(half_b + half_c - (half_b - half_c) ** 2 / total) / total
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Paired((b - c) / n, (low, high), coin(b, c), b, c, n)


def coin(heads: int, tails: int) -> float:
    """Two-sided p of so uneven a number of heads and tails of a fair coin."""
    n = heads + tails
    k = torch.arange(min(heads, tails) + 1, dtype=torch.float64)
    log_ways = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return min(1.0, 2 * float((log_ways - n * math.log(2)).exp().sum()))
