import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from twoview.losses.contrastive import Contrast, info_nce, info_nce_contrast, nt_xent, nt_xent_contrast


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


# Mixtures, masks, blocks


def slow_classify(
    scores: list[dict[tuple[str, int], float]], targets: list[dict[tuple[str, int], float]]
) -> tuple[float, float]:
    """Cross-entropy of rows of named candidates with soft targets, and how often the likeliest scores highest."""
    loss = 0.0
    for score, target in zip(scores, targets, strict=True):
        log_sum = math.log(sum(math.exp(s) for s in score.values()))
        loss -= sum(share * (score[name] - log_sum) for name, share in target.items() if share)
    right = [max(s, key=s.__getitem__) == max(t, key=t.__getitem__) for s, t in zip(scores, targets, strict=True)]
    return loss / len(scores), sum(right) / len(scores)


def mixed_target(view: str, i: int, n: int, share: Tensor) -> dict[tuple[str, int], float]:
    if i == n - 1 and n % 2:
        return {(view, i): 1.0}
    return {(view, i): share[i].item(), (view, i ^ 1): 1 - share[i].item()}


def slow_mixed_nt_xent(z1: Tensor, z2: Tensor, temperature: float, share: Tensor) -> tuple[float, float]:
    views = {"first": z1.tolist(), "second": z2.tolist()}
    rows = [(view, i) for view in views for i in range(len(z1))]
    scores = [
        {(w, j): cosine(views[v][i], views[w][j]) / temperature for w, j in rows if (w, j) != (v, i)} for v, i in rows
    ]
    other = {"first": "second", "second": "first"}
    return slow_classify(scores, [mixed_target(other[v], i, len(z1), share) for v, i in rows])


def slow_masked_info_nce(
    query: Tensor, key: Tensor, negatives: Tensor, temperature: float, excluded: Tensor, share: Tensor | None
) -> tuple[float, float]:
    scores, n = [], len(query)
    for i, q in enumerate(query.tolist()):
        score = {("key", i): cosine(q, key[i].tolist())}
        if share is not None and i ^ 1 < n:
            score["key", i ^ 1] = cosine(q, key[i ^ 1].tolist())
        score |= {("negative", j): cosine(q, other) for j, other in enumerate(negatives.tolist()) if not excluded[i, j]}
        scores.append({name: value / temperature for name, value in score.items()})
    shares = torch.ones(n) if share is None else share
    return slow_classify(scores, [mixed_target("key", i, n, shares) for i in range(n)])


