"""Images in folders, in an archive or in a list of files: one folder per class, or without classes."""

from pathlib import Path
from typing import Literal

from twoview.data.image.decode import Encoded, OnError, intact, load_images, suffixes
from twoview.data.image.pixels import Pixels, draw, pixel_statistics
from twoview.data.set import SampleSet
from twoview.data.splits import find, numbered


def image_folder(
    root: str | Path,
    split: str,
    size: int | None = None,
    train: str | None = None,
    test: str | None = None,
    holdout: float | None = None,
    background: str = "white",
    on_error: OnError = "stop",
    in_memory: bool | Literal["auto"] = "auto",
) -> SampleSet | None:
    """The images at `root`: a folder of any depth, a zip or tar archive, or a list with one path a line.

    Splits, classes and `holdout` as in `twoview.data.splits.find`. `size`: every image is resized and centre-cropped to
    (size, size); None: they must have one size as they are. Images are upright, and transparent pixels show the
    `background`. `on_error`: "stop" at damaged images, naming them all, or "skip" them. `in_memory`: decode all now
    into one array, or each when asked for; "auto" by the size of that array. Class names, mean and std are those of
    train.
    """
    root = Path(root).expanduser()
    of_train, of_test = find(root, suffixes(), "images", train, test, holdout, quiet=split != "train")
    own = of_train if split == "train" else of_test
    if own is None:
        return None
    kept = own.take(intact(own.files, on_error, f"the {split} split"))
    images = load_images(kept.files, size, in_memory, background)
    if split == "train":
        mean, std = pixel_statistics(images)
    else:
        learned = of_train.take(intact(of_train.files, on_error, "the train split"))
        mean, std = pixel_statistics(Encoded(learned.files, size, background))
    labels, classes = numbered(kept, of_train, root)
    return SampleSet(root.resolve().name, images, labels, classes, Pixels(mean, std), names=kept.names, draw=draw)
