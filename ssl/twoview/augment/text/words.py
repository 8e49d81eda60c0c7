"""Operations on the words of texts: taken away, changed in their order, hidden."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twoview.augment.operation import BatchAugment, Params, check_range
from twoview.data.demand import Samples, Shape
from twoview.data.set import SampleSet
from twoview.data.text.words import BLANK, MASK, PADDING, Words
from twoview.errors import UserError
from twoview.rng import Draw


class TextAugment(BatchAugment):
    """An operation on texts, numbers of words `ids` (B, L): what is padding stays behind the words, and one word at
    least stays. Subclasses override `sample` and `change`.
    """

    kind = "text"

    def attach(self, train: SampleSet) -> None:
        if not isinstance(train.preprocess, Words) or not isinstance(train.samples, Tensor):
            raise UserError(f"{type(self).__name__} works on texts, and {train.name} has none")
        self._texts, self._words = train.samples, train.preprocess  # (N, L)

    @property
    def texts(self) -> Tensor:
        """All texts of the training set (N, L)."""
        found: Tensor | None = getattr(self, "_texts", None)
        if found is None:
            raise UserError(f"{type(self).__name__} knows no texts yet: attach the training set first")
        return found

    def others(self, draw: Draw, count: int) -> Tensor:
        """`count` words for each sample, each of a training text that is drawn for it alone: int64 (n, count)."""
        u = draw.of(f"{draw.stream}/other").uniform64(2 * count)
        rows = (u[:, :count] * len(self.texts)).long()
        return self.texts[rows, _place(u[:, count:], length(self.texts)[rows])]

    def apply(self, samples: Samples, params: Params) -> Samples:
        assert isinstance(samples, dict)
        return samples | {"ids": self.change(samples["ids"], params)}

    def change(self, ids: Tensor, params: Params) -> Tensor:
        """New numbers of words (B, L)."""
        raise NotImplementedError


def length(ids: Tensor) -> Tensor:
    """How many words each text has: int64 (..., ) of (..., L)."""
    return (ids != PADDING).sum(-1)


def share_of(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise UserError(f"{name} must lie in [0, 1], not {value}")
    return float(value)


def packed(ids: Tensor, keep: Tensor) -> Tensor:
    """The words to keep (B, L), in their order, and padding behind."""
    keep = keep & (ids != PADDING)
    order = (~keep).long().argsort(dim=1, stable=True)
    return torch.where(keep.gather(1, order), ids.gather(1, order), PADDING)


def some(ids: Tensor, u: Tensor, share: float) -> Tensor:
    """Which words the share picks, bool (B, L), but never all of a text: the one with the largest `u` is not picked."""
    real = ids != PADDING
    largest = u.masked_fill(~real, -1).argmax(dim=1, keepdim=True)
    return ((u < share) & real).scatter(1, largest, False)


def _place(u: Tensor, n: Tensor) -> Tensor:
    """Uniform numbers to places below n, int64."""
    return (u * n).long()


class Delete(TextAugment):
    """Each word is taken away with probability `share` (EDA, Wei & Zou, EMNLP 2019, arXiv 1901.11196)."""

    def __init__(self, share: float = 0.3, p: float = 1.0) -> None:
        super().__init__(p)
        self.share = share_of("Delete: share", share)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`u` (n, L): words below the share go."""
        return {"u": draw.uniform(shape["ids"][0])}

    def change(self, ids: Tensor, params: Params) -> Tensor:
        return packed(ids, ~some(ids, params["u"], self.share))


class Mask(TextAugment):
    """Each word is hidden behind a mask with probability `share`; its place stays."""

    def __init__(self, share: float = 0.15, p: float = 1.0) -> None:
        super().__init__(p)
        self.share = share_of("Mask: share", share)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`u` (n, L): words below the share are hidden."""
        return {"u": draw.uniform(shape["ids"][0])}

    def change(self, ids: Tensor, params: Params) -> Tensor:
        return torch.where(some(ids, params["u"], self.share), MASK, ids)


class Span(TextAugment):
    """Keeps a run of neighbouring words, a share of the text from the range `share`, that begins anywhere (CLEAR, Wu et
    al., arXiv 2012.15466, deletes spans; DeCLUTR, arXiv 2006.03659, takes them).
    """

    def __init__(self, share: Sequence[float] = (0.5, 1.0), p: float = 1.0) -> None:
        super().__init__(p)
        self.share = check_range("Span: share", share, 0, 1)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`share` (n,): of the text; `first` (n,) in [0, 1): where it begins, of all places that there are."""
        u, (low, high) = draw.uniform64(2), self.share
        return {"share": low + (high - low) * u[:, 0], "first": u[:, 1]}

    def change(self, ids: Tensor, params: Params) -> Tensor:
        return packed(ids, _run(ids, params))


class Cutoff(TextAugment):
    """A run of neighbouring words, a share of the text from the range `share`, says nothing: their embeddings are zero
    (span cutoff, Shen et al., arXiv 2009.13818; ConSERT, ACL 2021).
    """

    def __init__(self, share: Sequence[float] = (0.1, 0.3), p: float = 1.0) -> None:
        super().__init__(p)
        self.share = check_range("Cutoff: share", share, 0, 1)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`share` (n,): of the text; `first` (n,) in [0, 1): where it begins, of all places that there are."""
        u, (low, high) = draw.uniform64(2), self.share
        return {"share": low + (high - low) * u[:, 0], "first": u[:, 1]}

    def change(self, ids: Tensor, params: Params) -> Tensor:
        run = _run(ids, params)
        all_of_it = run.sum(1, keepdim=True) == length(ids)[:, None]
        first = torch.arange(ids.shape[1], device=ids.device) == 0
        return torch.where(run & ~(all_of_it & first), BLANK, ids)


def _run(ids: Tensor, params: Params) -> Tensor:
    """The run of words of `Span` and `Cutoff`, of at least one: bool (B, L)."""
    n = length(ids)
    long = (params["share"] * n).round().long().clamp(min=1)
    start = _place(params["first"], n - long + 1)[:, None]
    at = torch.arange(ids.shape[1], device=ids.device)
    return (at >= start) & (at < start + long[:, None])


class Swap(TextAugment):
    """Two words change places, as many times as `share` of the text's length, once at least (EDA)."""

    def __init__(self, share: float = 0.1, p: float = 1.0) -> None:
        super().__init__(p)
        self.share = share_of("Swap: share", share)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`u` (n, 2 times) in [0, 1): both places, of all that there are."""
        return {"u": draw.uniform64(2 * max(1, round(self.share * shape["ids"][0])))}

    def change(self, ids: Tensor, params: Params) -> Tensor:
        n = length(ids)
        times = (self.share * n).round().long().clamp(min=1)
        for i, pair in enumerate(params["u"].split(2, dim=1)):
            places = _place(pair, n[:, None])  # (B, 2)
            new = ids.scatter(1, places, ids.gather(1, places).flip(1))
            ids = torch.where((i < times)[:, None], new, ids)
        return ids
