"""What the commands share that take something out of a run: which run, which weights, on which device, and a file that
is whole or not there.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from twoview import schema
from twoview.data.decode import in_threads
from twoview.data.images import ImageSet
from twoview.errors import UserError
from twoview.evaluate.features import ImageEncoder, digest
from twoview.progress import clock
from twoview.provenance import commit, versions
from twoview.saving import whole

log = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal for a bar


def check(config: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    """UserError for a value of a wrong type, and where no run is named."""
    schema.check_keys(config, keys)
    if not config["ckpt"]:
        raise UserError("which run? Give its checkpoint: ckpt=<run>/last.ckpt")


def device_of(name: str) -> torch.device:
    """The device that auto, cpu or cuda means on this machine."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no GPU on this machine; use device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def checkpoint_file(ckpt: str) -> Path:
    """The file that `ckpt` names: a folder means the `last.ckpt` in it."""
    path = Path(ckpt).expanduser()
    return path / "last.ckpt" if path.is_dir() else path


def origin(config: Mapping[str, Any], encoder: ImageEncoder) -> dict[str, Any]:
    """Where an encoder came from and what it was read with, in plain containers."""
    return {
        "checkpoint": str(config["ckpt"]),
        "checkpoint_sha256": hashlib.sha256(checkpoint_file(config["ckpt"]).read_bytes()).hexdigest(),
        "encoder_of": config["encoder_of"],
        "encoder_digest": digest(encoder),
        "versions": versions(),
        "commit": commit(),
    }


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` to be written; at the end of the block it takes its place, after an error it goes.

    What cannot be written is a UserError, and an unwritable folder is one at once.
    """
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder; name a file by out=...")
        with whole(path) as part:
            part.touch()
            yield part
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; name another file by out=...") from error


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


def fetch(images: ImageSet, index: Tensor) -> Tensor:
    """uint8 (B, C, H, W); what is decoded on demand, in threads."""
    if images.in_memory:
        return images.fetch(index)
    return torch.stack(list(in_threads(images.images.__getitem__, index.tolist())))
