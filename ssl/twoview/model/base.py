"""What every contrastive method shares: an encoder, an optimizer recipe, and a training step from two views to a
loss.
"""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from twoview.errors import UserError
from twoview.losses.contrastive import Contrast
from twoview.model.compiled import Compiler
from twoview.optim.recipe import Recipe
from twoview.parallel import devices
from twoview.parallel.precision import half_of


class ContrastiveModule(pl.LightningModule):
    """Base of the methods. A method overrides `contrast` and `candidates`, and names its parts in its constructor.

    A batch is `((v1, v2), index, label)`: two views (B, ...) of the same B samples, their sample numbers (B,) and
    labels, which no method reads. Where the first views are mixtures of neighbours (`augment.mix`), it is
    `((v1, v2, share), index, label)`, with the share (B,) of its own sample in each.
    """

    def __init__(self, encoder: nn.Module, optimizer: Recipe) -> None:
        super().__init__()
        self.encoder = encoder
        self.recipe = optimizer
        self.global_batch_size = 0  # set by the run: the learning rate depends on it
        self.mixed = False  # set by the run: whether first views are mixtures
        self.through = Compiler()  # set by the run: passes through encoders while training, `through(network, views)`
        self.even_shares = True  # set by the run: whether all devices have as many samples, in every batch

    def contrast(self, v1: Tensor, v2: Tensor, index: Tensor, share: Tensor | None = None) -> Contrast:
        """The loss of two views and the accuracy of the contrastive task."""
        raise NotImplementedError

    def candidates(self) -> int | Tensor:
        """Among how many candidates each row looks for its positive at present, the positive included."""
        raise NotImplementedError

    def check_share(self, rows: int, world_size: int) -> None:
        """Raises UserError if a device cannot have `rows` samples of a batch. Called before the first step."""

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of the global batch (B, ...), in its order, from those of each device (B / W, ...), with gradients.

        Every device computes the loss of the global batch; the sum of the W gradients that reach a row and the mean
        over devices that DDP takes of the parameters' gradients make the gradient of one device with the whole batch.
        """
        if devices.world_size() == 1:
            return rows
        if self.even_shares:
            return devices.gather(rows, len(rows) * devices.world_size())
        n = torch.tensor(len(rows), device=rows.device)
        dist.all_reduce(n)
        return devices.gather(rows, int(n))

    def chance(self) -> Tensor:
        """The loss at present of a network that cannot tell candidates apart, in nats: a scalar on the device."""
        candidates = self.candidates()
        if not isinstance(candidates, Tensor):
            candidates = torch.full((), candidates, device=self.device)
        return candidates.float().log()

    @property
    def chance_loss(self) -> float:
        """`chance` as a number."""
        return float(self.chance())

    def outlook(self) -> str:
        """What the loss is to be compared with, for the lines before the first step."""
        return f"loss at chance level {self.chance_loss:.3f}"

    @property
    def progress(self) -> float:
        """The share of the run's steps that are made; 0 outside of a run."""
        trainer = self._trainer
        return 0.0 if trainer is None else trainer.global_step / max(1, trainer.estimated_stepping_batches)

    def training_step(self, batch: tuple[tuple[Tensor, ...], Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        views, index, _ = batch
        chance = self.chance()
        loss, accuracy = self.contrast(views[0], views[1], index, *views[2:])
        return {"loss": loss, "accuracy": accuracy, "chance": chance}  # read by the monitors, see `twoview.watch.meter`

    def on_train_start(self) -> None:
        self.through.decide(self.device, int(self.trainer.estimated_stepping_batches), self.trainer.world_size)

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs or 1
        # A fused update takes the scale of float16 gradients away by itself, too late to clip them. Lightning then
        # refuses to clip, under autocast without such a scale as well.
        fused = not (str(self.trainer.precision).endswith("mixed") and self.trainer.gradient_clip_val)
        half = half_of(str(self.trainer.precision))
        optimizer, schedule = self.recipe.build(self, self.global_batch_size, steps, epochs, fused, half=half)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def check_chunk(chunk: int | None) -> int | None:
    if chunk is not None and chunk < 1:
        raise UserError(f"loss.chunk must be at least 1 row, or null for all at once, not {chunk}")
    return chunk
