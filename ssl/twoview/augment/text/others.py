"""Operations that bring other words into a text: synonyms, words of other texts, another version of the text."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from twoview.augment.operation import Params
from twoview.augment.text.words import TextAugment, length, share_of
from twoview.data.demand import Shape
from twoview.data.set import SampleSet
from twoview.data.text.versions import versions
from twoview.data.text.wordnet import synonyms
from twoview.data.text.words import FIRST, PADDING, Words
from twoview.errors import UserError
from twoview.rng import Draw

log = logging.getLogger(__name__)

_BEHIND = 10**6  # of every place in a text


class Synonym(TextAugment):
    """Each word that has synonyms is replaced by one of them with probability `share` (EDA, which replaces a number of
    them). Synonyms are those of WordNet's database files in the folder `wordnet` that the vocabulary has.
    """

    def __init__(self, wordnet: str | Path, share: float = 0.2, p: float = 1.0) -> None:
        super().__init__(p)
        self.wordnet, self.share = str(wordnet), share_of("Synonym: share", share)

    def attach(self, train: SampleSet) -> None:
        super().attach(train)
        self._known, self._count = _table(self._words, self.wordnet, self.texts.device)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`u` (n, L): words below the share change; `which` (n, L) in [0, 1): to which of their synonyms."""
        L = shape["ids"][0]
        return {"u": draw.uniform(L), "which": draw.of(f"{draw.stream}/which").uniform64(L)}

    def change(self, ids: Tensor, params: Params) -> Tensor:
        _ = self.texts  # says what is missing
        new = _synonym(self._known, self._count, ids, params["which"])
        return torch.where((params["u"] < self.share) & (self._count[ids] > 0), new, ids)


class Insert(TextAugment):
    """New words at places that are drawn, as many as `share` of the text's length, one at least: synonyms of its own
    words, which are drawn too (EDA), or without `wordnet` words of other training texts. What is then too long loses
    its end; a word without synonyms brings none.
    """

    def __init__(self, share: float = 0.1, wordnet: str | Path | None = None, p: float = 1.0) -> None:
        super().__init__(p)
        self.share, self.wordnet = share_of("Insert: share", share), wordnet

    def attach(self, train: SampleSet) -> None:
        super().attach(train)
        if self.wordnet is not None:
            self._known, self._count = _table(self._words, self.wordnet, self.texts.device)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`at`, `of`, `which` (n, K) in [0, 1): before which word, of which word a synonym, and which; or `new` (n, K)
        int64, the words themselves.
        """
        K = max(1, round(self.share * shape["ids"][0]))
        u = draw.uniform64(3 * K)
        if self.wordnet is None:
            return {"at": u[:, :K], "new": self.others(draw, K)}
        return {"at": u[:, :K], "of": u[:, K : 2 * K], "which": u[:, 2 * K :]}

    def change(self, ids: Tensor, params: Params) -> Tensor:
        n = length(ids)[:, None]
        if "new" in params:
            new, comes = params["new"], torch.ones_like(params["new"], dtype=torch.bool)
        else:
            of = ids.gather(1, (params["of"] * n).long())
            new, comes = _synonym(self._known, self._count, of, params["which"]), self._count[of] > 0
        times = (self.share * n).round().clamp(min=1)
        comes = comes & (torch.arange(new.shape[1], device=ids.device) < times)
        at = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        places = torch.cat(  # in halves: a new word stands before the one at its place
            [
                torch.where(comes, 2 * (params["at"] * (n + 1)).long() - 1, _BEHIND),
                torch.where(ids != PADDING, 2 * at, _BEHIND),
            ],
            dim=1,
        )
        words = torch.cat([torch.where(comes, new, PADDING), ids], dim=1)
        return words.gather(1, places.argsort(dim=1, stable=True)[:, : ids.shape[1]])


class Replace(TextAugment):
    """Each word is replaced with probability `share` by one of another training text: what the text means is lost. To
    be found harmful by a study, as a 6 made into a 9 is.
    """

    def __init__(self, share: float = 0.8, p: float = 1.0) -> None:
        super().__init__(p)
        self.share = share_of("Replace: share", share)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`u` (n, L): words below the share change; `new` (n, L) int64: to what."""
        L = shape["ids"][0]
        return {"u": draw.uniform(L), "new": self.others(draw, L)}

    def change(self, ids: Tensor, params: Params) -> Tensor:
        return torch.where((params["u"] < self.share) & (ids != PADDING), params["new"], ids)


class Cached(TextAugment):
    """The whole text becomes another version of itself, from the column `column` of a file: a translation there and
    back, a paraphrase (`twoview translate` writes such files). The column `text` says of which text; texts without a
    version stay as they are. It stands first in a policy: what operations before it did is gone.
    """

    def __init__(self, file: str | Path, column: str = "back", p: float = 0.5) -> None:
        super().__init__(p)
        self.file, self.column = str(file), column

    def attach(self, train: SampleSet) -> None:
        super().attach(train)
        stored = versions(self.file, self.column)
        read, L = self._words, self.texts.shape[1]
        found = dict(zip(_rows(read, list(stored), L), _rows(read, list(stored.values()), L), strict=True))
        own = [tuple(text) for text in self.texts.tolist()]
        without = sum(text not in found for text in own)
        if without == len(own):
            raise UserError(f"Cached: {self.file} has no version of any training text of {train.name}")
        if without:
            log.warning("Cached: %s of %s training texts have no version and stay", f"{without:,}", f"{len(own):,}")
        self._versions = torch.tensor([found.get(text, text) for text in own], device=self.texts.device)  # (N, L)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`row` (n,) int64: the number of the text in the training set. Numbers beyond are of other texts."""
        return {"row": draw.index}

    def change(self, ids: Tensor, params: Params) -> Tensor:
        N = len(self.texts)  # says what is missing
        row = params["row"]
        return torch.where((row < N)[:, None], self._versions[row.clamp(max=N - 1)], ids)


def _rows(read: Words, texts: list[str], length: int) -> list[tuple[int, ...]]:
    """Texts as they are stored, as keys."""
    return [tuple(row) for row in read.encode([read.cut(text) for text in texts], length).tolist()]


def _table(words: Words, folder: str | Path, device: torch.device) -> tuple[Tensor, Tensor]:
    """Numbers of the synonyms of each number, int64 (V, K), and how many it has (V,)."""
    found = synonyms(folder)
    own = [
        sorted(words.number[other] for other in found.get(word, ()) if other in words.number) for word in words.words
    ]
    known = torch.zeros(FIRST + len(own), max(1, *map(len, own)), dtype=torch.int64)
    for i, numbers in enumerate(own, start=FIRST):
        known[i, : len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
    return known.to(device), (known != PADDING).sum(1).to(device)


def _synonym(known: Tensor, count: Tensor, ids: Tensor, which: Tensor) -> Tensor:
    """A synonym of each word, by `which` in [0, 1) of all that it has."""
    return known[ids, (which * count[ids]).long()]
