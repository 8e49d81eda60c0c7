"""What every method shares: an encoder, an optimizer recipe, and a training step from views to a loss."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from twoview.data.batches import Batch
from twoview.encoder.frozen import as_weights
from twoview.errors import UserError
from twoview.model.part.momentum import refuse_low_precision
from twoview.optim.recipe import Recipe
from twoview.optim.role import Role
from twoview.parallel import devices
from twoview.parallel.pieces import in_pieces
from twoview.parallel.precision import half_of


class Outcome(NamedTuple):
    """What a step found. All are scalars on the training device.

    `loss` is what is minimised. `numbers` are logged beside it, under their names, the same ones in every step.
    `chance` is the loss of a network that cannot tell candidates apart, at present; None for losses without such a
    value.
    """

    loss: Tensor
    numbers: dict[str, Tensor]
    chance: Tensor | None = None


def plain_pass(network: nn.Module, views: Tensor) -> Tensor:
    """`network(views)`."""
    return network(views)


@dataclass(frozen=True)
class Begin:
    """What a method is told of its run before the first step.

    `global_batch_size`: samples of a batch over all devices. `shares`: how many of them a device may get; empty if that
    is not known. `even_shares`: whether all devices have as many, in every batch (if not, each `gather` has to ask).
    `view_shapes`: the shape of each view of a sample; empty if not known before the first batch. `mixed`: first views
    are mixtures of neighbours. `labelled`: there are samples with labels. `metered`: somebody logs what `training_step`
    returns; if not, the method does. `last_batch`: samples of an incomplete last batch, if an epoch has one.
    `through(network, views)`: the pass through an encoder while training, which may be by compiled code. `pieces`: into
    how many a device's rows are divided for it.
    """

    global_batch_size: int
    steps: int
    epochs: int
    world_size: int = 1
    shares: frozenset[int] = frozenset()
    even_shares: bool = False
    view_shapes: tuple[tuple[int, ...], ...] = ()
    mixed: bool = False
    labelled: bool = True
    metered: bool = False
    last_batch: int | None = None
    through: Callable[[nn.Module, Tensor], Tensor] = plain_pass
    pieces: int = 1

    def need(self, samples: int, why: str) -> None:
        """UserError where a batch has fewer samples."""
        if self.global_batch_size < samples:
            raise UserError(f"batch_size={self.global_batch_size} is too small: {why}")
        if self.last_batch is not None and self.last_batch < samples:
            raise UserError(
                f"loader.drop_last=false leaves a last batch of {self.last_batch}, which is too small: {why}. Set it "
                "to true, or choose another batch_size"
            )


class Method(pl.LightningModule):
    """Base of the methods. A method overrides `step`, and names its parts in its constructor.

    `views_needed`: how many views it takes, at least and at most (None: any number). `reads_labels`: it is supervised.
    `reads_share`: it knows what to do with mixtures (`Batch.share`). `teacher` is the slow copy of the encoder, in
    methods that have one.

    `views` makes views of samples, where a data loader of your own yields samples, alone or before their labels: assign
    a `twoview.augment.TwoViews`.

    `begin` tells a method of its run. Fitted by a Lightning trainer without that, it takes steps, epochs and batch size
    from the trainer and its data loader, and logs its numbers itself.
    """

    views_needed: ClassVar[tuple[int, int | None]] = (2, 2)
    reads_labels: ClassVar[bool] = False
    reads_share: ClassVar[bool] = False
    teacher: nn.Module | None
    views: nn.Module | None

    def __init__(self, encoder: nn.Module, optimizer: Recipe) -> None:
        super().__init__()
        self.encoder = encoder
        self.recipe = optimizer
        self.teacher = None
        self.views = None
        self._run: Begin | None = None
        self._seen = 0  # samples, where a loader does not number them

    # What a method overrides

    def step(self, batch: Batch) -> Outcome:
        """The loss of a batch, and what is to be logged beside it."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called when the optimizer has changed the weights: a teacher may follow here."""

    def heads(self) -> dict[str, nn.Module]:
        """The modules behind h by the names of their attributes, in the order in which they are passed. The first turns
        h (B, D) into z (B, P). Methods without a head give none.
        """
        return {}

    def roles(self) -> Sequence[Role]:
        """Parameters that are optimized otherwise than the recipe says."""
        return ()

    def begin(self, run: Begin) -> None:
        """Takes what there is to know of the run, once, before the first step. UserError for what does not fit."""
        run.need(2, "a method compares samples with each other")
        if run.view_shapes:
            self._check_views(len(run.view_shapes))
        if run.mixed and not self.reads_share:
            raise UserError(f"{type(self).__name__} has no use for mixtures of images; set augment.mix=null")
        if self.reads_labels and not run.labelled:
            raise UserError(f"{type(self).__name__} learns from labels, and the training set has none")
        for rows in sorted(run.shares or {run.global_batch_size // run.world_size}):
            if run.pieces > 1 and (rows % run.pieces or rows // run.pieces < 2):
                raise UserError(
                    f"pieces={run.pieces}: a device's {rows} samples of a batch do not divide into as many equal "
                    "pieces of at least 2; change batch_size or pieces, and leave out an incomplete last batch "
                    "(loader.drop_last=true)"
                )
        self._run = run

    def outlook(self) -> str:
        """What the loss is to be compared with, for the lines before the first step; may be empty."""
        return ""

    # What a method may use

    @property
    def run(self) -> Begin:
        if self._run is None:
            raise UserError(
                f"{type(self).__name__} knows nothing of its run yet: fit it by a Lightning trainer, or call "
                "begin(Begin(global_batch_size=..., steps=..., epochs=...)) first"
            )
        return self._run

    @property
    def pieces(self) -> int:
        """Into how many a device's rows are divided for an encoder."""
        return 1 if self._run is None else self._run.pieces

    @property
    def progress(self) -> float:
        """The share of the run's steps that are made; 0 outside of a trainer."""
        return 0.0 if self._trainer is None else self.global_step / max(1, self.run.steps)

    def through(self, network: nn.Module, views: Tensor) -> Tensor:
        """`network(views)`: (B, ...) -> (B, D), by compiled code and in pieces where the run has that."""
        through = plain_pass if self._run is None else self._run.through
        return in_pieces(through, network, views, self.pieces)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of the global batch (B, ...), in its order, from those of each device (B / W, ...), with gradients.

        Every device computes the loss of the global batch; the sum of the W gradients that reach a row and the mean
        over devices that DDP takes of the parameters' gradients make the gradient of one device with the whole batch.
        """
        if devices.world_size() == 1:
            return rows
        if self._run is not None and self._run.even_shares:
            return devices.gather(rows, len(rows) * devices.world_size())
        n = torch.tensor(len(rows), device=rows.device)
        dist.all_reduce(n)
        return devices.gather(rows, int(n))

    # What Lightning calls

    def training_step(self, batch: Batch | Sequence[Any], batch_idx: int) -> dict[str, Any]:
        """`step`. What a plain loader makes of samples `((v1, v2), index, label)` is taken for a `Batch`; where there
        are `views`, they are made of what it yields.
        """
        if not isinstance(batch, Batch):
            batch = self._viewed(batch) if self.views is not None else Batch(tuple(batch[0]), *batch[1:])
        self._check_views(len(batch.views))
        views = tuple(as_weights(view, self.encoder) for view in batch.views)
        outcome = self.step(batch._replace(views=views))
        if self._trainer is not None and not self.run.metered:
            chance = {} if outcome.chance is None else {"chance_loss": outcome.chance}
            logged = {"loss": outcome.loss, **chance, **outcome.numbers}
            self.log_dict(logged, prog_bar=True, batch_size=len(batch.index))
        return outcome._asdict()  # read by `twoview.watch.meter`

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for role in self.roles():
            if self.current_epoch < role.frozen_epochs:
                for parameter in role.parameters:
                    parameter.grad = None

    def on_fit_start(self) -> None:
        if self.teacher is not None:
            refuse_low_precision(self)

    def configure_optimizers(self) -> Any:
        if self._run is None:
            self.begin(self._of_the_trainer())
        run = self.run
        # A fused update takes the scale of float16 gradients away by itself, too late to clip them. Lightning then
        # refuses to clip, under autocast without such a scale as well.
        fused = not (str(self.trainer.precision).endswith("mixed") and self.trainer.gradient_clip_val)
        half = half_of(str(self.trainer.precision))
        optimizer, schedule = self.recipe.build(
            self, run.global_batch_size, run.steps, run.epochs, fused, half=half, roles=self.roles()
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _of_the_trainer(self) -> Begin:
        """The run of a trainer that was not told of by `begin`. UserError for what it does not say."""
        trainer, name = self.trainer, type(self).__name__
        if trainer.accumulate_grad_batches != 1:
            raise UserError(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches}: {name} compares the samples of a whole "
                "batch, and its loss is not the mean over parts of it; use 1"
            )
        steps = trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            raise UserError(
                f"the learning rate of {name} falls until the last step, and this trainer has none: give it "
                "max_epochs=... or max_steps=..."
            )
        if trainer.train_dataloader is None:  # where max_steps alone ends the run
            trainer.fit_loop.setup_data()
        size = getattr(trainer.train_dataloader, "batch_size", None)
        if not isinstance(size, int):
            raise UserError(
                f"the learning rate of {name} depends on the batch size, which this data loader does not tell: call "
                "begin(Begin(global_batch_size=..., steps=..., epochs=...)) before fit"
            )
        epochs = max(1, math.ceil(steps / max(1, trainer.num_training_batches)))
        return Begin(size * trainer.world_size, int(steps), epochs, trainer.world_size)

    def _viewed(self, batch: Any) -> Batch:
        """Views of `samples`, or of the first of `(samples, labels, ...)`."""
        assert self.views is not None
        samples, label = (batch[0], *batch[1:2], None)[:2] if isinstance(batch, list | tuple) else (batch, None)
        views = self.views(samples)
        index = self._seen + torch.arange(len(views[0]), device=views[0].device)  # of no other sample in a queue
        self._seen += len(index)
        whole = isinstance(label, Tensor) and label.shape == index.shape and not label.is_floating_point()
        return Batch(views, index, label.long() if whole else torch.full_like(index, -1))

    def _check_views(self, given: int) -> None:
        least, most = self.views_needed
        if given < least or (most is not None and given > most):
            wanted = str(least) if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            raise UserError(f"{type(self).__name__} takes {wanted} views of a sample, not {given} (augment.views)")


def check_chunk(chunk: int | None) -> int | None:
    if chunk is not None and chunk < 1:
        raise UserError(f"loss.chunk must be at least 1 row, or null for all at once, not {chunk}")
    return chunk
