"""When a run saves its state, and how: whole files, the last few of them kept, by one process in one folder."""

import itertools
import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from twoview.data.demand import Shape
from twoview.data.preprocess import Preprocess
from twoview.errors import UserError
from twoview.parallel.devices import refuse_disagreement
from twoview.run.atomic import replace_durably
from twoview.run.folder import CHECKPOINT
from twoview.run.signals import REASONS, LastResort, forget_lost_terminal, is_meant, requeue, under_slurm

log = logging.getLogger(__name__)

FORMAT = 1


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its destination, brings it to the disk and renames it: the file is always a whole
    one. The `keep - 1` files before it stay as `last-1.ckpt`, `last-2.ckpt` and so on, from new to old.
    """

    def __init__(self, keep: int = 1) -> None:
        super().__init__()
        self.keep = keep

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            self._set_back(path)
            replace_durably(part, path)
        except (OSError, RuntimeError) as error:  # the latter is torch's for a write that fails
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(f"cannot write {path}: {reason}; the checkpoint before it is untouched") from error
        finally:
            part.unlink(missing_ok=True)

    def _set_back(self, path: Path) -> None:
        """Gives every file the name of the one before it. There is a file named `path` at any moment."""
        free = next(n for n in itertools.count(1) if not earlier(path, n).exists())
        for n in range(min(self.keep - 1, free), 1, -1):
            os.replace(earlier(path, n - 1), earlier(path, n))
        if self.keep > 1 and path.exists():
            link = path.with_name(f".{path.name}.{os.getpid()}.link.part")
            try:
                os.link(path, link)
                os.replace(link, earlier(path, 1))
            except OSError:  # a file system without links
                os.replace(path, earlier(path, 1))
            finally:
                link.unlink(missing_ok=True)


def earlier(path: Path, n: int) -> Path:
    """The name of the checkpoint `n` before that of `path`."""
    return path.with_name(f"{path.stem}-{n}{path.suffix}")


def kept(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, from new to old."""
    before = [p for p in folder.glob("last-*.ckpt") if re.fullmatch(r"last-\d+\.ckpt", p.name)]
    before.sort(key=lambda path: int(path.stem.removeprefix("last-")))
    return [path for path in (folder / CHECKPOINT, *before) if path.is_file()]


class Interrupted(Exception):  # noqa: N818
    """Training was asked to stop, and its state is saved in `path`."""

    def __init__(self, reason: str, path: Path) -> None:
        super().__init__(reason)
        self.reason, self.path = reason, path


