"""BYOL: Grill et al., "Bootstrap your own latent: a new approach to self-supervised learning", NeurIPS 2020.

arXiv 2006.07733. A network predicts from one view what a slowly moving copy of itself, the teacher, makes of the other.
There are no negatives.
"""

from collections.abc import Callable

import torch
from torch import nn

from twoview.data.batches import Batch
from twoview.losses import negative_cosine, spread
from twoview.model.base import Method, Outcome
from twoview.model.part.head import Projector
from twoview.model.part.momentum import Momentum, follow, frozen_copy
from twoview.optim.recipe import Recipe


class BYOL(Method):
    """Encoder, projector and predictor (the student), and a teacher of encoder and projector.

    The loss adds up both directions: 4 for predictions at random, 0 at best, and 0 for a network that maps all samples
    to one point, so `spread` is logged beside it. The teacher follows after each step of the optimizer, with a momentum
    that goes from `momentum` to `momentum_end` by half a cosine (`None`: constant).
    """

    teacher: nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        predictor: Callable[..., Projector],
        momentum: float = 0.99,
        momentum_end: float | None = 1.0,
    ) -> None:
        super().__init__(encoder, optimizer)
        self.projector = projector(in_dim=encoder.dim)
        self.predictor = predictor(in_dim=self.projector.out_dim, out_dim=self.projector.out_dim)
        self.teacher, self.teacher_projector = frozen_copy(self.encoder), frozen_copy(self.projector)
        self.momentum = Momentum(momentum, momentum_end)

    def step(self, batch: Batch) -> Outcome:
        # Each view passes by itself, with batch statistics of its own, as in the authors' code.
        z1, z2 = (self.projector(self.through(self.encoder, view)) for view in batch.views)  # (B, P)
        p1, p2 = self.gather(self.predictor(z1)), self.gather(self.predictor(z2))  # (B, P)
        with torch.no_grad():
            t1, t2 = (self.gather(self.teacher_projector(self.through(self.teacher, view))) for view in batch.views)
        loss = 4 + 2 * (negative_cosine(p1, t2) + negative_cosine(p2, t1))
        return Outcome(loss, {"spread": spread(t1)})

    def after_step(self) -> None:
        follow(self.teacher, self.encoder, self.momentum.at(self.progress))
        follow(self.teacher_projector, self.projector, self.momentum.at(self.progress))

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector, "predictor": self.predictor}
