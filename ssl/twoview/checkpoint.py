"""What a checkpoint holds, how it is written, and how an encoder comes back out of it.

A checkpoint is Lightning's (weights, optimizer, schedule, progress) with one entry more, `twoview`: the resolved
configuration and the normalisation of the images. It consists of tensors and plain containers, so it loads with
`weights_only=True` and runs no code, and it rebuilds its own encoder.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from twoview.errors import UserError
from twoview.evaluate.features import ImageEncoder
from twoview.schema import build

log = logging.getLogger(__name__)

FORMAT = 1


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its destination, brings it to the disk and renames it: the file is always a whole
    one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except (OSError, RuntimeError) as error:  # the latter is torch's for a write that fails
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(f"cannot write {path}: {reason}; the checkpoint before it is untouched") from error
        finally:
            part.unlink(missing_ok=True)


class Interrupted(Exception):  # noqa: N818
    """Training was asked to stop, and its state is saved in `path`."""

    def __init__(self, reason: str, path: Path) -> None:
        super().__init__(reason)
        self.reason, self.path = reason, path


class Checkpoints(pl.Callback):
    """Writes `last.ckpt` every few epochs and at the end, and when the run is asked to stop.

    A ctrl-C, SIGTERM or the end of `max_seconds` stops the run after the step at hand with `Interrupted`; a second
    ctrl-C at once.
    """

    def __init__(
        self,
        config: dict[str, Any],
        normalization: Mapping[str, tuple[float, ...]],
        every_epochs: int = 1,
    ) -> None:
        if every_epochs < 1:
            raise UserError(f"checkpoint.every_epochs must be at least 1, not {every_epochs}")
        self.config = config
        self.normalization = {name: list(values) for name, values in normalization.items()}
        self.every_epochs = every_epochs
        self.max_seconds: float | None = None
        self.stop_reason: str | None = None
        self._previous: dict[int, Any] = {}

    def path(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "last.ckpt"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._deadline = time.monotonic() + self.max_seconds if self.max_seconds is not None else float("inf")
        self._take_signals()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Again: Lightning has put a handler in front of ours that broadcasts at any moment, out of turn with what the
        # processes are telling each other, and all of them would wait for ever.
        self._take_signals()

    def _take_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.signal(number, self._on_signal)
                self._previous.setdefault(number, previous)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.stop_reason is not None and number == signal.SIGINT:
            raise SystemExit(130)  # of a KeyboardInterrupt Lightning makes exit code 1
        self.stop_reason = "ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        log.info("%s: stopping after this step (again to stop at once, without saving)", self.stop_reason)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.is_last_batch or (trainer.world_size > 1 and trainer.global_step % 10):
            return  # several processes ask each other now and then, since the answer makes a GPU's host wait
        if self._stops(trainer):  # the end of an epoch has readings to make before
            self._save_and_stop(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if self._stops(trainer) and epoch != trainer.max_epochs:
            self._save_and_stop(trainer)
        if epoch % self.every_epochs == 0 or epoch == trainer.max_epochs:
            trainer.save_checkpoint(self.path(trainer))

    def _stops(self, trainer: pl.Trainer) -> bool:
        if time.monotonic() > self._deadline and self.stop_reason is None:
            self.stop_reason = "trainer.max_time is over"
        stops = self.stop_reason is not None
        if trainer.world_size > 1:  # all processes stop after the same step: one alone would wait for the others
            stops = trainer.strategy.reduce_boolean_decision(stops, all=False)
            if stops and self.stop_reason is None:
                self.stop_reason = "another process was asked to"
        return stops

    def _save_and_stop(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path(trainer))
        raise Interrupted(self.stop_reason or "", self.path(trainer))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["twoview"] = {"format": FORMAT, "config": self.config, "normalization": self.normalization}

    def release_signals(self) -> None:
        """Gives the signals back, for after the fit: Lightning, at its end, sets the handlers again that it found."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint in a file, or `last.ckpt` of a run folder. UserError for anything that is not one of twoview's."""
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "last.ckpt"
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; give the last.ckpt of a run, or its folder")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for damaged and for foreign files
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is damaged, or not a checkpoint of twoview"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("twoview"), dict):
        raise UserError(f"{path} is not a checkpoint of twoview: it lacks the configuration that rebuilds the encoder")
    found = checkpoint["twoview"].get("format")
    if found != FORMAT:
        raise UserError(f"{path} is in format {found} of twoview's checkpoints, this version reads format {FORMAT}")
    _check_about(checkpoint["twoview"], path)
    return checkpoint


