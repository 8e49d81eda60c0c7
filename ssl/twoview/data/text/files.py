"""Texts in CSV and Parquet files, and in files with one text a line."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from twoview.data.set import SampleSet
from twoview.data.splits import held_out
from twoview.data.table.column import check_names
from twoview.data.table.files import find_tables, labels_of, read_rows
from twoview.data.table.read import Columns, read_table, read_text
from twoview.data.text.words import Cut, Words, cut, learned, weights
from twoview.errors import UserError

log = logging.getLogger(__name__)

LINES = ".txt"  # one text a line, without labels


def texts(
    root: str | Path,
    split: str,
    text_column: str = "text",
    label_column: str | None = "label",
    words: int = 4096,
    length: int = 32,
    tokenizer: str | Path | None = None,
    also: str | Path | None = None,
    train: str | None = None,
    test: str | None = None,
    holdout: float | None = None,
) -> SampleSet | None:
    """The texts of one file, or of the files below the folder `root`, in order of the files' names, as numbers of words
    int64 (N, `length`).

    Splits as in `twoview.data.table.files`. The vocabulary has `words` numbers and is that of the train split alone;
    the words of all columns of the file `also`, other versions of the training texts, enter it too. `tokenizer`: a file
    of Hugging Face's tokenizers, which cuts texts in place of `twoview.data.text.words.cut`, and whose vocabulary is
    taken as it is. `holdout`: the share of each class that becomes the test split where there is none.
    """
    root = Path(root).expanduser()
    if length < 1:
        raise UserError(f"data.length={length}: a text has at least one word")
    of_train, of_test = find_tables(root, train, test, label_column)
    lines = of_train[0].suffix.lower() == LINES
    label_column = None if lines else label_column

    def read(file: Path) -> Columns:
        if lines:
            return {text_column: read_text(file).splitlines()}
        return read_table(file, [text_column])

    found = read_rows(of_train, read)
    check_names([text_column], found, "text_column")
    check_names([label_column] if label_column else [], found, "label_column")
    labels, classes = labels_of(found, label_column, of_train[0])
    rows = keep = list(range(len(found[text_column])))
    out: list[int] = []
    if not of_test and holdout is not None:
        keep, out = held_out(torch.zeros(len(rows)) if labels is None else labels, holdout)
    where = of_train[0]
    divide, given = _tokenizer(tokenizer)
    own = [divide(text) for text in _plain([found[text_column][row] for row in keep], text_column, where)]
    if not any(own):
        raise UserError(f"no text in column {text_column!r} of {where} has a word: set data.text_column")
    more = [divide(text) for text in _versions(also)] if also is not None else []
    preprocess = Words(given, weights(given, own)) if given else learned(own, more, words)
    preprocess.cut = divide
    parts = own
    if split == "train":
        rows = keep
        _say(own, length, where)
    else:
        if not of_test and not out:
            return None
        rows = out
        if of_test:
            found, where = read_rows(of_test, read), of_test[0]
            check_names([text_column], found, "test")
            rows = list(range(len(found[text_column])))
            labels, _ = labels_of(found, label_column if label_column in found else None, where, classes)
        parts = [divide(text) for text in _plain([found[text_column][row] for row in rows], text_column, where)]
    if labels is not None:
        labels = labels[torch.tensor(rows)]
    samples = preprocess.encode(parts, length)
    known = () if labels is None else classes
    return SampleSet(root.resolve().name, samples, labels, known, preprocess, draw=preprocess.picture)


def _plain(values: Sequence[Any], column: str, file: Path) -> list[str]:
    """Texts as such; nothing for one that is missing, and a number as it is written."""
    for row, value in enumerate(values):
        if not isinstance(value, str | int | float | None):
            raise UserError(f"{file}, row {row}, column {column!r} holds a {type(value).__name__}, not a text")
    return ["" if value is None else str(value) for value in values]


def _versions(file: str | Path) -> list[str]:
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file data.also={path}: twoview translate makes one; null: none")
    columns = read_table(path)
    return [value for values in columns.values() for value in values if isinstance(value, str)]


def _tokenizer(file: str | Path | None) -> tuple[Cut, list[str]]:
    """How texts are cut, and the vocabulary that comes with it, in the order of its own numbers."""
    if file is None:
        return cut, []
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file data.tokenizer={path}")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError("data.tokenizer needs tokenizers: pip install 'twoview[text]'") from None
    try:
        own = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"data.tokenizer={path} is no file of tokenizers: {error}") from None
    vocabulary = own.get_vocab()
    words = [f"[unused {i}]" for i in range(max(vocabulary.values()) + 1)]
    for word, i in vocabulary.items():
        words[i] = word
    return lambda text: list(own.encode(text, add_special_tokens=False).tokens), words


def _say(texts: Sequence[Sequence[str]], length: int, file: Path) -> None:
    empty, long = sum(not text for text in texts), sum(len(text) > length for text in texts)
    if empty:
        log.warning("%s of %s texts in %s have no word: each is one unknown word", empty, len(texts), file)
    if long > len(texts) / 20:
        log.warning(
            "%s of %s texts in %s have more than data.length=%s words: they lose their end",
            long,
            len(texts),
            file,
            length,
        )
