"""Image sets: what every loader returns and every consumer reads, and the decoding of image files.

A loader is a plain function `(..., split) -> ImageSet | None`, `split` being "train" or "test" and None
meaning that the set has no such split.
"""

import hashlib
import io
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from twoview.errors import UserError

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# Pillow knows more formats, and hands one of them (EPS) to an external program: not for the files of
# strangers.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IN_MEMORY_BYTES = 2**30  # sets up to this size are decoded once into one array
LARGEST = 2**14  # pixels of a side that `data.size` can ask for
STATISTICS_SAMPLE = 2000  # images at most from which mean and std are computed


class Images(Protocol):
    """Images that are decoded when asked for; picklable, so that a loader worker can hold them."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W), the same for all."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor:
        """One image, uint8 (C, H, W)."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with all that is known about them.

    `images` is one uint8 array (N, C, H, W), or an `Images` that decodes on demand. `labels` is int64 (N,)
    with values below `len(classes)`, or None with `classes` empty. `mean` and `std` are per channel, of
    pixels in [0, 1], and always those of the train split. `factors` holds what else is known of each image
    (N,), for diagnosis only.
    """

    name: str
    images: Tensor | Images
    labels: Tensor | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    factors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.images)
        if isinstance(self.images, Tensor) and (self.images.dtype != torch.uint8 or self.images.dim() != 4):
            got = f"{self.images.dtype} {tuple(self.images.shape)}"
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
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        c, h, w = self.images.shape[-3:]
        return c, h, w

    @property
    def in_memory(self) -> bool:
        return isinstance(self.images, Tensor)

    def fetch(self, index: Tensor) -> Tensor:
        """Images by index (B,): uint8 (B, C, H, W), on the device of the set (on demand: on the CPU)."""
        if isinstance(self.images, Tensor):
            return self.images[index.to(self.images.device)]
        return torch.stack([self.images[i] for i in index.tolist()])

    def to(self, device: torch.device | str) -> "ImageSet":
        """The set on another device. Images that are decoded on demand stay where they are."""
        return replace(
            self,
            images=self.images.to(device) if isinstance(self.images, Tensor) else self.images,
            labels=None if self.labels is None else self.labels.to(device),
            factors={name: values.to(device) for name, values in self.factors.items()},
        )

    def subset(self, index: Tensor) -> "ImageSet":
        """The samples of an index (B,), in its order; class names, mean and std stay those of the whole."""

        def take(values: Tensor) -> Tensor:
            return values[index.to(values.device)]

        images = self.images
        return replace(
            self,
            images=take(images) if isinstance(images, Tensor) else Selection(images, index.cpu()),
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
    """Some of the images of an `Images`, still decoded on demand."""

    images: Images
    index: Tensor  # int64 (B,)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.images.shape

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[int(self.index[index])]


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


def pixel_statistics(images: Tensor | Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
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


class Blob(NamedTuple):
    """An image file that lies inside another file, with a name by which a person finds it."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


def refuse_pipe(path: Path) -> None:
    """UserError for what is there and is no file: whoever opens a pipe waits for its writer, for ever."""
    if not path.is_file() and path.exists():
        raise UserError(f"{path} is not a file but a folder, a pipe or a device: remove it")


