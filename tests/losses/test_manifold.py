import math

import pytest
import torch
from torch import Tensor

from twoview.losses.manifold import mmcr


def loss(views: list[Tensor]) -> Tensor:
    return mmcr(views).loss


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_trace_of_the_root_of_the_gram_matrix() -> None:
    views = [normal(6, 4, i) for i in range(3)]
    centroids = sum(z / z.norm(dim=1, keepdim=True) for z in views) / 3
    gram = torch.linalg.eigvalsh(centroids.T @ centroids).clamp(min=0)
    torch.testing.assert_close(loss(views), -gram.sqrt().sum())


@pytest.mark.parametrize("n", [32, 256])
def test_closed_values(n: int) -> None:
    assert loss([torch.ones(n, 16)] * 2).item() == pytest.approx(-math.sqrt(n), rel=1e-4)
    z = torch.eye(n, 300)
    assert loss([z, 3 * z]).item() == pytest.approx(-n, rel=1e-4)  # the bound
    turn = torch.linalg.qr(normal(300, 300, 0))[0].float()
    assert loss([z @ turn, z @ turn]).item() == pytest.approx(-n, rel=1e-4)


def test_a_collapse_looks_better_than_chance() -> None:
    views = [normal(32, 128, i) for i in range(40)]
    assert loss(views).item() == pytest.approx(-4.9, abs=0.15)
    assert loss([torch.ones(32, 128)] * 2) < loss(views)
    assert loss([normal(256, 512, i) for i in range(2)]).item() == pytest.approx(-169, abs=1)


def test_views_and_scales_do_not_matter() -> None:
    views = [normal(6, 4, i) for i in range(3)]
    torch.testing.assert_close(loss([7 * views[2], views[0], 0.1 * views[1]]), loss(views))


def test_equal_singular_values_have_a_finite_gradient() -> None:
    z = torch.eye(4, 6, dtype=torch.float64).requires_grad_()
    loss([z, torch.eye(4, 6).double()]).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_one_view_has_no_centroid() -> None:
    with pytest.raises(ValueError, match="at least two views, got 1"):
        loss([normal(4, 5, 0)])


def test_agreement_is_the_mean_length_of_the_centroids() -> None:
    z = normal(6, 4, 0)
    assert mmcr([z, 2 * z]).agreement.item() == pytest.approx(1)
    assert mmcr([z, -z]).agreement.item() == pytest.approx(0, abs=1e-12)
    one = mmcr([normal(6, 4, i) for i in range(3)])
    assert 0 < one.agreement < 1
    assert not mmcr([z.requires_grad_(), z]).agreement.requires_grad
