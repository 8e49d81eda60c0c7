"""Samples of several splits as one sequence: names, and pictures small enough for a page."""

import io
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from twoview.data.image.pixels import as_bytes
from twoview.data.set import SampleSet
from twoview.report.sheet import fit

SIDE = 112  # pixels of a picture
COARSE = 56  # up to here pixels are to be seen as they are


class Gallery:
    """The samples of the sets, one set after the other."""

    def __init__(self, sets: Mapping[str, SampleSet]) -> None:
        self.sets = dict(sets)
        self.names = [name for images in sets.values() for name in images.names]
        self.splits = [split for split, images in sets.items() for _ in range(len(images))]
        self._starts: dict[str, int] = {}
        self._drawn: dict[int, bytes] = {}
        start = 0
        for split, images in sets.items():
            self._starts[split] = start
            start += len(images)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> tuple[str, ...]:
        return next((images.classes for images in self.sets.values() if images.classes), ())

    def labels(self) -> list[str]:
        """The class of each sample, "" where it has none."""
        found: list[str] = []
        for images in self.sets.values():
            numbers = [-1] * len(images) if images.labels is None else images.labels.tolist()
            found += ["" if number < 0 else images.classes[number] for number in numbers]
        return found

    def picture(self, row: int) -> bytes:
        """A PNG or JPEG file; empty for samples that cannot be drawn."""
        if row not in self._drawn:
            pixels = self.pixels([row])
            self._drawn[row] = b"" if pixels is None else thumbnail(pixels[0])
        return self._drawn[row]

    def prepare(self, rows: Sequence[int]) -> None:
        """Draws the pictures of all these rows, many at a time: images that are decoded on demand are so in threads."""
        todo = [row for row in dict.fromkeys(rows) if row not in self._drawn]
        for split, start in self._starts.items():
            images = self.sets[split]
            own = torch.tensor([row - start for row in todo if self.splits[row] == split], dtype=torch.long)
            if images.draw is not None:
                for part in own.split(64):
                    drawn = images.draw(images.fetch(part)).cpu() if len(part) else ()
                    self._drawn |= {start + int(i): thumbnail(pixels) for i, pixels in zip(part, drawn, strict=True)}

    def pixels(self, rows: Sequence[int]) -> Tensor | None:
        """Pictures (B, 3 or 1, H, W) in [0, 1]; None for samples that cannot be drawn."""
        drawn = []
        for row in rows:
            split = self.splits[row]
            images = self.sets[split]
            if images.draw is None:
                return None
            drawn.append(images.draw(images.fetch(torch.tensor([row - self._starts[split]])))[0].cpu())
        return torch.stack(drawn)


def thumbnail(pixels: Tensor, side: int = SIDE) -> bytes:
    """A picture (3 or 1, H, W) in [0, 1] as a file: a few pixels enlarged, in PNG; more of them reduced, in JPEG."""
    coarse = max(pixels.shape[1:]) <= COARSE
    levels = as_bytes(fit(pixels[None], side)[0]).expand(3, -1, -1).movedim(0, -1)  # (h, w, 3)
    image, file = Image.fromarray(levels.contiguous().numpy()), io.BytesIO()
    if coarse:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=88)
    return file.getvalue()
