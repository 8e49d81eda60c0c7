"""MMCR: Yerxa, Kuang, Simoncelli & Chung, "Learning efficient coding of natural images with maximum manifold capacity
representations", NeurIPS 2023.

arXiv 2303.03307. The centroid of a sample's unit projections is long where its views agree, and the centroids of the
batch are to span as many directions as they can. No negatives, no teacher, no stop-gradient.
"""

from collections.abc import Callable

from torch import nn

from twoview.data.batches import Batch
from twoview.losses import mmcr, spread
from twoview.model.base import Begin, Method, Outcome
from twoview.model.part.checks import STATISTICS
from twoview.model.part.crops import by_size
from twoview.model.part.head import Projector
from twoview.optim.recipe import Recipe


class MMCR(Method):
    """Encoder and projector, a callable with the argument `in_dim`; two views or more, better many.

    `agreement` is the mean length of the centroids: 1 where all views of a sample agree.
    """

    views_needed = (2, None)

    def __init__(self, encoder: nn.Module, optimizer: Recipe, projector: Callable[..., Projector]) -> None:
        super().__init__(encoder, optimizer)
        self.projector = projector(in_dim=encoder.dim)

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def begin(self, run: Begin) -> None:
        super().begin(run)
        run.need(*STATISTICS)

    def step(self, batch: Batch) -> Outcome:
        z = by_size(lambda views: self.projector(self.through(self.encoder, views)), batch.views)  # V (B, P)
        loss, agreement = mmcr([self.gather(view) for view in z])
        return Outcome(loss, {"agreement": agreement, "spread": spread(self.gather(z[0].detach()))})
