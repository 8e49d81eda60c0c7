"""Columns of Parquet and Arrow files, as Hugging Face stores samples: {bytes, path} of an encoded file, and labels."""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twoview.data.files import DamagedError, refuse_pipe
from twoview.data.splits import TEST, TRAIN, is_no_label
from twoview.errors import UserError, listed

log = logging.getLogger(__name__)


def find_splits(
    root: Path, train: str | None, test: str | None, label: str | None, on_error: str = "stop", suffix: str = "parquet"
) -> tuple[list[Path], list[Path]]:
    """The files of the train split and those of the test split, each in order of the names; of the latter there may be
    none.

    `train` and `test` are names or patterns below the root; None: the files that have the word, or a customary one for
    it, in their name or in that of their folder. Of test and validation the first with labels in the column `label` is
    taken, for published test splits often have none. With on_error="skip" files that are no Parquet files are left out.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: set data.root to the folder of your {suffix.title()} files")
    given = sorted(path for path in root.rglob(f"*.{suffix}") if _visible(path.relative_to(root)))
    given = _readable(given, on_error)
    of_train = _readable(_matching(root, train), on_error) if train else called(root, given, TRAIN)
    if not train and not of_train and not any(called(root, given, (word,)) for word in TEST):
        of_train = given  # one set without splits
    if not of_train:
        raise UserError(
            f"no file {train or f'train*.{suffix}'} in {root}: set data.root, or data.train to the name or pattern of "
            "yours"
        )
    if test:
        return of_train, _readable(_matching(root, test), on_error)
    splits = [files for word in TEST if (files := called(root, given, (word,)))]
    return of_train, next((files for files in splits if label and _has_labels(files, label)), [*splits, []][0])


def _readable(files: list[Path], on_error: str) -> list[Path]:
    """Those whose footer can be read: with on_error="skip" the others are said, and left out."""
    if on_error != "skip":
        return files

    def readable(file: Path) -> bool:
        try:
            return count_rows(file) >= 0
        except DamagedError as error:
            log.warning("%s; it is left out, and nobody knows how many rows it had", error)
            return False

    kept = [file for file in files if readable(file)]
    if files and not kept:
        raise UserError(f"not one of the {len(files)} Parquet files can be read: {files[0]} is the first")
    return kept


def _visible(path: Path) -> bool:
    """Not hidden, and not what `datasets` keeps of a computation."""
    return not any(part.startswith((".", "cache-")) for part in path.parts)


def _matching(root: Path, pattern: str) -> list[Path]:
    try:
        return sorted(root.glob(pattern))
    except (ValueError, NotImplementedError):  # empty, or an absolute path
        raise UserError(f"{pattern!r} in data.train or data.test is no file name or pattern below {root}") from None


def called(root: Path, files: Sequence[Path], words: Sequence[str]) -> list[Path]:
    """Those that have one of the words in their path below the root. UserError where they are of several sets."""
    found = [file for file in files if set(re.split(r"[^a-z]+", str(file.relative_to(root)).lower())) & set(words)]
    folders = {re.sub("|".join(words), "", str(file.parent.relative_to(root)).lower()) for file in found}
    if len(folders) > 1:
        raise UserError(
            f"{root} holds several sets, in {listed(sorted(str(file.parent) for file in found), most=3)}: set "
            "data.root to the folder of one, or data.train and data.test to patterns of its files"
        )
    return found


def _has_labels(files: Sequence[Path], column: str) -> bool:
    return column in column_names(files[0]) and any(value is not None for value in read_labels(files, column).values)


def read_classes(files: Sequence[Path], train: Sequence[Path], column: str) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels as numbers, int64 (N,), -1 where a row has none, and the names of the classes: those that the metadata of
    the first train file names, else the sorted values of the train split.
    """
    if files != train and column not in column_names(files[0]) and column in column_names(train[0]):
        log.info("%s has no column %r: this split is without labels", files[0], column)
        return None, ()
    own = read_labels(files, column)
    given = [value for value in own.values if value is not None]
    if not given:
        return None, ()
    classes = class_names(train[0], column)
    if classes and isinstance(given[0], int):
        known: list[int | str] = list(range(len(classes)))
    else:
        learned = own if files == train else read_labels(train, column)
        known = [value for value in learned.values if value is not None]
        known.sort(key=lambda value: (isinstance(value, str), value))
        classes = tuple(str(value) for value in known)
    number: dict[int | str | None, int] = {value: i for i, value in enumerate(known)} | {None: -1}
    for code, value in enumerate(own.values):
        if value not in number:
            raise UserError(f"{own.place(code)} has the label {value!r}, none of the {len(classes)} classes of train")
    numbers = torch.tensor([number[value] for value in own.values])[torch.from_numpy(own.codes)]
    if missing := int((numbers < 0).sum()):
        log.info("%s of %s rows have no label", f"{missing:,}", f"{len(numbers):,}")
    return numbers, classes


