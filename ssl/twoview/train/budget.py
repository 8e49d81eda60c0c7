"""As many epochs as fit into a time: a short trial on the machine at hand tells what a run costs there."""

import bisect
import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from twoview.cli.entry import silent
from twoview.data.batches import batch_for
from twoview.errors import UserError
from twoview.report.words import clock
from twoview.run.folder import METRICS, read_metrics

log = logging.getLogger(__name__)

YEAR = 525_600  # minutes
FEW, MOST = 6, 200  # steps of a trial
SECONDS = 8.0  # that its steps are to take together, where they are short enough
SLACK = 0.97  # share of the time that is planned for: machines are not even


class TrialStopped(KeyboardInterrupt):
    """A signal stopped the trial. Its text is the status that the run's summary would have."""


Run = Callable[[dict[str, Any], Path], dict[str, Any]]  # `twoview.train.pretrain.run`
After = Callable[[dict[str, Any], Path], Any]  # takes what a run takes, when that has ended


@dataclass(frozen=True)
class Cost:
    """Seconds that the parts of a run take on this machine."""

    fixed: float  # before its first step and after its last
    step: float
    reading: float  # of all its monitors (kNN, quality)
    steps: int  # of an epoch

    @property
    def epoch(self) -> float:
        return self.steps * self.step

    def seconds(self, epochs: int, config: Mapping[str, Any]) -> float:
        """Of a run of so many epochs, with its readings: those after the last epoch, and those on the way to it."""
        often = [config[name]["every_epochs"] for name in ("knn", "quality") if config.get(name)]
        on_the_way = max(((epochs - 1) // every for every in often), default=0)
        return self.fixed + epochs * self.epoch + (on_the_way + bool(often)) * self.reading


def epochs_within(minutes: float, config: dict[str, Any], run: Run, began: float) -> int:
    """The most epochs with which a run that began at `began` (time.monotonic) ends within `minutes`, its last readings
    included. UserError where not one fits.
    """
    if not 0 < minutes <= YEAR:
        raise UserError(f"budget={minutes:g} must be a positive number of minutes, {YEAR} (a year) at most")
    several = torch.cuda.device_count() > 1 and config["trainer"]["accelerator"] != "cpu"
    if config["trainer"]["devices"] not in ((1,) if several else (1, "auto")) or config["trainer"]["num_nodes"] != 1:
        raise UserError("budget= times the steps of one device: give epochs=..., or trainer.max_time, on several")
    log.info("budget=%g: a short trial tells how many epochs that are here", minutes)
    cost = measured(config, run)
    left = SLACK * 60 * minutes - (time.monotonic() - began)
    epochs = bisect.bisect_right(
        range(1, 2 + max(0, int(left / cost.epoch))), left, key=lambda n: cost.seconds(n, config)
    )
    if epochs < 1:
        needed = (cost.seconds(1, config) + time.monotonic() - began) / 60 / SLACK
        raise UserError(
            f"budget={minutes:g} minutes are too few: with the trial before, a run of one epoch takes about "
            f"{math.ceil(needed)} minutes here ({cost.steps} steps of {cost.step:.3g} s)"
        )
    log.info(
        "%d steps of %.3g s make an epoch of %s: budget=%g holds epochs=%d, which gives the same run again",
        cost.steps, cost.step, clock(cost.epoch), minutes, epochs,
    )  # fmt: skip
    return epochs


def measured(config: dict[str, Any], run: Run, after: After | None = None) -> Cost:
    """What a run of `config` costs, with what is done `after` it: from one of a few steps without readings, and from
    one whose steps take some seconds and that ends with a reading. Neither is long enough to compile what a long run
    compiles, whose steps are then faster than is reckoned here.
    """
    first = _trial(config | {"knn": None, "quality": None}, FEW, run)
    return _trial(config, min(max(FEW, math.ceil(SECONDS / first.step)), MOST), run, after)


def _trial(config: dict[str, Any], steps: int, run: Run, after: After | None = None) -> Cost:
    per_epoch = config["loader"]["max_batches"]
    trial = config | {
        "epochs": 1,
        "budget": None,
        "resume": None,
        "log_every_steps": max(1, steps // 6),
        "loader": config["loader"] | {"max_batches": min(steps, per_epoch or steps)},
        "optimizer": config["optimizer"] | {"warmup_epochs": 0},
        "trainer": config["trainer"] | {"max_time": None},
    }
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.monotonic()
        with silent(folder / "log.txt"):
            summary = run(trial, folder)
            if summary["status"] != "finished":
                raise TrialStopped(summary["status"])
            if after is not None:
                after(trial, folder)
        whole = time.monotonic() - started
        rows = read_metrics(folder / METRICS)
    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    settled = speeds[len(speeds) // 2 :]  # the first steps allocate, compile and fill caches
    batch = batch_for(summary["samples"], config["batch_size"])
    step = sum(batch / speed for speed in settled) / len(settled)
    batches = steps_of_an_epoch(config, summary["samples"])
    reading = summary["evaluation_seconds"]
    return Cost(max(0.0, whole - summary["steps"] * step - reading), step, reading, batches)


def steps_of_an_epoch(config: Mapping[str, Any], samples: int) -> int:
    """Batches of `config["batch_size"]` of so many samples, by the loader's `drop_last` and `max_batches`."""
    size = batch_for(samples, config["batch_size"])
    batches = samples // size if config["loader"]["drop_last"] else math.ceil(samples / size)
    return min(batches, config["loader"]["max_batches"] or batches)
