"""Fits a linear classifier to the features of a run's encoder.

The encoder is rebuilt from the checkpoint alone. Features of un-augmented images are extracted once, in eval mode and
float32, and a digest of every parameter and buffer proves that the encoder was not changed.
"""

import json
import logging
import time
from typing import Any

from omegaconf import DictConfig
from rich import get_console

from twoview.cli.entry import plain
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.classify.linear import probe
from twoview.evaluate.classify.protocols import PUBLISHED, crops, train_probe
from twoview.evaluate.classify.score import ProbeResult
from twoview.evaluate.subject import Subject, frozen, provenance, result_path, subject
from twoview.report.scores import score_table
from twoview.run.atomic import save

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
    report = {**result, "baseline": baseline, **provenance(config, judged, started)}
    title = f"linear probe ({result['protocol']}) on {judged.train.name}"
    columns = ({"untrained": baseline} if baseline else {}) | {"trained": result}
    get_console().print(score_table(title, columns, judged.train.classes))
    name = "linear_probe" if config["protocol"] == "convex" else f"linear_probe_{config['protocol']}"
    path = result_path(config, name, judged.train.name)
    save(path, json.dumps(report, indent=2) + "\n", "name another file by out=...")
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
            protocol = PUBLISHED[config["protocol"]]
            take = crops(encoder.to(judged.device), judged.train, config["seed"]) if protocol.augment else None
            result = train_probe(
                protocol, *parts, config["holdout"], config["seed"], epochs=config["epochs"], take=take
            )
    return result.plain() | {"frozen": proof}
