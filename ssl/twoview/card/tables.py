"""What the sections of a card share: its facts, its pictures, and tables that set encoders side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from twoview.card.figures import NAMES, Draw, among
from twoview.card.parts import OTHER, RUN, UNTRAINED
from twoview.report.page import Cell, Section
from twoview.report.words import in_points, percent

Facts = Mapping[str, Any]
Row = list[str | Cell]

NONE = "–"
PAIRED_NOTE = (
    "Brackets: 95 % intervals. Differences are this run less the other encoder, paired by test image (McNemar's exact "
    "test), and coloured where p is below 0.05."
)


class Card:
    """`facts` is the content of card.json, `drawn` what only pictures show; `drawings` collects them by name."""

    def __init__(self, facts: Facts, drawn: Mapping[str, Any]) -> None:
        self.facts, self.drawn = facts, drawn
        self.drawings: dict[str, Draw] = {}
        self.others = [name for name in (UNTRAINED, OTHER) if name in facts["encoders"]]

    def figure(self, section: Section, name: str, draw: Draw, alt: str, caption: str) -> None:
        self.drawings[name] = draw
        section.figure(draw, alt, caption)

    def header(self, first: str, *more: str) -> list[str | Cell]:
        """Columns of a table that compares encoders: the run, and of every other its number and the difference."""
        head: list[str | Cell] = [first, NAMES[RUN]]
        for name in self.others:
            head += [NAMES[name], Cell("difference", "points")]
        return [*head, *more]

    def row(self, label: str | Cell, cells: Mapping[str, Cell], gaps: Mapping[str, Cell]) -> Row:
        row: Row = [label, cells.get(RUN, Cell(NONE))]
        for name in self.others:
            row += [cells.get(name, Cell(NONE)), gaps.get(name, Cell(NONE))]
        return row

    def scores(self, label: str | Cell, scores: Facts, paired: Facts) -> Row:
        cells = {n: Cell(percent(scores[n]["top1"], 2), span(scores[n].get("interval"), 2)) for n in among(scores)}
        gaps = {}
        for name in self.others:
            if name in paired:
                gaps[name] = paired_gap(paired[name])
        return self.row(label, cells, gaps)

    @property
    def columns(self) -> str:
        """Alignment of the columns of `header`."""
        return "l" + "r" * (1 + 2 * len(self.others))


def missing(facts: Facts, part: str) -> str:
    why = facts["missing"].get(part, "it was not asked for")
    return f"Left out: {why.rstrip('.')}."


def span(interval: Sequence[float] | None, digits: int = 1) -> str:
    return "" if not interval else f"[{percent(interval[0], digits)},\N{NO-BREAK SPACE}{percent(interval[1], digits)}]"


def gap_span(interval: Sequence[float] | None) -> str:
    return "" if not interval else f"[{in_points(interval[0])},\N{NO-BREAK SPACE}{in_points(interval[1])}]"


def paired_gap(pair: Facts) -> Cell:
    gap, p = pair["difference"], pair["p"]
    mark = "" if p >= 0.05 else "good" if gap > 0 else "bad"
    return Cell(in_points(gap), f"{gap_span(pair['interval'])}, {p_words(p)}", mark)


def interval_gap(gap: Facts) -> Cell:
    """A difference that its interval alone judges."""
    limits = gap["interval"]
    mark = "" if not limits or limits[0] <= 0 <= limits[1] else "good" if limits[0] > 0 else "bad"
    return Cell(in_points(gap["mean"]), gap_span(limits), mark)


def p_words(p: float) -> str:
    return (
        "p\N{NO-BREAK SPACE}<\N{NO-BREAK SPACE}0.001" if p < 0.001 else f"p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{p:.2g}"
    )


def share_words(fraction: float) -> str:
    return f"{100 * fraction:g}\N{NO-BREAK SPACE}%"
