"""Columns of Parquet files, as Hugging Face stores samples: {bytes, path} of an encoded file, and labels beside it."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from twoview.data.files import Blob, refuse_pipe
from twoview.data.splits import TEST, TRAIN
from twoview.errors import UserError, listed

log = logging.getLogger(__name__)

_A = {"image": "an image", "audio": "a sound file"}


def find_splits(root: Path, train: str | None, test: str | None, label: str | None) -> tuple[list[Path], list[Path]]:
    """The files of the train split and those of the test split, each in order of the names; of the latter there may be
    none.

    `train` and `test` are names or patterns below the root; None: the files that have the word, or a customary one for
    it, in their name or in that of their folder. Of test and validation the first with labels in the column `label` is
    taken, for published test splits often have none.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: set data.root to the folder of your Parquet files")
    given = sorted(path for path in root.rglob("*.parquet") if _visible(path.relative_to(root)))
    of_train = _matching(root, train) if train else called(root, given, TRAIN)
    if not train and not of_train and not any(called(root, given, (word,)) for word in TEST):
        of_train = given  # one set without splits
    if not of_train:
        raise UserError(
            f"no file {train or 'train*.parquet'} in {root}: set data.root, or data.train to the name or pattern of "
            "yours"
        )
    if test:
        return of_train, _matching(root, test)
    splits = [files for word in TEST if (files := called(root, given, (word,)))]
    return of_train, next((files for files in splits if label and _has_labels(files, label)), [*splits, []][0])


def _visible(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


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
    return column in column_names(files[0]) and any(label is not None for label in read_labels(files, column))


def read_classes(
    files: Sequence[Path], train: Sequence[Path], column: str, samples: Sequence[Path | Blob]
) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    """Labels as numbers (N,), -1 where a row has none, and the names of the classes: those that the metadata of the
    first train file names, else the sorted values of the train split. `samples` name the rows.
    """
    values = read_labels(files, column)
    given = [value for value in values if value is not None]
    if not given:
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
    for value, sample in zip(values, samples, strict=True):
        if value not in number:
            raise UserError(f"{sample} has the label {value!r}, none of the {len(classes)} classes of train")
    return torch.tensor([number[value] for value in values]), classes


def read_files(
    files: Sequence[Path],
    column: str,
    what: str,
    rows: Set[int] | None = None,
    encode: Callable[[list[Any]], bytes] | None = None,
) -> list[Path | Blob]:
    """The encoded files of all rows, or of those `rows`, counted through all Parquet files: bytes, or paths relative to
    the folder of the Parquet file. `encode` makes a file of an array (nested lists) and raises ValueError for one that
    it does not know; None: arrays are refused. `what` a file holds ("image"), for messages and for the key of the
    configuration that names the column.
    """
    found: list[Path | Blob] = []
    start = 0
    for file in files:
        values = read_column(file, column, what)
        for row, value in enumerate(values):
            if rows is None or start + row in rows:
                found.append(_sample(value, file, f"{file}, row {row}, column {column!r}", what, encode))
        start += len(values)
    return found


def _sample(value: Any, file: Path, place: str, what: str, encode: Callable[[list[Any]], bytes] | None) -> Path | Blob:
    path = value
    if isinstance(value, dict):  # {bytes, path}, of which one may be null
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        return Blob(place.rpartition(", ")[0], value)
    if value in (None, path) and isinstance(path, str):
        own = file.parent / path
        if Path(path).is_absolute() or ".." in Path(path).parts or not own.is_file():
            raise UserError(f"{place} names {path}, which is no file below {file.parent}")
        return own
    if isinstance(value, list) and encode is not None:
        try:
            return Blob(place.rpartition(", ")[0], encode(value))
        except ValueError as error:
            raise UserError(f"{place} holds {error}") from None
    found = f"no {what} (null)" if value is None else f"a {type(value).__name__}, not the bytes of {_A[what]}"
    raise UserError(f"{place} holds {found}")


def read_labels(files: Sequence[Path], column: str) -> list[int | str | None]:
    """The labels of all rows; None where there is none: null, NaN, an empty text, or -1, unless 1 is the only other
    label.
    """
    labels: list[int | str | None] = []
    for file in files:
        for row, label in enumerate(read_column(file, column)):
            if isinstance(label, float) and (label != label or label.is_integer()):  # of pandas, for want of a null
                label = None if label != label else int(label)
            if not isinstance(label, int | str | None):
                raise UserError(
                    f"{file}, row {row}, column {column!r} holds {label!r}: labels are whole numbers or "
                    "strings, or null (data.label_column=null: use no labels)"
                )
            labels.append(label if label != "" else None)
    if set(labels) - {None} == {-1, 1}:
        return labels
    return [None if label == -1 else label for label in labels]


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
