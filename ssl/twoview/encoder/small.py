"""A small convolutional network for CPUs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from twoview.encoder.weights import start_from
from twoview.errors import UserError


class Small(nn.Module):
    """Four stages of 3x3 convolutions; h is the spatial mean of the last three stages side by side.

    Images (B, `channels`, H, W) of at least 8 x 8 pixels -> h (B, `widths[1]` + `widths[2]` + `widths[3]`). The stem
    halves the resolution at once with a 4x4 convolution of stride 2, and stages 2 and 3 halve it again. Every
    convolution is followed by batch normalisation and ReLU; stages 1 and 2 add a residual one. The mean over several
    stages serves a linear probe better than the last stage alone. `weights`: what to start from
    (`twoview.encoder.weights`).
    """

    def __init__(self, widths: Sequence[int] = (64, 128, 256, 512), channels: int = 3, weights: str = "random") -> None:
        super().__init__()
        if len(widths) != 4 or min(widths) < 1:
            raise UserError(f"encoder small needs four widths of at least 1, not {list(widths)}")
        if channels < 1:
            raise UserError(f"encoder.channels={channels}: images have at least one")
        w1, w2, w3, w4 = widths
        self.stage1 = nn.Sequential(_convolution(channels, w1, kernel_size=4, stride=2), _Residual(w1))
        self.stage2 = nn.Sequential(nn.MaxPool2d(2), _convolution(w1, w2), _Residual(w2))
        self.stage3 = nn.Sequential(nn.MaxPool2d(2), _convolution(w2, w3))
        self.stage4 = _convolution(w3, w4)
        self.dim = w2 + w3 + w4
        start_from(self, weights)

    def forward(self, x: Tensor) -> Tensor:
        x2 = self.stage2(self.stage1(x))  # (B, w2, H/4, W/4)
        x3 = self.stage3(x2)  # (B, w3, H/8, W/8)
        x4 = self.stage4(x3)  # (B, w4, H/8, W/8)
        return torch.cat([_mean(stage) for stage in (x2, x3, x4)], dim=1)  # (B, w2 + w3 + w4)


def _mean(x: Tensor) -> Tensor:
    """Spatial mean, (B, C, H, W) -> (B, C)."""
    # Not x.mean: its gradient is a dense (B, C, H, W), and all that it meets on the way back is in channels_last.
    return x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3])


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = _convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _convolution(channels: int, width: int, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
