"""Classifies by the nearest neighbours in the features of a run's encoder."""

import json
import logging
import time

from omegaconf import DictConfig

from twoview.cli.entry import plain
from twoview.errors import UserError
from twoview.evaluate.classify.knn import knn_accuracy
from twoview.evaluate.classify.score import fingerprint
from twoview.evaluate.subject import provenance, result_path, subject
from twoview.run.atomic import save
from twoview.stats.intervals import wilson

log = logging.getLogger(__name__)


def knn_command(composed: DictConfig) -> int:
    """`twoview knn`."""
    config = plain(composed)
    judged = subject(config)
    if config["k"] < 1 or not config["temperature"] > 0:
        raise UserError(f"k must be at least 1 and temperature positive, not {config['k']} and {config['temperature']}")
    assert judged.train.labels is not None
    assert judged.test.labels is not None
    started = time.monotonic()
    scores = {}
    encoders = {"trained": judged.encoder} | ({"untrained": judged.untrained()} if config["baseline"] else {})
    for name, encoder in encoders.items():
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
        **provenance(config, judged, started),
    }
    path = result_path(config, "knn", judged.train.name)
    save(path, json.dumps(report, indent=2) + "\n", "name another file by out=...")
    untrained = f" (untrained {scores['untrained']:.2%})" if config["baseline"] else ""
    log.info(
        "kNN top-1 %.2f %% [%.2f, %.2f]%s, written to %s",
        100 * interval.mean, 100 * interval.low, 100 * interval.high, untrained, path,
    )  # fmt: skip
    return 0
