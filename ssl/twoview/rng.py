"""Random numbers that are a function of counters, not of a generator's state.

Philox 4x32-10 of Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), in plain
integer tensor operations: the same bits on every device. The key is the run's seed; the counter says what the number
is for (which sample, which epoch, which view, which operation), so nothing has to be stored to draw a number again
and nothing depends on the order of drawing.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1: what the key grows by each round


def exact(device: torch.device) -> torch.device:
    """Where to compute in float64 what is for `device`: there, or on the CPU for Apple's GPUs, which have no float64.
    Draws are float64, so that is where views are made.
    """
    return torch.device("cpu") if device.type == "mps" else device


def philox(counter: Sequence[Tensor | int], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox 4x32.

    `counter` is four int64 tensors (or ints) of 32-bit words that broadcast against each other, `key` two such words.
    Returns four int64 tensors of uniform 32-bit words in the broadcast shape.
    """
    device = _device(counter)  # numbers are filled in there: copying them would make the host wait for a GPU
    words = (c if isinstance(c, Tensor) else torch.full((), c, dtype=torch.int64, device=device) for c in counter)
    c0, c1, c2, c3 = torch.broadcast_tensors(*words)
    k0, k1 = key
    for _ in range(10):
        # The product of two 32-bit words wraps around in int64, but its bits are those of the unsigned product.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _WORD) ^ c1 ^ k0,
            p1 & _WORD,
            ((p0 >> 32) & _WORD) ^ c3 ^ k1,
            p0 & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


@torch.compiler.assume_constant_result
def _word(stream: str) -> int:
    return zlib.crc32(stream.encode())


def _device(values: Sequence[Tensor | int]) -> torch.device | None:
    return next((v.device for v in values if isinstance(v, Tensor)), None)


@dataclass(frozen=True)
class Draw:
    """The random numbers of a batch of views for one purpose, named `stream`.

    `index` (B,) are sample numbers in [0, 2^32), `view` (B,) or an int in [0, 2^16), `epoch` in [0, 2^32), `seed` any
    64-bit integer. Each row of what is drawn depends on its own (seed, epoch, index, view) and on the name of the
    stream only: streams of an operation stay as they are when other operations are added, removed or reordered, so
    that two policies can be compared on the same numbers.
    """

    seed: int
    epoch: int | Tensor
    index: Tensor
    view: Tensor | int
    stream: str = ""

    def of(self, stream: str) -> "Draw":
        """The numbers of the same views for another purpose."""
        return Draw(self.seed, self.epoch, self.index, self.view, stream)

    def bits(self, count: int) -> Tensor:
        """Uniform 32-bit words, int64 (B, count)."""
        block = torch.arange((count + 3) // 4, device=self.index.device)  # four words come from each block
        view = self.view[:, None] if isinstance(self.view, Tensor) else self.view
        words = philox(
            (self.index[:, None], self.epoch, _word(self.stream), view * 65536 + block),
            (self.seed & _WORD, (self.seed >> 32) & _WORD),
        )
        return torch.stack(words, dim=-1).flatten(1)[:, :count]  # (B, blocks, 4) -> (B, count)

    def uniform(self, count: int) -> Tensor:
        """Uniform numbers in [0, 1), float32 (B, count), multiples of 2^-24."""
        return (self.bits(count) >> 8).float() * 2.0**-24

    def uniform64(self, count: int) -> Tensor:
        """Uniform numbers in [0, 1), float64 (B, count), multiples of 2^-32."""
        return self.bits(count).double() * 2.0**-32


def unused(n: int, device: torch.device) -> tuple[Tensor, int]:
    """Sample numbers int64 (n,) and an epoch for `Draw` that nothing else uses, from torch's own generator: what is
    drawn with them follows `torch.manual_seed`, and differs between calls, workers of a loader, and processes.
    """
    first, epoch = torch.randint(2**32, (2,)).tolist()
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0  # all may have the same seed
    return (first + torch.arange(n, device=device)) & _WORD, (epoch + rank * _WEYL[0]) & _WORD


def permutation(n: int, seed: int, epoch: int, stream: str = "order") -> Tensor:
    """A permutation of `range(n)` that is a function of (seed, epoch): int64 (n,), on the CPU.

    Sorts 64-bit keys, one per sample; the stable sort breaks the (about n^2 / 2^64) ties by position.
    """
    keys = []
    for rows in torch.arange(n).split(2**16):  # so that drawing takes little memory beside them
        words = Draw(seed, epoch, rows, 0, stream).bits(2)  # (rows, 2)
        keys.append((words[:, 0] << 31) | (words[:, 1] >> 1))
    return torch.argsort(torch.cat(keys), stable=True)


def permutation_by_blocks(block: Tensor, held: int, seed: int, epoch: int) -> Tensor:
    """A permutation of samples that comes to few blocks at a time, a function of (seed, epoch): int64 (n,), on the CPU.

    `block` (n,) int64, the number of the block in which each sample lies. All blocks in random order, `held` of them at
    a time, whose samples are mixed as in `permutation`: with as many as there are it is that one.
    """
    order = permutation(len(block), seed, epoch)
    turn = permutation(int(block.max()) + 1, seed, epoch, "blocks")[block] // held  # (n,)
    return order[turn[order].argsort(stable=True)]
