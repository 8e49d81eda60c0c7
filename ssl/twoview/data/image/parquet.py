"""Images in Parquet files, as Hugging Face stores them: a column of {bytes, path}, and a column of labels."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from twoview.data.columns import count_rows, find_splits, read_classes, read_files
from twoview.data.files import Blob
from twoview.data.image.decode import Encoded, OnError, intact, load_images
from twoview.data.image.pixels import Pixels, draw, pixel_statistics, statistics_sample
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
) -> SampleSet | None:
    """The images of the Parquet files below `root`, in order of the files' names.

    Splits as in `twoview.data.columns.find_splits`. Images are encoded bytes, {bytes, path}, paths relative to their
    Parquet file, or arrays (H, W), (H, W, C) of grey levels. Labels are whole numbers or texts; null, NaN, an empty
    text and -1 are none. The classes are those that the metadata of the first train file names, else the sorted
    values of the train split. `label_column=None`: unlabelled. A set too large to decode into memory keeps its
    compressed bytes there and decodes on demand. All else as for `image_folder`.
    """
    root = Path(root).expanduser()
    of_train, of_test = find_splits(root, train, test, label_column)
    if split == "test" and not of_test and holdout is None:
        return None
    files = of_test if split == "test" and of_test else of_train
    samples = read_files(files, image_column, "image", encode=png)
    if not samples:
        raise UserError(f"{root} has no rows in the {split} split ({', '.join(f.name for f in files)})")
    labels, classes = read_classes(files, of_train, label_column, samples) if label_column else (None, ())
    rows = list(range(len(samples)))
    learned: Sequence[Path | Blob] = []  # what a test split has mean and std from
    if holdout is not None and not of_test:
        keep, out = held_out(torch.zeros(len(rows)) if labels is None else labels, holdout)
        rows, learned = (keep, []) if split == "train" else (out, [samples[row] for row in keep])
    elif split == "test":
        needed = None
        if on_error == "stop":  # else damaged ones change which of them are drawn
            needed = set(statistics_sample(sum(count_rows(file) for file in of_train)).tolist())
        learned = read_files(of_train, image_column, "image", needed, encode=png)
    rows = [rows[i] for i in intact([samples[row] for row in rows], on_error, f"the {split} split")]
    images = load_images([samples[row] for row in rows], size, "auto", background)
    if learned:
        learned = [learned[i] for i in intact(learned, on_error, "the train split")]
    mean, std = pixel_statistics(Encoded(learned, size, background) if learned else images)
    return SampleSet(
        name=root.resolve().name,
        samples=images,
        labels=None if labels is None else labels[torch.tensor(rows)],
        classes=classes,
        preprocess=Pixels(mean, std),
        names=[os.path.relpath(str(samples[row]), root) for row in rows],
        draw=draw,
    )
