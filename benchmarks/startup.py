"""Where the time goes from `python train.py experiment=cifar10_cpu` to the end of the first step, without compiling.

    python benchmarks/startup.py [--repeats 5]    # 2 minutes on 2 CPU cores

The command itself, in a process of its own for each repeat, with the clock read wherever one part ends and the next
begins; the process stops after its first step. A start before the first repeat warms the disk's cache, and that of
decoded images. The figures are medians, of a column each, so they add up only about. Writes
benchmarks/results/startup.json.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import record
from rich.console import Console
from rich.table import Table

WORDS = ["experiment=cifar10_cpu", "augment.compile=false", "compile=false"]
GOAL = 12.0  # seconds, on 2 cores


def start(began: float, words: list[str]) -> None:
    """`train.py` up to its first step, in this process; prints seconds by part as JSON and ends the process."""
    parts: dict[str, float] = {}
    last = began

    def end_of(part: str) -> None:
        nonlocal last
        now = time.time()
        parts[part] = parts.get(part, 0.0) + now - last
        last = now

    def ends(part: str, before: str, f: Callable[..., Any]) -> Callable[..., Any]:
        """`f`, whose calls are `part`; what comes before them is `before`."""

        @functools.wraps(f)
        def timed(*args: Any, **kwargs: Any) -> Any:
            end_of(before)
            result = f(*args, **kwargs)
            end_of(part)
            return result

        return timed

    end_of("Python starts")
    import torch  # noqa: F401 - its import is what is timed, like those below

    end_of("import torch")
    import pytorch_lightning as pl

    end_of("import Lightning, torchvision")
    from twoview.cli import schema
    from twoview.cli.entry import run_command
    from twoview.data.batches import TwoViewDataModule
    from twoview.train import assemble as parts_of_a_run
    from twoview.train import command, pretrain
    from twoview.watch import meter as monitor
    from twoview.watch.views import ViewSheet

    end_of("import twoview, Hydra")

    def build(node: Any, *, plain: Callable[..., Any] = schema.build, **arguments: Any) -> Any:
        built = plain(node, **arguments)
        return ends("images", "objects", built) if node is data else built

    def run(config: dict[str, Any], *rest: Any, plain: Callable[..., Any] = pretrain.assemble) -> Any:
        nonlocal data
        end_of("configuration")
        data = config["data"]
        return plain(config, *rest)

    def first_step(*_: Any) -> None:
        end_of("first step")
        print(json.dumps(parts), flush=True)
        os._exit(0)

    data: Any = None
    schema.build, pretrain.assemble = build, run
    digest = parts_of_a_run.data_digest
    parts_of_a_run.data_digest = ends("digest of the images", "objects", digest)
    pl.Trainer.fit = ends("", "objects", pl.Trainer.fit)  # type: ignore[method-assign]
    ViewSheet.on_train_start = ends("views.png", "Lightning", ViewSheet.on_train_start)  # type: ignore[method-assign]
    made = TwoViewDataModule.on_after_batch_transfer
    TwoViewDataModule.on_after_batch_transfer = ends("first views", "Lightning", made)  # type: ignore[method-assign]
    monitor.Meter.on_train_batch_end = first_step  # type: ignore[assignment, method-assign]
    sys.argv = ["train.py", *words]
    run_command("train", command.main)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "startup.json")
    options = arguments.parse_args()
    console, began = Console(), time.perf_counter()
    starts = []
    for repeat in range(options.repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            words = ["start", str(time.time()), *WORDS, f"hydra.run.dir={folder}/run"]
            case = record.in_own_process(__file__, words)
        if "skipped" in case:
            sys.exit(f"no start: {case['skipped']}")
        if repeat:
            starts.append(case)
    parts = {part: median(case[part] for case in starts) for part in starts[0]}
    total = median(sum(case.values()) for case in starts)
    table = Table("", "seconds", title=f"from python train.py {' '.join(WORDS)} to the end of the first step")
    for part, seconds in parts.items():
        table.add_row(part, f"{seconds:.2f}")
    table.add_row("together", f"{total:.2f}", style="bold")
    console.print(table)
    console.print(f"goal: under {GOAL:.0f} s on 2 cores, {'reached' if total < GOAL else 'missed'}")
    result = {"words": WORDS, "seconds_by_part": parts, "total": total, "goal": GOAL, "repeats": starts}
    record.write(options.out, result, began, {}, console)


if __name__ == "__main__":
    if sys.argv[1:2] == ["start"]:
        start(float(sys.argv[2]), sys.argv[3:])
    else:
        main()
