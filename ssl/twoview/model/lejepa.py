"""LeJEPA: Balestriero & LeCun, "LeJEPA: Provable and scalable self-supervised learning without the heuristics", 2025.

arXiv 2511.08544. Views agree, and along random directions every view's projections have the distribution of a standard
Gaussian. No negatives, no teacher, no stop-gradient, no predictor, and z is not normalised.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from twoview.data.batches import Batch
from twoview.errors import UserError
from twoview.losses import lejepa, spread
from twoview.model.base import Begin, Method, Outcome
from twoview.model.part.checks import STATISTICS
from twoview.model.part.crops import by_size, count_global
from twoview.model.part.head import Projector
from twoview.optim.recipe import Recipe
from twoview.rng import Draw


class LeJEPA(Method):
    """Encoder and projector, a callable with the argument `in_dim`; two views or more, the global ones first.

    `weight` is that of SIGReg against invariance, `directions` how many it looks along, new ones in each step.
    """

    views_needed = (2, None)
    steps: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        weight: float = 0.05,
        directions: int = 256,
    ) -> None:
        super().__init__(encoder, optimizer)
        self.projector = projector(in_dim=encoder.dim)
        if not 0 <= weight <= 1 or directions < 1:
            raise UserError(
                f"model.weight must lie in [0, 1] and model.directions be at least 1, not {weight} and {directions}"
            )
        self.weight, self.directions = weight, directions
        self.register_buffer("steps", torch.tensor(0))

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def begin(self, run: Begin) -> None:
        super().begin(run)
        run.need(*STATISTICS)

    def step(self, batch: Batch) -> Outcome:
        z = by_size(lambda views: self.projector(self.through(self.encoder, views)), batch.views)  # V (B, P)
        z = [self.gather(view) for view in z]  # V (N, P)
        found = lejepa(z, self.sketch(z[0].shape[1]), count_global(batch.views), self.weight)
        numbers = {"invariance": found.invariance.detach(), "sigreg": found.sigreg.detach(), "spread": spread(z[0])}
        return Outcome(found.loss, numbers)

    def sketch(self, dim: int) -> Tensor:
        """Random directions (`dim`, M) of length 1, the same on every device and after a resumption."""
        draw = Draw(0, self.steps, torch.arange(dim, device=self.steps.device), 0, "directions")
        self.steps += 1
        u, v = draw.uniform(2 * self.directions).chunk(2, dim=1)  # (dim, M) each
        normal = (-2 * torch.log1p(-u)).sqrt() * (2 * math.pi * v).cos()
        return nn.functional.normalize(normal, dim=0)
