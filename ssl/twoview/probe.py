"""Scores of a finished run's encoder: the linear probe and the kNN classifier, as commands.

Both rebuild the encoder from the checkpoint alone, extract features of un-augmented images once, in eval mode and
float32, and prove by a digest of every parameter and buffer that the encoder came out as it went in.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from rich import get_console
from rich.table import Table
from torch import Tensor

from twoview import schema
from twoview.artifact import check, checkpoint_file, device_of, origin, replacing
from twoview.checkpoint import build_encoder, instantiate_own, load_encoder
from twoview.command import plain
from twoview.data.images import ImageSet
from twoview.errors import UserError
from twoview.evaluate.features import ImageEncoder, digest, extract
from twoview.evaluate.knn import knn_accuracy
from twoview.evaluate.linear import probe
from twoview.evaluate.protocols import PUBLISHED, crops, follow
from twoview.evaluate.score import ProbeResult, fingerprint, wilson
from twoview.provenance import machine
from twoview.rng import permutation

log = logging.getLogger(__name__)

KEYS = {
    "ckpt": str | None,
    "encoder_of": Literal["query", "key"],
    "baseline": bool,
    "device": Literal["auto", "cpu", "cuda"],
    "out": str | None,
    "debug": bool,
    "force": bool,
    "protocol": Literal["convex", "simclr", "moco", "dinov2", "fast"],
    "epochs": int | None,
    "strengths": list[float],
    "holdout": float,
    "seed": int,
    "k": int,
    "temperature": float,
}


@dataclass(frozen=True)
class Subject:
    """An encoder to be judged and the labelled images to judge it on."""

    encoder: ImageEncoder
    train: ImageSet
    test: ImageSet
    device: torch.device

    def features(self, encoder: ImageEncoder | None = None) -> tuple[Tensor, Tensor]:
        """Features of both splits (N, D), float32 on the device; UserError if extracting them changed the encoder."""
        encoder = encoder or self.encoder
        with frozen(encoder):
            train, test = (
                extract(encoder, images, device=self.device).to(self.device) for images in (self.train, self.test)
            )
        return train, test

    def untrained(self) -> ImageEncoder:
        """An encoder of the same shape with the weights that the run started from."""
        config: dict[str, Any] = self.encoder.config  # type: ignore[assignment]
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        fresh = ImageEncoder(build_encoder(config), self.encoder.mean.tolist(), self.encoder.std.tolist())
        return fresh.requires_grad_(False).eval()


@contextmanager
def frozen(encoder: ImageEncoder) -> Iterator[dict[str, str]]:
    """Digests of the encoder `before` and, once its body has ended, `after`; UserError if they differ."""
    proof = {"before": digest(encoder)}
    yield proof
    proof["after"] = digest(encoder)
    if proof["after"] != proof["before"]:
        raise UserError("the encoder changed while it was judged: no number from it can be trusted")


def subject(config: dict[str, Any], labelled: bool = True) -> Subject:
    """What a command's `ckpt`, `data` (default: the data of the run) and `device` name. With `force`, images of
    another size than in training are taken.

    With `labelled=False` images need no labels, and where there is no test split a tenth of the training images, drawn
    from seed 0, takes its place.
    """
    check(config, KEYS)
    device = device_of(config["device"])
    encoder = load_encoder(config["ckpt"], config["encoder_of"])
    own: dict[str, Any] = encoder.config  # type: ignore[assignment]
    if config.get("data"):
        schema.check(config["data"], "data")
        load = schema.build(config["data"])
    else:
        load = instantiate_own(own["data"], "data")
    train, test = load(split="train"), load(split="test")
    if test is None:
        if labelled:
            raise UserError(f"{train.name} has no test split to score on; choose a labelled set by data=...")
        order = permutation(len(train), seed=0, epoch=0, stream="no test split")
        rest, some = order.tensor_split([len(train) - max(1, len(train) // 10)])
        train, test = train.subset(rest.sort().values), train.subset(some.sort().values)
    for images, split in ((train, "train"), (test, "test")):
        if labelled and images.labels is None:
            raise UserError(
                f"{images.name} has no labels in its {split} split, and a score needs them; "
                "choose a labelled set by data=..."
            )
    if train.shape[0] != len(encoder.mean):
        raise UserError(f"the encoder takes images of {len(encoder.mean)} channels, {train.name} has {train.shape[0]}")
    seen: Any = getattr(encoder, "image_shape", None)
    if seen and list(train.shape) != list(seen):
        text = f"the encoder was trained on images of {_size(seen)} pixels, {train.name} has {_size(train.shape)}"
        if not config.get("force"):
            raise UserError(f"{text}: its score would say little; resize them by data.size=..., or use force=true")
        log.warning("%s", text)
    return Subject(encoder, train, test, device)


def _size(shape: Any) -> str:
    return f"{shape[1]} x {shape[2]}"


def linear_command(composed: DictConfig) -> int:
    """`scripts/linear_probe.py`."""
    config = plain(composed)
    judged = subject(config)
    if config["protocol"] == "convex" and config["epochs"] is not None:
        raise UserError(
            f"epochs={config['epochs']}: protocol=convex goes to the optimum and has no epochs; "
            f"{', '.join(PUBLISHED)} have"
        )
    started = time.monotonic()
    result = _probe(judged, judged.encoder, config)
    baseline = _probe(judged, judged.untrained(), config) if config["baseline"] else None
    report = {
        **result,
        "baseline": baseline,
        **_provenance(config, judged, started),
    }
    get_console().print(_linear_table(result, baseline, judged))
    name = "linear_probe" if config["protocol"] == "convex" else f"linear_probe_{config['protocol']}"
    path = _write(report, config, name, judged)
    log.info("linear top-1 %.2f %%, written to %s", 100 * result["top1"], path)
    return 0


def _probe(judged: Subject, encoder: ImageEncoder, config: dict[str, Any]) -> dict[str, Any]:
    with frozen(encoder) as proof:
        train, test = judged.features(encoder)
        parts = (train, judged.train.labels, test, judged.test.labels, len(judged.train.classes))
        result: ProbeResult
        if config["protocol"] == "convex":
            result = probe(*parts, config["strengths"], config["holdout"], config["seed"])
        else:
            recipe = PUBLISHED[config["protocol"]]
            take = crops(encoder.to(judged.device), judged.train, config["seed"]) if recipe.augment else None
            result = follow(recipe, *parts, config["holdout"], config["seed"], epochs=config["epochs"], take=take)
    return result.to_json() | {"frozen": proof}


def knn_command(composed: DictConfig) -> int:
    """`scripts/knn.py`."""
    config = plain(composed)
    judged = subject(config)
    if config["k"] < 1 or not config["temperature"] > 0:
        raise UserError(f"k must be at least 1 and temperature positive, not {config['k']} and {config['temperature']}")
    assert judged.train.labels is not None
    assert judged.test.labels is not None
    started = time.monotonic()
    scores = {}
    for name, encoder in [("trained", judged.encoder)] + (
        [("untrained", judged.untrained())] if config["baseline"] else []
    ):
        bank, queries = judged.features(encoder)
        scores[name] = knn_accuracy(
            bank,
            judged.train.labels.to(bank.device),
            queries,
            judged.test.labels.to(bank.device),
            k=config["k"],
            temperature=config["temperature"],
            classes=len(judged.train.classes),
        )
    n = len(judged.test)
    low, high = wilson(round(scores["trained"] * n), n)
    protocol = (
        f"kNN on h: k={config['k']}, cosine, weights exp(similarity/{config['temperature']}), "
        "bank of all training images without augmentation"
    )
    report = {
        "protocol": protocol,
        "protocol_hash": fingerprint(protocol),
        "top1": scores["trained"],
        "interval": [low, high],
        "baseline": {"top1": scores["untrained"]} if config["baseline"] else None,
        "train_size": len(judged.train),
        "test_size": n,
        **_provenance(config, judged, started),
    }
    path = _write(report, config, "knn", judged)
    untrained = f" (untrained {scores['untrained']:.2%})" if config["baseline"] else ""
    log.info(
        "kNN top-1 %.2f %% [%.2f, %.2f]%s, written to %s",
        100 * scores["trained"],
        100 * low,
        100 * high,
        untrained,
        path,
    )
    return 0


def _linear_table(result: dict[str, Any], baseline: dict[str, Any] | None, judged: Subject) -> Table:
    table = Table(title=f"linear probe ({result['protocol']}) on {judged.train.name}", title_justify="left")
    table.add_column("%")
    columns = [("untrained", baseline), ("trained", result)] if baseline else [("trained", result)]
    for name, _ in columns:
        table.add_column(name, justify="right")

    def row(label: str, of: Any) -> None:
        table.add_row(label, *[of(values) for _, values in columns])

    row("top-1", lambda r: f"[bold]{100 * r['top1']:.2f}[/bold]")
    row("95 % interval", lambda r: f"{100 * r['interval'][0]:.2f} ... {100 * r['interval'][1]:.2f}")
    if result["top5"] is not None:
        row("top-5", lambda r: f"{100 * r['top5']:.2f}")
    if "ridge" in result:
        row("top-1, ridge", lambda r: f"{100 * r['ridge']['top1']:.2f}")
    row("chance", lambda r: f"{100 * r['chance']:.2f}")
    table.add_section()
    if len(judged.train.classes) <= 20:
        for c, name in enumerate(judged.train.classes):
            row(name, lambda r, c=c: "-" if r["per_class"][c] is None else f"{100 * r['per_class'][c]:.1f}")
    return table


def _provenance(config: dict[str, Any], judged: Subject, started: float) -> dict[str, Any]:
    return {
        "data": judged.train.name,
        "classes": list(judged.train.classes),
        **origin(config, judged.encoder),
        "feature_layer": f"h: the encoder's output of {judged.encoder.dim} dimensions, before the projection head",
        "image_shape": list(judged.train.shape),
        "total_seconds": round(time.monotonic() - started, 2),
        "machine": machine(),
    }


def _write(report: dict[str, Any], config: dict[str, Any], name: str, judged: Subject) -> Path:
    """Beside the checkpoint, with the data set in the name where it is not the run's own."""
    suffix = f"_{judged.train.name}" if config.get("data") else ""
    path = Path(config["out"]) if config["out"] else checkpoint_file(config["ckpt"]).with_name(f"{name}{suffix}.json")
    with replacing(path) as part:
        part.write_text(json.dumps(report, indent=2) + "\n")
    return path
