"""Published protocols of linear evaluation, for comparison with the tables of papers.

Each trains a linear classifier on a frozen encoder by gradient steps, with the settings of its source. Their results
depend on these settings; `twoview.evaluate.classify.linear.probe` solves for the optimum.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.views import TwoViews
from twoview.data.demand import moved
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.evaluate.classify.descent import descend
from twoview.evaluate.classify.labelled import checked_both, hold_out
from twoview.evaluate.classify.score import Head, ProbeResult, fingerprint, score
from twoview.rng import permutation

Take = Callable[[Tensor, int], Tensor]  # sample numbers (B,) and the epoch -> features (B, D)


@dataclass(frozen=True)
class Protocol:
    """How a linear classifier is trained. SGD has momentum 0.9; Adam has torch's defaults."""

    name: str
    source: str
    optimizer: Literal["sgd", "nesterov", "adam"]
    rates: tuple[float, ...]  # learning rates; several are trained side by side and chosen from on held-out samples
    scaled: bool  # the rate is multiplied by batch / 256
    schedule: Literal["cosine", "steps", "exponential"]  # per step; the latter two per epoch
    batch: int
    epochs: int | None = None  # or
    steps: int | None = None
    weight_decay: float = 0.0
    start: float | None = 0.0  # standard deviation of the first weights; None: torch's default of nn.Linear
    augment: bool = False  # training images are cropped and flipped anew in each epoch

    def rate(self, rate: float) -> float:
        return rate * self.batch / 256 if self.scaled else rate

    def decay(self, t: float) -> float:
        """Factor of the learning rate after the share `t` of the training."""
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * t)) / 2
        if self.schedule == "steps":
            return 0.1 ** ((t >= 0.6) + (t >= 0.8))
        return 1e-4**t

    def described(self, epochs: float, lr: float) -> str:
        rules = {
            "cosine": "cosine to 0",
            "steps": "divided by 10 after 60 and 80 % of the epochs",
            "exponential": "falling exponentially to 1/10,000",
        }
        name = {"sgd": "SGD with momentum 0.9", "nesterov": "SGD with Nesterov momentum 0.9", "adam": "Adam"}
        choice = f", the best of {len(self.rates)} on held-out training images," if len(self.rates) > 1 else ""
        first = {None: "as nn.Linear does", 0.0: "at zero"}.get(self.start, f"from N(0, {self.start}^2)")
        images = "training images cropped and flipped anew in each epoch" if self.augment else "un-augmented images"
        return (
            f"linear classifier on features of {images}: {name[self.optimizer]}, "
            f"lr {lr:g}{choice} {rules[self.schedule]}, weight decay {self.weight_decay:g}, "
            f"{epochs:g} epochs of batches of {self.batch}, starting {first}; "
            f"source: {self.source}"
        )


SIMCLR = Protocol(
    "simclr",
    "SimCLR, arXiv 2002.05709, appendix B.6, with the official repository's settings for CIFAR-10",
    "nesterov", rates=(0.1,), scaled=True, schedule="cosine", batch=512, epochs=100, augment=True,
)  # fmt: skip
MOCO = Protocol(
    "moco",
    "MoCo, arXiv 1911.05722, section 4.1, and main_lincls.py of its repository",
    "sgd", rates=(30.0,), scaled=False, schedule="steps", batch=256, epochs=100, start=0.01, augment=True,
)  # fmt: skip
DINOV2 = Protocol(
    "dinov2",
    "DINOv2, arXiv 2304.07193, and eval/linear.py of its repository; here on stored features of the encoder's output, "
    "chosen on a part of the training set and trained again on all of it",
    "sgd", rates=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1), scaled=True,
    schedule="cosine", batch=128, steps=12_500, start=0.01,
)  # fmt: skip
FAST = Protocol(
    "fast",
    "W-MSE, arXiv 2007.06346, appendix, and its repository",
    "adam", rates=(1e-2,), scaled=False, schedule="exponential", batch=1000, epochs=500, weight_decay=5e-6, start=None,
)  # fmt: skip
PUBLISHED = {protocol.name: protocol for protocol in (SIMCLR, MOCO, DINOV2, FAST)}


@dataclass(frozen=True)
class TrainedResult(ProbeResult):
    """With what the training was."""

    epochs: float
    lr: float  # at the start, scaled
    path: list[dict[str, float]]  # the choice of the rate: held-out accuracy of each; empty where it is given
    loss: float  # mean cross-entropy of the last epoch, in nats


def crops(encoder: nn.Module, images: SampleSet, seed: int) -> Take:
    """Features of training images that are cropped and flipped anew in each epoch, and nothing else: Inception's crop
    of 8 to 100 % of the area. The encoder takes float images in [0, 1] (`Frozen`); it runs in eval mode where it is.
    UserError for data of another kind.
    """
    if images.preprocess.kind != "image":
        raise UserError(
            f"this protocol crops and flips images, and {images.name} holds data of another kind: use protocol=convex"
        )
    device = next(encoder.parameters()).device
    ops = {"probe/crop": RandomResizedCrop(), "probe/flip": HorizontalFlip()}  # not the crops of pre-training again
    views = TwoViews(ops, images.preprocess, seed=seed, views=[{"count": 1}]).to(device)
    encoder.eval()

    @torch.no_grad()
    def take(index: Tensor, epoch: int) -> Tensor:
        index = index.to(device)
        with torch.autocast(device.type, enabled=False):
            seen = moved(images.fetch(index), device)
            return encoder(views.prepared(seen, index, epoch)[0])

    return take


