"""LeJEPA: views that agree, embeddings that are isotropic Gaussians."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from twoview.losses.inputs import check_views, in_float32

KNOTS, RANGE = 17, 3.0  # of the authors' code


class LeJEPA(NamedTuple):
    """Scalars: `loss` = (1 - weight) `invariance` + weight `sigreg`."""

    loss: Tensor
    invariance: Tensor
    sigreg: Tensor


@in_float32
def lejepa(views: Sequence[Tensor], directions: Tensor, global_views: int, weight: float = 0.05) -> LeJEPA:
    """Invariance and SIGReg (LeJEPA, arXiv 2511.08544, section 5.1).

    `views`: V >= 2 tensors (N, D), all rows of the global batch, not normalised, the `global_views` first. Invariance
    is the mean squared difference of all views from the mean of the global ones; `sigreg` the mean over all views.
    `directions` (D, M): see `sigreg`. No stop-gradient, no teacher. Symmetric in the views where all are global.

    Closed values: a Gaussian z has SIGReg 1.05 whatever N; z collapsed to 0 has .402 N, and the loss weight x .402 N.
    Near a collapse the gradient vanishes. Raises ValueError for unfit shapes or a weight outside [0, 1].
    """
    check_views(views)
    if not 1 <= global_views <= len(views):
        raise ValueError(f"global_views must be 1 to {len(views)}, not {global_views}")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must lie in [0, 1], not {weight}")
    z = torch.stack(list(views))  # (V, N, D)
    invariance = (z - z[:global_views].mean(dim=0)).square().mean()
    normality = torch.stack([sigreg(view, directions) for view in z]).mean()
    return LeJEPA((1 - weight) * invariance + weight * normality, invariance, normality)


@in_float32
def sigreg(z: Tensor, directions: Tensor) -> Tensor:
    """Sketched isotropic Gaussian regularisation: the Epps-Pulley statistic of z along random directions (arXiv
    2511.08544, section 4).

    `z` (N, D), `directions` (D, M) of length 1, the same on all devices and new in each step. Along each, N times the
    integral over [-3, 3] of |c(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), with c the characteristic function of the N
    projections, by the trapezoidal rule on 17 knots; the mean over directions.

    Closed values: 1.0525 in expectation for a standard Gaussian, whatever N (sum of the weights times 1 - exp(-t^2));
    .4019 N for z = 0.
    """
    t = torch.linspace(0, RANGE, KNOTS, dtype=z.dtype, device=z.device)  # the integrand is even
    gaussian = (-t.square() / 2).exp()
    step = RANGE / (KNOTS - 1)
    weight = torch.full_like(t, 2 * step)
    weight[0] = weight[-1] = step
    angles = (z @ directions.to(z))[..., None] * t  # (N, M, 17)
    error = (angles.cos().mean(dim=0) - gaussian).square() + angles.sin().mean(dim=0).square()  # (M, 17)
    return len(z) * (error @ (weight * gaussian)).mean()
