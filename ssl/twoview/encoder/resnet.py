"""torchvision's ResNets (He et al., arXiv 1512.03385) as encoders, with a stem for small or for large images."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torchvision
from torch import Tensor, nn

from twoview.encoder.weights import start_from
from twoview.errors import UserError


def resnet18(
    stem: Literal["cifar", "imagenet"] = "cifar",
    zero_init_residual: bool = False,
    channels: int = 3,
    weights: str = "random",
) -> nn.Module:
    """ResNet-18: h of 512 dimensions."""
    network = torchvision.models.resnet18(zero_init_residual=zero_init_residual)
    return start_from(_encoder(network, stem, channels), weights, partial(_pretrained, "resnet18"))


def resnet34(
    stem: Literal["cifar", "imagenet"] = "cifar",
    zero_init_residual: bool = False,
    channels: int = 3,
    weights: str = "random",
) -> nn.Module:
    """ResNet-34: h of 512 dimensions."""
    network = torchvision.models.resnet34(zero_init_residual=zero_init_residual)
    return start_from(_encoder(network, stem, channels), weights, partial(_pretrained, "resnet34"))


def resnet50(
    stem: Literal["cifar", "imagenet"] = "cifar",
    zero_init_residual: bool = False,
    channels: int = 3,
    weights: str = "random",
) -> nn.Module:
    """ResNet-50: h of 2048 dimensions."""
    network = torchvision.models.resnet50(zero_init_residual=zero_init_residual)
    return start_from(_encoder(network, stem, channels), weights, partial(_pretrained, "resnet50"))


def _pretrained(name: str) -> Mapping[str, Tensor]:
    """torchvision's best weights of ImageNet."""
    weights: Mapping[str, Tensor] = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=False)
    return weights


def _encoder(network: Any, stem: str, channels: int) -> nn.Module:
    """`network` without its classifier. Every key of its weights is torchvision's.

    The stem `cifar` is that of SimCLR, appendix B.9: a 3x3 convolution of stride 1 in place of the 7x7 of stride 2,
    and no max-pooling; `imagenet` is torchvision's own. `channels`: of the images; spectrograms have 1. `weights` of
    the three above: what to start from (`twoview.encoder.weights`).
    """
    if stem not in ("cifar", "imagenet"):
        raise UserError(f"encoder.stem must be cifar or imagenet, not {stem}")
    if channels < 1:
        raise UserError(f"encoder.channels={channels}: images have at least one")
    if stem == "cifar":
        network.maxpool = nn.Identity()
    if stem == "cifar" or channels != 3:
        size, stride = (3, 1) if stem == "cifar" else (7, 2)
        network.conv1 = nn.Conv2d(channels, 64, kernel_size=size, stride=stride, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.dim = network.fc.in_features
    network.fc = nn.Identity()
    return network
