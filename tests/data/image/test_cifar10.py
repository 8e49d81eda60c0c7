import hashlib
import io
import json
import logging
import os
import pickle
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from twoview.data.image import cifar as module
from twoview.data.image.cifar import cifar10, cifar100
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.run.identity import data_digest

ROWS = {"train": 10, "test": 4}
NAMES = [f"class {i}" for i in range(100)]


@pytest.fixture(autouse=True)
def small_sets(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(module, "ROWS", ROWS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def picture(i: int, size: int = 32) -> Any:
    return np.random.default_rng(i).integers(0, 256, (3, size, size), dtype=np.uint8)


def labels_of(start: int, count: int, classes: int = 10) -> list[int]:
    return [(i * 7) % classes for i in range(start, start + count)]


def batch_files() -> dict[str, bytes]:
    """torchvision's layout in small: five train batches of two images, a test batch of four, the names."""
    files = {}
    for number in range(5):
        rows = np.stack([picture(i).ravel() for i in range(2 * number, 2 * number + 2)])
        files[f"data_batch_{number + 1}"] = pickle.dumps({"data": rows, "labels": labels_of(2 * number, 2)})
    rows = np.stack([picture(100 + i).ravel() for i in range(4)])
    files["test_batch"] = pickle.dumps({"data": rows, "labels": labels_of(100, 4)})
    files["batches.meta"] = pickle.dumps({"label_names": NAMES[:10]})
    return files


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with the miniature in it, whose checksums torchvision now gives."""
    files = batch_files()
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    sums = {name: md5(data) for name, data in files.items()}
    train = [[name, sums[name]] for name in files if name.startswith("data_batch")]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return tmp_path


def write_shards(
    root: Path,
    name: str = "cifar10",
    column: str = "img",
    label: str = "label",
    classes: int = 10,
    side: int = 32,
) -> list[Path]:
    """The same images as Hugging Face shards: two of train, one of test."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = root / name
    folder.mkdir(exist_ok=True)
    written = []
    for split, number, total, start, count in [
        ("train", 0, 2, 0, 6),
        ("train", 1, 2, 6, 4),
        ("test", 0, 1, 100, 4),
    ]:
        rows = []
        for i in range(start, start + count):
            file = io.BytesIO()
            Image.fromarray(picture(i, side).transpose(1, 2, 0)).save(file, "PNG")
            rows.append({"bytes": file.getvalue(), "path": None})
        features = {label: {"names": NAMES[:classes], "_type": "ClassLabel"}}
        table = pa.table({column: rows, label: labels_of(start, count, classes)})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        written.append(folder / f"{split}-{number:05d}-of-{total:05d}.parquet")
        pq.write_table(table, written[-1])
    return written


def check(found: SampleSet, start: int) -> None:
    assert isinstance(found.samples, Tensor)
    assert found.labels is not None
    np.testing.assert_array_equal(found.samples.numpy(), [picture(start + i) for i in range(len(found))])
    assert found.labels.tolist() == labels_of(start, len(found), len(found.classes))
    assert found.classes == tuple(NAMES[: len(found.classes)])


@pytest.mark.parametrize("column", ["img", "image"])
def test_both_layouts_hold_the_same_set(batches: Path, tmp_path_factory: pytest.TempPathFactory, column: str) -> None:
    shards = tmp_path_factory.mktemp("shards")
    write_shards(shards, column=column)
    for split, start in (("train", 0), ("test", 100)):
        check(cifar10(batches, split), start)
        check(cifar10(str(shards), split), start)
        assert cifar10(batches, split).digest() == cifar10(shards, split).digest()
    assert torch.equal(cifar10(shards, "test").preprocess.mean, cifar10(shards, "train").preprocess.mean)


def test_cifar100_reads_the_fine_labels(tmp_path: Path) -> None:
    write_shards(tmp_path, "cifar100", label="fine_label", classes=100)
    check(cifar100(tmp_path, "train"), 0)
    assert cifar100(tmp_path, "train").name == "cifar100"


# torchvision's layout, damaged


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-5]),
        lambda file: file.write_bytes(file.read_bytes()[:-5] + b"xxxxx"),
    ],
    ids=["missing", "empty", "truncated", "flipped"],
)
def test_a_batch_that_is_not_whole_is_named(batches: Path, name: str, harm: Callable[[Path], None]) -> None:
    harm(batches / "cifar-10-batches-py" / name)
    with pytest.raises(UserError, match=rf"{name} .*: delete .*cifar-10-batches-py to have CIFAR-10 downloaded"):
        cifar10(batches, "train")


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_planted_pickle_is_never_executed(batches: Path, name: str) -> None:
    mark = batches / "executed"
    evil = pickle.dumps(Evil(mark))
    pickle.loads(evil)
    assert mark.exists()  # it would have done it
    mark.unlink()
    (batches / "cifar-10-batches-py" / name).write_bytes(evil)
    with pytest.raises(UserError, match=f"{name} is damaged or not the original"):
        cifar10(batches, "test" if name == "test_batch" else "train")
    assert not mark.exists()


