"""Fine-tuning: the encoder and a linear classifier on h, trained together with all labels or a share of them.

The recipe is that of SimCLR's semi-supervised experiments (arXiv 2002.05709, appendix B.5): SGD with Nesterov momentum
0.9, learning rate 0.05 * batch / 256, no warm-up, no weight decay, random crops and flips alone; 60 epochs with 1 % of
the labels, 30 with 10 %. Ours are the half cosine to 0, the classifier that starts at zero, and 10 epochs beyond 10 %.
"""

import copy
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from rich import get_console
from rich.table import Table
from torch import Tensor, nn

from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.operation import BatchAugment
from twoview.cli.entry import plain
from twoview.data.demand import moved
from twoview.data.set import SampleSet, stratified_split
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.classify.score import fingerprint, score
from twoview.evaluate.features import extract, laid_out
from twoview.evaluate.subject import check, checkpoint_file, origin, subject
from twoview.optim.recipe import warmup_cosine
from twoview.parallel.precision import best_precision, half_of
from twoview.rng import Draw, permutation
from twoview.run.atomic import replacing
from twoview.run.checkpoint import EncoderOf
from twoview.run.provenance import machine
from twoview.watch.bar import tracked

log = logging.getLogger(__name__)

MOST_EPOCHS = 100_000  # every step of a run is listed beforehand

