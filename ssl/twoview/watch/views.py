"""What the model sees, as a picture at the start of a run."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.utils import make_grid, save_image

from twoview.data.batches import TwoViewDataModule
from twoview.report.sheet import shown
from twoview.rng import permutation
from twoview.run.folder import VIEWS


class ViewSheet(pl.Callback):
    """A picture of the views of the first samples, as the model sees them at step 0: `views.png` and TensorBoard. None
    of samples that cannot be drawn.
    """

    def __init__(self, images: int = 16) -> None:
        self.images = images

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and trainer.global_step == 0 and data.train.draw is not None:
            sheet = self.draw(data)
            save_image(sheet, Path(trainer.default_root_dir) / VIEWS)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image("views", sheet, global_step=0)

    def draw(self, data: TwoViewDataModule) -> Tensor:
        """Rows: original, first view, second view, and so on. float (3, H', W') in [0, 1]."""
        views: Any = data.views
        index = permutation(len(data.train), data.seed, epoch=0)[: self.images]
        pictures = shown(data.train, views, index, epoch=0)
        longest = max(max(picture.shape[-2:]) for picture in pictures)
        side = longest * max(1, 64 // longest)  # small images are shown enlarged, pixel by pixel
        rows = [_in_square(picture, side) for picture in pictures]
        return make_grid(torch.cat(rows).cpu(), nrow=len(index), padding=2, pad_value=1.0)


def _in_square(pictures: Tensor, side: int) -> Tensor:
    """Pictures (B, C, H, W) in their own ratio, the longer side `side` pixels, in the middle of a white square."""
    H, W = (round(n * side / max(pictures.shape[-2:])) for n in pictures.shape[-2:])
    shown = interpolate(pictures, size=(H, W), mode="nearest")
    top, left = (side - H) // 2, (side - W) // 2
    return pad(shown, (left, side - W - left, top, side - H - top), value=1.0)
