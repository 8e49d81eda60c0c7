"""Changes of tone, pixel by pixel or by the statistics of each channel, in torchvision's formulas for floats in [0, 1].

All take any number of channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from twoview.augment.operation import BatchAugment, Params, check_range
from twoview.data.image.pixels import WHITE
from twoview.errors import UserError
from twoview.rng import Draw


class Solarize(BatchAugment):
    """Pixels from `threshold` upwards inverted (BYOL: p 0.2, of the second view only; threshold 0.5)."""

    def __init__(self, threshold: float = 0.5, p: float = 0.2) -> None:
        super().__init__(p)
        if not 0 <= threshold <= 1:
            raise UserError(f"Solarize: threshold must lie in [0, 1], not {threshold}")
        self.threshold = threshold

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`threshold` (n,), the same for all."""
        return {"threshold": torch.full((n,), self.threshold, device=draw.index.device)}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return solarize(images, params["threshold"])


class Posterize(BatchAugment):
    """Each channel rounded down to 2 ^ `bits` levels, from 0 in steps of 2 ^ -bits."""

    def __init__(self, bits: int = 4, p: float = 0.5) -> None:
        super().__init__(p)
        if not 0 <= bits <= 8:
            raise UserError(f"Posterize: bits must lie in [0, 8], not {bits}")
        self.bits = bits

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`bits` (n,), the same for all."""
        return {"bits": torch.full((n,), float(self.bits), device=draw.index.device)}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return posterize(images, params["bits"])


class Sharpness(BatchAugment):
    """Sharpened or softened: 0 is a soft image, 1 the image itself, 2 as much sharper as 0 is softer.

    `factor`: a number for all images, which is torchvision's law, or a range to draw from uniformly for each.
    """

    def __init__(self, factor: float | Sequence[float] = 2.0, p: float = 0.5) -> None:
        super().__init__(p)
        span = factor if isinstance(factor, Sequence) else (factor, factor)
        self.factor = check_range("Sharpness: factor", span, 0.0, 1e3)

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`factor` (n,)."""
        return {"factor": self.factor[0] + (self.factor[1] - self.factor[0]) * draw.uniform(1)[:, 0]}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return sharpen(images, params["factor"])


class _Plain(BatchAugment):
    """An operation without parameters."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        return {}


class Equalize(_Plain):
    """Every level of each channel about equally frequent."""

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return equalize(images)


class AutoContrast(_Plain):
    """Each channel stretched to the whole of [0, 1]."""

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return autocontrast(images)


class Invert(_Plain):
    """The negative."""

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return 1 - images


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """`x` (B, C, H, W), inverted from `threshold` (B,) upwards."""
    return torch.where(x >= threshold[:, None, None, None], 1 - x, x)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """`x` (B, C, H, W) on 2 ^ `bits` (B,) levels, `bits` whole numbers."""
    levels = torch.exp2(bits).round()[:, None, None, None]
    return torch.minimum(torch.floor(x * levels), levels - 1) / levels


def sharpen(x: Tensor, factor: Tensor) -> Tensor:
    """`x` (B, C, H, W) moved away from its smoothed self by `factor` (B,). The border stays: it has no neighbours."""
    if min(x.shape[-2:]) < 3:
        return x
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]  # (B, C, H - 2, W - 2) sums of 3 x 3 pixels
    middle = x[..., 1:-1, 1:-1]
    smooth = (around + 4 * middle) / 13  # weights 1 around a 5
    result = x.clone()
    result[..., 1:-1, 1:-1] = torch.lerp(smooth, middle, factor[:, None, None, None]).clamp(0, 1)
    return result


def equalize(x: Tensor) -> Tensor:
    """`x` (B, C, H, W), each channel's histogram of 256 levels flattened by PIL's rule, the result on those levels.

    A channel of one level, or with fewer than 255 pixels below its brightest level, is only put on the levels. What
    lies outside [0, 1], by rounding or otherwise, counts as the nearest of its ends.
    """
    if x.numel() == 0:
        return x
    level = (x * (WHITE + 0.999)).long().clamp(0, WHITE).flatten(2)  # (B, C, H * W), torchvision's way to 8 bits
    histogram = torch.zeros(*level.shape[:2], 256, dtype=torch.long, device=x.device)
    histogram.scatter_add_(2, level, torch.ones_like(level))
    at_most = histogram.cumsum(dim=2)  # (B, C, 256) pixels up to each level
    brightest = histogram.gather(2, level.amax(dim=2, keepdim=True))  # (B, C, 1) pixels of the brightest level
    step = (level.shape[2] - brightest) // WHITE
    below = at_most - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=WHITE)  # (B, C, 256) new levels
    new = torch.where(step > 0, table.gather(2, level), level)
    return (new.float() / WHITE).view_as(x)


def autocontrast(x: Tensor) -> Tensor:
    """`x` (B, C, H, W), each channel stretched to [0, 1]; one of a single level stays as it is."""
    low, high = x.amin(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    flat = low == high
    return ((x - torch.where(flat, 0, low)) / torch.where(flat, 1, high - low)).clamp(0, 1)
