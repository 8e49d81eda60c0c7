"""The score of logits on a test set: known cases."""

import pytest
import torch

from twoview.evaluate.classify.score import Head, fingerprint, score


def test_an_overconfident_head_has_a_larger_ece_and_the_same_accuracy() -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 3, generator=g)
    labels = torch.distributions.Categorical(logits=features).sample()  # so `features` are calibrated logits
    zero, one = torch.zeros(3).double(), torch.ones(3).double()
    fair = score(Head(torch.eye(3).double(), zero, zero, one).logits(features), labels, 3)
    loud = score(Head(5 * torch.eye(3).double(), zero, zero, one).logits(features), labels, 3)
    assert fair.top1 == loud.top1
    assert fair.ece < 0.05 < 0.2 < loud.ece


def test_a_fingerprint_follows_values_not_their_order() -> None:
    assert fingerprint({"a": 1, "b": [1.0]}) == fingerprint({"b": [1.0], "a": 1})
    assert fingerprint({"a": 1, "b": [1.0]}) != fingerprint({"a": 1, "b": [1.5]})
    assert len(fingerprint("x")) == 12


def test_scores_of_logits_that_are_known() -> None:
    logits = torch.eye(7)[[0, 0, 1, 2, 3, 4, 6]] * 9 + torch.arange(7.0)
    answers = torch.tensor([0, 1, 1, 2, 3, 4, 0])
    scores = score(logits, answers, 7)
    assert scores.top1 == pytest.approx(5 / 7)
    assert scores.top5 == pytest.approx(5 / 7)  # of the wrong ones, 1 and 0 are the two least likely classes
    assert scores.per_class == [0.5, 0.5, 1, 1, 1, None, None]
    assert scores.confusion[1] == [1, 1, 0, 0, 0, 0, 0]
    assert scores.majority == pytest.approx(2 / 7)
