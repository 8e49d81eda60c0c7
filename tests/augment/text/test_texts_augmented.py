"""Operations on words: their laws, padding that stays padding, and views that are a function of their counters."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twoview.augment.operation import BatchAugment
from twoview.augment.table.entries import Jitter
from twoview.augment.text.others import Cached, Insert, Replace, Synonym
from twoview.augment.text.words import Cutoff, Delete, Mask, Span, Swap, length
from twoview.augment.views import TwoViews
from twoview.data.preprocess import Preprocess
from twoview.data.set import SampleSet
from twoview.data.text.words import BLANK, FIRST, MASK, UNKNOWN, Words
from twoview.errors import UserError
from twoview.rng import Draw

N, L, V = 3000, 12, 40
WORDS = Words([f"word{i}" for i in range(V - FIRST)], [1.0 + i / V for i in range(V - FIRST)])


def texts(n: int = N) -> Tensor:
    """Of 1 to L words, all of them different."""
    g = torch.Generator().manual_seed(0)
    ids = torch.stack([FIRST + torch.randperm(V - FIRST, generator=g)[:L] for _ in range(n)])
    return torch.where(torch.arange(L) < 1 + torch.arange(n)[:, None] % L, ids, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordNet in which word i and word i + 1 are synonyms for even i below 20."""
    folder = tmp_path_factory.mktemp("wordnet")
    pairs = [f"{i:08} 00 n 02 word{i} 0 word{i + 1} 0 000 | both\n" for i in range(0, 20, 2)]
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("  licence\n" + "".join(pairs if part == "noun" else []))
    return folder


def operations(folder: Path) -> list[BatchAugment]:
    return [
        *(Delete(0.5), Delete(1.0), Mask(0.5), Mask(1.0), Span(), Span([0, 0]), Cutoff(), Cutoff([1, 1])),
        *(Swap(0.5), Insert(0.3), Insert(0.3, folder), Synonym(folder, 1.0), Replace()),
    ]


def act(op: Any, ids: Tensor | None = None, epoch: int = 0) -> Tensor:
    ids = texts() if ids is None else ids
    op.attach(SampleSet("texts", texts(), None, (), WORDS))
    return op(WORDS.prepare(ids), Draw(0, epoch, torch.arange(len(ids)), 0, "op"))["ids"]


@pytest.mark.parametrize("which", range(13))
def test_views_do_not_depend_on_the_batch_and_padding_stays_padding(folder: Path, which: int) -> None:
    op = operations(folder)[which]
    views = TwoViews({"op": op}, WORDS)
    views.attach(SampleSet("texts", texts(), None, (), WORDS))
    x, index = texts(), torch.arange(N)
    whole, part = views(x, index, epoch=1), views(x[5:9], index[5:9], epoch=1)
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[5:9], b)
        ids = a[:, 0].long()
        there = ids > 0
        assert there.equal(torch.arange(L) < length(ids)[:, None])  # nothing behind the first padding
        assert (a[:, 1] > 0).any(1).all()  # something is said
        assert ids.max() < V
    if not isinstance(op, Synonym | Cutoff):  # which here may leave nothing to chance
        assert not torch.equal(whole[0], whole[1])


def test_the_only_word_stays(folder: Path) -> None:
    one = torch.zeros(500, L, dtype=torch.int64)
    one[:, 0] = UNKNOWN
    for op in (Delete(1.0), Mask(1.0), Span(), Cutoff([1, 1]), Swap(), Synonym(folder, 1.0)):
        assert torch.equal(act(op, one), one), op


def test_deletion_takes_its_share_and_keeps_the_order() -> None:
    ids = texts()[L - 1 :: L]  # of L words
    new = act(Delete(0.3), ids)
    assert float(length(new).double().mean()) == pytest.approx(0.7 * L, abs=0.15)
    for old, found in zip(ids.tolist()[:50], new.tolist()[:50], strict=True):
        kept = [i for i in found if i]
        assert [i for i in old if i in kept] == kept


@pytest.mark.parametrize(("op", "sign"), [(Mask(0.3), MASK), (Cutoff([0.25, 0.25]), BLANK)])
def test_hidden_words_keep_their_place(op: BatchAugment, sign: int) -> None:
    ids = texts()[L - 1 :: L]
    new = act(op, ids)
    hidden = new == sign
    assert torch.equal(new[~hidden], ids[~hidden])
    assert float(hidden.double().mean()) == pytest.approx(0.3 if sign == MASK else 0.25, abs=0.03)
    if sign == BLANK:
        assert hidden.sum(1).eq(3).all()
        assert (hidden.long().diff(dim=1).abs().sum(1) <= 2).all()  # neighbours
        assert not WORDS(new)[:, 1][hidden].any()


def test_a_span_is_neighbours_that_begin_anywhere() -> None:
    ids = texts()[L - 1 :: L]
    new = act(Span([0.5, 0.5]), ids)
    assert length(new).eq(6).all()
    starts = (ids == new[:, :1]).long().argmax(1)
    assert torch.equal(ids.gather(1, starts[:, None] + torch.arange(6)), new[:, :6])
    chi = ((starts.bincount(minlength=7) - len(ids) / 7).square() / (len(ids) / 7)).sum()
    assert chi < 22.46  # 0.001 of chi-square, 6 degrees of freedom


