"""What every contrastive method shares: an encoder, an optimizer recipe, and a training step from two views to a
loss.
"""

import math
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from twoview.losses import Contrast
from twoview.optim import Recipe


class ContrastiveModule(pl.LightningModule):
    """Base of the methods. A method overrides `contrast` and `candidates`, and names its parts in its constructor.

    A batch is `((v1, v2), index, label)`: two views (B, ...) of the same B samples, their sample numbers (B,) and
    labels, which no method reads.
    """

    def __init__(self, encoder: nn.Module, optimizer: Recipe) -> None:
        super().__init__()
        self.encoder = encoder
        self.recipe = optimizer
        self.global_batch_size = 0  # set by the run: the learning rate depends on it

    def contrast(self, v1: Tensor, v2: Tensor, index: Tensor) -> Contrast:
        """The loss of two views and the accuracy of the contrastive task."""
        raise NotImplementedError

    def candidates(self) -> int:
        """Among how many candidates each row looks for its positive, the positive included."""
        raise NotImplementedError

    def gather(self, z: Tensor) -> Tensor:
        """The rows of all W devices, (B / W, P) -> (B, P), through which gradients flow back to the device they
        belong to.

        Every device computes the loss of the global batch; the sum of the W gradients that reach a row and the mean
        over devices that DDP takes of the parameters' gradients make the gradient of one device with the whole batch.
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return z
        return torch.cat(all_gather(z))

    @property
    def chance_loss(self) -> float:
        """The loss of a network that cannot tell candidates apart, in nats."""
        return math.log(self.candidates())

    def training_step(self, batch: tuple[tuple[Tensor, Tensor], Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        (v1, v2), index, _ = batch
        loss, accuracy = self.contrast(v1, v2, index)
        return {"loss": loss, "accuracy": accuracy}  # read by the monitors, see `twoview.monitor`

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs or 1
        optimizer, schedule = self.recipe.build(self, self.global_batch_size, steps, epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
