import os
import pickle
import re
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twoview.data.image import decode as module
from twoview.data.image.folder import image_folder
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.evaluate.features import _batches


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


def test_hidden_files_and_junk_are_no_samples_and_all_else_left_out_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "a" / "0.png", 7)
    for junk in (".hidden/0.png", "a/.0.png", "__MACOSX/a/0.png", "a/@eaDir/0.png", "a/Thumbs.db", "desktop.ini"):
        put(tmp_path / junk)
    assert values(load(tmp_path)) == [7]
    assert "left out" not in caplog.text
    put(tmp_path / "loose.png")
    for other in ("a/1.HEIC", "b/2.heic", "a/notes.txt", "README"):
        put(tmp_path / other)
    train = load(tmp_path)
    assert train.classes == ("a",)
    assert values(train) == [7]
    assert (
        f"5 of 6 files at {tmp_path} are left out: 2 .heic (a/1.HEIC), 1 without a suffix (README) and 1 .txt "
        "(a/notes.txt); 1 outside of the splits and classes (loose.png)"
    ) in caplog.text
    assert image_folder(tmp_path, "test") is None
    assert caplog.text.count("left out") == 1  # once for both splits


def test_whatever_lies_deeper_belongs_to_the_first_folder(tmp_path: Path) -> None:
    for value, name in enumerate(["cat/2023/05/1.png", "cat/0.png", "dog/a/b/c/2.png"]):
        put(tmp_path / name, value)
    train = load(tmp_path)
    assert train.classes == ("cat", "dog")
    assert train.names == ["cat/0.png", "cat/2023/05/1.png", "dog/a/b/c/2.png"]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 0, 1]


LAYOUTS: dict[str, tuple[list[str], int, int | None]] = {  # files, of train, of test
    "ImageNet's": (["train/a/1.png", "train/b/1.png", "val/a/2.png"], 2, 1),
    "two folders above": (["ILSVRC/Data/train/a/1.png", "ILSVRC/Data/val/a/2.png"], 1, 1),
    "capitals": (["Training/a/1.png", "Testing/a/2.png", "Testing/a/3.png"], 1, 2),
    "three splits": (["train/a/1.png", "valid/a/2.png", "test/a/3.png", "test/a/4.png"], 1, 2),
    "a test split without labels": (["train/a/1.png", "val/a/2.png", "test/3.png", "test/4.png"], 1, 1),
    "other folders beside": (["train/1.png", "test/2.png", "unlabeled/3.png"], 1, 1),
    "train alone": (["train/a/1.png"], 1, None),
    "a class that is called train": (["train/1.png", "boat/2.png", "car/3.png"], 3, None),
    "a class that is called test": (["test/1.png", "boat/2.png"], 2, None),
    "without splits": (["a/1.png", "b/2.png"], 2, None),
    "names with a word more": (["training_set/a/1.png", "test_set/a/2.png", "test_set/a/3.png"], 1, 2),
    "names of images": (["train_images/a/1.png", "val-images/a/2.png"], 1, 1),
    "COCO's": (["train2017/1.png", "val2017/2.png", "annotations/3.png"], 1, 1),
    "Kaggle's": (["train/1.png", "test1/2.png"], 1, 1),
    "cameras": (["DCIM/100/1.png", "DCIM/101/2.png"], 2, None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_splits_are_known_by_their_customary_names(tmp_path: Path, name: str) -> None:
    files, of_train, of_test = LAYOUTS[name]
    for file in files:
        put(tmp_path / file)
    assert len(load(tmp_path)) == of_train
    test = image_folder(tmp_path, "test")
    assert (None if test is None else len(test)) == of_test


def test_a_test_split_of_another_name_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for file in ("train/a/1.png", "val/a/2.png", "test/3.png"):
        put(tmp_path / file)
    load(tmp_path)
    assert "the test split is val, not test (data.test names another)" in caplog.text


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["seg_train/seg_train/a/1.png", "seg_test/seg_test/a/2.png"], "seg_test and seg_train are taken for classes"),
        (["a/train/1.png", "a/test/2.png", "b/train/3.png"], "test and train within classes are taken for parts"),
        (["pets/cat/1.png", "pets/dog/2.png"], "pets is taken for the only class, with 2 folders in it (cat and dog)"),
        (["train/1.png", "boat/2.png"], "train is taken for classes"),
        (["boat/1.png", "car/2.png"], ""),
        (["cat/2023/1.png", "dog/2023/2.png"], ""),
        (["cat/2023/1.png"], ""),
    ],
)
def test_folders_that_may_be_no_classes_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, files: list[str], words: str
) -> None:
    caplog.set_level("INFO")
    for file in files:
        put(tmp_path / file)
    load(tmp_path)
    said = [line for line in caplog.messages if "decoding" not in line and "grey" not in line]
    assert [words in line for line in said] == [True] * bool(words), said


def test_the_folders_of_the_only_class_are_classes_on_demand(tmp_path: Path) -> None:
    for file in ("pets/cat/1.png", "pets/dog/2.png"):
        put(tmp_path / file)
    assert load(tmp_path, train="pets").classes == ("cat", "dog")


