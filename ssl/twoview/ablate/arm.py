"""One arm of a study with one seed: an ordinary run of the trainer, and then what its encoder is worth and knows."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from twoview.ablate.judge import Judge, judged
from twoview.cli import schema
from twoview.cli.entry import output_dir, plain, silent
from twoview.cli.explain import explain
from twoview.cli.trust import trusting
from twoview.errors import UserError
from twoview.run.atomic import save
from twoview.run.folder import CHECKPOINT, SUMMARY, read_json
from twoview.run.identity import config_hash
from twoview.run.signals import EXIT_CODES
from twoview.train import pretrain

log = logging.getLogger(__name__)

OF_THE_STUDY = ("study", "judge", "budget", "dry_run", "folder", "report")  # keys that `train.py` does not take
ABOUT, RESULT = "arm.json", "result.json"  # files of an arm, beside those of its run


def training_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a study's configuration that a run takes."""
    return {key: value for key, value in config.items() if key not in OF_THE_STUDY}


class Stopped(KeyboardInterrupt):
    """Ends the study: no launcher begins another arm. Its text is the reason, a signal or a result that could not be
    written.
    """


def run_arm(composed: DictConfig) -> str:
    """The task of Hydra's launcher, in this process or another: trains, judges, and writes `result.json`.

    Returns `finished`, `failed` (the error is in the file and the study goes on), or the reason why the run was
    stopped. Raises `Stopped` after a signal, and where the result cannot be written. An interrupted arm goes on from
    its checkpoint.
    """
    try:
        config = plain(composed)
        with trusting(config.get("trust")):
            status = _recorded(config, output_dir())
    except (OSError, UserError) as error:
        raise Stopped(explain(error)) from error
    if status in EXIT_CODES:
        raise Stopped(status.removeprefix("stopped: "))
    return status


def _recorded(config: dict[str, Any], folder: Path) -> str:
    about = json.loads((folder / ABOUT).read_text())
    with silent(folder / "log.txt"):
        try:
            result = _run(training_config(config), schema.build(config["judge"]), folder)
        except Exception as error:
            log.exception("the arm failed")
            result = {"status": "failed", "error": explain(error)}
        if result["status"] in ("finished", "failed"):
            save(folder / RESULT, json.dumps(about | result, indent=1) + "\n")
    return str(result["status"])


def _run(config: dict[str, Any], judge: Judge, folder: Path) -> dict[str, Any]:
    summary = _finished(folder)
    if summary is None:
        summary = pretrain.run(config | {"resume": "auto"}, folder)
    if summary["status"] != "finished":
        return {"status": summary["status"]}
    started = time.monotonic()
    found = judged(config, judge, folder)
    return {
        "status": "finished",
        "error": None,
        "protocol": judge.protocol,
        "protocol_hash": judge.protocol_hash,
        "identity": summary["identity"],
        "pretext": {
            "loss": summary["loss"],
            "chance_loss": summary["chance_loss"],
            **summary["numbers"],
        },
        **found,
        "cost": {
            "training_seconds": summary["training_seconds"],
            "evaluation_seconds": round(time.monotonic() - started, 2),
            "images_per_second": summary["images_per_second"],
        },
        **{key: summary[key] for key in ("machine", "versions", "commit")},
    }


def arm_hash(config: Mapping[str, Any]) -> str:
    """The name of an arm's folder: what its training configuration decides."""
    return config_hash(training_config(config))


def _finished(folder: Path) -> dict[str, Any] | None:
    """The summary of a run that has finished and whose weights are there."""
    summary = read_json(folder / SUMMARY)
    return summary if summary.get("status") == "finished" and (folder / CHECKPOINT).exists() else None