def test_swaps_are_as_many_as_their_share_and_lose_no_word() -> None:
    ids = texts()[L - 1 :: L]
    new = act(Swap(0.1), ids)
    assert torch.equal(new.sort(1).values, ids.sort(1).values)
    changed = (new != ids).sum(1)
    assert set(changed.tolist()) == {0, 2}  # once, and at times a word with itself
    assert float((changed == 0).double().mean()) == pytest.approx(1 / L, abs=0.06)


def test_insertion_is_before_a_word_that_is_drawn() -> None:
    ids = texts()[L - 2 :: L]  # of L - 1 words: room for one
    new = act(Insert(0.1), ids)
    assert length(new).eq(L).all()
    for old, found in zip(ids.tolist()[:50], new.tolist()[:50], strict=True):
        assert any(found[:i] + found[i + 1 :] == old[:-1] for i in range(L))
    last = act(Insert(0.1), texts()[:1].expand(2000, -1))  # one word: before and behind it
    assert float((last[:, 0] == texts()[0, 0]).double().mean()) == pytest.approx(0.5, abs=0.06)


def test_synonyms_are_wordnets(folder: Path) -> None:
    ids = texts()
    new = act(Synonym(folder, 1.0), ids)
    has = (ids >= FIRST) & (ids < FIRST + 20)
    assert torch.equal(new[~has], ids[~has])
    assert torch.equal(new[has], ((ids[has] - FIRST) ^ 1) + FIRST)
    some = act(Synonym(folder, 0.3), ids)
    assert float((some != ids)[has].double().mean()) == pytest.approx(0.3, abs=0.03)
    inserted = act(Insert(0.1, folder), texts()[L - 2 :: L])
    for old, found in zip(texts()[L - 2 :: L].tolist()[:50], inserted.tolist()[:50], strict=True):
        fresh = set(found) - set(old)
        assert len(fresh) <= 1
        assert all(((i - FIRST) ^ 1) + FIRST in old for i in fresh)


def test_strange_words_come_as_often_as_the_texts_have_them() -> None:
    ids = torch.full((N, L), FIRST)
    new = act(Replace(1.0), ids)
    expected = torch.zeros(V)
    for text in texts():
        own = text[text > 0]
        expected[own] += 1 / len(own) / N  # a text by chance, then one of its words
    found = new.flatten().bincount(minlength=V) / new.numel()
    deviation = (expected * (1 - expected) / new.numel()).sqrt()
    assert ((found - expected).abs() <= 5 * deviation + 1e-9).all()


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The versions of the even texts: their words in reverse."""
    lines = [" ".join(reversed(text.split())) for text in WORDS.read(texts())]
    rows = [f"{text},{line}" for text, line in zip(WORDS.read(texts()), lines, strict=True)][::2]
    (tmp_path / "versions.csv").write_text("\n".join(["text,back", *rows]) + "\n")
    return tmp_path / "versions.csv"


def test_a_version_takes_the_place_of_its_text(stored: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids, new = texts(), act(Cached(stored, p=1.0))
    assert "1,500 of 3,000 training texts have no version and stay" in caplog.text
    assert torch.equal(new[1::2], ids[1::2])
    for old, found in zip(ids[::2].tolist(), new[::2].tolist(), strict=True):
        assert [i for i in found if i] == [i for i in old if i][::-1]
    half = act(Cached(stored, p=0.5))
    long = length(ids) > 1
    assert float((half != ids).any(1)[::2][long[::2]].double().mean()) == pytest.approx(0.5, abs=0.06)
    op = Cached(stored, p=1.0)
    op.attach(SampleSet("texts", texts(), None, (), WORDS))
    strange = op(WORDS.prepare(ids[:4]), Draw(0, 0, torch.arange(N, N + 4), 0, "op"))["ids"]
    assert torch.equal(strange, ids[:4])  # of no training text


def test_versions_that_are_not_there_are_said(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no column there: its columns are text, back"):
        act(Cached(stored, "there"))
    with pytest.raises(UserError, match=r"there is no file of versions nowhere\.csv: twoview translate makes one"):
        act(Cached("nowhere.csv"))
    (tmp_path / "others.csv").write_text("text,back\nhello,there\nyou,two\n")
    with pytest.raises(UserError, match="has no version of any training text of texts"):
        act(Cached(tmp_path / "others.csv"))


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="operation on data of the kind table, and these are of the kind text"):
        TwoViews({"jitter": Jitter()}, WORDS)
    with pytest.raises(UserError, match="attach the training set first"):
        Replace()(WORDS.prepare(texts()), Draw(0, 0, torch.arange(N), 0, "op"))
    with pytest.raises(UserError, match="Swap works on texts, and others has none"):
        Swap().attach(SampleSet("others", torch.rand(3, 2), None, (), Preprocess()))
    with pytest.raises(UserError, match="lacks WordNet's"):
        act(Synonym(tmp_path))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Delete(1.5),
        lambda: Mask(-0.1),
        lambda: Span([0.5, 1.5]),
        lambda: Cutoff([0.5, 0.2]),
        lambda: Swap(math.nan),
        lambda: Insert(2),
        lambda: Synonym("x", 2),
        lambda: Replace(-1),
    ],
)
def test_bad_values_are_refused_by_name(make: Any) -> None:
    with pytest.raises(UserError, match=r"^(Delete|Mask|Span|Cutoff|Swap|Insert|Synonym|Replace): "):
        make()
