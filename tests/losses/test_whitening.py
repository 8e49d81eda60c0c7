import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twoview.losses.factor import SingularError, condition_number
from twoview.losses.whitening import w_mse, whiten


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(w: Tensor) -> Tensor:
    return torch.cov(w.T)


def test_a_whitened_group_has_covariance_one() -> None:
    mix = normal(6, 6, 1)
    w = whiten(normal(40, 6, 0) @ mix + 5)
    torch.testing.assert_close(covariance(w), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(w.mean(dim=0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-9)
    assert w.square().sum(dim=1).mean().item() == pytest.approx(6 * 39 / 40)
    single = whiten((normal(40, 6, 0) @ mix + 5).float())
    torch.testing.assert_close(covariance(single), torch.eye(6), rtol=0, atol=1e-4)


def test_affine_maps_turn_the_whitened_rows_only() -> None:
    z, mix = normal(40, 6, 0), normal(6, 6, 1)
    a, b = whiten(z), whiten(z @ mix - 3)
    torch.testing.assert_close(a @ a.T, b @ b.T, rtol=0, atol=1e-8)
    assert not torch.allclose(a, b)


def test_it_equals_groups_one_by_one() -> None:
    z1, z2 = normal(24, 3, 0), normal(24, 3, 1)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    total = []
    for rows in order.split(8):
        group = []
        for z in (z1, z2):
            centred = z[rows] - z[rows].mean(dim=0)
            lower = torch.linalg.cholesky(centred.T @ centred / 7)
            group.append(F.normalize(centred @ torch.linalg.inv(lower).T, dim=1))
        total.append((group[0] - group[1]).square().sum(dim=1).mean())
    torch.testing.assert_close(w_mse([z1, z2], order, 8), torch.stack(total).mean())


def test_several_orders_give_the_mean_and_several_views_that_over_pairs() -> None:
    views = [normal(24, 3, i) for i in range(3)]
    orders = torch.stack([torch.randperm(24, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    single = torch.stack([w_mse(views, order, 8) for order in orders]).mean()
    torch.testing.assert_close(w_mse(views, orders, 8), single)
    pairs = [w_mse([views[i], views[j]], orders[0], 8) for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(w_mse(views, orders[0], 8), torch.stack(pairs).mean())


def test_closed_values() -> None:
    z1, z2, order = normal(256, 32, 0), normal(256, 32, 1), torch.arange(256)
    assert w_mse([z1, z1], order, 128) == pytest.approx(0, abs=1e-12)
    assert w_mse([z1, z2], order, 128).item() == pytest.approx(2, abs=0.05)


def test_both_views_have_the_same_share_of_the_gradient() -> None:
    z1, z2 = normal(24, 3, 0).requires_grad_(), normal(24, 3, 1).requires_grad_()
    g1, g2 = torch.autograd.grad(w_mse([z1, z2], torch.arange(24), 8), (z1, z2))
    h2, h1 = torch.autograd.grad(w_mse([z2, z1], torch.arange(24), 8), (z2, z1))
    torch.testing.assert_close((g1, g2), (h1, h2))
    assert g1.any()
    assert g2.any()


def test_lost_dimensions_are_told_with_the_condition_number() -> None:
    z = normal(24, 3, 0)
    flat = torch.cat([z[:, :2], z[:, :1] + z[:, 1:2]], dim=1)
    for bad in (torch.ones(24, 3, dtype=torch.float64), flat * torch.tensor([1, 1, 0])):
        with pytest.raises(SingularError, match="the covariance of z within a group cannot be factorised") as caught:
            w_mse([z, bad], torch.arange(24), 8)
        assert caught.value.condition == float("inf")
    with pytest.raises(SingularError, match="condition number is nan"):
        w_mse([z, z * float("nan")], torch.arange(24), 8)


def test_condition_numbers() -> None:
    assert condition_number(torch.diag(torch.tensor([8.0, 2.0]))) == pytest.approx(4)
    assert condition_number(torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, 10.0]))])) == pytest.approx(10)
    assert condition_number(torch.zeros(2, 2)) == float("inf")


@pytest.mark.parametrize("group", [3, 5, 48, 0])
def test_groups_must_divide_the_batch_and_exceed_the_dimension(group: int) -> None:
    z = normal(24, 3, 0)
    with pytest.raises(ValueError, match=rf"group must divide the 24 rows and be larger than the 3 .*, not {group}"):
        w_mse([z, z], torch.arange(24), group)
