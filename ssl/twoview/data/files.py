"""Files of samples, alone, within other files, or as many as there are below a folder, in an archive or in a list."""

import io
import os
import tarfile
import zipfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from twoview.errors import UserError, listed

# What file systems, cameras and archives put beside samples. Names with a dot in front are hidden, and not listed here.
JUNK = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
JUNK |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}


class Blob(NamedTuple):
    """A file that lies inside another file, with a name by which a person finds it: the other file and a row."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


class DamagedError(UserError):
    """A file that should hold a sample and cannot be read or decoded."""


class Sources(Sequence[Path | Blob]):
    """Files that are read when asked for by their number. Picklable."""

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return [self.one(i) for i in range(*index.indices(len(self)))] if isinstance(index, slice) else self.one(index)

    @abstractmethod
    def one(self, index: int) -> Path | Blob: ...

    @abstractmethod
    def take(self, rows: Sequence[int] | Tensor) -> "Sources":
        """Those of an index (B,), in its order."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where a file lies, as `str(self[index])`; read only where the name is part of what is read."""

    @abstractmethod
    def stamp(self) -> Any:
        """What tells these files from others without reading them: plain containers. Where they lie does not enter."""

    @abstractmethod
    def blocks(self) -> tuple[Tensor, int] | None:
        """The block in which each lies, int64 (N,), of which all is read at once, and how many blocks are held; None
        where each is read by itself.
        """


class NamesOf(Sequence[str]):
    """The names of files relative to a folder, made when asked for."""

    def __init__(self, sources: Sources, root: Path) -> None:
        self.sources, self.root = sources, root

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return os.path.relpath(self.sources.name(index), self.root)


def name_of(sources: Sequence[Path | Blob], index: int) -> str:
    return sources.name(index) if isinstance(sources, Sources) else str(sources[index])


def stamp_of(sources: Sequence[Path | Blob]) -> Any:
    """Names and sizes of the files. Where they lie does not enter."""
    if isinstance(sources, Sources):
        return sources.stamp()
    common = os.path.commonpath([os.path.dirname(str(source)) for source in sources])
    sizes = [source.stat().st_size if isinstance(source, Path) else len(source.data) for source in sources]
    return [[os.path.relpath(str(source), common) for source in sources], sizes]


def refuse_pipe(path: Path) -> None:
    """UserError for what is there and is no file: whoever opens a pipe waits for its writer, for ever."""
    if not path.is_file() and path.exists():
        raise UserError(f"{path} is not a file but a folder, a pipe or a device: remove it")


def tree(root: Path, what: str) -> dict[str, Path | Blob]:
    """Every file, by its path below the root, in order of the paths. Hidden ones and junk are not among them."""
    if root.is_dir():
        found: dict[str, Path | Blob] = {
            path.relative_to(root).as_posix(): path
            for path in _walk(root, frozenset({root.resolve(), *root.resolve().parents}))
        }
    elif root.is_file():
        found = dict(_archive(root) or _list(root, what))
    else:
        refuse_pipe(root)
        raise UserError(f"there is no folder {root}: set data.root to the folder of your {what}")
    return dict(sorted(found.items(), key=lambda item: item[0].split("/")))


def _visible(name: str) -> bool:
    return not any(part.startswith(".") or part.lower() in JUNK for part in name.split("/"))


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Links are followed, but never back to where one came from."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"cannot list {error.filename}: {error.strerror}") from None
    for entry in entries:
        if not _visible(entry.name):
            continue
        # os.path.isdir, because it is quiet about links that lead nowhere
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            real = Path(entry.path).resolve() if entry.is_symlink() else (folder.resolve() / entry.name)
            if real not in above:
                yield from _walk(Path(entry.path), above | {real})
        else:
            yield Path(entry.path)


def _archive(root: Path) -> dict[str, Blob] | None:
    """The files in a zip or tar archive, read into memory; None where it is none."""
    try:
        if zipfile.is_zipfile(root):
            with zipfile.ZipFile(root) as opened:
                members = [one for one in opened.infolist() if not one.is_dir() and _visible(one.filename)]
                return {one.filename: Blob(f"{root}, {one.filename}", opened.read(one)) for one in members}
        if tarfile.is_tarfile(root):
            found = {}
            with tarfile.open(root) as tar:
                for member in tar:
                    name = member.name.removeprefix("./")
                    if member.isfile() and _visible(name):
                        file = tar.extractfile(member) or io.BytesIO()
                        found[name] = Blob(f"{root}, {name}", file.read())
            return found
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError) as error:
        raise UserError(f"{root} is damaged or locked ({error}): get it again, or unpack it") from None
    return None


def _list(root: Path, what: str) -> dict[str, Path]:
    """The files that a list names, relative to its folder."""
    try:
        lines = [line.strip() for line in root.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"{root} is no folder, no zip or tar archive, and no list of files: set data.root to the folder of your "
            f"{what}"
        ) from None
    found = {Path(line).as_posix(): root.parent / line for line in lines if line and not line.startswith("#")}
    if missing := [name for name, path in found.items() if not path.exists()]:
        raise UserError(f"{root} names files that are not there ({len(missing):,}): {listed(missing)}")
    return found
