"""CorInfoMax: Ozsoy, Hamdan, Arik, Yuret & Erdogan, "Self-supervised learning with an information maximization
criterion", NeurIPS 2022.

arXiv 2209.07999. Views agree, while the log-determinant of a running covariance keeps projections spread over all their
dimensions. No negatives, no teacher, no stop-gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from twoview.data.batches import Batch
from twoview.losses import Moments, SingularError, cor_info_max, spread
from twoview.model.base import Begin, Method, Outcome
from twoview.model.part.checks import STATISTICS, check_weight, lost_dimensions
from twoview.model.part.head import Projector
from twoview.optim.recipe import Recipe


class CorInfoMax(Method):
    """Encoder and a narrow projector, a callable with the argument `in_dim`; the running mean and covariance of each of
    the two views' unit projections.

    `weight` is that of invariance against information; `forgetting` the share of the old moments in the new; `eps` is
    added to the covariances' diagonal.
    """

    mean: Tensor
    covariance: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        weight: float = 250.0,
        forgetting: float = 0.01,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(encoder, optimizer)
        self.projector = projector(in_dim=encoder.dim)
        self.weight, self.forgetting = check_weight(weight, "weight"), check_weight(forgetting, "forgetting", 1)
        self.eps = check_weight(eps, "eps")
        dim = self.projector.out_dim
        self.register_buffer("mean", torch.zeros(2, dim))
        self.register_buffer("covariance", torch.eye(dim).repeat(2, 1, 1))

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def begin(self, run: Begin) -> None:
        super().begin(run)
        run.need(*STATISTICS)

    def step(self, batch: Batch) -> Outcome:
        z1, z2 = (self.gather(self.projector(self.through(self.encoder, v))) for v in batch.views)  # (N, P) each
        before = [Moments(*moments) for moments in zip(self.mean, self.covariance, strict=True)]
        try:
            found = cor_info_max(z1, z2, before, self.weight, self.forgetting, self.eps)
        except SingularError as error:
            raise lost_dimensions(error, self.global_step) from error
        for view, moments in enumerate(found.moments):
            self.mean[view], self.covariance[view] = moments
        numbers = {"information": found.information.detach(), "invariance": found.invariance.detach()}
        return Outcome(found.loss, numbers | {"spread": spread(z1)})
