"""Operations that mix a row with others of the training set."""

import torch
from torch import Tensor

from twoview.augment.operation import Params
from twoview.augment.table.entries import TableAugment, share_of
from twoview.data.demand import Shape
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.rng import Draw

_AT_ONCE = 2**24  # distances in memory


class RowMix(TableAugment):
    """Another row of the training set mixed in: numbers become (1 - s) of their own and s of the other's, categories
    are the other's with probability s. `share`: the largest s, which is uniform from 0 on. Where either number is
    missing, the row keeps its own.
    """

    def __init__(self, share: float = 0.4, p: float = 1.0) -> None:
        super().__init__(p)
        self.share = share_of("RowMix: share", share)

    def other(self, draw: Draw) -> Tensor:
        """The number of the other row in the training set, int64 (n,)."""
        return (draw.of(f"{draw.stream}/other").uniform64(1)[:, 0] * len(self.rows)).long()

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`other` (n,) int64: its number; `share` (n,): of the other; `chance` (n, F): below it a category changes."""
        u = draw.uniform(1 + shape[0])
        return {"other": self.other(draw), "share": self.share * u[:, 0], "chance": u[:, 1:]}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        other, share = self.rows[params["other"]], params["share"][:, None]
        mixed = torch.lerp(x, other, share)
        numbers = torch.where(mixed.isnan(), x, mixed)
        return torch.where(self._category, torch.where(params["chance"] < share, other, x), numbers)


class Smote(RowMix):
    """A point between a row and one of its `neighbours` nearest rows of the training set (SMOTE, Chawla et al., JAIR
    2002, arXiv 1106.1813, without its labels).

    Neighbours are those of the row as it is stored, by its number; they are found once. Distances are those of numbers
    in deviations from the mean, where a missing one is the mean; a category that differs adds 2 to the square.
    """

    def __init__(self, neighbours: int = 5, share: float = 1.0, p: float = 1.0) -> None:
        super().__init__(share, p)
        if neighbours < 1:
            raise UserError(f"Smote: neighbours must be at least 1, not {neighbours}")
        self.neighbours = neighbours

    def attach(self, train: SampleSet) -> None:
        super().attach(train)
        if len(self.rows) <= self.neighbours:
            raise UserError(f"Smote: neighbours={self.neighbours}, but {train.name} has only {len(self.rows)} rows")
        self._near = nearest(self._preprocess.to(self.rows.device).raw(self.rows), self.neighbours)

    def other(self, draw: Draw) -> Tensor:
        one = (draw.of(f"{draw.stream}/other").uniform64(1)[:, 0] * self.neighbours).long()
        # Numbers beyond the training set are of rows that a report shows: they get some row's neighbour.
        return self._near[draw.index % len(self.rows), one]


def nearest(x: Tensor, count: int) -> Tensor:
    """The `count` nearest other rows of each row of x (N, D): int64 (N, count), the nearest first."""
    found, squares = [], x.square().sum(1)
    for rows in torch.arange(len(x), device=x.device).split(max(1, _AT_ONCE // len(x))):
        distance = squares - 2 * x[rows] @ x.T  # (rows, N), up to a number for each row
        distance[torch.arange(len(rows)), rows] = torch.inf
        found.append(distance.topk(count, largest=False).indices)
    return torch.cat(found)
