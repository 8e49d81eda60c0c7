"""Common corruptions at five severities: noise, blur, light and the loss of detail.

The families of CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261) that need nothing but the image, with
the parameters of the script that made it (ImageNet-C/create_c/make_cifar_c.py of the authors' repository). Left out are
snow, frost, fog, spatter, glass blur and elastic transform. The code is our own and its random numbers are functions
of counters, so the images are not those of the published files: compare accuracies measured here with each other only.

The parameters are for 32 pixels; on images of another size, lengths grow with the smaller side.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from twoview.augment.image.noise import GaussianNoise, pixel_uniform
from twoview.data.image.pixels import WHITE, as_bytes, as_float
from twoview.rng import Draw

SEVERITIES = (1, 2, 3, 4, 5)


class Corruption(NamedTuple):
    """`apply(images, level, draw)` takes float32 (B, C, H, W), whole grey levels in [0, 1]; `levels` has what each
    severity asks for.
    """

    group: str
    levels: tuple[float, ...]
    apply: Callable[[Tensor, float, Draw], Tensor]
    channels: tuple[int, ...] = ()  # of the images that it suits; empty: all


def corrupt(images: Tensor, name: str, severity: int, index: Tensor, seed: int = 0) -> Tensor:
    """Images (B, C, H, W), uint8 or float in [0, 1], with their sample numbers (B,) to corrupted ones, uint8 and of the
    same shape.

    The severity is 1 to 5; an image meets the same random numbers at each. The result depends on the arguments alone.
    """
    _, levels, apply, _ = CORRUPTIONS[name]
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {SEVERITIES}, not {severity}")
    if len(images) == 0:
        return images
    draw = Draw(seed, 0, index.to(images.device), 0, f"corruption/{name}")
    return as_bytes(apply(as_float(images), levels[severity - 1], draw))


def suited(channels: int) -> list[str]:
    """The corruptions of images with so many channels."""
    return [name for name, c in CORRUPTIONS.items() if channels in c.channels or not c.channels]


def _gaussian_noise(images: Tensor, sigma: float, draw: Draw) -> Tensor:
    return GaussianNoise(sigma, p=1.0)(images, draw)


def _shot_noise(images: Tensor, photons: float, draw: Draw) -> Tensor:
    """Poisson counts of `photons` at white, by inverting the distribution function of each of the 256 grey levels."""
    device = images.device
    count = torch.arange(math.ceil(photons + 12 * math.sqrt(photons)) + 1, device=device, dtype=torch.float64)  # (K,)
    mean = photons * torch.arange(256, device=device, dtype=torch.float64)[:, None] / WHITE  # (256, 1)
    share = (torch.xlogy(count, mean) - mean - torch.lgamma(count + 1)).exp()  # (256, K)
    below = share.cumsum(1).clamp_max(1)
    level = as_bytes(images).long().flatten()
    rows = torch.arange(256, device=device)[:, None]
    place = torch.searchsorted((below + rows).flatten(), _uniform(images, draw).double().flatten() + level, right=True)
    found = (place - level * len(count)).clamp(0, len(count) - 1)
    return found.view(images.shape).float() / photons


def _impulse_noise(images: Tensor, amount: float, draw: Draw) -> Tensor:
    """Salt and pepper."""
    u = _uniform(images, draw)
    return torch.where(u < amount / 2, 0.0, torch.where(u < amount, 1.0, images))


def _speckle_noise(images: Tensor, sigma: float, draw: Draw) -> Tensor:
    half = GaussianNoise(sigma / 10, p=1.0)(torch.full_like(images, 0.5), draw) - 0.5  # within [0, 1]: nothing is cut
    return images + images * 10 * half


def _gaussian_blur(images: Tensor, sigma: float, draw: Draw) -> Tensor:
    sigma *= _scale(images)
    radius = int(4 * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    line = torch.softmax(-0.5 * (offset / sigma) ** 2, dim=0)
    return _filter(_filter(images, line[None], "replicate"), line[:, None], "replicate")


def _defocus_blur(images: Tensor, severity: float, draw: Draw) -> Tensor:
    """A disc, its edge softened by a Gaussian of 3 x 3."""
    radius, soft = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[int(severity)]
    radius *= _scale(images)
    reach = math.floor(radius) + 1
    offset = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    disc = (offset.square()[:, None] + offset.square() <= radius**2).float()
    edge = torch.softmax(-0.5 * (torch.tensor([-1.0, 0.0, 1.0], device=images.device) / soft) ** 2, dim=0)
    kernel = F.conv2d((disc / disc.sum())[None, None], (edge[:, None] * edge)[None, None], padding=1)[0, 0]
    return _filter(images, kernel, "reflect" if reach < min(images.shape[-2:]) else "replicate")


def _motion_blur(images: Tensor, severity: float, draw: Draw) -> Tensor:
    """A trail that fades as half a Gaussian, in a direction of each image's own within 45 degrees of the horizontal."""
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[int(severity)]
    scale = _scale(images)
    B, _, H, W = images.shape
    angle = (draw.uniform(1)[:, 0] - 0.5) * (math.pi / 2)  # (B,)
    steps = torch.arange(math.ceil(2 * radius * scale) + 1, device=images.device, dtype=torch.float32)
    weight = torch.softmax(-0.5 * (steps / (sigma * scale)) ** 2, dim=0)
    row = torch.arange(B, device=images.device)[:, None, None]
    y, x = (torch.arange(n, device=images.device) for n in (H, W))
    blurred = torch.zeros_like(images)
    for step, share in zip(steps.tolist(), weight.tolist(), strict=True):
        if share > 1e-4:
            down, right = ((step * part).round().long()[:, None] for part in (angle.sin(), angle.cos()))  # (B, 1)
            moved = images.movedim(1, -1)[
                row, (y + down).clamp(0, H - 1)[:, :, None], (x + right).clamp(0, W - 1)[:, None]
            ]
            blurred += share * moved.movedim(-1, 1)
    return blurred


