"""Files that are whole or not there."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from twoview.errors import UserError


def replace_durably(part: Path, path: Path) -> None:
    """Renames `part` to `path`, to last beyond a loss of power."""
    os.replace(part, path)
    with suppress(OSError):  # systems that cannot open a folder keep no such promise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new file beside `path` to be written; at the end of the block it takes its place, after an error it goes.

    It has the mode that the umask gives, also where the writer (safetensors) makes a file for its owner alone. OSError
    as usual, at once where a folder is in the place.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    part = path.parent / f".{path.name[:80]}.{os.getpid()}.part"  # the name of "." is empty
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)
        with part.open("r+b") as file:
            os.fsync(file.fileno())  # else a loss of power could leave the new name with nothing in it
        replace_durably(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all, in the place of whatever was there. OSError as usual."""
    with whole(path) as part:
        part.write_text(text)


@contextmanager
def replacing(path: Path, remedy: str = "name another file by out=...") -> Iterator[Path]:
    """A new file beside `path` to be written; at the end of the block it takes its place, after an error it goes.

    What cannot be written is a UserError that ends with the `remedy`, raised at once for an unwritable folder.
    """
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder; {remedy}")
        with whole(path) as part:
            yield part
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; {remedy}") from error


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to be filled; at the end of the block its files take their places there, after an
    error it goes. UserError as `replacing`.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"cannot write {folder}: it is a file; name another folder by out=...")
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name[:80]}.") as part:
            yield Path(part)
            folder.mkdir(exist_ok=True)
            for file in sorted(Path(part).iterdir()):
                replace_durably(file, folder / file.name)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"cannot write {folder}: {reason}; name another folder by out=...") from error


def save(path: Path, content: str | bytes, remedy: str = "make room, or give it a folder you may write") -> None:
    """Writes a file whole or not at all, UserError as `replacing`. Text is UTF-8; lone surrogates become `?`."""
    with replacing(path, remedy) as part:
        part.write_bytes(content.encode("utf-8", "replace") if isinstance(content, str) else content)
