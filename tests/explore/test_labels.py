"""Labels from a file, suggestions from a few of them, and what to label next."""

import math
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from twoview.errors import UserError
from twoview.explore import labels

NAMES = ("cats/1.png", "cats/2.png", "dogs/1.png", "dogs/3.png", "x.png")


def blobs(n: int = 300, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.arange(n) % 3
    return torch.eye(3, 10)[corner] + spread * torch.randn(n, 10, generator=generator), corner


@pytest.mark.parametrize(
    "text",
    [
        "name,label\ncats/1.png,cat\ndogs/3.png,dog\n",
        "cats/1.png,cat\ndogs/3.png, dog\n",
        "split,label,name\ntrain,cat,cats/1.png\n,dog,dogs/3.png\ntrain,,x.png\n",
        "\ufefffile,class\n/home/me/photos/cats/1.png,cat\n3.png,dog\n",
    ],
)
def test_labels_are_read_as_people_write_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    assert labels.read(tmp_path / "labels.csv", NAMES) == {0: "cat", 3: "dog"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,label\nbirds/1.png,bird\n", "the set has no birds/1.png; its first image is cats/1.png"),
        ("name,label\n1.png,cat\n", "1.png may be cats/1.png and dogs/1.png"),
        ("name,label\nx.png,cat\nx.png,dog\n", "x.png is both cat and dog"),
        ("name,label\nx.png,cat\n", "there are 1 classes"),
        ("name,colour,size\nx.png,red,3\n", "it needs the columns name and label, and has name, colour and size"),
        ("", "has none"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        labels.read(tmp_path / "labels.csv", NAMES)
    with pytest.raises(UserError, match=r"nowhere\.csv: cannot be read"):
        labels.read(tmp_path / "nowhere.csv", NAMES)


def test_suggestions_are_those_of_logistic_regression() -> None:
    x, corner = blobs()
    names = ("ant", "bee", "cow")
    given = {row: names[int(corner[row])] for row in range(60)}
    found = labels.suggest(x, given)
    assert found.classes == names
    assert found.given.tolist() == [*corner[:60].tolist(), *[-1] * 240]
    known = x[:60].double()
    mean, std = known.mean(0), known.std(0, correction=0)
    strength, right = labels.chosen(x[:60], corner[:60], 3)
    oracle = LogisticRegression(C=1 / (60 * strength), tol=1e-10, max_iter=10_000)
    oracle.fit(((known - mean) / std).numpy(), corner[:60].numpy())
    p = torch.from_numpy(oracle.predict_proba(((x.double() - mean) / std).numpy()))
    assert torch.equal(found.label, p.argmax(1))
    torch.testing.assert_close(found.certainty, p.max(1).values, atol=1e-3, rtol=0)
    assert right is not None
    assert found.right == right
    assert right.limits[0] < float((found.label == corner)[60:].double().mean()) < right.limits[1]


def test_the_strength_is_the_best_on_what_is_held_out() -> None:
    x, corner = blobs(90, spread=1.0)
    fold = labels.folds(corner)
    losses = {}
    for strength in labels.STRENGTHS:
        total = 0.0
        for number in range(5):
            out = fold == number
            mean, std = x[~out].mean(0), x[~out].std(0, correction=0)
            oracle = LogisticRegression(C=1 / (int((~out).sum()) * strength), tol=1e-8, max_iter=10_000)
            oracle.fit(((x[~out] - mean) / std).numpy(), corner[~out].numpy())
            p = oracle.predict_proba(((x[out] - mean) / std).numpy())
            total -= sum(math.log(row[label]) for row, label in zip(p, corner[out].tolist(), strict=True))
        losses[strength] = total
    assert labels.chosen(x, corner, 3)[0] == min(losses, key=lambda strength: losses[strength])


def test_one_file_of_a_class_is_never_held_out() -> None:
    fold = labels.folds(torch.tensor([0, 1, 1, 0, 2, 0, 0, 0, 0]))
    assert fold.tolist() == [0, 0, 1, 1, -1, 2, 3, 4, 0]
    x, corner = blobs(3)
    found = labels.suggest(x, {row: "abc"[int(corner[row])] for row in range(3)})
    assert found.right is None
    assert found.label.tolist() == [0, 1, 2]


def test_each_planted_cluster_is_asked_for_once_by_its_most_typical_row() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.arange(120) % 4
    x = torch.eye(4, 6)[corner] + 0.1 * torch.randn(120, 6, generator=generator)
    picked = labels.worth_labelling(x, [], 4)
    assert sorted(corner[picked].tolist()) == [0, 1, 2, 3]
    for row in picked:
        rows = (corner == corner[row]).nonzero().flatten()
        away = torch.cdist(x[rows], x[rows]).sort(1).values[:, 1:21].mean(1)
        assert row == int(rows[away.argmin()])


def test_clusters_with_labels_wait() -> None:
    corner = torch.arange(120) % 4
    x = torch.eye(4, 6)[corner] + 0.05 * torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    labelled = [0, 1]  # of two of the four
    assert sorted(corner[labels.worth_labelling(x, labelled, 2)].tolist()) == [2, 3]
    everything = labels.worth_labelling(x[:6], [0, 1], 10)
    assert sorted(everything) == [2, 3, 4, 5]
    assert labels.worth_labelling(x[:2], [0, 1], 10) == []
