"""Image files: opened with care, decoded to uint8, all at once or on demand."""

import io
import logging
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from twoview.data.demand import OnDemand, in_threads
from twoview.data.files import Blob, DamagedError, Sources, name_of, refuse_pipe, stamp_of
from twoview.data.image.pixels import statistics_sample
from twoview.data.image.rgb import colour, orientation, rgb, upright
from twoview.data.memory import memory
from twoview.errors import UserError, listed

log = logging.getLogger(__name__)

T = TypeVar("T")

# Pillow knows more formats. Left out are those that it hands to other programs (EPS), those that are no pictures, and
# those that nobody keeps photographs in: not for the files of strangers.
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF",
    "WEBP",
)  # fmt: skip
IN_MEMORY_BYTES = 2**30  # sets up to this size are decoded once into one array
LARGEST = 2**14  # pixels of a side that `data.size` can ask for

OnError = Literal["stop", "skip"]


@cache
def formats() -> list[str]:
    """Those that this Pillow was built with. MPO is opened as JPEG."""
    Image.init()
    return [form for form in FORMATS if form in Image.OPEN]


@cache
def suffixes() -> tuple[str, ...]:
    """Of the files that `open_image` may open."""
    Image.init()
    return tuple(sorted(suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS))


def open_image(source: Path | Blob) -> Image.Image:
    """Open an image file and read its header alone. Anything wrong with it is a `DamagedError` that names it."""
    if isinstance(source, Path):
        refuse_pipe(source)
    file = io.BytesIO(source.data) if isinstance(source, Blob) else source
    try:
        image = Image.open(file, formats=formats())
    except Image.UnidentifiedImageError:
        raise DamagedError(f"{source} is not an image: mend or remove it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DamagedError(f"{source} would unpack to a suspicious size and is refused: {error}") from None
    except Exception as error:  # damaged files make the decoders raise nearly anything
        raise DamagedError(f"{source} cannot be read: {str(error) or type(error).__name__}") from None
    # Pillow only warns between its limit and twice its limit.
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        image.close()
        raise DamagedError(f"{source} would unpack to {image.width} x {image.height} pixels and is refused")
    return image


def decode(
    source: Path | Blob, size: int | None = None, background: tuple[int, int, int] = (255, 255, 255)
) -> np.ndarray:
    """Decode an image file to RGB, uint8 (H, W, 3), as a viewer shows it: see `twoview.data.image.rgb`. Of an animation
    the first frame.

    With `size` the largest centred square is resized to (size, size), with antialiasing: what "shorter side to `size`,
    then centre crop" gives, without ever making the long side. A JPEG is decoded at the smallest scale that suffices.
    """
    with open_image(source) as image:
        try:
            if size is not None:
                scale = size / min(image.size)
                image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            image.load()
            image = rgb(upright(image), background)
            if size is not None:
                side = min(image.size)
                left, top = (image.width - side) / 2, (image.height - side) / 2
                square = (left, top, left + side, top + side)
                image = image.resize((size, size), Image.Resampling.BILINEAR, box=square)
            return np.asarray(image)
        except Exception as error:  # as above
            reason = str(error) or type(error).__name__
            raise DamagedError(f"{source} cannot be decoded ({reason}): mend or remove it") from None


_SKIP = "; data.on_error=skip leaves out what is damaged"


class Encoded(OnDemand):
    """Image files decoded on demand, to (size, size) or to the size that the first one has: uint8 (3, H, W) each."""

    def __init__(self, sources: Sequence[Path | Blob], size: int | None = None, background: str = "white") -> None:
        if size is not None and size < 1:
            raise UserError(f"data.size must be at least 1, got {size}")
        if size is not None and size > LARGEST:
            raise UserError(f"data.size={size} is more than the {LARGEST} pixels that a side can have")
        self.sources = sources
        self.size = size
        self.background = colour(background)
        width, height = (size, size) if size is not None else first_size(sources)
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
        try:
            return self._decode(index)
        except DamagedError as error:
            raise DamagedError(f"{error}{_SKIP}") from None

    def _decode(self, index: int) -> np.ndarray:
        image = decode(self.sources[index], self.size, self.background)  # (H, W, 3)
        self.check(index, image.shape[1], image.shape[0])
        return image.transpose(2, 0, 1)

    def check(self, index: int, width: int, height: int) -> None:
        _, h, w = self.shape
        if (width, height) != (w, h):
            raise UserError(
                f"{name_of(self.sources, 0)} has {w} x {h} pixels, {name_of(self.sources, index)} has {width} x "
                f"{height}: "
                "images of one set need one size; data.size=224 resizes and crops them all to 224 x 224"
            )

    def check_some(self) -> None:
        """Whether images have one size, from their headers: all, or a fixed draw where there are many."""
        drawn = statistics_sample(len(self)).sort().values.tolist()
        self._each(lambda i: self.check(drawn[i], *header_size(self.sources[drawn[i]])), len(drawn))

    def decode_all(self) -> Tensor:
        """All images, uint8 (N, 3, H, W)."""
        n, (c, h, w) = len(self), self.shape
        check_memory(n, self.shape)
        log.info("decoding %s images to %d x %d pixels", f"{n:,}", w, h)
        images = np.empty((n, c, h, w), dtype=np.uint8)
        plain = np.zeros(n, dtype=bool)

        def fill(index: int) -> None:
            images[index] = image = self._decode(index)
            plain[index] = image.min() == image.max()

        self._each(fill, n)
        if plain.any() and h * w > 1:
            first = name_of(self.sources, int(plain.argmax()))
            log.warning("%s of %s images are of one grey level; the first is %s", f"{plain.sum():,}", f"{n:,}", first)
        return torch.from_numpy(images)

    def damaged(self) -> list[int]:
        """Those that cannot be decoded: all are tried."""
        return sorted(self._damages(self._decode, len(self)))

    def _each(self, work: Callable[[int], Any], n: int) -> None:
        """UserError that names all files on which the work fails, of n."""
        found = self._damages(work, n)
        if len(found) == 1:
            raise found.popitem()[1]
        if found:
            names = listed([name_of(self.sources, index) for index in sorted(found)], most=20)
            raise DamagedError(f"{len(found):,} of {n:,} images are damaged: {names}; {found[min(found)]}")

    def _damages(self, work: Callable[[int], Any], n: int) -> dict[int, DamagedError]:
        found: dict[int, DamagedError] = {}

        def some(start: int) -> None:
            for index in range(start, min(start + 64, n)):
                if error := _fails(work, index):
                    found[index] = error

        for _ in (in_threads if self.threads else map)(some, range(0, n, 64)):
            pass
        return found

    def stamp(self) -> Any:
        """The size that is decoded to, and the names and sizes of the files. Where they lie does not enter."""
        return [self.size, stamp_of(self.sources)]

    def blocks(self) -> tuple[Tensor, int] | None:
        return self.sources.blocks() if isinstance(self.sources, Sources) else None


def check_memory(n: int, shape: tuple[int, int, int]) -> None:
    """UserError if n images of (C, H, W) cannot lie in the memory of this machine as one uint8 array."""
    needs = n * math.prod(shape)
    has = memory()
    if needs > has:
        raise UserError(
            f"{n:,} images of {'x'.join(map(str, shape))} take {needs / 2**30:,.0f} GiB, and this machine has "
            f"{has / 2**30:,.0f}: take fewer (data.n_train, data.n_test), smaller ones (data.size), or decode files "
            "when they are needed (data.in_memory=false)"
        )


def header_size(source: Path | Blob) -> tuple[int, int]:
    """(width, height) of the upright image, without decoding."""
    with open_image(source) as image:
        return image.size[::-1] if orientation(image) >= 5 else image.size


def first_size(sources: Sequence[Path | Blob]) -> tuple[int, int]:
    """That of the first image that is not damaged."""
    first = next((source for source in sources if not _fails(header_size, source)), sources[0])
    return header_size(first)


def _fails(work: Callable[[T], Any], item: T) -> DamagedError | None:
    try:
        work(item)
    except DamagedError as error:
        return error
    return None


def load_images(
    sources: Sequence[Path | Blob],
    size: int | None = None,
    in_memory: bool | Literal["auto"] = "auto",
    background: str = "white",
) -> Tensor | Encoded:
    """Image files as one array uint8 (N, 3, H, W); on demand if that is over `IN_MEMORY_BYTES`."""
    encoded = Encoded(sources, size, background)
    c, h, w = encoded.shape
    if in_memory == "auto":
        in_memory = len(encoded) * c * h * w <= IN_MEMORY_BYTES
    try:
        if in_memory:
            return encoded.decode_all()
        if size is None:  # better to hear of a misfit now than hours into the run
            encoded.check_some()
    except DamagedError as error:
        raise DamagedError(f"{error}{_SKIP}") from None
    return encoded


def intact(sources: Sequence[Path | Blob], on_error: OnError, what: str) -> Sequence[int]:
    """The rows of the images to take: all of them; with on_error="skip" those that can be decoded, the others are said.

    UserError where none is left. `what` they are, for messages.
    """
    rows = range(len(sources))
    if on_error == "stop":
        return rows
    if on_error != "skip":
        raise UserError(f"data.on_error={on_error!r} is neither stop nor skip")
    log.info("decoding %s images of %s to find damaged ones", f"{len(sources):,}", what)
    bad = set(Encoded(sources, 1).damaged())
    if len(bad) == len(rows):
        raise UserError(
            f"not one of the {len(rows):,} images of {what} can be decoded: {name_of(sources, 0)} is the first"
        )
    if bad:
        names = listed([name_of(sources, row) for row in sorted(bad)], most=20)
        log.warning("%s of %s images of %s are damaged and left out: %s", len(bad), f"{len(rows):,}", what, names)
    return [row for row in rows if row not in bad]
