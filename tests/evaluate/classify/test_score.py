"""Intervals and calibration against slow and closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twoview.evaluate.classify.score import Head, ece, fingerprint, score
from twoview.stats.intervals import bootstrap, wilson


@pytest.mark.parametrize(("correct", "total"), [(9, 10), (1, 3), (7000, 10_000), (0, 10), (10, 10)])
def test_wilson_interval_is_where_the_score_test_turns(correct: int, total: int) -> None:
    """At each end p of the interval, the observed share lies 1.96 standard errors of p away."""
    share = correct / total
    low, high = wilson(correct, total)
    assert 0 <= low <= share <= high <= 1
    for p in {low, high} - {0.0, 1.0}:
        assert abs(share - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / total), rel=1e-5)
    assert wilson(total - correct, total) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("correct", "total"), [(150, 200), (3, 200), (1, 1), (0, 7)])
def test_bootstrap_is_what_resampling_gives(correct: int, total: int) -> None:
    g = torch.Generator().manual_seed(0)
    right = (torch.arange(total) < correct).double()
    means = right[torch.randint(total, (20_000, total), generator=g)].mean(1)
    expected = torch.quantile(means, torch.tensor([0.025, 0.975]).double(), interpolation="nearest")
    assert bootstrap(correct, total) == pytest.approx(expected.tolist(), abs=1.01 / total)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_bootstrap_contains_the_share(case: tuple[int, int]) -> None:
    low, high = bootstrap(*case)
    assert 0 <= low <= case[0] / case[1] <= high <= 1


def test_bootstrap_and_wilson_agree_on_a_large_test_set() -> None:
    assert bootstrap(70_000, 100_000) == pytest.approx(wilson(70_000, 100_000), abs=2e-5)


def slow_ece(probabilities: torch.Tensor, labels: torch.Tensor, bins: int) -> float:
    confidence, predicted = probabilities.double().max(1)
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            accuracy = (predicted[inside] == labels[inside]).double().mean()
            total += float(inside.double().mean() * (accuracy - confidence[inside].mean()).abs())
    return total


@pytest.mark.parametrize("bins", [1, 15, 40])
def test_ece_is_the_mean_gap_of_its_bins(bins: int) -> None:
    g = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(500, 4, generator=g)).softmax(1)
    labels = torch.randint(4, (500,), generator=g)
    assert ece(probabilities, labels, bins) == pytest.approx(slow_ece(probabilities, labels, bins), abs=1e-12)


def test_ece_of_known_cases() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    certain = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    assert ece(certain, torch.zeros(4, dtype=torch.long)) == 0  # certain and right
    assert ece(certain, torch.ones(4, dtype=torch.long)) == 1  # certain and wrong
    assert ece(certain, labels) == pytest.approx(0.5)
    assert ece(torch.full((4, 2), 0.5), labels) == pytest.approx(0)  # half of the answers "0" are right


def test_an_overconfident_head_has_a_larger_ece_and_the_same_accuracy() -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 3, generator=g)
    labels = torch.distributions.Categorical(logits=features).sample()  # so `features` are calibrated logits
    zero, one = torch.zeros(3).double(), torch.ones(3).double()
    fair = score(Head(torch.eye(3).double(), zero, zero, one).logits(features), labels, 3)
    loud = score(Head(5 * torch.eye(3).double(), zero, zero, one).logits(features), labels, 3)
    assert fair["top1"] == loud["top1"]
    assert fair["ece"] < 0.05 < 0.2 < loud["ece"]


def test_a_fingerprint_follows_values_not_their_order() -> None:
    assert fingerprint({"a": 1, "b": [1.0]}) == fingerprint({"b": [1.0], "a": 1})
    assert fingerprint({"a": 1, "b": [1.0]}) != fingerprint({"a": 1, "b": [1.5]})
    assert len(fingerprint("x")) == 12


def test_scores_of_logits_that_are_known() -> None:
    logits = torch.eye(7)[[0, 0, 1, 2, 3, 4, 6]] * 9 + torch.arange(7.0)
    answers = torch.tensor([0, 1, 1, 2, 3, 4, 0])
    scores = score(logits, answers, 7)
    assert scores["top1"] == pytest.approx(5 / 7)
    assert scores["top5"] == pytest.approx(5 / 7)  # of the wrong ones, 1 and 0 are the two least likely classes
    assert scores["per_class"] == [0.5, 0.5, 1, 1, 1, None, None]
    assert scores["confusion"][1] == [1, 1, 0, 0, 0, 0, 0]
    assert scores["majority"] == pytest.approx(2 / 7)
