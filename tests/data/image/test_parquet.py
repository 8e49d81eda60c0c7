import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from twoview.data.image import decode as module
from twoview.data.image.parquet import parquet
from twoview.data.set import SampleSet
from twoview.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(value: int, size: tuple[int, int] = (4, 4)) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{value}.png"}


def write(
    path: Path,
    images: list[Any],
    labels: list[Any] | None = None,
    names: list[str] | None = None,
    kind: Any = IMAGE,
) -> None:
    columns = {"image": pa.array(images, kind)}
    if labels is not None:
        columns["label"] = pa.array(labels)
    table = pa.table(columns)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def load(root: Path, split: str = "train", **options: Any) -> SampleSet:
    found = parquet(root, split, **options)
    assert found is not None
    return found


def values(images: SampleSet) -> list[int]:
    return images.fetch(torch.arange(len(images)))[:, 0, 0, 0].tolist()


def labels(images: SampleSet) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()


def test_shards_with_class_names(tmp_path: Path) -> None:
    write(tmp_path / "train-00001.parquet", [picture(30)], [0], ["cat", "dog"])
    write(tmp_path / "train-00000.parquet", [picture(10), picture(20)], [1, 1], ["cat", "dog"])
    write(tmp_path / "test.parquet", [picture(90)], [1], ["cat", "dog"])
    train, test = load(tmp_path), load(tmp_path, "test")
    assert values(train) == [10, 20, 30]
    assert labels(train) == [1, 1, 0]
    assert train.classes == test.classes == ("cat", "dog")
    assert labels(test) == [1]
    assert test.preprocess.describe() == train.preprocess.describe()
    assert train.preprocess.mean.tolist() == pytest.approx((20 / 255,) * 3)


@pytest.mark.parametrize(
    ("train", "test", "classes", "expected"),
    [
        ([7, 3, 7], [3], ("3", "7"), [1, 0, 1]),
        (["x", "b", "x"], ["x"], ("b", "x"), [1, 0, 1]),
        ([True, False, True], [True], ("False", "True"), [1, 0, 1]),
        ([-1, 1, -1], [1], ("-1", "1"), [0, 1, 0]),
    ],
)
def test_without_class_names_the_values_of_train_are_the_classes(
    tmp_path: Path, train: list[Any], test: list[Any], classes: tuple[str, ...], expected: list[int]
) -> None:
    write(tmp_path / "train.parquet", [picture(0)] * 3, train)
    write(tmp_path / "test.parquet", [picture(0)], test)
    assert load(tmp_path).classes == load(tmp_path, "test").classes == classes
    assert labels(load(tmp_path)) == expected
    assert labels(load(tmp_path, "test")) == [classes.index(str(test[0]))]


def test_labels_are_optional(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [picture(0)] * 2, [0, 1], ["a", "b"])
    write(tmp_path / "test.parquet", [picture(0)] * 2, [-1, -1], ["a", "b"])
    assert load(tmp_path, label_column=None).labels is None
    assert load(tmp_path, "test").labels is None
    assert load(tmp_path, "test").classes == ()


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_a_row_without_a_label_is_unlabelled(tmp_path: Path, names: list[str] | None) -> None:
    write(tmp_path / "train.parquet", [picture(0)] * 4, [None, 1, None, 0], names)
    write(tmp_path / "test.parquet", [picture(0)] * 2, pa.array([None, None], pa.int64()), names)
    train = load(tmp_path)
    assert labels(train) == [-1, 1, -1, 0]
    assert len(train.classes) == 2
    assert labels(train.labelled()) == [1, 0]
    assert list(train.labelled().names) == ["train.parquet, row 1", "train.parquet, row 3"]
    assert load(tmp_path, "test").labels is None


