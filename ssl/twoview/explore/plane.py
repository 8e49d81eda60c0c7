"""Images on a map: a place in two dimensions for each, and a picture of the map with the images on it."""

import importlib.util
import io
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from twoview.explore.gallery import Gallery

Kind = Literal["auto", "pca", "umap"]

WIDTH, HEIGHT = 1560, 1170  # pixels of the picture: twice those of a page
SIDE, APART, DOT = 52, 58, 3  # of an image, from one to the next, and of what there is no room for
LEAST = 16  # images of which UMAP can make a map, with its 15 neighbours


def places(components: Tensor, kind: Kind, seed: int = 0) -> tuple[str, Tensor]:
    """The method, and a place (N, 2) for each row of principal components (N, D): "pca" takes the first two, "umap"
    keeps neighbours together (McInnes et al. 2018), "auto" is that where it is installed.
    """
    if kind == "pca" or importlib.util.find_spec("umap") is None or len(components) < LEAST:
        return "principal components", components[:, :2].cpu()
    from umap import UMAP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one process
        found = UMAP(random_state=seed).fit_transform(components.float().cpu().numpy())
    return "UMAP", torch.from_numpy(np.asarray(found)).double()


def on_canvas(points: Tensor) -> Tensor:
    """Points (N, 2) as pixels, int64 (N, 2): x to the right, y down, each image whole. The outermost hundredth on each
    side lies on the border, or a single odd image would push all others together.
    """
    low, high = points.double().quantile(torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)  # (2,) each
    share = ((points - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    share[:, 1] = 1 - share[:, 1]
    room = torch.tensor([WIDTH - APART, HEIGHT - APART])
    return (share * room + APART / 2).round().long()


def with_room(pixels: Tensor, order: Sequence[int]) -> list[int]:
    """Rows in this order whose images overlap with none before them."""
    taken: dict[tuple[int, int], list[tuple[int, int]]] = {}
    chosen = []
    for row in order:
        x, y = pixels[row].tolist()
        cell = (x // APART, y // APART)
        near = (taken.get((cell[0] + i, cell[1] + j), []) for i in (-1, 0, 1) for j in (-1, 0, 1))
        if all(abs(x - a) >= APART or abs(y - b) >= APART for placed in near for a, b in placed):
            taken.setdefault(cell, []).append((x, y))
            chosen.append(row)
    return chosen


def picture(points: Tensor, gallery: Gallery, order: Sequence[int]) -> bytes:
    """A PNG with a transparent ground. Those first in the `order` are shown, the others are dots."""
    pixels = on_canvas(points)
    canvas = Image.new("RGBA", (WIDTH, HEIGHT))
    pen = ImageDraw.Draw(canvas)
    for x, y in pixels.tolist():
        pen.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=(140, 148, 158, 170))
    shown = with_room(pixels, order)
    gallery.prepare(shown)
    for row in shown:
        if data := gallery.picture(row):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
            x, y = pixels[row].tolist()
            canvas.paste(image, (x - image.width // 2, y - image.height // 2))
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()
