import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twoview.losses import info_nce, info_nce_contrast, nt_xent, nt_xent_contrast


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def slow_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> tuple[float, float]:
    """Equation 1 of the paper, pair by pair: loss and accuracy."""
    z = z1.double().tolist() + z2.double().tolist()
    n, total, right = len(z1), 0.0, 0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        score = {k: cosine(z[i], z[k]) / temperature for k in range(2 * n) if k != i}
        total -= score[partner] - math.log(sum(math.exp(s) for s in score.values()))
        right += max(score, key=score.__getitem__) == partner
    return total / (2 * n), right / (2 * n)


def slow_info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> tuple[float, float]:
    total, right = 0.0, 0
    for q, k in zip(query.double().tolist(), key.double().tolist(), strict=True):
        score = [cosine(q, other) / temperature for other in [k, *negatives.double().tolist()]]
        total -= score[0] - math.log(sum(math.exp(s) for s in score))
        right += score[0] == max(score)
    return total / len(query), right / len(query)


def normal(n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 9),
    d=st.integers(1, 12),
    temperature=st.floats(0.05, 5),
    seed=st.integers(0, 2**31),
    near=st.booleans(),
)
def test_nt_xent_equals_the_double_loop(n: int, d: int, temperature: float, seed: int, near: bool) -> None:
    z1 = normal(n, d, seed, torch.float64)
    z2 = normal(n, d, seed + 1, torch.float64) + 3 * near * z1
    loss, accuracy = slow_nt_xent(z1, z2, temperature)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(loss, abs=1e-9)
    assert nt_xent(z1.float(), z2.float(), temperature).item() == pytest.approx(loss, abs=2e-4)
    if d > 1:  # in one dimension all similarities are 1 or -1: ties
        assert nt_xent_contrast(z1, z2, temperature).accuracy.item() == pytest.approx(accuracy)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 6), k=st.integers(0, 9), temperature=st.floats(0.05, 5), seed=st.integers(0, 2**31))
def test_info_nce_equals_the_double_loop(n: int, k: int, temperature: float, seed: int) -> None:
    q, key, negatives = (normal(m, 7, seed + i, torch.float64) for i, m in enumerate((n, n, k)))
    loss, accuracy = slow_info_nce(q, key, negatives, temperature)
    found = info_nce_contrast(q, key, negatives, temperature)
    assert found.loss.item() == pytest.approx(loss, abs=1e-9)
    assert found.accuracy.item() == pytest.approx(accuracy)
    assert info_nce(q, key, negatives, temperature).equal(found.loss)


def test_nt_xent_is_symmetric_and_blind_to_the_order_of_samples() -> None:
    z1, z2 = normal(8, 5, 0, torch.float64), normal(8, 5, 1, torch.float64)
    loss = nt_xent(z1, z2, 0.5)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nt_xent(z2, z1, 0.5), loss)
    torch.testing.assert_close(nt_xent(z1[order], z2[order], 0.5), loss)
    assert not torch.isclose(nt_xent(z1[order], z2, 0.5), loss)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_only_directions_count(scale: float) -> None:
    z1, z2, negatives = normal(8, 5, 0), normal(8, 5, 1), normal(20, 5, 2)
    rows = torch.linspace(0.5, 2, 8)[:, None]
    torch.testing.assert_close(nt_xent(scale * rows * z1, z2, 0.2), nt_xent(z1, z2, 0.2))
    torch.testing.assert_close(
        info_nce(z1, rows * z2 * scale, scale * negatives, 0.2), info_nce(z1, z2, negatives, 0.2)
    )
    turn = torch.linalg.qr(normal(5, 5, 3))[0]
    torch.testing.assert_close(nt_xent(z1 @ turn, z2 @ turn, 0.2), nt_xent(z1, z2, 0.2))


@pytest.mark.parametrize("n", [1, 2, 16])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_equal_views_of_orthogonal_samples(n: int, temperature: float) -> None:
    z = torch.eye(n, 16, dtype=torch.float64)
    found = nt_xent_contrast(z, z, temperature)
    # one candidate of similarity 1, and 2N - 2 of similarity 0
    assert found.loss.item() == pytest.approx(math.log(1 + (2 * n - 2) * math.exp(-1 / temperature)))
    assert found.accuracy == 1
    negatives = torch.eye(16, dtype=torch.float64)[n:]
    loss = info_nce(z, z, negatives, temperature).item()
    assert loss == pytest.approx(math.log(1 + (16 - n) * math.exp(-1 / temperature)))


@pytest.mark.parametrize("n", [2, 7, 512])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_equal_projections_are_at_chance(n: int, temperature: float) -> None:
    z = torch.ones(n, 3)
    assert nt_xent(z, z, temperature).item() == pytest.approx(math.log(2 * n - 1), abs=1e-5)
    assert info_nce(z, z, torch.ones(9, 3), temperature).item() == pytest.approx(math.log(10), abs=1e-5)
    assert nt_xent_contrast(z, z, temperature).accuracy <= 1 / n  # a collapse does not look like success


