"""Numbers about features without labels: against sums written out, closed forms, and what must not change them."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twoview.evaluate.describe import quality as module
from twoview.evaluate.describe.quality import (
    alignment,
    contrastive_accuracy,
    effective_rank,
    feature_correlation,
    feature_std,
    mean_similarity,
    participation_ratio,
    quality,
    rankme,
    similarity_histograms,
    uniformity,
)

OF_ONE: list[Callable[[Tensor], float]] = [
    *(uniformity, rankme, effective_rank, participation_ratio, feature_std, feature_correlation, mean_similarity)
]


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def orthogonal(dim: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, seed).double())[0]


sizes = st.tuples(st.integers(2, 12), st.integers(2, 6), st.integers(0, 99))


# Against the definitions, written out.


@settings(deadline=None, max_examples=30)
@given(sizes)
def test_alignment_and_uniformity_are_their_sums(size: tuple[int, int, int]) -> None:
    n, dim, seed = size
    x, y = normal(n, dim, seed), normal(n, dim, seed + 1)
    a, b = (F.normalize(v.double(), dim=1) for v in (x, y))
    near = sum(float((a[i] - b[i]).norm()) ** 2 for i in range(n)) / n
    assert alignment(x, y) == pytest.approx(near, abs=1e-5)
    for t in (0.5, 2.0, 7.0):
        pairs = [math.exp(-t * float((a[i] - a[j]).norm()) ** 2) for i in range(n) for j in range(i)]
        assert uniformity(x, t) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-4)
    cosines = [float(a[i] @ a[j]) for i in range(n) for j in range(i)]
    assert mean_similarity(x) == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(sizes)
def test_ranks_are_those_of_a_singular_value_decomposition(size: tuple[int, int, int]) -> None:
    x = normal(*size)
    values = torch.linalg.svdvals(x.double())
    p = values / values.sum()
    assert effective_rank(x) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-9)
    q = p + 1e-7
    assert rankme(x) == pytest.approx(float(torch.exp(-(q * q.log()).sum())), rel=1e-9)
    variances = torch.linalg.svdvals(x.double() - x.double().mean(0)).square()
    expected = variances.sum() ** 2 / variances.square().sum()
    assert participation_ratio(x) == pytest.approx(float(expected), rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(sizes)
def test_std_and_correlation_are_those_of_torch(size: tuple[int, int, int]) -> None:
    n, dim, seed = size
    x = normal(n + 1, dim, seed)
    expected = F.normalize(x, dim=1).double().std(dim=0, correction=0).mean()
    assert feature_std(x) == pytest.approx(float(expected), rel=1e-9)
    correlation = torch.corrcoef(x.double().T).abs()
    off = correlation[~torch.eye(dim, dtype=torch.bool)]
    assert feature_correlation(x) == pytest.approx(float(off.mean()), rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(sizes)
def test_contrastive_accuracy_counts_rows_that_find_their_view(size: tuple[int, int, int]) -> None:
    n, dim, seed = size
    x = normal(n, dim, seed)
    y = x + 0.7 * normal(n, dim, seed + 1)
    rows = torch.nn.functional.normalize(torch.cat([x, y]), dim=1)
    right = 0
    for i in range(2 * n):
        others = {j: float(rows[i] @ rows[j]) for j in range(2 * n) if j != i}
        right += max(others, key=lambda j: others[j]) == (i + n) % (2 * n)
    assert contrastive_accuracy(x, y) == right / (2 * n)


def test_histograms_count_every_pair_once() -> None:
    x, y = normal(9, 3), normal(9, 3, seed=1)
    edges, positives, negatives = similarity_histograms(x, y, bins=8)
    cosine = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    own = torch.eye(9, dtype=torch.bool)
    assert edges.tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1]
    assert positives.tolist() == torch.histogram(cosine[own], 8, range=(-1, 1)).hist.tolist()
    assert negatives.tolist() == torch.histogram(cosine[~own], 8, range=(-1, 1)).hist.tolist()
    assert (int(positives.sum()), int(negatives.sum())) == (9, 72)


# Blocks.


def test_tiles_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(61, 7), normal(61, 7, seed=1)
    whole, histograms = quality(x, y), similarity_histograms(x, y)
    for tile in (1, 7, 60, 61):
        monkeypatch.setattr(module, "TILE", tile)
        monkeypatch.setattr(module, "BLOCK", 7 * tile)
        assert quality(x, y) == pytest.approx(whole, rel=1e-5)
        for a, b in zip(similarity_histograms(x, y), histograms, strict=True):
            assert torch.equal(a, b)


def test_memory_does_not_grow_with_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", 64)
    largest, make = 0, torch.Tensor.__matmul__

    def watched(a: Tensor, b: Tensor) -> Tensor:
        nonlocal largest
        result = make(a, b)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    quality(normal(1000, 4), normal(1000, 4, seed=1))
    similarity_histograms(normal(1000, 4), normal(1000, 4))
    assert largest == 64 * 64


# Closed forms.


@pytest.mark.parametrize("dim", [8, 32, 128])
def test_directions_drawn_evenly_are_as_uniform_as_the_sphere_allows(dim: int) -> None:
    x, y = normal(4000, dim), normal(4000, dim, seed=1)
    # E exp(4 (c - 1)) for the cosine c of two even directions: 0F1(; dim / 2; 4) e^-4.
    series = sum(4.0**k / (math.gamma(k + 1) * math.prod(dim / 2 + i for i in range(k))) for k in range(40))
    assert uniformity(x) == pytest.approx(math.log(series) - 4, abs=0.01)
    assert alignment(x, y) == pytest.approx(2, abs=0.05)
    assert feature_std(x) == pytest.approx(dim**-0.5, rel=0.01)
    assert mean_similarity(x) == pytest.approx(0, abs=0.01)
    assert feature_correlation(x) == pytest.approx(math.sqrt(2 / math.pi / 4000), rel=0.15)
    assert effective_rank(x) > 0.97 * dim
    assert participation_ratio(x) == pytest.approx(dim / (1 + (dim + 1) / 4000), rel=0.02)
    if dim >= 32:
        assert uniformity(x) == pytest.approx(-4 + 8 / dim, abs=0.02)


def test_collapse_is_zero_everywhere() -> None:
    x = normal(1, 16).expand(300, 16)
    assert uniformity(x) == pytest.approx(0, abs=1e-5)
    assert alignment(x, x) == 0
    assert feature_std(x) == 0
    assert participation_ratio(x) == 0
    assert math.isnan(feature_correlation(x))
    assert effective_rank(x) == pytest.approx(1, abs=1e-9)
    assert rankme(x) == pytest.approx(1, abs=1e-4)
    assert mean_similarity(x) == pytest.approx(1, abs=1e-6)
    assert contrastive_accuracy(x, x) == 0  # all candidates tie


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_orthogonal_directions_of_one_length_count_as_themselves(rank: int) -> None:
    x = orthogonal(64)[:, :rank] @ orthogonal(16, seed=1)[:rank]  # (64, 16), singular values 1
    assert effective_rank(x) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(x.T) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(x.float()) == pytest.approx(rank, rel=1e-4)
    centred = torch.cat([x, -x])  # of mean zero, the same variance along each
    assert participation_ratio(centred) == pytest.approx(rank, rel=1e-9)


def test_the_gram_matrix_is_as_good_as_a_decomposition_of_the_features() -> None:
    spectrum = torch.logspace(0, -6, 48, dtype=torch.float64)  # more ill-conditioned than real features
    x = orthogonal(400)[:, :48] * spectrum @ orthogonal(48, seed=1)
    p = spectrum / spectrum.sum()
    truth = float(torch.exp(-(p * p.log()).sum()))
    assert effective_rank(x) == pytest.approx(truth, rel=1e-9)
    for sort in (x, x.float()):
        exact = torch.linalg.svdvals(sort.double())
        p = exact / exact.sum()
        assert effective_rank(sort) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-9)


def test_dimensions_that_say_the_same_correlate_fully() -> None:
    x = normal(500, 1)
    assert feature_correlation(torch.cat([x, 3 * x + 1, -x], dim=1)) == pytest.approx(1)
    constant = torch.full((500, 1), 0.1)
    assert feature_correlation(torch.cat([x, constant, -x], dim=1)) == pytest.approx(1)


# What must not change them.


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-3, 1e3), st.integers(0, 99))
def test_scale_rotation_and_order_do_not_matter(scale: float, seed: int) -> None:
    x = normal(40, 5, seed).double() + 1
    for measure in OF_ONE:
        value = measure(x)
        assert measure(scale * x) == pytest.approx(value, rel=1e-6)
        assert measure(x[torch.randperm(40, generator=torch.Generator().manual_seed(seed))]) == pytest.approx(value)
        if measure not in (feature_std, feature_correlation):  # which are of the axes
            assert measure(x @ orthogonal(5, seed)) == pytest.approx(value, rel=1e-6)


def test_uniformity_survives_temperatures_under_which_every_pair_vanishes() -> None:
    x = torch.eye(3)  # all distances are sqrt 2
    assert uniformity(x, t=1e4) == pytest.approx(-2e4)
    assert uniformity(x, t=1e-6) == pytest.approx(-2e-6)


def test_half_precision_is_read_as_float32() -> None:
    x = normal(50, 8).bfloat16()
    assert quality(x, x.roll(1)) == quality(x.float(), x.roll(1).float())


# Hostile input.


def test_nan_makes_nan_and_does_not_raise() -> None:
    x = normal(20, 4)
    x[3, 2] = math.nan
    dim = {"dim"}
    assert all(math.isnan(value) for name, value in quality(x, x).items() if name not in dim)
    _, positives, negatives = similarity_histograms(x, x)
    assert (int(positives.sum()), int(negatives.sum())) == (19, 19 * 18)  # without that image


def test_a_single_row_has_no_pairs() -> None:
    found = quality(torch.ones(1, 3), torch.ones(1, 3))
    assert math.isnan(found["uniformity"])
    assert math.isnan(found["negative_similarity"])
    assert (found["alignment"], found["feature_std"], found["participation_ratio"]) == (0, 0, 0)
    assert found["effective_rank"] == pytest.approx(1)


def test_zeros_have_no_rank_and_no_direction() -> None:
    x = torch.zeros(10, 3)
    assert (rankme(x), effective_rank(x), participation_ratio(x), feature_std(x)) == (0, 0, 0, 0)
    assert mean_similarity(x) == 0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (2, 2, 2)])
def test_refuses_what_is_no_matrix_of_features(shape: tuple[int, ...]) -> None:
    for measure in OF_ONE:
        with pytest.raises(ValueError, match="features must be"):
            measure(torch.zeros(shape))


def test_refuses_views_of_two_shapes_and_senseless_numbers() -> None:
    with pytest.raises(ValueError, match="one shape"):
        alignment(torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="t must"):
        uniformity(torch.zeros(3, 2), t=0)
    with pytest.raises(ValueError, match="bins"):
        similarity_histograms(torch.zeros(3, 2), torch.zeros(3, 2), bins=0)


def test_quality_relates_its_numbers() -> None:
    x, y = normal(50, 9), normal(50, 9, seed=1)
    found = quality(x, y)
    assert found["positive_similarity"] == pytest.approx(float(F.cosine_similarity(x, y).mean()), abs=1e-6)
    assert found["feature_std_relative"] == pytest.approx(3 * found["feature_std"])
    assert found["dim"] == 9
    assert all(type(value) is float for value in found.values())
