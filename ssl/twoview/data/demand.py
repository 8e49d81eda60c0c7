"""Samples that are decoded when asked for, and the one place where that is done in threads."""

import itertools
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# A batch: tensors whose first dimension is the batch. Of one sample: the same without that dimension.
Samples = Tensor | dict[str, Tensor]
Shape = Any  # of one sample: a tuple of sizes, as (C, H, W); of a dict of tensors a dict of such tuples


class OnDemand(ABC):
    """N samples that are decoded when asked for. Subclasses are picklable, so that a loader's worker can hold them."""

    threads = True  # whether decoding lets go of the interpreter lock, so that threads gain by it

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """Of every sample, after decoding."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Samples:
        """One sample."""

    @abstractmethod
    def stamp(self) -> Any:
        """What tells these samples from others without decoding them, as names and sizes of files: plain containers."""

    def blocks(self) -> tuple[Tensor, int] | None:
        """The block in which each sample lies, int64 (N,), of which all is read at once, and how many blocks a process
        holds; None where each sample is read by itself.
        """
        return None

    def fetch(self, index: Sequence[int]) -> Samples:
        """The samples of an index (B,) as a batch. Decoded in threads, except in a worker, which is one of several; in
        the order in which they lie, so that what holds several of them is read once.
        """
        order = sorted(range(len(index)), key=index.__getitem__)
        rows = [index[i] for i in order]
        alone = len(index) < 2 or not self.threads or get_worker_info() is not None
        found: list[Any] = [None] * len(index)
        for i, sample in zip(order, (map if alone else in_threads)(self.__getitem__, rows), strict=True):
            found[i] = sample
        return stack(found)


@dataclass(frozen=True, eq=False)
class Selection(OnDemand):
    """Some samples of an `OnDemand`, still decoded on demand."""

    samples: OnDemand
    index: Tensor  # int64 (B,)

    @property
    def shape(self) -> Shape:
        return self.samples.shape

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Samples:
        return self.samples[int(self.index[index])]

    def fetch(self, index: Sequence[int]) -> Samples:
        return self.samples.fetch(self.index[torch.tensor(index)].tolist())

    def stamp(self) -> Any:
        return [self.samples.stamp(), self.index.tolist()]

    def blocks(self) -> tuple[Tensor, int] | None:
        found = self.samples.blocks()
        return None if found is None else (found[0][self.index], found[1])


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterable[R]:
    """Map in order, on as many threads as there are cores; never many more items at once than that."""
    left = iter(items)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while some := list(itertools.islice(left, 1024)):
            yield from pool.map(function, some)


SHARED = Path("/dev/shm")  # where Linux keeps what processes share
AHEAD = 2  # batches that a worker makes before they are asked for


def workers_that_fit(workers: int, rows: int, samples: OnDemand) -> int:
    """`workers`, or none of them where the memory that processes share, 64 MiB in many containers, cannot hold their
    batches of so many rows: the system would end them, or keep them waiting for ever.
    """
    if not workers or not SHARED.is_dir() or not hasattr(os, "statvfs"):
        return workers
    place = os.statvfs(SHARED)
    has = place.f_bavail * place.f_frsize
    needs = (AHEAD * workers + 1) * rows * sum(values.nbytes for values in tensors(samples[0]))
    if needs <= has:
        return workers
    log.warning(
        "%d loader processes need %.0f MB of shared memory, and %s has %.0f free: samples are decoded by threads of "
        "this process instead (in containers: docker run --shm-size=2g; or take a smaller batch_size)",
        workers,
        needs / 1e6,
        SHARED,
        has / 1e6,
    )
    return 0


# What holds for a tensor and for a dict of tensors alike


def each(function: Callable[[Tensor], Tensor], samples: Samples) -> Samples:
    """`function` of the tensor, or of every tensor of a dict."""
    if isinstance(samples, Tensor):
        return function(samples)
    return {name: function(values) for name, values in samples.items()}


def take(samples: Samples, rows: Tensor | slice) -> Samples:
    """Some rows of a batch; `rows` may lie on another device."""
    if isinstance(samples, Tensor):
        return samples[rows.to(samples.device) if isinstance(rows, Tensor) else rows]
    return {
        name: values[rows.to(values.device) if isinstance(rows, Tensor) else rows] for name, values in samples.items()
    }


def moved(samples: Samples, device: torch.device | str) -> Samples:
    """A batch on another device."""
    return each(lambda values: values.to(device, non_blocking=True), samples)


def stack(samples: Sequence[Samples]) -> Samples:
    """Single samples as a batch."""
    first = samples[0]
    if isinstance(first, Tensor):
        return torch.stack(samples)  # type: ignore[arg-type]
    return {name: torch.stack([one[name] for one in samples]) for name in first}  # type: ignore[index]


def join(batches: Sequence[Samples]) -> Samples:
    """Batches one after the other."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(batches)  # type: ignore[arg-type]
    return {name: torch.cat([batch[name] for batch in batches]) for name in first}  # type: ignore[index]


def tensors(samples: Samples) -> list[Tensor]:
    return [samples] if isinstance(samples, Tensor) else list(samples.values())


def count(samples: Samples) -> int:
    """B of a batch."""
    return len(tensors(samples)[0])


def shape_of(samples: Samples) -> Shape:
    """The shape of one sample of a batch."""
    if isinstance(samples, Tensor):
        return tuple(samples.shape[1:])
    return {name: tuple(values.shape[1:]) for name, values in samples.items()}


def shape_words(shape: Shape) -> str:
    """A shape for a message, as 3 x 32 x 32."""
    if isinstance(shape, dict):
        return ", ".join(f"{name} {shape_words(part)}".rstrip() for name, part in shape.items())
    return " x ".join(map(str, shape))
