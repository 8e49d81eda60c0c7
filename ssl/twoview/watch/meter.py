"""Monitors of a run: they read what the training step and the encoder give, and never touch the method."""

import csv
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from twoview.errors import UserError
from twoview.run.folder import METRICS, read_rows, write_rows

log = logging.getLogger(__name__)

QUALITIES = {  # names in metrics.csv, behind h_ and z_, of what `twoview.evaluate.describe.quality` finds
    "alignment": "alignment",
    "uniformity": "uniformity",
    "rankme": "rankme",
    "effective_rank": "effective_rank",
    "participation_ratio": "participation_ratio",
    "std": "feature_std_relative",
    "correlation": "feature_correlation",
    "contrastive_accuracy": "contrastive_accuracy",
}


class Meter(pl.Callback):
    """Loss, its chance level if it has one, the method's numbers, learning rate, images/s and `waiting`, the share of
    the time in which the process waited for batches, to TensorBoard and `metrics.csv` every `every_steps` steps.

    Sums stay on the training device and are read once per interval, so that the host does not wait for a GPU.
    `latest` holds the newest values for whoever shows them. A loss that is not finite ends the run with a UserError
    before another checkpoint is written.
    """

    def __init__(self, every_steps: int = 20) -> None:
        if every_steps < 1:
            raise UserError(f"log_every_steps must be at least 1, not {every_steps}")
        self.every_steps = every_steps
        self.latest: dict[str, float] = {}
        self.newest: dict[str, float] = {}  # of all that was written, monitors' too
        self.seldom: set[str] = set()  # what is read once or twice in the run
        self.numbers: tuple[str, ...] = ()  # names of what the method tells beside loss and chance level
        self.seconds = 0.0  # training time of the run, over all its resumptions
        self.waited = 0.0  # of these for batches
        self.evaluating = 0.0  # seconds of evaluations beside these, since this process began
        self._sum: Tensor | None = None  # (n,) of the interval: of `_names`
        self._names: tuple[str, ...] = ()
        self._columns: list[str] = []  # of metrics.csv
        self._unwritten: list[dict[str, Any]] = []  # rows for metrics.csv
        self._count = 0
        self._clock = time.monotonic()
        self._elapsed = 0.0  # of an interval that a resumed run goes on with
        self._waited = 0.0  # of the interval, from the end of a step to the arrival of the next batch
        self._free = self._clock  # since when there has been no step to make

    def state_dict(self) -> dict[str, Any]:
        """With the interval at hand, so that the reading after a resumption is that of an uninterrupted run."""
        return {
            "seconds": self.seconds,
            "seconds_waited": self.waited,
            "latest": dict(self.latest),
            "numbers": list(self.numbers),
            "names": list(self._names),
            "sum": None if self._sum is None else self._sum.cpu(),
            "count": self._count,
            "elapsed": time.monotonic() - self._clock,
            "waited": self._waited,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.latest = state_dict["seconds"], state_dict["latest"]
        self.waited = state_dict.get("seconds_waited", 0.0)
        self.numbers, self._names = tuple(state_dict["numbers"]), tuple(state_dict["names"])
        self._sum, self._count = state_dict["sum"], state_dict["count"]
        self._elapsed, self._waited = state_dict["elapsed"], state_dict.get("waited", 0.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._file = Path(trainer.default_root_dir) / METRICS
        if trainer.is_global_zero:
            self._columns = _keep_rows(self._file, trainer.global_step)
        self._free = time.monotonic()
        self._clock = self._free - self._elapsed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._free = time.monotonic()  # evaluations and checkpoints between epochs are no waiting

    def on_train_batch_start(self, trainer: Any, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._waited += max(0.0, trainer.datamodule.arrived - self._free)  # before its views were made

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        chance = {} if outputs["chance"] is None else {"chance_loss": outputs["chance"]}
        found = {"loss": outputs["loss"], **chance, **outputs["numbers"]}
        if self._sum is not None and tuple(found) != self._names:
            raise ValueError(f"a method tells the same numbers in every step: {list(found)} after {list(self._names)}")
        self._names, self.numbers = tuple(found), tuple(outputs["numbers"])
        values = torch.stack([value.detach().float() for value in found.values()])  # (n,)
        self._sum = values if self._sum is None else self._sum.to(values.device) + values
        self._count += 1
        if trainer.global_step % self.every_steps == 0:
            self.read(trainer, pl_module)
        elif values.device.type == "cpu":
            self._refuse_nan(trainer, values[0])
        self._free = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.read(trainer, pl_module)

    def read(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._sum is None:
            return
        self._refuse_nan(trainer, self._sum[0])
        means = dict(zip(self._names, (self._sum / self._count).tolist(), strict=True))
        now = time.monotonic()
        elapsed, self._clock = max(now - self._clock, 1e-9), now  # some clocks tick every 16 ms
        self.seconds += elapsed
        self.waited += self._waited
        reading = means | {
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "images_per_second": self._count * pl_module.run.global_batch_size / elapsed,
            "seconds": self.seconds,
            "waiting": self._waited / elapsed,
        }
        self.latest |= reading
        self._sum, self._count, self._waited = None, 0, 0.0
        self.write(trainer, **reading)

    def write(self, trainer: pl.Trainer, seldom: bool = False, **values: float) -> None:
        """One row of metrics, in `metrics.csv`, where a new name gets a column, and in TensorBoard, where two points
        are no curve: what is `seldom` read gets its last number alone (`twoview.watch.board`).
        """
        if not trainer.is_global_zero:
            return
        self.newest.update(values)
        if seldom:
            self.seldom.update(values)
        else:
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
        row = {"step": trainer.global_step, "epoch": trainer.current_epoch + 1} | values
        self._unwritten.append(
            {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
        )
        size = self._file.stat().st_size if self._file.exists() else 0
        columns = list(dict.fromkeys([*self._columns, *(name for unwritten in self._unwritten for name in unwritten)]))
        try:
            if columns != self._columns or not size:
                before = read_rows(self._file) if size else []
                write_rows(self._file, columns, [*before, *self._unwritten])
                self._columns = columns
            else:
                with self._file.open("a", newline="") as file:
                    csv.DictWriter(file, columns, lineterminator="\n").writerows(self._unwritten)
            self._unwritten.clear()
        except OSError as error:  # a full disk: what becomes of the run is decided at the next checkpoint
            if len(self._unwritten) == 1:
                log.warning("cannot write %s: %s; its rows wait for the next time", self._file, error.strerror)
            with suppress(OSError):
                os.truncate(self._file, size)

    def pause(self) -> None:
        """Counts the time since the last reading as that of an evaluation, and leaves it out of images/s and of the
        training time.
        """
        now = time.monotonic()
        self.evaluating += now - self._clock
        self._clock = now

    def _refuse_nan(self, trainer: pl.Trainer, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            self.write(trainer, loss=float(loss), lr=lr)
            raise UserError(
                f"the loss is not finite at step {trainer.global_step} (epoch {trainer.current_epoch + 1}). The likely "
                f"cause is too high a learning rate (lr={lr:.3g}): try a third of optimizer.lr_per_256, a longer "
                f"optimizer.warmup_epochs, or trainer.precision=32-true. The checkpoint before it stays"
            )


def _keep_rows(path: Path, last_step: int) -> list[str]:
    """Drops rows that a resumed run is going to write again. Returns the columns."""
    rows = read_rows(path) if path.exists() else []
    columns = list(rows[0]) if rows else []
    if path.exists():  # and what is torn
        write_rows(path, columns, (row for row in rows if int(row["step"]) <= last_step))
    return columns
