"""Weighted k-nearest-neighbour classification of features (Wu et al., "Unsupervised feature learning via
non-parametric instance discrimination", CVPR 2018, section 3.4)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

SIMILARITIES = 2**25  # entries of one block of the similarity matrix: 128 MiB of float32


class Neighbours(NamedTuple):
    """The nearest rows of a bank for each query, the nearest first."""

    similarity: Tensor  # cosine, float32 (M, k)
    rows: Tensor  # in the bank, int64 (M, k)


def nearest(bank: Tensor, queries: Tensor, k: int) -> Neighbours:
    """The `k` rows of the bank (N, D) with the highest cosine similarity to each query (M, D), the whole bank where it
    has fewer. Runs in blocks of queries on the device of the features.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if len(bank) == 0:
        raise ValueError("the bank is empty")
    if bank.shape[1:] != queries.shape[1:]:
        raise ValueError(f"sizes differ: bank {tuple(bank.shape)}, queries {tuple(queries.shape)}")
    k, unit = min(k, len(bank)), F.normalize(bank.float(), dim=1)  # (N, D)
    found = [
        (F.normalize(block.float(), dim=1) @ unit.T).topk(k, dim=1)  # (B, k)
        for block in queries.split(max(1, SIMILARITIES // len(bank)))
    ]
    if not found:
        return Neighbours(unit.new_zeros(0, k), torch.zeros(0, k, dtype=torch.long, device=unit.device))
    return Neighbours(torch.cat([f.values for f in found]), torch.cat([f.indices for f in found]))


def vote(neighbours: Neighbours, labels: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """Scores float32 (M, classes), rows summing to one, from the `k` nearest and the labels (N,) of the bank.

    Each neighbour votes for its class with weight exp(similarity / temperature). The normalisation of the rows keeps
    every temperature within the range of float32 and changes no ranking.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    similarity, rows = neighbours.similarity[:, :k], neighbours.rows[:, :k]
    weight = (similarity / temperature).softmax(1)  # (M, k)
    return weight.new_zeros(len(weight), classes).scatter_add_(1, labels.to(rows.device)[rows], weight)


def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    k: int,
    temperature: float,
    classes: int,
) -> Tensor:
    """Scores float32 (M, classes) of test features (M, D) from a labelled bank (N, D): `vote` of the `nearest`. A k
    beyond the bank takes the whole bank, with a warning.
    """
    if train_labels.shape != train_features.shape[:1]:
        raise ValueError(
            f"need one label per bank entry, got labels {tuple(train_labels.shape)} "
            f"for a bank {tuple(train_features.shape)}"
        )
    if k > len(train_features):
        log.warning("k=%d exceeds the %d entries of the bank: using all of them", k, len(train_features))
    return vote(nearest(train_features, test_features, k), train_labels, k, temperature, classes)


def knn_accuracy(
    train_features: Tensor | np.ndarray,
    train_labels: Tensor | np.ndarray,
    test_features: Tensor | np.ndarray,
    test_labels: Tensor | np.ndarray,
    k: int = 200,
    temperature: float = 0.1,
    classes: int | None = None,
) -> float:
    """Share in [0, 1] of the test features (M, D) whose class scores highest in the vote of training features (N, D);
    on a tie the lower class is taken. Labels are integers from 0; `classes`: how many there are, by default as many as
    the training labels name.
    """
    bank, labels, queries, answers = map(torch.as_tensor, (train_features, train_labels, test_features, test_labels))
    classes = int(labels.max()) + 1 if classes is None else classes
    scores = knn_predict(bank, labels.long(), queries, k, temperature, classes)
    return (scores.argmax(1) == answers.to(scores.device)).float().mean().item()
