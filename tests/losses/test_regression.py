import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twoview.losses.regression import negative_cosine


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_squared_distance_of_unit_vectors_as_byol_writes_it() -> None:
    p, z = normal(7, 4, 0), normal(7, 4, 1)
    distances = [(a / a.norm() - b / b.norm()).square().sum() for a, b in zip(p, z, strict=True)]
    torch.testing.assert_close(2 + 2 * negative_cosine(p, z), torch.stack(distances).mean())


@pytest.mark.parametrize(("factor", "value"), [(3.0, -1.0), (1e-3, -1.0), (-2.0, 1.0)])
def test_closed_values(factor: float, value: float) -> None:
    z = normal(5, 8, 0)
    assert negative_cosine(factor * z, z).item() == pytest.approx(value)


def test_independent_vectors_are_at_zero() -> None:
    assert abs(negative_cosine(normal(4000, 64, 0), normal(4000, 64, 1))) < 4 / (4000 * 64) ** 0.5
    assert negative_cosine(torch.eye(4), torch.eye(4).roll(1, 0)) == 0


def test_no_gradient_reaches_the_target_and_none_along_the_prediction() -> None:
    p, z = normal(5, 8, 0).requires_grad_(), normal(5, 8, 1).requires_grad_()
    negative_cosine(p, z).backward()
    assert z.grad is None
    assert p.grad is not None
    assert p.grad.abs().max() > 1e-3
    torch.testing.assert_close((p.grad * p).sum(dim=1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_rotation_of_both_changes_nothing() -> None:
    p, z, turn = normal(5, 8, 0), normal(5, 8, 1), torch.linalg.qr(normal(8, 8, 2))[0]
    torch.testing.assert_close(negative_cosine(p @ turn, z @ turn), negative_cosine(p, z))
    torch.testing.assert_close(negative_cosine(p, z), -F.cosine_similarity(p, z).mean())
