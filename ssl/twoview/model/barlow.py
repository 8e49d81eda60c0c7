"""Barlow Twins: Zbontar, Jing, Misra, LeCun & Deny, "Self-supervised learning via redundancy reduction", ICML 2021.

arXiv 2103.03230. Over a batch, each dimension of one view's projection correlates with the same one of the other view,
and with no other. No negatives, no teacher, no stop-gradient.
"""

from collections.abc import Callable, Sequence

from torch import nn

from twoview.data.batches import Batch
from twoview.losses import barlow_twins
from twoview.model.base import Begin, Method, Outcome
from twoview.model.part.checks import STATISTICS, check_weight
from twoview.model.part.head import Projector
from twoview.optim.recipe import Recipe
from twoview.optim.role import Role


class BarlowTwins(Method):
    """Encoder and a wide projector, a callable with the argument `in_dim`.

    `weight` is that of the off-diagonal terms. `scale` multiplies the loss, which matters to optimizers whose steps
    depend on the size of gradients (solo-learn has 0.1). `vector_lr`: the rate of biases and norms in units of that of
    weights (the authors' LARS: 0.0048 to 0.2).
    """

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        weight: float = 0.0051,
        scale: float = 1.0,
        vector_lr: float = 1.0,
    ) -> None:
        super().__init__(encoder, optimizer)
        self.projector = projector(in_dim=encoder.dim)
        self.weight, self.scale = check_weight(weight, "weight"), check_weight(scale, "scale")
        self.vector_lr = check_weight(vector_lr, "vector_lr")

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def roles(self) -> Sequence[Role]:
        return [] if self.vector_lr == 1 else [Role([p for p in self.parameters() if p.ndim <= 1], lr=self.vector_lr)]

    def begin(self, run: Begin) -> None:
        super().begin(run)
        run.need(*STATISTICS)

    def step(self, batch: Batch) -> Outcome:
        z1, z2 = (self.gather(self.projector(self.through(self.encoder, v))) for v in batch.views)  # (N, P) each
        loss, on, off = barlow_twins(z1, z2, self.weight)
        n, d = z1.shape
        chance = loss.new_full((), self.scale * (d + self.weight * d * (d - 1) / n))
        return Outcome(self.scale * loss, {"invariance": on.detach(), "redundancy": off.detach()}, chance)