def open_image(source: Path | Blob) -> Image.Image:
    """Open an image file and read its header alone. Anything wrong with it is a `UserError` that names it."""
    if isinstance(source, Path):
        refuse_pipe(source)
    try:
        image = Image.open(io.BytesIO(source.data) if isinstance(source, Blob) else source, formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise UserError(f"{source} is not an image: mend or remove it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{source} would unpack to a suspicious size and is refused: {error}") from None
    except Exception as error:  # damaged files make the decoders raise nearly anything
        raise UserError(f"{source} cannot be read: {str(error) or type(error).__name__}") from None
    # Pillow only warns between its limit and twice its limit.
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        image.close()
        raise UserError(f"{source} would unpack to {image.width} x {image.height} pixels and is refused")
    return image


def decode(source: Path | Blob, size: int | None = None) -> np.ndarray:
    """Decode an image file to RGB, uint8 (H, W, 3); of an animation the first frame, of 16 bits the upper 8.

    Transparency is dropped, not blended. With `size` the largest centred square is resized to (size, size),
    with antialiasing: what "shorter side to `size`, then centre crop" gives, without ever making the long
    side.
    """
    with open_image(source) as image:
        try:
            image.load()
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
            if "transparency" in image.info:
                image = image.convert("RGBA")  # a palette with transparency has no direct way to RGB
            if image.mode != "RGB":
                image = image.convert("RGB")
            if size is not None:
                side = min(image.size)
                left, top = (image.width - side) / 2, (image.height - side) / 2
                square = (left, top, left + side, top + side)
                image = image.resize((size, size), Image.Resampling.BILINEAR, box=square)
            return np.asarray(image)
        except Exception as error:  # as above
            reason = str(error) or type(error).__name__
            raise UserError(f"{source} cannot be decoded ({reason}): mend or remove it") from None


class Encoded:
    """Image files decoded on demand (see `Images`), to (size, size) or to the size that the first one has."""

    def __init__(self, sources: Sequence[Path | Blob], size: int | None = None) -> None:
        if size is not None and size < 1:
            raise UserError(f"data.size must be at least 1, got {size}")
        if size is not None and size > LARGEST:
            raise UserError(f"data.size={size} is more than the {LARGEST} pixels that a side can have")
        self.sources = sources
        self.size = size
        width, height = (size, size) if size is not None else header_size(sources[0])
        self.shape = (3, height, width)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.decode(index).copy())

    def decode(self, index: int) -> np.ndarray:
        """One image, uint8 (3, H, W), as a view."""
        image = decode(self.sources[index], self.size)  # (H, W, 3)
        self.check(index, image.shape[1], image.shape[0])
        return image.transpose(2, 0, 1)

    def check(self, index: int, width: int, height: int) -> None:
        _, h, w = self.shape
        if (width, height) != (w, h):
            raise UserError(
                f"{self.sources[0]} has {w} x {h} pixels, {self.sources[index]} has {width} x {height}: "
                "images of one set need one size; data.size=224 resizes and crops them all to 224 x 224"
            )

    def check_all(self) -> None:
        """Whether all images have one size, from their headers."""
        self._each(lambda index: self.check(index, *header_size(self.sources[index])))

    def decode_all(self) -> Tensor:
        """All images, uint8 (N, 3, H, W)."""
        n, (c, h, w) = len(self), self.shape
        check_memory(n, self.shape)
        log.info("decoding %s images to %d x %d pixels", f"{n:,}", w, h)
        images = np.empty((n, c, h, w), dtype=np.uint8)

        def fill(index: int) -> None:
            images[index] = self.decode(index)

        self._each(fill)
        return torch.from_numpy(images)

    def _each(self, work: Callable[[int], None]) -> None:
        def some(start: int) -> None:
            for index in range(start, min(start + 64, len(self))):
                work(index)

        # The work on tiny images is in Python, where threads only get in each other's way.
        tiny = self.size is None and max(self.shape) <= 64
        for _ in (map if tiny else in_threads)(some, range(0, len(self), 64)):
            pass


def check_memory(n: int, shape: tuple[int, int, int]) -> None:
    """UserError if n images of (C, H, W) cannot lie in the memory of this machine as one uint8 array."""
    needs = n * math.prod(shape)
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**40
    if needs > has:
        raise UserError(
            f"{n:,} images of {'x'.join(map(str, shape))} take {needs / 2**30:,.0f} GiB, and this machine has "
            f"{has / 2**30:,.0f}: take fewer (data.n_train, data.n_test), smaller ones (data.size), or decode files "
            "when they are needed (data.in_memory=false)"
        )


def header_size(source: Path | Blob) -> tuple[int, int]:
    """(width, height), without decoding."""
    with open_image(source) as image:
        return image.size


def load_images(
    sources: Sequence[Path | Blob],
    size: int | None = None,
    in_memory: bool | Literal["auto"] = "auto",
) -> Tensor | Encoded:
    """Image files as one array uint8 (N, 3, H, W); on demand if that is over `IN_MEMORY_BYTES`."""
    encoded = Encoded(sources, size)
    c, h, w = encoded.shape
    if in_memory == "auto":
        in_memory = len(encoded) * c * h * w <= IN_MEMORY_BYTES
    if not in_memory:
        if size is None:  # better to hear of a misfit now than hours into the run
            encoded.check_all()
        return encoded
    return encoded.decode_all()


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterable[R]:
    """Map in order, on as many threads as there are cores: decoders let go of the interpreter lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(function, items)
