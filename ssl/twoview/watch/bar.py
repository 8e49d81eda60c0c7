"""What a run shows while it trains: one bar over all its steps on a terminal, a line per epoch elsewhere."""

import logging
import threading
import time
from typing import Any

import pytorch_lightning as pl
from rich import get_console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.progress import Task as BarTask
from rich.text import Text

from twoview.report.words import clock
from twoview.watch.meter import Meter

log = logging.getLogger(__name__)

HOUR = 3600.0
WARM_STEPS = 10  # steps at most that are left out of the projected time: they allocate, compile and fill caches
SOON = 9.0  # seconds from the end of the first step to the word on the time that the run will take


class ProgressBar(pl.Callback):
    """Epoch, loss against its chance level, the method's numbers, kNN, images/s and time left of the whole run."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._bar: Progress | None = None
        self._timer: threading.Timer | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first_step = trainer.global_step
        self._ends = [time.monotonic()]  # of the steps before the first, of the first, ... of the last warm one
        self._newest = self._ends[0]
        if trainer.is_global_zero and get_console().is_terminal:
            columns: tuple[ProgressColumn, ...] = TextColumn("{task.description}"), BarColumn(bar_width=16), _Text()
            self._bar = Progress(*columns, console=get_console(), refresh_per_second=4)
            self._task = self._bar.add_task(
                self._epoch(trainer),
                total=trainer.estimated_stepping_batches,
                completed=trainer.global_step,
                text="",
            )
            self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        self._newest = time.monotonic()
        if len(self._ends) <= WARM_STEPS:
            self._ends.append(self._newest)
        if self._timer is None and trainer.is_global_zero:  # a clock of its own: the second step may take minutes
            self._timer = threading.Timer(SOON, self._say_how_long, (trainer, pl_module))
            self._timer.daemon = True
            self._timer.start()
        self._show(trainer)

    def _show(self, trainer: pl.Trainer) -> None:
        if self._bar is not None:
            done, now = trainer.global_step, self._epoch(trainer)
            self._bar.update(self._task, completed=done, description=now, text=self._text(trainer))

    def _say_how_long(self, trainer: pl.Trainer, pl_module: Any) -> None:
        left = self.seconds_left(trainer)
        log.info("the run will take about %s, and its evaluations", clock(left))
        if left > HOUR and pl_module.device.type == "cpu":
            log.warning(
                "that is long for a CPU: budget=60 takes as many epochs as fit into an hour, and "
                "experiment=cifar10_cpu has a small network made for CPUs"
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is None and trainer.is_global_zero:
            log.info("%s  %s", self._epoch(trainer), self._text(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show(trainer)  # with the last readings, which stand in the lines below it too
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def seconds_left(self, trainer: pl.Trainer) -> float:
        """From the mean time per step so far, evaluations included, without the first half of the steps, of which
        `WARM_STEPS` at most.
        """
        done = trainer.global_step - self._first_step
        if not done:
            return float("inf")
        warm = min(WARM_STEPS, done // 2)
        left = trainer.estimated_stepping_batches - trainer.global_step
        return left * (self._newest - self._ends[warm]) / (done - warm)

    def _epoch(self, trainer: pl.Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"

    def _text(self, trainer: pl.Trainer) -> str:
        m = self.meter.latest
        parts = []
        if self._bar is not None and (left := self._left(trainer)):  # what a narrow terminal cuts off stands last
            parts.append(left)
        if "loss" in m:
            parts.append(f"loss {m['loss']:.3f}" + (f" (chance {m['chance_loss']:.2f})" if "chance_loss" in m else ""))
        told = [name for name in self.meter.numbers[:2] if name in m]  # what the method names first
        parts += [f"acc {m[name]:.1%}" if name == "accuracy" else f"{name} {m[name]:.3g}" for name in told]
        if "knn" in m:
            parts.append(f"kNN {m['knn']:.1%}")
        if "images_per_second" in m:
            parts.append(f"{m['images_per_second']:,.0f} images/s")
        if self._bar is None and (left := self._left(trainer)):
            parts.append(left)
        return "  ".join(parts)

    def _left(self, trainer: pl.Trainer) -> str:
        left = self.seconds_left(trainer)
        return f"{clock(left)} left" if 0 < left < float("inf") else ""


class _Text(ProgressColumn):
    def render(self, task: BarTask) -> Text:
        return Text(task.fields["text"], no_wrap=True, overflow="ellipsis")