def _check_about(about: Mapping[str, Any], path: Path) -> None:
    config, normalization = about.get("config"), about.get("normalization")
    whole = isinstance(config, dict) and "encoder" in config and isinstance(normalization, dict)
    if not (whole and {"mean", "std"} <= normalization.keys()):  # type: ignore[union-attr]
        raise UserError(f"{path} is not a checkpoint of twoview: it lacks the configuration that rebuilds the encoder")


def load_encoder(path: str | Path, encoder_of: str = "query") -> ImageEncoder:
    """The frozen encoder of a run, in eval mode: images (B, C, H, W) in [0, 1] -> h (B, D).

    `path` is a checkpoint, a run folder or an `encoder.safetensors`. The network is rebuilt from the file alone;
    every weight must be there and nothing else. The attribute `encoder` is the plain network, `config` the
    configuration of the run. `encoder_of="key"` gives the key encoder of MoCo instead of the one that is trained.
    """
    if encoder_of not in ("query", "key"):
        raise UserError(f"encoder_of must be query or key, not {encoder_of}")
    path = Path(path).expanduser()
    prefix = "encoder." if encoder_of == "query" else "key_encoder."
    if path.suffix == ".safetensors":
        weights, about = _read_safetensors(path)
    else:
        checkpoint = read_checkpoint(path)
        about = checkpoint["twoview"]
        weights = {
            name.removeprefix(prefix): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
    if encoder_of == "key" and (path.suffix == ".safetensors" or not weights):
        raise UserError(f"{path} holds no key encoder: only checkpoints of MoCo have one; use encoder_of=query")
    encoder = build_encoder(about["config"])
    try:
        encoder.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(f"the weights in {path} do not fit the encoder of its own configuration: {error}") from error
    frozen = ImageEncoder(encoder, about["normalization"]["mean"], about["normalization"]["std"])
    frozen.config = about["config"]
    return frozen.requires_grad_(False).eval()


def load_projector(path: str | Path) -> nn.Module:
    """The frozen projection head g of a run, in eval mode: h (B, D) -> z (B, P), not normalised.

    `path` is a checkpoint or a run folder. Of MoCo it is the query's head.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint["twoview"]["config"]
    encoder = build_encoder(config)
    recipe = instantiate_own(config["optimizer"])
    model = instantiate_own(config["model"], encoder=encoder, optimizer=recipe)
    weights = {
        name.removeprefix("projector."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("projector.")
    }
    try:
        model.projector.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(f"the weights in {path} do not fit the head of its own configuration: {error}") from error
    projector: nn.Module = model.projector
    return projector.requires_grad_(False).eval()


def build_encoder(config: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised encoder of a run's configuration."""
    return instantiate_own(config["encoder"])


def instantiate_own(node: Mapping[str, Any], **arguments: Any) -> Any:
    """Builds an object of twoview's from a configuration that may come from a stranger: targets outside the package
    are refused.
    """
    refuse_foreign(node)
    return build(node, **arguments)


def refuse_foreign(node: Any) -> None:
    """UserError for a configuration that calls what is neither of twoview nor an optimizer of torch."""
    if isinstance(node, Mapping):
        if "_target_" in node and not _is_own(node["_target_"]):
            raise UserError(
                f"the configuration in the checkpoint wants to call {node['_target_']!r}, which is not part of "
                "twoview: refused"
            )
        for value in node.values():
            refuse_foreign(value)
    elif isinstance(node, list | tuple):
        for value in node:
            refuse_foreign(value)
    elif isinstance(node, str) and "${" in node:  # what is stored is resolved; a resolver could make a target of it
        raise UserError(f"the configuration in the checkpoint holds the expression {node!r}: refused")


def _is_own(target: Any) -> bool:
    """Whether a path leads to what twoview defines, not to what its modules import, as `twoview.command.os.system`; or
    to a class of optimizers.
    """
    if not isinstance(target, str) or not target.startswith(("twoview.", "torch.optim.")):
        return False
    try:
        found = hydra.utils.get_object(target)
    except Exception:  # hydra wraps whatever the import raised
        return False
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return True
    return str(getattr(found, "__module__", "")).startswith("twoview.")


def save_encoder(encoder: nn.Module, about: Mapping[str, Any], path: Path) -> None:
    """Writes `encoder.safetensors`: the weights under the network's own keys, and in the metadata what rebuilds it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        weights = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
        save_file(weights, part, metadata={"twoview": json.dumps(dict(about))})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("twoview", "null"))
        weights = load_file(path)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(about, dict):
        raise UserError(
            f"{path} was not written by twoview: its metadata lack the configuration that rebuilds the encoder"
        )
    _check_about(about, path)
    return weights, about
