"""The nearest neighbours of features, found once: for kNN under many settings, and to look at."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.evaluate.classify.knn import SIMILARITIES


class Neighbours(NamedTuple):
    """Of each query (M, k), the nearest first: cosine similarity and row in the bank."""

    similarity: Tensor
    rows: Tensor


def nearest(bank: Tensor, queries: Tensor, k: int) -> Neighbours:
    """The `k` rows of the bank (N, D) most alike to each query (M, D); all of them where the bank has fewer."""
    if k < 1 or len(bank) == 0:
        raise ValueError(f"need a k of at least 1 and a bank that is not empty, not {k} and {len(bank)} rows")
    unit, k = F.normalize(bank.float(), dim=1), min(k, len(bank))
    found = [
        (F.normalize(part.float(), dim=1) @ unit.T).topk(k, dim=1)
        for part in queries.split(max(1, SIMILARITIES // len(bank)))
    ]
    return Neighbours(torch.cat([f.values for f in found]), torch.cat([f.indices for f in found]))


def vote(neighbours: Neighbours, labels: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """What `knn.knn_predict` gives for these neighbours: scores float32 (M, classes), from the labels
    (N,) of the bank.
    """
    similarity, rows = neighbours.similarity[:, :k], neighbours.rows[:, :k]
    weight = (similarity / temperature).softmax(1)  # (M, k)
    return weight.new_zeros(len(weight), classes).scatter_add_(1, labels.to(rows.device)[rows], weight)
