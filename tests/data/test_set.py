import io
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from twoview.data.files import Blob
from twoview.data.image import decode as module
from twoview.data.image.decode import Encoded, decode, load_images
from twoview.data.image.pixels import Pixels, pixel_statistics
from twoview.data.set import SampleSet, stratified_split
from twoview.errors import UserError


def noise(n: int, c: int = 3, h: int = 5, w: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def blobs(pixels: Tensor) -> list[Blob]:
    return [Blob(f"row {i}", png(Image.fromarray(p.permute(1, 2, 0).numpy()))) for i, p in enumerate(pixels)]


def make(n: int = 6, **changes: object) -> SampleSet:
    fields = {
        "name": "noise",
        "samples": noise(n),
        "labels": torch.arange(n) % 2,
        "classes": ("a", "b"),
        "preprocess": Pixels((0.5,) * 3, (0.25,) * 3),
        "factors": {"hue": torch.linspace(0, 1, n)},
    }
    return SampleSet(**(fields | changes))  # type: ignore[arg-type]


# SampleSet


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": noise(0), "labels": torch.arange(0)}, "is empty"),
        ({"samples": noise(6)[..., :0]}, "shape"),
        ({"samples": {"a": noise(6), "b": noise(5)}}, "shape"),
        ({"names": ["one"]}, "1 names for 6 samples"),
        ({"labels": torch.arange(5) % 2}, "labels must be"),
        ({"labels": (torch.arange(6) % 2).int()}, "labels must be"),
        ({"labels": torch.arange(6) % 3}, "0 ... 2, but there are 2 classes"),
        ({"labels": torch.arange(6) % 2 - 2}, "-2 ... -1"),
        ({"labels": None}, "go together"),
        ({"classes": ()}, "go together"),
        ({"factors": {"hue": torch.zeros(5)}}, "'hue'"),
    ],
)
def test_contradictory_sets_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**changes)


def test_set_in_memory_and_on_demand_are_the_same_set() -> None:
    pixels = noise(6)
    memory, demand = make(samples=pixels), make(samples=Encoded(blobs(pixels)))
    assert memory.in_memory
    assert not demand.in_memory
    assert memory.shape == demand.shape == (3, 5, 7)
    assert len(memory) == len(demand) == 6
    index = torch.tensor([3, 0, 3])
    assert torch.equal(memory.fetch(index), pixels[index])
    assert torch.equal(demand.fetch(index), pixels[index])
    assert memory.digest() == demand.digest()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.booleans(), st.data())
@settings(max_examples=30, deadline=None)
def test_subset_of_subset_is_fetching(rows: list[int], on_demand: bool, data: st.DataObject) -> None:
    pixels = noise(6)
    whole = make(samples=Encoded(blobs(pixels)) if on_demand else pixels)
    index = torch.tensor(rows)
    part = whole.subset(index)
    again = torch.tensor(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4)))
    twice = part.subset(again)
    assert torch.equal(twice.fetch(torch.arange(len(again))), pixels[index[again]])
    assert twice.labels is not None
    assert torch.equal(twice.labels, (torch.arange(6) % 2)[index[again]])
    assert torch.equal(twice.factors["hue"], whole.factors["hue"][index[again]])
    assert list(twice.names) == [f"noise row {rows[i]}" for i in again.tolist()]
    assert (twice.preprocess, twice.classes) == (whole.preprocess, whole.classes)


