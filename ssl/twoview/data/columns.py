"""Columns of Parquet files, as Hugging Face stores samples: {bytes, path} of an encoded file, and labels beside it."""

import json
import logging
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from twoview.data.files import Blob, refuse_pipe
from twoview.errors import UserError

log = logging.getLogger(__name__)

_A = {"image": "an image", "audio": "a sound file"}


def find_files(root: Path, pattern: str) -> list[Path]:
    """The files of a name or pattern below a folder, in order of the names."""
    try:
        return sorted(root.glob(pattern))
    except (ValueError, NotImplementedError):  # empty, or an absolute path
        raise UserError(f"{pattern!r} in data.train or data.test is no file name or pattern below {root}") from None


def train_files(root: Path, pattern: str) -> list[Path]:
    """Those of the train split, without which there is no set."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: set data.root to the folder of your Parquet files")
    files = find_files(root, pattern)
    if not files:
        raise UserError(f"no file {pattern} in {root}: set data.root, or data.train to the name or pattern of yours")
    return files


def read_classes(
    files: Sequence[Path], train: Sequence[Path], column: str, blobs: Sequence[Blob]
) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    """Labels as numbers (N,), -1 where a row has none (null), and the names of the classes: those that the metadata of
    the first train file names, else the sorted values of the train split. `blobs` name the rows.
    """
    values = read_labels(files, column)
    given = [value for value in values if value is not None]
    if set(given) <= {-1}:  # the customary mark of a test split without labels
        return None, ()
    classes = class_names(train[0], column)
    if classes and isinstance(given[0], int):
        known: list[int | str] = list(range(len(classes)))
    else:
        learned = values if files == train else read_labels(train, column)
        known = list({value for value in learned if value is not None})
        known.sort(key=lambda value: (isinstance(value, str), value))
        classes = tuple(str(value) for value in known)
    if len(given) < len(values):
        log.info("%s of %s rows have no label", f"{len(values) - len(given):,}", f"{len(values):,}")
    number: dict[int | str | None, int] = {value: i for i, value in enumerate(known)} | {None: -1}
    for value, blob in zip(values, blobs, strict=True):
        if value not in number:
            raise UserError(f"{blob} has the label {value!r}, none of the {len(classes)} classes of train")
    return torch.tensor([number[value] for value in values]), classes


def read_files(files: Sequence[Path], column: str, what: str, rows: Set[int] | None = None) -> list[Blob]:
    """The encoded files of all rows, or of those `rows`, counted through all Parquet files. `what` one holds ("image"),
    for messages and for the key of the configuration that names the column.
    """
    blobs: list[Blob] = []
    start = 0
    for file in files:
        values = read_column(file, column, what, "bytes")
        for row, data in enumerate(values):
            if rows is not None and start + row not in rows:
                continue
            if not isinstance(data, bytes):
                found = f"no {what} (null)" if data is None else f"a {type(data).__name__}, not the bytes of {_A[what]}"
                raise UserError(f"{file}, row {row}, column {column!r} holds {found}")
            blobs.append(Blob(f"{file}, row {row}", data))
        start += len(values)
    return blobs


def read_labels(files: Sequence[Path], column: str) -> list[int | str | None]:
    """The labels of all rows; None where there is none."""
    labels: list[int | str | None] = []
    for file in files:
        for row, label in enumerate(read_column(file, column)):
            if not isinstance(label, int | str | None):
                raise UserError(
                    f"{file}, row {row}, column {column!r} holds {label!r}: labels are whole numbers or "
                    "strings, or null (data.label_column=null: use no labels)"
                )
            labels.append(label)
    return labels


def column_names(file: Path) -> list[str]:
    with _open(file) as opened:
        return list(opened.schema_arrow.names)


def count_rows(file: Path) -> int:
    with _open(file) as opened:
        return int(opened.metadata.num_rows)


def class_names(file: Path, column: str) -> tuple[str, ...]:
    """The names that Hugging Face's metadata gives the labels 0, 1, ... of a column; () without any."""
    with _open(file) as opened:
        metadata = opened.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`. What goes wrong while it is open is a `UserError` naming the file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading Parquet files needs pyarrow: pip install 'twoview[parquet]'") from None
    refuse_pipe(file)
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            yield opened
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"{file} is damaged or no Parquet file ({why}): delete it and get it again") from None


def read_column(file: Path, column: str, what: str = "image", member: str | None = None) -> list[Any]:
    """The values of a column; of a column of structs one member."""
    with _open(file) as opened:
        import pyarrow as pa
        import pyarrow.compute as pc

        names = opened.schema_arrow.names
        if column not in names:
            raise UserError(
                f"{file} has no column {column!r}, only {', '.join(names)}: set data.{what}_column and "
                "data.label_column (null: no labels)"
            )
        values = opened.read(columns=[column]).column(column)
        kind = values.type
        if member is not None and pa.types.is_struct(kind) and kind.get_field_index(member) >= 0:
            values = pc.struct_field(values, member)
        return list(values.to_pylist())
