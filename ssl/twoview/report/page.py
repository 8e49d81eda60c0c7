"""A report as one HTML file: no script, nothing fetched, light and dark, for a screen, a phone and paper.

    page = Page("Strength of the colour distortion", "SimCLR on CIFAR-10, 3 seeds")
    section = page.section("Accuracy")
    section.paragraph("A colour distortion helps.")
    section.numbers([("71.2 %", "linear probe, best arm")])
    section.table(["arm", "top-1"], [["s=0", Cell("65.1 %", note="[64.0, 66.2]", mark="bad")]], align="lr")
    section.figure(plot, alt="A curve that rises", caption="Mean of 3 seeds.")  # plot(theme) -> matplotlib Figure
    page.write(folder / "report.html")

All text is escaped. A figure is drawn four times, light and dark, wide and narrow, and the browser chooses.
"""

import base64
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from twoview.errors import UserError
from twoview.report.theme import DARK, LIGHT, NARROW, WIDE, Plot, Theme, render
from twoview.run.atomic import save

MARKS = ("", "good", "bad", "best", "pale")


class Cell(NamedTuple):
    """A cell of a table: its text, a second line in small print, what it is marked as (of `MARKS`), an address that it
    leads to, and a small PNG.
    """

    text: str
    note: str = ""
    mark: str = ""
    link: str = ""
    picture: bytes = b""

    @property
    def source(self) -> str:
        return _uri("png", self.picture)


class Thumbnail(NamedTuple):
    """A small picture, a PNG or JPEG file (empty: none), with its name, a line in small print and a mark of `MARKS`."""

    data: bytes
    name: str
    note: str = ""
    mark: str = ""


class Section:
    """A heading (none: the head of the page) and what stands below it, in the order of the calls."""

    def __init__(self, title: str = "") -> None:
        self.title = title
        self.blocks: list[dict[str, Any]] = []

    def _add(self, kind: str, **content: Any) -> None:
        self.blocks.append({"kind": kind, **content})

    def paragraph(self, text: str) -> None:
        self._add("paragraph", text=text)

    def lead(self, text: str) -> None:
        """The finding, in larger letters."""
        self._add("lead", text=text)

    def notice(self, text: str) -> None:
        """What a reader must know before believing the rest."""
        self._add("notice", text=text)

    def numbers(self, numbers: Sequence[tuple[str, str]]) -> None:
        """Large numbers, each with its label."""
        self._add("numbers", numbers=numbers)

    def table(
        self,
        header: Sequence[str | Cell],
        rows: Sequence[Sequence[str | Cell]],
        align: str = "",
        caption: str = "",
    ) -> None:
        """`align`: a letter per column, l, r or c. The first cell of a row is its name."""
        self._add("table", **_table(header, rows, align or "l" * len(header)), caption=caption)

    def sortable(
        self,
        header: Sequence[str | Cell],
        rows: Sequence[Sequence[str | Cell]],
        keys: Sequence[Sequence[Any]],
        align: str,
        by: int,
    ) -> None:
        """A table whose reader chooses the column to sort by. `keys` has what each row is sorted by in each column, of
        one kind there; None comes last, and a column of nothing else is not sorted by. `by`: the column to begin with,
        largest first. The order is worked out here, and chosen by CSS alone.
        """
        orders = [
            [[places[way][i] for places in map(_places, zip(*keys, strict=True))] for way in range(2)]
            for i in range(len(rows))
        ]
        sorts = [c for c, column in enumerate(zip(*keys, strict=True)) if any(key is not None for key in column)]
        self._add("sortable", **_table(header, rows, align), orders=orders, by=by, sorts=sorts)

    def figure(self, plot: Plot, alt: str, caption: str = "") -> None:
        """A plot, as wide as the theme says."""
        sources = [
            (media, _svg(plot, replace(theme, width=width)))
            for media, theme, width in (
                ("screen and (max-width: 40rem) and (prefers-color-scheme: dark)", DARK, NARROW),
                ("screen and (max-width: 40rem)", LIGHT, NARROW),
                ("screen and (prefers-color-scheme: dark)", DARK, WIDE),
                ("", LIGHT, WIDE),
            )
        ]
        self._add("figure", sources=sources[:-1], image=sources[-1][1], alt=alt, caption=caption)

    def images(self, images: Sequence[tuple[bytes, str]], alt: str) -> None:
        """PNG files, each under its name."""
        self._add("images", images=[(_uri("png", data), name) for data, name in images], alt=alt)

    def picture(self, data: bytes, alt: str) -> None:
        """A PNG or JPEG file as wide as the page."""
        self._add("picture", source=_uri(_kind(data), data), alt=alt)

    def galleries(self, groups: Sequence[tuple[str, Sequence[Thumbnail]]]) -> None:
        """Groups of small pictures, each under its title (empty: none), as many beside each other as there is room."""
        shown = [
            (title, [(_uri(_kind(data), data) if data else "", *rest) for data, *rest in group])
            for title, group in groups
        ]
        self._add("galleries", groups=shown)

    def code(self, text: str, name: str = "") -> None:
        """Commands or other text to be copied as it is; with a name it is folded away below it."""
        self._add("code", text=text, name=name)


class Page(Section):
    """The page. What is added to it directly stands at its head, before all sections."""

    def __init__(self, title: str, subtitle: str = "", foot: str = "") -> None:
        super().__init__(title)
        self.subtitle, self.foot = subtitle, foot
        self.sections: list[Section] = []

    def section(self, title: str) -> Section:
        self.sections.append(Section(title))
        return self.sections[-1]

    def html(self) -> str:
        try:
            from jinja2 import Environment, FileSystemLoader, StrictUndefined
        except ImportError as error:
            raise UserError("a page needs jinja2: pip install 'twoview[report]'") from error
        loader = FileSystemLoader(Path(__file__).parent)
        environment = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        return environment.get_template("page.html").render(page=self, light=LIGHT, dark=DARK)

    def write(self, path: Path) -> None:
        save(path, self.html())


def _table(header: Sequence[str | Cell], rows: Sequence[Sequence[str | Cell]], align: str) -> dict[str, Any]:
    if len(align) != len(header) or any(len(row) != len(header) for row in rows) or set(align) - set("lrc"):
        raise ValueError(f"a table of {len(header)} columns needs as many cells in each row, and letters l, r, c")
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in (header, *rows)]
    if unknown := {cell.mark for row in cells for cell in row} - set(MARKS):
        raise ValueError(f"marks {sorted(unknown)} are none of {MARKS}")
    return {"header": cells[0], "rows": cells[1:], "align": align}


def _places(column: Sequence[Any]) -> tuple[list[int], list[int]]:
    """The place of each value with the largest first, and with the smallest first; None last in both."""
    known = sorted({value for value in column if value is not None})
    up = {value: place for place, value in enumerate(known)}
    last = len(known)
    smallest = [last if value is None else up[value] for value in column]
    return [last if value is None else last - 1 - up[value] for value in column], smallest


def _svg(plot: Plot, theme: Theme) -> str:
    drawn = render(plot, theme, "svg").replace(b"'system-ui'", b"system-ui")  # a keyword of CSS, not a font's name
    return _uri("svg+xml", drawn)


def _kind(data: bytes) -> str:
    return "jpeg" if data.startswith(b"\xff\xd8") else "png"


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
