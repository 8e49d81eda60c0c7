"""W-MSE: Ermolov, Siarohin, Sangineto & Sebe, "Whitening for self-supervised representation learning", ICML 2021.

arXiv 2007.06346. Projections are whitened over groups of the batch, so that they cannot collapse, and views are brought
together. No negatives, no teacher, no stop-gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from twoview.data.batches import Batch
from twoview.errors import UserError
from twoview.losses import SingularError, spread, w_mse
from twoview.model.base import Begin, Method, Outcome
from twoview.model.part.checks import check_count, lost_dimensions
from twoview.model.part.head import Projector
from twoview.optim.recipe import Recipe
from twoview.rng import Draw


class WMSE(Method):
    """Encoder and a narrow projector, a callable with the argument `in_dim`; two views or more.

    Each step puts the global batch `iterations` times into random groups of `group` samples, at least twice as many as
    the projection has dimensions.
    """

    views_needed = (2, None)
    steps: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        group: int = 128,
        iterations: int = 1,
    ) -> None:
        super().__init__(encoder, optimizer)
        self.projector = projector(in_dim=encoder.dim)
        check_count(iterations, "iterations", most=100)
        if group <= self.projector.out_dim:
            raise UserError(
                f"model.group={group} must be larger than model.projector.out_dim={self.projector.out_dim}, or the "
                "covariance of a group has no factor; the source takes twice as many"
            )
        self.group, self.iterations = group, iterations
        self.register_buffer("steps", torch.tensor(0))

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def begin(self, run: Begin) -> None:
        super().begin(run)
        if run.global_batch_size % self.group:
            raise UserError(f"batch_size={run.global_batch_size} must be a multiple of model.group={self.group}")
        if (run.last_batch or 0) % self.group:
            raise UserError(
                f"loader.drop_last=false leaves a last batch of {run.last_batch}, which is no multiple of "
                f"model.group={self.group}: set it to true"
            )

    def step(self, batch: Batch) -> Outcome:
        z = [self.gather(self.projector(self.through(self.encoder, view))) for view in batch.views]  # V (N, P)
        numbers = torch.arange(self.iterations * len(z[0]), device=z[0].device)  # the same draw on every device
        draw = Draw(0, self.steps, numbers, 0, "groups").bits(1).view(self.iterations, -1)
        self.steps += 1
        try:
            loss = w_mse(z, draw.argsort(dim=1, stable=True), self.group)
        except SingularError as error:
            raise lost_dimensions(error, self.global_step) from error
        return Outcome(loss, {"spread": spread(z[0])}, loss.new_full((), 2.0))
