"""From a `SampleSet` to batches of views.

The order of samples is a function of (seed, epoch), and rank r of W takes its share of each *global* batch, so a
global batch holds the same samples for every W. The epoch and the batches that are still to come follow from the
number of steps made: a run that resumes in the middle of an epoch goes on with the next batch.
"""

import logging
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from twoview.data.demand import AHEAD, OnDemand, Samples, tensors, workers_that_fit
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.rng import exact, permutation, permutation_by_blocks

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Views of B samples, as a method takes them.

    `views`: one tensor (B, ...) for each view, the global ones first; sizes may differ. `index` (B,): sample numbers in
    the training set. `label` (B,): -1 where there is none. `share` (B,): of its own sample in each row of the first
    view, where that holds mixtures of neighbours (`augment.mix`); else None.
    """

    views: tuple[Tensor, ...]
    index: Tensor  # type: ignore[assignment]
    label: Tensor
    share: Tensor | None = None


log = logging.getLogger(__name__)

Fetched = tuple[Samples, Tensor, Tensor]  # samples, index and label


class Views(Protocol):
    """What makes views of samples, as `twoview.augment.views.TwoViews` does. The room above knows no more of it."""

    mix: Any
    ahead: int

    def __call__(self, samples: Samples, index: Tensor, epoch: int) -> tuple[Tensor, ...]: ...

    def mixed(
        self, views: tuple[Tensor, ...], index: Tensor, epoch: int
    ) -> tuple[tuple[Tensor, ...], Tensor | None]: ...

    def attach(self, train: SampleSet) -> None: ...

    def to(self, device: torch.device) -> Any: ...


USUAL = 512  # samples of a batch, where there are enough of them


def batch_for(samples: int, batch_size: int | Literal["auto"]) -> int:
    """`batch_size`, where it says a number; "auto": the largest power of two within a quarter of the samples, `USUAL`
    at most, so that the smallest set has some steps an epoch.
    """
    if batch_size != "auto":
        return batch_size
    return min(USUAL, max(2, 1 << max(0, (samples // 4).bit_length() - 1)))


MOST_WORKERS = 512  # beyond, a system runs out of processes or files before it has any gain


class TwoViewDataModule(pl.LightningDataModule):
    """Yields `(samples (B, ...), index (B,), label (B,))` and makes a `Batch` of views of them on the training device.

    `batch_size` is that of the global batch, over all devices; "auto" as in `batch_for`. `drop_last` leaves out an
    incomplete last batch. Sets in memory move to the training device as a whole; others are decoded by `num_workers`
    processes. `shuffle`: "full", every order is as likely; or "blocks", for sets that are read in blocks (row groups of
    Parquet files), of which each is read once an epoch: as many as a process holds are mixed at a time. `max_batches`
    shortens every epoch, for trials. Labels of unlabelled sets are -1.
    """

    def __init__(
        self,
        train: SampleSet,
        views: Views,
        batch_size: int | Literal["auto"],
        seed: int = 0,
        drop_last: bool = True,
        shuffle: Literal["full", "blocks"] = "full",
        num_workers: int = 0,
        max_batches: int | None = None,
    ) -> None:
        super().__init__()
        size = batch_for(len(train), batch_size)
        if size != batch_size and size < USUAL:
            log.info("%s samples: batch %d (batch_size=... sets another)", f"{len(train):,}", size)
        if size < 2:
            raise UserError(f"batch_size={size}: contrast needs at least 2 samples in a batch")
        if len(train) < 2:
            raise UserError(f"{train.name} has a single sample: contrast needs at least 2")
        if size > len(train):
            raise UserError(
                f"batch_size={size} is larger than {train.name}, which has {len(train)} training samples; "
                f"use batch_size={len(train)} or less"
            )
        if num_workers < 0:
            raise UserError(f"loader.num_workers must not be negative, got {num_workers}")
        if num_workers > MOST_WORKERS:
            raise UserError(f"loader.num_workers={num_workers} are too many processes; {MOST_WORKERS} at most")
        if max_batches is not None and max_batches < 1:
            raise UserError(f"loader.max_batches must be at least 1, not {max_batches}")
        if shuffle not in ("full", "blocks"):
            raise UserError(f"loader.shuffle={shuffle!r} is neither full nor blocks")
        self.blocks = train.samples.blocks() if isinstance(train.samples, OnDemand) else None
        if shuffle == "blocks" and self.blocks is None:
            raise UserError(
                "loader.shuffle=blocks is for sets that are read in blocks, as data=parquet with data.in_memory=false, "
                f"and {train.name} is {'in memory' if train.in_memory else 'read file by file'}: leave it at full"
            )
        if shuffle == "full" and self.blocks is not None and self.blocks[0].max() >= 2 * self.blocks[1]:
            log.info(
                "every image of a batch lies in a row group of its own, of which %d fit into data.cache_mb and there "
                "are %s: loader.shuffle=blocks reads each of them once an epoch",
                self.blocks[1],
                f"{int(self.blocks[0].max()) + 1:,}",
            )
        self.train = train
        self.views = views
        self.views.attach(train)
        self.batch_size = size
        self.seed = seed
        self.drop_last = drop_last
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.max_batches = max_batches
        self.device = torch.device("cpu")  # where views are made
        self.first_step = 0  # of this process
        self.arrived = 0.0  # time.monotonic() when the newest batch was there, before its views were made

    def state_dict(self) -> dict[str, int]:
        assert self.trainer is not None
        return {"step": self.trainer.global_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.first_step = state_dict["step"]

    @property
    def batches_per_epoch(self) -> int:
        n = len(self.train)
        batches = n // self.batch_size if self.drop_last else -(-n // self.batch_size)
        return min(batches, self.max_batches or batches)

    @property
    def last_batch(self) -> int | None:
        """Samples of an incomplete last batch; None where no epoch gets to one."""
        rest = len(self.train) % self.batch_size
        reached = self.batches_per_epoch * self.batch_size > len(self.train)
        return rest if rest and reached and not self.drop_last else None

    def shares(self, world_size: int) -> set[int]:
        """How many samples of a batch a device may get, over all batches of an epoch."""
        sizes = {self.batch_size, self.last_batch or self.batch_size}
        return {len(part) for n in sizes for part in torch.arange(n).tensor_split(world_size)}

    def train_dataloader(self) -> DataLoader[Fetched]:
        assert self.trainer is not None
        if self.batch_size % self.trainer.world_size:
            raise UserError(
                f"batch_size={self.batch_size} is the global batch and must divide by the "
                f"{self.trainer.world_size} devices of the run"
            )
        if min(self.shares(self.trainer.world_size)) == 0:
            raise UserError(
                f"loader.drop_last=false: the last batch of {self.last_batch} samples leaves some "
                f"of the {self.trainer.world_size} devices without any; set it to true"
            )
        if self.views.mix is not None and self.trainer.world_size > 1:
            odd = [n for n in sorted(self.shares(self.trainer.world_size)) if n % 2]
            if odd:
                raise UserError(
                    f"augment.mix mixes neighbours of the batch in pairs, and a device's {odd[0]} samples leave half a "
                    f"pair; choose a batch_size of which each of the {self.trainer.world_size} devices gets an even "
                    "number, and loader.drop_last=true"
                )
        self.device = device = exact(self.trainer.strategy.root_device)
        self.views.to(device)
        share = self.batch_size // self.trainer.world_size
        self.views.ahead = share * self.batches_per_epoch * (self.trainer.max_epochs or 1)
        train = self.train.to(device) if self.train.in_memory else self.train
        self.views.attach(train)
        held = self.train.samples
        workers = workers_that_fit(self.num_workers, share, held) if isinstance(held, OnDemand) else 0
        return DataLoader(
            _Fetch(train),
            sampler=GlobalBatches(self),
            batch_size=None,  # the sampler yields whole batches
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            pin_memory=workers > 0 and device.type == "cuda",
            generator=torch.Generator(),  # else every epoch would draw from the one that dropout draws from
        )

    def on_before_batch_transfer(self, batch: Fetched, dataloader_idx: int) -> Fetched:
        self.arrived = time.monotonic()
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return super().transfer_batch_to_device(batch, exact(device), dataloader_idx)  # where its views are made

    def on_after_batch_transfer(self, batch: Fetched, dataloader_idx: int) -> Batch:
        assert self.trainer is not None
        samples, index, label = batch
        epoch = self.trainer.current_epoch
        views, share = self.views.mixed(self.views(samples, index, epoch), index, epoch)
        made, device = Batch(views, index, label, share), self.trainer.strategy.root_device
        return super().transfer_batch_to_device(made, device, dataloader_idx)


class GlobalBatches(Sampler[Tensor]):
    """This rank's share of each global batch of the trainer's current epoch, as sample numbers int64 (about B / W,).

    Shares are runs of neighbours in the batch, so that its pairs of neighbours stay together (`augment.mix`).
    """

    def __init__(self, data: TwoViewDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.batches_per_epoch

    def __iter__(self) -> Iterator[Tensor]:
        data, trainer = self.data, self.data.trainer
        assert trainer is not None
        # One optimizer step per batch. Workers ask for their first batches before the trainer knows its own step again.
        epoch, done = divmod(max(trainer.global_step, data.first_step), len(self))
        if data.shuffle == "blocks":
            assert data.blocks is not None
            order = permutation_by_blocks(*data.blocks, data.seed, epoch)
        else:
            order = permutation(len(data.train), data.seed, epoch)
        if data.train.in_memory:  # once an epoch: copied batch by batch, the host would wait for a GPU in each step
            order = order.to(data.device)
        for batch in order.split(data.batch_size)[done : len(self)]:
            yield batch.tensor_split(trainer.world_size)[trainer.global_rank]


class _Fetch(Dataset[Fetched]):
    """Batches of a sample set by sample number."""

    def __init__(self, samples: SampleSet) -> None:
        self.samples = samples
        held = samples.samples  # one device for all: nothing is copied
        device = None if isinstance(held, OnDemand) else tensors(held)[0].device
        self.labels = samples.labels if samples.labels is not None else torch.full((len(samples),), -1, device=device)

    def __getitem__(self, index: Tensor) -> Fetched:
        index = index.to(self.labels.device)
        return self.samples.fetch(index), index, self.labels[index]
