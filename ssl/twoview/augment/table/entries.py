"""Operations on the entries of rows: other values, noise, columns taken away."""

import math
from typing import Literal

import torch
from torch import Tensor

from twoview.augment.operation import BatchAugment, Params
from twoview.data.demand import Shape
from twoview.data.set import SampleSet
from twoview.data.table.rows import TableRows
from twoview.errors import UserError
from twoview.rng import Draw


class TableAugment(BatchAugment):
    """An operation on rows (B, F), which knows the training set's: entries of numbers, NaN where one is missing; of a
    category its place among the values, 0 where it is missing.
    """

    kind = "table"

    def attach(self, train: SampleSet) -> None:
        if not isinstance(train.preprocess, TableRows) or not isinstance(train.samples, Tensor):
            raise UserError(f"{type(self).__name__} works on rows of a table, and {train.name} has none")
        self._rows = train.samples  # (N, F)
        self._preprocess = train.preprocess
        device = self._rows.device
        self._category = torch.tensor(train.preprocess.categorical, device=device)  # (F,)
        self._std = train.preprocess.std.to(device)  # (F,)

    @property
    def rows(self) -> Tensor:
        """All rows of the training set (N, F)."""
        found: Tensor | None = getattr(self, "_rows", None)
        if found is None:
            raise UserError(f"{type(self).__name__} knows no table yet: attach the training set first")
        return found


def share_of(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise UserError(f"{name} must lie in [0, 1], not {value}")
    return float(value)


class Corrupt(TableAugment):
    """Each entry is replaced with probability `share` (SCARF, Bahri et al., ICLR 2022, arXiv 2106.15147, which replaces
    a fixed number of a row's entries).

    `source`: "marginal", the entry of a training row that is drawn for this entry alone; "zero", 0 for numbers and
    "missing" for categories; "mean", the column's mean, of a category its commonest value. A missing entry of the
    drawn row is taken as such, for it is part of the column's distribution.
    """

    def __init__(
        self, share: float = 0.25, source: Literal["marginal", "zero", "mean"] = "marginal", p: float = 1.0
    ) -> None:
        super().__init__(p)
        self.share = share_of("Corrupt: share", share)
        if source not in ("marginal", "zero", "mean"):
            raise UserError(f"Corrupt: source is marginal, zero or mean, not {source!r}")
        self.source = source

    def attach(self, train: SampleSet) -> None:
        super().attach(train)
        self._fill = torch.zeros(self.rows.shape[1], device=self.rows.device)  # (F,)
        if self.source == "mean":
            self._fill = self._preprocess.mean.to(self.rows.device).clone()
            for i in self._category.nonzero().flatten().tolist():
                self._fill[i] = self.rows[:, i].long().bincount()[1:].argmax() + 1

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`chosen` (n, F) bool; `other` (n, F) int64: the training row that each entry would come from."""
        F, N = shape[0], len(self.rows)
        chosen = draw.uniform(F) < self.share
        if self.source != "marginal":
            return {"chosen": chosen}
        return {"chosen": chosen, "other": (draw.of(f"{draw.stream}/other").uniform64(F) * N).long()}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        new = self.rows.gather(0, params["other"]) if "other" in params else self._fill
        return torch.where(params["chosen"], new, x)


class Jitter(TableAugment):
    """Normal noise on numbers, `deviation` of the column's own; categories and missing entries stay."""

    def __init__(self, deviation: float = 0.1, p: float = 1.0) -> None:
        super().__init__(p)
        if not 0 <= deviation < math.inf:
            raise UserError(f"Jitter: deviation must be finite and not negative, not {deviation}")
        self.deviation = deviation

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`normal` (n, F)."""
        u = draw.uniform64(shape[0]) + 2.0**-33  # in (0, 1)
        return {"normal": (math.sqrt(2) * torch.erfinv(2 * u - 1)).float()}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        _ = self.rows  # says what is missing
        return x + self.deviation * torch.where(self._category, 0, self._std) * params["normal"]


class Columns(TableAugment):
    """Keeps a run of neighbouring columns, `share` of all, that begins anywhere and goes on at the first column; the
    others are missing (SubTab's subsets, Ucar et al., NeurIPS 2021, arXiv 2110.04361, which has a few fixed ones). At
    least one stays.
    """

    def __init__(self, share: float = 0.75, p: float = 1.0) -> None:
        super().__init__(p)
        self.share = share_of("Columns: share", share)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`first` (n,) int64: the column that is kept first."""
        return {"first": (draw.uniform64(1)[:, 0] * shape[0]).long()}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        F = len(self.rows[0])
        behind = (torch.arange(F, device=x.device) - params["first"][:, None]) % F  # (B, F)
        missing = torch.where(self._category, 0.0, math.nan)
        return torch.where(behind < max(1, round(self.share * F)), x, missing)


class Shuffle(TableAugment):
    """Puts the entries of a row into other columns, each scaled to where it goes: what a column means is lost. To be
    found harmful by a study, as a 6 made into a 9 is. Categories change places among themselves, and so do numbers.
    """

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`key` (n, F): the entries of a row go by its order."""
        return {"key": draw.uniform64(shape[0])}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        _ = self.rows  # says what is missing
        mean = self._preprocess.mean.to(x.device)
        scaled, out = (x - mean) / self._std, x.clone()
        for members in (~self._category, self._category):
            at = members.nonzero().flatten()
            order = params["key"][:, at].argsort(1)
            out[:, at] = scaled[:, at].gather(1, order) * self._std[at] + mean[at]
        if self._category.any():
            most = self._rows.amax(0)  # values of the category that an entry goes to
            out[:, self._category] = out[:, self._category].minimum(most[self._category])
        return out
