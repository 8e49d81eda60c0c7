import pytest
import torch
from torch import Tensor

from twoview.losses.redundancy import barlow_twins


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def independent(n: int, d: int) -> Tensor:
    """Columns of mean 0 that are orthogonal to each other."""
    centred = normal(n, d, 5)
    return torch.linalg.qr(centred - centred.mean(dim=0))[0] * n**0.5


def slow(z1: Tensor, z2: Tensor, weight: float) -> tuple[float, float]:
    """Equation 1, entry by entry."""
    n, d = z1.shape
    on = off = 0.0
    for i in range(d):
        for j in range(d):
            a, b = z1[:, i] - z1[:, i].mean(), z2[:, j] - z2[:, j].mean()
            c = sum(a[k] * b[k] for k in range(n)) / n
            c = float(c / ((a.square().mean() + 1e-5) * (b.square().mean() + 1e-5)).sqrt())
            if i == j:
                on += (1 - c) ** 2
            else:
                off += c**2
    return on + weight * off, off


def test_it_equals_the_double_loop() -> None:
    z1, z2 = normal(9, 5, 0), normal(9, 5, 1)
    found = barlow_twins(z1, z2, 0.3)
    assert (found.loss.item(), found.redundancy.item()) == pytest.approx(slow(z1, z2, 0.3), rel=1e-12)
    torch.testing.assert_close(found.loss, found.invariance + 0.3 * found.redundancy)


def test_closed_values() -> None:
    n, d, weight = 64, 16, 0.0051
    constant = torch.ones(n, d, dtype=torch.float64)
    assert barlow_twins(constant, constant).loss == d  # a constant dimension has no correlation
    z = independent(n, d)
    perfect = barlow_twins(z, z, eps=0)
    assert perfect.loss.item() == pytest.approx(0, abs=1e-20)
    copies = z[:, :1].expand(n, d)
    assert barlow_twins(copies, copies, eps=0).redundancy.item() == pytest.approx(d * (d - 1))
    assert barlow_twins(copies, copies, eps=0).loss.item() == pytest.approx(weight * d * (d - 1))
    assert barlow_twins(z, -z, eps=0).loss.item() == pytest.approx(4 * d)


def test_chance_levels_of_random_views() -> None:
    n, d, weight = 256, 512, 0.0051
    z1, z2 = normal(n, d, 0), normal(n, d, 1)
    assert barlow_twins(z1, z2).loss.item() == pytest.approx(d + weight * d * (d - 1) / n + d / n, rel=0.02)
    equal = barlow_twins(z1, z1).loss.item()
    assert equal == pytest.approx(weight * d * (d - 1) / n, rel=0.02)
    assert equal > weight * (d * d / (n - 1) - d)  # no N rows of equal views get below


def test_only_the_standardised_dimensions_count() -> None:
    z1, z2 = normal(32, 6, 0), normal(32, 6, 1)
    scale, shift = torch.linspace(2, 30, 6, dtype=torch.float64), torch.linspace(-3, 9, 6, dtype=torch.float64)
    torch.testing.assert_close(barlow_twins(z1 * scale + shift, z2, eps=0).loss, barlow_twins(z1, z2, eps=0).loss)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(barlow_twins(z1[:, order], z2[:, order]).loss, barlow_twins(z1, z2).loss)
    twice = barlow_twins(torch.cat([z1, z1]), torch.cat([z2, z2])).loss
    torch.testing.assert_close(twice, barlow_twins(z1, z2).loss)


def test_one_row_has_no_correlation() -> None:
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        barlow_twins(normal(1, 4, 0), normal(1, 4, 1))
