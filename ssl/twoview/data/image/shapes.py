"""Drawn shapes: a data set of any size for machines without data, made in seconds from a seed.

The class of an image is its shape. Everything else (colours, texture, background, place, scale, angle) is
drawn independently of the class and recorded, so that one can ask what a representation knows of it.

A shape is a signed distance function: negative inside, positive outside, zero on the outline. On the pixel
grid it gives the coverage of each pixel, and with it smooth edges at any resolution.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from twoview.data.image.decode import check_memory
from twoview.data.image.pixels import WHITE, Pixels, draw, pixel_statistics
from twoview.data.set import Rows, SampleSet
from twoview.errors import UserError
from twoview.rng import Draw

Array = np.ndarray
Field = Callable[[Array, Array], Array]  # of the coordinates of points

TURN = 2 * math.pi

# Signed distance functions of points (x right, y up), for a shape that fills the unit disc.


def disc(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 0.86


def ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.69) - 0.21


def triangle(x: Array, y: Array) -> Array:
    flank = math.sqrt(0.75) * np.abs(x) + 0.5 * y
    return np.maximum(flank, -y) - 0.5


def square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.74


def star(x: Array, y: Array) -> Array:
    sector = 2 * math.pi / 5  # folded to half a spike: from the tip (1, 0) to the notch between two spikes
    angle = np.abs(np.mod(np.arctan2(y, x) + sector / 2, sector) - sector / 2)
    radius = np.hypot(x, y)
    notch_x, notch_y = 0.42 * math.cos(sector / 2), 0.42 * math.sin(sector / 2)
    length = math.hypot(1 - notch_x, notch_y)
    return ((radius * np.cos(angle) - 1) * notch_y + radius * np.sin(angle) * (1 - notch_x)) / length


def cross(x: Array, y: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.95, y - 0.3), np.maximum(x - 0.3, y - 0.95))


def heart(x: Array, y: Array) -> Array:
    y = y + 0.1  # a square on its corner, and a disc on each of its upper sides
    diamond = math.sqrt(0.5) * (np.abs(x) + np.abs(y)) - 0.56
    centre = math.sqrt(0.5) * 0.56
    return np.minimum(diamond, np.hypot(np.abs(x) - centre, y - centre) - 0.56)


def crescent(x: Array, y: Array) -> Array:
    return np.maximum(np.hypot(x, y) - 0.96, 0.74 - np.hypot(x - 0.42, y))


def arrow(x: Array, y: Array) -> Array:
    y = np.abs(y)
    head = np.maximum((x + y - 0.98) * math.sqrt(0.5), 0.12 - x)
    shaft = np.maximum(np.abs(x + 0.4) - 0.56, y - 0.24)
    return np.minimum(head, shaft)


def hourglass(x: Array, y: Array) -> Array:
    return np.maximum((0.95 * np.abs(x) - np.abs(y)) * 0.72, np.abs(y) - 0.72)


SHAPES: tuple[Field, ...] = (
    disc, ring, triangle, square, star, cross, heart, crescent, arrow, hourglass,
)  # fmt: skip


# Patterns: -1 ... 1 with soft edges, of points in units of the pattern's own period.


def plain(x: Array, y: Array) -> Array:
    return np.zeros_like(x)


def stripes(x: Array, y: Array) -> Array:
    return _soft(np.sin(TURN * x))


def waves(x: Array, y: Array) -> Array:
    return _soft(np.sin(TURN * (x + 0.3 * np.sin(0.7 * TURN * y))))


def dots(x: Array, y: Array) -> Array:
    return _soft(np.cos(TURN * x) + np.cos(TURN * y) - 0.5)


def checker(x: Array, y: Array) -> Array:
    return _soft(1.5 * np.sin(0.5 * TURN * x) * np.sin(0.5 * TURN * y))


def _soft(wave: Array) -> Array:
    return np.clip(2 * wave, -1, 1)


PATTERNS = (plain, stripes, waves, dots, checker)


def shapes(split: str, n_train: int = 10_000, n_test: int = 2_000, size: int = 32, seed: int = 0) -> SampleSet | None:
    """Drawn images, uint8 (N, 3, size, size), of the ten `SHAPES`, each as frequent as the others.

    Image i of a split is a function of (seed, split, i) and the size alone: the first n of a larger set are
    the smaller set. `factors`: `hue` and `background_hue` in [0, 1); `light`, 1 for a light shape on dark
    ground, 0 for the reverse; `texture` and `background`, numbers of `PATTERNS`; `x` and `y` of the centre,
    right and up from that of the image, and `scale`, the diameter, all in image widths; `rotation` in
    radians, anticlockwise.
    """
    n = n_train if split == "train" else n_test
    if min(n_train, size) < 1 or n_test < 0 or seed < 0:
        raise UserError(
            "data=shapes needs n_train and size of at least 1, n_test and seed of at least 0; "
            f"got n_train={n_train}, n_test={n_test}, size={size}, seed={seed}"
        )
    if size > 2048:
        raise UserError(f"data.size={size}: shapes are drawn up to 2048 pixels wide")
    if n == 0:
        return None
    check_memory(max(n_train, n_test), (3, size, size))
    images, labels, factors = render(seed, split, n, size)
    mean, std = pixel_statistics(render(seed, "train", 1000, size)[0])  # whatever the split and its length
    classes, names = tuple(shape.__name__ for shape in SHAPES), Rows(split, n)
    return SampleSet("shapes", images, labels, classes, Pixels(mean, std), names, factors, draw)


def render(seed: int, split: str, n: int, size: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Images uint8 (n, 3, size, size), labels int64 (n,) and factors (n,), of the first n of a split."""
    # Whole blocks, then cut: an image takes the same place in arrays of the same shape whatever n is, and so
    # has the same bits even where vectorised arithmetic treats the end of an array differently.
    block = len(SHAPES) * max(1, 25_000 // max(size * size, 256))  # about a megabyte for each number of a pixel
    blocks = [_render_block(seed, split, torch.arange(i, i + block), size) for i in range(0, n, block)]
    images, labels, factors = zip(*blocks, strict=True)
    return (
        torch.cat(images)[:n],
        torch.cat(labels)[:n],
        {name: torch.cat([f[name] for f in factors])[:n] for name in factors[0]},
    )


def _render_block(seed: int, split: str, index: Tensor, size: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """`render` for an index (B,) of whole runs of ten."""
    draw = Draw(seed, 0, index, 0)

    def uniform(what: str, low: float = 0.0, high: float = 1.0) -> Array:
        return (low + (high - low) * draw.of(f"shapes/{split}/{what}").uniform(1)).numpy()  # (B, 1)

    # In each run of ten images every shape comes once, in an order of its own.
    order = draw.of(f"shapes/{split}/label").uniform(1).view(-1, len(SHAPES)).argsort(dim=1)
    label = order.flatten().numpy()
    scale = uniform("scale", 0.36, 0.78)
    x, y = (uniform(axis, -0.5, 0.5) * (1 - scale) for axis in "xy")
    rotation = uniform("rotation", 0, TURN)
    light = (uniform("light") < 0.5).astype(np.float32)
    texture = (uniform("texture") * len(PATTERNS)).astype(np.int64)
    background = (uniform("background") * len(PATTERNS)).astype(np.int64)
    hue, background_hue = uniform("hue"), uniform("background hue")

    def either(what: str, if_light: tuple[float, float], if_dark: tuple[float, float]) -> Array:
        return np.where(light, uniform(what, *if_light), uniform(what, *if_dark))  # (B, 1)

    # Pixel centres, in image widths from the centre of the image.
    step = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    px, py = np.tile(step, size)[None], -np.repeat(step, size)[None]  # (1, H*W)

    # Ground: two colours that flow into each other, and a pattern of low contrast.
    gx, gy = _turn(px, py, uniform("background angle", 0, TURN))  # (B, H*W)
    period = uniform("background period", 0.25, 0.5)
    pattern = _choose(PATTERNS, background, gx / period + uniform("u"), gy / period + uniform("v"))
    flow = np.clip(gx + 0.5, 0, 1)[:, None]  # (B, 1, H*W)
    value = either("background value", (0.16, 0.36), (0.8, 1.0))
    saturation = either("background saturation", (0.4, 0.9), (0.1, 0.45))
    near, far = (_rgb(background_hue + turn, saturation, value * dim) for turn, dim in ((0, 1), (0.12, 0.85)))
    ground = (near + (far - near) * flow) * (1 + np.where(light, 0.35, 0.14)[..., None] * pattern[:, None])

    # Shape: its own colour and pattern, the pattern turning and growing with it.
    sx, sy = _turn(px - x, py - y, rotation)
    sx, sy = sx * (2 / scale), sy * (2 / scale)  # (B, H*W), in radii
    distance = _choose(SHAPES, label[:, None], sx, sy) * (scale / 2) * size  # in pixels
    period = uniform("period", 0.45, 0.8)
    pattern = _choose(PATTERNS, texture, sx / period + uniform("s"), sy / period + uniform("t"))
    value = either("value", (0.85, 1.0), (0.3, 0.6))
    saturation = either("saturation", (0.2, 0.7), (0.6, 1.0))
    colour = _rgb(hue, saturation, value) * (1 + 0.2 * pattern[:, None])

    coverage = np.clip(0.5 - distance, 0, 1)[:, None]
    image = np.clip(ground + (colour - ground) * coverage, 0, 1)  # (B, 3, H*W)
    pixels = torch.from_numpy((image * WHITE + 0.5).astype(np.uint8)).view(-1, 3, size, size)
    drawn = {"hue": hue, "background_hue": background_hue, "light": light, "texture": texture}
    drawn |= {"background": background, "x": x, "y": y, "scale": scale, "rotation": rotation}
    factors = {name: torch.from_numpy(values[:, 0].copy()) for name, values in drawn.items()}
    return pixels, torch.from_numpy(label), factors


def _turn(x: Array, y: Array, angle: Array) -> tuple[Array, Array]:
    """Coordinates in axes that are turned anticlockwise by an angle."""
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _choose(functions: Sequence[Field], which: Array, x: Array, y: Array) -> Array:
    """Row b of the result is `functions[which[b]](x[b], y[b])`."""
    result = np.empty_like(x)
    for number, function in enumerate(functions):
        rows = np.flatnonzero(which[:, 0] == number)
        result[rows] = function(x[rows], y[rows])
    return result


def _rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """HSV to RGB, each (B, 1) -> (B, 3, 1), all in [0, 1]; the hue wraps around."""
    k = (np.array([5, 3, 1], dtype=np.float32) + hue * 6) % 6  # (B, 3)
    return (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))[..., None].astype(np.float32)
