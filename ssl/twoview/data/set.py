"""Sample sets: what every loader returns and every consumer reads.

A loader is a plain function `(..., split) -> SampleSet | None`, `split` being "train" or "test" and None
meaning that the set has no such split.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from twoview.data.demand import OnDemand, Samples, Selection, Shape, moved, shape_of, take, tensors
from twoview.data.demand import count as count_of
from twoview.data.preprocess import Preprocess


class Rows(Sequence[str]):
    """Names of samples that have none but their place: `Rows("train", 3)` is train row 0, train row 1, train row 2."""

    def __init__(self, of: str, n: int) -> None:
        self.of, self.numbers = of, range(n)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [f"{self.of} row {number}" for number in self.numbers[index]]
        return f"{self.of} row {self.numbers[index]}"


class Picked(Sequence[str]):
    """Some of the names, looked up when asked for."""

    def __init__(self, names: Sequence[str], index: Tensor) -> None:
        self.names, self.rows = names, index

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self.names[i] for i in self.rows[index].tolist()]
        return self.names[int(self.rows[index])]


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Samples with all that is known about them.

    `samples` is a tensor (N, ...), a dict of such tensors, or an `OnDemand` that decodes. `labels` is int64 (N,) with
    values below `len(classes)`, -1 for a sample without one; or None with `classes` empty. `preprocess` makes of
    samples what an encoder takes; what it learned from data it learned from the train split. `names` says where each
    sample lies, as the name of its file, so that any result can be traced; by default the rows of `name`. `factors`
    holds what else is known of each sample (N,), for diagnosis only. `draw` makes pictures of samples, stored or
    prepared: float (B, 3 or 1, H, W) in [0, 1]; None where there is nothing to be seen.
    """

    name: str
    samples: Samples | OnDemand
    labels: Tensor | None
    classes: tuple[str, ...]
    preprocess: Preprocess
    names: Sequence[str] = ()
    factors: dict[str, Tensor] = field(default_factory=dict)
    draw: Callable[[Samples], Tensor] | None = None

    def __post_init__(self) -> None:
        n = len(self)
        if n == 0:
            raise ValueError(f"sample set {self.name!r} is empty")
        if not isinstance(self.samples, OnDemand):
            for values in tensors(self.samples):
                if len(values) != n or values.numel() == 0:
                    raise ValueError(
                        f"sample set {self.name!r} has samples of the shape {self.shape}, {len(values)} and {n} of them"
                    )
        if not self.names:
            object.__setattr__(self, "names", Rows(self.name, n))
        if len(self.names) != n:
            raise ValueError(f"sample set {self.name!r} has {len(self.names)} names for {n} samples")
        if (self.labels is None) != (not self.classes):
            raise ValueError("labels and class names go together: give both or neither")
        if self.labels is not None:
            if self.labels.dtype != torch.int64 or self.labels.shape != (n,):
                got = f"{self.labels.dtype} {tuple(self.labels.shape)}"
                raise ValueError(f"labels must be int64 ({n},), got {got}")
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < -1 or high >= len(self.classes):
                raise ValueError(f"labels span {low} ... {high}, but there are {len(self.classes)} classes")
        for name, values in self.factors.items():
            if values.shape != (n,):
                raise ValueError(f"factor {name!r} must have shape ({n},), got {tuple(values.shape)}")

    def __len__(self) -> int:
        return len(self.samples) if isinstance(self.samples, OnDemand) else count_of(self.samples)

    @property
    def shape(self) -> Shape:
        """Of every sample, as (C, H, W); of a dict of tensors, a dict of such tuples."""
        return self.samples.shape if isinstance(self.samples, OnDemand) else shape_of(self.samples)

    @property
    def in_memory(self) -> bool:
        return not isinstance(self.samples, OnDemand)

    def fetch(self, index: Tensor) -> Samples:
        """Samples by index (B,): (B, ...), on the device of the set (on demand: on the CPU, decoded in threads)."""
        if isinstance(self.samples, OnDemand):
            return self.samples.fetch(index.tolist())
        return take(self.samples, index)

    def to(self, device: torch.device | str) -> "SampleSet":
        """The set on another device. Samples that are decoded on demand stay where they are."""
        samples = self.samples
        return replace(
            self,
            samples=samples if isinstance(samples, OnDemand) else moved(samples, device),
            labels=None if self.labels is None else self.labels.to(device),
            factors={name: values.to(device) for name, values in self.factors.items()},
        )

    def subset(self, index: Tensor) -> "SampleSet":
        """The samples of an index (B,), in its order; class names and preprocessing stay those of the whole."""

        samples = self.samples
        return replace(
            self,
            samples=Selection(samples, index.cpu()) if isinstance(samples, OnDemand) else take(samples, index),
            labels=None if self.labels is None else self.labels[index.to(self.labels.device)],
            names=Picked(self.names, index.cpu()),
            factors={name: values[index.to(values.device)] for name, values in self.factors.items()},
        )

    def labelled(self) -> "SampleSet":
        """The samples that have a label; the set itself where all have, or none."""
        if self.labels is None or bool((self.labels >= 0).all()):
            return self
        return self.subset((self.labels >= 0).nonzero().flatten())

    def digest(self) -> str:
        """SHA-256 over shape, samples and labels: equal for equal content, wherever and however it is stored.

        Decodes every sample of a set that is decoded on demand.
        """
        shape = self.shape if isinstance(self.shape, tuple) else (repr(self.shape),)
        sha = hashlib.sha256(repr((len(self), *shape)).encode())
        for start in range(0, len(self), 1024):
            for part in tensors(self.fetch(torch.arange(start, min(start + 1024, len(self))))):
                sha.update(part.cpu().numpy().tobytes())
        if self.labels is not None:
            sha.update(self.labels.cpu().numpy().tobytes())
        return sha.hexdigest()


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out a fraction of every class; returns `(keep_index, held_out_index)`, both int64 and ascending.

    Each class is rounded to the nearest count, but one of at least two samples has at least one in both
    parts; a class of a single sample is kept whole. The same labels, fraction and seed give the same split.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    labels = labels.cpu()[order]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[labels == label]
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held_out[members[:count]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()
