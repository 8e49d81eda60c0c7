"""The tables of the battery: how a quick draw is taken from each, how files are damaged, and how many cases there are.

python tests/faults/battery.py      # the number of cases of each table
"""

import importlib
import os
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

COUNTS: dict[str, tuple[int, int]] = {}  # of each table: its cases, and those of the quick draw


DRAWS = [20, pytest.param(1000, marks=pytest.mark.slow)]  # of what hypothesis draws: not among the cases counted


def table(name: str, cases: Iterable[tuple[Any, ...]], quick: int) -> list[Any]:
    """The cases for `parametrize`, the first member of each being its name. All but a fixed draw are slow."""
    rows = list(cases)
    drawn = set(random.Random(name).sample(range(len(rows)), min(quick, len(rows))))
    COUNTS[name] = len(rows), len(drawn)
    return [
        pytest.param(*row, id=str(row[0]), marks=() if number in drawn else pytest.mark.slow)
        for number, row in enumerate(rows)
    ]


def _cut(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return damage


def _flip(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(share * len(data))] ^= 1 << int(share * 1000) % 8
        path.write_bytes(data)

    return damage


def _in_its_place(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


_places = random.Random(0)
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("nothing of the kind\n"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "folder": _in_its_place(Path.mkdir),  # in the place of a file that cannot be read: root may read any
    "pipe": _in_its_place(os.mkfifo),  # whoever opens one waits for a writer
    "link to nothing": _in_its_place(lambda path: path.symlink_to("nothing")),
    "link to itself": _in_its_place(lambda path: path.symlink_to(path.name)),
    **{f"cut at {share:.3f}": _cut(share) for share in sorted(_places.uniform(0.01, 0.99) for _ in range(4))},
    "last byte lost": lambda path: path.write_bytes(path.read_bytes()[:-1]),
}
FLIPS = {f"bit flipped at {share:.3f}": _flip(share) for share in sorted(_places.random() for _ in range(6))}


def count() -> dict[str, tuple[int, int]]:
    """Cases and quick ones of every table of the folder."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"faults.{path.stem}")
    return COUNTS


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.modules["faults.battery"] = sys.modules["__main__"]
    for name, (cases, quick) in count().items():
        print(f"{cases:5} cases, {quick:3} of them quick: {name}")  # noqa: T201
    print(f"{sum(c for c, _ in COUNTS.values()):5} cases, {sum(q for _, q in COUNTS.values()):3} of them quick")  # noqa: T201
