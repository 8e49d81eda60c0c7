"""Ridge regression against a direct solution, and its leave-one-out answers against leaving out."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.errors import UserError
from twoview.evaluate.classify import ridge
from twoview.evaluate.classify.ridge import fit_ridge

STRENGTHS = [3.0, 1e-1, 1e-3]


def problem(n: int = 60, dim: int = 7, classes: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    features = torch.randn(classes, dim, generator=g)[labels] + 1.5 * torch.randn(n, dim, generator=g)
    return features * torch.logspace(0, -2, dim) + 5, labels


def direct(x: Tensor, labels: Tensor, classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of the minimum of mean ||W x + b - y||^2 / 2 + l2/2 ||W||^2 by its normal equations."""
    target, mean = F.one_hot(labels, classes).double(), x.mean(0)
    c = x - mean
    weight = torch.linalg.solve(c.T @ c / len(x) + l2 * torch.eye(x.shape[1]).double(), c.T @ target / len(x)).T
    return weight, target.mean(0) - weight @ mean


@pytest.mark.parametrize("l2", STRENGTHS)
def test_solves_the_normal_equations(l2: float) -> None:
    features, labels = problem()
    head = fit_ridge(features, labels, 3, [l2])
    x = (features.double() - features.double().mean(0)) / features.double().std(0, correction=0)
    weight, bias = direct(x, labels, 3, l2)
    torch.testing.assert_close(head.weight, weight, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(head.logits(features), x @ weight.T + bias, rtol=1e-8, atol=1e-9)


def test_leave_one_out_is_leaving_out_one_by_one() -> None:
    features, labels = problem()
    head = fit_ridge(features, labels, 3, STRENGTHS)
    x = (features.double() - head.mean) / head.std
    for l2 in STRENGTHS:
        right = 0
        for i in range(len(x)):
            rest = torch.arange(len(x)) != i
            # Directly the penalty is l2 for each of n samples: with one less it weighs n / (n - 1) as much.
            weight, bias = direct(x[rest], labels[rest], 3, l2 * len(x) / (len(x) - 1))
            right += int((weight @ x[i] + bias).argmax() == labels[i])
        assert head.left_out[l2] == pytest.approx(right / len(x))
    assert len(set(head.left_out.values())) > 1


def test_the_best_strength_wins_and_the_stronger_on_a_tie() -> None:
    features, labels = problem()
    head = fit_ridge(features, labels, 3, STRENGTHS)
    best = max(head.left_out.values())
    assert head.l2 == max(l2 for l2, accuracy in head.left_out.items() if accuracy == best)
    apart = F.one_hot(labels).float()
    assert fit_ridge(apart, labels, 3, STRENGTHS).l2 == max(STRENGTHS)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = problem()
    whole = fit_ridge(features, labels, 3, STRENGTHS)
    monkeypatch.setattr(ridge, "BLOCK", 7 * 9)
    parts = fit_ridge(features, labels, 3, STRENGTHS)
    assert parts.left_out == whole.left_out
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-9, atol=1e-12)


def test_constant_features_and_more_features_than_samples() -> None:
    features, labels = problem(20, 40)
    features[:, 3] = 0.1
    head = fit_ridge(features, labels, 3, [1e-6])
    assert torch.equal(head.logits(features).argmax(1), labels)  # interpolates
    assert head.weight[:, 3].abs().max() < 1e-9  # the rounding of float64 over l2
    nothing = fit_ridge(torch.ones(20, 4), labels, 3, STRENGTHS)
    assert nothing.weight.abs().max() == 0
    torch.testing.assert_close(nothing.bias, torch.bincount(labels).double() / 20)


def test_what_cannot_be_fitted_is_named(caplog: pytest.LogCaptureFixture) -> None:
    features, labels = problem()
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="No training image is of class 3"):
        fit_ridge(features, labels, 4, STRENGTHS)
    with pytest.raises(UserError, match="one or more positive"):
        fit_ridge(features, labels, 3, [])
    with pytest.raises(UserError, match="one or more positive"):
        fit_ridge(features, labels, 3, [-1.0])
