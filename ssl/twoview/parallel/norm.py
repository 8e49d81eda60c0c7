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

from twoview.errors import UserError
from twoview.parallel import devices


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
        dtype = torch.promote_types(x.dtype, torch.float32)
        ones = torch.ones(self.num_features, dtype=dtype, device=x.device)
        weight, bias = (self.weight.to(dtype), self.bias.to(dtype)) if self.affine else (ones, torch.zeros_like(ones))
        y, mean, variance, count = _Normalise.apply(x, weight, bias, self.eps)
        momentum = _momentum(self)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)
        return y


class _Normalise(torch.autograd.Function):
    """(N, C, ...) normalised by mean and variance (C,) over all devices: torch's kernels on each one's own samples, and
    an exchange of sums in either direction. Gradients of weight and bias are those of a device's own samples.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        none = torch.zeros_like(weight)  # running statistics, which decide the dtype of the others
        mean, variance = torch.batch_norm_update_stats(x, none, none.clone(), 0.0)
        mean, variance = mean.double(), variance.double()  # sums of squares without loss
        own = mean.new_tensor(x.numel() // x.shape[1])
        sums = devices.total(torch.cat([own * mean, own * (variance + mean.square()), own[None]]))  # (2 C + 1,)
        (mean, square), count = (sums[:-1] / sums[-1]).chunk(2), sums[-1]
        variance = (square - mean.square()).clamp_min(0)
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance, count = ctx.saved_tensors
        own, *sums = torch.ops.aten.native_batch_norm_backward(  # as if mean and variance were constants
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        scale = weight * (variance + ctx.eps).rsqrt() / count.to(weight.dtype)
        slope, offset = scale * devices.total(torch.stack(sums))  # (2, C) -> (C,) each
        through = F.batch_norm(x, mean, variance, slope, offset, False, 0.0, ctx.eps)  # what passes through the two
        return own.sub_(through), sums[0], sums[1], None


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
