"""What a column of a table is, learned from the train split: a number with its scale, or a category with its values."""

import datetime
import logging
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from twoview.errors import UserError, listed

log = logging.getLogger(__name__)

Column = dict[str, Any]  # name, and mean, std and edges of a number, or values of a category: what a checkpoint holds
MOST = 1000  # values of a category; the rarest beyond are as if never seen
ID_FROM = 20  # rows from which a value of its own in each row makes a column an identifier


def learn(name: str, values: Sequence[Any], category: bool, bins: int) -> Column | None:
    """The column as its values in the train split show it; None where it says nothing, with a warning of why.

    Numbers and dates (days since 1970) are numbers; texts and truth values are categories; so is a column with both
    numbers and texts, which is said. `bins`: how many pieces a number is cut into, by its quantiles.
    """
    given = [value for value in values if value is not None]
    distinct = set(map(_word, given))
    numeric = bool(given) and all(_number(value) is not None for value in given)
    if len(distinct) < 2:
        why = "it has no value in any row" if not given else "it has one value in all rows"
        log.warning("column %r is left out: %s", name, why)
        return None
    if len(values) >= ID_FROM and len(distinct) == len(values) and (not numeric or _counted(given)):
        log.warning("column %r is left out: every row has a value of its own, as an identifier has", name)
        return None
    if numeric and not category:
        return _of_numbers(name, torch.tensor([_number(value) for value in given], dtype=torch.float64), bins)
    if not category and any(isinstance(value, float | int) and not isinstance(value, bool) for value in given):
        log.warning("column %r holds numbers and texts: it is taken for a category", name)
    words = list(map(_word, given))
    count: dict[str, int] = {}
    for word in words:
        count[word] = count.get(word, 0) + 1
    return {"name": name, "values": sorted(sorted(count, key=lambda word: (-count[word], word))[:MOST])}


def _counted(values: Sequence[Any]) -> bool:
    """Whether these distinct numbers are whole ones without a gap."""
    numbers = [_number(value) or 0.0 for value in values]
    return all(number.is_integer() for number in numbers) and max(numbers) - min(numbers) == len(numbers) - 1


def _of_numbers(name: str, x: Tensor, bins: int) -> Column:
    edges = torch.quantile(x[: 2**20], torch.linspace(0, 1, bins + 1, dtype=torch.float64)).unique()
    std = float(x.std(correction=0))
    if not math.isfinite(std):
        raise UserError(f"column {name!r} holds numbers too large to have a deviation: leave it out by data.leave_out")
    return {"name": name, "mean": float(x.mean()), "std": std, "edges": edges.tolist()}


def code(column: Column, values: Sequence[Any], file: Any = "") -> Tensor:
    """The values as float32 (N,): a number, NaN where it is missing; of a category its place in `values`, from 1 on, 0
    where it is missing or was never seen in the train split.
    """
    if "values" in column:
        place = {value: i for i, value in enumerate(column["values"], start=1)}
        return torch.tensor([0.0 if value is None else place.get(_word(value), 0) for value in values])
    numbers = [math.nan if value is None else _number(value) for value in values]
    if None in numbers:
        row = numbers.index(None)
        raise UserError(
            f"{file}, row {row}, column {column['name']!r} holds {values[row]!r}, and the train split numbers"
        )
    return torch.tensor(numbers, dtype=torch.float64).float()


def say_copies(columns: Sequence[tuple[str, Sequence[Any]]], label: str, labels: Sequence[Any]) -> None:
    """Warns of columns that are the label by another name."""
    classes = len(set(labels) - {None})
    copies = [
        name
        for name, values in columns
        if len(set(values))
        == classes
        == len({pair for pair in zip(values, labels, strict=True) if pair[1] is not None})
    ]
    if copies and classes > 1:
        log.warning(
            "%s tells the label %r in every row: leave it out by data.leave_out=[%s], unless that is meant",
            listed(copies),
            label,
            ",".join(copies),
        )


def check_names(wanted: Collection[str], there: Collection[str], key: str) -> None:
    """UserError for a name in `data.<key>` that no column has."""
    if unknown := sorted(set(wanted) - set(there)):
        raise UserError(f"data.{key} names {listed(unknown)}; the columns are {listed(list(there), 20)}")


def _number(value: Any) -> float | None:
    if isinstance(value, datetime.datetime | datetime.date):
        return float(value.toordinal() - datetime.date(1970, 1, 1).toordinal())
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else str(value)
