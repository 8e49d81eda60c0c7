"""Every file that a command reads: gone, empty, cut, flipped, of another kind, or changed while a run is on its way."""

import hashlib
import io
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision import datasets

from faults.battery import DAMAGES, FLIPS, table
from twoview.cli.configs import CONFIGS
from twoview.encoder.frozen import digest
from twoview.run.checkpoint import load_encoder
from twoview.watch.meter import Meter

SMALL = ("encoder=small", "encoder.widths=[4,4,4,4]", "model.projector.hidden_dim=8", "batch_size=8", "epochs=2")
SMALL += ("trainer=cpu", "log_every_steps=1", "loader.max_batches=2", "knn=null")


def refused(ended: Any, *names: str) -> str:
    """The one message, which names the file and says what it takes."""
    message: str = ended.error
    assert any(name in message for name in names), message
    assert "debug=true" not in message, message
    assert len(message) < 700
    return message


def digests(folder: Path, but: str = "") -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != but
    }


# Files of a run.

# file of the run, the command that reads it, its words, and whether it can do without: a resumption takes the
# checkpoint before a damaged one
READERS = [
    ("last.ckpt", "knn", ["ckpt=run"], False),
    ("last.ckpt", "linear_probe", ["ckpt=run/last.ckpt", "strengths=[0.01]"], False),
    ("last.ckpt", "train", ["resume=run", "epochs=3", "allow_changes=true"], True),
    ("encoder.safetensors", "knn", ["ckpt=run/encoder.safetensors"], False),
    ("metrics.csv", "plot_run", ["run=run"], False),
    ("metrics.csv", "train", ["resume=run", "epochs=3", "allow_changes=true"], True),
    ("summary.json", "plot_run", ["run=run"], True),
    ("summary.json", "train", ["resume=run", "epochs=3", "allow_changes=true"], True),
    ("config.yaml", "train", ["resume=run", "epochs=3", "allow_changes=true"], True),
    ("encoder.safetensors", "train", ["resume=run", "epochs=3", "allow_changes=true"], True),
]


def run_files() -> Iterator[tuple[Any, ...]]:
    for file, name, words, spared in READERS:
        for how in DAMAGES:
            yield f"{file} {how}, {name}", file, name, words, spared, how


@pytest.mark.parametrize(("case", "file", "name", "words", "spared", "how"), table("files of a run", run_files(), 8))
def test_files_of_a_run(
    finished: Path, tmp_path: Path, command: Callable[..., Any],
    case: str, file: str, name: str, words: list[str], spared: bool, how: str,
) -> None:  # fmt: skip
    shutil.copytree(finished, tmp_path / "run")
    DAMAGES[how](tmp_path / "run" / file)
    before = digests(tmp_path / "run")
    ended = command(*words, name=name)
    harmless = spared or (file == "metrics.csv" and how.startswith(("cut", "last")))  # whole rows may be left
    if ended.code == 0:
        assert harmless, "damage went unnoticed"
        return
    refused(ended, file)
    after = digests(tmp_path / "run")
    assert {path: after.get(path) for path in before} == before
    assert "knn.json" not in after


