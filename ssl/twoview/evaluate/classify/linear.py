"""The linear probe: multinomial logistic regression on frozen features, solved to the optimum.

The problem is convex, so the result is a property of the features: there is no learning rate, schedule or number of
epochs to choose. The only free parameter, the L2 strength, is chosen on a held-out part of the training set.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from twoview.evaluate.classify.labelled import checked_both, hold_out
from twoview.evaluate.classify.newton import LinearProbe, fit_linear, fit_path
from twoview.evaluate.classify.ridge import Ridge, fit_ridge
from twoview.evaluate.classify.score import ProbeResult, fingerprint, score

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ConvexResult", "LinearProbe", "ProbeResult", "fit_linear", "fit_path", "probe"]

log = logging.getLogger(__name__)

TOL = 1e-10  # nats to the optimum of the reported fit
SELECTION_TOL = 1e-4  # of the fits that only choose a strength: held-out accuracy moves by an image in 2,500
STRENGTHS = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)  # those of configs/probe.yaml
PATIENCE = 2  # the search ends after so many strengths in a row that are no better than the best


@dataclass(frozen=True)
class ConvexResult(ProbeResult):
    """Adds the certificate of the fit (see LinearProbe), the choice of its strength, and ridge regression beside it."""

    l2: float
    path: list[dict[str, float]]  # the choice of l2: held-out accuracy and certificate of each strength
    objective: float
    gradient_norm: float
    gap_bound: float
    distance_bound: float
    ridge: dict[str, Any]  # top1, interval and l2 of ridge regression, which has a closed form
    ridge_head: Ridge


def probe(
    train_features: Tensor | np.ndarray,
    train_labels: Tensor | np.ndarray | None,
    test_features: Tensor | np.ndarray,
    test_labels: Tensor | np.ndarray | None,
    classes: int | None = None,
    strengths: Sequence[float] = STRENGTHS,
    holdout: float = 0.1,
    seed: int = 0,
) -> ConvexResult:
    """The convex protocol.

    Fits the path of strengths on the training set without a stratified share `holdout`, chooses the strength that is
    best on that share (on a tie the stronger; the search stops after `PATIENCE` weaker ones without gain), refits on
    the whole training set, and evaluates on the test set once. Features (N, D) and (M, D), labels integers from 0;
    `classes`: how many there are, by default as many as the training labels name. UserError for features and labels
    that cannot be probed.
    """
    began = time.perf_counter()
    train_features, test_features = torch.as_tensor(train_features), torch.as_tensor(test_features)
    train_labels, test_labels = (None if y is None else torch.as_tensor(y) for y in (train_labels, test_labels))
    if classes is None:
        classes = 0 if train_labels is None or not len(train_labels) else int(train_labels.max()) + 1
    labels, answers = checked_both(train_features, train_labels, test_features, test_labels, classes)
    kept, held = hold_out(labels, classes, holdout, seed)

    best, best_accuracy, worse, path = None, -1.0, 0, []
    for head in fit_path(train_features[kept], labels[kept], classes, strengths, tol=SELECTION_TOL):
        right = head.logits(train_features[held]).argmax(1) == labels[held]
        accuracy = float(right.double().mean())
        log.debug("l2=%.3g: %.2f %% held out (%d Newton steps)", head.l2, 100 * accuracy, head.iterations)
        certificate = {key: getattr(head, key) for key in ("objective", "gradient_norm", "gap_bound", "iterations")}
        path.append({"l2": head.l2, "accuracy": accuracy, **certificate})
        if accuracy > best_accuracy:
            best, best_accuracy, worse = head, accuracy, 0
        elif (worse := worse + 1) == PATIENCE:
            break  # accuracy over strength has one maximum, and the weakest strengths take the longest
    assert best is not None  # fit_path refuses an empty list of strengths
    head = fit_linear(train_features, labels, classes, best.l2, start=best, tol=TOL)
    ridge = fit_ridge(train_features, labels, classes, strengths)
    second = score(ridge.logits(test_features), answers, classes)

    return ConvexResult(
        protocol="convex",
        protocol_text=(
            "multinomial logistic regression with an L2 penalty on standardised features of un-augmented images, "
            f"solved to within {TOL:g} nats of its optimum; the strength, of {len(strengths)} from the strongest down "
            f"until {PATIENCE} in a row are no better, is the best on {100 * holdout:g} % of the training set "
            f"(stratified, seed {seed}); fitted again on all of it"
        ),
        protocol_hash=fingerprint(
            {"protocol": "convex", "strengths": sorted(map(float, strengths)), "holdout": float(holdout), "seed": seed}
            | {"tol": TOL, "selection_tol": SELECTION_TOL, "patience": PATIENCE}
        ),
        **vars(score(head.logits(test_features), answers, classes)),
        l2=head.l2,
        path=path,
        objective=head.objective,
        gradient_norm=head.gradient_norm,
        gap_bound=head.gap_bound,
        distance_bound=head.distance_bound,
        ridge={"top1": second.top1, "interval": second.interval.limits, "l2": ridge.l2},
        ridge_head=ridge,
        train_size=len(labels),
        holdout_size=len(held),
        seed=seed,
        seconds=time.perf_counter() - began,
        head=head,
    )