@pytest.mark.parametrize("folder", ["unlabeled", "Unlabelled", "-1"])
def test_a_folder_without_labels_is_no_class(tmp_path: Path, folder: str) -> None:
    for file in ("train/a/0.png", "train/b/1.png", f"train/{folder}/2.png", "test/b/3.png"):
        put(tmp_path / file)
    train, test = (load(tmp_path, split) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b")
    assert train.labels is not None
    assert sorted(train.labels.tolist()) == [-1, 0, 1]
    assert test.labels is not None
    assert test.labels.tolist() == [1]


def test_a_share_of_each_class_is_held_out_where_there_is_no_test_split(tmp_path: Path) -> None:
    for name, n in (("a", 10), ("b", 5)):
        for value in range(n):
            put(tmp_path / name / f"{value}.png", value)
    train, test = (load(tmp_path, split, holdout=0.2) for split in ("train", "test"))
    assert train.labels is not None
    assert test.labels is not None
    assert train.labels.bincount().tolist() == [8, 4]
    assert test.labels.bincount().tolist() == [2, 1]
    assert not set(train.names) & set(test.names)
    assert test.preprocess.describe() == train.preprocess.describe()
    assert load(tmp_path, "test", holdout=0.2).names == test.names
    put(tmp_path / "val" / "x.png")
    put(tmp_path / "train" / "x.png")
    assert load(tmp_path, "test", holdout=0.2).names == ["val/x.png"]
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(UserError, match=rf"data\.holdout={share} must lie"):
            load(tmp_path / "a", holdout=share)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "txt"])
def test_archives_and_lists_are_roots(tmp_path: Path, kind: str) -> None:
    files = ["train/a/0.png", "train/b/1.png", "test/b/2.png", "__MACOSX/a/0.png"]
    for value, file in enumerate(files):
        put(tmp_path / "photos" / file, value)
    root = tmp_path / "photos" / f"all.{kind}"
    if kind == "txt":
        root.write_text("# my own\n" + "\n".join(files[:3]) + "\n")
    elif kind == "zip":
        with zipfile.ZipFile(root, "w") as archive:
            for file in files:
                archive.write(tmp_path / "photos" / file, file)
    else:
        with tarfile.open(root, "w:gz" if kind == "tar.gz" else "w") as tar:
            for file in files:
                tar.add(tmp_path / "photos" / file, f"./{file}")
    train, test = load(root), load(root, "test")
    assert train.classes == test.classes == ("a", "b")
    assert (values(train), values(test)) == ([0, 1], [2])
    assert train.names == files[:2]
    assert train.digest() == load(root, in_memory=False).digest()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"a.png\nb.png\n", "names files that are not there (2): a.png and b.png"),
        ("x.zip", b"PK\x03\x04\xff\xff", "no folder, no zip or tar archive, and no list of files"),
        ("x.png", b"\x89PNG\r\n\x1a\n", "no folder, no zip or tar archive, and no list of files"),
    ],
)
def test_files_that_are_no_roots_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        image_folder(tmp_path / name, "train")


@pytest.mark.parametrize("in_memory", [True, False])
def test_all_damaged_images_are_named_at_once_or_skipped(
    tmp_path: Path, in_memory: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for value in range(6):
        put(tmp_path / "train" / "ab"[value % 2] / f"{value}.png", value, (6, 6))
    put(tmp_path / "test" / "a" / "9.png", 9)
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"<html>404</html>")
    (tmp_path / "train" / "b" / "3.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 6 images are damaged: .*0\.png and .*3\.png.*data\.on_error=skip"):
        load(tmp_path, in_memory=in_memory)
    train = load(tmp_path, on_error="skip", in_memory=in_memory)
    assert "2 of 6 images of the train split are damaged and left out: " in caplog.text
    assert "0.png" in caplog.text
    assert "3.png" in caplog.text
    assert values(train) == [2, 4, 1, 5]
    assert train.names == ["train/a/2.png", "train/a/4.png", "train/b/1.png", "train/b/5.png"]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 0, 1, 1]
    test = load(tmp_path, "test", on_error="skip", in_memory=in_memory)
    assert test.preprocess.describe() == train.preprocess.describe()
    with pytest.raises(UserError, match="neither stop nor skip"):
        load(tmp_path, on_error="go on")


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
    with pytest.raises(UserError, match=r"the test split of .* has classes that the train split has not: b"):
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


@pytest.mark.parametrize("build", ["missing", "file", "empty", "empty classes"])
def test_places_without_images_are_named(tmp_path: Path, build: str) -> None:
    root = tmp_path / "place"
    if build == "file":
        root.write_text("")
    elif build == "empty classes":
        (root / "train" / "a").mkdir(parents=True)
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


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_archives_are_read_when_they_are_asked_for(tmp_path: Path, kind: str) -> None:
    """By threads, by loader processes and after a pickle; one that is damaged is named, or left out."""
    noise = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(path)
    root = Path(shutil.make_archive(str(tmp_path / "photos"), kind, tmp_path / "photos"))
    plain, packed = load(tmp_path / "photos"), load(root, in_memory=False)
    assert len(pickle.dumps(packed.samples)) < 6_000 < root.stat().st_size
    assert packed.digest() == plain.digest() == pickle.loads(pickle.dumps(packed)).digest()
    packed.fetch(torch.arange(12))  # with open files, which processes must not share
    assert torch.equal(torch.cat(list(_batches(packed, 5, num_workers=2))), plain.samples)  # type: ignore[arg-type]

    name, content = packed.names[7], bytearray(root.read_bytes())
    member = (tmp_path / "photos" / name).read_bytes()
    at = content.find(member[30:-30] if kind == "tar" else zlib.compress(member, wbits=-15)[30:-30])
    content[at : at + 2000] = bytes(2000)
    root.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{root.name}, {name}")):
        load(root)
    left = load(root, on_error="skip")
    assert [*left.names] == [one for one in plain.names if one != name]


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_leaves_out_damaged_images_is_said_whenever_one_is_met(tmp_path: Path, in_memory: bool) -> None:
    put(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "1.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"1\.png is not an image: .*; data\.on_error=skip leaves out what is damaged$"):
        load(tmp_path, size=4, in_memory=in_memory).fetch(torch.arange(2))
