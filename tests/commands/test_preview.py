"""The preview of an augmentation: what is drawn is what a run trains on, and the words under it are true."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, Ended
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from twoview.augment.image.auto import OPS
from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.image.photometric import ColorJitter, Grayscale
from twoview.augment.operation import BatchAugment
from twoview.augment.views import TwoViews
from twoview.cli import schema
from twoview.commands.preview import at_strength
from twoview.data.batches import GlobalBatches, TwoViewDataModule
from twoview.data.image.pixels import Pixels
from twoview.data.image.pixels import draw as draw_pixels
from twoview.data.image.shapes import shapes
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.report import preview, sheet
from twoview.rng import Draw
from twoview.watch.views import ViewSheet

Command = Callable[..., Ended]
Compose = Callable[..., dict[str, Any]]
SHAPES = ("data=shapes", "data.n_train=40", "data.n_test=2", "data.size=16")


class Negative(BatchAugment):
    """An operation that cannot be overlooked, with a parameter."""

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
        return {"level": draw.uniform(1)[:, 0]}

    def apply(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        return 1 - images * params["level"][:, None, None, None]


@pytest.fixture(scope="module")
def images() -> SampleSet:
    return shapes("train", n_train=40, n_test=2, size=16)


def views_of(images: SampleSet, **ops: BatchAugment) -> TwoViews:
    return TwoViews(ops, images.preprocess, seed=3)


def first_batch_of_a_run(config: dict[str, Any], count: int) -> tuple[SampleSet, Tensor]:
    """The samples that come first in training, from the code that trains."""
    train = schema.build(config["data"])(split="train")
    views = schema.build(config["augment"], preprocess=train.preprocess, seed=config["seed"])
    data = TwoViewDataModule(train, views, batch_size=count, seed=config["seed"])
    data.trainer = SimpleNamespace(global_step=0, world_size=1, global_rank=0)  # type: ignore[assignment]
    return train, next(iter(GlobalBatches(data)))


def holds(page: np.ndarray, picture: Tensor, zoom: int) -> bool:
    """Whether `picture`, float (C, H, W), stands on the page (H', W', 3), each pixel a square of `zoom` pixels."""
    block = (picture * 255).round().byte().movedim(0, -1).numpy().repeat(zoom, axis=0).repeat(zoom, axis=1)
    h, w = block.shape[:2]
    corners = (page[: len(page) - h, : page.shape[1] - w] == block[0, 0]).all(axis=2)
    return any((page[y : y + h, x : x + w] == block).all() for y, x in np.argwhere(corners))


# What is seen is what is trained on


@pytest.mark.parametrize("mode", ["strength", "pairs"])
def test_the_sheet_holds_the_very_pixels_that_a_run_trains_on(
    mode: str, command: Command, compose: Compose, tmp_path: Path
) -> None:
    words = [*SHAPES, "seed=5"]
    ended = command(*words, f"mode={mode}", "images=3", "epoch=2", "out=sheet.png", name="preview_augment")
    assert ended.code == 0, ended.err
    assert "sheet.png" in ended.out
    page = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    for strength in (0, 0.25, 0.5, 1) if mode == "strength" else (0.5,):
        config = compose(*words, f"augment.strength={strength}")  # of train.py
        train, index = first_batch_of_a_run(config, 3)
        views = schema.build(config["augment"], preprocess=train.preprocess, seed=5)
        originals = train.fetch(index)
        for view, seen in zip(views(originals, index, 2), views.prepared(originals, index, 2), strict=True):
            assert torch.equal(train.preprocess.finish(seen), view)
            for picture in seen:
                assert holds(page, picture, zoom=8)
            assert not holds(page, view[0].clamp(0, 1), zoom=8)  # normalised, it is another picture
        if mode == "strength":  # no boxes over the originals
            assert all(holds(page, original / 255, zoom=8) for original in originals)


def test_columns_stand_under_their_strengths(images: SampleSet) -> None:
    policies = [TwoViews({"jitter": ColorJitter(strength=s)}, images.preprocess, strength=s) for s in (0.0, 0.2, 1.0)]
    samples = preview.first_samples(images, 6, seed=0, epoch=0)
    (band,) = preview.by_strength(policies, samples)
    assert band.blocks[1:] == [(name, ["s = 0", "s = 0.2", "s = 1"]) for name in ("first view", "second view")]
    for view in range(2):
        for column, views in enumerate(policies):
            expected = sheet.shown(images, views, samples.index, epoch=0)[1 + view]
            drawn = torch.stack([row[1 + 3 * view + column].pixels for row in band.rows])
            assert torch.equal(drawn, expected)


def test_other_numbers_give_other_pictures(images: SampleSet) -> None:
    pictures = []
    for seed, epoch in ((3, 0), (3, 1), (4, 0)):
        views = TwoViews({"crop": RandomResizedCrop()}, images.preprocess, seed=seed)
        samples = preview.first_samples(images, 2, seed=3, epoch=epoch)
        pictures.append(preview.by_pair(views, samples)[0].rows[0][1].pixels)
    assert not any(torch.equal(pictures[a], pictures[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("strength", [0, 0.3, 1.0])
def test_a_strength_is_that_of_the_command_line(strength: float, compose: Compose) -> None:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        composed = hydra.compose("preview", overrides=["augment=simclr_imagenet"])
    expected = compose("augment=simclr_imagenet", f"augment.strength={strength}")["augment"]
    assert at_strength(composed, strength) == expected
    assert expected["ops"]["jitter"]["strength"] == strength
    assert composed.augment.strength == 1.0  # as it was


def test_several_strengths_can_be_said_as_the_policys_own(command: Command, tmp_path: Path) -> None:
    for name, word in (("a.png", "strengths=[0.1,0.9]"), ("b.png", "augment.strength=[0.1,0.9]")):
        assert command(*SHAPES, "images=1", word, f"out={name}", name="preview_augment").code == 0
    a, b = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert np.array_equal(a, b)
    assert "augment.strength=[0,1]" in command("augment.strength=0,1", name="preview_augment").error.replace(
        " ", ""
    ) or ("list" in command("augment.strength=0,1", name="preview_augment").error)


def test_the_first_images_are_named_by_class_and_number(images: SampleSet, compose: Compose) -> None:
    samples = preview.first_samples(images, 5, seed=7, epoch=9)
    _, index = first_batch_of_a_run(compose(*SHAPES, "seed=7"), 5)
    assert torch.equal(samples.index, index)
    assert torch.equal((samples.pictures * 255).round().byte(), images.fetch(index))
    assert images.labels is not None
    assert samples.names == [f"{images.classes[int(images.labels[i])]} {i:,}" for i in index.tolist()]


# Operations one at a time


@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_applied_says_which_rows_an_operation_changes(p: float) -> None:
    numbers = Draw(0, 0, torch.arange(200), 1, "negative")
    images = torch.rand(200, 1, 2, 2)
    changed = (Negative(p)(images, numbers) != images).flatten(1).any(dim=1)
    assert torch.equal(changed, preview.applied(Negative(p), numbers, (1, 2, 2)))
    assert abs(changed.float().mean() - p) < 0.1


def test_a_picture_of_one_operation_is_made_with_the_parameters_under_it(images: SampleSet) -> None:
    samples = preview.first_samples(images, 30, seed=0, epoch=0)
    numbers = Draw(0, 0, samples.index, 0, "jitter")
    op = ColorJitter(strength=0.5)
    params = op.sample(numbers, 30, (3, 16, 16))
    originals = samples.pictures
    expected = op.apply(originals, params)
    kinds = set()
    for i, picture in enumerate(preview.alone(op, samples, numbers)):
        left_out = picture.caption == ["not applied", "(p = 0.8)"]
        kinds.add(left_out)
        if left_out:
            assert torch.equal(picture.pixels, originals[i])
            continue
        torch.testing.assert_close(picture.pixels, expected[i], rtol=0, atol=1e-6)
        names = ["brightness", "contrast", "saturation", "hue"]
        for place, (step, line) in enumerate(zip(params["order"][i].tolist(), picture.caption, strict=True), start=1):
            number, name, value = line.replace("−", "-").split()
            assert (number, name) == (f"{place}.", names[step])
            assert float(value) == pytest.approx(params[name][i].item(), abs=0.0051)
    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, ["applied"]),
        ({"sigma": torch.tensor(1.234)}, ["sigma 1.23"]),
        ({"shift": torch.tensor([-2, 3])}, ["shift −2, 3"]),
        ({"shear": torch.tensor([-0.001, 45.6])}, ["shear 0.00, 46"]),
        ({"box": torch.tensor([1, 2, 3, 4])}, ["4 × 3 px", "at x 2, y 1"]),
        ({"curve": torch.arange(48).view(3, 16)}, ["curve 0, 1, 2, 3 ..."]),
        ({"angle": torch.tensor(-123.4), "key": torch.tensor([7, 8])}, ["angle −123"]),
        ({"key": torch.tensor([7, 8])}, ["applied"]),
        ({"op": torch.tensor([0, 1]), "magnitude": torch.tensor([0.0, -0.3])}, [f"{OPS[0]} 0.00", f"{OPS[1]} −0.30"]),
        ({"a": torch.tensor(0.5), "b": torch.tensor(7), "order": torch.tensor([1, 0])}, ["1. b 7", "2. a 0.50"]),
    ],
)
def test_parameters_in_words(params: dict[str, Tensor], words: list[str]) -> None:
    assert preview.describe(params) == words


def test_each_operation_has_its_band_and_those_of_the_second_view_theirs(images: SampleSet) -> None:
    ops = {"flip": HorizontalFlip(), "gray": Grayscale(), "crop": RandomResizedCrop()}
    views = TwoViews(ops, images.preprocess, views=[{}, {"ops": {"gray": Negative(1.0), "flip": None}}])
    samples = preview.first_samples(images, 2, seed=0, epoch=4)
    bands = preview.by_operation(views, samples, draws=3)
    assert [band.blocks[1][0] for band in bands] == ["flip", "gray", "crop", "gray, second view"]
    assert bands[0].blocks[1][1] == ["epoch 4", "epoch 5", "epoch 6"]
    assert [[len(row) for row in band.rows] for band in bands] == [[4, 4]] * 4
    for epoch, column in zip((4, 5, 6), range(1, 4), strict=True):
        numbers = Draw(0, epoch, samples.index, 1, "gray")
        expected = Negative(1.0)(samples.pictures, numbers)
        for row in range(2):
            assert torch.equal(bands[3].rows[row][column].pixels, expected[row])


# Positives and their crops

BOX = st.tuples(*(st.integers(0, 8), st.integers(0, 8), st.integers(1, 8), st.integers(1, 8)))


@given(BOX, BOX)
def test_overlap_is_the_share_of_common_pixels(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    covered = [{(y, x) for y in range(top, top + h) for x in range(left, left + w)} for top, left, h, w in (a, b)]
    expected = len(covered[0] & covered[1]) / len(covered[0] | covered[1])
    both = torch.tensor([a]), torch.tensor([b])
    assert preview.overlap(*both).item() == pytest.approx(expected)
    assert preview.overlap(*both[::-1]).item() == pytest.approx(expected)


def test_boxes_are_the_parts_that_the_views_show(images: SampleSet) -> None:
    views = views_of(images, crop=RandomResizedCrop())
    samples = preview.first_samples(images, 10, seed=3, epoch=1)
    rows = preview.by_pair(views, samples)[0].rows
    pictures = [picture for row in rows for picture in row]
    assert len(pictures) == 30
    boxes = [preview.crop_boxes(views, samples, view) for view in range(2)]
    for i in range(10):
        original, *seen = pictures[3 * i : 3 * i + 3]
        assert list(original.boxes.values()) == [box[i].tolist() for box in boxes]
        assert list(original.boxes) == [picture.frame for picture in seen]  # a box has the colour of its view
        for box, picture in zip(original.boxes.values(), seen, strict=True):
            expected = TF.resized_crop(original.pixels, *box, size=[16, 16])
            torch.testing.assert_close(picture.pixels, expected, rtol=0, atol=1e-5)
            assert picture.caption[0] == f"{box[3]} × {box[2]} px"


def test_a_crop_left_out_shows_the_whole_image(images: SampleSet) -> None:
    samples = preview.first_samples(images, 40, seed=3, epoch=0)
    boxes = preview.crop_boxes(views_of(images, crop=RandomResizedCrop(scale=(0.1, 0.3), p=0.5)), samples, view=0)
    whole = (boxes == torch.tensor([0, 0, 16, 16])).all(dim=1)
    assert 0.2 < whole.float().mean() < 0.8
    assert (boxes[~whole][:, 2:].prod(dim=1) < 0.4 * 256).all()


def test_a_positive_tells_what_else_happened_to_it(images: SampleSet) -> None:
    ops = {"flip": HorizontalFlip(p=0.5), "negative": Negative(1.0), "gray": Grayscale(p=0.0)}
    views = views_of(images, crop=RandomResizedCrop(scale=(1, 1), ratio=(1, 1)), **ops)
    samples = preview.first_samples(images, 20, seed=3, epoch=0)
    flipped = []
    for row in preview.by_pair(views, samples)[0].rows:
        for original, first, _ in (row[:3], row[3:]):
            plain, mirrored = original.pixels, original.pixels.flip(-1)
            distances = [
                torch.corrcoef(torch.stack([first.pixels.flatten(), x.flatten()]))[0, 1] for x in (plain, mirrored)
            ]
            flipped.append(bool(distances[1] < distances[0]))  # the negative turns correlation around
            assert first.caption[1] == ("flip, negative" if flipped[-1] else "negative")
            assert original.caption[1] == "overlap 100 %"
    assert set(flipped) == {True, False}


# The page


def test_small_pictures_are_enlarged_by_whole_pixels_and_large_ones_reduced() -> None:
    x = torch.rand(2, 3, 5, 7)
    big = sheet.fit(x, side=30)
    assert big.shape == (2, 3, 20, 28)
    assert torch.equal(big[:, :, ::4, ::4], x)
    assert torch.equal(big[:, :, 3::4, 3::4], x)
    reduced = sheet.fit(torch.full((1, 1, 600, 400), 0.3), side=300)
    assert reduced.shape == (1, 1, 300, 200)
    torch.testing.assert_close(reduced, torch.full_like(reduced, 0.3))


@pytest.mark.parametrize(("channels", "side"), [(1, 16), (2, 16), (4, 16), (3, 200), (3, 400)])
def test_pictures_of_any_kind_find_a_place(channels: int, side: int) -> None:
    rows = [[sheet.Picture(torch.rand(channels, side, side)), sheet.Picture(torch.rand(channels, 32, 40), ["below"])]]
    figure = sheet.sheet("title", "about", [sheet.Band([("", ["left", "right"])], rows)])
    figure.savefig(stored := io.BytesIO())
    page = np.asarray(Image.open(stored).convert("RGB"))
    assert page.shape[1] >= 2 * min(side, 128)
    assert (page[:5] == 255).all()  # white
    if channels == 1:
        assert holds(page, rows[0][0].pixels.expand(3, -1, -1), zoom=7)  # 120 pixels for the larger one
    if side == 200:
        assert holds(page, rows[0][0].pixels, zoom=1)


def test_a_page_has_room_for_its_words() -> None:
    picture = sheet.Picture(torch.full((3, 16, 16), 0.5), ["a caption of many words " * 5])
    widths, heights = [], []
    for title in ("short", "a title that is much longer than the picture below it is wide"):
        figure = sheet.sheet(title, "about", [sheet.Band([("", ["heading"])], [[picture]])])
        figure.savefig(stored := io.BytesIO())
        page = np.asarray(Image.open(stored).convert("RGB"))
        border = np.concatenate([edge.reshape(-1, 3) for edge in (page[:9], page[-9:], page[:, :9], page[:, -9:])])
        assert (border == 255).all()
        heights.append(len(page))
        widths.append(page.shape[1])
    assert heights[0] == heights[1] > 128 + 7 * sheet.LINE
    assert widths[0] < 260 < widths[1]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(UserError, match=r"twoview\[plot\]"):
        sheet.sheet("", "", [])


class Mixed(TwoViews):
    """Mixed views come with the share of each image in its mixture."""

    def forward(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, ...]:  # type: ignore[override]
        return (*super().forward(images, index, epoch)[:2], torch.ones(len(images)))


@pytest.mark.parametrize("kind", [TwoViews, Mixed])
def test_the_sheet_of_a_run_shows_the_same_positives(kind: type[TwoViews], images: SampleSet) -> None:
    views = kind({"crop": RandomResizedCrop(), "jitter": ColorJitter()}, images.preprocess, seed=3)
    data = TwoViewDataModule(images, views, batch_size=8, seed=3)
    samples = preview.first_samples(images, 5, seed=3, epoch=0)
    expected = sheet.shown(images, views, samples.index, epoch=0)
    assert torch.equal(expected[0], samples.pictures)
    page = ViewSheet(images=5).draw(data)
    assert page.shape == (3, 3 * (64 + 2) + 2, 5 * (64 + 2) + 2)
    for row, pictures in enumerate(expected):
        for column, picture in enumerate(pictures):
            y, x = 2 + 66 * row, 2 + 66 * column
            assert torch.equal(page[:, y : y + 64 : 4, x : x + 64 : 4], picture)


@pytest.mark.parametrize("size", [(16, 32), (32, 16), (20, 100), (100, 20), (16, 16), (7, 5)])
@pytest.mark.parametrize("crop", [None, 12])
def test_the_sheet_of_a_run_keeps_the_ratio(size: tuple[int, int], crop: int | None) -> None:
    """Each picture stands in the middle of a white square and is no wider or narrower than the image."""
    H, W = size
    pixels = torch.zeros(4, 3, H, W, dtype=torch.uint8)
    views = TwoViews({"crop": RandomResizedCrop(size=crop)}, Pixels([0.0] * 3, [1.0] * 3))
    dark = SampleSet("dark", pixels, None, (), views.preprocess, draw=draw_pixels)
    data = TwoViewDataModule(dark, views, batch_size=2)
    page = ViewSheet(images=3).draw(data)
    side = max(H, W, crop or 0) * max(1, 64 // max(H, W, crop or 0))
    assert page.shape == (3, 3 * (side + 2) + 2, 3 * (side + 2) + 2)
    for row, (h, w) in enumerate([(H, W), *[(crop, crop) if crop else (H, W)] * 2]):
        dark = page[0, 2 + (side + 2) * row :][:side, 2 : 2 + side] == 0
        height, width = (int(dark.any(1 - axis).sum()) for axis in (0, 1))
        assert (height, width) == (round(h * side / max(h, w)), round(w * side / max(h, w)))
        assert int(dark.sum()) == height * width
        assert torch.equal(dark, dark.flip(0)) or (side - height) % 2


# The command


def test_the_real_script_with_all_operations(tmp_path: Path) -> None:
    script = [sys.executable, ROOT / "scripts" / "preview_augment.py", *SHAPES, "mode=ops", "images=1", "draws=2"]
    ended = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "preview_ops.png" in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["preview_ops.png"]  # no folder of Hydra's


def test_tensorboard_gets_the_sheet(command: Command, tmp_path: Path) -> None:
    words = [*SHAPES, "mode=pairs", "images=1", "epoch=3", "tensorboard=events"]
    assert command(*words, name="preview_augment").code == 0
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"images": 0})
    events.Reload()
    (event,) = events.Images("preview/pairs")
    with Image.open(tmp_path / "preview_pairs.png") as page:
        assert (event.step, event.width, event.height) == (3, *page.size)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mode=pair"], "Did you mean pairs"),
        (["mode=null"], "mode has no option 'None'"),
        (["images=0"], "images=0: a sheet holds 1 to 100"),
        (["images=101"], "images=101"),
        (["images=two"], "is not a whole number"),
        (["data.n_train=5", "images=8"], "images=8, but shapes has 5"),
        (["draws=0", "mode=ops"], "draws=0"),
        (["seed=-1"], "seed=-1"),
        (["epoch=-1"], "epoch=-1"),
        (["strengths=[]"], "strengths=[]"),
        (["strengths=0.5"], "is not a list of a number"),
        (["strengths=[-1]"], "strength must be"),
        (["strengths=[9]"], "hue x strength"),
        (["augment=none"], "no operation of this policy follows augment.strength"),
        (["augment.strength=[0,1]", "mode=pairs"], "augment.strength=[0, 1]"),
        (["augment=none", "mode=pairs"], "this one consists of nothing"),
        (["~augment.ops.crop", "mode=pairs"], "consists of flip, jitter, gray"),
        (["augment=none", "mode=ops"], "no operations"),
        (["augment.ops.jitter.streng=1"], "Did you mean strength"),
        (["imags=3"], "Did you mean images"),
        (["data=image_folder", "data.root=nowhere"], "nowhere"),
        (["out=nowhere/sheet.png"], "nowhere/sheet.png"),
        (["out=sheet.xyz"], "sheet.xyz"),
        (["out=sheet.png", "tensorboard=sheet.png"], "tensorboard=sheet.png"),
    ],
)
def test_mistakes_end_in_one_message(words: list[str], message: str, command: Command) -> None:
    data = [] if any(word.startswith("data=") for word in words) else list(SHAPES)
    ended = command(*data, "images=1", *words, name="preview_augment")
    assert message in ended.error
