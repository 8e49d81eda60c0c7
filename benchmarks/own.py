"""twoview itself as the benchmarks drive it: the real configurations, the objects they describe, and real runs."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import hydra
import torch
from torch import Tensor

from twoview.cli import schema
from twoview.cli.configs import CONFIGS
from twoview.cli.entry import plain
from twoview.cli.trust import trusting
from twoview.model.base import Begin
from twoview.parallel.precision import half_of
from twoview.run.saving import Checkpoints, Interrupted
from twoview.train import pretrain
from twoview.train.compiled import Compiler

IMAGES = 50_000  # of an epoch of CIFAR-10


def configuration(words: list[str], name: str = "train") -> dict[str, Any]:
    """That of `python train.py` with these words, or of another command."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return plain(hydra.compose(name, overrides=words))


def autocast(device: str, chosen: str) -> AbstractContextManager[Any]:
    half = half_of(chosen)
    return torch.autocast(device, half, enabled=half is not None)


def model_and_optimizer(config: dict[str, Any], device: str, chosen: str) -> tuple[Any, torch.optim.Optimizer]:
    """As `twoview.train.pretrain` makes them, on `device` and for the precision `chosen`."""
    encoder = schema.build(config["encoder"])
    if config["channels_last"]:
        encoder = encoder.to(memory_format=torch.channels_last)
    model = schema.build(config["model"], encoder=encoder, optimizer=schema.build(config["optimizer"])).to(device)
    steps = IMAGES // config["batch_size"] * config["epochs"]
    through = Compiler(config["compile"])
    through.decide(torch.device(device), steps, world_size=1)
    model.begin(Begin(config["batch_size"], steps, config["epochs"], even_shares=True, metered=True, through=through))
    optimizer, _ = model.recipe.build(model, config["batch_size"], steps, config["epochs"], half=half_of(chosen))
    return model.train(), optimizer


def views(config: dict[str, Any], device: str) -> tuple[Tensor, Tensor]:
    """Two batches of noise in the shape of the views of `config`: float32 (B, 3, H', W') each."""
    side = config["augment"]["ops"]["crop"]["size"] or 32
    generator = torch.Generator().manual_seed(0)
    v1, v2 = torch.randn(2, config["batch_size"], 3, side, side, generator=generator).to(device)
    return v1, v2


def run(config: dict[str, Any], folder: Path, steps: int, on_step: Callable[[Any], None]) -> dict[str, Any]:
    """A run that is stopped after `steps` steps, each of which ends with `on_step(trainer)`."""
    original = Checkpoints.on_train_batch_end  # of the last of the callbacks

    def noting(self: Checkpoints, trainer: Any, *args: Any, **kwargs: Any) -> None:
        original(self, trainer, *args, **kwargs)
        on_step(trainer)
        if trainer.global_step >= steps:
            raise Interrupted("measured", folder / "last.ckpt")

    Checkpoints.on_train_batch_end = noting  # type: ignore[method-assign]
    try:
        with trusting(config.get("trust")):
            return pretrain.run(config, folder)
    finally:
        Checkpoints.on_train_batch_end = original  # type: ignore[method-assign]


class Clock:
    """Seconds per step: of passes of `every` steps, after `warm` steps that allocate and compile. Where steps come in
    turns of unequal length (as from several loader workers), `every` is the length of a turn.
    """

    def __init__(self, device: str, warm: int, every: int = 1) -> None:
        self.cuda, self.warm, self.every = device == "cuda", warm, every
        self.began = time.perf_counter()
        self.first = 0.0  # seconds until the first step had ended
        self.steps = 0
        self.seconds: list[float] = []
        self._start = 0.0

    def tick(self, *_: Any) -> None:
        """A step has ended."""
        self.steps += 1
        if self.steps == 1 or (self.steps >= self.warm and (self.steps - self.warm) % self.every == 0):
            if self.cuda:
                torch.cuda.synchronize()
            now = time.perf_counter()
            if self.steps == 1:
                self.first = now - self.began
            if self.steps > self.warm:
                self.seconds.append((now - self._start) / self.every)
            self._start = now
