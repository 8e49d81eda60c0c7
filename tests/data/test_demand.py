"""Samples that are one tensor, a dict of tensors, or decoded on demand."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from twoview.augment.image.mix import CutMix, MixUp
from twoview.augment.operation import BatchAugment, Params
from twoview.data.demand import OnDemand, Samples, Shape, count, join, shape_of, shape_words, stack, take, tensors
from twoview.data.preprocess import Preprocess
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.rng import Draw


class Rows(OnDemand):
    """The numbers of samples, and who decoded them."""

    def __init__(self, n: int = 40, two: bool = False) -> None:
        self.n, self.two = n, two
        self.seen: set[int] = set()

    @property
    def shape(self) -> Shape:
        return {"a": (3,), "b": ()} if self.two else (3,)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Samples:
        self.seen.add(threading.get_ident())
        one = torch.full((3,), index)
        return {"a": one, "b": torch.tensor(-index)} if self.two else one

    def stamp(self) -> Any:
        return self.n


class Plain(Rows):
    threads = False


def pair(n: int = 5) -> Samples:
    return {"a": torch.arange(3 * n).view(n, 3), "b": -torch.arange(n)}


def equal(a: Samples, b: Samples) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True)) and type(a) is type(b)


@pytest.mark.parametrize("samples", [torch.arange(15).view(5, 3), pair()])
def test_a_dict_is_taken_apart_and_put_together_as_a_tensor_is(samples: Samples) -> None:
    assert count(samples) == 5
    parts = [take(samples, slice(0, 2)), take(samples, torch.tensor([2, 3, 4]))]
    assert equal(join(parts), samples)
    assert equal(stack([Preprocess().prepare(_one(samples, i)) for i in range(5)]), samples)


def _one(samples: Samples, i: int) -> Samples:
    return samples[i] if isinstance(samples, Tensor) else {name: values[i] for name, values in samples.items()}


def test_shapes_in_words() -> None:
    assert shape_words(shape_of(torch.zeros(2, 3, 8, 8))) == "3 x 8 x 8"
    assert shape_words(shape_of(pair())) == "a 3, b"


@pytest.mark.parametrize("two", [False, True])
def test_what_is_decoded_on_demand_comes_in_order_from_several_threads(two: bool) -> None:
    rows = Rows(two=two)
    index = [7, 3, 3, 39, *range(30)]
    found = rows.fetch(index)
    assert tensors(found)[0][:, 0].tolist() == index
    assert shape_of(found) == rows.shape
    assert threading.get_ident() not in rows.seen
    alone = Plain(two=two)
    assert equal(alone.fetch(index), found)
    assert alone.seen == {threading.get_ident()}


class Threads(Dataset[bool]):
    """Whether a worker decodes by itself."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> bool:
        rows = Rows()
        rows.fetch(range(10))
        return rows.seen == {threading.get_ident()}


def test_a_worker_decodes_in_one_thread() -> None:
    assert [bool(alone) for alone in DataLoader(Threads(), batch_size=None, num_workers=1)] == [True]


@pytest.mark.parametrize("samples", [pair(6), Rows(6, two=True), torch.rand(6, 3), torch.rand(6), Rows(6)])
def test_sets_hold_any_samples(samples: Any) -> None:
    labels = torch.tensor([0, -1, 1, 1, -1, 0])
    whole = SampleSet("toys", samples, labels, ("a", "b"), Preprocess(), factors={"f": torch.arange(6)})
    part = whole.subset(torch.tensor([4, 0]))
    assert equal(part.fetch(torch.tensor([1, 0])), whole.fetch(torch.tensor([0, 4])))
    assert list(part.names) == ["toys row 4", "toys row 0"]
    assert part.shape == whole.shape
    known = whole.labelled()
    assert known.labels is not None
    assert known.labels.tolist() == [0, 1, 1, 0]
    assert known.labelled() is known
    assert list(known.names) == ["toys row 0", "toys row 2", "toys row 3", "toys row 5"]
    assert whole.digest() == whole.subset(torch.arange(6)).digest() != known.digest()
    assert whole.in_memory != isinstance(samples, OnDemand)


# Operations on samples of any rank


class Negate(BatchAugment):
    kind = "anything"

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        self.shape = shape
        return {"sign": 1 - 2 * draw.uniform(1).round()[:, 0]}

    def apply(self, samples: Any, params: Params) -> Any:
        def negated(x: Tensor) -> Tensor:
            return -x

        return {name: negated(x) for name, x in samples.items()} if isinstance(samples, dict) else negated(samples)


@pytest.mark.parametrize(
    "samples",
    [
        torch.rand(64),
        torch.rand(64, 5),
        torch.rand(64, 2, 3, 4, 5),
        {"x": torch.rand(64, 5), "y": torch.rand(64, 2, 3)},
    ],
)
@pytest.mark.parametrize("compiling", [False, True])
def test_masks_are_by_row_for_any_rank(samples: Samples, compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by the way of a compiler and a GPU, which never takes rows out."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    op, draw = Negate(0.5), Draw(0, 0, torch.arange(64), 0, "negate")
    found = op(samples, draw)
    chosen = op.plan(draw, 64, shape_of(samples))[1]
    assert chosen is not None
    assert 16 < chosen.sum() < 48
    assert op.shape == shape_of(samples)
    assert shape_of(found) == shape_of(samples)
    for old, new in zip(tensors(samples), tensors(found), strict=True):
        assert torch.equal(new[chosen], -old[chosen])
        assert torch.equal(new[~chosen], old[~chosen])


@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (3, 8, 8)])
def test_mixup_blends_samples_of_any_rank(shape: tuple[int, ...]) -> None:
    x, draw = torch.rand(6, *shape), Draw(0, 0, torch.arange(6), 0, "mix")
    mixed, share = MixUp()(x, draw)
    for i in range(6):
        torch.testing.assert_close(mixed[i], share[i] * x[i] + (1 - share[i]) * x[i ^ 1])


def test_what_cannot_be_mixed_is_refused_in_one_line() -> None:
    draw = Draw(0, 0, torch.arange(6), 0, "mix")
    with pytest.raises(UserError, match="CutMix exchanges parts of images, and these views have 1 dim"):
        CutMix()(torch.rand(6, 7), draw)
    with pytest.raises(UserError, match="MixUp mixes numbers, and these views hold codes"):
        MixUp()(torch.arange(6), draw)
