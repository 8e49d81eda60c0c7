"""Confidence against accuracy: the bins beside a loop, and known cases."""

import pytest
import torch

from twoview.evaluate.classify.calibration import ece, reliability


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


def test_reliability_adds_up_to_ece() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(500, 4, generator=generator)).softmax(1)
    labels = torch.randint(4, (500,), generator=generator)
    bins = reliability(probabilities, labels)
    assert sum(b["n"] for b in bins) == 500
    assert all(b["low"] < b["confidence"] <= b["high"] + 1e-9 for b in bins)
    assert ece(probabilities, labels) == pytest.approx(slow_ece(probabilities, labels, 15), abs=1e-12)
    (sure,) = reliability(torch.eye(3), torch.tensor([0, 1, 0]))
    assert (sure["n"], sure["confidence"], sure["accuracy"]) == (3, 1.0, pytest.approx(2 / 3))
