"""Trains a run's encoder on with labels, and scores it."""

import json
import logging
import math
import time
from typing import Any, Literal

from omegaconf import DictConfig
from rich import get_console

from twoview.cli.entry import plain
from twoview.errors import UserError
from twoview.evaluate.classify.finetune import PROTOCOL, Tuning, default_epochs, finetune
from twoview.evaluate.classify.labelled import labelled_rows
from twoview.evaluate.classify.score import fingerprint
from twoview.evaluate.subject import check_run, origin, result_path, subject
from twoview.parallel.precision import best_precision
from twoview.report.scores import score_table
from twoview.run.atomic import replacing
from twoview.run.checkpoint import EncoderOf
from twoview.run.provenance import machine

log = logging.getLogger(__name__)

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


def finetune_command(composed: DictConfig) -> int:
    """`twoview finetune`."""
    config = plain(composed)
    check_run(config, KEYS)
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
    share = "" if config["label_fraction"] == 1 else f"_{config['label_fraction']:g}"
    path = result_path(config, "finetune", train.name, f"{share}.json")
    tunings = [Tuning(epochs, config["batch_size"], lr, config["seed"], precision) for lr in config["lr_per_256"]]
    started = time.monotonic()
    results: dict[str, dict[str, Any]] = {}
    with replacing(path) as part:
        starts = {"trained": judged.encoder} | ({"untrained": judged.untrained()} if config["baseline"] else {})
        for name, encoder in starts.items():
            results[name] = finetune(encoder, train, judged.test, tunings, config["holdout"], device, name)
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
    title = f"fine-tuning on {judged.test.name}, {config['label_fraction']:.3g} of the labels"
    columns = dict(sorted(results.items(), reverse=True))  # the untrained one first
    get_console().print(score_table(title, columns, judged.test.classes))
    log.info("fine-tuned top-1 %.2f %%, written to %s", 100 * report["top1"], path)
    return 0


def _check_numbers(config: dict[str, Any]) -> None:
    if not 0 < config["label_fraction"] <= 1:
        raise UserError(f"label_fraction must lie above 0 and at most be 1, not {config['label_fraction']}")
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