FORMS: dict[str, Callable[[bytes, str], Any]] = {
    "bytes and path": lambda data, path: {"bytes": data, "path": path},
    "bytes without path": lambda data, path: {"bytes": data, "path": None},
    "path without bytes": lambda data, path: {"bytes": None, "path": path},
    "path alone": lambda data, path: path,
    "bytes alone": lambda data, path: data,
    "array": lambda data, path: np.asarray(Image.open(io.BytesIO(data))).tolist(),
    "array, channels first": lambda data, path: np.moveaxis(np.asarray(Image.open(io.BytesIO(data))), 2, 0).tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_are_held_in_many_forms(tmp_path: Path, form: str) -> None:
    (tmp_path / "pictures").mkdir()
    rows = []
    for value in range(3):
        data = picture(value, (6, 6))["bytes"]
        (tmp_path / "pictures" / f"{value}.png").write_bytes(data)
        rows.append(FORMS[form](data, f"pictures/{value}.png"))
    pq.write_table(pa.table({"image": rows, "label": [0, 1, 0]}), tmp_path / "train.parquet")
    assert values(load(tmp_path)) == [0, 1, 2]


@pytest.mark.parametrize("path", ["/etc/hostname", "../outside.png"])
def test_paths_lead_nowhere_else(tmp_path: Path, path: str) -> None:
    (tmp_path / "outside.png").write_bytes(b"")
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"image": [path], "label": [0]}), tmp_path / "set" / "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet, row 0, column 'image' names .*, which is no file below"):
        parquet(tmp_path / "set", "train")


LABELS: list[tuple[list[Any], list[int], tuple[str, ...]]] = [
    ([0, -1, 1], [0, -1, 1], ("0", "1")),
    ([1, -1, 1], [1, 0, 1], ("-1", "1")),  # two classes
    ([1.0, math.nan, 0.0], [1, -1, 0], ("0", "1")),
    (["b", "", "a"], [1, -1, 0], ("a", "b")),
    ([True, None, False], [1, -1, 0], ("False", "True")),
]


@pytest.mark.parametrize(("given", "numbers", "classes"), LABELS)
def test_rows_without_a_label(tmp_path: Path, given: list[Any], numbers: list[int], classes: tuple[str, ...]) -> None:
    write(tmp_path / "train.parquet", [picture(i) for i in range(3)], given)
    assert (labels(load(tmp_path)), load(tmp_path).classes) == (numbers, classes)


# Files, of which the first holds one row, the second two ...; rows of train, rows of test.
HUB: dict[str, tuple[list[str], int, int | None]] = {
    "shards": (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], 3, None),
    "splits as folders": (["default/train/0000.parquet", "default/test/0000.parquet"], 1, 2),
    "validation alone": (["data/train-0.parquet", "data/validation-0.parquet"], 1, 2),
    "one file": (["whatever.parquet"], 1, None),
    "hidden": (["train.parquet", ".cache/train.parquet"], 1, None),
}


@pytest.mark.parametrize("name", HUB)
def test_layouts_of_the_hub(tmp_path: Path, name: str) -> None:
    files, of_train, of_test = HUB[name]
    for number, file in enumerate(files, 1):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / file, [picture(i) for i in range(number)], [0] * number)
    assert len(load(tmp_path)) == of_train
    test = parquet(tmp_path, "test")
    assert (None if test is None else len(test)) == of_test


def test_a_test_split_without_labels_gives_way_to_a_validation_split(tmp_path: Path) -> None:
    for split, label in (("train", 0), ("test", -1), ("validation", 0)):
        write(tmp_path / f"{split}.parquet", [picture(0)], [label])
    assert list(load(tmp_path, "test").names) == ["validation.parquet, row 0"]
    (tmp_path / "validation.parquet").unlink()
    assert load(tmp_path, "test").labels is None


