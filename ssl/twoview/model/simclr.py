"""SimCLR: Chen, Kornblith, Norouzi & Hinton, "A simple framework for contrastive learning of visual representations",
ICML 2020.

arXiv 2002.05709. Two views of a sample are pulled together and away from all other views of the batch, in the space
of a projection head that is thrown away afterwards.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from twoview.data.batches import Batch
from twoview.errors import UserError
from twoview.losses import nt_xent_contrast
from twoview.model.base import Method, Outcome, check_chunk
from twoview.optim.recipe import Recipe


class SimCLR(Method):
    """Encoder f, projector g and NT-Xent at `temperature`.

    `projector` makes the head from the width of h: a callable with the argument `in_dim`. `chunk`: rows of the
    similarity matrix held at once, `None` all 2B.
    """

    reads_share = True

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., nn.Module],
        temperature: float = 0.5,
        chunk: int | None = None,
    ) -> None:
        super().__init__(encoder, optimizer)
        if not 0 < temperature < math.inf:
            raise UserError(f"model.temperature must be positive, not {temperature}")
        self.projector = projector(in_dim=encoder.dim)
        self.temperature = temperature
        self.chunk = check_chunk(chunk)

    def step(self, batch: Batch) -> Outcome:
        h = self.through(self.encoder, torch.cat(batch.views))  # (2B, D) both views share the batch statistics
        z = self.projector(h)  # (2B, P)
        z1, z2 = (self.gather(view) for view in z.chunk(2))  # (B, P) each
        share = None if batch.share is None else self.gather(batch.share)  # (B,)
        loss, accuracy = nt_xent_contrast(z1, z2, self.temperature, share=share, chunk=self.chunk)
        return Outcome(loss, {"accuracy": accuracy}, loss.new_full((), math.log(2 * len(z1) - 1)))

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def outlook(self) -> str:
        return f"loss at chance level {math.log(2 * self.run.global_batch_size - 1):.3f}"
