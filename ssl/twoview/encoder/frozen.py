"""An encoder that takes samples as they are stored, and the proof that it stayed as it was."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from twoview.data.demand import Samples, Shape, each
from twoview.data.preprocess import Preprocess


class Frozen(nn.Module):
    """An encoder that takes samples as they are stored: it does the preprocessing itself.

    Of a finished run, `config` is its configuration, `identity` who it is (`twoview.run.identity`) and `shape` that of
    a training sample.
    """

    def __init__(self, encoder: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.encoder = encoder
        self.preprocess = preprocess
        self.dim = int(encoder.dim)  # type: ignore[arg-type]
        self.config: dict[str, Any] = {}
        self.identity: dict[str, Any] = {}
        self.shape: Shape = None

    def forward(self, samples: Samples) -> Tensor:
        """Samples (B, ...), stored or prepared (images: uint8, or float in [0, 1]), to features h (B, dim)."""
        h: Tensor = self.encoder(each(lambda values: as_weights(values, self.encoder), self.preprocess(samples)))
        return h


def as_weights(values: Tensor, network: nn.Module) -> Tensor:
    """Floats in the dtype of the network's weights: views are made in float32 also in a run with
    `trainer.precision=64-true`.
    """
    dtype = next((p.dtype for p in network.parameters()), values.dtype)
    return values.to(dtype) if values.is_floating_point() else values


def digest(module: nn.Module) -> str:
    """sha256 (hex) over names, shapes, dtypes and bytes of every parameter and buffer, wherever they lie.

    Equal digests before and after an evaluation prove that it left the encoder alone. Train and eval mode do
    not enter.
    """
    result = hashlib.sha256()
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in tensors:
        result.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        result.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()
