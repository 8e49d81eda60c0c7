"""Runs that are killed and resumed, beside one that was never stopped: real processes, compared to the bit."""

import logging
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from twoview.errors import UserError
from twoview.run.checkpoint import read_checkpoint
from twoview.run.folder import METRICS, SUMMARY, read_rows
from twoview.run.saving import kept

log = logging.getLogger(__name__)

Moment = Literal["random", "write", "knn"]

CLOCK = {"images_per_second", "seconds", "waiting"}  # columns of metrics.csv that no two runs share

PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "random", "epoch", "global_step")

TRIES = 3  # a moment may be over before it is seen


def command(words: Sequence[str], folder: Path) -> list[str]:
    """`twoview train` in that folder, resuming what is in it."""
    return [sys.executable, "-m", "twoview", "train", *words, "resume=auto", f"hydra.run.dir={folder}"]


def run_through(words: Sequence[str], folder: Path) -> float:
    """Runs to the end, and returns the seconds from its first step to its last. UserError if it fails."""
    process = subprocess.Popen(command(words, folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    began = time.monotonic()
    while process.poll() is None:
        if last_step(folder) == 0:
            began = time.monotonic()
        time.sleep(0.01)
    _, error = process.communicate()
    if process.returncode:
        raise UserError(f"the run itself fails: {error.strip().removeprefix('error: ')}")
    return time.monotonic() - began


def kill_and_resume(words: Sequence[str], folder: Path, kill: Moment, seconds: float) -> int:
    """Starts a run, kills it with SIGKILL, and runs it to its end. Returns the last step that was read before."""
    step = killed(command(words, folder), folder, kill, seconds)
    run_through(words, folder)
    return step


def killed(arguments: Sequence[str], folder: Path, kill: Moment, seconds: float) -> int:
    """A process that trains in `folder`, killed at a moment of its training. Returns the last step that was read."""
    for attempt in range(TRIES):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        moment = _moment(folder, kill, random.uniform(0, 0.9 * seconds / (1 + attempt)))
        while process.poll() is None and not moment():
            time.sleep(0.0005)
        if process.poll() is None:
            process.kill()
            process.wait()
            if not (folder / SUMMARY).exists():
                return last_step(folder)
        for path in folder.iterdir():  # it came to its end before: once more
            path.unlink()
    raise UserError(f"no process could be killed in time ({kill}): the run is too short; use more steps")


def _moment(folder: Path, kill: Moment, delay: float) -> Callable[[], bool]:
    """A function that says whether it is time to kill."""
    if kill == "write":
        return lambda: any(folder.glob(".last.ckpt.*.part"))
    if kill == "knn":  # between the reading at the end of an epoch and that of kNN
        return lambda: _measures(folder)
    began: list[float] = []

    def over() -> bool:
        if not began and last_step(folder) > 0:
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] > delay

    return over


def _measures(folder: Path) -> bool:
    table = rows(folder)
    epochs = {row["epoch"] for row in table}
    return len(epochs) == 2 and not any(row["knn"] for row in table if row["epoch"] == "2") and _is_last(table)


def _is_last(table: list[dict[str, str]]) -> bool:
    first = sum(row["epoch"] == "1" and bool(row["loss"]) for row in table)
    return sum(row["epoch"] == "2" and bool(row["loss"]) for row in table) == first


def last_step(folder: Path) -> int:
    """The last step that stands in `metrics.csv`; 0 before the first."""
    return max((int(row["step"]) for row in rows(folder)), default=0)


def rows(folder: Path) -> list[dict[str, str]]:
    """The whole rows of `metrics.csv`, without the columns of time."""
    try:
        table = read_rows(folder / METRICS)
    except OSError:
        return []
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in table]


def first_difference(straight: Path, other: Path) -> str | None:
    """The first step and tensor in which two run folders differ, in words; None if they are the same to the bit."""
    for one, two in zip(rows(straight), rows(other), strict=False):
        if one != two:
            column = next(key for key in one if one[key] != two.get(key))
            said = f"step {one['step']}: {column} is {two.get(column)} instead of {one[column]}"
            return said + _tensor(straight, other)
    if len(rows(straight)) != len(rows(other)):
        return f"{len(rows(other))} readings instead of {len(rows(straight))}"
    found = _tensor(straight, other)
    return f"at the end{found}" if found else None


def _tensor(straight: Path, other: Path) -> str:
    """The first tensor that differs, in the oldest checkpoint that both have."""
    states = [{state["global_step"]: state for state in map(read_checkpoint, kept(f))} for f in (straight, other)]
    for step in sorted(states[0].keys() & states[1].keys()):
        for part in PARTS:
            for path in differing(states[0][step][part], states[1][step][part], part):
                return f"; step {step}: {path}"
    return "" if states[0].keys() & states[1].keys() else "; no checkpoint of the same step"


def differing(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Where two trees of containers and tensors differ, to the bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            if key in a and key in b:
                yield from differing(a[key], b[key], f"{path}.{key}")
            else:
                yield f"{path}.{key} is on one side only"
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differing(x, y, f"{path}[{i}]")
    elif isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            yield f"{path} is {b.dtype} {tuple(b.shape)} instead of {a.dtype} {tuple(a.shape)}"
        elif not torch.equal(a, b):
            yield f"{path} differs by up to {(a.double() - b.double()).abs().max():.3g}"
    elif a != b:
        yield f"{path} is {b!r} instead of {a!r}"
