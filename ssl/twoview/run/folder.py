"""What the files in a run's folder are called, and how its readings come back out of it."""

import csv
import json
from pathlib import Path
from typing import Any

from twoview.errors import UserError

CONFIG = "config.yaml"  # resolved
IDENTITY = "identity.json"  # who the run is
METRICS = "metrics.csv"  # readings, a row each
CHECKPOINT = "last.ckpt"  # the newest; those before it are last-1.ckpt, last-2.ckpt, ...
ENCODER = "encoder.safetensors"  # of a finished run
SUMMARY = "summary.json"  # of a run that has come to an end
VIEWS = "views.png"  # what the model sees at its first step
CURVES = "curves.png"
PROBE = "linear_probe.json"

TRAINING = (CONFIG, IDENTITY, METRICS, CHECKPOINT, SUMMARY, ENCODER)  # what training itself writes


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv` without their empty cells. UserError where it is missing, damaged or has no row."""
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


def read_json(path: Path) -> dict[str, Any]:
    """What an optional file says; empty where it is missing, damaged or holds something else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
