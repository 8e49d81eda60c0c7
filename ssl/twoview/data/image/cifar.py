"""CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning multiple layers of features from tiny images", 2009).

50,000 train and 10,000 test images of 32 x 32 pixels each, in 10 or 100 classes. Found in torchvision's
layout or as Hugging Face Parquet shards, else downloaded.
"""

import hashlib
import io
import logging
import os
import pickle
import re
import shutil
import socket
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import download_url

from twoview.data.columns import class_names, column_names, read_labels
from twoview.data.files import refuse_pipe
from twoview.data.groups import FileColumn
from twoview.data.image.decode import Encoded
from twoview.data.image.pixels import Pixels, draw
from twoview.data.set import Rows, SampleSet
from twoview.errors import UserError

log = logging.getLogger(__name__)

ROWS = {"train": 50_000, "test": 10_000}
SHAPE = (3, 32, 32)
CACHE_AFTER_SECONDS = 2.0  # decoding that took longer is kept for the next time
CONNECT_SECONDS = 4.0  # how long to try for a network
STALL_SECONDS = 30.0  # how long a download may stand still
LARGEST_FILE = 2**28  # bytes; that of CIFAR-100 has 155 MB


@dataclass(frozen=True)
class Source:
    """Where the two sets differ."""

    name: str
    title: str
    files: Any  # torchvision's class: it knows folder, file names, checksums and address
    label: str  # the label column of the Parquet shards; in torchvision's layout its plural
    classes: int
    mean: tuple[float, ...]  # over all pixels of the train split, like std: a test computes them again
    std: tuple[float, ...]


