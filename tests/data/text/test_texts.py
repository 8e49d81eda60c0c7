"""Texts as people have them: how they are cut, what the vocabulary learns and from where, and what is said of them."""

import logging
import math
from pathlib import Path

import pytest
import torch

from twoview.data.text.files import texts
from twoview.data.text.wordnet import synonyms
from twoview.data.text.words import FIRST, UNKNOWN, Words, cut
from twoview.errors import UserError
from twoview.run.checkpoint import instantiate_own

SAID = ["I lost my card", "Where is my card?", "send MONEY, please", "the money's gone"]


def write(folder: Path, said: list[str], name: str = "train.csv") -> Path:
    folder.mkdir(exist_ok=True)
    lines = ["text,label", *(f'"{text}",{("a", "b")[row // 2 % 2]}' for row, text in enumerate(said))]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Where's my card?!", ["where's", "my", "card"]),
        ("Where\u2019s it", ["where's", "it"]),
        ("Zürich 24/7 \U0001f600", ["zürich", "24", "7"]),
        ("我的卡 lost", ["我", "的", "卡", "lost"]),
        ("?!", []),
    ],
)
def test_how_texts_are_cut(text: str, words: list[str]) -> None:
    assert cut(text) == words


def test_texts_come_back_as_words_and_unknown_ones_are_marked(tmp_path: Path) -> None:
    write(tmp_path, SAID)
    write(tmp_path, ["my elephant is lost"], "test.csv")
    train, test = texts(tmp_path, "train"), texts(tmp_path, "test")
    assert train is not None
    assert test is not None
    assert isinstance(train.preprocess, Words)
    assert train.samples.dtype == torch.int64  # type: ignore[union-attr]
    assert train.preprocess.read(train.samples)[:2] == ["i lost my card", "where is my card"]
    assert test.preprocess.read(test.samples) == ["my [?] is lost"]  # type: ignore[attr-defined]
    assert train.classes == ("a", "b")
    assert train.labels.tolist() == [0, 0, 1, 1]  # type: ignore[union-attr]
    # nothing is learned from the test split
    assert train.preprocess.describe() == test.preprocess.describe()
    assert "elephant" not in train.preprocess.words


def test_weights_are_scikit_learns_and_travel_in_what_describes_them(tmp_path: Path) -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    train = texts(write(tmp_path, SAID), "train")
    assert train is not None
    theirs = text.TfidfVectorizer(tokenizer=cut, token_pattern=None, lowercase=False)
    x = torch.from_numpy(theirs.fit_transform(SAID).toarray()).float()
    order = [theirs.vocabulary_[word] for word in train.preprocess.words]  # type: ignore[attr-defined]
    raw = train.preprocess.raw(train.samples)  # type: ignore[attr-defined]
    torch.testing.assert_close(raw[:, FIRST:], x[:, order])
    again = instantiate_own(train.preprocess.describe(), "preprocess")
    torch.testing.assert_close(again(train.samples), train.preprocess(train.samples))


def test_what_the_encoder_gets(tmp_path: Path) -> None:
    train = texts(write(tmp_path, SAID), "train", length=5)
    assert train is not None
    x = train.preprocess(train.samples)
    assert x.shape == (4, 3, 5)
    assert torch.equal(x[:, 0].long(), train.samples)
    assert (x[:, 1] > 0).equal(train.samples > 0)
    my = train.preprocess.number["my"]  # type: ignore[attr-defined]
    assert x[0, 1, 2] == pytest.approx(math.log(5 / 3) + 1)
    assert x[0, 0, 2] == my
    assert not x[:, 2].any()


def test_only_the_commonest_words_have_numbers(tmp_path: Path) -> None:
    train = texts(write(tmp_path, SAID), "train", words=FIRST + 2)
    assert train is not None
    assert train.preprocess.words == ["card", "my"]  # type: ignore[attr-defined]
    assert int(train.samples.max()) == FIRST + 1  # type: ignore[union-attr]


