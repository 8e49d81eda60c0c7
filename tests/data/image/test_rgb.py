"""Image files of every kind are what a viewer shows: upright, on white, with the whole range from black to white."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from twoview.data.files import Blob
from twoview.data.image.decode import decode, header_size, suffixes
from twoview.data.image.folder import image_folder
from twoview.data.image.rgb import ORIENTATION, colour
from twoview.errors import UserError

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
GRAY = Image.fromarray(RAMP)


def stored(image: Image.Image, form: str = "PNG", **options: Any) -> Blob:
    file = io.BytesIO()
    image.save(file, form, **options)
    return Blob(f"{image.mode}.{form.lower()}", file.getvalue())


def over(ground: int, alpha: np.ndarray) -> np.ndarray:
    """The ramp, seen through `alpha`, before a ground."""
    return RAMP * (alpha / 255) + ground * (1 - alpha / 255)


OPAQUE: dict[str, Callable[[], Image.Image]] = {
    "gray": lambda: GRAY,
    "RGB": lambda: GRAY.convert("RGB"),
    "palette": lambda: GRAY.convert("P"),
    "opaque alpha": lambda: Image.merge("LA", [GRAY, Image.new("L", (8, 8), 255)]),
    "16 bits": lambda: Image.fromarray(RAMP.astype(np.uint16) * 257),
    "16 bits of which 12 are used": lambda: Image.fromarray((RAMP * (4095 / 255)).round().astype(np.uint16)),
    "16 bits of which 8 are used": lambda: Image.fromarray(RAMP.astype(np.uint16)),
}


@pytest.mark.parametrize("mode", OPAQUE)
def test_modes_without_transparency_keep_their_grey_levels(mode: str) -> None:
    image = decode(stored(OPAQUE[mode]()))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.repeat(RAMP[..., None], 3, axis=2))


WIDE: dict[str, np.ndarray] = {
    "floats in [0, 1]": RAMP.astype(np.float32) / 255,
    "floats of grey levels": RAMP.astype(np.float32),
    "floats of 16 bits": RAMP.astype(np.float32) * 257,
    "32 bits of which 8 are used": RAMP.astype(np.int32),
    "32 bits of which 16 are used": RAMP.astype(np.int32) * 257,
}


@pytest.mark.parametrize("name", WIDE)
def test_floats_and_wide_integers_are_scaled_by_the_range_that_they_fill(name: str) -> None:
    np.testing.assert_array_equal(decode(stored(Image.fromarray(WIDE[name]), "TIFF"))[..., 0], RAMP)


@pytest.mark.parametrize("values", [-1.0, 70_000.0, np.nan, np.inf, -np.inf])
def test_numbers_without_black_and_white_are_refused_by_name(values: float) -> None:
    image = Image.fromarray(np.full((8, 8), values, dtype=np.float32))
    with pytest.raises(UserError, match=r"F\.tiff cannot be decoded .*nobody knows black and white"):
        decode(stored(image, "TIFF"))


ALPHA = np.ascontiguousarray(RAMP.T)
SEEN_THROUGH: dict[str, Callable[[], Image.Image]] = {
    "gray": lambda: Image.merge("LA", [GRAY, Image.fromarray(ALPHA)]),
    "RGBA": lambda: Image.merge("RGBA", [GRAY, GRAY, GRAY, Image.fromarray(ALPHA)]),
}


@pytest.mark.parametrize("mode", SEEN_THROUGH)
@pytest.mark.parametrize("ground", [255, 0])
def test_transparency_is_blended_with_the_background(mode: str, ground: int) -> None:
    image = decode(stored(SEEN_THROUGH[mode]()), background=(ground, ground, ground))
    assert np.abs(image[..., 0] - over(ground, ALPHA)).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP"])
def test_a_black_drawing_on_transparent_ground_is_black_on_white(form: str) -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[2:5, 2:5, 3] = 255
    options = {"lossless": True} if form == "WEBP" else {}
    image = decode(stored(Image.fromarray(pixels), form, **options))
    expected = np.full((8, 8), 255)
    expected[2:5, 2:5] = 0
    np.testing.assert_array_equal(image[..., 0], expected)


def test_palettes_with_transparency_and_two_levels_become_rgb_without_a_word() -> None:
    palette = GRAY.convert("P")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode(stored(palette, transparency=bytes(range(256))))
        bilevel = decode(stored(Image.fromarray(RAMP > 100)))
    assert np.abs(image[..., 0] - over(255, RAMP)).max() <= 1
    np.testing.assert_array_equal(bilevel[..., 1], (RAMP > 100) * 255)


def test_cmyk_becomes_rgb() -> None:
    image = decode(stored(Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK"), "JPEG", quality=98))
    assert np.abs(image.astype(int) - np.array([200, 30, 60])).max() < 8


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_images_stand_upright(form: str, turn: int) -> None:
    """As Pillow's own ImageOps turns them, header included."""
    half = np.zeros((16, 24, 3), dtype=np.uint8)
    half[:8, :8] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    options = {"lossless": True} if form == "WEBP" else {}
    file = stored(Image.fromarray(half), form, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file.data))).convert("RGB"))
    assert (turn == 1) == (expected.shape == half.shape and np.abs(expected.astype(int) - half).max() < 30)
    np.testing.assert_array_equal(decode(file), expected)
    assert header_size(file) == expected.shape[1::-1]


def test_damaged_tags_do_not_matter() -> None:
    image = stored(GRAY.convert("RGB"), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode(image)[..., 0], RAMP)


@pytest.mark.parametrize("size", [8, 20, 33, 64])
def test_a_jpeg_decoded_at_a_smaller_scale_is_the_same_picture(size: int) -> None:
    smooth = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(smooth).resize((480, 320), Image.Resampling.BICUBIC)
    small = decode(stored(picture, "JPEG", quality=95), size).astype(int)
    whole = decode(stored(picture, "PNG"), size).astype(int)
    assert np.abs(small - whole).mean() < 2


def test_every_suffix_of_pillow_is_taken_and_nothing_that_runs_a_program(tmp_path: Path) -> None:
    assert {".jfif", ".jpe", ".avif", ".jp2", ".tga", ".pbm", ".mpo", ".ico", ".apng"} <= set(suffixes())
    assert not {".eps", ".ps", ".pdf", ".wmf", ".h5", ".mpg"} & set(suffixes())
    for number, suffix in enumerate((".jfif", ".jpe", ".png", ".avif", ".webp", ".bmp")):
        Image.fromarray(RAMP).convert("RGB").save(tmp_path / f"{number}{suffix}")
    found = image_folder(tmp_path, "train")
    assert found is not None
    assert len(found) == 6


def test_colours_have_names() -> None:
    assert colour("white") == (255, 255, 255)
    assert colour("#102030") == (16, 32, 48)
    with pytest.raises(UserError, match=r"data\.background='whit' is no colour"):
        colour("whit")


def test_images_of_one_grey_level_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, top in enumerate((1, 200, 1)):
        Image.fromarray(RAMP % top).save(tmp_path / f"{number}.png")
    image_folder(tmp_path, "train")
    assert "2 of 3 images are of one grey level; the first is" in caplog.text
