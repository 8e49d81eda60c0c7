import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twoview.data.image import decode as module
from twoview.data.image.folder import image_folder
from twoview.data.set import SampleSet
from twoview.errors import UserError


def put(path: Path, value: int = 0, size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path, "PNG")


def load(root: Path, split: str = "train", **options: object) -> SampleSet:
    found = image_folder(root, split, **options)  # type: ignore[arg-type]
    assert found is not None
    return found


def values(images: SampleSet) -> list[int]:
    return images.fetch(torch.arange(len(images)))[:, 0, 0, 0].tolist()


def test_class_folders(tmp_path: Path) -> None:
    for value, name in enumerate(["b/1.png", "b/0.PNG", "a/z.jpg", "ü ö/x y.png"]):
        put(tmp_path / "train" / name, value)
    put(tmp_path / "test" / "ü ö" / "1.png", 9)
    train, test = load(tmp_path), load(tmp_path, "test")
    assert train.classes == test.classes == ("a", "b", "ü ö")
    assert train.name == tmp_path.name
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 1, 2]
    assert values(train) == [2, 1, 0, 3]
    assert test.labels is not None
    assert test.labels.tolist() == [2]
    assert test.preprocess.describe() == train.preprocess.describe()
    assert float(train.preprocess.mean[0]) == pytest.approx(1.5 / 255)


def test_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    put(tmp_path / "b.png", 1)
    put(tmp_path / "a.jpeg", 0)
    (tmp_path / "empty folder").mkdir()
    train = load(tmp_path)
    assert train.labels is None
    assert train.classes == ()
    assert values(train) == [0, 1]
    assert image_folder(tmp_path, "test") is None


def test_train_without_test_has_no_test_split(tmp_path: Path) -> None:
    put(tmp_path / "train" / "a" / "0.png")
    assert image_folder(tmp_path, "test") is None
    assert load(tmp_path).classes == ("a",)


def test_folders_can_be_named(tmp_path: Path) -> None:
    put(tmp_path / "fit" / "a" / "0.png")
    put(tmp_path / "val" / "a" / "0.png")
    assert len(load(tmp_path, "test", train="fit", test="val")) == 1
    with pytest.raises(UserError, match=r"'val' but no 'train': set data\.train"):
        image_folder(tmp_path, "train", test="val")


def test_hidden_files_and_other_suffixes_are_ignored(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png", 7)
    put(tmp_path / ".hidden" / "0.png")
    put(tmp_path / "a" / ".0.png")
    put(tmp_path / "loose.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"")
    train = load(tmp_path)
    assert train.classes == ("a",)
    assert values(train) == [7]


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "0.png", 5)
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "here").symlink_to(root)
    (root / "up").symlink_to(tmp_path)
    (root / "itself").symlink_to(root / "itself")
    (root / "nowhere").symlink_to(root / "gone")
    train = load(root)
    assert train.classes == ("linked",)
    flat = tmp_path / "flat"
    put(flat / "0.png")
    (flat / "loop").symlink_to(flat)
    assert load(flat).labels is None


def test_unlabelled_test_split_of_a_labelled_set_and_the_reverse(tmp_path: Path) -> None:
    put(tmp_path / "train" / "a" / "0.png")
    put(tmp_path / "test" / "0.png")
    test = load(tmp_path, "test")
    assert test.labels is None
    assert test.classes == ()
    reverse = tmp_path / "reverse"
    put(reverse / "train" / "0.png")
    put(reverse / "test" / "b" / "0.png")
    assert load(reverse, "test").classes == ("b",)
    assert load(reverse).labels is None


def test_classes_that_train_lacks_are_named(tmp_path: Path) -> None:
    put(tmp_path / "train" / "a" / "0.png")
    put(tmp_path / "test" / "b" / "0.png")
    with pytest.raises(UserError, match=r"test has classes that .*train has not: b"):
        image_folder(tmp_path, "test")


def test_decoding_on_demand_changes_nothing_but_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in range(5):
        put(tmp_path / "train" / "ab"[value % 2] / f"{value}.png", value * 20)
        put(tmp_path / "test" / "ab"[value % 2] / f"{value}.png", value * 30)
    memory = [load(tmp_path, split) for split in ("train", "test")]
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 1)
    for now, later in zip(memory, [load(tmp_path, split) for split in ("train", "test")], strict=True):
        assert now.in_memory
        assert not later.in_memory
        assert now.digest() == later.digest()
        assert now.preprocess.describe() == later.preprocess.describe()


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png", size=(6, 6))
    put(tmp_path / "a" / "1.png", size=(9, 4))
    with pytest.raises(UserError, match=r"0\.png has 6 x 6 pixels, .*1\.png has 9 x 4.*data\.size=224"):
        image_folder(tmp_path, "train")
    assert load(tmp_path, size=5).shape == (3, 5, 5)


def test_one_image_of_one_pixel_is_a_set(tmp_path: Path) -> None:
    put(tmp_path / "0.png", 3, (1, 1))
    train = load(tmp_path)
    assert train.shape == (3, 1, 1)
    assert float(train.preprocess.std.min()) > 0


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_damaged_file_is_named(tmp_path: Path, in_memory: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for name in ("0.jpg", "broken.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    content = (tmp_path / "broken.jpg").read_bytes()
    (tmp_path / "broken.jpg").write_bytes(content[:-400])
    with pytest.raises(UserError, match=r"broken\.jpg cannot be decoded .*truncated"):
        load(tmp_path, in_memory=in_memory).fetch(torch.arange(2))


def test_a_file_that_changes_its_size_later_is_named(tmp_path: Path) -> None:
    put(tmp_path / "0.png")
    put(tmp_path / "1.png")
    train = load(tmp_path, in_memory=False)
    put(tmp_path / "1.png", size=(2, 2))
    with pytest.raises(UserError, match=r"1\.png has 2 x 2"):
        train.fetch(torch.tensor([1]))


@pytest.mark.parametrize("build", ["missing", "file", "empty", "empty classes", "too deep"])
def test_places_without_images_are_named(tmp_path: Path, build: str) -> None:
    root = tmp_path / "place"
    if build == "file":
        root.write_text("")
    elif build == "empty classes":
        (root / "train" / "a").mkdir(parents=True)
    elif build == "too deep":
        put(root / "a" / "b" / "0.png")
    elif build == "empty":
        root.mkdir()
    with pytest.raises(UserError, match=r"place.*set data\.root to the folder of your images"):
        image_folder(root, "train")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folders_are_named(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(UserError, match="cannot list"):
            image_folder(tmp_path, "train")
    finally:
        (tmp_path / "a").chmod(0o700)
