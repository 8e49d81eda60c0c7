"""Mixtures of pairs of samples, for contrastive learning with mixed targets.

i-Mix (Lee et al., ICLR 2021) and Un-Mix (Shen et al., AAAI 2022) mix images and let the loss pull a mixture towards
the positives of both its parts, in proportion. Neighbours in the batch, rows 2i and 2i + 1, are mixed with each other;
batches are shuffled, so neighbours are strangers.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from twoview.errors import UserError
from twoview.rng import Draw


class _PairMix:
    """What mixtures have in common: who is mixed with whom, and in which proportion.

    Called with views (B, ...) and the random numbers of the batch, it returns the mixtures and `share` (B,) float32:
    row i consists of `share[i]`, at least one half, of itself and for the rest of its neighbour, row i ^ 1.
    Both rows of a pair have the same share, from the random numbers of the even one. The last row of an odd batch stays
    as it is, with share 1.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        if not 0 < alpha < math.inf:
            raise UserError(f"{type(self).__name__}: alpha must be finite and above 0, not {alpha}")
        self.alpha = alpha
        self._larger_share = LargerShare(alpha)

    def __call__(self, images: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        if not images.is_floating_point():
            raise UserError(
                f"augment.mix: {type(self).__name__} mixes numbers, and these views hold codes ({images.dtype})"
            )
        n = len(images)
        own = torch.arange(n, device=images.device)
        neighbour = (own ^ 1).clamp(max=max(0, n - 1))  # (B,): a lone last row is its own neighbour
        view = draw.view[::2] if isinstance(draw.view, Tensor) else draw.view
        u = replace(draw, index=draw.index[::2], view=view).uniform64(3)  # (pairs, 3)
        u = u.repeat_interleave(2, dim=0)[:n]  # (B, 3), both rows of a pair alike
        mixed, share = self.mix(images, images[neighbour], self._larger_share(u[:, 0].contiguous()), u[:, 1:])
        return mixed, torch.where(neighbour == own, 1, share).float()

    def mix(self, images: Tensor, others: Tensor, share: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """`share` (B,) of `images` with the rest of `others`, and the exact shares. `u` (B, 2): uniform numbers."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}(alpha={self.alpha})"


class MixUp(_PairMix):
    """Pixels blended: share x + (1 - share) neighbour (Zhang et al., "mixup", ICLR 2018; as in i-Mix, the share is
    max(l, 1 - l) for l ~ Beta(`alpha`, `alpha`)).
    """

    def mix(self, images: Tensor, others: Tensor, share: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return torch.lerp(others, images, share.to(images.dtype).view(-1, *(1,) * (images.dim() - 1))), share


class CutMix(_PairMix):
    """A box exchanged between neighbours (Yun et al., "CutMix", ICCV 2019).

    The box has the image's shape and 1 - max(l, 1 - l) of its area, l ~ Beta(`alpha`, `alpha`); its centre is anywhere,
    what lies beyond the border is cut off, and the share is that of the box which is left. It is the same box in both
    images.
    """

    def mix(self, images: Tensor, others: Tensor, share: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        if images.dim() != 4:
            raise UserError(
                f"augment.mix: CutMix exchanges parts of images, and these views have {images.dim() - 1} dimensions"
            )
        cut, area = [], torch.ones_like(share)
        for i, side in enumerate(images.shape[-2:]):
            centre, half = torch.floor(u[:, i] * side), torch.floor(0.5 * side * torch.sqrt(1 - share))
            low, high = (centre - half).clamp(min=0)[:, None], (centre + half).clamp(max=side)[:, None]  # (B, 1)
            at = torch.arange(side, device=images.device)
            cut.append((at >= low) & (at < high))  # (B, H) or (B, W)
            area = area * (high - low)[:, 0]
        box = cut[0][:, None, :, None] & cut[1][:, None, None, :]  # (B, 1, H, W)
        return torch.where(box, others, images), 1 - area / (images.shape[-2] * images.shape[-1])


class LargerShare:
    """max(l, 1 - l) for l ~ Beta(`alpha`, `alpha`), from uniform numbers in [0, 1) by the inverse of its distribution
    function.

    The function is tabulated for the smaller share y in [0, 1/2] with the trapezoidal rule, on points that are uniform
    in (2 y)^min(alpha, 1): the density of that is bounded also where Beta's has a pole, at y = 0 for alpha below 1.
    """

    points = 4097

    def __init__(self, alpha: float) -> None:
        self.power = 1 / min(alpha, 1.0)
        at = torch.linspace(0, 1, self.points, dtype=torch.float64)  # (2 y)^(1 / power)
        twice = at**self.power  # 2 y
        density = torch.exp(torch.xlogy(alpha - 1, 2 - twice) + torch.xlogy(alpha - min(alpha, 1.0), twice))
        mass = torch.cumulative_trapezoid(density, at)
        self.below = torch.cat([mass.new_zeros(1), mass / mass[-1]])  # (points,) the distribution function

    def __call__(self, u: Tensor) -> Tensor:
        """float64 (B,) in [1/2, 1] from `u` (B,)."""
        below = self.below.to(u.device, non_blocking=True)
        cell = torch.searchsorted(below, u.contiguous(), right=True).clamp(1, self.points - 1)  # u is below this one
        low, high = below[cell - 1], below[cell]
        at = (cell - 1 + (u - low) / (high - low)) / (self.points - 1)
        return 1 - at.clamp(0, 1) ** self.power / 2
