"""TensorBoard's projector: features as points with names and pictures, to be walked through."""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from twoview.report.words import legible

SPRITES = 8192  # largest side of TensorBoard's sheet of images, in pixels
LARGEST_SPRITE = 64


def write_projector(
    folder: Path, features: Tensor, columns: Mapping[str, Sequence[str]], images: Tensor | None = None
) -> None:
    """Features (N, D) with what is said of each, and pictures (N, 3 or 1, H, W) in [0, 1] if there are any, for
    `tensorboard --logdir <folder>`. The first column is what a point is called.
    """
    from torch.utils.tensorboard import SummaryWriter

    side = min(LARGEST_SPRITE, SPRITES // math.ceil(math.sqrt(len(features))))
    if images is not None and max(images.shape[-2:]) > side:
        size = [max(1, round(n * side / max(images.shape[-2:]))) for n in images.shape[-2:]]
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True).clamp(0, 1)
    if images is not None:
        images = images.expand(-1, 3, -1, -1)
    # A tab or a line break in a name would be another column or row, and an empty cell is none.
    cells = [[legible(" ".join(value.split())) or "-" for value in values] for values in columns.values()]
    header = list(columns) if len(columns) > 1 else None  # TensorBoard wants none for a single column
    metadata = [list(row) for row in zip(*cells, strict=True)] if header else cells[0]
    shutil.rmtree(folder / "00000" / "h", ignore_errors=True)  # an earlier one, over which TensorBoard would complain
    writer = SummaryWriter(str(folder))
    quiet = logging.getLogger("tensorboard")
    level = quiet.level
    try:
        quiet.setLevel(logging.ERROR)
        writer.add_embedding(features, metadata=metadata, metadata_header=header, label_img=images, tag="h")
    finally:
        writer.close()
        quiet.setLevel(level)
