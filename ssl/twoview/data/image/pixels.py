"""Pixels and grey levels: the one place that knows what a byte of an image means, and its mean and deviation."""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from twoview.data.demand import OnDemand, Samples
from twoview.data.preprocess import Preprocess
from twoview.errors import UserError

log = logging.getLogger(__name__)

WHITE = 255  # the brightest of the 256 grey levels of a byte
STATISTICS_SAMPLE = 2000  # images at most from which mean and std are computed


class Pixels(Preprocess):
    """Images (B, C, H, W), uint8 or float in [0, 1], normalised by the `mean` and `std` of each channel in [0, 1]."""

    kind = "image"
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(map(math.isfinite, mean)) or not all(0 < s < math.inf for s in std):
            raise UserError(
                f"mean {list(mean)} and std {list(std)} must be finite and as many as each other, and std positive"
            )
        # Not in the state dict: they are what `describe` tells.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)  # (C,)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)  # (C,)

    def prepare(self, samples: Samples) -> Tensor:
        """float32 in [0, 1]. UserError for integers that are not uint8: nobody knows which of them is white."""
        assert isinstance(samples, Tensor)
        if samples.shape[1] != len(self.mean):
            raise UserError(f"images of {samples.shape[1]} channels, but mean and std of {len(self.mean)}")
        return as_float(samples)

    def finish(self, x: Samples) -> Tensor:
        assert isinstance(x, Tensor)
        return (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def look(self, samples: Samples) -> None:
        if isinstance(samples, Tensor) and samples.is_floating_point():
            low, high = torch.aminmax(samples)  # the host waits for this once
            if not (low >= 0 and high <= 1):
                log.warning("images lie in [%.3g, %.3g]; the augmentations expect floats in [0, 1]", low, high)


def as_float(images: Tensor) -> Tensor:
    """float32 in [0, 1], of uint8; floats pass as they are. UserError for other integers."""
    if images.dtype == torch.uint8:
        return images / WHITE
    if not images.is_floating_point():
        raise UserError(
            f"images of {str(images.dtype).removeprefix('torch.')}: give uint8 pixels, or floats in [0, 1] "
            "(divided by their largest possible value)"
        )
    return images.float()


def as_bytes(images: Tensor) -> Tensor:
    """The nearest grey levels of floats in [0, 1]: uint8."""
    return (images.clamp(0, 1) * WHITE).round().byte()


def draw(images: Samples) -> Tensor:
    """Images as pictures to look at: float (B, 3 or 1, H, W) in [0, 1]. Of more than three channels the first three are
    shown, of two the first.
    """
    assert isinstance(images, Tensor)
    return as_float(images)[:, : 3 if images.shape[1] >= 3 else 1].clamp(0, 1)


def pixel_statistics(images: Tensor | OnDemand) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images, over all pixels in [0, 1].

    Of all images, or of a fixed random draw where there are many (`statistics_sample`): the same numbers
    whether the images lie in memory or are decoded on demand, and the test split gets those of train without
    decoding all of it. The deviation is at least one grey level, so that a constant image can be normalised.
    """
    sample = statistics_sample(len(images)).sort().values  # neighbours are read together
    batches: Iterable[Any]
    if isinstance(images, Tensor):
        batches, channels = images.cpu()[sample].split(256), images.shape[1]
    else:
        batches, channels = (images.fetch(part.tolist()) for part in sample.split(64)), images.shape[0]
    counts = torch.zeros(channels, WHITE + 1, dtype=torch.int64)
    for batch in batches:  # (B, C, H, W)
        for channel, histogram in enumerate(counts):
            histogram += torch.bincount(batch[:, channel].flatten(), minlength=WHITE + 1)
    level = torch.arange(WHITE + 1, dtype=torch.float64) / WHITE
    share = counts / counts.sum(dim=1, keepdim=True).double()  # (C, 256)
    mean = share @ level  # (C,)
    std = (share * (level - mean[:, None]).square()).sum(dim=1).sqrt().clamp(min=1 / WHITE)
    return tuple(mean.tolist()), tuple(std.tolist())


def statistics_sample(n: int) -> Tensor:
    """Which of n images mean and std come from: a fixed draw, int64 (at most `STATISTICS_SAMPLE`,)."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:STATISTICS_SAMPLE]
