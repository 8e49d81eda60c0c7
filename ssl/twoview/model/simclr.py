"""SimCLR: Chen, Kornblith, Norouzi & Hinton, "A simple framework for contrastive learning of visual representations",
ICML 2020.

arXiv 2002.05709. Two views of a sample are pulled together and away from all other views of the batch, in the space
of a projection head that is thrown away afterwards.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from twoview.errors import UserError
from twoview.losses.contrastive import Contrast, nt_xent_contrast
from twoview.model.base import ContrastiveModule, check_chunk
from twoview.optim.recipe import Recipe


class SimCLR(ContrastiveModule):
    """Encoder f, projector g and NT-Xent at `temperature`.

    `projector` makes the head from the width of h: a callable with the argument `in_dim`. `chunk`: rows of the
    similarity matrix held at once, `None` all 2B.
    """

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

    def contrast(self, v1: Tensor, v2: Tensor, index: Tensor, share: Tensor | None = None) -> Contrast:
        h = self.through(self.encoder, torch.cat([v1, v2]))  # (2B, D) both views share the batch statistics
        z = self.projector(h)  # (2B, P)
        z1, z2 = (self.gather(view) for view in z.chunk(2))  # (B, P) each
        share = None if share is None else self.gather(share)  # (B,)
        return nt_xent_contrast(z1, z2, self.temperature, share=share, chunk=self.chunk)

    def candidates(self) -> int:
        return 2 * self.global_batch_size - 1
