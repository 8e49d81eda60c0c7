"""Whether a run that is killed and resumed ends as one that was never stopped, to the bit."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from twoview.cli import schema
from twoview.cli.entry import overrides, plain, searched
from twoview.errors import UserError
from twoview.selftest.resume import Moment, first_difference, kill_and_resume, run_through

log = logging.getLogger(__name__)

KEYS = {"steps": int, "kills": list[Moment], "out": str | None}


def verify_command(composed: DictConfig) -> int:
    """`twoview verify`: 0 if all resumed runs are the straight one, 1 if one differs."""
    config = plain(composed)
    schema.check_keys(config, KEYS)
    if config["steps"] < 2 or not config["kills"] or config["resume"]:
        raise UserError("verify needs steps of at least 2, a kill in kills, and no resume")
    kills = [kill for kill in config["kills"] if kill != "knn" or config["knn"]]
    words = [word for word in overrides() if word.partition("=")[0].lstrip("+") not in KEYS]
    words += searched() + shortened(config)
    findings: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="twoview-verify-") as folder:
        straight = Path(folder) / "straight"
        log.info("a straight run of %d steps", 2 * config["steps"])
        seconds = run_through(words, straight)
        for kill in kills:
            other = Path(folder) / kill
            step = kill_and_resume(words, other, kill, seconds)
            found = first_difference(straight, other)
            findings.append({"kill": kill, "after_step": step, "difference": found})
            log.info("killed (%s) after step %s: %s", kill, step, found or "the same to the bit")
    if config["out"]:
        Path(config["out"]).write_text(json.dumps(findings, indent=2) + "\n")
    if any(finding["difference"] for finding in findings):
        log.info("on a GPU, trainer.deterministic=true makes runs repeatable")
        return 1
    return 0


def shortened(config: dict[str, Any]) -> list[str]:
    """Words that make two epochs of a few steps of a configuration, with a reading after each and all saved."""
    words = ["epochs=2", f"loader.max_batches={config['steps']}", "log_every_steps=1", "checkpoint.every_epochs=1"]
    if config["optimizer"]["warmup_epochs"] > 1:
        words.append("optimizer.warmup_epochs=1")
    if config["knn"]:
        words.append("knn.every_epochs=1")
    return words
