"""The comparison of an encoder with what reads raw columns: accuracy, or the area under the curve of two classes."""

import importlib
from types import ModuleType

import pytest
import torch
from conftest import ROOT

from twoview.data.preprocess import Preprocess
from twoview.data.set import SampleSet

pytest.importorskip("sklearn")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("tables")


@pytest.mark.parametrize("classes", [2, 3])
def test_every_model_gets_a_score_for_every_draw(tables: ModuleType, classes: int) -> None:
    labels = torch.arange(60) % classes
    x = torch.nn.functional.one_hot(labels, classes) + 0.1 * torch.randn(60, classes, generator=torch.manual_seed(0))
    blind = torch.zeros(60, classes)
    names = tuple("abc"[:classes])
    part = SampleSet("made", x, labels, names, Preprocess())
    features = {"sees": (tables.logistic, x, x), "blind": (tables.logistic, blind, blind)}
    found = tables.judge(features, part, part, [2, 5], draws=2, everything=True)
    assert {name: {count: len(v) for count, v in scores.items()} for name, scores in found.items()} == {
        name: {"2": 2, "5": 2, "all": 1} for name in features
    }
    assert found["sees"]["all"] == [1.0]
    assert found["blind"]["all"] == [pytest.approx(1 / classes)]  # half the area under the curve, or one class of three
