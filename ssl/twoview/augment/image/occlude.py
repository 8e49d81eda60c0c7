"""Parts of the image taken away."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from twoview.augment.image.noise import pixel_uniform
from twoview.augment.operation import BatchAugment, Params, check_range
from twoview.errors import UserError
from twoview.rng import Draw


class RandomErasing(BatchAugment):
    """A rectangle painted over (Zhong et al., "Random erasing data augmentation", AAAI 2020), in torchvision's law.

    `scale`: range of the rectangle's share of the area. `ratio`: range of height / width, log-uniform. `value`: the
    paint in [0, 1], or `noise`: a uniform number of its own for each pixel and channel, as in the paper (torchvision
    paints with normal ones, for images that are normalised already). Rectangles that fit into the image with room to
    spare are tried ten times, and if none does the image stays as it is.
    """

    tries = 10

    def __init__(
        self,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        value: float | str = 0.0,
        p: float = 0.5,
    ) -> None:
        super().__init__(p)
        self.scale = check_range("RandomErasing: scale", scale, 0.0, 1.0)
        self.ratio = check_range("RandomErasing: ratio", ratio, 1e-3, 1e3)
        if value != "noise" and (isinstance(value, str) or not 0 <= value <= 1):
            raise UserError(f"RandomErasing: value must be a number in [0, 1] or noise, not {value}")
        self.value = value

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`box` (n, 4) int64: top, left, height, width, in pixels, all 0 where nothing is erased. With noise, `key`
        (n, 2) int64: what it grows from.
        """
        H, W = shape[-2:]
        u = draw.uniform64(2 * self.tries + 2)  # (n, 22)
        area = H * W * (self.scale[0] + (self.scale[1] - self.scale[0]) * u[:, : self.tries])  # (n, 10)
        log_ratio = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = torch.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * u[:, self.tries : 2 * self.tries])
        h, w = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
        fits = (h < H) & (w < W)  # (n, 10)
        first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)  # (n, 1)
        h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
        box = torch.stack([torch.floor(u[:, -2] * (H - h + 1)), torch.floor(u[:, -1] * (W - w + 1)), h, w], dim=1)
        params = {"box": torch.where(fits.any(dim=1, keepdim=True), box, 0).long()}
        return params | {"key": draw.of(f"{draw.stream}/noise").bits(2)} if self.value == "noise" else params

    def apply(self, images: Tensor, params: Params) -> Tensor:
        erased = inside(params["box"], *images.shape[-2:])
        if not isinstance(self.value, str):
            return torch.where(erased, self.value, images)
        noise = pixel_uniform(params["key"], math.prod(images.shape[1:])).view_as(images)
        return torch.where(erased, noise, images)


class Cutout(BatchAugment):
    """A square painted over, its centre anywhere in the image and its parts beyond the border cut off (DeVries &
    Taylor, "Improved regularization of convolutional neural networks with cutout", 2017; one of the transformations
    of SimCLR's figures 4 and 5).

    `size`: side of the square; a whole number is in pixels, a fraction is a share of the smaller side (the paper: 16
    of 32 pixels on CIFAR-10). `value`: the paint in [0, 1]. The paper's is 0 after normalisation, which is the mean:
    close to the default.
    """

    def __init__(self, size: int | float = 0.5, value: float = 0.5, p: float = 0.5) -> None:
        super().__init__(p)
        if not (size >= 1 if isinstance(size, int) else 0 < size <= 1):
            raise UserError(f"Cutout: size must be a whole number of pixels or a share in (0, 1], not {size}")
        if not 0 <= value <= 1:
            raise UserError(f"Cutout: value must lie in [0, 1], not {value}")
        self.size, self.value = size, value

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`box` (n, 4) int64: top, left, height, width, in pixels, parts of it perhaps outside of the image."""
        H, W = shape[-2:]
        side = self.size if isinstance(self.size, int) else max(1, round(self.size * min(H, W)))
        centre = torch.stack(
            [torch.floor(u * s) for u, s in zip(draw.uniform64(2).unbind(1), (H, W), strict=True)], dim=1
        )
        return {"box": torch.cat([centre.long() - side // 2, torch.full_like(centre, side).long()], dim=1)}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return torch.where(inside(params["box"], *images.shape[-2:]), self.value, images)


def inside(box: Tensor, H: int, W: int) -> Tensor:
    """Which pixels lie in `box` (B, 4), top, left, height, width: bool (B, 1, H, W)."""
    top, left, h, w = box[:, :, None, None, None].unbind(1)  # (B, 1, 1, 1) each
    y = torch.arange(H, device=box.device)[:, None] - top
    x = torch.arange(W, device=box.device) - left
    return (y >= 0) & (y < h) & (x >= 0) & (x < w)
