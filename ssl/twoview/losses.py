"""Contrastive losses: pure functions of tensors, without configuration, logging or state."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Contrast(NamedTuple):
    """`loss`: scalar. `accuracy`: share of rows whose positive scores highest, scalar in [0, 1], without gradient."""

    loss: Tensor
    accuracy: Tensor


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy of SimCLR (arXiv 2002.05709, equation 1 and algorithm 1).

    `z1`, `z2` (N, D) are projections of two views of the same N samples, of any scale and floating dtype. Each of the
    2N rows has to find its other view among the 2N - 1 others; the loss is the mean over all 2N rows. (The paper's
    TensorFlow code adds the means of the two halves instead: twice this value.) The softmax is taken in float32 at
    least, under autocast too. Returns a scalar; log(2N - 1) is the chance level. Raises ValueError for shapes that
    differ or a temperature that is not positive.
    """
    return nt_xent_contrast(z1, z2, temperature).loss


def nt_xent_contrast(z1: Tensor, z2: Tensor, temperature: float) -> Contrast:
    """`nt_xent` together with the accuracy of its (2N - 1)-way classification."""
    _check(z1, z2, temperature)
    with torch.autocast(z1.device.type, enabled=False):
        z = F.normalize(_at_least_fp32(torch.cat([z1, z2])), dim=1)  # (2N, D)
        similarity = z @ z.T / temperature  # (2N, 2N)
        similarity = similarity.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), float("-inf"))
        target = torch.arange(len(z), device=z.device).roll(len(z1))  # (2N,) row of the other view
        return Contrast(F.cross_entropy(similarity, target), _accuracy(similarity, target))


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE of MoCo (arXiv 1911.05722, equation 1): each query has to find its key among the key and K negatives.

    `query`, `key` (N, D) and `negatives` (K, D), of any scale. Returns the mean over the N queries, a scalar; log(K +
    1) is the chance level. Raises ValueError for shapes that do not fit or a temperature that is not positive.
    """
    return info_nce_contrast(query, key, negatives, temperature).loss


def info_nce_contrast(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Contrast:
    """`info_nce` together with the accuracy of its (K + 1)-way classification."""
    _check(query, key, temperature)
    if negatives.ndim != 2 or negatives.shape[1] != query.shape[1]:
        raise ValueError(f"negatives must be (K, {query.shape[1]}), not {tuple(negatives.shape)}")
    with torch.autocast(query.device.type, enabled=False):
        q, k, n = (F.normalize(_at_least_fp32(x), dim=1) for x in (query, key, negatives))
        positive = (q * k).sum(dim=1, keepdim=True)  # (N, 1)
        logits = torch.cat([positive, q @ n.T], dim=1) / temperature  # (N, 1 + K)
        target = torch.zeros(len(q), dtype=torch.long, device=q.device)
        return Contrast(F.cross_entropy(logits, target), _accuracy(logits, target))


def _check(a: Tensor, b: Tensor, temperature: float) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"expected two (N, D) tensors of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if len(a) == 0:
        raise ValueError("the batch is empty")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")


def _at_least_fp32(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()


@torch.no_grad()
def _accuracy(logits: Tensor, target: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == target).float().mean()
