"""Tables in CSV and Parquet files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twoview.data.columns import called, class_names, find_splits
from twoview.data.set import SampleSet
from twoview.data.splits import TEST, TRAIN, held_out
from twoview.data.table.column import check_names, code, learn, say_copies
from twoview.data.table.read import SUFFIXES, Columns, read_table
from twoview.data.table.rows import TableRows
from twoview.errors import UserError


def table(
    root: str | Path,
    split: str,
    label_column: str | None = "label",
    categorical: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    bins: int = 8,
    train: str | None = None,
    test: str | None = None,
    holdout: float | None = None,
) -> SampleSet | None:
    """The rows of one file, or of the files below the folder `root`, in order of the files' names.

    Splits of Parquet files as in `twoview.data.columns.find_splits`, of CSV files by the same words in their names;
    `holdout`: the share of each class that becomes the test split where there is none. Kinds of columns follow from
    the types of their values; `categorical` names numbers that are categories. All that is learned, which is kinds,
    scales and values, is learned from the train split.
    """
    root = Path(root).expanduser()
    if bins < 1:
        raise UserError(f"data.bins={bins}: numbers are cut into at least one piece")
    of_train, of_test = find_tables(root, train, test, label_column)
    learned = read_rows(of_train)
    check_names([label_column] if label_column else [], learned, "label_column")
    check_names(categorical, learned, "categorical")
    check_names(leave_out, learned, "leave_out")
    names = [name for name in learned if name != label_column and name not in leave_out]
    labels, classes = labels_of(learned, label_column, of_train[0])
    keep, out = list(range(len(learned[next(iter(learned))]))), list[int]()
    if not of_test and holdout is not None:
        keep, out = held_out(torch.zeros(len(keep)) if labels is None else labels, holdout)
    own = {name: [learned[name][row] for row in keep] for name in learned}
    columns = [found for name in names if (found := learn(name, own[name], name in categorical, bins)) is not None]
    preprocess = TableRows(columns)
    where, rows = of_train[0], keep
    if split == "train" and label_column:
        say_copies([(c["name"], own[c["name"]]) for c in columns], label_column, own[label_column])
    if split == "test":
        if not of_test and not out:
            return None
        rows = out
        if of_test:
            learned, where = read_rows(of_test), of_test[0]
            check_names([c["name"] for c in columns], learned, "test")
            rows = list(range(len(learned[columns[0]["name"]])))
            labels, _ = labels_of(learned, label_column if label_column in learned else None, where, classes)
    values = torch.stack([code(c, [learned[c["name"]][row] for row in rows], where) for c in columns], dim=1)  # (N, F)
    if labels is not None:
        labels = labels[torch.tensor(rows)]
    return SampleSet(root.resolve().name, values, labels, () if labels is None else classes, preprocess)


def find_tables(root: Path, train: str | None, test: str | None, label: str | None) -> tuple[list[Path], list[Path]]:
    """The files of the train split and of the test split at `root`, which may be one file."""
    if root.is_file():
        return [root], []
    if not root.is_dir():
        raise UserError(f"there is no file or folder {root}: set data.root to your CSV or Parquet file, or its folder")
    texts = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not texts or any(root.rglob("*.parquet")):
        return find_splits(root, train, test, label)
    own = sorted(root.glob(train)) if train else called(root, texts, TRAIN)
    other = sorted(root.glob(test)) if test else next((f for word in TEST if (f := called(root, texts, (word,)))), [])
    if not own and not other and len(texts) == 1:
        own = texts
    if not own:
        raise UserError(
            f"no file {train or 'train*.csv'} in {root}: set data.root to one file, or data.train to a name"
        )
    return own, other


def read_rows(files: Sequence[Path], read: Callable[[Path], Columns] = read_table) -> Columns:
    """The rows of all files, which have the same columns."""
    found = read(files[0])
    for file in files[1:]:
        more = read(file)
        if set(more) != set(found):
            raise UserError(f"{file} has other columns than {files[0]}: {', '.join(sorted(set(more) ^ set(found)))}")
        found = {name: found[name] + more[name] for name in found}
    if not found or not next(iter(found.values())):
        raise UserError(f"{files[0]} has no rows")
    return found


def labels_of(
    columns: Columns, label: str | None, file: Path, known: Sequence[str] = ()
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels int64 (N,), -1 where there is none, and the classes: those `known`, or of Hugging Face's metadata, or the
    sorted values.
    """
    if label is None:
        return None, ()
    values: list[Any] = [int(v) if isinstance(v, float) and v.is_integer() else v for v in columns[label]]
    given = {value for value in values if value is not None}
    named = class_names(file, label) if file.suffix.lower() == ".parquet" else ()
    if named and all(isinstance(value, int) and -1 <= value < len(named) for value in given):
        number: dict[Any, int] = {i: i for i in range(len(named))} | {None: -1, -1: -1}
        return torch.tensor([number[value] for value in values]), named
    classes = tuple(known) or tuple(map(str, sorted(given, key=lambda v: (isinstance(v, str), v))))
    if not given:
        return None, ()
    if unknown := sorted({str(value) for value in given} - set(classes)):
        raise UserError(f"{file} has labels that the train split has not: {', '.join(unknown[:5])}")
    return torch.tensor([-1 if value is None else classes.index(str(value)) for value in values]), classes
