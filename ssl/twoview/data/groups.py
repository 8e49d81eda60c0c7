"""Rows of Parquet files by number: a row group is read when one of its rows is asked for, and held for others."""

import hashlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twoview.data.columns import ArrowFile, DamagedError, open_file, require, while_reading
from twoview.data.files import Blob, Sources
from twoview.errors import UserError

CACHE_MB = 256.0  # of row groups that a process holds
OPEN_FILES = 16  # that a process holds


class RowGroups:
    """A column of Parquet files as values, row by row through all of them.

    Only the footers are read at first. A row comes with its row group, and a process holds as many of these as fit into
    `cache_mb` megabytes, the last one at least. Threads may ask at once; what is held stays out of a pickle, and out of
    a forked process. Files are read, not mapped: a file that shrinks under a map ends the process, and pages of a map
    count as its memory.
    """

    def __init__(self, files: Sequence[Path], column: str, what: str, cache_mb: float = CACHE_MB) -> None:
        if not 0 < cache_mb < math.inf:
            raise UserError(f"data.cache_mb={cache_mb} must be above 0")
        self.files, self.column = list(files), column
        self.limit = cache_mb * 1e6
        places, sizes, plain = [], [], []
        for number, file in enumerate(self.files):
            with while_reading(file), open_file(file) as opened:
                require(column, what, opened.schema_arrow.names, file)
                first = 0
                for group, (rows, size, no_path) in enumerate(_groups(opened, column)):
                    places.append((number, group, first, rows))
                    sizes.append(size)
                    plain.append(no_path)
                    first += rows
        self.place = np.array(places, dtype=np.int64).reshape(-1, 4)  # file, group in it, its first row in it, rows
        self.sizes = np.array(sizes, dtype=np.int64).reshape(-1, 2)  # bytes of the values, and as stored
        self.plain = np.array(plain, dtype=bool)  # groups in which every value lies in the file itself
        self.starts = np.concatenate([[0], np.cumsum(self.place[:, 3])])  # (G + 1,), through all files
        self._forget()

    def _forget(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._groups: OrderedDict[int, Any] = OrderedDict()  # the one used last comes last
        self._opened: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_groups", "_opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def group_of(self, rows: Any) -> Any:
        return np.searchsorted(self.starts, rows, side="right") - 1

    def find(self, row: int) -> tuple[Path, int]:
        """Its file, and its number there."""
        group = self.group_of(row)
        number, _, first, _ = self.place[group].tolist()
        return self.files[number], first + row - int(self.starts[group])

    def value(self, row: int) -> Any:
        """A plain value of Python; `DamagedError` where the row group cannot be read."""
        group = int(self.group_of(row))
        with while_reading(self.files[self.place[group, 0]]):  # damage may also show in a value alone, as no UTF-8
            return self._group(group)[row - int(self.starts[group])].as_py()

    def _group(self, group: int) -> Any:
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            if group not in self._groups:
                self._groups[group] = self._read(group)
                while len(self._groups) > 1 and sum(held.nbytes for held in self._groups.values()) > self.limit:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
            return self._groups[group]

    def _read(self, group: int) -> Any:
        number, own, *_ = self.place[group].tolist()
        file = self.files[number]
        with while_reading(file):
            if number not in self._opened:
                self._opened[number] = open_file(file)
                while len(self._opened) > OPEN_FILES:
                    self._opened.popitem(last=False)[1].close()
            self._opened.move_to_end(number)
            table = self._opened[number].read_row_group(own, columns=[self.column], use_threads=False)
            column = table.column(self.column)
            if len(column) != self.place[group, 3]:
                raise OSError(f"row group {own} has {len(column)} rows, not {self.place[group, 3]}")
            return column

    def stamp(self) -> list[Any]:
        """Names and sizes of the files, and of their row groups; where they lie does not enter."""
        common = os.path.commonpath([file.parent for file in self.files])
        sha = hashlib.sha256(self.place.tobytes() + self.sizes.tobytes()).hexdigest()
        return [[os.path.relpath(file, common) for file in self.files], [f.stat().st_size for f in self.files], sha]


def _groups(opened: Any, column: str) -> Iterator[tuple[int, list[int], bool]]:
    """Of each row group, or record batch: rows, bytes of the column as values and as stored, whether no value is a path
    to another file.
    """
    kind = opened.schema_arrow.field(column).type
    if isinstance(opened, ArrowFile):
        for batch in opened.batches:
            yield batch.num_rows, [batch.nbytes] * 2, _holds_no_path(kind, column, ())
        return
    footer = opened.metadata
    for group in range(footer.num_row_groups):
        described = footer.row_group(group)
        chunks = [described.column(i) for i in range(described.num_columns)]
        own = [one for one in chunks if one.path_in_schema.split(".")[0] == column.split(".")[0]]
        size = [sum(one.total_uncompressed_size for one in own), sum(one.total_compressed_size for one in own)]
        yield described.num_rows, size, _holds_no_path(kind, column, own)


def _holds_no_path(kind: Any, column: str, chunks: Sequence[Any]) -> bool:
    """Whether no value of a row group can be a path to another file, by its type and the statistics in the footer."""
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return not (pa.types.is_string(kind) or pa.types.is_large_string(kind))
    held = next((chunk for chunk in chunks if chunk.path_in_schema == f"{column}.bytes"), None)
    told = None if held is None else held.statistics
    return told is not None and told.has_null_count and told.null_count == 0


class FileColumn(Sources):
    """The encoded files in a column of Parquet files: bytes, or paths relative to the folder of the Parquet file.

    `encode` makes a file of an array (nested lists) and raises ValueError for one that it does not know; None: arrays
    are refused. `what` a file holds ("image"), for messages and for the key of the configuration that names the column.
    """

    def __init__(
        self,
        files: Sequence[Path],
        column: str,
        what: str,
        encode: Callable[[list[Any]], bytes] | None = None,
        cache_mb: float = CACHE_MB,
    ) -> None:
        self.groups = RowGroups(files, column, what, cache_mb)
        self.what, self.encode = what, encode
        self.rows: np.ndarray | None = None  # int64 (N,), those that are taken; None: all

    def __len__(self) -> int:
        return len(self.groups) if self.rows is None else len(self.rows)

    def take(self, rows: Sequence[int] | Tensor) -> "FileColumn":
        other = FileColumn.__new__(FileColumn)
        other.__dict__.update(self.__dict__)
        index = np.asarray(rows, dtype=np.int64)
        other.rows = index if self.rows is None else self.rows[index]
        return other

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return index % len(self) if self.rows is None else int(self.rows[index])

    def one(self, index: int) -> Path | Blob:
        row = self._row(index)
        file, number = self.groups.find(row)
        return _file_of(self.groups.value(row), file, number, self.groups.column, self.what, self.encode)

    def name(self, index: int) -> str:
        row = self._row(index)
        file, number = self.groups.find(row)
        if not self.groups.plain[self.groups.group_of(row)]:
            with suppress(UserError):
                return str(self.one(index))
        return f"{file}, row {number}"

    def stamp(self) -> Any:
        rows = None if self.rows is None else hashlib.sha256(self.rows.tobytes()).hexdigest()
        return [self.groups.stamp(), rows]

    def blocks(self) -> tuple[Tensor, int] | None:
        groups = self.groups
        if groups.files[0].suffix == ".arrow":  # mapped: a row is read without those beside it
            return None
        rows = np.arange(len(groups)) if self.rows is None else self.rows
        largest = max(1, int(groups.sizes[:, 0].max(initial=0)))
        return torch.from_numpy(groups.group_of(rows)), max(1, int(groups.limit) // largest)


_A = {"image": "an image", "audio": "a sound file"}


def _file_of(
    value: Any, file: Path, row: int, column: str, what: str, encode: Callable[[list[Any]], bytes] | None
) -> Path | Blob:
    name, path = f"{file}, row {row}", value
    place = f"{name}, column {column!r}"
    if isinstance(value, dict):  # {bytes, path}, of which one may be null
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        return Blob(name, value)
    if value in (None, path) and isinstance(path, str):
        own = file.parent / path
        if Path(path).is_absolute() or ".." in Path(path).parts or not os.path.isfile(own):
            shown = path if len(path) <= 200 else f"{path[:60]}... ({len(path):,} characters)"  # of base64, perhaps
            raise UserError(
                f"{place} names {shown}, which is no file below {file.parent}: put the files there, with paths from "
                "there, or their bytes into the column"
            )
        return own
    if isinstance(value, list) and encode is not None:
        try:
            return Blob(name, encode(value))
        except ValueError as error:
            raise UserError(f"{place} holds {error}") from None
    if value is None:
        raise DamagedError(f"{place} holds no {what} (null)")
    raise UserError(f"{place} holds a {type(value).__name__}, not the bytes of {_A[what]}")