KEYS = {
    "ckpt": str | None,
    "encoder_of": EncoderOf,
    "label_fraction": float,
    "baseline": bool,
    "epochs": int | None,
    "batch_size": int,
    "lr_per_256": list[float],
    "holdout": float,
    "seed": int,
    "precision": Literal["auto", "float32"],
    "device": Literal["auto", "cpu", "cuda"],
    "out": str | None,
    "force": bool,
}
PROTOCOL = (
    "fine-tuning of encoder and linear classifier (SimCLR, B.5): SGD, Nesterov momentum 0.9, no weight decay, half "
    "cosine, random resized crop and flip; test images un-augmented, in float32, looked at once"
)


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained. `lr` is per 256 samples of a batch."""

    epochs: int
    batch_size: int
    lr: float
    seed: int
    precision: str = "32-true"  # as Lightning has it: 32-true, bf16-mixed or 16-mixed

    def batches(self, n: int) -> int:
        """Of an epoch, nearly equal in size, so that none is too small for batch statistics."""
        return math.ceil(n / self.batch_size)

    def peak(self, n: int) -> float:
        """The learning rate at the start."""
        return self.lr * n / self.batches(n) / 256


class DivergedError(UserError):
    """The loss became NaN or infinite."""


def finetune_command(composed: DictConfig) -> int:
    """`scripts/finetune.py`."""
    config = plain(composed)
    check(config, KEYS)
    _check_numbers(config)
    judged = subject(config)
    device = judged.device
    assert judged.train.labels is not None
    rows = labelled_rows(judged.train.labels, judged.train.classes, config["label_fraction"], config["seed"])
    train = judged.train.subset(rows)
    epochs = config["epochs"] or default_epochs(config["label_fraction"])
    precision = "32-true" if config["precision"] == "float32" else best_precision(device.type)
    counts = f"{len(train):,} of {len(judged.train):,} labels"
    log.info("fine-tuning on %s of %s, %d epochs, %s on %s", counts, train.name, epochs, precision, device)
    path = Path(config["out"]).expanduser() if config["out"] else _default(config, train)
    recipes = [Recipe(epochs, config["batch_size"], lr, config["seed"], precision) for lr in config["lr_per_256"]]
    started, results = time.monotonic(), {}
    with replacing(path) as part:
        starts = {"trained": judged.encoder} | ({"untrained": judged.untrained()} if config["baseline"] else {})
        for name, encoder in starts.items():
            results[name] = finetune(encoder, train, judged.test, recipes, config["holdout"], device, name)
        settings = {key: config[key] for key in ("label_fraction", "batch_size", "lr_per_256", "holdout", "seed")}
        settings |= {"epochs": epochs, "precision": precision, "protocol": PROTOCOL}
        report = {
            **settings,
            "protocol_hash": fingerprint(settings),
            **results["trained"],
            "baseline": results.get("untrained"),
            "data": train.name,
            "classes": list(train.classes),
            **origin(config, judged.encoder),
            "total_seconds": round(time.monotonic() - started, 2),
            "machine": machine(),
        }
        part.write_text(json.dumps(report, indent=2) + "\n")
    get_console().print(_table(results, judged.test, config["label_fraction"]))
    log.info("fine-tuned top-1 %.2f %%, written to %s", 100 * report["top1"], path)
    return 0


def finetune(
    encoder: Frozen,
    train: SampleSet,
    test: SampleSet,
    recipes: Sequence[Recipe],
    holdout: float,
    device: torch.device,
    what: str = "fine-tuning",
) -> dict[str, Any]:
    """Trains by the recipe that is best on a stratified share `holdout` of `train` (of a single one: at once), on all
    of `train`, and scores it on `test`: plain containers. The encoder that was given stays as it was.
    """
    assert train.labels is not None
    assert test.labels is not None
    tried, best = [], recipes[0]
    if len(recipes) > 1:
        kept, held = stratified_split(train.labels, holdout, recipes[0].seed)
        if len(held) == 0:
            raise UserError("every class has a single labelled image, so none can be held out: give one lr_per_256")
        part, unseen = train.subset(kept), train.subset(held)
        assert unseen.labels is not None
        for recipe in recipes:
            try:
                model, _ = fit(encoder, part, recipe, device, f"{what}, lr {recipe.lr:g}")
                hits = extract(model, unseen, device=device).argmax(1) == unseen.labels.cpu()
                accuracy = float(hits.double().mean())
            except DivergedError:
                accuracy = 0.0
            log.info("%s: lr_per_256 %g gives %.2f %% held out", what, recipe.lr, 100 * accuracy)
            tried.append({"lr_per_256": recipe.lr, "accuracy": accuracy})
        best = recipes[max(range(len(tried)), key=lambda i: tried[i]["accuracy"])]
    began = time.monotonic()
    model, losses = fit(encoder, train, best, device, what)
    seconds = time.monotonic() - began
    logits = extract(model, test, device=device)  # (M, classes)
    return {
        **score(logits, test.labels.cpu(), len(train.classes)).plain(),
        "lr": best.peak(len(train)),
        "path": tried,
        "losses": losses,
        "train_size": len(train),
        "holdout_size": len(train) - len(part) if tried else 0,
        "seconds": round(seconds, 2),
    }


def fit(
    encoder: Frozen, images: SampleSet, recipe: Recipe, device: torch.device, what: str = "fine-tuning"
) -> tuple[nn.Module, list[float]]:
    """A trained copy of the encoder with a classifier, samples (B, ...) -> logits (B, classes), in eval
    mode, and the mean loss of each epoch. All chance is a function of the seed.
    """
    assert images.labels is not None
    head = nn.Linear(encoder.dim, len(images.classes))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model = nn.Sequential(copy.deepcopy(encoder).requires_grad_(True), head).train()
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocess = model[0].preprocess
    ops: dict[str, BatchAugment] = {}
    if preprocess.kind == "image":  # other kinds of data are not augmented. The crops are not pre-training's again
        ops = {"fine-tuning/crop": RandomResizedCrop(), "fine-tuning/flip": HorizontalFlip(0.5)}
    images = images.to(device)

    n, batches = len(images), recipe.batches(len(images))
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.peak(n), momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(0, recipe.epochs * batches))
    half = half_of(recipe.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    losses: list[float] = []
    total = torch.zeros((), device=device)
    plan = [(epoch, batch) for epoch in range(recipe.epochs) for batch in range(batches)]
    for epoch, batch in tracked(plan, what):
        if batch == 0:
            order = permutation(n, recipe.seed, epoch, "fine-tuning").tensor_split(batches)
            total.zero_()
        index = order[batch].to(device)
        draw = Draw(recipe.seed, epoch, index, 0)
        x = preprocess.prepare(moved(images.fetch(index), device))
        for name, op in ops.items():
            x = op(x, draw.of(name))
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            logits = model(laid_out(x, device))  # (B, classes)
        loss = F.cross_entropy(logits.float(), images.labels[index])  # type: ignore[index]
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        total += loss.detach() * len(index) / n
        if batch == batches - 1:
            losses.append(float(total))
            if not math.isfinite(losses[-1]):
                raise DivergedError(
                    f"{what}: the loss is {losses[-1]} in epoch {epoch + 1}; "
                    f"use a smaller lr_per_256 than {recipe.lr:g}"
                )
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise DivergedError(f"{what}: the weights are not finite; use a smaller lr_per_256 than {recipe.lr:g}")
    return model.eval(), losses


def labelled_rows(labels: Tensor, classes: Sequence[str], fraction: float, seed: int) -> Tensor:
    """Which training images keep their label: `fraction` of each class, rounded, int64 ascending. With one seed, those
    of a smaller fraction are among those of a larger one.

    Raises UserError if a class is left without any.
    """
    labels = labels.cpu()
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if round(min(counts) * fraction) < 1:
        enough = f"at least {1 / min(counts):.2g}" if min(counts) else "a set that holds every class"
        raise UserError(
            f"label_fraction={fraction:g} leaves the class {classes[counts.index(min(counts))]} without an image, of "
            f"which there are {min(counts)}: use {enough}"
        )
    order = permutation(len(labels), seed, 0, "labels")
    chosen = [order[labels[order] == c][: round(count * fraction)] for c, count in enumerate(counts)]
    return torch.cat(chosen).sort().values


def default_epochs(fraction: float) -> int:
    """SimCLR's for 1 and 10 % of the labels, and 10 beyond."""
    return 60 if fraction <= 0.01 else 30 if fraction <= 0.1 else 10


