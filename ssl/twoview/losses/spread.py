"""Whether projections have collapsed: what no loss without negatives tells."""

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.losses.inputs import check_rows, in_float32


@torch.no_grad()
@in_float32
def spread(z: Tensor) -> Tensor:
    """How far the directions of rows (N, D) are from being one: sqrt(1 - |mean of unit rows|^2), a scalar in [0, 1].

    It is the root mean square over dimensions of their standard deviation, in units of 1 / sqrt(D): 1 where rows are
    spread evenly, 0 where all are one point. 1 - its square is the mean cosine of two rows (of a row with itself too).
    In float32 nothing below 3e-4 can be told from 0.
    """
    check_rows(z)
    return (1 - F.normalize(z, dim=1).mean(dim=0).square().sum()).clamp(min=0).sqrt()
