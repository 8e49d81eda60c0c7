"""The baseline of the comparison of texts: what TF-IDF makes of them is learned from the train split."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT

from twoview.data.text.files import texts

pytest.importorskip("sklearn")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("texts")


@pytest.mark.parametrize("most", [1, 2])
def test_the_baseline_learns_from_the_train_split_and_tells_the_classes_apart(
    benchmark: ModuleType, sentences: Path, most: int
) -> None:
    train, test = texts(sentences, "train"), texts(sentences, "test")
    assert train is not None
    assert test is not None
    x, y = benchmark.tfidf(train, test, most)
    assert x.shape[1] == y.shape[1]
    torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)))
    if most == 1:  # the weights are our own
        raw = train.preprocess.raw(train.samples)  # type: ignore[attr-defined]
        torch.testing.assert_close(x @ x.T, raw @ raw.T)
    found = benchmark.judge({"a": (benchmark.plain(10), x, y)}, train, test, [5], draws=2, everything=False)
    assert min(found["a"]["5"]) > 0.8