def _check_numbers(config: dict[str, Any]) -> None:
    if not 0 < config["label_fraction"] <= 1:
        raise UserError(f"label_fraction must lie above 0 and at most be 1, not {config['label_fraction']}")
    if config["epochs"] is not None and config["epochs"] > MOST_EPOCHS:
        raise UserError(f"epochs={config['epochs']} are more than the {MOST_EPOCHS:,} that fine-tuning can take")
    if (config["epochs"] is not None and config["epochs"] < 1) or config["batch_size"] < 2:
        raise UserError(
            f"epochs must be at least 1 and batch_size at least 2, not {config['epochs']} and {config['batch_size']}"
        )
    if not config["lr_per_256"] or not all(0 < lr < math.inf for lr in config["lr_per_256"]):
        raise UserError(f"lr_per_256 must be one or more positive numbers, as in [0.05], not {config['lr_per_256']}")
    if not 0 < config["holdout"] < 1:
        raise UserError(f"holdout must lie between 0 and 1, not {config['holdout']}")
    if not 0 <= config["seed"] < 2**32:
        raise UserError(f"seed={config['seed']} must lie in [0, 2^32)")


def _table(results: dict[str, dict[str, Any]], test: SampleSet, fraction: float) -> Table:
    table = Table("%", title=f"fine-tuning on {test.name}, {fraction:.3g} of the labels", title_justify="left")
    names = [name for name in ("untrained", "trained") if name in results]
    for name in names:
        table.add_column(name, justify="right")
    shown = [results[name] for name in names]
    table.add_row("top-1", *(f"[bold]{100 * r['top1']:.2f}[/bold]" for r in shown))
    table.add_row("95 % interval", *(f"{100 * r['interval'][0]:.2f} ... {100 * r['interval'][1]:.2f}" for r in shown))
    table.add_row("chance", *(f"{100 * r['chance']:.2f}" for r in shown))
    table.add_section()
    if len(test.classes) <= 20:
        for c, word in enumerate(test.classes):
            values = (r["per_class"][c] for r in shown)
            table.add_row(word, *("-" if value is None else f"{100 * value:.1f}" for value in values))
    return table


def _default(config: dict[str, Any], train: SampleSet) -> Path:
    """Beside the checkpoint; what is not the usual is in the name."""
    data = f"_{train.name}" if config.get("data") else ""
    share = "" if config["label_fraction"] == 1 else f"_{config['label_fraction']:g}"
    return checkpoint_file(config["ckpt"]).with_name(f"finetune{data}{share}.json")
