"""Tables in files: columns of plain values, None where one is missing."""

import csv
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

from twoview.data.columns import column_names, read_column
from twoview.data.files import refuse_pipe
from twoview.errors import UserError

SUFFIXES = (".csv", ".tsv", ".txt")
MISSING = {"", "?", "na", "n/a", "nan", "null", "none"}  # in text files, whatever their case

Columns = dict[str, list[Any]]


def read_table(file: Path, texts: Collection[str] = ()) -> Columns:
    """The columns of a Parquet file or of a text file with a line of names, by name. Of a text file those named in
    `texts` stay as they are written.
    """
    if file.suffix.lower() == ".parquet":
        return {name: [_plain(value) for value in read_column(file, name)] for name in column_names(file)}
    return _read_text(file, texts)


def _plain(value: Any) -> Any:
    return None if value != value or value == "" else value  # NaN is no value


def _read_text(file: Path, texts: Collection[str]) -> Columns:
    """Separator and encoding are found out: comma, semicolon, tab or bar; UTF-8 or UTF-16 with a mark, else Latin-1."""
    text = read_text(file)
    first = text.lstrip().partition("\n")[0]
    separator = max(",;\t|", key=first.count)
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if line]
    except csv.Error as error:
        raise UserError(f"{file} is no CSV file: {error}") from None
    names, rows = [name.strip() for name in lines[0]], lines[1:]
    if len(set(names)) < len(names):
        raise UserError(f"{file} names a column twice in its first line: {', '.join(names[:20])}")
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise UserError(
                f"{file}, row {number}, has {len(row)} values for {len(names)} columns (separator {separator!r})"
            )
    return {name: [row[i] if name in texts else _value(row[i].strip()) for row in rows] for i, name in enumerate(names)}


def read_text(file: Path) -> str:
    """What a text file says. UserError where it says nothing, or is none."""
    refuse_pipe(file)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    text = _decoded(content)
    if "\0" in text or not text.strip():
        raise UserError(f"{file} is empty or no text: data.root takes CSV and Parquet files")
    return text


def _decoded(content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _value(text: str) -> Any:
    if text.lower() in MISSING:
        return None
    try:
        return float(text) if any(c.isdigit() for c in text) else text
    except ValueError:
        return text
