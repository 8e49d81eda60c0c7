"""How figures look: two themes, two widths, and the way from a figure to a file."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twoview.errors import UserError
from twoview.run.atomic import save

WIDE, NARROW = 7.8, 4.0  # inches
FONTS = ["system-ui", "Inter", "Segoe UI", "Roboto", "Helvetica Neue", "Helvetica", "Arial", "DejaVu Sans"]


@dataclass(frozen=True)
class Theme:
    """The colours of a figure, and its width in inches. Colour-blind readers can tell `good` from `bad` (blue and
    vermilion), and the lightness of the sequential `ramp` alone gives its order.
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
        """`n` colours for things that have an order, all readable on the paper."""
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

Plot = Callable[[Theme], Any]  # draws a matplotlib Figure in the colours and the width of a theme


def render(plot: Plot, theme: Theme = LIGHT, form: str = "png", dpi: float = 200) -> bytes:
    """A plot as the bytes of a file, the same bytes for the same figure. ValueError for a form matplotlib lacks."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise UserError("a figure needs matplotlib: pip install 'twoview[plot]'") from error
    file = io.BytesIO()
    with rc_context(theme.style()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a browser has fonts for more letters
        plot(theme).savefig(file, format=form, dpi=dpi, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def write_plot(path: Path, plot: Plot, dpi: float = 200) -> None:
    """Writes a plot in light colours, whole or not at all, as the kind of file that its suffix names (none: PNG)."""
    remedy = "name another file by out=..."
    try:
        data = render(plot, form=path.suffix.removeprefix(".") or "png", dpi=dpi)
    except ValueError as error:
        raise UserError(f"cannot write {path}: {error}; {remedy}") from error
    save(path, data, remedy)
