"""Prototypes: the K directions with which SwAV and DINO compare a projection."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """z (N, `dim`) of any length -> its cosines (N, `count`) with unit vectors, in float32 at least.

    Only the directions of `weight` (K, D) count, which is a weight-normed linear layer whose gain is fixed at 1. At
    temperature 0.04 the rounding of a cosine in half precision would change a logit by 0.1.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            z, weight = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (z, self.weight))
            return F.normalize(z, dim=1) @ F.normalize(weight, dim=1).T  # (N, K)

    @torch.no_grad()
    def normalise(self) -> None:
        """Brings the weights back to length 1: longer ones turn more slowly under the same gradient."""
        self.weight.copy_(F.normalize(self.weight, dim=1))
