"""Images in Parquet files, as Hugging Face stores them: a column of {bytes, path}, and a column of labels."""

import os
from pathlib import Path

from twoview.data.columns import count_rows, find_files, read_classes, read_files, train_files
from twoview.data.image.decode import Encoded, load_images
from twoview.data.image.pixels import Pixels, draw, pixel_statistics, statistics_sample
from twoview.data.set import SampleSet
from twoview.errors import UserError


def parquet(
    root: str | Path,
    split: str,
    image_column: str = "image",
    label_column: str | None = "label",
    train: str = "train*.parquet",
    test: str = "test*.parquet",
    size: int | None = None,
) -> SampleSet | None:
    """The images of the files `<root>/<train>` or `<root>/<test>` (names or patterns), in order of the names.

    Labels are whole numbers or strings. The classes are those that the metadata of the first train file
    names, else the sorted values of the train split. `label_column=None`, or a split with -1 in every row:
    unlabelled. `size` as for `image_folder`. A set too large to decode into memory keeps its compressed bytes
    there and decodes on demand. Mean and std are those of train.
    """
    root = Path(root).expanduser()
    of_train = train_files(root, train)
    files = of_train if split == "train" else find_files(root, test)
    if not files:
        return None

    blobs = read_files(files, image_column, "image")
    if not blobs:
        raise UserError(f"{root} has no rows in the {split} split ({', '.join(f.name for f in files)})")
    labels, classes = read_classes(files, of_train, label_column, blobs) if label_column else (None, ())
    images = load_images(blobs, size)
    if split == "train":
        mean, std = pixel_statistics(images)
    else:
        sample = set(statistics_sample(sum(count_rows(file) for file in of_train)).tolist())
        mean, std = pixel_statistics(Encoded(read_files(of_train, image_column, "image", sample), size))
    names = [os.path.relpath(blob.name, root) for blob in blobs]
    return SampleSet(root.resolve().name, images, labels, classes, Pixels(mean, std), names=names, draw=draw)
