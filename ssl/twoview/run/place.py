"""The folder of a run: one that is free, for one process at a time, and left as it was found by a start that failed."""

import itertools
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from twoview.errors import UserError

log = logging.getLogger(__name__)

PATIENCE = (
    5.0  # seconds for which a folder may vanish between its making and its locking: others remove it as they fail
)


class InUseError(UserError):
    """Another process holds the folder."""


@contextmanager
def held(folder: Path, key: str = "hydra.run.dir") -> Iterator[Path]:
    """Holds the folder of a run or a study, which is made if need be: `InUseError` where another process holds it.
    `key` is the word that chooses another folder.

    The system lets go of it whatever ends the process. What a process left half-written that was killed is removed.
    """
    try:
        made = not folder.is_dir()
        file = _made_and_locked(folder, key)
    except OSError as error:
        raise UserError(
            f"cannot write into the folder {folder}: {error.strerror}; choose another by {key}=..."
        ) from error
    try:
        for part in folder.glob(".*.part"):
            part.unlink(missing_ok=True)
        yield folder
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        os.close(file)
        if made:
            with suppress(OSError):
                folder.rmdir()  # unless something is in it


@contextmanager
def held_free(folder: Path) -> Iterator[Path]:
    """Holds `folder`, or the first of `folder_2`, `folder_3`, ... that no other run has, nor had: runs that are started
    in one second are given one name.
    """
    for n in itertools.count(1):
        with ExitStack() as stack:
            try:
                place = stack.enter_context(held(folder if n == 1 else folder.with_name(f"{folder.name}_{n}")))
            except InUseError:
                continue
            if any(path.name != ".lock" for path in place.iterdir()):
                continue
            yield place
            return


def _made_and_locked(folder: Path, key: str) -> int:
    last = time.monotonic() + PATIENCE
    while time.monotonic() < last:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return _lock(folder / ".lock", key)
    folder.mkdir(parents=True, exist_ok=True)
    return _lock(folder / ".lock", key)


def _lock(path: Path, key: str) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            import fcntl
        except ImportError:  # a system without such locks
            return file
        try:
            # Not flock, whose locks go over to forked loader workers, which outlive a process that is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(file, 100).decode(errors="replace").strip()
            os.close(file)
            raise InUseError(
                f"another process is at work in {path.parent} ({holder}): wait for it or stop it, or choose another "
                f"folder by {key}=..."
            ) from None
        except OSError:  # a file system without locks
            log.warning("%s cannot be locked: nothing keeps a second process out of it", path.parent)
            return file
        with suppress(FileNotFoundError):
            if os.fstat(file).st_ino == os.stat(path).st_ino:  # else its holder has just removed it
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return file
        os.close(file)


class Standing(Callback):
    """Notes which folders stand before Hydra makes that of a run, so that a start that fails removes no other."""

    found: frozenset[Path] = frozenset()
    noted = False

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._note(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._note(Path(config.hydra.sweep.dir))

    @staticmethod
    def _note(folder: Path) -> None:
        folder = folder.absolute()
        below = folder.iterdir() if folder.is_dir() else ()
        Standing.found = frozenset(path for path in (folder, *folder.parents, *below) if path.is_dir())
        Standing.noted = True


def remove_if_empty(folder: Path) -> None:
    """Removes a folder in which no run was made, and those above it, as far as they were made for it and are empty."""
    folder = folder.absolute()
    for path in (folder, *folder.parents):
        if not Standing.noted or path in Standing.found:
            return
        try:
            path.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # something is in it, or another process is
            return
