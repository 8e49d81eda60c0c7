import pytest
import torch
from torch import Tensor

from twoview.losses.vicreg import vicreg


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(z1: Tensor, z2: Tensor) -> tuple[float, float, float]:
    n, d = z1.shape
    invariance = sum(float((z1[i, j] - z2[i, j]) ** 2) for i in range(n) for j in range(d)) / (n * d)
    variance = covariance = 0.0
    for z in (z1, z2):
        mean = [sum(z[:, j]) / n for j in range(d)]
        for i in range(d):
            for j in range(d):
                c = float(sum((z[k, i] - mean[i]) * (z[k, j] - mean[j]) for k in range(n))) / (n - 1)
                if i == j:
                    variance += max(0.0, 1 - (c + 1e-4) ** 0.5) / d / 2
                else:
                    covariance += c**2 / d
    return 25 * invariance, 25 * variance, covariance


def test_it_equals_the_loops() -> None:
    z1, z2 = normal(8, 5, 0), 0.5 * normal(8, 5, 1)
    loss, *terms = (x.item() for x in vicreg(z1, z2))
    assert terms == pytest.approx(slow(z1, z2), rel=1e-12)
    assert loss == pytest.approx(sum(terms))


def test_closed_values() -> None:
    ones = torch.ones(16, 8, dtype=torch.float64)
    assert [x.item() for x in vicreg(ones, ones)] == pytest.approx([24.75, 0, 24.75, 0])
    z = normal(256, 512, 0)
    equal = vicreg(z, z)
    assert equal.invariance == 0
    assert equal.covariance.item() == pytest.approx(2 * 511 / 255, rel=0.02)
    assert equal.variance.item() == pytest.approx(0.46, abs=0.1)
    assert vicreg(z, normal(256, 512, 1)).invariance.item() == pytest.approx(50, rel=0.02)


def test_shifts_rotations_and_scales() -> None:
    z1, z2, turn = normal(32, 6, 0), normal(32, 6, 1), torch.linalg.qr(normal(6, 6, 2))[0]
    plain, shifted = vicreg(z1, z2), vicreg(z1 + 3, z2)
    torch.testing.assert_close(shifted[2:], plain[2:])
    assert shifted.invariance > plain.invariance + 1
    turned = vicreg(z1 @ turn, z2 @ turn)
    torch.testing.assert_close(turned.invariance, plain.invariance)
    assert abs(turned.covariance - plain.covariance) > 1e-3
    torch.testing.assert_close(vicreg(2 * z1, 2 * z2).covariance, 16 * plain.covariance)


def test_wide_dimensions_have_no_gradient_of_variance() -> None:
    z = (normal(32, 6, 0) * torch.tensor([9, 9, 9, 0.1, 0.1, 0.1])).requires_grad_()
    vicreg(z, z.detach()).variance.backward()
    assert z.grad is not None
    assert not z.grad[:, :3].any()
    assert z.grad[:, 3:].any()


def test_weights_are_those_of_the_terms() -> None:
    z1, z2 = normal(8, 5, 0), 0.5 * normal(8, 5, 1)
    found = vicreg(z1, z2, invariance=1, variance=2, covariance=3)
    assert [x.item() for x in found[1:]] == pytest.approx(
        [a * b for a, b in zip(slow(z1, z2), (1 / 25, 2 / 25, 3), strict=True)]
    )


def test_one_row_has_no_variance() -> None:
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        vicreg(normal(1, 4, 0), normal(1, 4, 1))
