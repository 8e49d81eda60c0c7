"""Decoupled contrastive learning: NT-Xent without the positive among its candidates."""

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.losses.contrastive import Contrast
from twoview.losses.inputs import check_positive, check_rows, in_float32


@in_float32
def decoupled_contrast(z1: Tensor, z2: Tensor, temperature: float, sigma: float | None = None) -> Contrast:
    """DCL, and DCLW where `sigma` is given (arXiv 2110.06848, equations 6 and 7).

    `z1`, `z2` (N, D), of any scale. For each of the 2N rows: logsumexp of cosine / `temperature` over the 2N - 2 rows
    of *other* samples, in both views, less that of its other view; the mean over rows. In NT-Xent the positive stands
    in the sum too, and a pair that is told apart already has hardly a gradient, the more so in small batches.

    `sigma` weights each pair's positive term by 2 - N softmax_i(cosine_i / sigma) over the N pairs, a constant for the
    gradient, of mean 1: pairs that are far apart count more. 0.5 in the paper.

    Accuracy is that of NT-Xent: rows whose positive alone is more similar than all negatives. Closed values: at chance
    and at collapse log(2N - 2). The loss has no floor at 0; it may come down to log(2N - 2) - 2 / temperature. NT-Xent
    less DCL is the mean of log(1 + e^positive / sum of e^negatives), 0 at least. Raises ValueError for unfit shapes,
    fewer than 2 samples, or a temperature or sigma that is not positive.
    """
    check_rows(z1, z2, fewest=2)
    check_positive(temperature=temperature, sigma=1.0 if sigma is None else sigma)
    n = len(z1)
    z = F.normalize(torch.cat([z1, z2]), dim=1)  # (2N, D)
    sample = torch.arange(2 * n, device=z.device) % n
    same = sample[:, None] == sample  # (2N, 2N)
    negatives = (z @ z.T / temperature).masked_fill(same, float("-inf"))
    cosine = (z[:n] * z[n:]).sum(dim=1)  # (N,)
    weight = cosine.new_ones(n) if sigma is None else 2 - n * (cosine.detach() / sigma).softmax(dim=0)
    cost = negatives.logsumexp(dim=1) - (weight * cosine / temperature).repeat(2)  # (2N,)
    found = negatives.detach().amax(dim=1) < (cosine.detach() / temperature).repeat(2)
    return Contrast(cost.mean(), found.float().mean())
