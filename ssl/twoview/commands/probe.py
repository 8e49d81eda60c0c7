"""Scores of a finished run's encoder: the linear probe and the kNN classifier, as commands.

Both rebuild the encoder from the checkpoint alone, extract features of un-augmented images once, in eval mode and
float32, and prove by a digest of every parameter and buffer that the encoder came out as it went in.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich import get_console
from rich.table import Table

from twoview.cli.entry import plain
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.classify.knn import knn_accuracy
from twoview.evaluate.classify.linear import probe
from twoview.evaluate.classify.protocols import PUBLISHED, crops, follow
from twoview.evaluate.classify.score import ProbeResult, fingerprint
from twoview.evaluate.subject import Subject, checkpoint_file, frozen, origin, subject
from twoview.run.atomic import replacing
from twoview.run.provenance import machine
from twoview.stats.intervals import wilson

log = logging.getLogger(__name__)


def probe_command(composed: DictConfig) -> int:
    """`twoview probe`."""
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


def _probe(judged: Subject, encoder: Frozen, config: dict[str, Any]) -> dict[str, Any]:
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
    return result.plain() | {"frozen": proof}


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
    interval = wilson(round(scores["trained"] * n), n)
    protocol = (
        f"kNN on h: k={config['k']}, cosine, weights exp(similarity/{config['temperature']}), "
        "bank of all training images without augmentation"
    )
    report = {
        "protocol": protocol,
        "protocol_hash": fingerprint(protocol),
        "top1": scores["trained"],
        "interval": interval.limits,
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
        100 * interval.low,
        100 * interval.high,
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
        "shape": judged.train.shape,
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