def test_batches_of_another_hand_are_read_if_the_user_says_so(batches: Path) -> None:
    file = batches / "cifar-10-batches-py" / "data_batch_1"
    rows = np.stack([picture(i).ravel() for i in (7, 8)])
    file.write_bytes(pickle.dumps({"data": rows, "labels": [0, 1]}, protocol=0))
    with pytest.raises(UserError, match=r"wrong checksum.*data\.unverified=true"):
        cifar10(batches, "train")
    found = cifar10(batches, "train", unverified=True)
    assert np.array_equal(found.samples[0], picture(7))
    assert data_digest(found) != data_digest(cifar10(batches, "test"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda mark: Evil(mark), "wants to call pathlib.*: refused"),
        (lambda mark: {"data": Evil(mark)}, "wants to call pathlib.*: refused"),
        (lambda mark: {"data": [1], "labels": [0]}, "does not hold what CIFAR-10 does"),
        (lambda mark: {}, "does not hold what CIFAR-10 does"),
        (lambda mark: 3, "is no batch of CIFAR-10"),
    ],
)
def test_not_even_then_is_a_pickle_executed(batches: Path, content: Callable[[Path], Any], says: str) -> None:
    mark = batches / "executed"
    (batches / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(content(mark)))
    with pytest.raises(UserError, match=says):
        cifar10(batches, "train", unverified=True)
    assert not mark.exists()


def test_wrong_counts_are_named(batches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", {"train": 11, "test": 4})
    with pytest.raises(UserError, match=r"train has 10 images of \(3, 32, 32\) in 10 classes, not 11 images"):
        cifar10(batches, "train")


# Shards, damaged


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    shards[1].unlink()
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet is missing"):
        cifar10(tmp_path, "train")
    assert len(cifar10(tmp_path, "test")) == 4
    shards[0].unlink()
    with pytest.raises(UserError, match=r"no train-\*\.parquet"):
        cifar10(tmp_path, "train")


def test_shards_of_two_exports_are_not_mixed(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    shards[0].rename(tmp_path / "cifar10" / "train-00000-of-00001.parquet")
    with pytest.raises(UserError, match="mixes the shards of several exports"):
        cifar10(tmp_path, "train")


def test_shards_of_something_else_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write_shards(tmp_path, side=16)
    with pytest.raises(UserError, match=r"10 images of \(3, 16, 16\) in 10 classes, not 10 images of \(3, 32, 32\)"):
        cifar10(tmp_path, "train")
    write_shards(tmp_path, classes=7)
    with pytest.raises(UserError, match=r"in 7 classes, not .* in 10 classes"):
        cifar10(tmp_path, "train")
    write_shards(tmp_path)
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet is damaged"):
        cifar10(tmp_path, "train")


# The cache of decoded images


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "CACHE_AFTER_SECONDS", 0.0)
    write_shards(tmp_path)
    check(cifar10(tmp_path, "train"), 0)
    return next(Path(os.environ["XDG_CACHE_HOME"]).glob("twoview/cifar10-train-*.npz"))


def decodes(caplog: pytest.LogCaptureFixture, root: Path) -> bool:
    """Loads, checks, and says whether anything had to be decoded."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        check(cifar10(root, "train"), 0)
    return "decoding 10 images" in caplog.text


def test_decoding_happens_once(cached: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not decodes(caplog, tmp_path)
    assert [file.name for file in cached.parent.iterdir()] == [cached.name]  # no litter
    os.utime(tmp_path / "cifar10" / "train-00000-of-00002.parquet", (1, 1))  # a changed source is another source
    assert decodes(caplog, tmp_path)


def test_quick_decoding_leaves_no_cache(tmp_path: Path) -> None:
    write_shards(tmp_path)
    cifar10(tmp_path, "train")
    assert not list(Path(os.environ["XDG_CACHE_HOME"]).iterdir())


def bent(place: float) -> Callable[[bytes], bytes]:
    def bend(content: bytes) -> bytes:
        i = int(place * (len(content) - 1))
        return content[:i] + bytes([content[i] ^ 0x10]) + content[i + 1 :]

    return bend


@pytest.mark.parametrize(
    "harm",
    [
        *(bent(place) for place in (0.1, 0.5, 0.9)),
        lambda c: c[: len(c) // 2],
        lambda c: b"",
        lambda c: b"PK junk",
    ],
)
def test_a_damaged_cache_costs_time_only(
    cached: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[bytes], bytes]
) -> None:
    cached.write_bytes(harm(cached.read_bytes()))
    assert decodes(caplog, tmp_path)
    assert not decodes(caplog, tmp_path)  # mended


def test_a_foreign_cache_is_not_believed(cached: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mark = tmp_path / "executed"
    for content in (
        np.zeros((10, 3, 32, 32)),
        np.zeros((10, 3, 8, 8), np.uint8),
        np.array([Evil(mark)], dtype=object),
    ):
        np.savez(cached, images=content)
        assert decodes(caplog, tmp_path)
    assert not mark.exists()


def test_an_unwritable_cache_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CACHE_AFTER_SECONDS", 0.0)
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    write_shards(tmp_path)
    assert decodes(caplog, tmp_path)
    assert not any(record.levelno > logging.INFO for record in caplog.records)


# Downloading


def test_without_network_the_three_ways_out_are_named_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        cifar10(tmp_path / "nowhere", "train")
    assert time.monotonic() - began < 5
    for words in (
        "cifar-10-batches-py",
        "nowhere/cifar10/train-*.parquet",
        "$TWOVIEW_DATA",
        "data.root",
        "data=shapes",
    ):
        assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_network_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: Any, **__: Any) -> None:
        time.sleep(3)
        raise OSError

    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr("urllib.request.urlopen", hang)
    began = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached"):
        cifar10(tmp_path, "train")
    assert time.monotonic() - began < 2


def archive(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def served(tmp_path: Path, batches: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data root, and a server that has the miniature as the archive that torchvision expects."""
    server = tmp_path / "server.tar.gz"
    content = archive({f"cifar-10-batches-py/{name}": data for name, data in batch_files().items()})
    server.write_bytes(content)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(content))

    class Response(io.BytesIO):
        length = None
        url = datasets.CIFAR10.url

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Response(server.read_bytes()))
    return tmp_path / "root"