def shares(n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Equal within pairs of neighbours, never a half, and one for a lone last row."""
    share = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    share = share[torch.arange(n) // 2 * 2]
    if n % 2:
        share[-1] = 1
    return share


def mask(n: int, k: int, seed: int) -> Tensor:
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) < 0.4


sizes = {"n": st.integers(1, 9), "d": st.integers(2, 9), "seed": st.integers(0, 2**31)}
chunks = st.none() | st.integers(1, 20)


@settings(deadline=None, max_examples=40)
@given(**sizes, temperature=st.floats(0.05, 5), chunk=chunks)
def test_nt_xent_of_mixtures_equals_the_double_loop(
    n: int, d: int, seed: int, temperature: float, chunk: int | None
) -> None:
    z1, z2 = normal(n, d, seed, torch.float64), normal(n, d, seed + 1, torch.float64)
    share = shares(n, seed, torch.float64)
    found = nt_xent_contrast(z1, z2, temperature, share, chunk)
    assert (found.loss.item(), found.accuracy.item()) == pytest.approx(
        slow_mixed_nt_xent(z1, z2, temperature, share), abs=1e-7
    )


@settings(deadline=None, max_examples=60)
@given(**sizes, k=st.integers(0, 7), temperature=st.floats(0.05, 5), mixed=st.booleans(), chunk=chunks)
def test_info_nce_of_masks_and_mixtures_equals_the_double_loop(
    n: int, d: int, seed: int, k: int, temperature: float, mixed: bool, chunk: int | None
) -> None:
    q, key, negatives = (normal(m, d, seed + i, torch.float64) for i, m in enumerate((n, n, k)))
    excluded, share = mask(n, k, seed), shares(n, seed, torch.float64) if mixed else None
    found = info_nce_contrast(q, key, negatives, temperature, excluded, share, chunk)
    assert (found.loss.item(), found.accuracy.item()) == pytest.approx(
        slow_masked_info_nce(q, key, negatives, temperature, excluded, share), abs=1e-7
    )


def with_gradients(contrast: Contrast, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (*(x.detach() for x in contrast), *torch.autograd.grad(contrast.loss, inputs))


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], atol: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@settings(deadline=None, max_examples=100)
@given(
    **sizes,
    k=st.integers(0, 12),
    chunk=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    mixed=st.booleans(),
    masked=st.sampled_from(["not", "rows", "all alike"]),
)
def test_blocks_change_neither_loss_nor_accuracy_nor_gradients(
    n: int, d: int, seed: int, k: int, chunk: int, dtype: torch.dtype, mixed: bool, masked: str
) -> None:
    # Rows of length one: gradients of shorter ones are larger, and so are their rounding errors.
    rows = [torch.nn.functional.normalize(normal(m, d, seed + i, dtype)) for i, m in enumerate((n, n, k))]
    z1, z2, negatives = (z.requires_grad_() for z in rows)
    share, atol = shares(n, seed) if mixed else None, 1e-6 if dtype == torch.float32 else 1e-14
    excluded = None if masked == "not" else mask(1 if masked == "all alike" else n, k, seed)
    assert_same(
        with_gradients(nt_xent_contrast(z1, z2, 0.3, share, chunk), (z1, z2)),
        with_gradients(nt_xent_contrast(z1, z2, 0.3, share), (z1, z2)),
        atol,
    )
    inputs = (z1, z2, negatives)
    assert_same(
        with_gradients(info_nce_contrast(*inputs, 0.3, excluded, share, chunk), inputs),
        with_gradients(info_nce_contrast(*inputs, 0.3, excluded, share), inputs),
        atol,
    )


@pytest.mark.parametrize("chunk", [1, 100, 1024])
def test_blocks_of_a_whole_batch_in_float32(chunk: int) -> None:
    z1, z2 = (normal(512, 128, seed).requires_grad_() for seed in range(2))
    found = with_gradients(nt_xent_contrast(z1, z2, 0.1, chunk=chunk), (z1, z2))
    expected = with_gradients(nt_xent_contrast(z1, z2, 0.1), (z1, z2))
    for a, b in zip(found, expected, strict=True):  # the loss and each gradient as a whole, relatively
        assert (a - b).norm() <= 1e-6 * b.norm(), (a - b).norm() / b.norm()


@pytest.mark.parametrize("chunk", [None, 1, 3, 50])
@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_of_masks_mixtures_and_blocks(chunk: int | None, mixed: bool) -> None:
    z1, z2, negatives = (normal(n, 3, i, torch.float64).requires_grad_() for i, n in enumerate((5, 5, 6)))
    share = shares(5, 0, torch.float64) if mixed else None
    excluded = mask(5, 6, 0)
    excluded[2] = True  # a query with its key alone
    assert torch.autograd.gradcheck(lambda a, b: nt_xent_contrast(a, b, 0.5, share, chunk).loss, (z1, z2))
    assert torch.autograd.gradcheck(
        lambda q, k, n: info_nce_contrast(q, k, n, 0.3, excluded, share, chunk).loss, (z1, z2, negatives)
    )


def storages(tree: object) -> dict[StorageWeakRef, int]:
    """The memory behind all tensors of nested containers, in bytes."""
    found = [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, Tensor)]
    return {StorageWeakRef(storage): storage.nbytes() for storage in found}


class Peak(TorchDispatchMode):
    """The most bytes alive at once among all that is made inside, backward passes included; views are not made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        self.alive = {storage: size for storage, size in self.alive.items() if not storage.expired()}
        given = storages((args, kwargs))
        self.alive |= {storage: size for storage, size in storages(made).items() if storage not in given}
        self.bytes = max(self.bytes, sum(self.alive.values()))
        return made


def peak(method: str, n: int, chunk: int | None, extras: bool) -> int:
    """Bytes that a loss of `n` rows, 4 numbers wide, and its gradient take beside their arguments."""
    z1, z2, negatives = (normal(n, 4, seed).requires_grad_() for seed in range(3))
    share = shares(n, 0) if extras else None
    excluded = mask(n, n, 0) if extras else None
    with Peak() as found:
        if method == "nt_xent":
            loss = nt_xent_contrast(z1, z2, 0.5, share, chunk).loss
        else:
            loss = info_nce_contrast(z1, z2, negatives, 0.5, excluded, share, chunk).loss
        loss.backward()
    return found.bytes


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("method", ["nt_xent", "info_nce"])
def test_memory_in_blocks_is_linear_in_the_batch(method: str, extras: bool) -> None:
    columns = 2 if method == "nt_xent" else 1  # of the matrix, per sample
    small, large = (peak(method, n, 16, extras) for n in (512, 1024))
    assert large < 2.05 * small
    assert large < 4 * (16 * columns * 1024) * 4 + 200 * 1024  # four blocks of floats, and some numbers per sample
    plain = peak(method, 512, None, extras), peak(method, 1024, None, extras)
    assert plain[1] > 3.7 * plain[0]
    assert plain[1] > 2 * (columns * 1024) ** 2 * 4
    assert plain[1] > 8 * large


def test_shares_of_one_are_no_mixture_and_shares_of_zero_swap_neighbours() -> None:
    z1, z2 = normal(7, 5, 0), normal(7, 5, 1)
    assert nt_xent_contrast(z1, z2, 0.5, torch.ones(7)).loss.equal(nt_xent(z1, z2, 0.5))
    z1, z2, swapped = z1[:6], z2[:6], [1, 0, 3, 2, 5, 4]
    torch.testing.assert_close(nt_xent_contrast(z1, z2, 0.5, torch.zeros(6)).loss, nt_xent(z1, z2[swapped], 0.5))
    half = (nt_xent(z1, z2, 0.5) + nt_xent(z1, z2[swapped], 0.5)) / 2
    torch.testing.assert_close(nt_xent_contrast(z1, z2, 0.5, torch.full((6,), 0.5)).loss, half)


def test_shares_of_one_make_the_neighbours_key_a_negative_of_info_nce() -> None:
    q, key, negatives = normal(7, 5, 0), normal(7, 5, 1), normal(9, 5, 2)
    mixed = info_nce_contrast(q, key, negatives, 0.5, share=torch.ones(7)).loss
    excluded = torch.ones(7, 16, dtype=torch.bool)
    excluded[:, :9] = False
    for i, neighbour in enumerate([1, 0, 3, 2, 5, 4]):
        excluded[i, 9 + neighbour] = False
    torch.testing.assert_close(mixed, info_nce_contrast(q, key, torch.cat([negatives, key]), 0.5, excluded).loss)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize(("share", "accuracy"), [(1.0, 1), (0.6, 1), (0.5, 1), (0.4, 0), (0.0, 0)])
def test_accuracy_counts_the_larger_part(share: float, accuracy: int, chunk: int | None) -> None:
    z = torch.eye(6)
    share_of_all = torch.full((6,), share)
    assert nt_xent_contrast(z, z, 0.5, share_of_all, chunk).accuracy == accuracy
    assert info_nce_contrast(z, z, -z, 0.5, share=share_of_all, chunk=chunk).accuracy == accuracy


def test_a_lone_last_row_is_unmixed_whatever_its_share() -> None:
    q, key, negatives = normal(1, 5, 0), normal(1, 5, 1), normal(4, 5, 2)
    share = torch.tensor([0.3])
    torch.testing.assert_close(
        info_nce_contrast(q, key, negatives, 0.5, share=share).loss, info_nce(q, key, negatives, 0.5)
    )
    assert nt_xent_contrast(q, key, 0.5, share).loss == 0


def test_excluded_negatives_might_as_well_not_be_there() -> None:
    q, key, negatives = normal(6, 5, 0), normal(6, 5, 1), normal(9, 5, 2)
    excluded = mask(1, 9, 0)
    found = info_nce_contrast(q, key, negatives, 0.5, excluded)
    torch.testing.assert_close(found, info_nce_contrast(q, key, negatives[~excluded[0]], 0.5))
    assert found.loss.equal(info_nce_contrast(q, key, negatives, 0.5, excluded.repeat(6, 1)).loss)
    assert info_nce_contrast(q, key, negatives, 0.5, excluded & False).loss.equal(info_nce(q, key, negatives, 0.5))


def test_negatives_of_the_batch_are_excluded_by_the_diagonal() -> None:
    """MoCo v3: the cross-entropy of the (N, N) similarities with the diagonal as target."""
    q, key = normal(6, 5, 0), normal(6, 5, 1)
    found = info_nce_contrast(q, key, key, 0.2, torch.eye(6, dtype=torch.bool)).loss
    similarity = torch.cosine_similarity(q[:, None], key[None], dim=2) / 0.2
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(similarity, torch.arange(6)))


