"""NNCLR: Dwibedi, Aytar, Tompson, Sermanet & Zisserman, "With a little help from my friends: nearest-neighbor
contrastive learning of visual representations", ICCV 2021.

arXiv 2104.14548. The positive of a view is not the other view but the nearest neighbour of that among earlier samples,
so that positives differ by more than augmentation.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from twoview.data.batches import Batch
from twoview.losses import nearest_contrast
from twoview.model.base import Method, Outcome
from twoview.model.part.checks import check_temperature
from twoview.model.part.head import Projector
from twoview.model.part.memory import Queue
from twoview.optim.recipe import Recipe


class NNCLR(Method):
    """Encoder, projector, predictor, and a queue of `queue_size` projections of first views (at first random).

    `projector` and `predictor` are callables with the argument `in_dim`. Of the neighbours, `neighbour_similarity` is
    the mean cosine with what looks for them (1: copies) and `neighbour_itself` the share that are the image itself, as
    it was an epoch ago: with a queue as long as the data set most of them are.
    """

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        predictor: Callable[..., Projector],
        temperature: float = 0.1,
        queue_size: int = 8192,
    ) -> None:
        super().__init__(encoder, optimizer)
        self.projector = projector(in_dim=encoder.dim)
        self.predictor = predictor(in_dim=self.projector.out_dim, out_dim=self.projector.out_dim)
        self.temperature = check_temperature(temperature)
        self.queue = Queue(queue_size, self.projector.out_dim, random=True)

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector, "predictor": self.predictor}

    def step(self, batch: Batch) -> Outcome:
        own = [self.projector(self.through(self.encoder, view)) for view in batch.views]  # 2 (B, P)
        p1, p2 = (self.gather(self.predictor(view)) for view in own)  # (N, P) each
        z1, z2 = (self.gather(view.detach()) for view in own)
        index = self.gather(batch.index)  # (N,)
        halves = [nearest_contrast(z, p, self.queue.rows, self.temperature) for z, p in ((z1, p2), (z2, p1))]
        itself = torch.cat([self.queue.index[half.neighbour] == index for half in halves]).float().mean()
        self.queue.add(z1, index)  # after the look-up: no row is its own neighbour
        loss, accuracy, similarity = (torch.stack(values).mean() for values in list(zip(*halves, strict=True))[:3])
        numbers = {"accuracy": accuracy, "neighbour_similarity": similarity, "neighbour_itself": itself}
        return Outcome(loss, numbers, loss.new_full((), math.log(len(index))))
