"""What an augmentation is: parameters that are sampled per sample, and their application to a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twoview.errors import UserError
from twoview.rng import Draw

Params = dict[str, Tensor]
Plan = tuple[Params, Tensor | None]


class BatchAugment:
    """One augmentation of a batch, applied to each sample with probability `p`.

    Subclasses override two methods and nothing else: `sample`, which draws parameters, and `apply`, which uses them.
    """

    def __init__(self, p: float = 1.0) -> None:
        if not 0 <= p <= 1:
            raise UserError(f"{type(self).__name__}: the probability p must lie in [0, 1], not {p}")
        self.p = p

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """Parameters of `n` samples of `shape` (images: C, H, W): a dict of tensors whose first dimension is `n`."""
        raise NotImplementedError

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """Augments every row of `images`, float (B, C, H, W) in [0, 1], with its row of `params`."""
        raise NotImplementedError

    def plan(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Plan:
        """What `sample` gives, and which of the `n` samples the probability picks: bool (n,), None for all."""
        chosen = None if self.p == 1 else draw.of(f"{draw.stream}/p").uniform(1)[:, 0] < self.p
        return self.sample(draw, n, shape), chosen

    def act(self, images: Tensor, plan: Plan) -> Tensor:
        """Augments the rows that the probability picks; the others come back as they were."""
        params, chosen = plan
        if chosen is None:
            return self.apply(images, params)
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            # Shapes that depend on the data would make the host wait for the device.
            return torch.where(chosen[:, None, None, None], self.apply(images, params), images)
        rows = chosen.nonzero()[:, 0]
        changed = self.apply(images[rows], {name: value[rows] for name, value in params.items()})
        return images.index_copy(0, rows, changed)

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        return self.act(images, self.plan(draw, len(images), tuple(images.shape[1:])))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in vars(self).items())})"


def check_range(name: str, value: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """`value` as an ordered pair within [low, high]; a UserError that names it otherwise."""
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise UserError(f"{name} must be two numbers, smaller first, within [{low}, {high}], not {list(value)}")
    return float(value[0]), float(value[1])