@pytest.mark.parametrize("chunk", [None, 2])
def test_queries_without_negatives_cost_nothing_and_keep_gradients_finite(chunk: int | None) -> None:
    q, key, negatives = (normal(n, 5, i).requires_grad_() for i, n in enumerate((4, 4, 9)))
    found = info_nce_contrast(q, key, negatives, 0.01, torch.ones(1, 9, dtype=torch.bool), chunk=chunk)
    assert found.loss == 0
    assert found.accuracy == 1
    for gradient in torch.autograd.grad(found.loss, (q, key, negatives)):
        assert gradient.count_nonzero() == 0  # and no NaN


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_blocks_of_half_precision_are_computed_in_float32(dtype: torch.dtype) -> None:
    z1, z2 = (normal(32, 64, seed).to(dtype).requires_grad_() for seed in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(nt_xent_contrast(z1, z2, 0.05, chunk=10), (z1, z2))
    exact = with_gradients(nt_xent_contrast(z1.float(), z2.float(), 0.05), (z1, z2))
    assert_same(found[:2], exact[:2], 1e-6)
    for a, b in zip(found[2:], exact[2:], strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=torch.finfo(dtype).eps, atol=1e-6)  # the last rounding may differ


def test_blocks_give_gradients_to_those_who_ask() -> None:
    z1, z2, negatives = normal(4, 6, 0), normal(4, 6, 1), normal(9, 6, 2)
    assert not nt_xent_contrast(z1, z2, 0.5, chunk=3).loss.requires_grad
    with torch.no_grad():
        assert not nt_xent_contrast(z1.clone().requires_grad_(), z2, 0.5, chunk=3).loss.requires_grad
    z1.requires_grad_()
    share = torch.full((4,), 0.7, requires_grad=True)
    found = info_nce_contrast(z1, z2, negatives, 0.5, share=share, chunk=3)
    assert not found.accuracy.requires_grad
    found.loss.backward(retain_graph=True)
    assert z1.grad is not None
    once = z1.grad.clone()
    (3 * found.loss).backward()
    torch.testing.assert_close(z1.grad, 4 * once)
    assert share.grad is None


def test_blocks_cannot_be_differentiated_twice() -> None:
    z1, z2 = normal(4, 6, 0).requires_grad_(), normal(4, 6, 1)
    with pytest.raises(RuntimeError, match=r"no second derivatives: use chunk=None"):
        torch.autograd.grad(nt_xent_contrast(z1, z2, 0.5, chunk=3).loss, z1, create_graph=True)
    assert torch.autograd.gradgradcheck(lambda a: nt_xent_contrast(a, z2.double(), 0.5).loss, z1.double())


def test_masks_shares_and_inputs_are_left_alone() -> None:
    q, key, negatives, share, excluded = normal(4, 6, 0), normal(4, 6, 1), normal(5, 6, 2), shares(4, 3), mask(4, 5, 4)
    for chunk in (None, 3):
        nt_xent_contrast(q, key, 0.5, share, chunk)
        info_nce_contrast(q, key, negatives, 0.5, excluded, share, chunk)
    assert share.equal(shares(4, 3))
    assert excluded.equal(mask(4, 5, 4))
    for seed, z in enumerate((q, key, negatives)):
        assert z.equal(normal(len(z), 6, seed))


def test_unfit_masks_shares_and_blocks_are_named() -> None:
    z, negatives = torch.ones(4, 3), torch.ones(5, 3)
    for excluded in (torch.ones(5, 4), torch.ones(5), torch.ones(4, 1), torch.ones(1, 4, 5)):
        with pytest.raises(ValueError, match=r"excluded must be bool \(4, 5\)"):
            info_nce_contrast(z, z, negatives, 0.5, excluded.bool())
    with pytest.raises(ValueError, match=r"not torch\.float32"):
        info_nce_contrast(z, z, negatives, 0.5, torch.ones(4, 5))
    for share in (torch.ones(3), torch.ones(4, 1), torch.tensor(1.0)):
        for call in (
            lambda share=share: nt_xent_contrast(z, z, 0.5, share),
            lambda share=share: info_nce_contrast(z, z, negatives, 0.5, share=share),
        ):
            with pytest.raises(ValueError, match=r"share must be \(4,\)"):
                call()
    for chunk in (0, -3):
        for call in (
            lambda chunk=chunk: nt_xent_contrast(z, z, 0.5, chunk=chunk),
            lambda chunk=chunk: info_nce_contrast(z, z, negatives, 0.5, chunk=chunk),
        ):
            with pytest.raises(ValueError, match="chunk must be at least 1 row"):
                call()


def test_a_mask_may_be_a_function_of_rows() -> None:
    q, key, negatives, excluded = normal(6, 4, 0), normal(6, 4, 1), normal(5, 4, 2), mask(6, 5, 4)
    for chunk in (None, 4):
        a = info_nce_contrast(q, key, negatives, 0.5, excluded, chunk=chunk)
        b = info_nce_contrast(q, key, negatives, 0.5, lambda rows: excluded[rows], chunk=chunk)
        assert a.loss.equal(b.loss)


@pytest.mark.parametrize("chunk", [None, 2])
def test_a_tie_is_a_miss(chunk: int | None) -> None:
    """All rows alike, as of a collapsed network: nothing is found, though everything scores highest."""
    z = torch.ones(5, 3)
    assert nt_xent_contrast(z, z, 0.5, chunk=chunk).accuracy == 0
    assert info_nce_contrast(z, z, z, 0.5, chunk=chunk).accuracy == 0
    assert info_nce_contrast(z, z, -z, 0.5, chunk=chunk).accuracy == 1
