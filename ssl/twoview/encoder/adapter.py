"""Networks of torchvision, of timm and of your own as encoders."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twoview.errors import UserError

CLASSIFIERS = ("fc", "classifier", "head", "heads")  # torchvision's names of what comes last


def as_encoder(network: nn.Module, shape: Sequence[int] = (3, 224, 224)) -> nn.Module:
    """The network itself as an encoder, samples (B, ...) -> h (B, dim): without the classifier that torchvision's and
    timm's networks end with, and with `dim`, the width of h by a forward pass of a sample of `shape`. All other weights
    keep their names.

    A network without such a classifier stays as it is. UserError where h is no vector a sample.
    """
    own: Any = network
    if callable(getattr(own, "reset_classifier", None)):  # timm's
        own.reset_classifier(0)
    else:
        _without_classifier(network)
    modes = [(module, module.training) for module in network.modules()]
    weight = next(network.parameters(), torch.zeros(0))
    with torch.no_grad():
        h = network.eval()(weight.new_zeros(1, *shape))
    for module, training in modes:
        module.training = training
    name = type(network).__name__
    if not isinstance(h, Tensor) or h.ndim != 2:
        found = f"the shape {tuple(h.shape)}" if isinstance(h, Tensor) else f"a {type(h).__name__}"
        raise UserError(f"{name} gives {found} for a sample in place of one vector: put a pooling layer behind it")
    if getattr(own, "dim", h.shape[1]) != h.shape[1]:
        raise UserError(f"{name} has an attribute dim of another meaning, and an encoder says by it how wide h is")
    own.dim = h.shape[1]
    return network


def _without_classifier(network: nn.Module) -> None:
    """Puts nothing in the place of the last linear layer of torchvision's classifiers."""
    for name in CLASSIFIERS:
        part = getattr(network, name, None)
        layers = [place for place, layer in part.named_modules() if isinstance(layer, nn.Linear)] if part else []
        if layers:
            network.set_submodule(f"{name}.{layers[-1]}".rstrip("."), nn.Identity())
            return
