"""Features as files: every format holds the same rows, whole or not at all, and without their ever being in memory."""

import json
import re
import resource
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from twoview.data.image.shapes import shapes
from twoview.data.set import SampleSet
from twoview.encoder.frozen import digest
from twoview.errors import UserError
from twoview.evaluate import files
from twoview.evaluate.features import extract
from twoview.run import atomic
from twoview.run.checkpoint import load_encoder, load_projector

FORMATS = ["npz", "parquet", "safetensors"]
Read = tuple[dict[str, np.ndarray], dict[str, Any]]


def read(path: Path, kind: str) -> Read:
    """Columns and metadata of a file, by the libraries that own the formats."""
    if kind == "npz":
        with np.load(path, allow_pickle=False) as archive:
            columns = dict(archive)
        return columns, json.loads(columns.pop("metadata").item())
    if kind == "safetensors":
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["twoview"])  # noqa: SIM118
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(path)
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    features = columns.pop("features")
    arrays = {name: values.to_numpy(zero_copy_only=False) for name, values in columns.items()}
    arrays["features"] = features.flatten().to_numpy().reshape(len(features), -1)
    return arrays, json.loads(table.schema.metadata[b"twoview"])


@pytest.fixture
def splits() -> dict[str, SampleSet]:
    """The images of the finished run."""
    loaded = {split: shapes(split=split, n_train=256, n_test=64, size=16) for split in ("train", "test")}
    return {split: images for split, images in loaded.items() if images is not None}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_holds_what_extract_gives(
    finished: Path, tmp_path: Path, command: Callable[..., Any], splits: dict[str, SampleSet], kind: str
) -> None:
    ended = command(f"ckpt={finished}", f"format={kind}", f"out=f.{kind}", "batch_size=100", name="embed")
    assert ended.code == 0, ended.err
    assert "320 images" in ended.out
    columns, metadata = read(tmp_path / f"f.{kind}", kind)
    encoder = load_encoder(finished)
    expected = torch.cat([extract(encoder, images, batch_size=100) for images in splits.values()])
    names = metadata["name"] if kind == "safetensors" else columns.pop("name").tolist()  # tensors hold no text
    assert columns.keys() == {"features", "index", "label", "test"}
    assert names == [name for images in splits.values() for name in (images.names or [""] * len(images))]
    assert columns["features"].dtype == np.float32
    assert torch.equal(torch.from_numpy(columns["features"].copy()), expected)
    assert columns["index"].tolist() == [*range(256), *range(64)]
    assert columns["test"].tolist() == [False] * 256 + [True] * 64
    labels = [images.labels for images in splits.values() if images.labels is not None]
    assert columns["label"].tolist() == torch.cat(labels).tolist()
    assert metadata["encoder_digest"] == digest(encoder)
    assert (metadata["data"], metadata["features"]) == ("shapes", "h")
    assert metadata["classes"] == list(splits["train"].classes)
    assert len(metadata["checkpoint_sha256"]) == 64
    assert [path.name for path in tmp_path.iterdir()] == [f"f.{kind}"]


def test_z_is_the_head_of_h(
    finished: Path, tmp_path: Path, command: Callable[..., Any], splits: dict[str, SampleSet]
) -> None:
    assert command(f"ckpt={finished}", "features=z", "split=test", "out=z.npz", name="embed").code == 0
    columns, metadata = read(tmp_path / "z.npz", "npz")
    h = extract(load_encoder(finished), splits["test"])
    with torch.no_grad():
        z = load_projector(finished)(h)
    torch.testing.assert_close(torch.from_numpy(columns["features"]), z, atol=1e-6, rtol=1e-5)
    assert metadata["features"] == "z"
    assert columns["test"].all()


def blocks(n: int, dim: int, size: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    for start in range(0, n, size):
        yield generator.normal(size=(min(size, n - start), dim)).astype(np.float32)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("n", "dim", "size"), [(1, 1, 1), (7, 3, 3), (5, 2, 8), (12, 1, 4)])
def test_any_shape_comes_back(tmp_path: Path, kind: str, n: int, dim: int, size: int) -> None:
    columns = {"index": np.arange(n), "test": np.arange(n) % 3 == 0, "label": np.arange(n)[::-1].copy()}
    metadata = {"name": 'with "quotes", ü and \n'}
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    files.WRITERS[kind](tmp_path / "f", (n, dim), blocks(n, dim, size), columns, metadata)
    found, said = read(tmp_path / "f", kind)
    assert said == metadata
    assert np.array_equal(found.pop("features"), np.concatenate(list(blocks(n, dim, size))))
    assert found.keys() == columns.keys()
    for name, values in columns.items():
        assert np.array_equal(found[name], values), name
        assert found[name].dtype == values.dtype, name