class Checkpoints(pl.Callback):
    """Writes `last.ckpt` every few epochs and minutes and at the end, and when the run is asked to stop.

    A ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or the end of `max_seconds` stops the run after the step at hand with
    `Interrupted`; the same signal once more stops it at once. `keep` files are kept, the newest included. What cannot
    be written (a full disk) ends the run with a UserError; with `on_error="continue"` a run on one device says so, goes
    on, and ends so only if its last state cannot be written. Under SLURM, SIGUSR1 also requeues the job.
    """

    def __init__(
        self,
        config: dict[str, Any],
        preprocess: Preprocess,
        shape: Shape,
        every_epochs: int = 1,
        every_minutes: float | None = None,
        keep: int = 2,
        on_error: Literal["stop", "continue"] = "stop",
    ) -> None:
        if every_epochs < 1:
            raise UserError(f"checkpoint.every_epochs must be at least 1, not {every_epochs}")
        if every_minutes is not None and not every_minutes > 0:
            raise UserError(f"checkpoint.every_minutes must be positive, or null, not {every_minutes}")
        if keep < 1:
            raise UserError(f"checkpoint.keep must be at least 1, not {keep}")
        self.config = config
        self.preprocess, self.shape = preprocess, shape
        self.every_epochs = every_epochs
        self.every_seconds = float("inf") if every_minutes is None else 60 * every_minutes
        self.keep = keep
        self.on_error = on_error
        self.identity: dict[str, Any] = {}  # set by the run, as are
        self.claims: dict[str, Any] = {}  # what all its processes have to agree on
        self.max_seconds: float | None = None
        self.stop_reason: str | None = None
        self._random: list[dict[str, torch.Tensor]] = []  # of each process, where a run is gone on with
        self._stopped_at = 0.0  # time.monotonic() of the signal
        self._previous: dict[int, Any] = {}
        self._last_resort: LastResort | None = None

    def path(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / CHECKPOINT

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        refuse_disagreement(self.claims)  # before anything waits for another process

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._deadline = time.monotonic() + self.max_seconds if self.max_seconds is not None else float("inf")
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Again: Lightning has put a handler in front of ours that broadcasts at any moment, out of turn with what the
        # processes are telling each other, and all of them would wait for ever.
        self.take_signals()
        rank = trainer.global_rank
        if rank < len(self._random):
            set_random_state(self._random[rank], pl_module.device)
        elif rank:  # the first goes on with the numbers that drew the weights
            torch.manual_seed(self.config["seed"] + (rank << 32))

    def take_signals(self) -> None:
        """From now on signals stop the run, not the process; but not a lost connection under `nohup`."""
        if threading.current_thread() is threading.main_thread():
            for number, reason in REASONS.items():
                if reason != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN:
                    previous = signal.signal(number, self._on_signal)
                    self._previous.setdefault(number, previous)
            self._last_resort = self._last_resort or LastResort()

    def _on_signal(self, number: int, frame: Any) -> None:
        reason = REASONS[signal.Signals(number)]
        forget_lost_terminal()
        if self.stop_reason == reason:
            if is_meant(number, time.monotonic() - self._stopped_at):
                if self._last_resort is not None:
                    self._last_resort.reached.set()
                raise SystemExit(128 + number)  # of a KeyboardInterrupt Lightning makes exit code 1
            return
        if self.stop_reason is None:
            log.info("%s: stopping after this step (again to stop at once, without saving)", reason)
        self.stop_reason, self._stopped_at = reason, time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.is_last_batch or (trainer.world_size > 1 and trainer.global_step % 10):
            return  # several processes ask each other now and then, since the answer makes a GPU's host wait
        if self._stops(trainer):  # the end of an epoch has readings to make before
            self._save_and_stop(trainer)
        if self._is_due(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs
        if self._stops(trainer) and not last:
            self._save_and_stop(trainer)
        if self._is_due(trainer) or epoch % self.every_epochs == 0 or last:
            self._save(trainer, must=last)

    def _stops(self, trainer: pl.Trainer) -> bool:
        if time.monotonic() > self._deadline and self.stop_reason is None:
            self.stop_reason = "trainer.max_time is over"
        stops = self._any(trainer, self.stop_reason is not None)  # one alone would wait for the others
        if stops and self.stop_reason is None:
            self.stop_reason = "another process was asked to"
        return stops

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if self.every_seconds == float("inf"):
            return False
        return self._any(trainer, time.monotonic() - self._saved_at >= self.every_seconds)

    @staticmethod
    def _any(trainer: pl.Trainer, yes: bool) -> bool:
        """Whether any process says yes: all of them act after the same step."""
        return bool(trainer.strategy.reduce_boolean_decision(yes, all=False)) if trainer.world_size > 1 else yes

    def _save(self, trainer: pl.Trainer, must: bool = False) -> None:
        try:
            trainer.save_checkpoint(self.path(trainer))
        except UserError as error:
            if must or self.on_error == "stop" or trainer.world_size > 1:
                raise
            log.warning("%s. The run goes on and tries again at the next one (checkpoint.on_error=continue)", error)
        self._saved_at = time.monotonic()

    def _save_and_stop(self, trainer: pl.Trainer) -> None:
        self._save(trainer, must=True)
        if under_slurm() and self._any(trainer, self.stop_reason == "SIGUSR1") and trainer.is_global_zero:
            requeue()
        raise Interrupted(self.stop_reason or "", self.path(trainer))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for name, value in checkpoint["state_dict"].items():  # the loss of the next step would tell, but too late
            if value.is_floating_point() and not value.isfinite().all():
                raise UserError(
                    f"{name} is not finite after step {trainer.global_step}: the last update was too large, and is not "
                    "saved. Try a third of optimizer.lr_per_256, or trainer.gradient_clip_val=1. The checkpoint before "
                    "it stays"
                )
        checkpoint["twoview"] = self.about() | {"steps_per_epoch": int(trainer.num_training_batches)}
        checkpoint["preprocess"] = self.preprocess.state_dict()
        checkpoint["random"] = _of_all(trainer, random_state(pl_module.device))

    def about(self) -> dict[str, Any]:
        """What rebuilds the encoder from its weights, and who the run is: plain containers."""
        return {
            "format": FORMAT,
            "config": self.config,
            "preprocess": self.preprocess.describe(),
            "shape": json.loads(json.dumps(self.shape)),  # lists, wherever it is read from
            "identity": self.identity,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = checkpoint.get("random")
        if not isinstance(states, list) or not all(isinstance(s, dict) and _is_state(s.get("cpu")) for s in states):
            raise UserError("the checkpoint is damaged: it lacks the states of the generators of random numbers")
        if checkpoint["twoview"]["config"].get("seed") == self.config["seed"]:
            self._random = states

    def release_signals(self) -> None:
        """Gives the signals back, for after the fit: Lightning, at its end, sets the handlers again that it found."""
        if self._last_resort is not None:
            self._last_resort.stop()
            self._last_resort = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Where torch's generators stand, of the CPU and of the device: dropout and drop-path draw from them."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def _is_state(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.uint8 and value.shape == torch.get_rng_state().shape


def set_random_state(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """States of other kinds of devices are left alone."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        getattr(torch, device.type).set_rng_state(states[device.type])


def _of_all(trainer: pl.Trainer, value: Any) -> list[Any]:
    """The values of all processes, by their ranks."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values
