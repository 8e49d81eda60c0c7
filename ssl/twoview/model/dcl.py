"""DCL and DCLW: Yeh, Hong, Hsu, Liu, Chen & LeCun, "Decoupled contrastive learning", ECCV 2022.

arXiv 2110.06848. SimCLR whose softmax does not have the positive among its candidates, so that pairs which are told
apart already keep their gradient: a gain in small batches and at low temperatures.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from twoview.data.batches import Batch
from twoview.losses import decoupled_contrast
from twoview.model.base import Method, Outcome
from twoview.model.part.checks import check_temperature
from twoview.model.part.head import Projector
from twoview.optim.recipe import Recipe


class DCL(Method):
    """Encoder, projector (a callable with the argument `in_dim`) and the loss at `temperature`.

    `sigma` makes it DCLW: pairs that are far apart weigh more, the more so the smaller it is; the paper's is 0.5.
    """

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        temperature: float = 0.1,
        sigma: float | None = None,
    ) -> None:
        super().__init__(encoder, optimizer)
        self.projector = projector(in_dim=encoder.dim)
        self.temperature = check_temperature(temperature)
        self.sigma = None if sigma is None else check_temperature(sigma, "sigma")

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def step(self, batch: Batch) -> Outcome:
        z = self.projector(self.through(self.encoder, torch.cat(batch.views)))  # (2B, P) shared batch statistics
        z1, z2 = (self.gather(view) for view in z.chunk(2))  # (N, P) each
        loss, accuracy = decoupled_contrast(z1, z2, self.temperature, self.sigma)
        chance = loss.new_full((), math.log(2 * len(z1) - 2))
        return Outcome(loss, {"accuracy": accuracy}, chance)
