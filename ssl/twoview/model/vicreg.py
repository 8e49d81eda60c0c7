"""VICReg: Bardes, Ponce & LeCun, "VICReg: Variance-invariance-covariance regularization for self-supervised learning",
ICLR 2022.

arXiv 2105.04906. Views agree; every dimension of the projection varies over the batch, and no two vary together. No
negatives, no teacher, no stop-gradient, and z is not normalised.
"""

from collections.abc import Callable

from torch import nn

from twoview.data.batches import Batch
from twoview.losses import spread, vicreg
from twoview.model.base import Begin, Method, Outcome
from twoview.model.part.checks import STATISTICS, check_weight
from twoview.model.part.head import Projector
from twoview.optim.recipe import Recipe


class VICReg(Method):
    """Encoder and a wide projector, a callable with the argument `in_dim`, and the weights of the three terms."""

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        super().__init__(encoder, optimizer)
        self.projector = projector(in_dim=encoder.dim)
        self.invariance = check_weight(invariance, "invariance")
        self.variance, self.covariance = check_weight(variance, "variance"), check_weight(covariance, "covariance")

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def begin(self, run: Begin) -> None:
        super().begin(run)
        run.need(*STATISTICS)

    def step(self, batch: Batch) -> Outcome:
        z1, z2 = (self.gather(self.projector(self.through(self.encoder, v))) for v in batch.views)  # (N, P) each
        loss, *terms = vicreg(z1, z2, self.invariance, self.variance, self.covariance)
        numbers = {"invariance": terms[0], "variance": terms[1], "covariance": terms[2]}
        return Outcome(loss, {name: term.detach() for name, term in numbers.items()} | {"spread": spread(z1)})