def train_probe(
    protocol: Protocol,
    train_features: Tensor,
    train_labels: Tensor | None,
    test_features: Tensor,
    test_labels: Tensor | None,
    classes: int,
    holdout: float,
    seed: int,
    *,
    epochs: int | None = None,
    take: Take | None = None,
) -> TrainedResult:
    """A published protocol on features (N, D) of un-augmented images, or on those that `take` gives for the same
    images.

    Protocols with `augment` need `take`, see `crops`. `epochs` replaces those of the protocol. The test set is used
    once, at the end. UserError as in `twoview.evaluate.classify.linear.probe`, and for a training that diverges.
    """
    began = time.perf_counter()
    labels, answers = checked_both(train_features, train_labels, test_features, test_labels, classes)
    if take is None:
        if protocol.augment:
            raise ValueError(f"protocol {protocol.name} trains on augmented images: take=crops(...)")
        features = train_features.float()
        take = lambda index, epoch: features[index]  # noqa: E731
    everything = torch.arange(len(labels), device=labels.device)
    if epochs is not None and epochs < 1:
        raise UserError(f"epochs={epochs}: a classifier needs at least one epoch")

    rates, path, held = protocol.rates, [], everything[:0]
    if len(rates) > 1:
        kept, held = hold_out(labels, classes, holdout, seed)
        heads, _, _ = _train(protocol, rates, take, kept, labels, classes, seed, epochs)
        for rate, head in zip(rates, heads, strict=True):
            right = head.logits(train_features[held]).argmax(1) == labels[held]
            finite = bool(head.weight.isfinite().all())
            path.append({"lr": protocol.rate(rate), "accuracy": float(right.double().mean()) if finite else 0.0})
        accuracies = [entry["accuracy"] for entry in path]
        rates = (rates[accuracies.index(max(accuracies))],)  # on a tie the smallest
    (head,), loss, done = _train(protocol, rates, take, everything, labels, classes, seed, epochs)
    lr = protocol.rate(rates[0])
    if not (math.isfinite(loss) and bool(head.weight.isfinite().all())):
        raise UserError(
            f"protocol={protocol.name} diverges on these features with its lr of {lr:g}; protocol=convex has none"
        )
    chosen_by = {"holdout": float(holdout)} if len(held) else {}
    return TrainedResult(
        protocol=protocol.name,
        protocol_text=protocol.described(done, lr),
        protocol_hash=fingerprint(asdict(protocol) | {"epochs": done, "seed": seed} | chosen_by),
        **vars(score(head.logits(test_features), answers, classes)),
        train_size=len(labels),
        holdout_size=len(held),
        seed=seed,
        seconds=time.perf_counter() - began,
        head=head,
        epochs=done,
        lr=lr,
        path=path,
        loss=loss,
    )


def _train(
    protocol: Protocol,
    rates: tuple[float, ...],
    take: Take,
    samples: Tensor,
    labels: Tensor,
    classes: int,
    seed: int,
    epochs: int | None,
) -> tuple[list[Head], float, float]:
    """One head per rate, all of them in one matrix product; the mean loss of the last epoch; the number of epochs."""
    per_epoch = math.ceil(len(samples) / protocol.batch)
    steps = (epochs or protocol.epochs or 0) * per_epoch or protocol.steps
    assert steps is not None
    weight, bias = _start(protocol, len(rates), take(samples[:1], 0), classes, seed)
    groups = [{"params": [w, b], "lr": protocol.rate(r)} for w, b, r in zip(weight, bias, rates, strict=True)]
    optimizer: torch.optim.Optimizer
    if protocol.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, weight_decay=protocol.weight_decay)
    else:
        nesterov = protocol.optimizer == "nesterov"
        optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=nesterov, weight_decay=protocol.weight_decay)
    by = 1 if protocol.schedule == "cosine" else per_epoch  # steps at which the rate changes

    def losses(index: Tensor, epoch: int) -> Tensor:
        logits = F.linear(take(index, epoch), torch.cat(weight), torch.cat(bias))  # (B, rates * classes)
        logits = logits.view(len(index), len(rates), classes).transpose(1, 2)  # (B, classes, rates)
        target = labels[index][:, None].expand(-1, len(rates))  # (B, rates)
        return F.cross_entropy(logits, target, reduction="none").mean(0)  # (rates,)

    means = descend(
        losses,
        optimizer,
        lambda step: protocol.decay(step // by * by / steps),
        lambda epoch: samples[permutation(len(samples), seed, epoch, "probe").to(samples.device)].split(protocol.batch),
        steps,
        protocol.name,
    )
    return [_head(w, b) for w, b in zip(weight, bias, strict=True)], means[-1], steps / per_epoch


def _start(protocol: Protocol, count: int, like: Tensor, classes: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """First weights (classes, D) and biases of `count` heads, on the device of the features `like` (B, D)."""
    generator, dim = torch.Generator().manual_seed(seed), like.shape[1]
    bound = 1 / math.sqrt(dim)
    weight, bias = [], []
    for _ in range(count):
        w, b = torch.zeros(classes, dim), torch.zeros(classes)
        if protocol.start is None:
            w.uniform_(-bound, bound, generator=generator)
            b.uniform_(-bound, bound, generator=generator)
        elif protocol.start:
            w.normal_(0, protocol.start, generator=generator)
        weight.append(w.to(like.device).requires_grad_())
        bias.append(b.to(like.device).requires_grad_())
    return weight, bias


def _head(weight: Tensor, bias: Tensor) -> Head:
    """A head on features that are not standardised."""
    w, b = weight.detach().double(), bias.detach().double()
    return Head(w, b, torch.zeros_like(w[0]), torch.ones_like(w[0]))
