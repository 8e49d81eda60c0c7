"""The loop of classifiers that are trained by gradient steps, on frozen features or together with their encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from twoview.report.progress import tracked


def descend(
    losses_of: Callable[[Tensor, int], Tensor],
    optimizer: torch.optim.Optimizer,
    factor: Callable[[int], float],
    batches: Callable[[int], Sequence[Tensor]],
    steps: int,
    what: str,
    scaler: torch.amp.GradScaler | None = None,
) -> list[float]:
    """Takes `steps` optimizer steps. Returns the mean loss of each epoch, the last of which may be incomplete.

    `batches(epoch)` gives the sample numbers (B,) of every batch of an epoch, and `losses_of(index, epoch)` the losses
    (K,) of K models that are trained side by side, each with parameters of its own; the first one's are returned.
    `factor(step)` multiplies the learning rates. `scaler` is for float16. Ends early once no loss is finite.
    """
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    means: list[float] = []
    left: list[Tensor] = []  # batches of the epoch
    epoch, total, count = 0, torch.zeros(()), 0
    for step in tracked(range(steps), what):
        if not left:
            epoch, total, count = len(means), torch.zeros(()), 0
            left = list(batches(epoch))
        index = left.pop(0)
        losses = losses_of(index, epoch)  # (K,)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(losses.sum()).backward()  # the models share no parameter: each gets the gradient of its own loss
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        total, count = total.to(losses.device) + losses.detach() * len(index), count + len(index)
        if not left or step == steps - 1:
            means.append(float(total[0] / count))
            if not bool(total.isfinite().any()):
                break
    return means
