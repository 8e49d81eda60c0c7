"""Noise, whose every pixel is a function of counters, and edges."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.augment.operation import BatchAugment, Params
from twoview.errors import UserError
from twoview.rng import Draw, philox


class GaussianNoise(BatchAugment):
    """Normal noise of standard deviation `sigma`, a number of its own for each pixel and channel, cut to [0, 1]."""

    def __init__(self, sigma: float = 0.1, p: float = 0.5) -> None:
        super().__init__(p)
        if not 0 <= sigma < math.inf:
            raise UserError(f"GaussianNoise: sigma must be finite and not negative, not {sigma}")
        self.sigma = sigma

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`key` (n, 2) int64: what the noise of each image grows from."""
        return {"key": draw.bits(2)}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        C, H, W = images.shape[1:]
        words = pixel_words(params["key"], (C * H * W + 1) // 2)
        # Box & Muller 1958: two normals from two uniforms, the halves of one word. 16 bits end at 4.86 deviations.
        radius = torch.sqrt(-2 * torch.log(((words >> 16).float() + 0.5) * 2.0**-16))
        angle = (words & 0xFFFF).float() * (2 * math.pi * 2.0**-16)
        normal = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, : C * H * W]
        return (images + self.sigma * normal.view(-1, C, H, W)).clamp(0, 1)


def pixel_words(key: Tensor, count: int) -> Tensor:
    """Uniform 32-bit words, int64 (B, count), from `key` (B, 2): two such words per row.

    With a key as a parameter, a row's thousands of numbers need not be kept to be shown or made again.
    """
    block = torch.arange((count + 3) // 4, device=key.device)
    words = philox((key[:, :1], key[:, 1:], block, 0), (0, 0))  # (B, blocks) each
    return torch.stack(words, dim=-1).flatten(1)[:, :count]


def pixel_uniform(key: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 (B, count), from `key` (B, 2) as in `pixel_words`."""
    return (pixel_words(key, count) >> 8).float() * 2.0**-24


class Sobel(BatchAugment):
    """Edges: the length of the gradient of each channel, by Sobel's 3 x 3 filters.

    One of the transformations that SimCLR compares (figures 4 and 5), per channel as TensorFlow's `sobel_edges`. The
    border pixel is repeated outwards. Divided by sqrt(20), the greatest length that pixels in [0, 1] can give, so that
    nothing is cut; a straight edge from black to white gets 4 / sqrt(20) = 0.89.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        return {}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        if len(images) == 0:
            return images
        x = F.pad(images, (1, 1, 1, 1), mode="replicate")
        smooth_y = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]  # (B, C, H, W + 2)
        smooth_x = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]  # (B, C, H + 2, W)
        across, down = smooth_y[..., 2:] - smooth_y[..., :-2], smooth_x[..., 2:, :] - smooth_x[..., :-2, :]
        return torch.sqrt((across * across + down * down) / 20).clamp(max=1)
