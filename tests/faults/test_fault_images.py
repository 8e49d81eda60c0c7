"""Images and labels of every odd kind, through the whole command: a run that ends, or one message naming the file."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from faults.battery import table

SMALL = ("encoder=small", "encoder.widths=[4,4,4,4]", "model.projector.hidden_dim=8", "batch_size=4", "epochs=1")
SMALL += ("trainer=cpu", "log_every_steps=1", "loader.max_batches=1", "knn=null", "loader.num_workers=0")


def noise(*shape: int, top: int = 256, kind: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, shape).astype(kind)


def animation(path: Path) -> None:
    frames = [Image.fromarray(noise(8, 8, 3) // (i + 1)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def exotic(mode: str) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(noise(8, 8, 3)).convert(mode).save(path)


def sized(width: int, height: int) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(noise(height, width, 3)).save(path)


def rotated(path: Path) -> None:
    image = Image.fromarray(noise(8, 8, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def appended(path: Path) -> None:
    Image.fromarray(noise(8, 8, 3)).save(path)
    path.write_bytes(path.read_bytes() + b"#!/bin/sh\n" * 100)


# name and suffix, how it is made, and whether it can be trained on (None: as the decoder says)
IMAGES: list[tuple[str, Callable[[Path], Any], bool | None]] = [
    ("1x1.png", sized(1, 1), True),
    ("1x10000.png", sized(1, 10_000), True),
    ("10000x1.png", sized(10_000, 1), True),
    ("cmyk.jpg", exotic("CMYK"), True),
    ("ycbcr.jpg", exotic("YCbCr"), True),
    ("gray.png", exotic("L"), True),
    ("bilevel.png", exotic("1"), True),
    ("palette.png", exotic("P"), True),
    ("alpha.png", exotic("RGBA"), True),
    ("gray alpha.png", exotic("LA"), True),
    ("lab.tif", exotic("LAB"), None),
    ("hsv.tif", lambda path: Image.fromarray(noise(8, 8)).convert("F").save(path), None),
    ("16 bit.png", lambda path: Image.fromarray(noise(8, 8, top=65536, kind=np.uint16)).save(path), True),
    ("16 bit.tif", lambda path: Image.fromarray(noise(8, 8, top=65536, kind=np.uint16)).save(path), True),
    ("32 bit.tif", lambda path: Image.fromarray(noise(8, 8, top=2**31, kind=np.int32)).save(path), False),
    ("nan.tif", lambda path: Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)).save(path), None),
    ("infinite.tif", lambda path: Image.fromarray(np.full((8, 8), np.inf, dtype=np.float32)).save(path), None),
    ("animated.gif", animation, True),
    ("animated.webp", animation, True),
    ("animated.png", animation, True),
    ("pages.tif", animation, True),
    ("lossless.webp", lambda path: Image.fromarray(noise(8, 8, 3)).save(path, lossless=True), True),
    ("turned.jpg", rotated, True),
    ("interlaced.jpg", lambda path: Image.fromarray(noise(8, 8, 3)).save(path, progressive=True), True),
    ("bytes after the end.png", appended, True),
    ("png that is a jpeg.png", lambda path: Image.fromarray(noise(8, 8, 3)).save(path, "JPEG"), True),
    ("plain.ppm", sized(8, 8), True),
    ("plain.bmp", sized(8, 8), True),
    ("drawing.png", lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), False),
    ("postscript.jpg", lambda path: Image.fromarray(noise(8, 8, 3)).save(path, "EPS"), False),
    ("page.png", lambda path: path.write_text("<html><body>404</body></html>"), False),
    ("nothing.png", lambda path: path.write_bytes(b""), False),
    ("header alone.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), False),
    ("pipe.png", os.mkfifo, False),
]


@pytest.mark.parametrize(("name", "make", "trains"), table("odd images", IMAGES, 4))
@pytest.mark.parametrize("demand", ["auto", "false"])
def test_odd_images(
    tmp_path: Path, command: Callable[..., Any], name: str, make: Callable[[Path], Any], trains: bool | None,
    demand: str,
) -> None:  # fmt: skip
    for i in range(3):
        sized(8, 8)(tmp_path / f"{i}.png")
    make(tmp_path / name)
    words = [
        "data=image_folder",
        f"data.root={tmp_path}",
        "data.size=8",
        f"data.in_memory={demand}",
        "loader.max_batches=null",
    ]
    ended = command(*words, *SMALL)
    if trains is not None:
        assert ended.code == (0 if trains else 1), ended.err
    if ended.code:
        assert name in ended.error
        assert not list(tmp_path.rglob("*.ckpt"))


# Names and shapes of folders.


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sized(8, 8)(path)


def classes(*names: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for name in names:
            for i in range(4):
                put(root / name / f"{i}.png")

    return make


def also(make: Callable[[Path], None], extra: Callable[[Path], Any]) -> Callable[[Path], None]:
    def both(root: Path) -> None:
        make(root)
        extra(root)

    return both


two = classes("a", "b")
FOLDERS: list[tuple[str, Callable[[Path], None], bool]] = [
    ("spaces", classes("a b", " c "), True),
    ("unicode", classes("größe", "猫", "🐈"), True),
    ("combining letters", classes("e\u0301", "\u00e9"), True),
    ("right to left", classes("\u202etxt", "abc"), True),
    ("new lines", classes("a\nb", "c"), True),
    ("quotes and markup", classes("<script>", "'\"&$(touch canary)"), True),
    ("bytes that are no text", lambda root: classes(os.fsdecode(b"\xff\xfe"), "b")(root), True),
    ("dots", classes("...", "a.b"), True),
    ("long names", classes("a" * 255, "b"), True),
    ("one class", classes("a"), True),
    ("a thousand classes", classes(*map(str, range(300))), True),
    ("hidden files", also(two, lambda root: (root / "a" / ".DS_Store").write_text("")), True),
    ("hidden folder", also(two, lambda root: put(root / ".hidden" / "x.png")), True),
    ("thumbs", also(two, lambda root: (root / "a" / "Thumbs.db").write_text("")), True),
    ("link to itself", also(two, lambda root: (root / "a" / "x.png").symlink_to("x.png")), False),
    ("link to the folder above", also(two, lambda root: (root / "c").symlink_to("..")), True),
    ("link to its own folder", also(two, lambda root: (root / "a" / "c").symlink_to(".")), True),
    ("links in a circle", also(two, lambda root: [(root / x).symlink_to(y) for x, y in ("xy", "yx")]), True),
    ("link to nothing", also(two, lambda root: (root / "nothing").symlink_to("nowhere")), True),
    ("image that is a link to nothing", also(two, lambda root: (root / "a" / "z.png").symlink_to("no")), False),
    ("folder called like an image", also(two, lambda root: (root / "a" / "z.png").mkdir()), True),
    ("class folder that is a file", also(two, lambda root: (root / "c").write_text("")), True),
    ("pipe beside", also(two, lambda root: os.mkfifo(root / "a" / "pipe")), True),
    ("capital suffixes", also(two, lambda root: (root / "a" / "0.png").rename(root / "a" / "0.PNG")), True),
    ("nothing", lambda root: root.mkdir(), False),
    ("empty classes", lambda root: (root / "a").mkdir(parents=True), False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "trains"), table("odd folders", FOLDERS, 6))
def test_odd_folders(
    tmp_path: Path, command: Callable[..., Any], canary: Path, name: str, make: Callable[[Path], None], trains: bool
) -> None:
    make(tmp_path / "photos")
    ended = command("data=image_folder", "data.root=photos", *SMALL)
    assert ended.code == (0 if trains else 1), ended.err
    if not trains:
        assert "photos" in ended.error
        assert "debug=true" not in ended.error


# Labels and tables that others made.


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(file, "PNG")
    return file.getvalue()


N = 8
BYTES = pa.array([png()] * N)


def labels(values: list[Any], kind: Any = None) -> dict[str, Any]:
    return {"image": BYTES, "label": pa.array(values, type=kind)}


NAMES = b'{"info": {"features": {"label": {"names": ["a", "b"]}}}}'
# name, the columns, metadata, whether it can be trained on
TABLES: list[tuple[str, Callable[[], dict[str, Any]], bytes | None, bool]] = [
    ("healthy", lambda: labels([0, 1] * 4), None, True),
    ("labels beyond the names", lambda: labels([0, 1, 2, 3] * 2), NAMES, False),
    ("negative labels", lambda: labels([0, -2] * 4), NAMES, False),
    ("all labels -1", lambda: labels([-1] * N), NAMES, True),
    ("labels of 64 bits", lambda: labels([2**62, -(2**62)] * 4), None, True),
    ("labels missing", lambda: labels([0, None] * 4), None, True),
    ("labels of floats", lambda: labels([0.0, 1.5] * 4), None, False),
    ("labels of whole floats", lambda: labels([0.0, 1.0, float("nan"), 0.0] * 2), None, True),
    ("some labels -1", lambda: labels([0, -1, 1, 2] * 2), None, True),
    ("some labels empty", lambda: labels(["a", "", "b", ""] * 2), None, True),
    ("labels not a number", lambda: labels([float("nan")] * N), None, True),
    ("labels true and false", lambda: labels([True, False] * 4), None, True),
    ("labels of text", lambda: labels(["a", "b"] * 4), None, True),
    ("labels of text and markup", lambda: labels(["<b>", "\x1b[31m"] * 4), None, True),
    ("labels of lists", lambda: labels([[0], [1]] * 4), None, False),
    ("labels of structures", lambda: labels([{"a": 0}] * N), None, False),
    ("labels of bytes", lambda: labels([b"a", b"b"] * 4), None, False),
    ("images of text", lambda: {"image": ["cat"] * N, "label": [0] * N}, None, False),
    ("images of numbers", lambda: {"image": [1] * N, "label": [0] * N}, None, False),
    ("images of lists", lambda: {"image": [[1, 2]] * N, "label": [0] * N}, None, False),
    ("images of arrays", lambda: {"image": [noise(8, 8, 3).tolist()] * N, "label": [0] * N}, None, True),
    ("images of arrays of grey", lambda: {"image": [noise(8, 8).tolist()] * N, "label": [0] * N}, None, True),
    ("images of ragged arrays", lambda: {"image": [[[1, 2], [3]]] * N, "label": [0] * N}, None, False),
    ("images of large numbers", lambda: {"image": [[[1, 2], [3, 999]]] * N, "label": [0] * N}, None, False),
    ("images by a path that is not there", lambda: {"image": ["no.png"] * N, "label": [0] * N}, None, False),
    ("images nested", lambda: {"image": [{"bytes": {"bytes": png()}}] * N, "label": [0] * N}, None, False),
    ("images without bytes", lambda: {"image": [{"path": "/etc/passwd"}] * N, "label": [0] * N}, None, False),
    ("images null", lambda: {"image": pa.array([None] * N, pa.binary()), "label": [0] * N}, None, False),
    ("bytes that are no image", lambda: {"image": [os.urandom(64)] * N, "label": [0] * N}, None, False),
    ("empty bytes", lambda: {"image": [b""] * N, "label": [0] * N}, None, False),
    ("no rows", lambda: {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, None, False),
    ("no columns", dict, None, False),
    ("names of another kind", lambda: labels([0, 1] * 4), b'{"info": {"features": {"label": {"names": 3}}}}', True),
    ("names nested deeply", lambda: labels([0, 1] * 4), b"[" * 50_000, True),
    ("a name twice", lambda: labels([0, 1] * 4), NAMES.replace(b'"b"', b'"a"'), True),
    ("a row in ten thousand", lambda: {"image": [png()] * 10_000, "label": [0, 1] * 4_999 + [0, None]}, None, True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "columns", "metadata", "trains"), table("odd tables", TABLES, 8))
def test_odd_tables(
    tmp_path: Path, command: Callable[..., Any], name: str, columns: Callable[[], dict[str, Any]],
    metadata: bytes | None, trains: bool,
) -> None:  # fmt: skip
    made = pa.table(columns())
    if metadata is not None:
        made = made.replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(made, tmp_path / "train.parquet")
    ended = command("data=parquet", f"data.root={tmp_path}", *SMALL)
    assert ended.code == (0 if trains else 1), ended.err
    if not trains:
        assert "train" in ended.error
        assert "debug=true" not in ended.error
        assert len(ended.error) < 700
