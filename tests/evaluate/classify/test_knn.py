"""The vote of the nearest neighbours."""

import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twoview.evaluate.classify import knn
from twoview.evaluate.classify.knn import knn_accuracy, knn_predict, nearest, vote


def sets(n: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 4, generator=g),
        torch.randint(0, 3, (n,), generator=g),
        torch.randn(m, 4, generator=g),
    )


def slow(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    rows = []
    for q in queries.tolist():
        votes = [0.0] * classes
        sims = []
        for b, label in zip(bank.tolist(), labels.tolist(), strict=True):
            dot = sum(x * y for x, y in zip(q, b, strict=True))
            sims.append((dot / math.hypot(*q) / math.hypot(*b), label))
        for sim, label in sorted(sims, reverse=True)[:k]:
            votes[label] += math.exp(sim / temperature)
        rows.append([v / sum(votes) for v in votes])
    return torch.tensor(rows)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 30),
    st.integers(1, 8),
    st.integers(1, 30),
    st.sampled_from([0.07, 0.1, 1.0]),
    st.integers(0, 99),
)
def test_equals_the_sum_written_out(n: int, m: int, k: int, temperature: float, seed: int) -> None:
    bank, labels, queries = sets(n, m, seed)
    expected = slow(bank, labels, queries, min(k, n), temperature, 3)
    torch.testing.assert_close(knn_predict(bank, labels, queries, k, temperature, 3), expected, atol=1e-5, rtol=1e-4)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels, queries = sets(50, 23)
    whole = knn_predict(bank, labels, queries, 10, 0.1, 3)
    for entries in (1, 50, 7 * 50):
        monkeypatch.setattr(knn, "SIMILARITIES", entries)
        torch.testing.assert_close(knn_predict(bank, labels, queries, 10, 0.1, 3), whole)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_lengths_of_features_do_not_matter(a: float, b: float) -> None:
    bank, labels, queries = sets(40, 9)
    torch.testing.assert_close(
        knn_predict(bank * a, labels, queries * b, 5, 0.1, 3),
        knn_predict(bank, labels, queries, 5, 0.1, 3),
        atol=1e-4,
        rtol=1e-3,
    )


def test_clusters_are_told_apart_without_error() -> None:
    labels = torch.arange(5).repeat(20)
    features = torch.eye(5)[labels] + 0.01 * torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    assert knn_accuracy(features, labels, features, labels, 20, 0.1, 5) == 1.0
    assert knn_accuracy(features, labels, features, (labels + 1) % 5, 20, 0.1, 5) == 0.0


def test_ties_go_to_the_lower_class() -> None:
    bank, labels = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([2, 1])
    query = torch.tensor([[1.0, 1.0]])
    assert knn_predict(bank, labels, query, 2, 0.1, 3).tolist() == [[0.0, 0.5, 0.5]]
    assert knn_accuracy(bank, labels, query, torch.tensor([1]), 2, 0.1, 3) == 1.0


def test_the_coldest_temperature_does_not_overflow() -> None:
    bank, labels, queries = sets(40, 9)
    cold = knn_predict(bank, labels, queries, 10, 1e-6, 3)
    nearest = knn_predict(bank, labels, queries, 1, 1.0, 3)
    torch.testing.assert_close(cold, nearest)


def test_a_k_beyond_the_bank_takes_the_bank_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    bank, labels, queries = sets(6, 4)
    with caplog.at_level(logging.WARNING):
        many = knn_predict(bank, labels, queries, 200, 0.1, 3)
    assert "k=200 exceeds the 6 entries of the bank" in caplog.text
    assert torch.equal(many, knn_predict(bank, labels, queries, 6, 0.1, 3))


@pytest.mark.parametrize(("k", "temperature", "words"), [(0, 0.1, "k must"), (1, 0.0, "temperature must")])
def test_refuses_what_makes_no_sense(k: int, temperature: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        knn_predict(*sets(6, 4), k, temperature, 3)


def test_refuses_shapes_that_do_not_fit() -> None:
    bank, labels, queries = sets(6, 4)
    with pytest.raises(ValueError, match="one label per bank entry"):
        knn_predict(bank, labels[:5], queries, 1, 0.1, 3)
    with pytest.raises(ValueError, match="sizes differ"):
        knn_predict(bank, labels, queries[:, :3], 1, 0.1, 3)


@pytest.mark.parametrize("k", [1, 7, 200])
@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_a_vote_of_stored_neighbours_is_knn(k: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(300, 8, generator=generator), torch.randn(40, 8, generator=generator)
    labels = torch.randint(5, (300,), generator=generator)
    found = vote(nearest(bank, queries, 200), labels, k, temperature, 5)
    assert torch.allclose(found, knn_predict(bank, labels, queries, k, temperature, 5), atol=1e-6)


def test_a_small_bank_is_taken_whole() -> None:
    found = nearest(torch.eye(3), torch.eye(3)[:1], 10)
    assert found.rows.shape == (1, 3)
    assert int(found.rows[0, 0]) == 0
    with pytest.raises(ValueError, match="bank"):
        nearest(torch.zeros(0, 3), torch.eye(3), 1)