class Labels(NamedTuple):
    """The labels of all rows of Parquet files: the distinct `values`, None where there is none, and of each row the
    number of its value, int64 (N,). `rows` of each file.
    """

    values: list[int | str | None]
    codes: np.ndarray
    files: Sequence[Path]
    rows: list[int]

    def place(self, code: int) -> str:
        """The first row with a value."""
        row = int(np.argmax(self.codes == code))
        for file, rows in zip(self.files, self.rows, strict=True):
            if row < rows:
                return f"{file}, row {row}"
            row -= rows
        raise AssertionError

    def all(self) -> list[int | str | None]:
        return [self.values[code] for code in self.codes]


def read_labels(files: Sequence[Path], column: str) -> Labels:
    """The labels of all rows, of which no other column is read; None where there is none: null, NaN, or what
    `is_no_label` knows; not -1 where 1 is the only other label.
    """
    number: dict[int | str | None, int] = {}
    codes, rows = [], []
    for file in files:
        values, own = _distinct(file, column)
        for code, label in enumerate(values):
            if isinstance(label, float) and (label != label or label.is_integer()):  # of pandas, for want of a null
                label = None if label != label else int(label)
            if not isinstance(label, int | str | None):
                raise UserError(
                    f"{file}, row {np.argmax(own == code)}, column {column!r} holds {label!r}: labels are whole "
                    "numbers or strings, or null (data.label_column=null: use no labels)"
                )
            values[code] = number.setdefault(label, len(number))
        codes.append(np.array(values, dtype=np.int64)[own])
        rows.append(len(own))
    found = list(number)
    if {str(label) for label in found if label not in (None, "")} != {"-1", "1"}:
        found = [None if is_no_label(label) else label for label in found]
    found = [label if label != "" else None for label in found]
    return Labels(found, np.concatenate(codes), files, rows)


def _distinct(file: Path, column: str) -> tuple[list[Any], np.ndarray]:
    """The distinct values of a column, and of each row the number of its own (N,)."""
    with while_reading(file), open_file(file) as opened:
        import pyarrow as pa

        require(column, "image", opened.schema_arrow.names, file)
        values = opened.read(columns=[column]).column(column)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if pa.types.is_nested(values.type):
            return values.slice(0, 1).to_pylist(), np.zeros(len(values), dtype=np.int64)
        coded = values.combine_chunks().dictionary_encode("encode")
        return coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def column_names(file: Path) -> list[str]:
    with while_reading(file), open_file(file) as opened:
        return list(opened.schema_arrow.names)


def count_rows(file: Path) -> int:
    with while_reading(file), open_file(file) as opened:
        if isinstance(opened, ArrowFile):
            return sum(batch.num_rows for batch in opened.batches)
        return int(opened.metadata.num_rows)


def class_names(file: Path, column: str) -> tuple[str, ...]:
    """The names that Hugging Face's metadata gives the labels 0, 1, ... of a column; () without any."""
    with while_reading(file), open_file(file) as opened:
        metadata = opened.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


class ArrowFile:
    """A memory-mapped file of Arrow record batches, as `datasets` saves them, with the part of the interface of a
    `pyarrow.parquet.ParquetFile` that is needed here. Nothing but the layout of the batches is read at first.
    """

    def __init__(self, file: Path) -> None:
        import pyarrow as pa

        reader = pa.ipc.open_stream(pa.memory_map(str(file)))  # batches keep the map open
        self.schema_arrow, self.batches = reader.schema, list(reader)

    def read_row_group(self, number: int, columns: Sequence[str], use_threads: bool = False) -> Any:
        import pyarrow as pa

        return pa.Table.from_batches([self.batches[number]]).select(columns)

    def read(self, columns: Sequence[str]) -> Any:
        import pyarrow as pa

        return pa.Table.from_batches(self.batches, self.schema_arrow).select(columns)

    def close(self) -> None:
        self.batches = []

    def __enter__(self) -> "ArrowFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_file(file: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`, whose footer has been read, or an `ArrowFile`."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading Parquet files needs pyarrow: pip install 'twoview[parquet]'") from None
    refuse_pipe(file)
    return ArrowFile(file) if file.suffix == ".arrow" else pyarrow.parquet.ParquetFile(file)


@contextmanager
def while_reading(file: Path) -> Iterator[None]:
    """What goes wrong in reading a Parquet file is a `DamagedError` that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        import pyarrow

        if not isinstance(error, OSError | ValueError | pyarrow.ArrowException):
            raise
        why = str(error).partition("\n")[0]
        kind = "Arrow" if file.suffix == ".arrow" else "Parquet"
        raise DamagedError(f"{file} is damaged or no {kind} file ({why}): delete it and get it again") from None


def require(column: str, what: str, names: Sequence[str], file: Path) -> None:
    if column not in names:
        raise UserError(
            f"{file} has no column {column!r}, only {', '.join(names)}: set data.{what}_column and data.label_column "
            "(null: no labels)"
        )


def read_column(file: Path, column: str, what: str = "image", member: str | None = None) -> list[Any]:
    """The values of a column; of a column of structs one member."""
    with while_reading(file), open_file(file) as opened:
        import pyarrow as pa
        import pyarrow.compute as pc

        require(column, what, opened.schema_arrow.names, file)
        values = opened.read(columns=[column]).column(column)
        kind = values.type
        if member is not None and pa.types.is_struct(kind) and kind.get_field_index(member) >= 0:
            values = pc.struct_field(values, member)
        return list(values.to_pylist())
