"""Images unlike all others, by the distance to their k-th nearest neighbour (Sun et al., "Out-of-distribution
detection with deep nearest neighbors", ICML 2022).

The k-th rather than the nearest: an odd image that is there twice is still odd.
"""

import torch
from torch import Tensor

from twoview.evaluate.classify.knn import Neighbours

FAR = 3.5  # robust deviations (Iglewicz & Hoaglin, "How to detect and handle outliers", 1993)
CLOSEST = 1e-6  # cosines of float32 tell no smaller distance from zero


def distances(near: Neighbours) -> Tensor:
    """1 - cosine of each row with the last of its nearest neighbours: (N,)."""
    return 1 - near.similarity[:, -1]


def deviations(distance: Tensor) -> Tensor:
    """How many robust standard deviations the logarithm of each distance (N,) lies above the median. Zero for all
    where half of them are equal.
    """
    logs = distance.double().clamp_min(CLOSEST).log()
    median = logs.quantile(0.5) if len(logs) < 2**24 else logs.median()  # quantile takes no more
    spread = (logs - median).abs()
    scale = 1.4826 * (spread.quantile(0.5) if len(logs) < 2**24 else spread.median())  # of a normal law: its deviation
    return (logs - median) / scale if scale > 0 else torch.zeros_like(logs)
