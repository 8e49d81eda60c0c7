"""How long the arms of a study take on this machine, and how many epochs fit into a budget, from a short trial."""

import logging
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twoview.ablate.arm import Judge, Stopped, judged, silent
from twoview.errors import UserError
from twoview.report.words import clock
from twoview.run.folder import METRICS, read_metrics
from twoview.train import pretrain

log = logging.getLogger(__name__)

TRIAL_STEPS = 30


def affordable(minutes: float, runs: int, base: Mapping[str, Any], judge: Judge, images: int) -> int:
    """How many epochs of each of `runs` runs fit into `minutes`. UserError where not even one does."""
    fixed, epoch = measured_seconds(base, judge, images)
    epochs = int((minutes * 60 / runs - fixed) // epoch)
    log.info(
        "an epoch takes about %s here and the rest of an arm %s: %d epochs for each of %d runs fill %.0f of %g minutes",
        clock(epoch), clock(fixed), max(0, epochs), runs, runs * (fixed + max(0, epochs) * epoch) / 60, minutes,
    )  # fmt: skip
    if epochs < 1:
        raise UserError(
            f"budget={minutes:g} minutes are too few: one epoch for each of {runs} runs takes about "
            f"{math.ceil(runs * (fixed + epoch) / 60)} minutes here; take fewer arms or seeds, or a larger budget"
        )
    return epochs


def steps_of_an_epoch(base: Mapping[str, Any], images: int) -> int:
    """Batches of `base["batch_size"]` of so many images, by the loader's `drop_last` and `max_batches`."""
    batches = math.ceil(images / base["batch_size"])
    if base["loader"]["drop_last"]:
        batches = images // base["batch_size"]
    return min(batches, base["loader"]["max_batches"] or batches)


def measured_seconds(base: Mapping[str, Any], judge: Judge, images: int) -> tuple[float, float]:
    """Seconds of a run whatever its length, and seconds per epoch, from a trial on this machine."""
    log.info("a trial of %d steps tells how long an arm takes", TRIAL_STEPS)
    batches = steps_of_an_epoch(base, images)
    steps = min(TRIAL_STEPS, batches)
    trial = dict(base) | {"epochs": 1, "log_every_steps": max(1, steps // 3)}
    trial["loader"] = base["loader"] | {"max_batches": steps}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with silent(folder / "log.txt"):
            started = time.monotonic()
            summary = pretrain.run(trial, folder)
            if summary["status"] in pretrain.EXIT_CODES:
                raise Stopped(summary["status"].removeprefix("stopped: "))
            whole = time.monotonic() - started
            judged(trial, judge, folder)
        judging = time.monotonic() - started - whole
        rows = read_metrics(folder / METRICS)
        speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    step = base["batch_size"] / (sum(speeds[1:]) / len(speeds[1:]) if len(speeds) > 1 else speeds[0])
    return max(0.0, whole - summary["steps"] * step) + judging, batches * step
