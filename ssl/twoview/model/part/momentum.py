"""Teachers: copies of a network that follow it as a moving average of its weights."""

import copy
import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from twoview.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


def frozen_copy(network: Network) -> Network:
    """A copy whose parameters get no gradients, and which no optimizer touches."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- m teacher + (1 - m) student (arXiv 1911.05722, equation 2), of parameters only.

    Batch statistics are the teacher's own, from its own training passes.
    """
    own: list[Tensor] = [*teacher.parameters()]
    source: list[Tensor] = [*student.parameters()]
    if own:  # a head may have none
        torch._foreach_lerp_(own, source, 1 - momentum)


@dataclass(frozen=True)
class Momentum:
    """How slowly a teacher follows: from `start` to `end` by half a cosine over the run, constant if `end` is None.

    With `end` 1 this is the schedule of BYOL and MoCo v3.
    """

    start: float
    end: float | None

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise UserError(f"model.momentum must lie in [0, 1], not {self.start}")
        if self.end is not None and not 0 <= self.end <= 1:
            raise UserError(f"model.momentum_end must lie in [0, 1], or be null for a constant one, not {self.end}")

    def at(self, progress: float) -> float:
        """The momentum after a share `progress` of the steps."""
        if self.end is None:
            return self.start
        return self.end - (self.end - self.start) * (1 + math.cos(math.pi * progress)) / 2


def refuse_low_precision(module: nn.Module) -> None:
    """UserError for weights that are not float32: a moving average's small steps would be rounded away."""
    if any(torch.finfo(p.dtype).bits < 32 for p in module.parameters()):
        raise UserError(
            "the teacher moves by less than half-precision weights can tell apart; use trainer.precision=bf16-mixed "
            "or 16-mixed, which keep the weights in float32"
        )
