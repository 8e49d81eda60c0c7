"""Images in Parquet files, as Hugging Face stores them: a column of {bytes, path}, and a column of labels."""

from pathlib import Path
from typing import Literal

import torch

from twoview.data.columns import find_splits, read_classes
from twoview.data.files import NamesOf
from twoview.data.groups import CACHE_MB, FileColumn
from twoview.data.image.decode import Encoded, OnError, intact, load_images
from twoview.data.image.pixels import Pixels, draw, pixel_statistics
from twoview.data.image.rgb import png
from twoview.data.set import SampleSet
from twoview.data.splits import held_out
from twoview.errors import UserError


def parquet(
    root: str | Path,
    split: str,
    image_column: str = "image",
    label_column: str | None = "label",
    train: str | None = None,
    test: str | None = None,
    holdout: float | None = None,
    size: int | None = None,
    background: str = "white",
    on_error: OnError = "stop",
    in_memory: bool | Literal["auto"] = "auto",
    cache_mb: float = CACHE_MB,
    suffix: Literal["parquet", "arrow"] = "parquet",
) -> SampleSet | None:
    """The images of the Parquet files below `root`, in order of the files' names.

    Splits as in `twoview.data.columns.find_splits`. Images are encoded bytes, {bytes, path}, paths relative to their
    Parquet file, or arrays (H, W), (H, W, C) of grey levels. Labels are whole numbers or texts; null, NaN, an empty
    text and -1 are none. The classes are those that the metadata of the first train file names, else the sorted
    values of the train split. `label_column=None`: unlabelled. A set too large to decode into memory stays in its
    files: a batch comes from their row groups, of which a process holds `cache_mb` megabytes. `on_error="skip"` leaves
    out files that are no Parquet files, too. `suffix="arrow"`: record batches instead, as `save_to_disk` of Hugging
    Face's `datasets` writes them; they are mapped, not held. All else as for `image_folder`.
    """
    root = Path(root).expanduser()
    of_train, of_test = find_splits(root, train, test, label_column, on_error, suffix)
    if split == "test" and not of_test and holdout is None:
        return None
    files = of_test if split == "test" and of_test else of_train
    samples = FileColumn(files, image_column, "image", png, cache_mb)
    if not len(samples):
        raise UserError(f"{root} has no rows in the {split} split ({', '.join(f.name for f in files)})")
    labels, classes = read_classes(files, of_train, label_column) if label_column else (None, ())
    learned: FileColumn | None = None  # what a test split has mean and std from
    if holdout is not None and not of_test:
        keep, out = held_out(torch.zeros(len(samples)) if labels is None else labels, holdout)
        learned = None if split == "train" else samples.take(keep)
        rows = torch.tensor(keep if split == "train" else out)
        samples, labels = samples.take(rows), None if labels is None else labels[rows]
    elif split == "test":
        learned = FileColumn(of_train, image_column, "image", png, cache_mb)
    kept = intact(samples, on_error, f"the {split} split")
    if len(kept) < len(samples):
        rows = torch.tensor(kept)
        samples, labels = samples.take(rows), None if labels is None else labels[rows]
    images = load_images(samples, size, in_memory, background)
    if learned is not None:
        learned = learned.take(intact(learned, on_error, "the train split"))
    mean, std = pixel_statistics(images if learned is None else Encoded(learned, size, background))
    return SampleSet(
        name=root.resolve().name,
        samples=images,
        labels=labels,
        classes=classes,
        preprocess=Pixels(mean, std),
        names=NamesOf(samples, root),
        draw=draw,
    )
