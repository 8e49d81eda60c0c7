"""Principal components of features."""

import torch
import torch.nn.functional as F
from torch import Tensor


def principal(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first principal components (M, count) of rows (M, D), and all components' shares of the variance. Of the two
    signs of a component the one is taken in which its largest coordinate is positive.
    """
    centred = x - x.mean(0)
    variance, axes = torch.linalg.eigh(centred.T @ centred)  # (D,), (D, D); ascending
    variance, axes = variance.flip(0).clamp_min(0), axes.T.flip(0)
    largest = axes.abs().argmax(1, keepdim=True)
    axes = axes * axes.gather(1, largest).sign()
    points = centred @ axes[:count].T  # (M, count)
    points = F.pad(points, (0, max(0, 2 - points.shape[1])))
    return points, variance / variance.sum().clamp_min(1e-300)
