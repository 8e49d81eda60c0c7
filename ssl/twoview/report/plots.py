"""What the figures of all reports are made of: a canvas, folded names, tiles, and profiles of invariance."""

import math
from collections.abc import Callable, Mapping, Sequence
from textwrap import shorten, wrap
from typing import Any

from twoview.report.theme import Theme

DASHED = (0, (3, 2))
SPACES: dict[str, Any] = {"h": "-", "z": DASHED}  # lines of the representation and of the projection
ALIKE = 1 - 1e-5  # from here on all images are the same to an encoder, up to rounding


def fold(name: str, width: int, lines: int = 2) -> str:
    """A name in lines of `width` letters, cut where it needs more than `lines`."""
    parts = wrap(" ".join(name.split()), width) or [""]
    if len(parts) > lines:
        parts = [*parts[: lines - 1], shorten(" ".join(parts[lines - 1 :]), width, placeholder="…")]
    return "\n".join(parts)


def canvas(theme: Theme, height: float) -> Any:
    """A figure as wide as the theme says, `height` inches high."""
    from matplotlib.figure import Figure

    return Figure(figsize=(theme.width, height), layout="constrained")


def tiles(
    panel: Any,
    table: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    theme: Theme,
    outlined: Sequence[tuple[int, int]] = (),
    apart: int = 0,
    limits: tuple[float, float] | None = None,
    scale: str = "",
) -> None:
    """A heat map with its texts, coloured between `limits` (None: the least and the most); the last `apart` columns
    stand apart without colour. `scale`: what the colours mean, written beside their scale.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.patches import Rectangle

    ramp = LinearSegmentedColormap.from_list("ramp", theme.ramp)
    coloured = len(columns) - apart
    known = [x for row in table for x in row[:coloured] if x is not None] or [0.0]
    low, high = limits or (min(known), max(known))
    at = [j + 0.3 * (j >= coloured) for j in range(len(columns))]
    panel.set(xlim=(0, at[-1] + 1), ylim=(len(rows), 0))
    size = min(9.5, 28 * theme.width / (len(columns) + 4))
    for i, row in enumerate(table):
        for j, x in enumerate(row):
            paint: Any = theme.paper
            if j < coloured:
                paint = theme.rule if x is None else ramp((x - low) / (high - low) if high > low else 0.5)
                panel.add_patch(Rectangle((at[j] + 0.03, i + 0.03), 0.94, 0.94, fc=paint, lw=0))
            panel.text(at[j] + 0.5, i + 0.5, texts[i][j], ha="center", va="center", color=ink_on(paint), size=size)
    for i, j in outlined:
        panel.add_patch(Rectangle((at[j] + 0.03, i + 0.03), 0.94, 0.94, fill=False, ec=theme.bad, lw=2.2, zorder=4))
    names = [fold(name, 18, 1) for name in columns]
    is_wide = max(map(len, names)) > 11 * theme.width / (len(columns) + 2)
    turned = {"rotation": 40, "ha": "left", "rotation_mode": "anchor"} if is_wide else {}
    panel.set_xticks([x + 0.5 for x in at], names, **turned)
    panel.set_yticks([i + 0.5 for i in range(len(rows))], [fold(name, 14 if theme.narrow else 26) for name in rows])
    panel.tick_params(length=0, labeltop=True, labelbottom=False, colors=theme.ink)
    panel.spines[:].set_visible(False)
    if scale and high > low:
        colours = ScalarMappable(Normalize(100 * low, 100 * high), ramp)
        under: dict[str, Any] = {"orientation": "horizontal", "fraction": 0.04, "pad": 0.03, "aspect": 40}
        bar = panel.figure.colorbar(colours, ax=panel, **under)
        bar.set_label(scale, color=theme.pale, size=9)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=2, labelsize=8)


def ink_on(paint: Any) -> str:
    """White or nearly black, whichever has the higher contrast ratio (WCAG 2.2)."""
    from matplotlib.colors import to_rgb

    def luminance(colour: Any) -> float:
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05

    white, black = "#ffffff", "#14181d"
    return white if luminance(white) / luminance(paint) > luminance(paint) / luminance(black) else black


def profiles(
    theme: Theme,
    facts: Mapping[str, Mapping[str, Any]],
    curves: Sequence[tuple[Callable[[str], dict[str, Any]], Callable[[str, str], Sequence[float]]]],
) -> Any:
    """Invariance profiles, a panel per transform, of `facts` (`levels` and `unit` by transform), all on one scale that
    ends where the curves do.

    A curve is how it looks in a space (h or z), and a function of the transform and the space that gives the
    `likeness` at each level, or nothing.
    """
    columns = max(1, min(len(facts), 2 if theme.narrow else 4))
    rows = max(1, math.ceil(len(facts) / columns))
    figure = canvas(theme, rows * 2.1 + (1.2 if theme.narrow else 0.6))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    lowest = 1.0
    for (name, fact), panel in zip(facts.items(), panels, strict=False):
        levels = fact["levels"]
        for look, curve in curves:
            for space in SPACES:
                if values := curve(name, space):
                    panel.plot(levels, values, lw=1.6, **look(space))
                    lowest = min([lowest, *(y for y in values if math.isfinite(y))])
        panel.set_title(fold(name, 22, 1))
        panel.set_xlabel(fold(str(fact.get("unit") or ""), 24))
        panel.locator_params(axis="x", nbins=4)
        panel.grid(axis="y")
        if levels[0] > levels[-1]:  # what is left of the image: no change is on the left all the same
            panel.invert_xaxis()
    room = 0.05 * max(0.1, 1 - lowest)
    panels[0].set_ylim(lowest - room, 1 + room)
    for panel in panels[::columns]:
        panel.set_ylabel("likeness")
    for panel in panels[len(facts) :]:
        panel.set_visible(False)
    return figure


def likeness(similarity: float | None, strangers: float | None) -> float:
    """A cosine similarity on a scale from 0, as unlike as two different images (`strangers`), to 1, the image itself.
    NaN where it is unknown, or where all images are alike to the encoder.
    """
    if similarity is None or strangers is None or not strangers < ALIKE:
        return math.nan
    return (similarity - strangers) / (1 - strangers)
