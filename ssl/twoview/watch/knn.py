"""The kNN monitor of a run."""

import copy
from typing import Any

import pytorch_lightning as pl
import torch

from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.classify.knn import knn_accuracy
from twoview.evaluate.features import extract
from twoview.rng import exact, permutation
from twoview.watch.meter import Meter


class KNNMonitor(pl.Callback):
    """kNN accuracy of the encoder's h on a labelled test set, every `every_epochs` epochs and after the last.

    The encoder is in eval mode and computes in float32; samples are not augmented. `bank` bounds the number of
    training samples that vote (an even draw over the set), for machines on which all of them take too long. Protocol:
    weighted vote of the `k` nearest by cosine with weights exp(similarity / `temperature`) (Wu et al., arXiv
    1805.01978; MoCo's CIFAR notebook: k=200, temperature 0.1).
    """

    def __init__(
        self,
        train: SampleSet,
        test: SampleSet,
        meter: Meter,
        every_epochs: int = 5,
        k: int = 200,
        temperature: float = 0.1,
        bank: int | None = None,
    ) -> None:
        if every_epochs < 1 or k < 1 or not temperature > 0 or (bank is not None and bank < 1):
            raise UserError(
                f"knn needs every_epochs, k and bank of at least 1 and a positive temperature, "
                f"not {every_epochs}, {k}, {bank} and {temperature}"
            )
        if bank is not None and bank < len(train):
            train = train.subset(permutation(len(train), seed=0, epoch=0, stream="knn bank")[:bank].sort().values)
        self.train, self.test, self.meter = train, test, meter
        self.every_epochs, self.k, self.temperature = every_epochs, k, temperature
        self.last: float | None = None
        self.best: float | None = None
        self.best_epoch: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last, "best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last, self.best, self.best_epoch = (
            state_dict["last"],
            state_dict["best"],
            state_dict["best_epoch"],
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every_epochs == 0 or epoch == trainer.max_epochs:
            self.evaluate(trainer, pl_module, epoch)
            self.meter.pause()

    @torch.no_grad()
    def evaluate(self, trainer: Any, pl_module: Any, epoch: int) -> None:
        if trainer.is_global_zero:
            encoder = Frozen(pl_module.encoder, copy.deepcopy(self.train.preprocess))
            device = pl_module.device
            bank, queries = (
                extract(encoder, images, device=device).to(exact(device)) for images in (self.train, self.test)
            )
            assert self.train.labels is not None
            assert self.test.labels is not None
            self.last = knn_accuracy(
                bank,
                self.train.labels,
                queries,
                self.test.labels,
                k=min(self.k, len(bank)),
                temperature=self.temperature,
                classes=len(self.train.classes),
            )
            if self.best is None or self.last > self.best:
                self.best, self.best_epoch = self.last, epoch
            self.meter.latest["knn"] = self.last
            self.meter.write(trainer, seldom=trainer.max_epochs <= 2 * self.every_epochs, knn=self.last)
        trainer.strategy.barrier("knn")
