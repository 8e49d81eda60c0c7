"""The Lightning trainer, with a device, a precision and a strategy that suit the machine."""

import ctypes
import logging
import math
import os
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.layer_sync import LayerSync
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import nn
from torch.distributed.distributed_c10d import _set_pg_timeout

from twoview.errors import UserError, listed
from twoview.parallel.norm import global_batch_norm
from twoview.parallel.precision import best_precision, half_of, native_half
from twoview.run.saving import AtomicCheckpointIO, Checkpoints
from twoview.train.launch import environment

log = logging.getLogger(__name__)

ARRIVAL = timedelta(minutes=5)  # how long the processes of a run wait for each other at the start
ANSWER = timedelta(minutes=30)  # and later, as for one that evaluates or writes


def make_trainer(
    run_dir: str,
    max_epochs: int,
    callbacks: list[pl.Callback],
    checkpoints: Checkpoints,
    logger: Any,
    accelerator: str = "auto",
    devices: int | str = "auto",
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: str | int = "auto",
    sync_batchnorm: bool = True,
    gradient_clip_val: float | None = None,
    deterministic: bool = False,
    benchmark: bool = True,
    max_time: str | None = None,
) -> pl.Trainer:
    """A `pytorch_lightning.Trainer` for a contrastive run; the arguments that it has too mean what they mean there.

    `precision="auto"` is the fastest that the device computes in natively (`twoview.parallel.precision`).
    `sync_batchnorm`: batch statistics of the global batch, where it lies on several devices.
    Gradients are never accumulated: a contrastive loss of two half batches is not that of the whole. `max_time` is a
    duration DD:HH:MM:SS (or shorter, MM:SS) after which the run stops and saves its state. `checkpoints` come after
    all other `callbacks`.
    """
    if gradient_clip_val is not None and not 0 < gradient_clip_val < math.inf:
        raise UserError(f"trainer.gradient_clip_val must be positive and finite, or null, not {gradient_clip_val}")
    if left := [name for name in os.environ if name.startswith("PL_TRAINER_")]:
        raise UserError(
            f"the environment sets {listed(left)}, which would change the run without a trace: unset {listed(left)}"
        )
    checkpoints.max_seconds = None if max_time is None else seconds(max_time)
    accelerator = found_accelerator(accelerator)
    if accelerator == "mps":
        if str(precision).startswith("64"):
            raise UserError(f"trainer.precision={precision}: Apple's GPUs have no float64; use trainer=cpu, or 32-true")
        log.info("on an Apple GPU: views, kNN and quality are computed on the CPU, since they need float64")
    if accelerator == "cpu":
        keep_memory()
        if devices == "auto":
            devices = 1
        if isinstance(devices, int) and devices > 1:  # the processes share the cores
            torch.set_num_threads(max(1, torch.get_num_threads() // devices))
    if precision == "auto":
        precision = best_precision(accelerator)
    elif accelerator == "cpu" and half_of(str(precision)) is not None and native_half("cpu") is None:
        log.warning(
            "this CPU has no instructions for trainer.precision=%s and emulates it, which is many times slower than "
            "trainer.precision=32-true",
            precision,
        )
    plugins: list[Any] = [AtomicCheckpointIO(checkpoints.keep)]
    if sync_batchnorm:
        plugins.append(GlobalBatchStatistics())
    if (cluster := environment(number_of(devices, accelerator), num_nodes)) is not None:
        plugins.append(cluster)
    try:
        return pl.Trainer(
            default_root_dir=run_dir,
            max_epochs=max_epochs,
            callbacks=[*callbacks, checkpoints],
            logger=logger,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy_of(strategy, number_of(devices, accelerator) * num_nodes),
            precision=precision,  # type: ignore[arg-type]
            gradient_clip_val=gradient_clip_val,
            deterministic=deterministic,
            benchmark=benchmark and not deterministic,
            plugins=plugins,
            use_distributed_sampler=False,  # the data module takes each rank's share of the global batch
            enable_checkpointing=False,  # `twoview.run.saving.Checkpoints` writes them
            enable_progress_bar=False,  # `twoview.watch.bar.Progress` shows it
            enable_model_summary=False,
        )
    except (ValueError, RuntimeError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise UserError(f"trainer: {error}") from error


def found_accelerator(asked: str) -> str:
    """The accelerator for what was asked for: `auto` and `gpu` are CUDA's GPUs, else Apple's ("mps"); `auto` is the CPU
    where there is neither. UserError for one that torch does not find.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if asked in ("auto", "gpu") and (cuda or mps):
        return "gpu" if cuda else "mps"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked in ("gpu", "cuda") and not cuda:
        remedy = "use trainer=cpu or trainer=auto"
        if hidden is not None:
            remedy = f"CUDA_VISIBLE_DEVICES={hidden!r} may hide them: unset it, or {remedy}"
        raise UserError(f"trainer.accelerator={asked}, but torch finds no GPU on this machine; {remedy}")
    if asked == "mps" and not mps:
        raise UserError(
            "trainer.accelerator=mps, but torch finds no Apple GPU on this machine; use trainer=cpu or trainer=auto"
        )
    if asked == "auto" and hidden is not None and Path("/dev/nvidia0").exists():
        log.warning("CUDA_VISIBLE_DEVICES=%r hides this machine's GPUs: training on the CPU", hidden)
    return "cpu" if asked == "auto" else asked


class Processes(DDPStrategy):
    """DDP whose processes have to arrive within minutes, and may keep each other waiting for longer afterwards."""

    def setup_distributed(self) -> None:
        super().setup_distributed()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its name changes between versions of torch
            _set_pg_timeout(ANSWER)


def strategy_of(asked: str, devices: int) -> str | Strategy:
    """What makes one run of the processes on so many devices. UserError for strategies that are not tested."""
    if asked not in ("auto", "ddp"):
        raise UserError(
            f"trainer.strategy={asked}: runs are tested with auto and ddp. Others may divide weights among devices, "
            "of which LARS and Muon need whole matrices"
        )
    interactive = hasattr(sys, "ps1") or bool(sys.flags.interactive)  # a notebook's processes Lightning forks
    return Processes(timeout=ARRIVAL) if asked == "ddp" or (devices > 1 and not interactive) else asked


def number_of(devices: int | str | Sequence[int], accelerator: str) -> int:
    """How many devices of a node were asked for, as Lightning reads it; 1 for what it is going to refuse."""
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return max(1, len(devices))
    if accelerator in ("gpu", "cuda") and str(devices) in ("auto", "-1"):
        return max(1, torch.cuda.device_count())
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    try:
        return max(1, int(devices))
    except ValueError:
        return 1


class GlobalBatchStatistics(LayerSync):
    """Tells Lightning's distributed strategies how to give a model the batch statistics of the global batch."""

    def apply(self, model: nn.Module) -> nn.Module:
        device = model.trainer.strategy.root_device if isinstance(model, pl.LightningModule) else torch.device("cpu")
        return global_batch_norm(model, device)

    def revert(self, model: nn.Module) -> nn.Module:
        return model  # their weights have the names of the layers that they replaced


def keep_memory() -> None:
    """Tells glibc to keep freed memory instead of handing it back to the system.

    By default every tensor beyond 32 MiB is mapped afresh and the kernel clears each of its pages on first use, which
    can cost more than the arithmetic on it. Does nothing where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(ctypes.c_int(-4), ctypes.c_int(0))  # M_MMAP_MAX: nothing is mapped on its own
    mallopt(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD: the top of the heap stays


def seconds(duration: str) -> float:
    """Seconds of a duration written DD:HH:MM:SS, HH:MM:SS or MM:SS."""
    try:
        parts = [int(part) for part in duration.split(":")]
    except ValueError:
        parts = []
    if not 2 <= len(parts) <= 4 or min(parts) < 0 or sum(parts) == 0:
        raise UserError(
            f"trainer.max_time={duration} must be a duration DD:HH:MM:SS, as in 00:01:30:00, or shorter, MM:SS"
        )
    d, h, m, s = [0] * (4 - len(parts)) + parts
    return timedelta(days=d, hours=h, minutes=m, seconds=s).total_seconds()
