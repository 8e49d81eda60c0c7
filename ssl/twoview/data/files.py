"""Files of samples, alone, within other files, or as many as there are below a folder, in an archive or in a list."""

import io
import os
import tarfile
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from twoview.errors import UserError, listed

# What file systems, cameras and archives put beside samples. Names with a dot in front are hidden, and not listed here.
JUNK = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
JUNK |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}


class Blob:
    """A file that lies inside another file, with a name by which a person finds it: the other file and a row.

    `content`: its bytes, or what reads them whenever they are asked for; then `size` of them.
    """

    def __init__(self, name: str, content: bytes | Callable[[], bytes], size: int | None = None) -> None:
        self.name, self._content = name, content
        self.size = len(content) if isinstance(content, bytes) else size

    @property
    def data(self) -> bytes:
        return self._content if isinstance(self._content, bytes) else self._content()

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
    sizes = [source.stat().st_size if isinstance(source, Path) else source.size for source in sources]
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
    """The files in a zip or tar archive, each read when it is asked for; None where it is none. What cannot be read so,
    in a tar archive that is compressed as a whole, is read into memory.
    """
    try:
        if zipfile.is_zipfile(root):
            with zipfile.ZipFile(root) as opened:
                members = [one for one in opened.infolist() if not one.is_dir() and _visible(one.filename)]
            if locked := [one.filename for one in members if one.flag_bits & 1]:
                raise RuntimeError(f"{locked[0]} is encrypted")
            archive = _Zip(root)
            return {one.filename: archive.member(one.filename, one.file_size) for one in members}
        if tarfile.is_tarfile(root):
            found = {}
            with tarfile.open(root) as tar:
                plain = isinstance(tar.fileobj, io.BufferedReader)
                for member in tar:
                    name = member.name.removeprefix("./")
                    if member.isfile() and _visible(name):
                        if plain and not member.issparse():
                            found[name] = _tar_member(root, name, member.offset_data, member.size)
                        else:
                            file = tar.extractfile(member) or io.BytesIO()
                            found[name] = Blob(f"{root}, {name}", file.read())
            return found
    except _TROUBLE as error:
        raise UserError(f"{root} is damaged or locked ({error}): get it again, or unpack it") from None
    return None


_TROUBLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError, zlib.error)


class _Zip:
    """A zip archive, opened once by each process that reads from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process, self._opened = 0, None  # type: int, zipfile.ZipFile | None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_process": 0, "_opened": None}

    def member(self, name: str, size: int) -> Blob:
        return Blob(f"{self.path}, {name}", partial(self.read, name), size)

    def read(self, name: str) -> bytes:
        try:
            opened = self._opened
            if opened is None or self._process != os.getpid():  # a forked process would share the place in the file
                opened = zipfile.ZipFile(self.path)
                self._process, self._opened = os.getpid(), opened
            return opened.read(name)
        except (*_TROUBLE, KeyError) as error:
            raise DamagedError(f"{self.path}, {name} cannot be read ({error}): mend or remove it") from None


def _tar_member(root: Path, name: str, start: int, size: int) -> Blob:
    if start + size > root.stat().st_size:
        raise tarfile.ReadError("unexpected end of data")
    return Blob(f"{root}, {name}", partial(_read_part, root, name, start, size), size)


def _read_part(root: Path, name: str, start: int, size: int) -> bytes:
    try:
        with root.open("rb") as file:
            file.seek(start)
            return file.read(size)
    except OSError as error:
        raise DamagedError(f"{root}, {name} cannot be read ({error.strerror})") from None


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
