"""NNCLR: the positive of a view is the nearest neighbour of the other one."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.losses.contrastive import info_nce_contrast
from twoview.losses.inputs import check_rows, in_float32


class NearestContrast(NamedTuple):
    """`loss` and `accuracy` (of the N-way task), scalars; `similarity`, the mean cosine of a row and its neighbour,
    scalar, 1 for copies; `neighbour` (N,), places in the queue. All but the loss without gradient.
    """

    loss: Tensor
    accuracy: Tensor
    similarity: Tensor
    neighbour: Tensor


@in_float32
def nearest_contrast(z: Tensor, prediction: Tensor, queue: Tensor, temperature: float) -> NearestContrast:
    """Each row's nearest neighbour in the queue looks for the prediction of the row's other view (NNCLR, arXiv
    2104.14548, equation 3), among those of all N rows.

    `z` (N, D): projections of one view, only looked up, without gradient; `prediction` (N, D): the predictor's output
    of the other view; `queue` (K, D): projections of earlier steps, which must not hold those of this step, or every
    row is its own neighbour. All of any scale. A symmetric method takes the mean of both directions. (lightly gives
    neighbours and predictions to its NT-Xent instead, of 2N - 1 candidates.)

    Closed values: log N at chance and at collapse. Raises ValueError for unfit shapes or temperature.
    """
    check_rows(z, prediction)
    if queue.ndim != 2 or queue.shape[1] != z.shape[1] or len(queue) == 0:
        raise ValueError(f"queue must be (K, {z.shape[1]}) with K >= 1, not {tuple(queue.shape)}")
    with torch.no_grad():
        similarity, neighbour = (F.normalize(z, dim=1) @ F.normalize(queue, dim=1).T).max(dim=1)  # (N,) each
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    found = info_nce_contrast(queue[neighbour].detach(), prediction, prediction, temperature, excluded=own)
    return NearestContrast(found.loss, found.accuracy, similarity.mean(), neighbour)
