"""Crops and flips, as two matrix products with a matrix of interpolation weights per sample.

Resampling an axis is linear, so a crop with resize of image X is A X Bᵀ with A (H', H) and B (W', W) sparse rows of
weights. Written as batched matrix products it runs at the speed of the hardware and equals torchvision's
`resized_crop` on float images, whose kernels read no pixel from outside the crop.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.augment.operation import BatchAugment, Params, check_range
from twoview.errors import UserError
from twoview.rng import Draw


class RandomResizedCrop(BatchAugment):
    """A random part of the image, resized: the crop of Inception, in torchvision's law.

    `scale`: range of the crop's share of the area. `ratio`: range of width / height, log-uniform. `size`: side of the
    square result in pixels, `None` keeps the input's size. `antialias`: widen the filter where the crop is reduced
    (torchvision's default; without effect where crops are enlarged, as on CIFAR). `interpolation`: `bilinear` or
    `bicubic`.
    """

    tries = 10

    def __init__(
        self,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        size: int | None = None,
        interpolation: str = "bilinear",
        antialias: bool = True,
        p: float = 1.0,
    ) -> None:
        super().__init__(p)
        self.scale = check_range("RandomResizedCrop: scale", scale, 0.0, 1.0)
        self.ratio = check_range("RandomResizedCrop: ratio", ratio, 1e-3, 1e3)
        if self.scale[1] == 0:
            raise UserError("RandomResizedCrop: scale must allow crops with an area above 0")
        if size is not None and size < 1:
            raise UserError(f"RandomResizedCrop: size must be at least 1 pixel, not {size}")
        if size is not None and size > _LARGEST:
            raise UserError(f"RandomResizedCrop: size must be at most {_LARGEST} pixels, not {size}")
        if interpolation not in _FILTERS:
            raise UserError(
                f"RandomResizedCrop: interpolation must be one of {', '.join(_FILTERS)}, not {interpolation}"
            )
        if size is not None and p < 1:
            raise UserError("RandomResizedCrop: with a size of its own, p must be 1: a batch has one size")
        self.size = size
        self.interpolation = interpolation
        self.antialias = antialias

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`box` (n, 4) int64: top, left, height, width of each crop, in pixels.

        torchvision's `RandomResizedCrop` makes up to ten tries for a crop that fits and falls back on a central one;
        here all ten are drawn at once and the first that fits is taken, which is the same law. float64, so that
        rounding agrees between devices.
        """
        H, W = shape[-2:]
        u = draw.uniform64(2 * self.tries + 2)  # (n, 22)
        area = H * W * (self.scale[0] + (self.scale[1] - self.scale[0]) * u[:, : self.tries])  # (n, 10)
        log_ratio = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = torch.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * u[:, self.tries : 2 * self.tries])
        w = torch.round(torch.sqrt(area * ratio))  # rounds halves to even, as Python does
        h = torch.round(torch.sqrt(area / ratio))
        fits = (w > 0) & (w <= W) & (h > 0) & (h <= H)  # (n, 10)
        first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)  # (n, 1)
        fallback_h, fallback_w = self._fallback(H, W)
        any_fits = fits.any(dim=1)
        h = torch.where(any_fits, h.gather(1, first)[:, 0], fallback_h)
        w = torch.where(any_fits, w.gather(1, first)[:, 0], fallback_w)
        top = torch.where(any_fits, torch.floor(u[:, -2] * (H - h + 1)), (H - h) // 2)
        left = torch.where(any_fits, torch.floor(u[:, -1] * (W - w + 1)), (W - w) // 2)
        return {"box": torch.stack([top, left, h, w], dim=1).long()}

    def _fallback(self, H: int, W: int) -> tuple[int, int]:
        if self.ratio[0] > W / H:
            return max(1, round(W / self.ratio[0])), W
        if self.ratio[1] < W / H:
            return H, max(1, round(H * self.ratio[1]))
        return H, W

    def apply(self, images: Tensor, params: Params) -> Tensor:
        (B, C, H, W), box = images.shape, params["box"]
        height, width = self.size or H, self.size or W
        if images.device.type == "cpu" and max(H, W, height, width) > _PRODUCTS_PAY:
            return _row_by_row(images, box, height, width, self.interpolation, self.antialias)
        top, left, h, w = box.unbind(1)  # (B,) each
        rows = self._weights(top, h, H, height)  # (B, H', H)
        columns = self._weights(left, w, W, width)  # (B, W', W)
        x = torch.bmm(images.reshape(B, C * H, W), columns.transpose(1, 2))  # (B, C*H, W')
        rows = rows[:, None].expand(B, C, height, H).reshape(B * C, height, H)  # `matmul` would broadcast far slower
        x = torch.bmm(rows, x.view(B * C, H, width)).view(B, C, height, width)
        return x.clamp(0, 1) if self.interpolation == "bicubic" else x  # bicubic overshoots at edges

    def _weights(self, start: Tensor, length: Tensor, size_in: int, size_out: int) -> Tensor:
        """Weights of each input pixel in each output pixel along one axis: float32 (B, size_out, size_in), rows sum
        to 1.
        """
        kernel, support, clamps = _FILTERS[self.interpolation]
        scale = (length.float() / size_out)[:, None, None]  # (B, 1, 1) input pixels per output pixel
        reach = scale.clamp(min=1) if self.antialias else torch.ones_like(scale)  # filter width
        out = torch.arange(size_out, device=start.device, dtype=torch.float32)[None, :, None]
        pixel = torch.arange(size_in, device=start.device, dtype=torch.float32)[None, None, :]
        pixel = pixel - start[:, None, None]  # (B, 1, size_in) position within the crop
        centre = (out + 0.5) * scale - 0.5  # (B, size_out, 1) half-pixel centres
        last = (length[:, None, None] - 1).float()
        inside = (pixel >= 0) & (pixel <= last)
        if self.antialias:  # the filter is cut at the border of the crop, and what is left of it rescaled
            weight = kernel((pixel - centre) / reach) * inside
            return weight / weight.sum(dim=2, keepdim=True)
        if clamps:  # bilinear without antialias repeats the border pixel
            return kernel(pixel - centre.clamp(min=torch.zeros_like(last), max=last)) * inside
        base = torch.floor(centre)  # bicubic without antialias: four taps, those outside fall on the border pixel
        weight = torch.zeros(len(start), size_out, size_in, device=start.device)
        for tap in range(-support + 1, support + 1):
            at = (base + tap).clamp(min=torch.zeros_like(last), max=last)  # (B, size_out, 1)
            weight = weight + (pixel == at) * _cubic(base + tap - centre, a=-0.75)
        return weight


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel. torch uses a = -0.5 with antialias (as PIL does) and a = -0.75 without."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


_FILTERS = {"bilinear": (_triangle, 1, True), "bicubic": (_cubic, 2, False)}


_LARGEST = 2**14  # pixels of a side
_PRODUCTS_PAY = 64  # pixels: beyond this side a CPU multiplies with more zeros than it gains by batching


@torch.library.custom_op("twoview::row_by_row", mutates_args=())  # one node for a compiler, which cannot see into it
def _row_by_row(images: Tensor, box: Tensor, height: int, width: int, interpolation: str, antialias: bool) -> Tensor:
    """Each row of `images` (B, C, H, W) cropped to its `box` (B, 4) and resized by torch's own kernel, on the CPU."""
    out = images.new_empty(len(images), images.shape[1], height, width)
    for row, (top, left, h, w) in enumerate(box.tolist()):
        crop = images[row : row + 1, :, top : top + h, left : left + w]
        # A linear filter that only enlarges is the same with and without antialias, and faster without.
        widen = antialias and (interpolation == "bicubic" or h > height or w > width)
        out[row] = F.interpolate(crop, (height, width), mode=interpolation, antialias=widen)[0]
    return out.clamp_(0, 1) if interpolation == "bicubic" else out


@_row_by_row.register_fake
def _(images: Tensor, box: Tensor, height: int, width: int, interpolation: str, antialias: bool) -> Tensor:
    return images.new_empty(len(images), images.shape[1], height, width)


class HorizontalFlip(BatchAugment):
    """Left and right exchanged."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        return {}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return images.flip(-1)
