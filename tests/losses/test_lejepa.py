import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twoview.losses.lejepa import lejepa, sigreg


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def directions(d: int, m: int) -> Tensor:
    return F.normalize(normal(d, m, 9), dim=0)


def test_sigreg_equals_the_loops() -> None:
    z, a = normal(6, 3, 0), directions(3, 4)
    total = 0.0
    for m in range(4):
        u = (z @ a[:, m]).tolist()
        for k in range(17):
            t = 3 * k / 16
            phi = math.exp(-t * t / 2)
            c, s = (sum(f(t * x) for x in u) / 6 for f in (math.cos, math.sin))
            total += (3 / 16) * (1 if k in (0, 16) else 2) * phi * ((c - phi) ** 2 + s**2)
    assert sigreg(z, a).item() == pytest.approx(6 * total / 4)


@pytest.mark.parametrize("n", [64, 512])
def test_a_gaussian_is_at_a_constant_and_a_collapse_is_not(n: int) -> None:
    a = directions(8, 32)
    values = [sigreg(normal(n, 8, seed), a).item() for seed in range(60)]
    assert sum(values) / 60 == pytest.approx(1.0525, rel=0.12)
    assert sigreg(torch.zeros(n, 8), a).item() == pytest.approx(0.4019 * n, rel=1e-3)
    assert sigreg(2 * normal(n, 8, 0), a) > 0.1 * n


def test_the_constant_is_the_expectation() -> None:
    """E |c_N(t) - phi|^2 = (1 - phi(t)^2) / N for N draws of the Gaussian."""
    t = torch.linspace(0, 3, 17, dtype=torch.float64)
    weight = torch.full_like(t, 6 / 16)
    weight[0] = weight[-1] = 3 / 16
    expected = (weight * (-t.square() / 2).exp() * (1 - (-t.square()).exp())).sum().item()
    assert expected == pytest.approx(1.0525, abs=5e-4)


def test_a_rotation_of_z_is_one_of_the_directions() -> None:
    z, a, turn = normal(16, 5, 0), directions(5, 8), torch.linalg.qr(normal(5, 5, 3))[0]
    torch.testing.assert_close(sigreg(z @ turn, turn.T @ a), sigreg(z, a))
    torch.testing.assert_close(sigreg(-z, a), sigreg(z, a))


def test_the_gradient_vanishes_in_a_collapse() -> None:
    a, norms = directions(64, 128), []
    for std in (1.0, 0.1, 0.01):
        z = (std * normal(256, 64, 0)).requires_grad_()
        norms.append(torch.autograd.grad(sigreg(z, a), z)[0].norm().item())
    assert norms[1] > 5 * norms[2]


def test_invariance_is_half_the_mean_squared_difference_of_pairs() -> None:
    views = [normal(6, 4, i) for i in range(3)]
    pairs = torch.stack([(a - b).square().mean() for a in views for b in views]).mean()
    torch.testing.assert_close(lejepa(views, directions(4, 8), 3).invariance, pairs / 2)


def test_local_views_follow_the_global_ones() -> None:
    views, a = [normal(6, 4, i) for i in range(4)], directions(4, 8)
    centre = (views[0] + views[1]) / 2
    found = lejepa(views, a, 2, 0.1)
    torch.testing.assert_close(found.invariance, torch.stack([(v - centre).square().mean() for v in views]).mean())
    torch.testing.assert_close(found.sigreg, torch.stack([sigreg(v, a) for v in views]).mean())
    torch.testing.assert_close(found.loss, 0.9 * found.invariance + 0.1 * found.sigreg)
    torch.testing.assert_close(lejepa([*views[:2], *views[:1:-1]], a, 2, 0.1), found)


def test_the_statistic_is_that_of_each_view_not_of_all_rows() -> None:
    """Two views that are Gaussian together and not each by itself are told apart."""
    z, a = normal(64, 4, 0), directions(4, 16)
    halves = [z[z[:, 0] > 0][:20], z[z[:, 0] <= 0][:20]]
    assert lejepa(halves, a, 2).sigreg > 2 * sigreg(torch.cat(halves), a) / 2


def test_bad_values_are_named() -> None:
    z, a = normal(6, 4, 0), directions(4, 8)
    with pytest.raises(ValueError, match="at least two views"):
        lejepa([z], a, 1)
    with pytest.raises(ValueError, match="global_views must be 1 to 2, not 3"):
        lejepa([z, z], a, 3)
    with pytest.raises(ValueError, match=r"weight must lie in \[0, 1\]"):
        lejepa([z, z], a, 2, 1.5)