def test_a_test_split_without_the_column_of_labels_blocks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write(tmp_path / "train.parquet", [picture(0)] * 2, [0, 1])
    write(tmp_path / "test.parquet", [picture(0)])
    assert load(tmp_path).classes == ("0", "1")
    assert load(tmp_path, "test").labels is None
    assert "test.parquet has no column 'label': this split is without labels" in caplog.text
    write(tmp_path / "validation.parquet", [picture(0)], [1])
    assert list(load(tmp_path, "test").names) == ["validation.parquet, row 0"]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0, 1, -1, -1], ("0", "1")),
        ([0, 1, -100, -100], ("0", "1")),
        (["0", "1", "-1", "-1"], ("0", "1")),
        (["a", "b", "", None], ("a", "b")),
        (["a", "b", "unlabeled", "Unlabelled"], ("a", "b")),
        ([0.0, 1.0, float("nan"), float("nan")], ("0", "1")),
    ],
)
def test_rows_without_a_label_are_no_class(tmp_path: Path, labels: list[Any], classes: tuple[str, ...]) -> None:
    write(tmp_path / "train.parquet", [picture(0)] * 4, labels)
    train = load(tmp_path)
    assert train.classes == classes
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, -1, -1]


@pytest.mark.parametrize("labels", [[-1, 1], ["-1", "1"]])
def test_minus_one_beside_one_alone_is_a_class(tmp_path: Path, labels: list[Any]) -> None:
    write(tmp_path / "train.parquet", [picture(0)] * 2, labels)
    assert load(tmp_path).classes == ("-1", "1")


def test_several_sets_below_a_root_are_not_mixed(tmp_path: Path) -> None:
    for folder in ("english", "french"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "train.parquet", [picture(0)], [0])
    with pytest.raises(UserError, match=r"holds several sets, in .*english and .*french: set data\.root"):
        parquet(tmp_path, "train")


def test_a_share_is_held_out_and_damaged_rows_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [picture(i) for i in range(12)]
    images[3] = {"bytes": b"404", "path": None}
    write(tmp_path / "train.parquet", images, [0, 1] * 6)
    with pytest.raises(UserError, match=r"row 3 is not an image.*data\.on_error=skip"):
        parquet(tmp_path, "train", holdout=0.34)
    train, test = (load(tmp_path, split, holdout=0.34, on_error="skip") for split in ("train", "test"))
    assert len(train) + len(test) == 11
    assert not set(train.names) & set(test.names)
    assert "row 3" in caplog.text
    assert train.preprocess.describe() == test.preprocess.describe()


def test_columns_and_files_can_be_named(tmp_path: Path) -> None:
    plain = pa.table({"img": pa.array([picture(5)["bytes"]], pa.binary()), "y": pa.array([0])})
    (tmp_path / "data").mkdir()
    pq.write_table(plain, tmp_path / "data" / "all.parquet")
    found = load(tmp_path, image_column="img", label_column="y", train="data/*.parquet", test="none")
    assert values(found) == [5]
    assert parquet(tmp_path, "test", train="data/*.parquet", test="none") is None


@pytest.mark.parametrize("column", ["image_column", "label_column"])
def test_a_missing_column_is_answered_with_those_there_are(tmp_path: Path, column: str) -> None:
    write(tmp_path / "train.parquet", [picture(0)], [0])
    with pytest.raises(UserError, match=rf"no column 'nix', only image, label: set .*data\.{column}"):
        parquet(tmp_path, "train", **{column: "nix"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (None, "no image"),
        ({"bytes": None, "path": "/etc/passwd"}, "names /etc/passwd, which is no file below"),
        ({"bytes": None, "path": None}, "no image"),
        ({"bytes": b"", "path": None}, "not an image"),
        ({"bytes": b"junk", "path": None}, "not an image"),
    ],
)
def test_rows_without_an_image_are_named(tmp_path: Path, odd: Any, words: str) -> None:
    write(tmp_path / "train-0.parquet", [picture(0)] * 2)
    write(tmp_path / "train-1.parquet", [picture(0), odd])
    with pytest.raises(UserError, match=rf"train-1\.parquet, row 1.*{words}"):
        parquet(tmp_path, "train", label_column=None)


def test_long_texts_are_not_shown_whole(tmp_path: Path) -> None:
    """As images in base64."""
    write(tmp_path / "train.parquet", ["iVBORw0KGgo" * 1000], kind=pa.string())
    shown = r"names iVBORw0KGgo.{49}\.\.\. \(11,000 characters\), which is no file below"
    with pytest.raises(UserError, match=shown) as e:
        parquet(tmp_path, "train", label_column=None)
    assert len(str(e.value)) < 500


