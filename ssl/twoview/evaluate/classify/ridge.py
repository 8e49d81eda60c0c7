"""Ridge regression on one-hot labels: a linear classifier in closed form.

With the features standardised, the minimum of mean_i ||W x_i + b - y_i||^2 / 2 + l2/2 ||W||^2 is one eigendecomposition
of their correlation matrix away, for all strengths together. So are the answers to every training sample by the model
that was fitted without it (Golub, Heath & Wahba, "Generalized cross-validation", Technometrics 1979), which choose the
strength: no sample has to be held out, and nothing is fitted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twoview.evaluate.classify.labelled import check_strengths, checked_train
from twoview.evaluate.classify.score import Head

BLOCK = 2**22  # numbers of a block, in float64


@dataclass(frozen=True)
class Ridge(Head):
    """The fitted head with its strength, and the accuracy of each strength on left-out samples: {l2: share}."""

    l2: float
    left_out: dict[float, float]


def fit_ridge(features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float]) -> Ridge:
    """The ridge classifier of features (N, D) whose strength is best in leave-one-out, the stronger on a tie.

    In float64 on the device of the features. A sample that is left out still takes part in the standardisation's
    scale, not in its mean.
    """
    labels = checked_train(features, labels, classes)
    check_strengths(strengths)
    n, dim = features.shape
    rows = max(1, BLOCK // max(dim, len(strengths) * classes))
    mean = features.mean(0, dtype=torch.float64)  # (D,)
    gram = torch.zeros(dim, dim, dtype=torch.float64, device=features.device)
    class_sum = torch.zeros(classes, dim, dtype=torch.float64, device=features.device)
    for raw, y in zip(features.split(rows), labels.split(rows), strict=True):
        x = raw.double() - mean
        gram.addmm_(x.T, x)
        class_sum.index_add_(0, y, x)
    constant = features.amax(0) == features.amin(0)
    std = torch.where(constant, 1.0, (gram.diagonal() / n).sqrt())  # (D,)
    spectrum, axes = torch.linalg.eigh(gram / (n * std[:, None] * std))  # (D,), (D, D) in columns
    share = torch.bincount(labels, minlength=classes).double() / n  # (classes,): the mean of the targets

    candidates = torch.tensor(sorted(map(float, strengths), reverse=True), dtype=torch.float64, device=features.device)
    damping = 1 / (spectrum.clamp_min(0)[:, None] + candidates)  # (D, L)
    rotated = (class_sum / (n * std)) @ axes  # (classes, D); centred features make centred targets
    weights = rotated[None] * damping.T[:, None]  # (L, classes, D), along the axes

    right = torch.zeros(len(candidates), dtype=torch.float64, device=features.device)
    for raw, y in zip(features.split(rows), labels.split(rows), strict=True):
        x = ((raw.double() - mean) / std) @ axes  # (rows, D)
        leverage = (1 + x.square() @ damping) / n  # (rows, L): how much a sample's answer follows its own target
        answer = (x @ weights.flatten(0, 1).T).view(len(x), -1, classes) + share  # (rows, L, classes)
        target = torch.nn.functional.one_hot(y, classes)[:, None]
        room = (1 - leverage).clamp_min(1e-12)[..., None]
        left_out = target - (target - answer) / room
        right += (left_out.argmax(2) == y[:, None]).sum(0)
    accuracy = right / n
    best = int(accuracy.argmax())  # of equal ones the first, which is the strongest
    return Ridge(
        weight=weights[best] @ axes.T,
        bias=share,
        mean=mean,
        std=std,
        l2=float(candidates[best]),
        left_out=dict(zip(candidates.tolist(), accuracy.tolist(), strict=True)),
    )
