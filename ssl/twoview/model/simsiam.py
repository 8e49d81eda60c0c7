"""SimSiam: Chen & He, "Exploring simple Siamese representation learning", CVPR 2021.

arXiv 2011.10566. A predictor turns the projection of one view towards that of the other, which is held fixed. There are
no negatives and no teacher: the stop-gradient alone keeps the network from mapping everything to one point.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from twoview.data.batches import Batch
from twoview.losses import negative_cosine, spread
from twoview.model.base import Method, Outcome
from twoview.model.part.head import Projector
from twoview.optim.recipe import Recipe
from twoview.optim.role import Role


class SimSiam(Method):
    """Encoder, projector and predictor. `projector` and `predictor` make heads from the width of what they get:
    callables with the argument `in_dim`.

    With more than two views (FastSiam, arXiv 2209.05185, has four) each one's target is the mean projection of the
    others. `constant_predictor_lr`: the predictor keeps the peak learning rate to the end, so that it adapts to the
    latest projections (appendix B).
    """

    views_needed = (2, None)

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        predictor: Callable[..., Projector],
        constant_predictor_lr: bool = True,
    ) -> None:
        super().__init__(encoder, optimizer)
        self.projector = projector(in_dim=encoder.dim)
        self.predictor = predictor(in_dim=self.projector.out_dim, out_dim=self.projector.out_dim)
        self.constant_predictor_lr = constant_predictor_lr

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector, "predictor": self.predictor}

    def roles(self) -> Sequence[Role]:
        return [Role(list(self.predictor.parameters()), constant=self.constant_predictor_lr)]

    def step(self, batch: Batch) -> Outcome:
        z = [self.projector(self.through(self.encoder, view)) for view in batch.views]  # V (B, P): own statistics each
        p = [self.gather(self.predictor(view)) for view in z]  # V (N, P)
        target = torch.stack([self.gather(view.detach()) for view in z])  # (V, N, P)
        others = (target.sum(dim=0) - target) / (len(z) - 1)  # (V, N, P) the mean of the other views
        loss = torch.stack([negative_cosine(a, b) for a, b in zip(p, others, strict=True)]).mean()
        return Outcome(loss, {"spread": spread(target[0])})
