"""Image files: opened with care, decoded to uint8, all at once or on demand."""

import io
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from twoview.data.demand import OnDemand, in_threads
from twoview.data.files import Blob, refuse_pipe
from twoview.errors import UserError

log = logging.getLogger(__name__)

# Pillow knows more formats, and hands one of them (EPS) to an external program: not for the files of
# strangers.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IN_MEMORY_BYTES = 2**30  # sets up to this size are decoded once into one array
LARGEST = 2**14  # pixels of a side that `data.size` can ask for


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


class Encoded(OnDemand):
    """Image files decoded on demand, to (size, size) or to the size that the first one has: uint8 (3, H, W) each."""

    def __init__(self, sources: Sequence[Path | Blob], size: int | None = None) -> None:
        if size is not None and size < 1:
            raise UserError(f"data.size must be at least 1, got {size}")
        if size is not None and size > LARGEST:
            raise UserError(f"data.size={size} is more than the {LARGEST} pixels that a side can have")
        self.sources = sources
        self.size = size
        width, height = (size, size) if size is not None else header_size(sources[0])
        self._shape = (3, height, width)
        # The work on tiny images is in Python, where threads only get in each other's way.
        self.threads = size is not None or max(self.shape) > 64

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

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

        for _ in (in_threads if self.threads else map)(some, range(0, len(self), 64)):
            pass

    def stamp(self) -> Any:
        """The size that is decoded to, and the names and sizes of the files. Where they lie does not enter."""
        common = os.path.commonpath([os.path.dirname(str(source)) for source in self.sources])
        sizes = [source.stat().st_size if isinstance(source, Path) else len(source.data) for source in self.sources]
        names = [os.path.relpath(str(source), common) for source in self.sources]
        return [self.size, names, sizes]


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
