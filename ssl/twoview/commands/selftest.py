"""What contrastive learning has to hold, tried on the machine at hand: a table of promises, kept or broken.

Nothing is downloaded and nothing is learned: networks are tiny, and images are noise.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig
from rich import get_console
from rich.box import SIMPLE
from rich.table import Table

from twoview.cli import schema
from twoview.cli.entry import plain
from twoview.errors import UserError
from twoview.run.provenance import commit, machine, versions
from twoview.selftest.check import Check
from twoview.selftest.many import on_many_devices
from twoview.selftest.one import on_gpu, on_one_device
from twoview.selftest.twins import broken_twins

log = logging.getLogger(__name__)

MOST_PROCESSES = 64
KEYS = {"devices": Literal["auto", "cpu", "cuda"], "world": int | Literal["auto"], "out": str | None, "debug": bool}


def selftest_command(composed: DictConfig) -> int:
    """`twoview selftest`."""
    config = plain(composed)
    kind, world = plan(config)
    gpus = [torch.device("cuda")] if torch.cuda.is_available() and config["devices"] != "cpu" else []
    torch.backends.cudnn.allow_tf32 = False  # its rounding is not float32's
    log.info("%s, and one device", f"{world} {'GPUs (NCCL)' if kind == 'cuda' else 'CPU processes (gloo)'}")
    checks = on_many_devices(kind, world)
    for device in [torch.device("cpu"), *gpus] if config["devices"] != "cuda" else gpus:
        checks += [*on_one_device(device), *broken_twins(device)]
    checks += on_gpu(bool(gpus), "devices=cpu" if torch.cuda.is_available() else "no GPU here")
    get_console().print(_table(checks))
    if config["out"]:
        _write(Path(config["out"]), checks, {"kind": kind, "world": world})
    results = [check.result for check in checks]
    passed, skipped, failed = (results.count(result) for result in ("pass", "skipped", "FAIL"))
    log.info("%d passed, %d skipped, %d failed", passed, skipped, failed)
    return int(failed > 0)


def plan(config: dict[str, Any]) -> tuple[str, int]:
    """Which kind of devices is to act together, and how many."""
    schema.check_keys(config, KEYS)
    gpus = torch.cuda.device_count()
    if config["devices"] == "cuda" and not gpus:
        raise UserError("devices=cuda, but torch finds no GPU on this machine; use devices=cpu")
    where = "cuda" if config["devices"] == "cuda" or (config["devices"] == "auto" and gpus > 1) else "cpu"
    world = config["world"] if config["world"] != "auto" else gpus if where == "cuda" else 2
    if not 1 <= world <= MOST_PROCESSES:
        raise UserError(f"world={world}: there must be at least 1 process, and at most {MOST_PROCESSES}")
    if where == "cuda" and world > gpus:
        raise UserError(f"world={world}, but torch finds {gpus} GPUs on this machine; use fewer, or devices=cpu")
    if config["out"] and not Path(config["out"]).parent.is_dir():
        raise UserError(f"out={config['out']}: there is no folder {Path(config['out']).parent}")
    return where, world


def _table(checks: list[Check]) -> Table:
    table = Table(box=SIMPLE)
    for name in ("check", "compared"):
        table.add_column(name)
    for name in ("difference", "limit", "result", "s"):
        table.add_column(name, justify="right")
    colours = {"pass": "green", "FAIL": "bold red", "skipped": "yellow"}
    for check in checks:
        found = "" if check.difference is None else f"{check.difference:.2g}"
        result = f"[{colours[check.result]}]{check.result}[/]"
        table.add_row(
            check.name, check.note or check.compared, found, f"{check.limit:.2g}", result, f"{check.seconds:.1f}"
        )
    return table


def _write(path: Path, checks: list[Check], devices: dict[str, Any]) -> None:
    report = devices | {"checks": [asdict(check) for check in checks]}
    report |= {"machine": machine(), "versions": versions(), "commit": commit()}
    try:
        path.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file by out=...") from error
    log.info("written to %s", path)
