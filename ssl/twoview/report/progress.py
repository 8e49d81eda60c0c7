"""How far a long computation is."""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twoview.report.words import clock

log = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal for a bar


def tracked(items: Sequence[T], what: str) -> Iterator[T]:
    """The items one by one, with a bar on a terminal and a line now and then elsewhere."""
    if get_console().is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=get_console(), transient=True) as bar:
            yield from bar.track(items, total=len(items), description=what)
        return
    began = said = time.monotonic()
    for done, item in enumerate(items):
        if (now := time.monotonic()) - said > SECONDS_BETWEEN_LINES:
            log.info("%s: %d of %d, %s left", what, done, len(items), clock((now - began) * (len(items) / done - 1)))
            said = now
        yield item