def test_empty_texts_are_one_unknown_word_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train = texts(write(tmp_path, [*SAID, "", "?!", "card"]), "train")
    assert train is not None
    assert "2 of 7 texts" in caplog.text
    assert train.samples[4:6, :2].tolist() == [[UNKNOWN, 0]] * 2  # type: ignore[index]
    assert train.preprocess(train.samples)[4:6, 1].sum(1).gt(0).all()


def test_long_texts_lose_their_end_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train = texts(write(tmp_path, SAID), "train", length=3)
    assert train is not None
    assert "2 of 4 texts" in caplog.text
    assert train.preprocess.read(train.samples)[0] == "i lost my"  # type: ignore[attr-defined]


def test_a_line_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(SAID))
    train, test = (texts(tmp_path / "a.txt", split, holdout=0.25) for split in ("train", "test"))
    assert train is not None
    assert test is not None
    assert train.labels is None
    assert "where is my card" in train.preprocess.read(train.samples)  # type: ignore[attr-defined]
    assert (len(train), len(test)) == (3, 1)


def test_parquet_is_the_same_as_csv(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "b").mkdir()
    pq.write_table(pa.table({"text": SAID, "label": list("aabb")}), tmp_path / "b" / "train.parquet")
    a, b = texts(write(tmp_path / "a", SAID), "train"), texts(tmp_path / "b", "train")
    assert a is not None
    assert b is not None
    assert a.digest() == b.digest()


def test_words_of_other_versions_enter_the_vocabulary(tmp_path: Path) -> None:
    write(tmp_path / "data", SAID)
    (tmp_path / "other.csv").write_text("text,back\nI lost my card,I mislaid my ticket\n")
    train = texts(tmp_path / "data", "train", also=tmp_path / "other.csv")
    assert train is not None
    assert {"mislaid", "ticket"} <= set(train.preprocess.words)  # type: ignore[attr-defined]


BAD = {
    "a column that is not there": ({"text_column": "body"}, "data.text_column names body; the columns are text"),
    "no label column": ({"label_column": "intent"}, "data.label_column names intent"),
    "no room": ({"length": 0}, "data.length=0"),
    "no words": ({"words": 3}, "data.words=3"),
    "no such file": ({"also": "nowhere.csv"}, "there is no file data.also=nowhere.csv"),
    "no tokenizer": ({"tokenizer": "nowhere.json"}, "there is no file data.tokenizer=nowhere.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(tmp_path: Path, case: str) -> None:
    arguments, message = BAD[case]
    write(tmp_path, SAID)
    with pytest.raises(UserError, match=message):
        texts(tmp_path, "train", **arguments)  # type: ignore[arg-type]


def test_a_column_without_a_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no text in column 'text' of .* has a word"):
        texts(write(tmp_path, ["?", "!", "...", ""]), "train")


def wordnet(folder: Path) -> Path:
    """Three meanings in WordNet's format: {card, ticket, calling_card}, {send, post, mail}, {lost, gone}."""
    licence = "  1 This software and database is being provided to you\n"
    lines = {
        "noun": "00001740 06 n 03 card 0 ticket 1 calling_card 0 001 @ 00001930 n 0000 | a card  \n",
        "verb": "00001741 35 v 03 send 0 post 0 Mail 2 000 01 + 08 00 | to send  \n",
        "adj": "00001742 00 s 02 lost(p) 0 gone 0 000 | not there  \n",
        "adv": "",
    }
    folder.mkdir(exist_ok=True)
    for part, line in lines.items():
        (folder / f"data.{part}").write_text(licence + line)
    return folder


def test_synonyms_are_those_of_wordnets_files(tmp_path: Path) -> None:
    found = synonyms(wordnet(tmp_path / "dict"))
    assert found["card"] == {"ticket"}
    assert found["mail"] == {"send", "post"}
    assert found["lost"] == {"gone"}
    assert not any("_" in word for word in found)


def test_a_wordnet_that_is_not_there_or_damaged_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks WordNet's data.noun, .*apt install wordnet-base"):
        synonyms(tmp_path)
    wordnet(tmp_path)
    (tmp_path / "data.verb").write_text("  licence\nnothing of the kind\n")
    with pytest.raises(UserError, match=r"data.verb, line 2, is no line"):
        synonyms(tmp_path)