@pytest.mark.parametrize(
    ("how", "file"),
    table(
        "bits flipped in weights", [(how, file) for how in FLIPS for file in ("last.ckpt", "encoder.safetensors")], 3
    ),
)
def test_a_flipped_bit_is_refused_or_harmless(
    finished: Path, tmp_path: Path, command: Callable[..., Any], how: str, file: str
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    FLIPS[how](tmp_path / "run" / file)
    ended = command(f"ckpt=run/{file}", name="knn")
    if ended.code == 0:  # a byte of a zip archive that nobody reads
        assert file == "last.ckpt"
        assert digest(load_encoder(tmp_path / "run" / file)) == digest(load_encoder(finished))
    else:
        refused(ended, file)
        assert not (tmp_path / "run" / "knn.json").exists()


# Files of images.


def picture(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def folder_of_images(root: Path) -> Path:
    for split, count in (("train", 16), ("test", 8)):
        for i in range(count):
            path = root / split / "ab"[i % 2] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(i))
    return root / "train" / "a" / "04.png"


def parquet_files(root: Path) -> Path:
    root.mkdir(parents=True)
    for split, count in (("train", 16), ("test", 8)):
        rows = [{"bytes": picture(i), "path": None} for i in range(count)]
        pq.write_table(pa.table({"image": rows, "label": [i % 2 for i in range(count)]}), root / f"{split}.parquet")
    return root / "train.parquet"


def cifar_batches(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A miniature in torchvision's layout, with checksums that are right."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def put(name: str, content: Any) -> tuple[str, str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return name, hashlib.md5(data).hexdigest()

    def batch(n: int) -> dict[str, Any]:
        return {"data": np.zeros((n, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(n)]}

    monkeypatch.setattr("twoview.data.image.cifar.ROWS", {"train": 20, "test": 10})
    monkeypatch.setattr("twoview.data.image.cifar._reachable", lambda url: False)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [put(f"data_batch_{i}", batch(10)) for i in (1, 2)])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [put("test_batch", batch(10))])
    name, md5 = put("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return folder / "data_batch_2"


KINDS: dict[str, list[str]] = {
    "image_folder": ["data.root=data"],
    "image_folder on demand": ["data.root=data", "data.in_memory=false", "loader.num_workers=0"],
    "parquet": ["data.root=data"],
    "cifar10": ["data.root=data"],
}


@pytest.mark.parametrize(
    ("case", "kind", "how"),
    table("files of images", [(f"{kind} {how}", kind, how) for kind in KINDS for how in (DAMAGES | FLIPS)], 6),
)
def test_files_of_images(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, case: str, kind: str, how: str
) -> None:
    option = kind.split()[0]
    root = tmp_path / "data"
    makers = {"image_folder": folder_of_images, "parquet": parquet_files}
    file = cifar_batches(root, monkeypatch) if option == "cifar10" else makers[option](root)
    (DAMAGES | FLIPS)[how](file)
    before = digests(root)
    ended = command(f"data={option}", *KINDS[kind], *SMALL)
    one_less = option == "image_folder" and how in ("missing", "folder")  # an image less is a set as well
    if ended.code == 0:
        unread = option == "image_folder" and how == "last byte lost"  # of a PNG: the checksum of its empty end mark
        assert one_less or unread or (how in FLIPS and option != "cifar10")
    else:
        refused(ended, file.name, "no images", "no file train", "labels")
        assert not list(tmp_path.rglob("*.ckpt"))
    assert digests(root) == before


# Configuration files.


@pytest.mark.parametrize(
    ("case", "file", "how"),
    table(
        "configuration files",
        [
            (f"{file} {how}", file, how)
            for file in ("train.yaml", "model/simclr.yaml", "data/shapes.yaml")
            for how in DAMAGES
        ],
        4,
    ),
)
def test_configuration_files(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, case: str, file: str, how: str
) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr("twoview.cli.configs.CONFIGS", tmp_path / "configs")
    DAMAGES[how](tmp_path / "configs" / file)
    ended = command("data=shapes", "data.n_train=16", "data.size=8", *SMALL)
    if ended.code == 0:  # cut between two keys a file is whole again, and constructors know defaults
        assert how.startswith(("cut", "last"))
        return
    message: str = ended.error
    assert "debug=true" not in message, message
    names = (Path(file).stem, Path(file).parts[0], "defaults", "no key", "no group", "leaves the run without")
    assert any(name in message for name in names), message
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/*"))


# What changes while a run is on its way.


def swap(path: Path, data: bytes) -> None:
    """As an editor saves: another file under the same name."""
    other = path.with_name(f"{path.name}.new")
    other.write_bytes(data)
    os.replace(other, path)


def to_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


larger = io.BytesIO()
Image.new("RGB", (9, 9)).save(larger, "PNG")

# what happens after the third step, to which file, and what the message names; None: nothing, the run ends well
CHANGES: list[tuple[str, str, Callable[[Path], Any], str | None]] = [
    ("checkpoint becomes a folder", "run/last.ckpt", to_folder, "last.ckpt"),
    ("checkpoint deleted", "run/last.ckpt", Path.unlink, None),
    ("checkpoint emptied", "run/last.ckpt", lambda path: path.write_bytes(b""), None),
    ("metrics become a folder", "run/metrics.csv", to_folder, None),
    ("metrics deleted", "run/metrics.csv", Path.unlink, None),
    ("configuration deleted", "run/config.yaml", Path.unlink, None),
    ("summary becomes a folder", "run/summary.json", to_folder, "summary.json"),
    ("encoder becomes a folder", "run/encoder.safetensors", to_folder, "encoder.safetensors"),
    ("run folder deleted", "run", shutil.rmtree, "run"),
    ("run folder becomes a file", "run", lambda path: (shutil.rmtree(path), path.write_text("")), "run"),
    ("image deleted", "data/train", lambda path: [file.unlink() for file in path.rglob("*.png")], ".png"),
    ("images cut", "data/train", lambda path: [swap(f, f.read_bytes()[:40]) for f in path.rglob("*.png")], ".png"),
    (
        "images larger",
        "data/train",
        lambda path: [swap(f, larger.getvalue()) for f in path.rglob("*.png")],
        "data.size",
    ),
    ("images empty", "data/train", lambda path: [swap(f, b"") for f in path.rglob("*.png")], ".png"),
    ("image folder deleted", "data", shutil.rmtree, ".png"),
]


@pytest.mark.parametrize(
    ("case", "place", "change", "named", "workers"),
    table(
        "changes while running",
        [
            (f"{case}, {workers} workers", place, change, named, workers)
            for case, place, change, named in CHANGES
            for workers in ((0, 1) if place.startswith("data") else (0,))
        ],
        4,
    ),
)
def test_changes_while_running(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    case: str, place: str, change: Callable[[Path], Any], named: str | None, workers: int,
) -> None:  # fmt: skip
    folder_of_images(tmp_path / "data")
    original = Meter.on_train_batch_end

    def hook(self: Meter, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        if trainer.global_step == 3:
            change(tmp_path / place)

    monkeypatch.setattr(Meter, "on_train_batch_end", hook)
    words = ["data=image_folder", "data.root=data", "data.in_memory=false", f"loader.num_workers={workers}"]
    ended = command(*words, *SMALL, "epochs=8", "hydra.run.dir=run")
    if named is None:
        assert ended.code == 0, ended.err
        assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 7
    else:
        refused(ended, named)
        kept = tmp_path / "run" / "last.ckpt"
        if kept.is_file():
            assert torch.load(kept, weights_only=True)["global_step"] >= 2


def test_the_damages_are_what_they_say(tmp_path: Path) -> None:
    for how, damage in (DAMAGES | FLIPS).items():
        path = tmp_path / "file"
        data = random.Random(0).randbytes(1000)
        path.write_bytes(data)
        damage(path)
        assert not path.is_file() or path.read_bytes() != data, how
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
