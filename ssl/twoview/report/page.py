"""A report as one HTML file: no script, nothing fetched, light and dark, for a screen, a phone and paper.

    page = Page("Strength of the colour distortion", "SimCLR on CIFAR-10, 3 seeds")
    section = page.section("Accuracy")
    section.paragraph("A colour distortion helps.")
    section.numbers([("71.2 %", "linear probe, best arm")])
    section.table(["arm", "top-1"], [["s=0", Cell("65.1 %", note="[64.0, 66.2]", mark="bad")]], align="lr")
    section.figure(draw, alt="A curve that rises", caption="Mean of 3 seeds.")  # draw(theme) -> matplotlib Figure
    page.write(folder / "report.html")

All text is escaped. A figure is drawn four times, for light and dark, wide and narrow, and the browser picks.
"""

import base64
import io
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from twoview.errors import UserError

WIDE, NARROW = 7.8, 4.0  # inches
FONTS = ["system-ui", "Inter", "Segoe UI", "Roboto", "Helvetica Neue", "Helvetica", "Arial", "DejaVu Sans"]
MARKS = ("", "good", "bad", "best", "pale")


@dataclass(frozen=True)
class Theme:
    """The colours that a figure is drawn in, and its width in inches. `good` and `bad` (blue and vermilion), and the
    sequential `ramp`, whose lightness alone tells its order, are told apart by the colour-blind as well.
    """

    paper: str
    ink: str
    pale: str
    rule: str
    good: str
    bad: str
    ramp: tuple[str, ...]
    width: float = WIDE

    @property
    def narrow(self) -> bool:
        return self.width < (WIDE + NARROW) / 2

    def colours(self, n: int) -> list[Any]:
        """`n` colours for things in order, all readable on the paper."""
        from matplotlib import colormaps

        dark = self.paper < "#8"
        low, high = (0.2, 1.0) if dark else (0.0, 0.87)
        return [colormaps["viridis"](low + (high - low) * i / max(1, n - 1)) for i in range(n)]

    def style(self) -> Any:
        """matplotlib's settings, a dict."""
        return {
            "figure.facecolor": self.paper,
            "figure.dpi": 100,
            "savefig.facecolor": self.paper,
            "axes.facecolor": self.paper,
            "axes.edgecolor": self.pale,
            "axes.labelcolor": self.pale,
            "axes.titlecolor": self.ink,
            "axes.titlelocation": "left",
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.labelsize": 9,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.unicode_minus": True,
            "grid.color": self.rule,
            "grid.linewidth": 0.8,
            "text.color": self.ink,
            "text.parse_math": False,  # a dollar in a name is a dollar
            "xtick.color": self.pale,
            "ytick.color": self.pale,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "xtick.major.size": 3,
            "ytick.major.size": 3,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "font.family": ["sans-serif"],
            "font.sans-serif": FONTS,
            "font.size": 9.5,
            "lines.solid_capstyle": "round",
            "svg.fonttype": "none",  # the letters of the page, and a file that is a third of the size
            "svg.hashsalt": "twoview",
        }


LIGHT = Theme("#ffffff", "#1b1f24", "#5c6570", "#e4e7eb", "#0067a8", "#c24a00", ("#f3f7fb", "#7fb2d8", "#0b3d66"))
DARK = Theme("#15181c", "#e8eaed", "#a0a8b2", "#2d333a", "#5db4ee", "#f0954a", ("#1c242c", "#2f6f9f", "#c4e4fb"))

Draw = Callable[[Theme], Any]


def render(draw: Draw, theme: Theme = LIGHT, form: str = "png", dpi: int = 200) -> bytes:
    """The figure of `draw(theme)` as the bytes of a file, the same ones for the same figure."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise UserError("a figure needs matplotlib: pip install 'twoview[report]'") from error
    file = io.BytesIO()
    with rc_context(theme.style()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a browser has fonts for more letters
        draw(theme).savefig(file, format=form, dpi=dpi, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


class Cell(NamedTuple):
    """A cell of a table: its text, a second line in small print, and what it is marked as (of `MARKS`)."""

    text: str
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
        align = align or "l" * len(header)
        if len(align) != len(header) or any(len(row) != len(header) for row in rows) or set(align) - set("lrc"):
            raise ValueError(f"a table of {len(header)} columns needs as many cells in each row, and letters l, r, c")
        cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in (header, *rows)]
        if unknown := {cell.mark for row in cells for cell in row} - set(MARKS):
            raise ValueError(f"marks {sorted(unknown)} are none of {MARKS}")
        self._add("table", header=cells[0], rows=cells[1:], align=align, caption=caption)

    def figure(self, draw: Draw, alt: str, caption: str = "") -> None:
        """What `draw(theme)` draws, `theme.width` inches wide."""
        sources = [
            (media, _svg(draw, replace(theme, width=width)))
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


def save(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all: beside its place first, then renamed. UserError where that fails."""
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    part = path.with_name(f".{path.name[:80]}.{os.getpid()}.part")
    try:
        try:
            part.write_bytes(data)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; make room or give it a folder you may write"
        ) from error


def _svg(draw: Draw, theme: Theme) -> str:
    drawn = render(draw, theme, "svg").replace(b"'system-ui'", b"system-ui")  # no name of a font but a keyword
    return _uri("svg+xml", drawn)


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
