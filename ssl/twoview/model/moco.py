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

from twoview.errors import UserError
from twoview.losses.contrastive import Contrast, info_nce_contrast
from twoview.model.base import ContrastiveModule, check_chunk
from twoview.model.part.head import Projector
from twoview.model.part.momentum import check_momentum, follow, frozen_copy, momentum_at, refuse_low_precision
from twoview.optim.recipe import Recipe
from twoview.parallel import devices, norm
from twoview.rng import Draw


class MoCo(ContrastiveModule):
    """Query encoder and head, key encoder and head that follow them with `momentum`, and a queue of `queue_size` keys.

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

    queue: Tensor
    queue_index: Tensor
    queue_count: Tensor

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
        if queue_size < 1:
            raise UserError(f"model.queue_size must be at least 1, not {queue_size}")
        check_momentum(momentum, momentum_end)
        if split_batch_norm < 1:
            raise UserError(f"model.split_batch_norm must be at least 1 group, not {split_batch_norm}")
        self.projector = projector(in_dim=encoder.dim)
        if split_batch_norm > 1:
            for network in (self.encoder, self.projector):
                norm.split_batch_norm(network, split_batch_norm)
        self.key_encoder, self.key_projector = frozen_copy(self.encoder), frozen_copy(self.projector)
        self.temperature = temperature
        self.momentum, self.momentum_end = momentum, momentum_end
        self.symmetric, self.mask_same_image = symmetric, mask_same_image
        self.groups, self.shuffle_keys = split_batch_norm, shuffle_keys
        self.fresh_queue = fresh_queue
        self.chunk = check_chunk(chunk)
        self.register_buffer("queue", torch.zeros(queue_size, self.projector.out_dim))  # keys of length 1
        self.register_buffer("queue_index", torch.full((queue_size,), -1))  # their samples; -1: an empty slot
        self.register_buffer("queue_count", torch.tensor(0))  # keys that ever went in

    def contrast(self, v1: Tensor, v2: Tensor, index: Tensor, share: Tensor | None = None) -> Contrast:
        momentum = momentum_at(self.progress, self.momentum, self.momentum_end)
        follow(self.key_encoder, self.encoder, momentum)  # first the step, then the keys
        follow(self.key_projector, self.projector, momentum)
        index = self.gather(index)  # (B,)
        share = None if share is None else self.gather(share)  # (B,)
        negatives, owners = self.queue.clone(), self.queue_index.clone()  # (K, P), (K,) as they were before this step

        def excluded(rows: slice) -> Tensor:
            empty = (owners < 0)[None]  # (1, K)
            return empty | (owners == index[rows, None]) if self.mask_same_image else empty  # (rows, K)

        halves, keys = [], []
        for view, other in ((v1, v2), (v2, v1)) if self.symmetric else ((v1, v2),):
            query = self.gather(self.projector(self.through(self.encoder, view)))  # (B, P)
            key = self.keys(other, index)  # (B, P)
            halves.append(info_nce_contrast(query, key, negatives, self.temperature, excluded, share, chunk=self.chunk))
            keys.append(key)
        self.enqueue(torch.cat(keys), index.repeat(len(keys)))  # after both halves: no query meets its own key in it
        return Contrast(*(torch.stack(values).mean() for values in zip(*halves, strict=True)))

    @torch.no_grad()
    def keys(self, view: Tensor, index: Tensor) -> Tensor:
        """Keys of the global batch (B, P), of length 1, from this device's views of it; `index` (B,) is that of all."""
        if not self._shuffles():
            return self.gather(self._key(view))
        draw = Draw(0, self.queue_count, index, 0, "shuffle")  # another order in each step, the same on every device
        order = draw.bits(1)[:, 0].argsort(stable=True)  # (B,)
        own = order.tensor_split(devices.world_size())[devices.rank()]
        return self.gather(self._key(self.gather(view)[own]))[order.argsort()]

    def _key(self, view: Tensor) -> Tensor:
        z = self.key_projector(self.through(self.key_encoder, view))
        return F.normalize(z.to(self.queue.dtype), dim=1)

    def _shuffles(self) -> bool:
        several = self.groups > 1 or (devices.world_size() > 1 and norm.has_own_batch_norm(self.key_encoder))
        return self.shuffle_keys and several  # within one group an order changes nothing

    @torch.no_grad()
    def enqueue(self, keys: Tensor, index: Tensor) -> None:
        """Puts `keys` (n, P) of the samples `index` (n,) in the place of the n oldest; of n > K, the last K."""
        size, n = len(self.queue), len(keys)
        slots = (self.queue_count + torch.arange(max(0, n - size), n, device=keys.device)) % size
        self.queue[slots] = keys[-size:]
        self.queue_index[slots] = index[-size:]
        self.queue_count += n

    def candidates(self) -> Tensor:
        """The key, that of the neighbour in mixtures, and as many negatives as are in the queue by now."""
        return 1 + self.mixed + self.queue_count.clamp(max=len(self.queue))

    def outlook(self) -> str:
        size = len(self.queue)
        steps = math.ceil(size / (self.global_batch_size * (1 + self.symmetric)))
        return f"loss at chance level {math.log(1 + size):.3f} once the queue of {size:,} is full (steps: {steps})"

    def check_share(self, rows: int, world_size: int) -> None:
        if self.groups % world_size and self.groups > 1:
            raise UserError(
                f"model.split_batch_norm={self.groups} groups of the global batch do not divide among {world_size} "
                f"devices; use a multiple of {world_size}, or 1 for batch statistics that are not split"
            )
        groups = max(1, self.groups // world_size)
        if rows % groups or (self.groups > 1 and rows == groups):
            raise UserError(
                f"model.split_batch_norm={self.groups}: a device's {rows} samples do not divide into {groups} equal "
                f"groups of at least 2; change batch_size or model.split_batch_norm (1: not split), and leave out an "
                f"incomplete last batch (loader.drop_last=true)"
            )

    def setup(self, stage: str) -> None:
        for module in self.modules():
            if isinstance(module, norm.SplitBatchNorm):
                module.groups = self.groups // self.trainer.world_size

    def on_fit_start(self) -> None:
        refuse_low_precision(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        if self.fresh_queue:
            for name in ("queue", "queue_index", "queue_count"):
                state[name] = getattr(self, name)
        elif "queue" in state and len(state["queue"]) != len(self.queue):
            raise UserError(
                f"the checkpoint's queue holds {len(state['queue']):,} keys, and model.queue_size={len(self.queue)}; "
                "leave the size as it was, or start with an empty queue: model=moco model.fresh_queue=true"
            )