def test_swapped_partners_are_never_found() -> None:
    z = torch.eye(6)
    found = nt_xent_contrast(z, z.roll(1, 0), 0.5)
    assert found.accuracy == 0
    assert found.loss > nt_xent(z, z, 0.5)


def test_a_single_sample_and_no_negatives_cost_nothing() -> None:
    a, b = normal(1, 4, 0), normal(1, 4, 1)
    assert nt_xent(a, b, 0.5).item() == 0
    assert info_nce(a, b, normal(0, 4, 2), 0.5).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(dtype: torch.dtype) -> None:
    z1, z2, negatives = normal(32, 64, 0).to(dtype), normal(32, 64, 1).to(dtype), normal(100, 64, 2).to(dtype)
    exact = nt_xent(z1.float(), z2.float(), 0.05), info_nce(z1.float(), z2.float(), negatives.float(), 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        found = nt_xent(z1, z2, 0.05), info_nce(z1, z2, negatives, 0.05)
        mixed = nt_xent(z1, z2.float(), 0.05)
    for a, b in zip((*found, mixed), (*exact, exact[0]), strict=True):
        assert a.dtype == torch.float32
        assert a.item() == pytest.approx(b.item(), abs=1e-6)


def test_float64_stays_float64() -> None:
    assert nt_xent(normal(3, 4, 0, torch.float64), normal(3, 4, 1, torch.float64), 0.5).dtype == torch.float64


def test_gradients() -> None:
    z1, z2, negatives = (normal(n, 3, i, torch.float64).requires_grad_() for i, n in enumerate((4, 4, 5)))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (z1, z2))
    assert torch.autograd.gradcheck(lambda q, k, n: info_nce(q, k, n, 0.3), (z1, z2, negatives))


def test_gradients_stay_finite_for_zero_and_enormous_rows() -> None:
    z1, z2 = normal(4, 6, 0), normal(4, 6, 1)
    z1[0], z1[1], z2[2] = 0, 1e15, 1e-30
    z1.requires_grad_()
    loss = nt_xent(z1, z2, 0.01)
    loss.backward()
    assert loss.isfinite()
    assert z1.grad is not None
    assert z1.grad.isfinite().all()


def test_accuracy_has_no_gradient_and_loss_has() -> None:
    z1 = normal(4, 6, 0).requires_grad_()
    found = nt_xent_contrast(z1, normal(4, 6, 1), 0.5)
    assert found.loss.requires_grad
    assert not found.accuracy.requires_grad
    assert nt_xent(z1, normal(4, 6, 1), 0.5).equal(found.loss)


def test_inputs_are_left_alone() -> None:
    z1, z2, negatives = normal(4, 6, 0), normal(4, 6, 1), normal(5, 6, 2)
    nt_xent(z1, z2, 0.5)
    info_nce(z1, z2, negatives, 0.5)
    for seed, z in enumerate((z1, z2, negatives)):
        assert z.equal(normal(len(z), 6, seed))


def test_an_outlier_is_not_cut_off() -> None:
    """Similarities below zero are signal too: a method that clamps them at zero would not tell these apart."""
    z1 = torch.tensor([[1.0, 0.0], [-1.0, 0.1]])
    assert nt_xent(z1, z1 * torch.tensor([[1.0], [-1.0]]), 0.5) > nt_xent(z1, z1.flip(1), 0.5) > nt_xent(z1, z1, 0.5)


@pytest.mark.parametrize("temperature", [0.0, -0.5, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    z = torch.ones(2, 3)
    for call in (lambda: nt_xent(z, z, temperature), lambda: info_nce(z, z, z, temperature)):
        with pytest.raises(ValueError, match="temperature must be positive"):
            call()


@pytest.mark.parametrize(("a", "b"), [((2, 3), (3, 3)), ((2, 3), (2, 4)), ((6,), (6,)), ((2, 3, 1), (2, 3, 1))])
def test_shapes_must_fit(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    for call in (
        lambda: nt_xent(torch.ones(a), torch.ones(b), 0.5),
        lambda: info_nce(torch.ones(a), torch.ones(b), torch.ones(4, 3), 0.5),
    ):
        with pytest.raises(ValueError, match=r"two \(N, D\) tensors of one shape"):
            call()


def test_empty_batches_and_unfit_negatives_are_named() -> None:
    with pytest.raises(ValueError, match="the batch is empty"):
        nt_xent(torch.ones(0, 3), torch.ones(0, 3), 0.5)
    for negatives in (torch.ones(4, 2), torch.ones(3), torch.ones(1, 4, 3)):
        with pytest.raises(ValueError, match=r"negatives must be \(K, 3\)"):
            info_nce(torch.ones(2, 3), torch.ones(2, 3), negatives, 0.5)
