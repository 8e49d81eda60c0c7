"""Draws the curves of a run."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from twoview.cli import schema
from twoview.cli.entry import plain
from twoview.errors import UserError
from twoview.report.curves import curves
from twoview.report.theme import write_plot
from twoview.run.folder import CURVES, METRICS, SUMMARY, read_json, read_metrics

log = logging.getLogger(__name__)


def plot_command(composed: DictConfig) -> int:
    """`twoview plot`."""
    config = plain(composed)
    schema.check_keys(config, {"run": str | None, "out": str | None})
    if not config["run"]:
        raise UserError("which run? Give its folder: run=runs/<name>/<date>")
    run = Path(config["run"])
    path = Path(config["out"]) if config["out"] else run / CURVES
    write_plot(path, curves(read_metrics(run / METRICS), _title(run)))
    log.info("written to %s", path)
    return 0


def _title(run: Path) -> str:
    summary = read_json(run / SUMMARY)
    if not summary:
        return run.name
    return f"{summary['name']}, seed {summary['seed']}: {summary['training_time']} on {summary['machine']['cpu']}"
