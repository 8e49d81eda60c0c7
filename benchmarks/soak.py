"""A long run beside the same run killed again and again: does memory grow, do files stay open, is the end the same?

    python benchmarks/soak.py [epochs=2000] [seconds=6] [seed=0] [out=...]    # 5 minutes on 2 cores

Two runs of a tiny network on drawn shapes, each in a process of its own. One goes straight through. The other is killed
(SIGKILL) after about `seconds` seconds of training and resumed, until it is through. Each process notes its resident
memory and its open files after every epoch; growth is the slope of a straight line through the second half of what a
process noted. At the end weights, optimizer, schedule and metrics of both runs are compared bit by bit.
"""

import csv
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
from rich.console import Console

HERE = Path(__file__).resolve()
KEYS = {"epochs": 2000, "seconds": 6.0, "seed": 0, "out": str(HERE.parent / "results" / "soak.json")}
WORDS = (
    *("data=shapes", "data.n_train=64", "data.n_test=32", "data.size=8", "encoder=small", "encoder.widths=[4,4,8,8]"),
    *("model=moco", "model.queue_size=64", "model.split_batch_norm=2", "model.projector.out_dim=8", "batch_size=32"),
    *(
        "trainer=cpu",
        "trainer.precision=32-true",
        "log_every_steps=3",
        "knn.every_epochs=50",
        "checkpoint.every_epochs=5",
    ),
)
CLOCK = ("images_per_second", "seconds", "waiting")  # columns that no two runs share
PATIENCE = 300  # seconds that a process may take to begin or to go on
GOAL = {"mebibytes_per_1000_epochs": 2.0, "open_files_per_1000_epochs": 0.5}


def child(folder: Path, epochs: int, notes: Path) -> None:
    """One process of a run, to its end or its death."""
    import hydra
    import torch

    from twoview.cli.configs import CONFIGS
    from twoview.cli.entry import plain
    from twoview.train import pretrain
    from twoview.watch.meter import Meter

    torch.set_num_threads(1)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        resume = [f"resume={folder}"] if (folder / "last.ckpt").exists() else []
        config = plain(hydra.compose("train", overrides=[*WORDS, f"epochs={epochs}", *resume]))
    original = Meter.on_train_epoch_end

    def noting(self: Meter, trainer: Any, model: Any) -> None:
        original(self, trainer, model)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = len(list(Path("/proc/self/fd").iterdir()))
        with notes.open("a") as file:
            file.write(f"{trainer.current_epoch + 1},{pages * 4096},{files}\n")

    Meter.on_train_epoch_end = noting  # type: ignore[method-assign]
    pretrain.run(config, folder)


