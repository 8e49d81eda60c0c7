"""The queue of rows of earlier steps: keys of MoCo and ReSSL, neighbours of NNCLR, features of SwAV."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twoview.errors import UserError


class Queue(nn.Module):
    """The newest `size` rows of length 1 and width `dim`, with the numbers of their samples; all of it in checkpoints.

    `rows` (K, D), float32; `index` (K,), -1 in an empty place; `count` (), how many ever went in. Every device holds
    the same queue: it takes the rows of the global batch. `random` fills it with random directions, for methods that
    look something up from the first step on; their places count as empty. UserError below 1.
    """

    rows: Tensor
    index: Tensor
    count: Tensor

    def __init__(self, size: int, dim: int, random: bool = False) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"model.queue_size must be at least 1, not {size}")
        start = F.normalize(torch.randn(size, dim), dim=1) if random else torch.zeros(size, dim)
        self.register_buffer("rows", start)
        self.register_buffer("index", torch.full((size,), -1))
        self.register_buffer("count", torch.tensor(0))

    def __len__(self) -> int:
        """Its size, empty places included."""
        return len(self.rows)

    def filled(self) -> Tensor:
        """How many places are taken: a scalar on the device."""
        return self.count.clamp(max=len(self))

    @torch.no_grad()
    def add(self, rows: Tensor, index: Tensor) -> None:
        """Puts `rows` (n, D), of any length, of the samples `index` (n,) in the place of the n oldest; of n > K, the
        last K.
        """
        size, n = len(self), len(rows)
        places = (self.count + torch.arange(max(0, n - size), n, device=rows.device)) % size
        self.rows[places] = F.normalize(rows[-size:].to(self.rows.dtype), dim=1)
        self.index[places] = index[-size:]
        self.count += n
