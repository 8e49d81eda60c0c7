"""Losses that predict one view's projection from the other's, without negatives."""

import torch.nn.functional as F
from torch import Tensor

from twoview.losses.inputs import check_rows, in_float32


@in_float32
def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Minus the mean cosine of each prediction and its target (SimSiam, arXiv 2011.10566, equation 1).

    `prediction`, `target` (N, D), of any scale. The target is a constant: no gradient reaches it. A symmetric method
    takes the mean of both directions; BYOL (arXiv 2006.07733, equation 2) writes each direction as the squared distance
    of unit vectors, which is 2 + 2 `negative_cosine`, and adds them up.

    Returns a scalar in [-1, 1]: 0 for independent vectors, -1 for predictions that are right *and* for a network that
    maps all samples to one point. The loss alone cannot tell these apart.
    """
    check_rows(prediction, target)
    return -(F.normalize(prediction, dim=1) * F.normalize(target.detach(), dim=1)).sum(dim=1).mean()
