"""The runs in a folder: a table of them with their numbers, one of them, what two differ in, and all as CSV."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Group
from rich.table import Table
from rich.text import Text

from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.run.checkpoint import EncoderOf, load_encoder
from twoview.run.folder import CONFIG, IDENTITY, METRICS, PROBE, SUMMARY, read_json
from twoview.run.identity import BESIDE, apart, config_hash, differences, flat, relevant


@dataclass(frozen=True)
class Run:
    """What the files in a run folder say; what is missing or damaged is empty."""

    folder: Path
    config: dict[str, Any]
    identity: dict[str, Any]
    summary: dict[str, Any]
    linear: float | None  # top-1 of linear_probe.json
    trust: Sequence[str] = ()  # packages other than twoview whose parts may be built

    def encoder(self, encoder_of: EncoderOf = "student") -> Frozen:
        """The frozen encoder of the run: samples (B, ...) -> h (B, D)."""
        return load_encoder(self.folder, encoder_of, self.trust)

    @property
    def status(self) -> str:
        return str(self.summary.get("status", "running or killed"))

    def row(self) -> dict[str, Any]:
        """The run in numbers, by column."""
        knn = self.summary.get("knn")
        return {
            "run": str(self.folder),
            "hash": self.identity.get("run_hash"),
            "config": self.identity.get("config") or config_hash(self.config),
            "name": self.config.get("name"),
            "began": self.identity.get("began"),
            "status": self.status,
            "seed": self.config.get("seed"),
            "epochs": self.summary.get("epochs"),
            "loss": self.summary.get("loss"),
            "knn": knn.get("final") if isinstance(knn, Mapping) else None,
            "linear": self.linear,
            "seconds": self.summary.get("training_seconds"),
        }


def read_run(folder: Path, trust: Sequence[str] = ()) -> Run:
    """UserError where no run is."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"there is no run in {folder}: it lacks a {CONFIG}")
    try:
        config = yaml.safe_load((folder / CONFIG).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder / 'config.yaml'} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.yaml'} is no configuration")
    top1 = read_json(folder / PROBE).get("top1")
    return Run(
        folder,
        config,
        read_json(folder / IDENTITY),
        read_json(folder / SUMMARY),
        float(top1) if isinstance(top1, int | float) else None,
        trust,
    )


def find_runs(root: Path) -> list[Run]:
    """All runs below `root`, from old to new. UserError if there is none."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; name that of your runs: --root runs")
    found = [
        read_run(path.parent)
        for path in sorted(root.rglob(CONFIG))
        if any((path.parent / name).exists() for name in (IDENTITY, SUMMARY, METRICS))
    ]
    if not found:
        raise UserError(f"there is no run below {root}; name the folder of your runs: --root runs")
    return sorted(found, key=lambda run: str(run.identity.get("began", "")))


def list_runs(root: Path) -> Table:
    runs = find_runs(root)
    table = Table(*("run", "hash", "began", "status", "seed", "epochs", "loss", "kNN", "linear"), box=None)
    for run in runs:
        row = run.row()
        cells = [
            str(run.folder.relative_to(root)),
            _word(row["hash"]),
            _word(row["began"])[:16].replace("T", " "),
            row["status"],
            _word(row["seed"]),
            _number(row["epochs"], "{:g}"),
            _number(row["loss"], "{:.3f}"),
            _number(row["knn"], "{:.2%}"),
            _number(row["linear"], "{:.2%}"),
        ]
        table.add_row(*map(Text, cells))  # Text: no name is read as markup
    return table


def show_run(folder: Path) -> Table:
    run = read_run(folder)
    table = Table("key", "value", box=None)
    for key, value in (run.row() | {k: run.identity.get(k) for k in BESIDE} | flat(run.config)).items():
        table.add_row(Text(key), Text(_word(value)))
    return table


def diff_runs(a: Path, b: Path, across: bool = False) -> Group:
    """What two runs differ in: data, code, fields of the configuration, and results.

    Results of runs that are not the same (other configuration, data, code or precision) are not compared unless
    `across`.
    """
    one, two = read_run(a), read_run(b)
    table = Table("", str(a), str(b), box=None)
    unlike = apart(one.identity, two.identity)
    for key, what in BESIDE.items():
        if what in unlike:
            mine, theirs = (_word(run.identity.get(key), "unknown") for run in (one, two))
            table.add_row(Text(what), Text(mine), Text(theirs))
    counts = relevant(one.config) | relevant(two.config)
    old, new = ({**flat(run.config), **relevant(run.config)} for run in (one, two))
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key not in counts, key)):
        if old.get(key) != new.get(key):
            note = "" if key in counts else "  (without effect on the result)"
            table.add_row(Text(key + note), Text(_word(old.get(key))), Text(_word(new.get(key))))
    if differences(one.config, two.config):
        unlike.insert(0, "configuration")
    if unlike and not across:
        return Group(
            table, Text(f"results are not compared, since the runs are of other {', '.join(unlike)}: add --across")
        )
    rows = one.row(), two.row()
    for key in ("status", "epochs", "loss", "knn", "linear"):
        table.add_row(Text(key), *(Text(_word(row[key])) for row in rows))
    return Group(table)


def export_runs(root: Path, out: Path) -> int:
    """Writes a line for each run with its numbers and the fields of its configuration; returns how many."""
    table = [run.row() | {f"config.{k}": v for k, v in flat(run.config).items()} for run in find_runs(root)]
    columns = list(dict.fromkeys(key for row in table for key in row))
    try:
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(table)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; name another file by --out") from error
    return len(table)


def _word(value: Any, nothing: str = "") -> str:
    if value is None:
        return nothing
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else ""