def test_digest_depends_on_every_pixel_label_and_on_the_shape() -> None:
    whole = make()
    assert whole.digest() == make(name="other", factors={}).digest()
    pixels = noise(6)
    pixels[5, 2, 4, 6] ^= 1
    others = [
        make(samples=pixels),
        make(labels=1 - torch.arange(6) % 2),
        make(labels=None, classes=()),
        make(samples=noise(6).view(6, 3, 7, 5)),
    ]
    assert len({whole.digest(), *(other.digest() for other in others)}) == 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_moving_moves_everything_that_is_in_memory() -> None:
    moved = make().to("cuda")
    assert isinstance(moved.samples, Tensor)
    assert moved.labels is not None
    assert {moved.samples.device.type, moved.labels.device.type, moved.factors["hue"].device.type} == {"cuda"}
    assert moved.fetch(torch.arange(2)).device.type == "cuda"
    assert moved.subset(torch.arange(2)).digest() == make().subset(torch.arange(2)).digest()
    assert make(samples=Encoded(blobs(noise(6)))).to("cuda").fetch(torch.arange(2)).device.type == "cpu"


def test_on_demand_sets_travel_to_workers(tmp_path: Path) -> None:
    pixels = noise(4)
    for i, blob in enumerate(blobs(pixels)):
        (tmp_path / f"{i}.png").write_bytes(blob.data)
    whole = make(4, samples=Encoded(sorted(tmp_path.iterdir()))).subset(torch.tensor([2, 1]))
    there = pickle.loads(pickle.dumps(whole))
    assert torch.equal(there.fetch(torch.arange(2)), pixels[[2, 1]])


# stratified_split


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_stratified_split_keeps_its_promises(values: list[int], fraction: float, seed: int) -> None:
    labels = torch.tensor(values)
    keep, held_out = stratified_split(labels, fraction, seed)
    assert sorted(keep.tolist() + held_out.tolist()) == list(range(len(values)))  # a partition
    assert keep.tolist() == sorted(keep.tolist())
    assert held_out.tolist() == sorted(held_out.tolist())
    for label in set(values):
        total, out = values.count(label), int((labels[held_out] == label).sum())
        if total == 1:
            assert out == 0
        else:
            assert 1 <= out <= total - 1
            assert abs(out - total * fraction) <= 1
    again = stratified_split(labels, fraction, seed)
    assert torch.equal(again[0], keep)
    assert torch.equal(again[1], held_out)


def test_stratified_split_depends_on_the_seed_and_draws_evenly() -> None:
    labels = torch.zeros(40, dtype=torch.int64)
    counts = torch.zeros(40)
    for seed in range(400):
        counts[stratified_split(labels, 0.25, seed)[1]] += 1
    # Binomial(400, 1/4) each: standard deviation 8.7
    assert counts.sum() == 4000
    assert (counts - 100).abs().max() < 45


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_stratified_split_refuses_fractions_outside_0_and_1(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        stratified_split(torch.arange(4), fraction, 0)


# pixel_statistics


def test_statistics_are_those_of_the_definition() -> None:
    pixels = noise(300, c=2)
    pixels[:, 1] //= 3
    mean, std = pixel_statistics(pixels)
    x = pixels.double() / 255
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), x.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), x.std((0, 2, 3), correction=0))


def test_statistics_of_a_sample_are_the_same_in_memory_and_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twoview.data.image.pixels.STATISTICS_SAMPLE", 5)
    pixels = noise(20)
    assert pixel_statistics(pixels) == pixel_statistics(Encoded(blobs(pixels)))
    assert pixel_statistics(pixels) != pixel_statistics(pixels[:10])


def test_statistics_of_one_constant_image_can_normalise() -> None:
    mean, std = pixel_statistics(torch.full((1, 3, 1, 1), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2,) * 3)
    assert std == (1 / 255,) * 3


# decode


def test_plain_pictures_come_back_bit_by_bit() -> None:
    pixels = noise(1)[0]
    assert np.array_equal(decode(blobs(pixels[None])[0]), pixels.permute(1, 2, 0).numpy())


RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    file = io.BytesIO()
    frames[0].save(
        file, kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    np.testing.assert_array_equal(decode(Blob(kind, file.getvalue())), np.full((8, 8, 3), (255, 0, 0)))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 10_000), (10_000, 1), (40, 60), (61, 40), (7, 5)])
