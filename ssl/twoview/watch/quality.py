"""The shape of the representation while it is trained: a monitor beside those of `twoview.watch.meter`."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from twoview.data.demand import moved
from twoview.errors import UserError
from twoview.evaluate.describe.quality import quality, similarity_histograms
from twoview.evaluate.features import spaces
from twoview.rng import exact, permutation
from twoview.watch.meter import QUALITIES, Meter

BATCH = 256  # views that are encoded at once


class QualityMonitor(pl.Callback):
    """`twoview.evaluate.describe.quality` of h and z, every `every_epochs` epochs and after the last.

    Measured on two views of the current epoch of `images` training images, which are the same at every reading, in
    float32 and in eval mode. z is what the method's first head makes of h; methods without heads have none. Columns of
    `metrics.csv` and curves in TensorBoard: `h_alignment` and so on; `std` is in units of its healthy 1 / sqrt(D), so
    that 1 is spread out and 0 collapsed; ranks are at most min(`images`, D), and `contrastive_accuracy` is among 2
    `images` - 1 candidates.
    TensorBoard also gets histograms of the similarities of positives and of negatives.
    """

    def __init__(self, meter: Meter, every_epochs: int = 5, images: int = 512) -> None:
        if every_epochs < 1 or images < 2:
            raise UserError(
                f"quality needs every_epochs of at least 1 and at least 2 images, not {every_epochs} and {images}"
            )
        self.meter, self.every_epochs, self.images = meter, every_epochs, images

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every_epochs == 0 or epoch == trainer.max_epochs:
            self.evaluate(trainer, pl_module)
            self.meter.pause()

    def evaluate(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            values: dict[str, float] = {}
            for space, (x1, x2) in self.features(trainer, pl_module).items():
                found = quality(x1, x2)
                values |= {f"{space}_{name}": found[key] for name, key in QUALITIES.items()}
                self._draw(trainer, space, x1, x2)
            self.meter.write(trainer, seldom=trainer.max_epochs <= 2 * self.every_epochs, **values)
        trainer.strategy.barrier("quality")

    def features(self, trainer: Any, pl_module: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """h, and z if there is one, each (n, D) of the first and of the second view."""
        data, device = trainer.datamodule, pl_module.device
        views = data.views
        index = permutation(len(data.train), data.seed, epoch=0, stream="quality")[: self.images]
        found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        with spaces(pl_module.encoder, next(iter(pl_module.heads().values()), None)) as features:
            for rows in index.to(exact(device)).split(BATCH):
                samples = moved(data.train.fetch(rows), exact(device))
                for number, view in enumerate(views(samples, rows, trainer.current_epoch)[:2]):
                    for space, x in features(moved(view, device)).items():  # unmixed also where training mixes
                        found.setdefault(space, ([], []))[number].append(x.to(exact(device)))
        return {space: (torch.cat(first), torch.cat(second)) for space, (first, second) in found.items()}

    def _draw(self, trainer: Any, space: str, x1: Tensor, x2: Tensor) -> None:
        edges, *counts = similarity_histograms(x1, x2)
        centres = (edges[1:] + edges[:-1]) / 2
        for name, count in zip(("positives", "negatives"), counts, strict=True):
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger) and count.any():
                    logger.experiment.add_histogram_raw(
                        f"representation/{space}/{name}",
                        min=-1.0,
                        max=1.0,
                        num=int(count.sum()),
                        sum=float((count * centres).sum()),
                        sum_squares=float((count * centres.square()).sum()),
                        bucket_limits=edges[1:].tolist(),
                        bucket_counts=count.tolist(),
                        global_step=trainer.global_step,
                    )