def test_columns_of_something_else_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [[1, 2]], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"'image' holds an array of the shape \(2,\) .*, which is no image"):
        parquet(tmp_path, "train")
    write(tmp_path / "train.parquet", [picture(0)], [0.5])
    with pytest.raises(UserError, match=r"row 0, column 'label' holds 0\.5"):
        parquet(tmp_path, "train")


@pytest.mark.parametrize("odd", [2, -2, 10**12])
def test_labels_outside_the_classes_are_named(tmp_path: Path, odd: int) -> None:
    write(tmp_path / "train.parquet", [picture(0)] * 2, [0, odd], ["a", "b"])
    with pytest.raises(UserError, match=rf"train\.parquet, row 1 has the label {odd}, none of the 2 classes"):
        parquet(tmp_path, "train")


def test_test_labels_that_train_lacks_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [picture(0)], ["a"])
    write(tmp_path / "test.parquet", [picture(0)], ["b"])
    with pytest.raises(UserError, match=r"test\.parquet, row 0 has the label 'b'"):
        parquet(tmp_path, "test")


@pytest.mark.parametrize("metadata", [b"", b"{", b"[]", b'{"info": 3}', b"[" * 100_000, b"\xff\xfe"])
def test_odd_metadata_is_no_metadata(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"image": pa.array([picture(0)], IMAGE), "label": [4]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "train.parquet")
    assert load(tmp_path).classes == ("4",)


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [picture(0), picture(0, (9, 3))])
    with pytest.raises(UserError, match=r"row 0 has 4 x 4 pixels, .*row 1 has 9 x 3.*data\.size=224"):
        parquet(tmp_path, "train", label_column=None)
    assert load(tmp_path, label_column=None, size=8).shape == (3, 8, 8)


def test_large_sets_decode_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", [picture(10 * i * i) for i in range(6)], [0, 1] * 3)
    memory = [load(tmp_path, split) for split in ("train", "test")]
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 1)
    monkeypatch.setattr("twoview.data.image.pixels.STATISTICS_SAMPLE", 4)
    demand = [load(tmp_path, split) for split in ("train", "test")]
    assert [s.in_memory for s in memory + demand] == [True, True, False, False]
    assert [s.digest() for s in memory] == [s.digest() for s in demand]
    assert torch.equal(demand[0].preprocess.mean, demand[1].preprocess.mean)
    assert not torch.equal(demand[0].preprocess.mean, memory[0].preprocess.mean)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*gone: set data\.root"):
        parquet(tmp_path / "gone", "train")
    with pytest.raises(UserError, match=r"no file train\*\.parquet in"):
        parquet(tmp_path, "train")
    with pytest.raises(UserError, match=r"data\.train"):
        parquet(tmp_path, "train", train="/etc/*")
    write(tmp_path / "train.parquet", [])
    with pytest.raises(UserError, match=r"no rows in the train split \(train\.parquet\)"):
        parquet(tmp_path, "train", label_column=None)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("parquet") / "train.parquet"
    write(path, [picture(i) for i in range(8)], list(range(8)))
    return path.read_bytes()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damage_anywhere_is_a_user_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, whole_file: bytes, data: st.DataObject
) -> None:
    content = bytearray(whole_file[: data.draw(st.integers(0, len(whole_file)))])
    if len(content) == len(whole_file) or data.draw(st.booleans()):
        content = bytearray(whole_file)
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "train.parquet"
    path.write_bytes(content)
    try:
        found = load(path.parent)
    except UserError:
        return
    assert found.shape[0] == 3


def test_truncated_files_are_named(tmp_path: Path, whole_file: bytes) -> None:
    for length in (0, 3, 100, len(whole_file) - 1):
        (tmp_path / "train.parquet").write_bytes(whole_file[:length])
        with pytest.raises(UserError, match=r"train\.parquet is damaged or no Parquet file .*: delete it"):
            parquet(tmp_path, "train")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'twoview\[parquet\]'"):
        parquet(tmp_path, "train")
