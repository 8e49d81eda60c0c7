"""Images in folders: one folder per class, or one flat folder without labels."""

from pathlib import Path
from typing import Literal

import torch

from twoview.data.files import find_in_folders, folder_of_split
from twoview.data.image.decode import Encoded, load_images
from twoview.data.image.pixels import Pixels, draw, pixel_statistics
from twoview.data.set import SampleSet
from twoview.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def image_folder(
    root: str | Path,
    split: str,
    size: int | None = None,
    train: str = "train",
    test: str = "test",
    in_memory: bool | Literal["auto"] = "auto",
) -> SampleSet | None:
    """The images of `<root>/<train>` or `<root>/<test>`; with neither there, `root` is the train split.

    Sub-folders that directly hold images are the classes, in the order of their names; without any, the
    folder's own images are the set, unlabelled. Hidden files and other suffixes are ignored. `size`: every
    image is resized and centre-cropped to (size, size); None: they must have one size as they are.
    `in_memory`: decode all now into one array, or each when asked for; "auto" by the size of that array.
    Class names, mean and std are those of train.
    """
    root = Path(root).expanduser()
    own = folder_of_split(root, split, train, test, "images")
    if own is None:
        return None
    folder = own if split == "train" else root / train
    files, names = find_in_folders(folder, SUFFIXES, "images")
    classes = tuple(sorted(set(names)))
    if split == "train":
        images = load_images(files, size, in_memory)
        mean, std = pixel_statistics(images)
    else:
        mean, std = pixel_statistics(Encoded(files, size))
        files, names = find_in_folders(own, SUFFIXES, "images")
        unknown = set(names) - set(classes)
        if classes and unknown:
            raise UserError(f"{own} has classes that {folder} has not: {', '.join(sorted(unknown))}")
        classes = classes or tuple(sorted(unknown))
        images = load_images(files, size, in_memory)
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([number[name] for name in names]) if names else None
    places = [file.relative_to(root).as_posix() for file in files]
    pixels = Pixels(mean, std)
    return SampleSet(root.resolve().name, images, labels, classes if names else (), pixels, names=places, draw=draw)
