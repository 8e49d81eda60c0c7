"""Barlow Twins: dimensions that agree between views and do not repeat each other."""

from typing import NamedTuple

import torch
from torch import Tensor

from twoview.losses.inputs import check_rows, in_float32


class Redundancy(NamedTuple):
    """Scalars. `loss` = `invariance` + weight x `redundancy`, the sums over the diagonal and off it, unweighted."""

    loss: Tensor
    invariance: Tensor
    redundancy: Tensor


@in_float32
def barlow_twins(z1: Tensor, z2: Tensor, weight: float = 0.0051, eps: float = 1e-5) -> Redundancy:
    """The cross-correlation matrix of two views is to be the identity (Barlow Twins, arXiv 2103.03230, equation 1).

    `z1`, `z2` (N, D): all rows of the global batch. Each dimension is standardised over the batch as BatchNorm does it
    (variance over N, `eps`); C = u1ᵀ u2 / N is D x D; the loss is sum_i (1 - C_ii)^2 + `weight` sum_{i != j} C_ij^2.
    Symmetric; blind to shift and positive scale of each dimension.

    Closed values: constant rows give D; independent views D + weight D (D - 1) / N; D copies of one dimension weight D
    (D - 1); equal views of independent dimensions weight D (D - 1) / N. With N <= D and equal views there is no value
    below weight (D^2 / (N - 1) - D). Raises ValueError for fewer than 2 rows.
    """
    check_rows(z1, z2, fewest=2)
    u1, u2 = (_standardised(z, eps) for z in (z1, z2))
    c = u1.T @ u2 / len(u1)  # (D, D)
    agreement = c.diagonal()
    invariance = (1 - agreement).square().sum()
    redundancy = (c - torch.diag(agreement)).square().sum()
    return Redundancy(invariance + weight * redundancy, invariance, redundancy)


def _standardised(z: Tensor, eps: float) -> Tensor:
    centred = z - z.mean(dim=0)
    return centred * (centred.square().mean(dim=0) + eps).rsqrt()
