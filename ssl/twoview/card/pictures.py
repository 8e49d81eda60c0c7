"""The figures of a card that show images and features themselves: nearest neighbours, and maps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from twoview.card.atlas import NEIGHBOURS, Map, Shown
from twoview.card.figures import NAMES
from twoview.card.measures import RUN, UNTRAINED
from twoview.report.plots import canvas, fold
from twoview.report.theme import Plot, Theme

HUES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#999933", "#9988dd")


def neighbours(shown: Sequence[Shown]) -> Plot:
    """A row per query; a frame says whether a neighbour is of its class."""
    names = [name for name in NAMES if name in shown[0].neighbours]

    def plot(theme: Theme) -> Any:
        blocks = [names] if not theme.narrow else [[name] for name in names]  # below each other on a phone
        columns = 1 + len(blocks[0]) * NEIGHBOURS
        gap, head = 0.35, 0.75  # in pictures
        named = any(one.name for one in shown)
        left = (1.7 if theme.narrow else 1.9) if named else 0.1  # for the names of classes
        across = left + columns + gap * len(blocks[0])
        down = len(blocks) * (len(shown) + head) + 0.1
        figure = canvas(theme, theme.width * down / across)
        figure.set_layout_engine("none")
        panel = figure.add_axes((0, 0, 1, 1))
        panel.set(xlim=(0, across), ylim=(down, 0))
        panel.set_axis_off()
        size = 72 * theme.width / across  # of a picture, in points
        letters = {"size": min(9.5, 0.36 * size if theme.narrow else 0.3 * size), "va": "center"}
        for b, block in enumerate(blocks):
            top = b * (len(shown) + head) + head
            for j, name in enumerate(block):
                x = left + 1 + gap + j * (NEIGHBOURS + gap)
                panel.text(x + 0.05, top - 0.3, NAMES[name], color=theme.ink, weight="bold", **letters)
            for i, one in enumerate(shown):
                panel.text(left - 0.15, top + i + 0.5, fold(one.name, 12, 1), color=theme.ink, ha="right", **letters)
                _place(panel, left, top + i, one.query, None, theme)
                for j, name in enumerate(block):
                    x = left + 1 + gap + j * (NEIGHBOURS + gap)
                    for k, (pixels, right) in enumerate(one.neighbours[name]):
                        _place(panel, x + k, top + i, pixels, right, theme)
        panel.set(xlim=(0, across), ylim=(down, 0))
        return figure

    return plot


def _place(panel: Any, x: float, y: float, pixels: Tensor, right: bool | None, theme: Theme) -> None:
    from matplotlib.patches import Rectangle

    channels = 3 if len(pixels) >= 3 else 1
    picture = pixels[:channels].expand(3, -1, -1).movedim(0, -1).numpy()
    zoom = max(1, 128 // max(picture.shape[:2]))  # its pixels stay squares wherever the page is shown
    picture = np.repeat(np.repeat(picture, zoom, axis=0), zoom, axis=1)
    panel.imshow(picture, extent=(x + 0.06, x + 0.94, y + 0.94, y + 0.06), aspect="auto", interpolation="none")
    if right is not None:
        tint, style = (theme.good, "-") if right else (theme.bad, (0, (2, 1.2)))
        panel.add_patch(Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, fill=False, ec=tint, ls=style, lw=1.6))


def maps(found: Mapping[str, Sequence[Map]], classes: Sequence[str]) -> Plot:
    """A row per encoder and a column per method."""
    names = [name for name in NAMES if name in found]
    hues = HUES if len(classes) <= len(HUES) else ()

    def plot(theme: Theme) -> Any:
        columns = max(len(found[name]) for name in names)
        side = theme.width / columns
        lines = math.ceil(len(classes) / (3 if theme.narrow else 5)) if hues and classes else 0
        figure = canvas(theme, len(names) * min(side, 3.4) + 0.25 * lines)
        figure.get_layout_engine().set(h_pad=0.12)  # inches: a title stands clear of the note above it
        panels = figure.subplots(len(names), columns, squeeze=False)
        for row, name in zip(panels, names, strict=True):
            for panel in row[len(found[name]) :]:
                panel.set_visible(False)
            for panel, one in zip(row, found[name], strict=False):
                tint: Any = theme.good if name != UNTRAINED else theme.pale
                if one.labels is not None:
                    numbers = one.labels.tolist()
                    tint = [hues[c] for c in numbers] if hues else theme.colours(len(classes))
                    tint = tint if hues else [tint[c] for c in numbers]
                x, y = one.points[:, 0].numpy(), one.points[:, 1].numpy()
                panel.scatter(x, y, s=min(20, max(3.5, 5000 / len(x))), c=tint, lw=0, alpha=0.85, rasterized=True)
                for row, pixels in one.pictures:
                    _pin(panel, (x[row], y[row]), pixels, 72 * side / 14, theme)
                panel.set_title(f"{NAMES[name]},{chr(10) if theme.narrow else ' '}{one.method}")
                panel.set_xlabel(fold(one.note, 26 if theme.narrow else 60))
                panel.set(xticks=[], yticks=[])
                panel.spines[:].set_visible(False)
        if lines:
            from matplotlib.lines import Line2D

            marks: dict[str, Any] = {"marker": "o", "ls": "", "ms": 6}
            handles = [Line2D([], [], color=hues[i], label=fold(c, 14, 1), **marks) for i, c in enumerate(classes)]
            figure.legend(handles=handles, loc="outside lower center", ncols=3 if theme.narrow else 5)
        return figure

    return plot


def _pin(panel: Any, at: tuple[float, float], pixels: Tensor, side: float, theme: Theme) -> None:
    """A picture (C, H, W) of `side` points at its place on a map."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    channels = 3 if len(pixels) >= 3 else 1
    picture = pixels[:channels].expand(3, -1, -1).movedim(0, -1).numpy()
    image = OffsetImage(picture, zoom=side / max(picture.shape[:2]), interpolation="nearest", dpi_cor=True)
    frame = {"edgecolor": theme.paper, "lw": 1}
    panel.add_artist(AnnotationBbox(image, at, pad=0, bboxprops=frame))


def right_share(shown: Sequence[Shown], name: str = RUN) -> str:
    """`12 of 50`: how many of the neighbours shown have the class of their query; empty without labels."""
    marks = [right for one in shown for _, right in one.neighbours[name] if right is not None]
    return f"{sum(marks)} of {len(marks)}" if marks else ""