def _zoom_blur(images: Tensor, end: float, draw: Draw) -> Tensor:
    """The mean of the image and of its enlargements by 0, 1, 2, ... percent, up to below `end`."""
    count, step = math.ceil((end - 1) / 0.01), 1.01 - 1  # np.arange(1, end, 0.01) to the last bit, as in the script
    return (images + sum(_enlarged(images, 1 + i * step) for i in range(count))) / (count + 1)


def _enlarged(images: Tensor, factor: float) -> Tensor:
    """The middle enlarged: cut to whole pixels, corners to corners, and trimmed to the size of before (the script's
    `clipped_zoom`, on both sides).
    """
    size = images.shape[-2:]
    inner = [math.ceil(n / factor) for n in size]
    outer = [round(n * factor) for n in inner]
    middle = _centre(images, inner)
    return _centre(F.interpolate(middle, size=outer, mode="bilinear", align_corners=True), size)


def _centre(images: Tensor, size: Sequence[int]) -> Tensor:
    top, left = ((n - m) // 2 for n, m in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def _brightness(images: Tensor, more: float, draw: Draw) -> Tensor:
    """More value in HSV, at the same hue and saturation."""
    value = images.amax(1, keepdim=True)
    brighter = (value + more).clamp_max(1)
    return torch.where(value > 0, images * (brighter / value.clamp_min(1e-6)), brighter)


def _contrast(images: Tensor, factor: float, draw: Draw) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def _saturate(images: Tensor, severity: float, draw: Draw) -> Tensor:
    """Another saturation in HSV, at the same hue and value; grey has the hue of red there."""
    factor, more = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[int(severity)]
    value = images.amax(1, keepdim=True)
    below = value - images  # (B, 3, H, W)
    saturation = below.amax(1, keepdim=True) / value.clamp_min(1e-6)
    full = torch.where(saturation > 0, below / saturation.clamp_min(1e-6), value * _cyan(images))
    return value - full * (saturation * factor + more).clamp(0, 1)


def _cyan(images: Tensor) -> Tensor:
    return images.new_tensor([0.0, 1.0, 1.0])[:, None, None]


def _pixelate(images: Tensor, factor: float, draw: Draw) -> Tensor:
    """Reduced and enlarged again, both by Pillow's box filter: the mean of the pixels whose centre lies in the box."""
    H, W = images.shape[-2:]
    down, across = (_box(n, max(1, int(n * factor))).to(images.device) for n in (H, W))
    up, back = (_box(max(1, int(n * factor)), n).to(images.device) for n in (H, W))
    small = _grey_levels(down @ _grey_levels(images @ across.T))  # Pillow keeps bytes between its two passes
    return up @ small @ back.T


def _grey_levels(images: Tensor) -> Tensor:
    return (images * WHITE + (0.5 + 1e-4)).floor() / WHITE  # halves go up, whatever float32 makes of them


def _box(size: int, result: int) -> Tensor:
    """(result, size): the weights of the pixels of a line in those of another."""
    zoom = size / result
    reach = max(0.5, zoom / 2)
    centre = (torch.arange(result, dtype=torch.float64)[:, None] + 0.5) * zoom
    offset = (torch.arange(size, dtype=torch.float64) + 0.5 - centre) / (2 * reach)
    weight = ((offset > -0.5) & (offset <= 0.5)).float()
    return weight / weight.sum(1, keepdim=True)


def _jpeg(images: Tensor, quality: float, draw: Draw) -> Tensor:
    pixels = as_bytes(images).cpu()
    coded = encode_jpeg(list(pixels), quality=int(quality))
    return as_float(torch.stack([decode_jpeg(file) for file in coded])).to(images.device)


def _scale(images: Tensor) -> float:
    return min(images.shape[-2:]) / 32


def _uniform(images: Tensor, draw: Draw) -> Tensor:
    """In [0, 1), a number for each pixel and channel."""
    return pixel_uniform(draw.bits(2), images[0].numel()).view(images.shape)


def _filter(images: Tensor, kernel: Tensor, border: str) -> Tensor:
    """Every channel correlated with `kernel` (h, w), both odd."""
    C = images.shape[1]
    h, w = kernel.shape
    x = F.pad(images, (w // 2, w // 2, h // 2, h // 2), mode=border)
    return F.conv2d(x, kernel.expand(C, 1, h, w), groups=C)


PLACES = (0.0, 1.0, 2.0, 3.0, 4.0)  # where a severity has more than one number
CORRUPTIONS = {
    "gaussian noise": Corruption("noise", (0.04, 0.06, 0.08, 0.09, 0.10), _gaussian_noise),
    "shot noise": Corruption("noise", (500, 250, 100, 75, 50), _shot_noise),
    "impulse noise": Corruption("noise", (0.01, 0.02, 0.03, 0.05, 0.07), _impulse_noise),
    "speckle noise": Corruption("noise", (0.06, 0.10, 0.12, 0.16, 0.20), _speckle_noise),
    "gaussian blur": Corruption("blur", (0.4, 0.6, 0.7, 0.8, 1.0), _gaussian_blur),
    "defocus blur": Corruption("blur", PLACES, _defocus_blur),
    "motion blur": Corruption("blur", PLACES, _motion_blur),
    "zoom blur": Corruption("blur", (1.06, 1.11, 1.16, 1.21, 1.26), _zoom_blur),
    "brightness": Corruption("light", (0.05, 0.10, 0.15, 0.20, 0.30), _brightness),
    "contrast": Corruption("light", (0.75, 0.5, 0.4, 0.3, 0.15), _contrast),
    "saturate": Corruption("light", PLACES, _saturate, (3,)),
    "pixelate": Corruption("detail", (0.95, 0.90, 0.85, 0.75, 0.65), _pixelate),
    "jpeg": Corruption("detail", (80, 65, 58, 50, 40), _jpeg, (1, 3)),
}