CIFAR10 = Source(
    name="cifar10",
    title="CIFAR-10",
    files=datasets.CIFAR10,
    label="label",
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
CIFAR100 = Source(
    name="cifar100",
    title="CIFAR-100",
    files=datasets.CIFAR100,
    label="fine_label",
    classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def cifar10(root: str | Path, split: str, unverified: bool = False) -> SampleSet:
    """`<root>/cifar-10-batches-py`, else `<root>/cifar10/{train,test}-*.parquet`, else downloaded.

    Batches that are not the original ones, by their checksums, are a UserError unless `unverified`.
    """
    return _load(CIFAR10, Path(root).expanduser(), split, unverified)


def cifar100(root: str | Path, split: str, unverified: bool = False) -> SampleSet:
    """The same from `<root>/cifar-100-python` or `<root>/cifar100`; labels are the 100 fine ones."""
    return _load(CIFAR100, Path(root).expanduser(), split, unverified)


def _load(source: Source, root: Path, split: str, unverified: bool) -> SampleSet:
    batches, shards = root / source.files.base_folder, root / source.name
    if not batches.is_dir() and any(shards.glob("*.parquet")):
        place = shards
        images, labels, classes = _read_shards(source, shards, split)
    else:
        if not batches.is_dir():
            _download(source, root)
        place = batches
        images, labels, classes = _read_batches(source, batches, split, unverified)
    has = f"{len(images):,} images of {tuple(images.shape[1:])} in {len(classes)} classes"
    needs = f"{ROWS[split]:,} images of {SHAPE} in {source.classes} classes"
    if has != needs:
        raise UserError(f"{place} is not {source.title}: {split} has {has}, not {needs}; delete it and get it again")
    if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        raise UserError(f"{place} has labels outside 0 ... {len(classes) - 1}: delete it and get it again")
    pixels = Pixels(source.mean, source.std)
    return SampleSet(source.name, images, labels, classes, pixels, names=Rows(split, len(images)), draw=draw)


class _Arrays(pickle.Unpickler):
    """Takes arrays and plain containers, and calls nothing else that a pickle names."""

    CALLS = frozenset({"_reconstruct", "ndarray", "dtype", "encode"})
    MODULES = frozenset({"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs"})

    def find_class(self, module: str, name: str) -> Any:
        if module in self.MODULES and name in self.CALLS:
            return super().find_class(module, name)
        raise UserError(f"it wants to call {module}.{name}: refused")


def _read_batches(source: Source, folder: Path, split: str, unverified: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """torchvision's layout: pickles. Unpickling can run code, so it waits until the checksum is right, and calls what
    makes arrays at most.
    """
    remedy = f"delete {folder} to have {source.title} downloaded again"

    def unpickle(name: str, md5: str) -> dict[str, Any]:
        refuse_pipe(folder / name)
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read ({error.strerror}): {remedy}") from None
        if not unverified and hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
            raise UserError(
                f"{folder / name} is damaged or not the original (wrong checksum): {remedy}, or read it all the same "
                "by data.unverified=true"
            )
        try:
            return dict(_Arrays(io.BytesIO(data), encoding="latin1").load())
        except Exception as error:  # a pickle raises what it likes
            raise UserError(f"{folder / name} is no batch of {source.title} ({error}): {remedy}") from error

    names = source.files.train_list if split == "train" else source.files.test_list
    entries = [unpickle(name, md5) for name, md5 in names]
    meta = unpickle(source.files.meta["filename"], source.files.meta["md5"])
    try:
        images = torch.from_numpy(np.concatenate([entry["data"] for entry in entries]).reshape(-1, *SHAPE))
        labels = torch.tensor([label for entry in entries for label in entry[source.label + "s"]])
        return images, labels, tuple(meta[source.files.meta["key"]])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} does not hold what {source.title} does ({error}): {remedy}") from error


def _read_shards(source: Source, folder: Path, split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    files = _complete(folder, split)
    image = "img" if "img" in column_names(files[0]) else "image"
    images = _cached(f"{source.name}-{split}", files, lambda: Encoded(FileColumn(files, image, "image")).decode_all())
    labels = read_labels(files, source.label).all()
    if not all(isinstance(label, int) for label in labels):
        raise UserError(f"{folder} has no numbers in its column {source.label!r}: delete it and get it again")
    classes = class_names(files[0], source.label) or tuple(str(i) for i in range(source.classes))
    return images, torch.tensor(labels), classes


def _complete(folder: Path, split: str) -> list[Path]:
    """The shards of a split, all of them: `train-00000-of-00005.parquet` says how many there are."""
    files = sorted(folder.glob(f"{split}-*.parquet"))
    if not files:
        raise UserError(f"{folder} has Parquet files, but no {split}-*.parquet: put them there too")
    totals = {int(match[1]) for file in files if (match := re.search(r"-\d+-of-(\d+)\.parquet$", file.name))}
    if len(totals) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{folder} mixes the shards of several exports ({names}): keep those of one")
    for total in totals:
        for i in range(total):
            name = f"{split}-{i:05d}-of-{total:05d}.parquet"
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is missing: put it there, it is one of {total} shards")
    return files


def _cached(name: str, files: Sequence[Path], decode: Callable[[], Tensor]) -> Tensor:
    """Decoded images of a split, kept in the user's cache if decoding took long.

    The file is an .npz, whose CRC-32 is checked in reading; its name holds a digest of the names, sizes and
    times of the source files. A damaged, foreign or unwritable cache costs time, never the run.
    """
    stamp = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(repr(stamp).encode()).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(home) / "twoview" / f"{name}-{digest[:16]}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            images = torch.from_numpy(stored["images"])
        if images.dtype == torch.uint8 and images.shape[1:] == SHAPE:
            return images
        log.debug("%s holds something else: decoding again", path)
    except Exception as error:  # no file; or damage, which comes as nearly anything
        log.debug("no cached images in %s: %s", path, error)

    began = time.perf_counter()
    images = decode()
    if time.perf_counter() - began > CACHE_AFTER_SECONDS:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".write-", dir=path.parent) as temporary:
                np.savez(Path(temporary) / path.name, images=images.numpy())
                os.replace(Path(temporary) / path.name, path)
        except OSError as error:
            log.debug("decoded images not kept in %s: %s", path, error)
    return images


def _download(source: Source, root: Path) -> None:
    """Fetch and unpack torchvision's archive; `root` gets the whole folder or nothing."""
    folder = root / source.files.base_folder
    ways = (
        f"put it there as {folder} (torchvision's layout) or as {root / source.name}/train-*.parquet and "
        "test-*.parquet (Hugging Face shards); or set $TWOVIEW_DATA or data.root to the folder that holds "
        "one of these; or use data=shapes, which needs no download"
    )
    log.info("%s is not in %s: downloading %s", source.title, root, source.files.url)
    if not _reachable(source.files.url):
        raise UserError(f"{source.title} is not in {root}, and {source.files.url} cannot be reached: {ways}")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as temporary:
            download_url(source.files.url, temporary, source.files.filename, source.files.tgz_md5)
            unpacked = Path(temporary) / "unpacked"
            _unpack(source, Path(temporary) / source.files.filename, unpacked)
            if not folder.is_dir():  # else another process was faster
                os.replace(unpacked, folder)
    except (OSError, EOFError, RuntimeError, KeyError, tarfile.TarError) as error:  # RuntimeError: a wrong checksum
        why = f"downloading {source.title} to {root} failed ({error})"
        raise UserError(f"{why}: try again; or {ways}") from None
    finally:
        socket.setdefaulttimeout(timeout)


def _unpack(source: Source, archive: Path, folder: Path) -> None:
    """The files of the set and no other, under their own names: no path in an archive decides what is written."""
    folder.mkdir()
    names = [name for name, _ in (*source.files.train_list, *source.files.test_list)]
    with tarfile.open(archive) as tar:
        for name in (*names, source.files.meta["filename"]):
            member = tar.getmember(f"{source.files.base_folder}/{name}")
            content = tar.extractfile(member) if member.isreg() else None
            if content is None or member.size > LARGEST_FILE:
                raise OSError(f"its {name} is no file of this set")
            with (folder / name).open("wb") as file:
                shutil.copyfileobj(content, file)


def _reachable(url: str) -> bool:
    """Whether the address answers in time; asked in a thread, as name resolution has no timeout."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=CONNECT_SECONDS):
                answers.append(True)
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return bool(answers)
