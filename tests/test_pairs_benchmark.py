"""Likeness of sentences beside people's judgement: what the comparison of pairs computes."""

import importlib
from types import ModuleType

import pytest
import torch
from conftest import ROOT

pytest.importorskip("scipy")
pytest.importorskip("sklearn")


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("pairs")


def test_the_correlation_is_of_ranks_with_an_interval_around_it(pairs: ModuleType) -> None:
    score = torch.arange(50.0)
    assert pairs.spearman(score**3, score)["spearman"] == pytest.approx(1)
    g = torch.Generator().manual_seed(0)
    found = pairs.spearman(score + 20 * torch.randn(50, generator=g), score)
    assert 0.2 < found["low"] < found["spearman"] < found["high"] < 1


def test_tf_idf_of_the_pairs_knows_equal_sentences_and_strange_ones(pairs: ModuleType) -> None:
    alike = pairs.of_all_words([["a cat sits", "dogs run"], ["A cat sits!", "birds sing"]])
    torch.testing.assert_close(alike.float(), torch.tensor([1.0, 0.0]))
