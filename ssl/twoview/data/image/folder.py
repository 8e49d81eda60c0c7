"""Images in folders: one folder per class, or one flat folder without labels."""

import os
from pathlib import Path
from typing import Literal

import torch

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
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: set data.root to the folder of your images")
    has_train, has_test = (root / train).is_dir(), (root / test).is_dir()
    if has_test and not has_train:
        raise UserError(f"{root} has a folder {test!r} but no {train!r}: set data.train to that of your train images")
    if split == "test" and not has_test:
        return None
    folder = root / train if has_train else root
    files, names = _find(folder)
    classes = tuple(sorted(set(names)))
    if split == "train":
        images = load_images(files, size, in_memory)
        mean, std = pixel_statistics(images)
    else:
        mean, std = pixel_statistics(Encoded(files, size))
        files, names = _find(root / test)
        unknown = set(names) - set(classes)
        if classes and unknown:
            raise UserError(f"{root / test} has classes that {folder} has not: {', '.join(sorted(unknown))}")
        classes = classes or tuple(sorted(unknown))
        images = load_images(files, size, in_memory)
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([number[name] for name in names]) if names else None
    places = [file.relative_to(root).as_posix() for file in files]
    pixels = Pixels(mean, std)
    return SampleSet(root.resolve().name, images, labels, classes if names else (), pixels, names=places, draw=draw)


def _find(folder: Path) -> tuple[list[Path], list[str]]:
    """The image files below a folder, ordered by name, and the class of each ([] for a flat folder)."""
    try:
        above = {folder.resolve(), *folder.resolve().parents}
        entries = [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
        # A link back to where it lies is no class. os.path.isdir, because it is quiet about links that lead
        # nowhere.
        folders = [entry for entry in entries if os.path.isdir(entry) and entry.resolve() not in above]
        found = [
            (entry / name, entry.name)
            for entry in folders
            for name in sorted(os.listdir(entry))
            if _is_image_name(name)
        ]
    except OSError as error:
        raise UserError(f"cannot list {error.filename}: {error.strerror}") from None
    if found:
        files, names = zip(*found, strict=True)
        return list(files), list(names)
    flat = [entry for entry in entries if _is_image_name(entry.name) and not os.path.isdir(entry)]
    if not flat:
        raise UserError(
            f"no images in {folder} nor directly in its sub-folders (looked for {', '.join(SUFFIXES)}): "
            "set data.root to the folder of your images"
        )
    return flat, []


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)
