"""An encoder that takes plain images, and the proof that it stayed as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """An encoder that takes plain images: it does the normalisation itself.

    `mean` and `std` are per channel, of pixels in [0, 1]; they are buffers, so they travel with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.encoder = encoder
        self.dim = int(encoder.dim)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))  # (C,)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))  # (C,)

    def forward(self, images: Tensor) -> Tensor:
        """Float images (B, C, H, W) in [0, 1] to features h (B, dim)."""
        return self.encoder((images - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1))


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
