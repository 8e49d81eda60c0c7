"""Image sets: what every loader returns and every consumer reads.

A loader is a plain function `(..., split) -> SampleSet | None`, `split` being "train" or "test" and None
meaning that the set has no such split.
"""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from twoview.data.image.decode import in_threads

log = logging.getLogger(__name__)

STATISTICS_SAMPLE = 2000  # images at most from which mean and std are computed


class OnDemand(Protocol):
    """Images that are decoded when asked for; picklable, so that a loader worker can hold them."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W), the same for all."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor:
        """One image, uint8 (C, H, W)."""


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Images with all that is known about them.

    `samples` is one uint8 array (N, C, H, W), or an `OnDemand` that decodes on demand. `labels` is int64 (N,)
    with values below `len(classes)`, or None with `classes` empty. `mean` and `std` are per channel, of
    pixels in [0, 1], and always those of the train split. `factors` holds what else is known of each image
    (N,), for diagnosis only.
    """

    name: str
    samples: Tensor | OnDemand
    labels: Tensor | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    factors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.samples)
        if isinstance(self.samples, Tensor) and (self.samples.dtype != torch.uint8 or self.samples.dim() != 4):
            got = f"{self.samples.dtype} {tuple(self.samples.shape)}"
            raise ValueError(f"images must be uint8 (N, C, H, W), got {got}")
        if n == 0 or min(self.shape) == 0:
            raise ValueError(f"image set {self.name!r} has no pixels: {n} images of shape {self.shape}")
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise ValueError(f"mean {self.mean} and std {self.std} must have {self.shape[0]} values each")
        if not all(np.isfinite(self.mean)) or not all(0 < s < np.inf for s in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} must be finite, and std positive")
        if (self.labels is None) != (not self.classes):
            raise ValueError("labels and class names go together: give both or neither")
        if self.labels is not None:
            if self.labels.dtype != torch.int64 or self.labels.shape != (n,):
                got = f"{self.labels.dtype} {tuple(self.labels.shape)}"
                raise ValueError(f"labels must be int64 ({n},), got {got}")
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(f"labels span {low} ... {high}, but there are {len(self.classes)} classes")
        for name, values in self.factors.items():
            if values.shape != (n,):
                raise ValueError(f"factor {name!r} must have shape ({n},), got {tuple(values.shape)}")

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        c, h, w = self.samples.shape[-3:]
        return c, h, w

    @property
    def in_memory(self) -> bool:
        return isinstance(self.samples, Tensor)

    def fetch(self, index: Tensor) -> Tensor:
        """Images by index (B,): uint8 (B, C, H, W), on the device of the set (on demand: on the CPU)."""
        if isinstance(self.samples, Tensor):
            return self.samples[index.to(self.samples.device)]
        return torch.stack([self.samples[i] for i in index.tolist()])

    def to(self, device: torch.device | str) -> "SampleSet":
        """The set on another device. Images that are decoded on demand stay where they are."""
        return replace(
            self,
            samples=self.samples.to(device) if isinstance(self.samples, Tensor) else self.samples,
            labels=None if self.labels is None else self.labels.to(device),
            factors={name: values.to(device) for name, values in self.factors.items()},
        )

    def subset(self, index: Tensor) -> "SampleSet":
        """The samples of an index (B,), in its order; class names, mean and std stay those of the whole."""

        def take(values: Tensor) -> Tensor:
            return values[index.to(values.device)]

        samples = self.samples
        return replace(
            self,
            samples=take(samples) if isinstance(samples, Tensor) else Selection(samples, index.cpu()),
            labels=None if self.labels is None else take(self.labels),
            factors={name: take(values) for name, values in self.factors.items()},
        )

    def digest(self) -> str:
        """SHA-256 over shape, images and labels: equal for equal content, wherever and however it is stored.

        Decodes every image of a set that is decoded on demand.
        """
        sha = hashlib.sha256(repr((len(self), *self.shape)).encode())
        for start in range(0, len(self), 1024):
            batch = self.fetch(torch.arange(start, min(start + 1024, len(self))))
            sha.update(batch.cpu().numpy().tobytes())
        if self.labels is not None:
            sha.update(self.labels.cpu().numpy().tobytes())
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Selection:
    """Some of the images of an `OnDemand`, still decoded on demand."""

    samples: OnDemand
    index: Tensor  # int64 (B,)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.samples.shape

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Tensor:
        return self.samples[int(self.index[index])]


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out a fraction of every class; returns `(keep_index, held_out_index)`, both int64 and ascending.

    Each class is rounded to the nearest count, but one of at least two samples has at least one in both
    parts; a class of a single sample is kept whole. The same labels, fraction and seed give the same split.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    labels = labels.cpu()[order]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[labels == label]
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held_out[members[:count]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()


def pixel_statistics(images: Tensor | OnDemand) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, over all pixels in [0, 1].

    Of all images, or of a fixed random draw where there are many (`statistics_sample`): the same numbers
    whether the images lie in memory or are decoded on demand, and the test split gets those of train without
    decoding all of it. The deviation is at least one grey level (1 / 255), so that a constant image can be
    normalised.
    """
    sample = statistics_sample(len(images))
    batches: Iterable[Tensor]
    if isinstance(images, Tensor):
        batches = images.cpu()[sample].split(256)
    else:
        batches = (image[None] for image in in_threads(images.__getitem__, sample.tolist()))
    counts = torch.zeros(images.shape[-3], 256, dtype=torch.int64)
    for batch in batches:  # (B, C, H, W)
        for channel, histogram in enumerate(counts):
            histogram += torch.bincount(batch[:, channel].flatten(), minlength=256)
    level = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(dim=1, keepdim=True).double()  # (C, 256)
    mean = share @ level  # (C,)
    std = (share * (level - mean[:, None]).square()).sum(dim=1).sqrt().clamp(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def statistics_sample(n: int) -> Tensor:
    """Which of n images mean and std come from: a fixed draw, int64 (at most `STATISTICS_SAMPLE`,)."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:STATISTICS_SAMPLE]
