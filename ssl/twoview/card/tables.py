"""What the sections of a card share: its content, its figures, and tables that compare encoders."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from twoview.card.figures import NAMES, Content, among
from twoview.card.measures import OTHER, RUN, UNTRAINED
from twoview.report.page import Cell, Section
from twoview.report.theme import Plot
from twoview.report.words import NBSP, NONE, in_points, p_words, percent, span

Row = list[str | Cell]

PAIRED_NOTE = (
    "Brackets: 95 % intervals. Differences are this run less the other encoder, paired by test image (McNemar's exact "
    "test), and coloured where p is below 0.05."
)


class Card:
    """`content` is that of card.json; `shown` is what only figures show. `plots` collects the figures by name."""

    def __init__(self, content: Content, shown: Mapping[str, Any]) -> None:
        self.content, self.shown = content, shown
        self.plots: dict[str, Plot] = {}
        self.others = [name for name in (UNTRAINED, OTHER) if name in content["encoders"]]

    def figure(self, section: Section, name: str, plot: Plot, alt: str, caption: str) -> None:
        self.plots[name] = plot
        section.figure(plot, alt, caption)

    def header(self, first: str, *more: str) -> list[str | Cell]:
        """Columns of a table that compares encoders: the run, then each other encoder and the difference to it."""
        head: list[str | Cell] = [first, NAMES[RUN]]
        for name in self.others:
            head += [NAMES[name], Cell("difference", "points")]
        return [*head, *more]

    def row(self, label: str | Cell, cells: Mapping[str, Cell], gaps: Mapping[str, Cell]) -> Row:
        row: Row = [label, cells.get(RUN, Cell(NONE))]
        for name in self.others:
            row += [cells.get(name, Cell(NONE)), gaps.get(name, Cell(NONE))]
        return row

    def scores(self, label: str | Cell, scores: Content, paired: Content) -> Row:
        cells = {n: share_cell(scores[n]["top1"], scores[n].get("interval"), 2) for n in among(scores)}
        gaps = {}
        for name in self.others:
            if name in paired:
                gaps[name] = paired_gap(paired[name])
        return self.row(label, cells, gaps)

    @property
    def columns(self) -> str:
        """Alignment of the columns of `header`."""
        return "l" + "r" * (1 + 2 * len(self.others))


def missing(content: Content, measure: str) -> str:
    why = content["missing"].get(measure, "it was not asked for")
    return f"Left out: {why.rstrip('.')}."


def share_cell(share: float | None, limits: list[float] | None, digits: int = 1) -> Cell:
    return Cell(percent(share, digits), span(limits, partial(percent, digits=digits)))


def paired_gap(pair: Content) -> Cell:
    """A difference that is judged by its p."""
    gap, p = pair["difference"], pair["p"]
    mark = "" if p >= 0.05 else "good" if gap > 0 else "bad"
    return Cell(in_points(gap), f"{span(pair['interval'], in_points)}, {p_words(p)}", mark)


def interval_gap(gap: Content) -> Cell:
    """A difference that is judged by its interval."""
    limits = gap["interval"]
    mark = "" if not limits or limits[0] <= 0 <= limits[1] else "good" if limits[0] > 0 else "bad"
    return Cell(in_points(gap["mean"]), span(limits, in_points), mark)


def share_words(fraction: float) -> str:
    return f"{100 * fraction:g}{NBSP}%"
