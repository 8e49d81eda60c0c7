"""Operations on rows: their laws, scikit-learn's neighbours, and views that are a function of their counters alone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from twoview.augment.image.geometric import HorizontalFlip
from twoview.augment.operation import BatchAugment
from twoview.augment.table.entries import Columns, Corrupt, Jitter, Shuffle
from twoview.augment.table.others import RowMix, Smote, nearest
from twoview.augment.views import TwoViews
from twoview.data.preprocess import Preprocess
from twoview.data.set import SampleSet
from twoview.data.table.rows import TableRows
from twoview.errors import UserError
from twoview.rng import Draw

N = 4000
ROWS = TableRows(
    [
        {"name": "a", "mean": 0.0, "std": 1.0, "edges": [-3.0, 0.0, 3.0]},
        {"name": "b", "mean": 10.0, "std": 5.0, "edges": [0.0, 20.0]},
        {"name": "c", "values": ["x", "y", "z"]},
    ]
)


def values(n: int = N, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=g)
    x[:, 1] = 10 + 5 * x[:, 1]
    x[:, 2] = torch.multinomial(torch.tensor([0.1, 0.6, 0.2, 0.1]), n, replacement=True, generator=g).float()
    x[::10, 0] = math.nan
    return x


def train_set(n: int = N) -> SampleSet:
    return SampleSet("rows", values(n), None, (), ROWS)


def draw(n: int = N, epoch: int = 0, view: int = 0) -> Draw:
    return Draw(0, epoch, torch.arange(n), view, "op")


def attached(op: Any) -> Any:
    op.attach(train_set())
    return op


ALL: list[BatchAugment] = [
    Corrupt(), Corrupt(source="zero"), Corrupt(source="mean"), Jitter(), Columns(), Shuffle(), RowMix(), Smote()
]  # fmt: skip


@pytest.mark.parametrize("op", ALL, ids=repr)
def test_views_do_not_depend_on_the_batch_and_are_rows_of_the_table(op: BatchAugment) -> None:
    views = TwoViews({"op": op}, ROWS)
    views.attach(train_set())
    x, index = values(), torch.arange(N)
    whole = views(x, index, epoch=1)
    part = views(x[5:7], index[5:7], epoch=1)
    for a, b in zip(whole, part, strict=True):
        assert a.shape == (N, ROWS.width)
        assert a.isfinite().all()
        torch.testing.assert_close(a[5:7], b)
    assert not torch.equal(whole[0], whole[1])
    for prepared in views.prepared(x, index, epoch=1):
        assert set(prepared[:, 2].unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}  # a category stays one


def test_corruption_keeps_the_marginal_of_every_column() -> None:
    x = attached(Corrupt(share=1.0))(torch.zeros(N, 3), draw())
    there = values()
    expected = there[:, 2].long().bincount(minlength=4) / N
    found = x[:, 2].long().bincount(minlength=4)
    chi = ((found - N * expected).square() / (N * expected)).sum()
    assert chi < 16.27  # 0.001 of chi-square, 3 degrees of freedom
    assert float(x[:, 0].isnan().double().mean()) == pytest.approx(0.1, abs=0.02)
    assert float(x[:, 1].mean()) == pytest.approx(float(there[:, 1].mean()), abs=0.4)
    # entries of one row come from rows of their own: columns lose what they had in common
    assert not torch.isin(x[:, 1], there[:, 1]).logical_not().any()


def test_corruption_changes_its_share() -> None:
    x = values()
    new = attached(Corrupt(share=0.25, source="zero"))(x, draw())
    assert float((new[:, 1] == 0).double().mean()) == pytest.approx(0.25, abs=0.03)
    filled = attached(Corrupt(share=1.0, source="mean"))(x, draw())
    assert filled[0].tolist() == [0.0, 10.0, float(x[:, 2].long().bincount()[1:].argmax() + 1)]


def test_jitter_is_in_deviations_and_leaves_categories() -> None:
    x = values()
    change = attached(Jitter(0.2))(x, draw()) - x
    assert float(change[:, 1].std()) == pytest.approx(0.2 * 5, rel=0.05)
    assert not change[:, 2].any()
    assert torch.equal(change[:, 0].isnan(), x[:, 0].isnan())


@pytest.mark.parametrize("share", [0.0, 0.34, 0.67, 1.0])
def test_columns_keeps_neighbours_and_at_least_one(share: float) -> None:
    x = values()
    x[:, 0], x[:, 2] = 1.0, 1.0
    new = attached(Columns(share))(x, draw())
    kept = (new == x).sum(1)
    assert (kept == max(1, round(3 * share))).all()


def test_a_row_between_two() -> None:
    op, x = attached(RowMix(1.0)), values()
    params = op.sample(draw(), N, (3,))
    new, other = op.apply(x, params), values()[params["other"]]
    low, high = torch.minimum(x, other)[:, 1], torch.maximum(x, other)[:, 1]
    assert ((new[:, 1] >= low - 1e-4) & (new[:, 1] <= high + 1e-4)).all()
    assert ((new[:, 2] == x[:, 2]) | (new[:, 2] == other[:, 2])).all()
    assert torch.equal(new[:, 0].isnan(), x[:, 0].isnan())


def test_neighbours_are_scikit_learns() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    x = ROWS.raw(values(500))
    theirs = neighbors.NearestNeighbors(n_neighbors=6).fit(x.numpy()).kneighbors(x.numpy())[0][:, 1:]
    ours = (x[:, None] - x[nearest(x, 5)]).norm(dim=2)
    torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), atol=1e-3, rtol=0)


def test_smote_goes_to_a_neighbour_of_the_row() -> None:
    op = attached(Smote(neighbours=3))
    params = op.sample(draw(), N, (3,))
    near = nearest(ROWS.raw(values()), 3)
    assert (near == params["other"][:, None]).any(1).all()
    assert all(len((params["other"] == near[:, i]).nonzero()) > N / 5 for i in range(3))


def test_shuffled_columns_lose_their_meaning_and_keep_their_scale() -> None:
    x = values()
    x[:, 0] = torch.randn(N, generator=torch.Generator().manual_seed(3))
    new = attached(Shuffle())(x, draw())
    same = new[:, 1] == x[:, 1]
    moved = (new[~same, 1] - 10) / 5
    torch.testing.assert_close(moved, x[~same, 0], atol=1e-4, rtol=1e-4)
    assert float(same.double().mean()) == pytest.approx(0.5, abs=0.05)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(UserError, match="operation on data of the kind image, and these are of the kind table"):
        TwoViews({"flip": HorizontalFlip()}, ROWS)
    with pytest.raises(UserError, match="attach the training set first"):
        Corrupt()(values(), draw())
    with pytest.raises(UserError, match="works on rows of a table"):
        Corrupt().attach(SampleSet("others", torch.rand(3, 2), None, (), Preprocess()))
    with pytest.raises(UserError, match="has only 4 rows"):
        Smote(neighbours=4).attach(train_set(4))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Corrupt(share=1.5),
        lambda: Corrupt(source="best"),  # type: ignore[arg-type]
        lambda: Jitter(-1),
        lambda: Columns(2),
        lambda: RowMix(-0.1),
        lambda: Smote(0),
    ],
)
def test_bad_values_are_refused_by_name(make: Any) -> None:
    with pytest.raises(UserError, match=r"^(Corrupt|Jitter|Columns|RowMix|Smote): "):
        make()