def test_resizing_gives_squares_of_anything(width: int, height: int) -> None:
    image = decode(Blob("x", png(Image.new("RGB", (width, height), (10, 20, 30)))), size=24)
    np.testing.assert_array_equal(image, np.full((24, 24, 3), (10, 20, 30)))


@pytest.mark.parametrize(("width", "height"), [(96, 48), (48, 96), (64, 64), (20, 30)])
def test_resizing_is_shorter_side_then_centre_crop(width: int, height: int) -> None:
    smooth = noise(1, h=6, w=6)[0].permute(1, 2, 0).numpy()
    picture = Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)
    ours = decode(Blob("x", png(picture)), size=24).astype(int)
    oracle = np.asarray(v2.CenterCrop(24)(v2.Resize(24, antialias=True)(picture))).astype(int)
    assert np.abs(ours - oracle).max() <= 6  # torchvision rounds the crop to whole pixels
    assert np.abs(ours - oracle).mean() < 1.5


def damaged_files() -> dict[str, bytes]:
    file = io.BytesIO()
    Image.fromarray(noise(1, h=64, w=64)[0].permute(1, 2, 0).numpy()).save(file, "JPEG")
    jpeg, whole = file.getvalue(), png(Image.fromarray(RAMP))
    return {
        "empty": b"",
        "text": b"not an image",
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "jpeg header": jpeg[:24],
        "truncated png": whole[:-30],
        "flipped png": whole[:60] + bytes([whole[60] ^ 0xFF]) + whole[61:],
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    }


@pytest.mark.parametrize("kind", damaged_files())
def test_damaged_files_are_named(kind: str) -> None:
    with pytest.raises(UserError, match="the odd one"):
        decode(Blob("the odd one", damaged_files()[kind]))


@given(st.sampled_from(["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]), st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_the_bytes_there_is_an_image_or_a_user_error(kind: str, data: st.DataObject) -> None:
    file = io.BytesIO()
    Image.fromarray(RAMP).convert("RGB").save(file, kind)
    content = bytearray(file.getvalue()[: data.draw(st.integers(0, len(file.getvalue())))])
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shape = decode(Blob("it", bytes(content)), size=4).shape
        except UserError:
            return
    assert shape == (4, 4, 3)


def header_only_png(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 40_000])  # where Pillow would warn, and where it would refuse
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_decompression_bombs_are_refused(side: int, action: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(action)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"the bomb .*refused"):
            decode(Blob("the bomb", header_only_png(side, side)))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png"):
        decode(tmp_path / "gone.png")


# load_images


def test_the_limit_decides_between_array_and_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(5)
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", pixels.numel())
    assert isinstance(load_images(blobs(pixels)), Tensor)
    assert isinstance(load_images(blobs(pixels), in_memory=False), Encoded)
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", pixels.numel() - 1)
    assert isinstance(load_images(blobs(pixels)), Encoded)
    assert isinstance(load_images(blobs(pixels), in_memory=True), Tensor)


@pytest.mark.parametrize("side", [8, 80])  # by one thread, and by several
def test_all_images_arrive_in_order(side: int) -> None:
    pixels = noise(150, h=side, w=side)
    assert torch.equal(load_images(blobs(pixels)), pixels)  # type: ignore[arg-type]


@pytest.mark.parametrize("in_memory", [True, False])
def test_mixed_sizes_are_named_with_the_remedy(in_memory: bool) -> None:
    sources = [*blobs(noise(70)), Blob("the odd one", png(Image.new("RGB", (9, 4))))]
    with pytest.raises(UserError, match=r"row 0 has 7 x 5 pixels, the odd one has 9 x 4: .*data\.size=224"):
        load_images(sources, in_memory=in_memory)
    loaded = load_images(sources, size=6, in_memory=in_memory)
    assert len(loaded) == 71
    assert loaded[70].shape == (3, 6, 6)


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.size"):
        load_images(blobs(noise(1)), size=0)
