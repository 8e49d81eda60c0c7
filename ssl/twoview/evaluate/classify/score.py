"""A linear classifier, and its score on a test set with the uncertainty of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from twoview.evaluate.classify.calibration import ece
from twoview.stats.intervals import Interval, Share, bootstrap_share, wilson


@dataclass(frozen=True)
class Head:
    """A linear classifier of standardised features, (h - mean) / std. All tensors are float64."""

    weight: Tensor  # (classes, D)
    bias: Tensor  # (classes,)
    mean: Tensor  # (D,)
    std: Tensor  # (D,)

    def logits(self, features: Tensor) -> Tensor:
        """Features (N, D) as the encoder gives them -> logits float64 (N, classes)."""
        scale = self.weight / self.std  # (classes, D)
        return (features.to(scale.device).double() - self.mean) @ scale.T + self.bias


@dataclass(frozen=True)
class Score:
    """What a classifier reaches on a test set. Shares in [0, 1]; class c is entry c of the lists."""

    top1: float
    top5: float | None  # None for five classes or fewer
    interval: Share  # 95 %, Wilson, of top1
    bootstrap: Share  # 95 %, percentiles of top1 over resampled test images
    ece: float  # expected calibration error of the test probabilities, 15 bins
    per_class: list[float | None]  # None: no test image is of the class
    confusion: list[list[int]]  # [true class][predicted class], test images
    chance: float  # 1 / classes
    majority: float  # top-1 of always answering the test set's largest class
    test_size: int

    def plain(self) -> dict[str, Any]:
        """Plain containers for JSON, without weights; intervals are [low, high]."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            key: value.limits if isinstance(value, Interval) else value
            for key, value in values.items()
            if not isinstance(value, Head)
        }


@dataclass(frozen=True)
class ProbeResult(Score):
    """What a probe found, whatever its protocol."""

    protocol: str  # its name
    protocol_text: str  # what it does
    protocol_hash: str  # of all settings: numbers with different hashes do not belong in one table
    train_size: int
    holdout_size: int  # part of train_size; 0 where the protocol has nothing to choose
    seed: int
    seconds: float
    head: Head


def score(logits: Tensor, labels: Tensor, classes: int) -> Score:
    """From logits (M, classes) and labels (M,) of the test set."""
    labels = labels.to(logits.device)
    confusion = torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)
    hits, counts = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    top5 = None
    if classes > 5:
        top5 = float((logits.topk(5, dim=1).indices == labels[:, None]).any(1).double().mean())
    return Score(
        top1=sum(hits) / len(labels),
        top5=top5,
        interval=wilson(sum(hits), len(labels)),
        bootstrap=bootstrap_share(sum(hits), len(labels)),
        ece=ece(logits.softmax(1), labels),
        per_class=[r / n if n else None for r, n in zip(hits, counts, strict=True)],
        confusion=confusion.tolist(),
        chance=1 / classes,
        majority=max(counts) / len(labels),
        test_size=len(labels),
    )


def fingerprint(settings: Any) -> str:
    """12 hexadecimal digits that identify plain settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
