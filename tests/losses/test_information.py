import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twoview.losses.factor import SingularError
from twoview.losses.information import Moments, cor_info_max


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start(d: int) -> list[Moments]:
    return [Moments(torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)) for _ in range(2)]


def test_two_steps_equal_the_formulas() -> None:
    means, covariances = [torch.zeros(3).double()] * 2, [torch.eye(3).double()] * 2
    moments = start(3)
    for step in range(2):
        views = [normal(7, 3, 2 * step), normal(7, 3, 2 * step + 1)]
        found = cor_info_max(*views, moments)
        information, unit = 0.0, [F.normalize(z) for z in views]
        for v, z in enumerate(unit):
            means[v] = 0.01 * means[v] + 0.99 * z.mean(dim=0)
            rows = sum(torch.outer(row - means[v], row - means[v]) for row in z) / 7
            covariances[v] = 0.01 * covariances[v] + 0.99 * rows
            information -= torch.logdet(covariances[v] + 1e-8 * torch.eye(3)).item() / 3
        assert found.information.item() == pytest.approx(information)
        assert found.invariance.item() == pytest.approx(250 * (unit[0] - unit[1]).square().mean().item())
        torch.testing.assert_close(found.loss, found.information + found.invariance)
        moments = found.moments
        for v in range(2):
            torch.testing.assert_close(tuple(moments[v]), (means[v], covariances[v]))


def test_closed_values() -> None:
    d, moments = 16, start(16)
    for _ in range(12):  # the start is forgotten after a few
        found = cor_info_max(torch.ones(8, d), torch.ones(8, d), moments)
        moments = found.moments
    assert found.loss.item() == pytest.approx(-2 * math.log(1e-8), rel=1e-6)  # 36.84
    assert found.invariance == 0
    moments = start(d)
    for step in range(12):
        found = cor_info_max(normal(4096, d, step), normal(4096, d, 50 + step), moments)
        moments = found.moments
    assert found.information.item() == pytest.approx(2 * math.log(d), abs=0.05)
    assert found.information > 2 * math.log(d)
    assert found.invariance.item() == pytest.approx(2 * 250 / d, rel=0.05)


def test_scales_and_rotations() -> None:
    z1, z2, turn = normal(9, 4, 0), normal(9, 4, 1), torch.linalg.qr(normal(4, 4, 2))[0]
    expected = cor_info_max(z1, z2, start(4)).loss
    torch.testing.assert_close(cor_info_max(5 * z1, 0.1 * z2, start(4)).loss, expected)
    torch.testing.assert_close(cor_info_max(z1 @ turn, z2 @ turn, start(4)).loss, expected)


def test_old_moments_are_constants_and_new_ones_have_no_gradient() -> None:
    moments = [Moments(*(x.requires_grad_() for x in m)) for m in start(4)]
    z = normal(9, 4, 0).requires_grad_()
    found = cor_info_max(z, normal(9, 4, 1), moments)
    found.loss.backward()
    assert z.grad is not None
    assert z.grad.any()
    assert all(x.grad is None for m in moments for x in m)
    assert not any(x.requires_grad for m in found.moments for x in m)
    assert all(x.dtype == torch.float64 for m in cor_info_max(z.float(), z.float(), start(4)).moments for x in m)


def test_what_is_not_finite_is_told() -> None:
    z = normal(9, 4, 0)
    with pytest.raises(SingularError, match="running covariance of z cannot be factorised"):
        cor_info_max(z, z * float("nan"), start(4))
