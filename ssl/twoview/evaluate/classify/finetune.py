"""Fine-tuning: the encoder and a linear classifier on h, trained together with all labels or a share of them.

The recipe is that of SimCLR's semi-supervised experiments (arXiv 2002.05709, appendix B.5): SGD with Nesterov momentum
0.9, learning rate 0.05 * batch / 256, no warm-up, no weight decay, random crops and flips alone; 60 epochs with 1 % of
the labels, 30 with 10 %. Ours are the half cosine to 0, the classifier that starts at zero, and 10 epochs beyond 10 %.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.operation import BatchAugment
from twoview.data.demand import moved
from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.classify.descent import descend
from twoview.evaluate.classify.labelled import hold_out
from twoview.evaluate.classify.score import score
from twoview.evaluate.features import extract, laid_out
from twoview.optim.recipe import warmup_cosine
from twoview.parallel.precision import half_of
from twoview.rng import Draw, permutation

log = logging.getLogger(__name__)

PROTOCOL = (
    "fine-tuning of encoder and linear classifier (SimCLR, B.5): SGD, Nesterov momentum 0.9, no weight decay, half "
    "cosine, random resized crop and flip; test images un-augmented, in float32, looked at once"
)


@dataclass(frozen=True)
class Tuning:
    """How encoder and classifier are trained. `lr` is per 256 samples of a batch."""

    epochs: int
    batch_size: int
    lr: float
    seed: int
    precision: str = "32-true"  # as Lightning has it: 32-true, bf16-mixed or 16-mixed

    def batches(self, n: int) -> int:
        """The number of batches of an epoch, nearly equal in size: none is too small for batch statistics."""
        return math.ceil(n / self.batch_size)

    def peak(self, n: int) -> float:
        """The learning rate at the start."""
        return self.lr * n / self.batches(n) / 256


class DivergedError(UserError):
    """The loss became NaN or infinite."""


def finetune(
    encoder: Frozen,
    train: SampleSet,
    test: SampleSet,
    tunings: Sequence[Tuning],
    holdout: float,
    device: torch.device,
    what: str = "fine-tuning",
) -> dict[str, Any]:
    """Trains on all of `train` with the tuning that is best on a stratified share `holdout` of it (a single one is
    taken without asking), and scores on `test`. Plain containers; the given encoder stays as it was.
    """
    assert train.labels is not None
    assert test.labels is not None
    path, held, best = [], train.labels[:0], tunings[0]
    if len(tunings) > 1:
        kept, held = hold_out(train.labels, len(train.classes), holdout, tunings[0].seed)
        part, unseen = train.subset(kept), train.subset(held)
        assert unseen.labels is not None
        for tuning in tunings:
            try:
                model, _ = fit(encoder, part, tuning, device, f"{what}, lr {tuning.lr:g}")
                hits = extract(model, unseen, device=device).argmax(1) == unseen.labels.cpu()
                accuracy = float(hits.double().mean())
            except DivergedError:
                accuracy = 0.0
            log.info("%s: lr_per_256 %g gives %.2f %% held out", what, tuning.lr, 100 * accuracy)
            path.append({"lr_per_256": tuning.lr, "accuracy": accuracy})
        best = tunings[max(range(len(path)), key=lambda i: path[i]["accuracy"])]
    began = time.monotonic()
    model, losses = fit(encoder, train, best, device, what)
    seconds = time.monotonic() - began
    logits = extract(model, test, device=device)  # (M, classes)
    return {
        **score(logits, test.labels.cpu(), len(train.classes)).plain(),
        "lr": best.peak(len(train)),
        "path": path,
        "losses": losses,
        "train_size": len(train),
        "holdout_size": len(held),
        "seconds": round(seconds, 2),
    }


def fit(
    encoder: Frozen, train: SampleSet, tuning: Tuning, device: torch.device, what: str = "fine-tuning"
) -> tuple[nn.Module, list[float]]:
    """A trained copy of the encoder with a classifier, samples (B, ...) -> logits (B, classes), in eval mode, and the
    mean loss of each epoch. The seed alone decides all random numbers.
    """
    assert train.labels is not None
    head = nn.Linear(encoder.dim, len(train.classes))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model = nn.Sequential(copy.deepcopy(encoder).requires_grad_(True), head).train()
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocess = model[0].preprocess
    ops: dict[str, BatchAugment] = {}
    if preprocess.kind == "image":  # other kinds of data are not augmented
        # Streams of their own: these are not the crops of pre-training again.
        ops = {"fine-tuning/crop": RandomResizedCrop(), "fine-tuning/flip": HorizontalFlip(0.5)}
    train = train.to(device)
    n, count = len(train), tuning.batches(len(train))
    half = half_of(tuning.precision)

    def loss(index: Tensor, epoch: int) -> Tensor:
        draw = Draw(tuning.seed, epoch, index, 0)
        x = preprocess.prepare(moved(train.fetch(index), device))
        for name, op in ops.items():
            x = op(x, draw.of(name))
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            logits = model(laid_out(x, device))  # (B, classes)
        return F.cross_entropy(logits.float(), train.labels[index])[None]  # type: ignore[index]

    losses = descend(
        loss,
        torch.optim.SGD(model.parameters(), lr=tuning.peak(n), momentum=0.9, nesterov=True),
        warmup_cosine(0, tuning.epochs * count),
        lambda epoch: permutation(n, tuning.seed, epoch, "fine-tuning").to(device).tensor_split(count),
        tuning.epochs * count,
        what,
        torch.amp.GradScaler(device.type, enabled=half is torch.float16),
    )
    if not math.isfinite(losses[-1]):
        raise DivergedError(
            f"{what}: the loss is {losses[-1]} in epoch {len(losses)}; use a smaller lr_per_256 than {tuning.lr:g}"
        )
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise DivergedError(f"{what}: the weights are not finite; use a smaller lr_per_256 than {tuning.lr:g}")
    return model.eval(), losses


def default_epochs(fraction: float) -> int:
    """SimCLR's for 1 and 10 % of the labels, and 10 beyond."""
    return 60 if fraction <= 0.01 else 30 if fraction <= 0.1 else 10
