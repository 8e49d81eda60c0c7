"""Images that the nearest are looked for of: files, wherever they lie, or images of the set by their names."""

from collections.abc import Sequence
from pathlib import Path

import torch

from twoview.data.files import Blob, tree
from twoview.data.image.decode import Encoded, suffixes
from twoview.data.image.pixels import Pixels, draw
from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError

MOST = 1000


def queries(words: Sequence[str], encoder: Frozen, known: Sequence[str]) -> tuple[SampleSet | None, list[str]]:
    """The images in the files, folders, archives or lists that the words name, as the encoder takes them (None for no
    file), and those words that are `known` names of images of the set. UserError for any other word.
    """
    files: dict[str, Path | Blob] = {}
    inside = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_file() and path.suffix.lower() in suffixes():
            files[word] = path
        elif path.exists():
            below = {f"{word}/{name}": file for name, file in tree(path, "images").items() if _is_image(name)}
            if not below:
                raise UserError(f"query={word}: there is no image in it")
            files |= below
        elif word in known:
            inside.append(word)
        else:
            raise UserError(f"query={word}: there is no such file, and the set has no image of that name")
    if len(files) > MOST:
        raise UserError(f"query: {len(files):,} images are more than the {MOST:,} that a page can show")
    return (_read(files, encoder) if files else None), inside


def _is_image(name: str) -> bool:
    return name.lower().endswith(suffixes())


def _read(files: dict[str, Path | Blob], encoder: Frozen) -> SampleSet:
    shape = encoder.shape
    if not isinstance(encoder.preprocess, Pixels) or (shape is not None and (len(shape) != 3 or shape[0] != 3)):
        raise UserError("query takes files of images, and this encoder was not trained on RGB images")
    square = shape is not None and shape[1] == shape[2]
    images = Encoded(list(files.values()), shape[2] if square else None)
    if shape is not None and images.shape != tuple(shape):
        raise UserError(
            f"query: images of {images.shape[2]} x {images.shape[1]} pixels, and not of {shape[2]} x {shape[1]}"
        )
    pixels = images.fetch(range(len(files)))
    assert isinstance(pixels, torch.Tensor)
    return SampleSet("query", pixels, None, (), encoder.preprocess, names=list(files), draw=draw)