def read(notes: Path) -> np.ndarray:
    """Rows of epoch, bytes, files: (N, 3). The last line of a killed process may be a torn one."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    rows = [[int(cell) for cell in line.split(",")] for line in lines if line.count(",") == 2 and line[-1].isdigit()]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def launch(folder: Path, epochs: int, notes: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(HERE), "--child", str(folder), str(epochs), str(notes)]
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def through(folder: Path, epochs: int, seconds: float | None, seed: int) -> Iterator[dict[str, Any]]:
    """A run from its start to its end: what each of its processes noted, and whether it was killed."""
    draw, number = random.Random(seed), 0
    while True:
        notes = folder.parent / f"{folder.name}-{number}.csv"
        process, began = launch(folder, epochs, notes), time.monotonic()
        killed, limit = False, None
        while process.poll() is None:
            time.sleep(0.05)
            now = time.monotonic()
            if limit is None and notes.exists():  # training has begun
                limit = now + draw.uniform(0.3, 1.7) * seconds if seconds else float("inf")
            if limit is None and now - began > PATIENCE:
                process.kill()
                sys.exit(f"no epoch in {PATIENCE} s: see {folder}.log")
            if limit is not None and now > limit:
                process.kill()  # SIGKILL
                process.wait()
                killed = True
        if process.returncode and not killed:
            said = (folder.parent / f"{folder.name}.log").read_text()[-2000:]
            sys.exit(f"a process ended with code {process.returncode}:\n{said}")
        yield {"notes": read(notes), "killed": killed}
        number += 1
        if not killed:
            return  # to its end


def slope(rows: np.ndarray, column: int) -> float | None:
    """Growth per 1,000 epochs over the second half of a process's life; None for one that lived too short a time."""
    half = rows[len(rows) // 2 :]
    return None if len(half) < 20 else float(1000 * np.polyfit(half[:, 0], half[:, column], 1)[0])


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Where two trees of containers and tensors differ, to the bit."""
    import torch

    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys(), key=str):
            yield from differences(a.get(key), b.get(key), f"{path}.{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, pair in enumerate(zip(a, b, strict=True)):
            yield from differences(*pair, f"{path}[{i}]")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield path
    elif a != b:
        yield path


def compare(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs, but for the clock."""
    import torch

    found: list[str] = []
    left, right = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (one, other))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        found += differences(left[part], right[part], part)
    rows = []
    for folder in (one, other):
        with (folder / "metrics.csv").open(newline="") as file:
            rows.append([{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)])
    return found + list(differences(*rows, "metrics"))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
        return
    chosen = dict(KEYS)
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        if key not in KEYS or not value:
            sys.exit(f"cannot read {word!r}: the keys are {', '.join(KEYS)}\n\n{__doc__}")
        chosen[key] = type(KEYS[key])(value)
    began = time.perf_counter()
    place = Path(tempfile.mkdtemp(prefix="soak-"))
    folders = {"straight": place / "straight", "killed": place / "killed"}
    lives: dict[str, list[dict[str, Any]]] = {}
    for name, folder in folders.items():
        lives[name] = []
        for life in through(
            folder, int(chosen["epochs"]), chosen["seconds"] if name == "killed" else None, chosen["seed"]
        ):
            rows, end = life["notes"], "killed" if life["killed"] else "through"
            if len(rows):  # else it was killed while it wrote its first
                print(f"{name}: epochs {rows[0, 0]:.0f} to {rows[-1, 0]:.0f}, {end}", flush=True)
                lives[name].append(life)
    differ = compare(*folders.values())
    growth = {
        "mebibytes_per_1000_epochs": slope(lives["straight"][0]["notes"] / [1, 2**20, 1], 1),
        "open_files_per_1000_epochs": slope(lives["straight"][0]["notes"], 2),
    }
    killed = [life["notes"] for life in lives["killed"]]
    measured = all(value is not None for value in growth.values())
    result = {
        "epochs": chosen["epochs"],
        "kills": sum(life["killed"] for life in lives["killed"]),
        "killed_after_epoch": [int(life["notes"][-1, 0]) for life in lives["killed"] if life["killed"]],
        "differences": differ,
        "growth": growth,
        "goal": GOAL,
        "met": (not differ and all(growth[key] <= GOAL[key] for key in GOAL)) if measured else None,
        "straight": series(lives["straight"][0]["notes"]),
        "first_and_last_open_files_of_each_process": [[int(rows[0, 2]), int(rows[-1, 2])] for rows in killed],
        "most_mebibytes_of_each_process": [round(rows[:, 1].max() / 2**20, 1) for rows in killed],
        "litter": sorted(p.name for folder in folders.values() for p in folder.iterdir() if p.name.endswith(".part")),
    }
    record.write(Path(chosen["out"]), result, began, {}, Console())
    shutil.rmtree(place)
    print(f"{result['kills']} kills, {len(differ)} differences, growth {growth}, goal met: {result['met']}")
    sys.exit(1 if differ or result["met"] is False else 0)


def series(rows: np.ndarray) -> dict[str, list[float]]:
    """A hundred points of what a process noted."""
    some = rows[np.unique(np.linspace(0, len(rows) - 1, 100).round().astype(int))]
    return {
        "epoch": some[:, 0].astype(int).tolist(),
        "mebibytes": (some[:, 1] / 2**20).round(2).tolist(),
        "open_files": some[:, 2].astype(int).tolist(),
    }


if __name__ == "__main__":
    main()
