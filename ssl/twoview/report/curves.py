"""The curves of a run as a picture: loss against its chance level, contrastive accuracy and kNN over epochs."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from twoview.cli import schema
from twoview.cli.entry import plain
from twoview.errors import UserError

log = logging.getLogger(__name__)


def plot_command(composed: DictConfig) -> int:
    """`twoview plot`."""
    config = plain(composed)
    schema.check_keys(config, {"run": str | None, "out": str | None})
    if not config["run"]:
        raise UserError("which run? Give its folder: run=runs/<name>/<date>")
    run = Path(config["run"])
    path = Path(config["out"]) if config["out"] else run / "curves.png"
    draw(read_metrics(run / "metrics.csv"), _title(run), path)
    log.info("written to %s", path)
    return 0


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv`, without the cells that are empty."""
    if not path.is_file():
        raise UserError(f"there is no {path}; give the folder of a run that has trained")
    with path.open(newline="") as file:
        try:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from error
    if not rows:
        raise UserError(f"{path} has no rows yet: the run has not come to its first reading")
    return rows


def draw(rows: list[dict[str, float]], title: str, path: Path) -> None:
    """Two panels side by side: the pretext task, and what it is worth."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("curves need matplotlib: pip install 'twoview[plot]'") from error
    figure = Figure(figsize=(9, 3.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    steps_per_epoch = max(row["step"] for row in rows) / max(row["epoch"] for row in rows)

    def curve(axes: Any, name: str, **style: Any) -> None:
        points = [(row["step"] / steps_per_epoch, row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), **style)

    curve(left, "loss", color="tab:blue", label="loss")
    curve(left, "chance_loss", color="gray", linestyle="--", label="chance level")
    left.set(xlabel="epoch", ylabel="loss (nats)")
    curve(right, "accuracy", color="tab:green", label="contrastive accuracy (training)")
    curve(right, "knn", color="tab:red", marker="o", label="kNN accuracy (test)")
    right.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """A figure of matplotlib as a picture of the kind that its suffix names, whole or not at all."""
    from twoview.run.atomic import replacing

    with replacing(path) as part:
        try:
            figure.savefig(part, format=path.suffix.removeprefix(".") or "png")
        except ValueError as error:
            raise UserError(f"cannot write {path}: {error}; name another file by out=...") from error


def _title(run: Path) -> str:
    path = run / "summary.json"
    try:
        summary = json.loads(path.read_text()) if path.is_file() else None
    except (OSError, json.JSONDecodeError):
        summary = None
    if summary is None:
        return run.name
    return f"{summary['name']}, seed {summary['seed']}: {summary['training_time']} on {summary['machine']['cpu']}"
