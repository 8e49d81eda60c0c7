"""What a linear classifier scores on a test set, with its uncertainty."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from twoview.stats.intervals import bootstrap, wilson


@dataclass(frozen=True)
class Head:
    """A linear classifier of features standardised by `mean` and `std`. All tensors float64."""

    weight: Tensor  # (classes, D)
    bias: Tensor  # (classes,)
    mean: Tensor  # (D,)
    std: Tensor  # (D,)

    def logits(self, features: Tensor) -> Tensor:
        """Features (N, D) as the encoder gives them to logits float64 (N, classes)."""
        scale = self.weight / self.std  # (classes, D)
        return (features.to(scale.device).double() - self.mean) @ scale.T + self.bias


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found, whatever its protocol. Shares in [0, 1]; class c is entry c of the lists."""

    protocol: str  # its name
    protocol_text: str  # what it does, in words
    protocol_hash: str  # of every setting: numbers with different hashes do not belong in one table
    top1: float
    top5: float | None  # None for five classes or fewer
    interval: tuple[float, float]  # 95 %, Wilson, of top1
    bootstrap: tuple[float, float]  # 95 %, percentiles of top1 over resampled test images
    ece: float  # expected calibration error of the test probabilities, 15 bins
    per_class: list[float | None]  # None: no test image is of the class
    confusion: list[list[int]]  # [true class][predicted class], test images
    chance: float  # 1 / classes
    majority: float  # top-1 of always answering the test set's largest class
    train_size: int
    holdout_size: int  # part of train_size; 0 where the protocol has nothing to choose
    test_size: int
    seed: int
    seconds: float
    head: Head

    def to_json(self) -> dict[str, Any]:
        """Plain containers, without the weights."""
        result = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {key: value for key, value in result.items() if not isinstance(value, Head)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def score(logits: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """The fields of a ProbeResult that come from the test set: logits (M, classes), labels (M,)."""
    labels = labels.to(logits.device)
    confusion = torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)
    hits, counts = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    top5 = None
    if classes > 5:
        top5 = float((logits.topk(5, dim=1).indices == labels[:, None]).any(1).double().mean())
    return {
        "top1": sum(hits) / len(labels),
        "top5": top5,
        "interval": wilson(sum(hits), len(labels)),
        "bootstrap": bootstrap(sum(hits), len(labels)),
        "ece": ece(logits.softmax(1), labels),
        "per_class": [r / n if n else None for r, n in zip(hits, counts, strict=True)],
        "confusion": confusion.tolist(),
        "chance": 1 / classes,
        "majority": max(counts) / len(labels),
        "test_size": len(labels),
    }


def ece(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599, eq. 5), in [0, 1].

    Samples (M, classes) fall into `bins` of equal width by the probability of their predicted class; the mean gap
    between it and the accuracy of the bin is weighted by the share of samples.
    """
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == labels.to(predicted.device)).double()
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)  # bins are open below, closed above
    gap = torch.zeros(bins, dtype=torch.float64, device=index.device).index_add_(0, index, right - confidence)
    return float(gap.abs().sum() / len(right))


def fingerprint(settings: Any) -> str:
    """12 hexadecimal digits that stand for plain settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
