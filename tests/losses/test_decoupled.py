import math

import pytest
import torch
from torch import Tensor

from twoview.losses.contrastive import nt_xent
from twoview.losses.decoupled import decoupled_contrast


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(z1: Tensor, z2: Tensor, t: float, sigma: float | None) -> float:
    n = len(z1)
    rows = [row / row.norm() for row in (*z1, *z2)]
    cosine = [float(rows[i] @ rows[i + n]) for i in range(n)]
    total = 0.0
    for i, anchor in enumerate(rows):
        weight = 1.0
        if sigma is not None:
            weight = 2 - n * math.exp(cosine[i % n] / sigma) / sum(math.exp(c / sigma) for c in cosine)
        negatives = [float(anchor @ other) / t for j, other in enumerate(rows) if j % n != i % n]
        total += math.log(sum(map(math.exp, negatives))) - weight * cosine[i % n] / t
    return total / (2 * n)


@pytest.mark.parametrize("sigma", [None, 0.5, 5.0])
@pytest.mark.parametrize("n", [2, 7])
def test_it_equals_the_loops(sigma: float | None, n: int) -> None:
    z1, z2 = normal(n, 5, 0), normal(n, 5, 1)
    assert decoupled_contrast(z1, z2, 0.2, sigma).loss.item() == pytest.approx(slow(z1, z2, 0.2, sigma))


def test_closed_values() -> None:
    ones = torch.ones(256, 4)
    found = decoupled_contrast(ones, ones, 0.1)
    assert found.loss.item() == pytest.approx(math.log(510), abs=1e-4)  # 6.234
    assert found.accuracy == 0
    z = normal(256, 128, 0)
    assert decoupled_contrast(z, z, 0.1).loss.item() == pytest.approx(-3.4, abs=0.1)  # no floor at 0
    lowest = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert decoupled_contrast(lowest, lowest, 0.1).loss.item() == pytest.approx(math.log(2) - 20)
    assert decoupled_contrast(lowest, lowest, 0.1).accuracy == 1


def test_nt_xent_is_larger_by_the_positive_in_its_sum() -> None:
    z1, z2, t = normal(6, 5, 0), normal(6, 5, 1), 0.5
    z = torch.nn.functional.normalize(torch.cat([z1, z2]), dim=1)
    scores = (z @ z.T / t).exp()
    positives = torch.cat([scores.diagonal(6), scores.diagonal(6)])
    negatives = scores.sum(dim=1) - scores.diagonal() - positives
    gap = torch.log1p(positives / negatives).mean()
    torch.testing.assert_close(nt_xent(z1, z2, t) - decoupled_contrast(z1, z2, t).loss, gap)


def test_they_meet_in_large_batches() -> None:
    gaps = []
    for n in (8, 64, 512):
        z1, z2 = normal(n, 64, 0), normal(n, 64, 1)
        gaps.append((nt_xent(z1, z2, 0.5) - decoupled_contrast(z1, z2, 0.5).loss).item())
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2] > 0


def test_equal_pairs_have_equal_weights() -> None:
    z = normal(6, 5, 0)
    torch.testing.assert_close(decoupled_contrast(z, 2 * z, 0.1, 0.5), decoupled_contrast(z, z, 0.1))


def test_weights_are_constants() -> None:
    """The gradient of DCLW is that of a sum of terms with fixed weights."""
    z1, z2 = normal(5, 4, 0).requires_grad_(), normal(5, 4, 1)
    loss = decoupled_contrast(z1, z2, 0.2, 0.5).loss - decoupled_contrast(z1, z2, 0.2).loss
    cosine = torch.nn.functional.cosine_similarity(z1, z2)
    weight = 2 - 5 * (cosine.detach() / 0.5).softmax(dim=0)
    expected = ((1 - weight) * cosine / 0.2).mean()
    torch.testing.assert_close(torch.autograd.grad(loss, z1), torch.autograd.grad(expected, z1))


def test_bad_values_are_named() -> None:
    z = normal(4, 5, 0)
    with pytest.raises(ValueError, match="at least 2 rows"):
        decoupled_contrast(z[:1], z[:1], 0.1)
    with pytest.raises(ValueError, match="temperature must be positive"):
        decoupled_contrast(z, z, 0.0)
    with pytest.raises(ValueError, match="sigma must be positive"):
        decoupled_contrast(z, z, 0.1, 0.0)
