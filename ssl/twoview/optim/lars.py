"""LARS, layer-wise adaptive rate scaling, in the form of SimCLR's TensorFlow code."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from twoview.errors import UserError


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman & Ginsburg, arXiv 1708.03888), in the form of SimCLR's TensorFlow
    code.

    g <- g + wd w;  v <- momentum v + lr trust g;  w <- w - v,  with trust = `eta` |w| / |g|, or 1 where either norm
    is 0. The learning rate is inside the momentum buffer. Groups with `adapt=False` (biases and norms) keep trust 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        adapt: bool = True,
    ) -> None:
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0 or not 0 < eta < math.inf:
            raise UserError(
                f"LARS needs lr >= 0, 0 <= momentum < 1, weight_decay >= 0 and finite eta > 0, "
                f"not {lr}, {momentum}, {weight_decay} and {eta}"
            )
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": adapt}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; `closure` as in torch.optim. No norm is read back by the host."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if not weights:
                continue
            gradients = torch._foreach_add([w.grad for w in weights], weights, alpha=group["weight_decay"])
            if group["adapt"]:
                w_norms, g_norms = (torch.stack(torch._foreach_norm(x)) for x in (weights, gradients))  # (n,) each
                trust = torch.where((w_norms > 0) & (g_norms > 0), group["eta"] * w_norms / g_norms, 1.0)
                torch._foreach_mul_(gradients, trust.unbind())
            buffers = [momentum_buffer(self.state[w], w) for w in weights]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients, alpha=group["lr"])
            torch._foreach_sub_(weights, buffers)
        return loss


def momentum_buffer(state: dict[str, Tensor], w: Tensor) -> Tensor:
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(w)
    return state["momentum_buffer"]