@pytest.mark.parametrize("kind", FORMATS)
def test_memory_is_that_of_a_few_blocks(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    n, rows, dim = 30, 500, 512
    block = rows * dim * 4  # bytes
    arrow: list[int] = []

    def measured() -> Iterator[np.ndarray]:
        for i in range(n):
            if kind == "parquet":
                import pyarrow

                arrow.append(pyarrow.total_allocated_bytes())
            yield np.full((rows, dim), i, dtype=np.float32)

    tracemalloc.start()
    try:
        files.WRITERS[kind](tmp_path / "f", (n * rows, dim), measured(), {"index": np.arange(n * rows)}, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert block < peak < 4 * block
    if kind == "parquet":
        assert max(arrow) - arrow[0] < 4 * block
    else:
        assert (tmp_path / "f").stat().st_size > n * block


def pictures(root: Path, splits: tuple[str, ...], labelled: bool, side: int = 16) -> str:
    for split in splits:
        for i in range(8):
            folder = root / split / (f"class{i % 2}" if labelled else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side), (30 * i, 0, 0)).save(folder / f"{i}.png")
    return f"data.root={root}"


def test_labels_and_a_test_split_are_not_needed(finished: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    words = [f"ckpt={finished}", "data=image_folder", pictures(tmp_path / "plain", ("train",), labelled=False)]
    ended = command(*words, "out=f.npz", name="embed")
    assert ended.code == 0, ended.err
    assert "no test split" in ended.out
    columns, metadata = read(tmp_path / "f.npz", "npz")
    assert columns.keys() == {"features", "index", "name", "test"}
    assert (len(columns["features"]), metadata["classes"]) == (8, [])
    assert "no test split" in command(*words, "split=test", name="embed").error


def test_images_decoded_on_demand_give_the_same_rows(
    finished: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    words = [f"ckpt={finished}", "data=image_folder", pictures(tmp_path / "set", ("train", "test"), labelled=True)]
    assert command(*words, "out=a.npz", name="embed").code == 0
    assert command(*words, "data.in_memory=false", "out=b.npz", name="embed").code == 0
    (a, _), (b, _) = read(tmp_path / "a.npz", "npz"), read(tmp_path / "b.npz", "npz")
    for name in ("features", "label", "index", "test"):
        assert np.array_equal(a[name], b[name]), name


def test_the_file_lies_beside_the_checkpoint(finished: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.ckpt").write_bytes((finished / "last.ckpt").read_bytes())
    assert command(f"ckpt={run}", name="embed").code == 0
    small = ["data=shapes", "data.n_train=20", "data.n_test=10", "data.size=16"]
    assert command(f"ckpt={run}/last.ckpt", *small, name="embed").code == 0
    assert {path.name for path in run.iterdir()} == {"last.ckpt", "features.npz", "features_shapes.npz"}


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("before")

    def fail() -> None:
        with atomic.replacing(path) as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "before"
    with atomic.replacing(path) as part:
        part.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_and_leaves_nothing(finished: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    """A real failure of a real write: for a moment no file of this process may grow beyond 8 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        ended = command(f"ckpt={finished}", "out=f.npz", name="embed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ended.error == "cannot write f.npz: File too large; name another file by out=..."
    assert not list(tmp_path.iterdir())


def test_features_that_are_not_finite_are_named_by_their_image(finished: Path, splits: dict[str, SampleSet]) -> None:
    encoder = load_encoder(finished)
    marked = splits["test"].samples[20]

    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            h = encoder(images)
            h[(images == marked).flatten(1).all(1)] = torch.nan
            return h

    with pytest.raises(UserError, match="features of test row 20 of shapes are NaN"):
        list(files.blocks_of(Broken(), {"test": splits["test"]}, 16))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], r"which run\? .*ckpt="),
        (["ckpt=nowhere/last.ckpt"], r"there is no checkpoint nowhere/last\.ckpt"),
        (["ckpt={run}/metrics.csv"], r"metrics\.csv cannot be read as a checkpoint"),
        (["ckpt={run}", "format=csv"], r"format='csv' is not one of npz, parquet, safetensors"),
        (["ckpt={run}", "split=validation"], r"split='validation' is not one of train, test, both"),
        (["ckpt={run}", "features=y"], r"features='y' is not one of h, z"),
        (["ckpt={run}/encoder.safetensors", "features=z"], r"holds the encoder alone; give the run's last\.ckpt"),
        (["ckpt={run}", "encoder_of=teacher"], r"holds no teacher"),
        (["ckpt={run}", "batch_size=0"], r"batch_size must be at least 1"),
        (["ckpt={run}", "batch_size=many"], r"batch_size='many'"),
        (["ckpt={run}", "device=gpu"], r"device='gpu' is not one of auto, cpu, cuda"),
        (["ckpt={run}", "out=no/such/folder/x.npz"], r"cannot write no/such/folder/x\.npz: No such file"),
        (["ckpt={run}", "out={run}"], r"it is a folder; name another file by out="),
        (["ckpt={run}", "data=cifar11"], r"cifar11.*cifar10"),
        (["ckpt={run}", "data=shapes", "data.size=20"], r"trained on samples of 3 x 16 x 16, .*force=true"),
        (["ckpt={run}", "data=shapes", "data.size=4", "force=true"], r"the encoder does not fit shapes"),
        (["ckpt={run}", "invented=1"], r"has no key 'invented'"),
    ],
)
def test_bad_words(finished: Path, command: Callable[..., Any], words: list[str], says: str) -> None:
    error = command(*(word.format(run=finished) for word in words), name="embed").error
    assert re.search(says, error), error


def test_a_missing_extra_is_named(
    finished: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    error = command(f"ckpt={finished}", "format=parquet", "out=f.parquet", name="embed").error
    assert "pip install 'twoview[parquet]'" in error
    assert not list(tmp_path.iterdir())
