"""Weighted k-nearest-neighbour classification of features (Wu et al., "Unsupervised feature learning via
non-parametric instance discrimination", CVPR 2018, section 3.4)."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

SIMILARITIES = 2**25  # entries of one block of the similarity matrix: 128 MiB of float32


def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    k: int,
    temperature: float,
    classes: int,
) -> Tensor:
    """Scores float32 (M, classes), rows summing to one, of test features (M, D) from a labelled bank (N, D).

    Each of the k nearest bank entries by cosine similarity s votes for its class with weight exp(s /
    temperature). The normalisation of the rows keeps every temperature within the range of float32 and
    changes no ranking. Runs in blocks on the device of the features. A k beyond the bank takes the whole
    bank.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if len(train_features) == 0 or train_labels.shape != train_features.shape[:1]:
        raise ValueError(
            f"need one label per bank entry, got labels {tuple(train_labels.shape)} "
            f"for a bank {tuple(train_features.shape)}"
        )
    if train_features.shape[1:] != test_features.shape[1:]:
        raise ValueError(
            f"sizes differ: bank {tuple(train_features.shape)}, test features {tuple(test_features.shape)}"
        )
    if k > len(train_features):
        log.warning("k=%d is more than the bank of %d holds: using all of it", k, len(train_features))
        k = len(train_features)
    bank = F.normalize(train_features.float(), dim=1)  # (N, D)
    labels = train_labels.to(bank.device)
    scores = []
    for queries in test_features.split(max(1, SIMILARITIES // len(bank))):
        similarity, index = (F.normalize(queries.float(), dim=1) @ bank.T).topk(k, dim=1)  # (B, k) both
        weight = (similarity / temperature).softmax(1)  # (B, k)
        scores.append(weight.new_zeros(len(queries), classes).scatter_add_(1, labels[index], weight))
    return torch.cat(scores) if scores else bank.new_zeros(0, classes)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int,
    temperature: float,
    classes: int,
) -> float:
    """Share in [0, 1] of the test features whose class scores highest; on a tie the lower class is taken."""
    scores = knn_predict(train_features, train_labels, test_features, k, temperature, classes)
    return (scores.argmax(1) == test_labels.to(scores.device)).float().mean().item()
