"""What the files in a run's folder are called, and how its readings come back out of it."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twoview.errors import UserError
from twoview.run.atomic import whole

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


def checkpoint_file(ckpt: str | Path) -> Path:
    """The file that `ckpt` names: a folder means the `last.ckpt` in it. UserError where there is none."""
    path = Path(ckpt).expanduser()
    path = path / CHECKPOINT if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; give the last.ckpt of a run, or its folder")
    return path


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv` without their empty cells. UserError where it is missing, damaged or has no row."""
    if not path.is_file():
        raise UserError(f"there is no {path}; give the folder of a run that has trained")
    rows = [{name: float(value) for name, value in row.items() if value} for row in read_rows(path)]
    if not rows:
        raise UserError(f"{path} has no rows yet: the run has not come to its first reading")
    return rows


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a `metrics.csv` by their columns. What a loss of power left at the end (half a line, zeros) is left
    out; UserError for anything wrong before it. OSError as usual.
    """
    lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]  # behind the last line break a line is torn
    table = [line.removesuffix("\r").split(",") for line in lines]
    if not table or "\0" in lines[0]:
        return []
    columns, *rows = table
    if "step" not in columns:
        raise UserError(f"{path} is damaged in line 1, which has to name the columns: move it away")
    while rows and not _is_row(columns, rows[-1]):
        rows.pop()
    for number, cells in enumerate(rows, start=2):
        if not _is_row(columns, cells):
            raise UserError(f"{path} is damaged in line {number}: mend that line, or remove it")
    return [dict(zip(columns, cells, strict=True)) for cells in rows]


def _is_row(columns: Sequence[str], cells: Sequence[str]) -> bool:
    """A number or nothing for each column, and always a step."""
    if len(cells) != len(columns):
        return False
    try:
        numbers = [float(cell) for cell in cells if cell]
    except ValueError:
        return False
    return bool(numbers) and cells[columns.index("step")].isdigit()


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a `metrics.csv` as a whole. Cells of columns that a row lacks stay empty."""
    with whole(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_json(path: Path) -> dict[str, Any]:
    """What an optional file says; empty where it is missing, damaged or holds something else."""
    if not path.is_file():  # a pipe would be waited for
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
