"""Sheets of pictures: what the model sees, laid out for a person."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate

from twoview.augment.views import TwoViews
from twoview.data.demand import moved
from twoview.data.image.pixels import as_bytes
from twoview.data.set import SampleSet
from twoview.errors import UserError

CELL, GAP, BLOCK, MARGIN, LINE = 128, 8, 30, 28, 18  # pixels: a picture, between pictures, between blocks, border, text
DPI = 128  # a power of two: pixels / DPI x DPI are whole pixels again
INK, PALE, RULE = "#1a1a1a", "#6b6b6b", "#d9d9d9"


def shown(samples: SampleSet, views: TwoViews, index: Tensor, epoch: int) -> list[Tensor]:
    """Pictures (B, 3 or 1, H, W) in [0, 1] of samples by their numbers (B,), and of each of their views as the model
    sees them, mixed where they are. UserError for samples that cannot be drawn.
    """
    if samples.draw is None:
        raise UserError(f"the samples of {samples.name} cannot be drawn")
    home = views.home.device
    stored, index = moved(samples.fetch(index), home), index.to(home)
    seen = views.prepared(stored, index, epoch)
    if views.mix is not None:
        assert isinstance(seen[0], Tensor)
        seen[0] = views.mixed((seen[0],), index, epoch)[0][0]
    return [samples.draw(x).cpu() for x in (stored, *seen)]


def fit(images: Tensor, side: int) -> Tensor:
    """`images` (B, C, H, W) enlarged pixel by pixel, as often as they fit into `side` pixels; larger ones reduced."""
    longest = max(images.shape[-2:])
    if longest > side:
        return interpolate(images, scale_factor=side / longest, mode="bilinear", antialias=True).clamp(0, 1)
    return images.repeat_interleave(side // longest, dim=2).repeat_interleave(side // longest, dim=3)


@dataclass(frozen=True)
class Picture:
    """float (C, H, W) in [0, 1], with lines of text below it, boxes (top, left, height, width) by their colours, and
    the colour of a frame. Of more than three channels the first three are shown, of two the first.
    """

    pixels: Tensor
    caption: Sequence[str] = ()
    boxes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    frame: str | None = None  # None: a hairline


@dataclass(frozen=True)
class Band:
    """Rows of pictures under the same headings: blocks of columns, each with a name."""

    blocks: Sequence[tuple[str, Sequence[str]]]
    rows: Sequence[Sequence[Picture]]


def sheet(title: str, about: str, bands: Sequence[Band]) -> Any:
    """A matplotlib figure of bands below each other. Saved at its own resolution, each pixel of a picture is a square
    of whole pixels.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("a sheet needs matplotlib: pip install 'twoview[plot]'") from error
    longest = max(max(picture.pixels.shape[1:]) for band in bands for row in band.rows for picture in row)
    side = longest * (CELL // longest) if longest <= CELL else min(longest, 2 * CELL)
    figure = Figure(dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)  # measures texts
    axes = figure.add_axes((0, 0, 1, 1))  # in pixels from the upper left corner
    right, y = 0, MARGIN + 72  # of the page; of the next band

    def write(x: float, y: float, text: str, size: float = 14, color: str = INK, weight: str = "normal") -> None:
        nonlocal right
        written = axes.text(x, y, text, size=size * 72 / DPI, color=color, weight=weight)
        right = max(right, math.ceil(x + written.get_window_extent().width) + MARGIN)

    write(MARGIN, MARGIN + 14, title, size=18, weight="bold")
    write(MARGIN, MARGIN + 38, about, color=PALE)
    for band in bands:
        columns, x = [], MARGIN
        y += 36 if any(name for name, _ in band.blocks) else 14  # baseline of the headings
        for name, headings in band.blocks:
            write(x, y - 22, name, size=15, weight="bold")
            for heading in headings:
                write(x, y, heading)
                columns.append(x)
                x += side + GAP
            x += BLOCK - GAP
        right = max(right, x - BLOCK + MARGIN)
        y += 9
        for row in band.rows:
            most = 0  # lines below a picture
            for x, picture in zip(columns, row, strict=False):  # the last row may be shorter
                _place(axes, x, y, picture, side)
                lines = [part for line in picture.caption for part in wrap(line, max(18, side // 7))]
                for i, line in enumerate(lines, start=1):
                    write(x, y + side + LINE * i, line, size=12.5, color=PALE)
                most = max(most, len(lines))
            y += side + 14 + LINE * most
        y += BLOCK
    bottom = y - BLOCK - 14 + MARGIN
    figure.set_size_inches(right / DPI, bottom / DPI)
    axes.set(xlim=(0, right), ylim=(bottom, 0))
    axes.set_axis_off()
    return figure


def _place(axes: Any, x: int, y: int, picture: Picture, side: int) -> None:
    from matplotlib.patches import Rectangle

    channels = 3 if len(picture.pixels) >= 3 else 1
    pixels = fit(picture.pixels[None, :channels], side)[0].expand(3, -1, -1)  # (3, h, w)
    h, w = pixels.shape[1:]
    levels = as_bytes(pixels).movedim(0, -1).numpy()
    axes.imshow(levels, extent=(x, x + w, y + h, y), interpolation="nearest", aspect="auto")

    def outline(left: float, top: float, width: float, height: float, colour: str, thickness: float) -> None:
        style: dict[str, Any] = {
            "edgecolor": colour,
            "linewidth": thickness * 72 / DPI,
            "joinstyle": "miter",
            "snap": False,
        }
        axes.add_patch(Rectangle((left, top), width, height, fill=False, **style))

    if picture.frame:
        outline(x - 1, y - 1, w + 2, h + 2, picture.frame, 2)
    else:
        outline(x - 0.5, y - 0.5, w + 1, h + 1, RULE, 1)
    zoom = w / picture.pixels.shape[2]
    for colour, (top, left, height, width) in picture.boxes.items():
        for paint, thickness in (("white", 4.2), (colour, 2.2)):  # the white below stands out from any picture
            outline(x + left * zoom, y + top * zoom, width * zoom, height * zoom, paint, thickness)
