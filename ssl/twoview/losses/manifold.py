"""MMCR: the centroids of the samples' views are to span as much as they can."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.losses.inputs import check_views, in_float32


class Manifold(NamedTuple):
    """Scalars: the `loss`, and the mean length of the centroids, `agreement`, 1 where all views agree, no gradient."""

    loss: Tensor
    agreement: Tensor


@in_float32
def mmcr(views: Sequence[Tensor]) -> Manifold:
    """Minus the nuclear norm of the centroids (MMCR, arXiv 2303.03307, equation 4, without the term of weight 0).

    `views`: V >= 2 tensors (N, D), all rows of the global batch, of any scale; rows are normalised. A sample's centroid
    is the mean over its views: short where they differ. The loss is minus the sum of the singular values of the N x D
    centroids. (lightly does not normalise, and its loss has no bound.) Blind to a rotation of z, to the order of views
    and of samples. The gradient is U Vᵀ, without the differences of singular values that make that of a whole
    decomposition unstable.

    Closed values: all rows equal give -sqrt(N); views that agree and samples that are orthogonal -N, the lowest where N
    <= D; the bound is -min(N, sqrt(N D)). Independent views lie in between (N 32, D 128, V 40: -4.9), so that a
    collapse may look *better* than chance.
    """
    check_views(views)
    centroids = torch.stack([F.normalize(view, dim=1) for view in views]).mean(dim=0)  # (N, D)
    return Manifold(-torch.linalg.svdvals(centroids).sum(), centroids.detach().norm(dim=1).mean())
