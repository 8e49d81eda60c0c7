"""Views of several sizes: those of one size go through a network together."""

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor


def by_size(network: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    """`network` of each view (B, ...), in their order; neighbours of one shape in one pass, and with one batch
    statistic, as SwAV and DINO have it.
    """
    found: list[Tensor] = []
    for _, group in groupby(views, key=lambda view: view.shape):
        alike = list(group)
        found += network(torch.cat(alike)).chunk(len(alike))
    return found


def count_global(views: Sequence[Tensor]) -> int:
    """How many views are global: those at the start that have the first one's size."""
    return next((i for i, view in enumerate(views) if view.shape != views[0].shape), len(views))
