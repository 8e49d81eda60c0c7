"""Labelled features: what is wrong with those that no classifier can be fitted to, and which samples keep a label."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from twoview.data.set import stratified_split
from twoview.errors import UserError
from twoview.rng import permutation

log = logging.getLogger(__name__)


def checked(features: Tensor, labels: Tensor | None, classes: int, part: str) -> Tensor:
    """The labels as int64 on the device of the features (N, D); a UserError says what is wrong with this part."""
    if labels is None:
        raise UserError(f"A probe needs labels, and the {part} set has none: choose a data set with labels.")
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise UserError(
            f"The {part} set has features of shape {tuple(features.shape)} for {len(labels)} labels: "
            "a probe needs one row of features per label."
        )
    if len(labels) == 0:
        raise UserError(f"The {part} set is empty: a probe needs images in it.")
    if not bool(features.isfinite().all()):
        raise UserError(f"The features of the {part} set hold NaN or infinite values: use an earlier checkpoint.")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UserError(
            f"The labels of the {part} set run from {int(labels.min())} to {int(labels.max())}: "
            f"with {classes} classes they must lie in 0 ... {classes - 1}."
        )
    return labels.long().to(features.device)


def checked_train(features: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """`checked` labels of a training set, in which every class must occur."""
    if classes < 2:
        raise UserError(f"A probe tells classes apart and this set has {classes}: choose one with two or more.")
    labels = checked(features, labels, classes, "training")
    if len(labels) < classes:
        raise UserError(f"{len(labels)} training images are fewer than the {classes} classes: use more of them.")
    missing = absent(labels, classes)
    if missing:
        raise UserError(f"No training image is of class {missing}: use a part of the set that holds every class.")
    return labels


def checked_both(
    train_features: Tensor, train_labels: Tensor | None, test_features: Tensor, test_labels: Tensor | None, classes: int
) -> tuple[Tensor, Tensor]:
    """`checked` labels of both splits. Warns where the encoder has collapsed or the test set is small."""
    labels = checked_train(train_features, train_labels, classes)
    answers = checked(test_features, test_labels, classes, "test")
    if train_features.shape[1] != test_features.shape[1]:
        raise UserError(
            f"Training features have {train_features.shape[1]} dimensions, test features "
            f"{test_features.shape[1]}: extract both with the same encoder."
        )
    if bool((train_features.amax(0) == train_features.amin(0)).all()):
        log.warning("the encoder has collapsed: all training images have the same features, which tell nothing apart")
    if len(answers) < classes:
        log.warning(
            "%d test images for %d classes: those of class %s have no accuracy, and the interval is wide",
            len(answers), classes, absent(answers, classes),
        )  # fmt: skip
    return labels, answers


def check_strengths(strengths: Sequence[float]) -> None:
    if not strengths or not all(0 < l2 < math.inf for l2 in strengths):
        raise UserError(f"L2 strengths must be one or more positive numbers, got {list(strengths)}.")


def hold_out(labels: Tensor, classes: int, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sample numbers to fit on and to choose by: a stratified share `holdout` of every class, from the seed."""
    if not 0 < holdout < 1:
        raise UserError(f"holdout is a share of the training set, which must lie between 0 and 1, not {holdout}")
    kept, held = (index.to(labels.device) for index in stratified_split(labels, holdout, seed))
    if len(held) == 0:
        raise UserError(
            "Every class has a single training image, so none can be held out: use more images, or give a single value "
            "where one of several is chosen."
        )
    missing = absent(labels[held], classes)
    if missing:
        log.warning("no image of class %s can be held out: the choice is made without these classes", missing)
    return kept, held


def labelled_rows(labels: Tensor, classes: Sequence[str], fraction: float, seed: int) -> Tensor:
    """Which samples keep their label: `fraction` of each class, rounded, int64 ascending. With the same seed, a smaller
    fraction is a subset of a larger one.

    UserError if a class is left without any.
    """
    labels = labels.cpu()
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if round(min(counts) * fraction) < 1:
        enough = f"at least {1 / min(counts):.2g}" if min(counts) else "a set that holds every class"
        raise UserError(
            f"{fraction:g} of the labels leaves the class {classes[counts.index(min(counts))]} without an image, of "
            f"which there are {min(counts)}: use {enough}"
        )
    order = permutation(len(labels), seed, 0, "labels")
    chosen = [order[labels[order] == c][: round(count * fraction)] for c, count in enumerate(counts)]
    return torch.cat(chosen).sort().values


def absent(labels: Tensor, classes: int) -> str:
    """The classes that do not occur, the first ten of them; empty where all occur."""
    missing = (torch.bincount(labels, minlength=classes) == 0).nonzero().flatten().tolist()
    return ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
