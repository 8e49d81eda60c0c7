"""What the devices of a run tell each other: rows of a global batch, and sums over it, both with gradients; and that
they are of one run.

The global batch of n samples lies on W devices in W runs of neighbours, the first n mod W of them one longer
(`torch.tensor_split`). On one device, and outside of a distributed run, every function is the identity.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from twoview.errors import UserError, listed


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def shares(n: int) -> list[int]:
    """How many of the `n` samples of a global batch each device has."""
    return [len(part) for part in torch.arange(n).tensor_split(world_size())]


def gather(rows: Tensor, n: int) -> Tensor:
    """All `n` rows of the global batch (n, ...), in its order, of which this device has `rows` (about n / W, ...).

    In the backward pass a row's gradients from all devices are added up on the device that it came from.
    """
    if world_size() == 1:
        return rows
    each = shares(n)
    if len(rows) != each[rank()]:
        raise ValueError(f"device {rank()} has {len(rows)} rows of {n}, and should have {each[rank()]}")
    pad = [0, 0] * (rows.ndim - 1) + [0, max(each) - len(rows)]  # what is exchanged has one shape everywhere
    parts = _Gather.apply(F.pad(rows, pad)).tensor_split(world_size())
    return torch.cat([part[:length] for part, length in zip(parts, each, strict=True)])


def total(x: Tensor) -> Tensor:
    """The sum of `x` over all devices. In the backward pass the gradients are added up over all devices likewise."""
    return x if world_size() == 1 else _Sum.apply(x)


def mean(rows: Tensor) -> Tensor:
    """The mean (...) over the rows of the global batch, of which this device has `rows` (about n / W, ...), with
    gradients like those of `total`.
    """
    if world_size() == 1:
        return rows.mean(dim=0)
    n = torch.tensor(len(rows), device=rows.device)
    dist.all_reduce(n)
    return total(rows.sum(dim=0)) / n


def shared(inputs: list[Tensor], costs: list[int], work: Callable[[list[Tensor]], list[Tensor]]) -> list[Tensor]:
    """`work(inputs)`, where all devices hold the same `inputs` and each computes a share of them, balanced by `costs`.

    `work` gives for each tensor one of its shape and dtype that depends on no other. All devices get the same bits.
    """
    devices = world_size()
    if devices == 1 or not inputs:
        return work(inputs)
    parts: list[list[int]] = [[] for _ in range(devices)]
    loads = [0] * devices
    for number in sorted(range(len(inputs)), key=lambda n: -costs[n]):  # the dearest first, to whom has least
        least = loads.index(min(loads))
        parts[least].append(number)
        loads[least] += costs[number]
    sizes = [[inputs[number].numel() for number in part] for part in parts]
    longest = max(map(sum, sizes))  # what is exchanged has one shape everywhere
    done = work([inputs[number] for number in parts[rank()]])
    mine = torch.cat([*(x.flatten() for x in done), inputs[0].new_zeros(longest - sum(sizes[rank()]))])
    every = [torch.empty_like(mine) for _ in range(devices)]
    dist.all_gather(every, mine)
    found: dict[int, Tensor] = {}
    for part, size, flat in zip(parts, sizes, every, strict=True):
        found |= dict(zip(part, flat[: sum(size)].split(size), strict=True))
    return [found[number].view_as(x) for number, x in enumerate(inputs)]


def refuse_disagreement(claims: Mapping[str, Any]) -> None:
    """UserError, on all processes, where one of them states another value than the first: they would train together
    without a word, or wait for each other for ever.
    """
    if world_size() == 1:
        return
    every: list[Any] = [None] * world_size()
    dist.all_gather_object(every, dict(claims))
    for rank, theirs in enumerate(every):
        unlike = [key for key in {**every[0], **theirs} if theirs.get(key) != every[0].get(key)]
        if unlike:
            said = listed(
                [f"{key}={theirs.get(key)} where the first has {every[0].get(key)}" for key in unlike], most=4
            )
            raise UserError(f"process {rank} of {len(every)} is of another run than the first one: it has {said}")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.tensor_split(world_size())[rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient
