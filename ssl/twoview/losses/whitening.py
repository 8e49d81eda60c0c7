"""W-MSE: views are whitened, so that they cannot collapse, and compared."""

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.losses.factor import cholesky
from twoview.losses.inputs import check_views, in_float32


@in_float32
def w_mse(views: Sequence[Tensor], order: Tensor, group: int) -> Tensor:
    """Distance of whitened views (W-MSE, arXiv 2007.06346, equations 4 to 6).

    `views`: V >= 2 tensors (N, D), all rows of the global batch, of any scale. The N samples are put into groups of
    `group` in the `order` (N,) given, a permutation, or several (I, N), over which the loss is the mean. Each view is
    whitened in each group; the loss is the mean over pairs of views and over rows of 2 - 2 cosine. The gradient goes
    through the whitening of *both* views (solo-learn detaches one). Symmetric.

    Closed values: 0 for equal views, 2 for independent ones. It cannot collapse to a point: where z loses a dimension
    the factorisation fails, with a `SingularError`. Raises ValueError for groups that do not divide N or are not larger
    than D; the source asks for 2 D.
    """
    check_views(views, fewest=2)
    n, d = views[0].shape
    if not d < group <= n or n % group:
        raise ValueError(f"group must divide the {n} rows and be larger than the {d} dimensions, not {group}")
    rows = order.view(-1, group)  # (G, w)
    whitened = [F.normalize(whiten(view[rows]), dim=-1) for view in views]  # V times (G, w, D)
    pairs = [2 - 2 * (a * b).sum(dim=-1).mean() for a, b in combinations(whitened, 2)]
    return torch.stack(pairs).mean()


@in_float32
def whiten(z: Tensor) -> Tensor:
    """(..., w, D) -> the same shape, with mean 0 and covariance I (of w - 1) over the w rows of each group.

    By the Cholesky factor of the covariance: blind to an invertible affine map of z up to a rotation. Raises
    `SingularError` where the covariance has no factor.
    """
    centred = z - z.mean(dim=-2, keepdim=True)
    covariance = centred.mT @ centred / (z.shape[-2] - 1)  # (..., D, D)
    factor = cholesky(covariance, "the covariance of z within a group")
    return torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
