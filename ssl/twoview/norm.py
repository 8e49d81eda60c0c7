"""Batch normalisation whose statistics are those of parts of a batch, or of a batch that lies on several devices.

Both keep the names of the weights of the layers that they take the place of, so that a network trained with them
loads into a plain one.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from twoview import devices
from twoview.errors import UserError


class SplitBatchNorm(_BatchNorm):
    """Statistics of `groups` equal runs of neighbouring samples, as if each lay on a device of its own.

    For MoCo on one device (arXiv 1911.05722, section 3.3; the CIFAR-10 notebook of its authors uses 8 groups). The
    running statistics take the mean over the groups, of all devices. (N, C, ...) in any memory format; UserError for an
    N that the groups do not divide. Plain batch normalisation in eval mode.
    """

    def __init__(self, *args: Any, groups: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups = groups

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Any shape from (N, C) on."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.groups * devices.world_size() == 1:
            return super().forward(x)
        if len(x) % self.groups:
            raise UserError(f"model.split_batch_norm: {len(x)} samples do not divide into {self.groups} groups")
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        means = self.running_mean.repeat(self.groups, 1)  # (S, C) each group moves a copy of its own
        variances = self.running_var.repeat(self.groups, 1)
        momentum = _momentum(self)
        parts = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, True, momentum, self.eps)
            for part, mean, variance in zip(x.chunk(self.groups), means, variances, strict=True)
        ]
        with torch.no_grad():
            running = devices.total(torch.stack([means.mean(dim=0), variances.mean(dim=0)])) / devices.world_size()
            self.running_mean.copy_(running[0])
            self.running_var.copy_(running[1])
        return torch.cat(parts)


class GlobalBatchNorm(_BatchNorm):
    """Statistics of the global batch over all devices, for CPUs, which `torch.nn.SyncBatchNorm` refuses."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Any shape from (N, C) on."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or devices.world_size() == 1:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        over = [0, *range(2, x.ndim)]
        wide = (1, -1, *[1] * (x.ndim - 2))
        with torch.autocast(x.device.type, enabled=False):
            y = x.to(torch.promote_types(x.dtype, torch.float32))
            count = devices.total(torch.tensor(float(y.numel() / y.shape[1])))
            mean = devices.total(y.sum(over)) / count  # (C,)
            centred = y - mean.view(wide)
            variance = devices.total(centred.square().sum(over)) / count  # (C,)
            with torch.no_grad():
                momentum = _momentum(self)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                unbiased = variance * count / (count - 1)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
            y = centred * (variance + self.eps).rsqrt().view(wide)
            if self.affine:
                y = y * self.weight.view(wide) + self.bias.view(wide)
            return y.to(x.dtype)


def split_batch_norm(network: nn.Module, groups: int) -> nn.Module:
    """`network` with `SplitBatchNorm` in the place of each batch normalisation."""
    return _replace(network, lambda *args, **kwargs: SplitBatchNorm(*args, groups=groups, **kwargs))


def global_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """`network` with batch statistics over all devices; layers that split the batch on purpose stay."""
    return _replace(network, nn.SyncBatchNorm if device.type == "cuda" else GlobalBatchNorm)


def has_own_batch_norm(network: nn.Module) -> bool:
    """Whether a network takes batch statistics of a device's own share."""
    shared = nn.SyncBatchNorm | GlobalBatchNorm
    return any(isinstance(m, _BatchNorm) and not isinstance(m, shared) for m in network.modules())


def _momentum(layer: _BatchNorm) -> float:
    """Counts a batch and gives its weight in the running statistics; `momentum=None` means their plain mean."""
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    return 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum


def _replace(network: nn.Module, make: Callable[..., _BatchNorm]) -> nn.Module:
    if isinstance(network, _BatchNorm) and not isinstance(network, SplitBatchNorm | GlobalBatchNorm):
        old = network
        new = make(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(new, name, getattr(old, name))  # the very same tensors: an optimizer may hold them
        return new.train(old.training)
    for name, child in network.named_children():
        setattr(network, name, _replace(child, make))
    return network
