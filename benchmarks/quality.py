"""What watching the representation costs: the online monitor beside the epoch, and all measures on 50,000 images.

    python benchmarks/quality.py [experiment=cifar10_cpu] [out=...]    # three minutes on 2 cores

The monitor's seconds for one reading, as configured, against the epochs between two readings (steps of the run's own
loop, timed after ten to warm up). Then `quality` on two views' random features of 50,000 x 512, exact, in
blocks: seconds, and the memory that it takes beside the features. Writes benchmarks/results/quality.json.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import record
import torch
from rich.console import Console

KEYS = {"experiment": "cifar10_cpu", "out": str(Path(__file__).parent / "results" / "quality.json")}
GOAL = 0.02  # of the epochs between two readings
STEPS, WARM = 30, 10
IMAGES, DIM = 50_000, 512


def monitored(experiment: str) -> dict[str, Any]:
    """Seconds of a step and of a reading in a run of one short epoch, whose last step is followed by a reading."""
    import hydra

    from twoview.cli.configs import CONFIGS
    from twoview.cli.entry import plain
    from twoview.train import pretrain
    from twoview.watch.meter import Meter
    from twoview.watch.quality import QualityMonitor

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        words = [f"experiment={experiment}", "epochs=1", f"loader.max_batches={STEPS}", "knn=null"]
        config = plain(hydra.compose("train", overrides=[*words, "optimizer.warmup_epochs=0"]))
    ends, readings = [], []
    batch_end, evaluate = Meter.on_train_batch_end, QualityMonitor.evaluate

    def timed_end(self: Meter, *args: Any) -> None:
        batch_end(self, *args)
        ends.append(time.perf_counter())

    def timed_reading(self: QualityMonitor, *args: Any) -> None:
        for _ in range(3):
            start = time.perf_counter()
            evaluate(self, *args)
            readings.append(time.perf_counter() - start)

    Meter.on_train_batch_end, QualityMonitor.evaluate = timed_end, timed_reading  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        pretrain.run(config, Path(folder))
    steps = [b - a for a, b in zip(ends[WARM:], ends[WARM + 1 :], strict=False)]
    batches = 50_000 // config["batch_size"]
    between = config["quality"]["every_epochs"] * batches * median(steps)
    share = median(readings) / between
    return {
        "experiment": experiment,
        "every_epochs": config["quality"]["every_epochs"],
        "images": config["quality"]["images"],
        "seconds_of_a_step": median(steps),
        "steps_of_an_epoch": batches,
        "seconds_of_a_reading": median(readings),
        "share": share,
        "goal": GOAL,
        "met": share <= GOAL,
    }


def whole() -> dict[str, Any]:
    """All measures of 50,000 pairs of features."""
    from twoview.evaluate.describe.quality import quality

    draw = torch.Generator().manual_seed(0)
    x1 = torch.randn(IMAGES, DIM, generator=draw)
    x2 = x1 + 0.5 * torch.randn(IMAGES, DIM, generator=draw)
    quality(x1[:100], x2[:100])  # libraries, threads, kernels
    before, start = record.memory_before(False), time.perf_counter()
    quality(x1, x2)
    return {
        "images": IMAGES,
        "dim": DIM,
        "seconds": time.perf_counter() - start,
        "extra_bytes": record.memory_at_most(False) - before,
    }


def main() -> None:
    chosen = dict(KEYS)
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        if key not in KEYS or not value:
            sys.exit(f"cannot read {word!r}: the keys are {', '.join(KEYS)}\n\n{__doc__}")
        chosen[key] = value
    began, console = time.perf_counter(), Console()
    online, offline = monitored(chosen["experiment"]), whole()
    console.print(
        f"a reading takes {online['seconds_of_a_reading']:.2f} s, {online['share']:.2%} of the "
        f"{online['every_epochs']} epochs between two; goal {GOAL:.0%}: {'reached' if online['met'] else 'missed'}"
    )
    console.print(
        f"all measures of {IMAGES:,} x {DIM}: {offline['seconds']:.1f} s, {offline['extra_bytes'] / 2**20:,.0f} MiB"
    )
    record.write(Path(chosen["out"]), {"online": online, "whole_set": offline}, began, {}, console)


if __name__ == "__main__":
    main()
