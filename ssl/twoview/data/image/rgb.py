"""What the pixels of an image file mean: any of Pillow's modes as RGB of 8 bits, upright, without transparency."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from twoview.errors import UserError

ORIENTATION = 0x0112  # the tag of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FULL = {"I": (255, 4095, 65535), "F": (1, 255, 65535)}  # white in images of integers, and of floats


def colour(name: str) -> tuple[int, int, int]:
    """ "white", "#ff8800" or another name of CSS as (red, green, blue)."""
    try:
        red, green, blue, *_ = ImageColor.getrgb(name)
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"data.background={name!r} is no colour: give a name as white, or #rrggbb") from None
    return red, green, blue


def upright(image: Image.Image) -> Image.Image:
    """As a viewer shows it: turned as the camera was held. Pillow turns TIFF files by itself."""
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """1 to 8, as in EXIF; 1 is upright."""
    if not {"exif", "xmp", "XML:com.adobe.xmp"} & image.info.keys():  # or Pillow decodes a PNG to look for it
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged tags make Pillow raise nearly anything, and the pixels may be fine
        return 1


def rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """In the mode RGB. Transparent pixels show the background.

    Pixels of more than 8 bits are divided by the smallest of 255, 4,095 and 65,535 that no pixel of the image exceeds,
    floats by that of 1, 255 and 65,535. ValueError for other numbers.
    """
    if image.mode.startswith(("I", "F")):
        return _narrow(np.asarray(image), _FULL[image.mode[0]]).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(ground, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def png(values: list[Any]) -> bytes:
    """An array of pixels, nested lists (H, W), (H, W, 1), (H, W, 3 or 4) or (1 or 3, H, W) of grey levels, as a PNG
    file. ValueError for another one.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype.kind not in "iu" or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ValueError(f"an array of the shape {array.shape} and the type {array.dtype}, which is no image")
    if not array.size or array.min() < 0 or array.max() > 255:
        raise ValueError("an array whose numbers are no grey levels, 0 ... 255")
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array.astype(np.uint8))).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _narrow(values: Any, full: tuple[int, ...]) -> Image.Image:
    """Numbers (H, W) as 8 bits."""
    low, high = float(values.min()), float(values.max())
    white = next((white for white in full if high <= white), None)
    if white is None or not low >= 0:
        raise ValueError(f"its pixels lie in {low:g} ... {high:g}, of which nobody knows black and white; save 8 bits")
    return Image.fromarray((values.astype(np.float64) * (255 / white)).round().astype(np.uint8))