def test_a_download_is_verified_and_kept_whole(served: Path) -> None:
    check(cifar10(served, "train"), 0)
    assert [entry.name for entry in served.iterdir()] == ["cifar-10-batches-py"]
    (served.parent / "server.tar.gz").unlink()
    check(cifar10(served, "test"), 100)


@pytest.mark.parametrize("kind", ["truncated", "other archive", "nothing"])
def test_a_bad_download_leaves_nothing(served: Path, kind: str) -> None:
    server = served.parent / "server.tar.gz"
    content = {
        "truncated": server.read_bytes()[:-100],
        "other archive": archive({"../escaped": b"x", "cifar-10-batches-py/data_batch_1": b"x"}),
        "nothing": b"",
    }[kind]
    server.write_bytes(content)
    with pytest.raises(UserError, match=r"downloading CIFAR-10 to .* failed .*: try again; or put it there"):
        cifar10(served, "train")
    assert not list(served.iterdir())
    assert not (served.parent / "escaped").exists()


# The real set, where it is at hand


@pytest.fixture(scope="module")
def real_root() -> Path:
    root = Path(os.environ.get("TWOVIEW_DATA", "data"))
    if not (root / "cifar10").is_dir() and not (root / "cifar-10-batches-py").is_dir():
        pytest.skip("CIFAR-10 is not here")
    return root


def test_the_real_set_has_the_documented_statistics(real_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", {"train": 50_000, "test": 10_000})
    train = cifar10(real_root, "train")
    assert isinstance(train.samples, Tensor)
    assert train.labels is not None
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    for channel in range(3):
        levels = torch.bincount(train.samples[:, channel].flatten(), minlength=256).double()
        share, value = levels / levels.sum(), torch.arange(256) / 255
        mean = float((share * value).sum())
        assert float(train.preprocess.mean[channel]) == pytest.approx(mean, abs=5e-5)
        assert float(train.preprocess.std[channel]) == pytest.approx(
            float((share * (value - mean) ** 2).sum()) ** 0.5, abs=5e-5
        )


def test_the_real_cifar100_has_the_documented_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", {"train": 50_000, "test": 10_000})
    root = Path(os.environ.get("TWOVIEW_DATA", "data"))
    if not (root / "cifar100").is_dir() and not (root / "cifar-100-python").is_dir():
        pytest.skip("CIFAR-100 is not here")
    images = cifar100(root, "train").samples
    assert isinstance(images, Tensor)
    pixels = images.float() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(list(module.CIFAR100.mean), abs=1e-4)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(list(module.CIFAR100.std), abs=1e-4)
