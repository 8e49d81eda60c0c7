"""What all losses of views have in common."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from twoview.losses.contrastive import nt_xent
from twoview.losses.decoupled import decoupled_contrast
from twoview.losses.information import Moments, cor_info_max
from twoview.losses.lejepa import lejepa
from twoview.losses.manifold import mmcr
from twoview.losses.nearest import nearest_contrast
from twoview.losses.prototypes import swapped_prediction
from twoview.losses.redundancy import barlow_twins
from twoview.losses.regression import negative_cosine
from twoview.losses.relational import relational
from twoview.losses.supervised import sup_con
from twoview.losses.vicreg import vicreg
from twoview.losses.whitening import w_mse

N, D = 12, 5


def normal(n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


DIRECTIONS = torch.nn.functional.normalize(normal(D, 16, 7, torch.float64), dim=0)
QUEUE = normal(20, D, 8, torch.float64)
START = Moments(torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64))
LABEL = torch.arange(N) % 3

Loss = Callable[[Tensor, Tensor], Tensor]


def wide(z: Tensor) -> Tensor:
    return z.to(torch.promote_types(z.dtype, torch.float32))


def targets(z: Tensor) -> Tensor:
    return wide(z).softmax(dim=-1)


SYMMETRIC: dict[str, Loss] = {
    "nt_xent": lambda a, b: nt_xent(a, b, 0.2),
    "negative_cosine": lambda a, b: (negative_cosine(a, b) + negative_cosine(b, a)) / 2,
    "barlow_twins": lambda a, b: barlow_twins(a, b).loss,
    "vicreg": lambda a, b: vicreg(a, b).loss,
    "dcl": lambda a, b: decoupled_contrast(a, b, 0.2).loss,
    "dclw": lambda a, b: decoupled_contrast(a, b, 0.2, 0.5).loss,
    "swav": lambda a, b: swapped_prediction([targets(a), targets(b)], [a, b], 0.1),
    "w_mse": lambda a, b: w_mse([a, b], torch.arange(N), N),
    "lejepa": lambda a, b: lejepa([a, b], DIRECTIONS, 2).loss,
    "cor_info_max": lambda a, b: cor_info_max(a, b, [START, START]).loss,
    "mmcr": lambda a, b: mmcr([a, b]).loss,
}
LABELLED: dict[str, Loss] = {"sup_con": lambda a, b: sup_con([a, b], LABEL, 0.2).loss}
ONE_WAY: dict[str, Loss] = {
    "relational": lambda a, b: relational(a, b, QUEUE.to(wide(a))).loss,
    "nearest": lambda a, b: nearest_contrast(a, b, QUEUE.to(wide(a)), 0.2).loss,
}
EVERY = SYMMETRIC | LABELLED | ONE_WAY


@pytest.mark.parametrize("name", SYMMETRIC | LABELLED)
def test_views_may_be_swapped(name: str) -> None:
    a, b = normal(N, D, 0, torch.float64), normal(N, D, 1, torch.float64)
    torch.testing.assert_close(EVERY[name](a, b), EVERY[name](b, a), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ONE_WAY)
def test_those_of_one_direction_say_so(name: str) -> None:
    a, b = normal(N, D, 0, torch.float64), normal(N, D, 1, torch.float64)
    assert abs(EVERY[name](a, b) - EVERY[name](b, a)) > 1e-6


@pytest.mark.parametrize("name", sorted(EVERY.keys() - LABELLED.keys()))
def test_samples_may_be_permuted_in_both_views_together_and_in_one_not(name: str) -> None:
    a, b = normal(N, D, 0, torch.float64), normal(N, D, 1, torch.float64)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(EVERY[name](a[order], b[order]), EVERY[name](a, b), rtol=1e-12, atol=1e-12)
    assert abs(EVERY[name](a[order], b) - EVERY[name](a, b)) > 1e-6


@pytest.mark.parametrize("name", EVERY)
def test_bfloat16_is_computed_in_float32_under_autocast(name: str) -> None:
    a, b = normal(N, D, 0).bfloat16(), normal(N, D, 1).bfloat16()
    expected = EVERY[name](a.float(), b.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = EVERY[name](a, b)
        mixed = EVERY[name](a.float(), b.float())
    assert found.dtype == mixed.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixed, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_float32_is_accurate_and_float64_stays(name: str) -> None:
    a, b = normal(N, D, 0, torch.float64), normal(N, D, 1, torch.float64)
    exact = EVERY[name](a, b)
    assert exact.dtype == torch.float64
    assert EVERY[name](a.float(), b.float()).item() == pytest.approx(exact.item(), rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("name", sorted(EVERY.keys() - {"swav", "dclw", "negative_cosine", "relational", "nearest"}))
def test_gradients_are_those_of_differences(name: str) -> None:
    """Of those without a stop-gradient: there both sides count."""
    a, b = (normal(N, D, seed, torch.float64).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(EVERY[name], (a, b), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_a_gradient_in_bfloat16_reaches_an_input_in_bfloat16(name: str) -> None:
    a, b = (normal(N, D, seed).bfloat16().requires_grad_() for seed in (0, 1))
    EVERY[name](a, b).backward()
    grads = [x.grad for x in (a, b) if x.grad is not None]
    assert grads
    assert all(grad.dtype == torch.bfloat16 and grad.isfinite().all() and grad.any() for grad in grads)


@pytest.mark.parametrize("name", EVERY)
def test_inputs_are_left_alone(name: str) -> None:
    a, b = normal(N, D, 0), normal(N, D, 1)
    EVERY[name](a, b)
    assert a.equal(normal(N, D, 0))
    assert b.equal(normal(N, D, 1))


@pytest.mark.parametrize("name", sorted(EVERY.keys() - {"w_mse"}))
def test_equal_rows_give_a_finite_loss_and_gradient(name: str) -> None:
    """A collapsed network must be seen and told of, not turned into NaN. W-MSE alone refuses, see its test."""
    a, b = (torch.ones(N, D).requires_grad_() for _ in range(2))
    loss = EVERY[name](a, b)
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad is None or x.grad.isfinite().all() for x in (a, b))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("a", "b"), [((12, 5), (11, 5)), ((12, 5), (12, 4)), ((12,), (12,)), ((0, 5), (0, 5))])
def test_shapes_that_do_not_fit_are_refused(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected|batch is empty"):
        EVERY[name](torch.ones(a), torch.ones(b))


@pytest.mark.parametrize("name", EVERY)
def test_no_loss_draws_numbers_of_its_own(name: str) -> None:
    a, b = normal(N, D, 0), normal(N, D, 1)
    before = torch.get_rng_state()
    assert EVERY[name](a, b).equal(EVERY[name](a, b))
    assert torch.get_rng_state().equal(before)
