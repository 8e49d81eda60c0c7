"""Networks that follow another one as a moving average of its weights: the key encoders of MoCo."""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from twoview.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


def frozen_copy(network: Network) -> Network:
    """A copy whose parameters get no gradients, and which no optimizer touches."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(follower: nn.Module, leader: nn.Module, momentum: float) -> None:
    """follower <- m follower + (1 - m) leader (arXiv 1911.05722, equation 2), of parameters only.

    Batch statistics are the follower's own, from its own training passes.
    """
    own: list[Tensor] = [*follower.parameters()]
    source: list[Tensor] = [*leader.parameters()]
    if own:  # a head may have none
        torch._foreach_lerp_(own, source, 1 - momentum)


def momentum_at(progress: float, start: float, end: float | None) -> float:
    """The momentum after a share `progress` of the steps: half a cosine from `start` to `end` (`None`: constant).

    With `end` 1 this is the schedule of BYOL and MoCo v3.
    """
    if end is None:
        return start
    return end - (end - start) * (1 + math.cos(math.pi * progress)) / 2


def check_momentum(momentum: float, end: float | None) -> None:
    if not 0 <= momentum <= 1:
        raise UserError(f"model.momentum must lie in [0, 1], not {momentum}")
    if end is not None and not 0 <= end <= 1:
        raise UserError(f"model.momentum_end must lie in [0, 1], or be null for a constant one, not {end}")


def refuse_low_precision(module: nn.Module) -> None:
    """UserError for weights that are not float32: a moving average's small steps would be rounded away."""
    if any(torch.finfo(p.dtype).bits < 32 for p in module.parameters()):
        raise UserError(
            "the key encoder moves by less than half-precision weights can tell apart; "
            "use trainer.precision=bf16-mixed or 16-mixed, which keep the weights in float32"
        )
