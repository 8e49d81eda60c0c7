"""What an augmentation is, and the one seam of the project: a batch of samples becomes two views.

Parameters are sampled apart from being applied, per sample, from counter-based random numbers (`twoview.rng`). So a
view is a pure function of (seed, epoch, sample index, view number) and the policy: the same for any batch size,
worker count or number of devices, and it can be shown again at any time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twoview.errors import UserError
from twoview.rng import Draw

Params = dict[str, Tensor]


class BatchAugment:
    """One augmentation of a batch, applied to each sample with probability `p`.

    Subclasses override two methods and nothing else: `sample`, which draws parameters, and `apply`, which uses them.
    """

    def __init__(self, p: float = 1.0) -> None:
        if not 0 <= p <= 1:
            raise UserError(f"{type(self).__name__}: the probability p must lie in [0, 1], not {p}")
        self.p = p

    def sample(self, draw: Draw, n: int, size: tuple[int, int]) -> Params:
        """Parameters of `n` samples of height and width `size`: a dict of tensors whose first dimension is `n`."""
        raise NotImplementedError

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """Augments every row of `images`, float (B, C, H, W) in [0, 1], with its row of `params`."""
        raise NotImplementedError

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        """Augments the rows that the probability picks; the others come back as they were."""
        params = self.sample(draw, len(images), (images.shape[-2], images.shape[-1]))
        if self.p == 1:
            return self.apply(images, params)
        chosen = draw.of(f"{draw.stream}/p").uniform(1)[:, 0] < self.p  # (B,)
        if images.device.type != "cpu":  # shapes that depend on the data would make the host wait for the device
            return torch.where(chosen[:, None, None, None], self.apply(images, params), images)
        rows = chosen.nonzero()[:, 0]
        changed = self.apply(images[rows], {name: value[rows] for name, value in params.items()})
        return images.index_copy(0, rows, changed)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in vars(self).items())})"


class TwoViews(nn.Module):
    """Turns a batch of images into two independently augmented, normalised views.

    Args: ops: the policy, augmentations by name in the order of application. The name is also the random stream of
        the operation. mean, std: per channel, of pixels in [0, 1]; normalisation always comes last. seed: with the
        epoch, index and view number it decides every random number. strength: the paper's s, recorded for reference:
        policies hand it to their colour jitter by interpolation. second: operations that replace those of the same
        name in the second view (`None` drops one), for methods with asymmetric policies (BYOL, MoCo v3).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        ops: Mapping[str, BatchAugment],
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
        strength: float | None = None,
        second: Mapping[str, BatchAugment | None] | None = None,
    ) -> None:
        super().__init__()
        self.strength = strength
        self.policies = (_policy(ops, {}), _policy(ops, second or {}))
        self.seed = seed
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """`images` (B, C, H, W), uint8 or float in [0, 1]; `index` (B,) sample numbers. Returns two float32 (B, C,
        H', W').
        """
        if images.shape[1] != len(self.mean):
            raise ValueError(f"images of {images.shape[1]} channels, but mean and std of {len(self.mean)}")
        if self.policies[0] == self.policies[1]:  # one pass over both views
            view = torch.arange(2, device=index.device).repeat_interleave(len(index))  # (2B,)
            both = self.augment(images.repeat(2, 1, 1, 1), index.repeat(2), epoch, view, self.policies[0])
            first, second = self.normalize(both).chunk(2)
            return first, second
        first, second = (
            self.normalize(self.augment(images, index, epoch, v, ops)) for v, ops in enumerate(self.policies)
        )
        return first, second

    def augment(
        self, images: Tensor, index: Tensor, epoch: int, view: Tensor | int, ops: Mapping[str, BatchAugment]
    ) -> Tensor:
        """One view of each row before normalisation: float32 in [0, 1]."""
        x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        draw = Draw(self.seed, epoch, index, view)
        with torch.autocast(x.device.type, enabled=False):  # the same views wherever they are made
            for name, op in ops.items():
                x = op(x, draw.of(name))
        return x

    def normalize(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _policy(ops: Mapping[str, BatchAugment], replaced: Mapping[str, Any]) -> dict[str, BatchAugment]:
    unknown = set(replaced) - set(ops)
    if unknown:
        raise UserError(
            f"augment.second names {', '.join(sorted(unknown))}, which the policy lacks; "
            f"it has {', '.join(ops) or 'no operations'}"
        )
    return {name: op for name, op in (dict(ops) | dict(replaced)).items() if op is not None}


def check_range(name: str, value: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """`value` as an ordered pair within [low, high]; a UserError that names it otherwise."""
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise UserError(f"{name} must be two numbers, smaller first, within [{low}, {high}], not {list(value)}")
    return float(value[0]), float(value[1])
