"""What a run shows while it trains: one bar over all its steps on a terminal, a line per epoch elsewhere."""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import pytorch_lightning as pl
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as BarTask
from rich.text import Text

from twoview.report.words import clock
from twoview.watch.meter import Meter

log = logging.getLogger(__name__)

HOUR = 3600.0
WARM_STEPS = 10  # steps that are left out of the projected time: they allocate, compile and fill caches


class ProgressBar(pl.Callback):
    """Epoch, loss against its chance level, the method's numbers, kNN, images/s and time left of the whole run."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._bar: Progress | None = None
        self._warned = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first_step = self._start_step = trainer.global_step
        self._start_time = time.monotonic()
        if trainer.is_global_zero and get_console().is_terminal:
            columns: tuple[ProgressColumn, ...] = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                _Text(),
            )
            self._bar = Progress(*columns, console=get_console(), refresh_per_second=4)
            self._task = self._bar.add_task(
                self._epoch(trainer),
                total=trainer.estimated_stepping_batches,
                completed=trainer.global_step,
                text="",
            )
            self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        done = trainer.global_step - self._first_step
        if done == WARM_STEPS:
            self._start_step, self._start_time = trainer.global_step, time.monotonic()
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=trainer.global_step,
                description=self._epoch(trainer),
                text=self._text(trainer),
            )
        if done == 3 * WARM_STEPS and not self._warned:
            self._warned = True
            left = self.seconds_left(trainer)
            if left > HOUR and pl_module.device.type == "cpu" and trainer.is_global_zero:
                log.warning(
                    "on this CPU the run will take about %s; experiment=cifar10_cpu takes 15 minutes on 2 cores",
                    clock(left),
                )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is None and trainer.is_global_zero:
            log.info("%s  %s", self._epoch(trainer), self._text(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def seconds_left(self, trainer: pl.Trainer) -> float:
        """From the mean time per step so far, evaluations included."""
        done = trainer.global_step - self._start_step
        left = trainer.estimated_stepping_batches - trainer.global_step
        return left * (time.monotonic() - self._start_time) / done if done else float("inf")

    def _epoch(self, trainer: pl.Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"

    def _text(self, trainer: pl.Trainer) -> str:
        m = self.meter.latest
        parts = []
        if "loss" in m:
            parts.append(f"loss {m['loss']:.3f}" + (f" (chance {m['chance_loss']:.2f})" if "chance_loss" in m else ""))
        told = [name for name in self.meter.numbers if name in m]
        parts += [f"acc {m[name]:.1%}" if name == "accuracy" else f"{name} {m[name]:.3g}" for name in told]
        if "knn" in m:
            parts.append(f"kNN {m['knn']:.1%}")
        if "images_per_second" in m:
            parts.append(f"{m['images_per_second']:,.0f} images/s")
        left = self.seconds_left(trainer)
        if left < float("inf"):
            parts.append(f"{clock(left)} left")
        return "  ".join(parts)


class _Text(ProgressColumn):
    def render(self, task: BarTask) -> Text:
        return Text(task.fields["text"], no_wrap=True, overflow="ellipsis")


T = TypeVar("T")

SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal for a bar


def tracked(items: Sequence[T], what: str) -> Iterator[T]:
    """The items one by one, with a bar on a terminal and a line now and then elsewhere."""
    if get_console().is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=get_console(), transient=True) as bar:
            yield from bar.track(items, total=len(items), description=what)
        return
    began = said = time.monotonic()
    for done, item in enumerate(items):
        if (now := time.monotonic()) - said > SECONDS_BETWEEN_LINES:
            log.info("%s: %d of %d, %s left", what, done, len(items), clock((now - began) * (len(items) / done - 1)))
            said = now
        yield item
