"""CorInfoMax: views that agree, with as much correlative information as there can be."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.losses.factor import cholesky
from twoview.losses.inputs import check_rows, in_float32


class Moments(NamedTuple):
    """Running mean (D,) and covariance (D, D) of a view's projections."""

    mean: Tensor
    covariance: Tensor


class CorInfoMax(NamedTuple):
    """Scalars: `loss` = `information` + `invariance`, the latter with its weight. `moments`: those of both views after
    this step, without gradient.
    """

    loss: Tensor
    information: Tensor
    invariance: Tensor
    moments: tuple[Moments, Moments]


@in_float32
def cor_info_max(
    z1: Tensor,
    z2: Tensor,
    moments: Sequence[Sequence[Tensor]],
    weight: float = 250.0,
    forgetting: float = 0.01,
    eps: float = 1e-8,
) -> CorInfoMax:
    """Log-determinants of running covariances and the distance of views (CorInfoMax, arXiv 2209.07999, equation 6).

    `z1`, `z2` (N, D): all rows of the global batch, of any scale; they are normalised. `moments`: `Moments` of both
    views from the last step, constants. The new ones are `forgetting` of the old and the rest of the batch's, whose
    rows are centred by the *new* mean. The loss is -1/D sum over views of log det(R + `eps` I), plus `weight` times the
    mean squared difference over rows and dimensions. Symmetric where the moments are swapped with the views.

    As in the authors' code, covariances and their factors are computed in float64, where the device has it (Apple's
    GPUs do not): in a collapse the smallest eigenvalues are at `eps`. The new moments are given in that type.

    Closed values, once the initial moments are forgotten: unit rows have trace R <= 1, so information is at least 2 log
    D (D 64: 8.318), reached where they are isotropic; constant rows leave -2 log(eps) = 36.84. Independent views have
    invariance 2 weight / D. Raises ValueError for unfit shapes, `SingularError` where a covariance is not finite.
    """
    check_rows(z1, z2)
    z = [F.normalize(view, dim=1) for view in (z1, z2)]
    exact = torch.float32 if z1.device.type == "mps" else torch.float64
    after = [_updated(view.to(exact), mean, c, forgetting) for view, (mean, c) in zip(z, moments, strict=True)]
    identity = torch.eye(z1.shape[1], dtype=exact, device=z1.device)
    information = -torch.stack([_log_det(new.covariance + eps * identity) for new in after]).sum() / z1.shape[1]
    invariance = weight * F.mse_loss(z[0], z[1])
    first, second = (Moments(new.mean.detach(), new.covariance.detach()) for new in after)
    information = information.to(invariance.dtype)
    return CorInfoMax(information + invariance, information, invariance, (first, second))


def _updated(z: Tensor, mean: Tensor, covariance: Tensor, forgetting: float) -> Moments:
    mean = forgetting * mean.detach().to(z.dtype) + (1 - forgetting) * z.mean(dim=0)
    centred = z - mean
    batch = centred.T @ centred / len(z)  # (D, D)
    return Moments(mean, forgetting * covariance.detach().to(z.dtype) + (1 - forgetting) * batch)


def _log_det(covariance: Tensor) -> Tensor:
    return 2 * cholesky(covariance, "the running covariance of z").diagonal().log().sum()
