"""MoCo: He, Fan, Wu, Xie & Girshick, "Momentum contrast for unsupervised visual representation learning", CVPR 2020.

arXiv 1911.05722; version 2 is arXiv 2003.04297. A query has to find the key of its own image, which a slowly moving
copy of the encoder makes, among the keys of images of earlier steps, which wait in a queue.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twoview.data.batches import Batch
from twoview.errors import UserError
from twoview.losses import info_nce_contrast
from twoview.model.base import Begin, Method, Outcome, check_chunk
from twoview.model.part.head import Projector
from twoview.model.part.memory import Queue
from twoview.model.part.momentum import Momentum, follow, frozen_copy
from twoview.optim.recipe import Recipe
from twoview.parallel import devices, norm
from twoview.rng import Draw


class MoCo(Method):
    """Query encoder and head, key encoder and head that follow them with `momentum`, and a queue of `queue_size` keys.
    Of the base class's names, the key encoder is the `teacher`.

    `projector` makes the heads from the width of h, a callable with the argument `in_dim`: one linear layer in version
    1, a perceptron in version 2. `momentum_end` is the momentum at the end of the run, reached by half a cosine;
    `None` keeps it constant. `symmetric`: each view is the query once, and the loss the mean of both (the authors'
    notebook takes their sum). `mask_same_image`: keys of the query's own image from earlier epochs do not count as
    negatives (off in the paper; a small data set meets itself in a long queue).

    Batch statistics leak: a network can find its key by the statistics that query and key share. Against that,
    `split_batch_norm` takes statistics of so many groups of the global batch, and `shuffle_keys` gives the key encoder
    the samples in another order, wherever there is more than one group (section 3.3). `fresh_queue` starts a resumed
    run with an empty queue. `chunk`: rows of the similarity matrix held at once.
    """

    reads_share = True
    teacher: nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        temperature: float = 0.1,
        queue_size: int = 4096,
        momentum: float = 0.99,
        momentum_end: float | None = None,
        symmetric: bool = False,
        mask_same_image: bool = False,
        split_batch_norm: int = 8,
        shuffle_keys: bool = True,
        fresh_queue: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__(encoder, optimizer)
        if not 0 < temperature < math.inf:
            raise UserError(f"model.temperature must be positive, not {temperature}")
        if split_batch_norm < 1:
            raise UserError(f"model.split_batch_norm must be at least 1 group, not {split_batch_norm}")
        self.projector = projector(in_dim=encoder.dim)
        if split_batch_norm > 1:
            for network in (self.encoder, self.projector):
                norm.split_batch_norm(network, split_batch_norm)
        self.teacher, self.teacher_projector = frozen_copy(self.encoder), frozen_copy(self.projector)
        self.queue = Queue(queue_size, self.projector.out_dim)
        self.temperature = temperature
        self.momentum = Momentum(momentum, momentum_end)
        self.symmetric, self.mask_same_image = symmetric, mask_same_image
        self.groups, self.shuffle_keys = split_batch_norm, shuffle_keys
        self.fresh_queue = fresh_queue
        self.chunk = check_chunk(chunk)

    def step(self, batch: Batch) -> Outcome:
        momentum = self.momentum.at(self.progress)
        follow(self.teacher, self.encoder, momentum)  # before the keys of this step, as in the authors' code
        follow(self.teacher_projector, self.projector, momentum)
        index = self.gather(batch.index)  # (B,)
        share = None if batch.share is None else self.gather(batch.share)  # (B,)
        negatives, owners = self.queue.rows.clone(), self.queue.index.clone()  # (K, P), (K,) as before this step

        def excluded(rows: slice) -> Tensor:
            empty = (owners < 0)[None]  # (1, K)
            return empty | (owners == index[rows, None]) if self.mask_same_image else empty  # (rows, K)

        v1, v2 = batch.views
        halves, keys = [], []
        for view, other in ((v1, v2), (v2, v1)) if self.symmetric else ((v1, v2),):
            query = self.gather(self.projector(self.through(self.encoder, view)))  # (B, P)
            key = self.keys(other, index)  # (B, P)
            halves.append(info_nce_contrast(query, key, negatives, self.temperature, excluded, share, chunk=self.chunk))
            keys.append(key)
        loss, accuracy = (torch.stack(values).mean() for values in zip(*halves, strict=True))
        filled = self.queue.filled()
        candidates = 1 + (share is not None) + filled  # its key, that of the neighbour in mixtures, and the negatives
        self.queue.add(torch.cat(keys), index.repeat(len(keys)))  # after both halves: no query meets its own key in it
        return Outcome(loss, {"accuracy": accuracy, "queue_filled": filled / len(self.queue)}, candidates.log())

    @torch.no_grad()
    def keys(self, view: Tensor, index: Tensor) -> Tensor:
        """Keys of the global batch (B, P), of length 1, from this device's views of it; `index` (B,) is that of all."""
        if not self._shuffles():
            return self.gather(self._key(view))
        draw = Draw(0, self.queue.count, index, 0, "shuffle")  # another order in each step, the same on every device
        order = draw.bits(1)[:, 0].argsort(stable=True)  # (B,)
        own = order.tensor_split(devices.world_size())[devices.rank()]
        return self.gather(self._key(self.gather(view)[own]))[order.argsort()]

    def _key(self, view: Tensor) -> Tensor:
        z = self.teacher_projector(self.through(self.teacher, view))
        return F.normalize(z.to(self.queue.rows.dtype), dim=1)

    def _shuffles(self) -> bool:
        several = self.groups > 1 or self.pieces > 1
        several = several or (devices.world_size() > 1 and norm.has_own_batch_norm(self.teacher))
        return self.shuffle_keys and several  # within one group an order changes nothing

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def outlook(self) -> str:
        size = len(self.queue)
        steps = math.ceil(size / (self.run.global_batch_size * (1 + self.symmetric)))
        return f"loss at chance level {math.log(1 + size):.3f} once the queue of {size:,} is full (steps: {steps})"

    def begin(self, run: Begin) -> None:
        super().begin(run)
        if self.groups % run.world_size and self.groups > 1:
            raise UserError(
                f"model.split_batch_norm={self.groups} groups of the global batch do not divide among {run.world_size} "
                f"devices; use a multiple of {run.world_size}, or 1 for batch statistics that are not split"
            )
        groups = max(1, self.groups // run.world_size)
        for rows in run.shares:
            if rows % groups or (self.groups > 1 and rows == groups):
                raise UserError(
                    f"model.split_batch_norm={self.groups}: a device's {rows} samples do not divide into {groups} "
                    "equal groups of at least 2; change batch_size or model.split_batch_norm (1: not split), and leave "
                    "out an incomplete last batch (loader.drop_last=true)"
                )
        if self.groups > 1 and groups % run.pieces:
            raise UserError(
                f"pieces={run.pieces} do not divide the {groups} groups of batch statistics that a device has by "
                f"model.split_batch_norm={self.groups}; choose one of both so that they do, or "
                "model.split_batch_norm=1: batch statistics are those of a piece in any case"
            )
        for network in (self, self.encoder, self.teacher):  # encoders see a piece, heads a device's whole share
            for module in network.modules():
                if isinstance(module, norm.SplitBatchNorm):
                    module.groups = groups if network is self else groups // run.pieces

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        if self.fresh_queue:
            state |= self.queue.state_dict(prefix="queue.")
        elif "queue.rows" in state and len(state["queue.rows"]) != len(self.queue):
            raise UserError(
                f"the checkpoint's queue holds {len(state['queue.rows']):,} keys, and model.queue_size="
                f"{len(self.queue)}; leave the size as it was, or start with an empty queue: add "
                "model.fresh_queue=true to the command that the run was started with"
            )
