"""VICReg: views that agree, dimensions that vary, and that do not vary together."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.losses.inputs import check_rows, in_float32


class VICReg(NamedTuple):
    """Scalars: the `loss` and its three terms, with their weights."""

    loss: Tensor
    invariance: Tensor
    variance: Tensor
    covariance: Tensor


@in_float32
def vicreg(
    z1: Tensor,
    z2: Tensor,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    eps: float = 1e-4,
) -> VICReg:
    """Invariance, variance and covariance of two views (VICReg, arXiv 2105.04906, equations 1 to 6).

    `z1`, `z2` (N, D): all rows of the global batch, not normalised. The terms are the mean of (z1 - z2)^2 over rows and
    dimensions; the mean over views and dimensions of max(0, 1 - sqrt(var + `eps`)); and for each view the sum of
    squared covariances of different dimensions over D, added up. Variances and covariances divide by N - 1.

    The mean over views in the variance term is that of the authors' code. solo-learn takes the sum: its weight of 25
    is 50 here. Symmetric; variance and covariance are blind to a shift of either view, invariance is not.

    Closed values at the default weights: constant rows give 0 + 24.75 + 0 (25 (1 - sqrt(eps))); independent unit
    Gaussian views have invariance 50; equal ones covariance 2 (D - 1) / (N - 1). Raises ValueError for fewer than 2
    rows.
    """
    check_rows(z1, z2, fewest=2)
    agreement = invariance * F.mse_loss(z1, z2)
    spread = variance * torch.stack([_hinge(z, eps) for z in (z1, z2)]).mean()
    correlation = covariance * torch.stack([_covariance(z) for z in (z1, z2)]).sum()
    return VICReg(agreement + spread + correlation, agreement, spread, correlation)


def _hinge(z: Tensor, eps: float) -> Tensor:
    return F.relu(1 - (z.var(dim=0) + eps).sqrt()).mean()


def _covariance(z: Tensor) -> Tensor:
    centred = z - z.mean(dim=0)
    c = centred.T @ centred / (len(z) - 1)  # (D, D)
    return (c - torch.diag(c.diagonal())).square().sum() / z.shape[1]
