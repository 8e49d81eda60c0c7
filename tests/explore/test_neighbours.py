"""What lies near what, near duplicates and outliers: beside scikit-learn, and where they were planted."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors, radius_neighbors_graph
from torch import Tensor

from twoview.explore import duplicates, outliers
from twoview.explore.neighbours import others, search, strangers


def features(n: int = 120, dim: int = 8, seed: int = 0) -> Tensor:
    """Anisotropic, as those of encoders are: all lie on one side."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator) + 1.5


def test_the_nearest_others_are_those_of_scikit_learn() -> None:
    h = features()
    near = others(h, 7)
    distance, rows = NearestNeighbors(n_neighbors=8, metric="cosine").fit(h.numpy()).kneighbors(h.numpy())
    assert np.array_equal(near.rows.numpy(), rows[:, 1:])
    np.testing.assert_allclose(1 - near.similarity.numpy(), distance[:, 1:], atol=1e-6)


def test_nobody_is_ones_own_neighbour_even_among_equals() -> None:
    h = torch.cat([features(5), features(1, seed=1).expand(30, -1)])
    near = others(h, 4)
    assert not (near.rows == torch.arange(len(h))[:, None]).any()
    assert (near.similarity[5:] > 1 - 1e-6).all()
    assert others(h[:3], 10).rows.shape == (3, 2)  # there are no more


def test_strangers_are_the_mean_over_all_pairs() -> None:
    h = features(40)
    cosines = F.normalize(h.double(), dim=1) @ F.normalize(h.double(), dim=1).T
    expected = float((cosines.sum() - cosines.trace()) / (40 * 39))
    assert strangers(h) == pytest.approx(expected, abs=1e-12)
    assert strangers(torch.eye(5)) == pytest.approx(0, abs=1e-12)


def test_an_index_finds_nearly_all_of_the_exact_neighbours() -> None:
    pytest.importorskip("faiss")
    h = features(2000, 32)
    exact, found = others(h, 10), others(h, 10, "faiss")
    shared = [len(set(a) & set(b)) for a, b in zip(exact.rows.tolist(), found.rows.tolist(), strict=True)]
    assert sum(shared) > 0.99 * 10 * len(h)
    assert search(h, h[:3], 5000, "faiss").rows.sort(1).values.tolist() == [list(range(2000))] * 3


def test_groups_are_the_components_of_the_graph_of_near_images() -> None:
    h, limit = features(90, 3), 0.999
    found = duplicates.groups(others(h, 89), limit)
    graph = radius_neighbors_graph(h.numpy(), 1 - limit, metric="cosine")
    _, member = connected_components(graph, directed=False)
    expected = [np.flatnonzero(member == m).tolist() for m in range(member.max() + 1)]
    assert sorted(group.rows for group in found) == sorted(rows for rows in expected if len(rows) > 1)
    assert len(found) > 3
    assert [group.similarity for group in found] == sorted((group.similarity for group in found), reverse=True)


def test_planted_copies_are_found_and_nothing_else() -> None:
    h = features(200, 64)
    generator = torch.Generator().manual_seed(9)
    copies = h[[3, 50, 50]] + 0.01 * torch.randn(3, 64, generator=generator)
    found = duplicates.groups(others(torch.cat([h, copies]), 5), 0.99)
    assert sorted(group.rows for group in found) == [[3, 200], [50, 201, 202]]


def test_a_distance_is_that_of_scikit_learn() -> None:
    h = features()
    distance, _ = NearestNeighbors(n_neighbors=6, metric="cosine").fit(h.numpy()).kneighbors(h.numpy())
    np.testing.assert_allclose(outliers.distances(others(h, 5)).numpy(), distance[:, 5], atol=1e-6)


def test_deviations_are_those_of_a_normal_law() -> None:
    """Quantiles of a log-normal law: the deviations are the normal quantiles, up to the tables' rounding."""
    levels = (torch.arange(10_001) + 0.5) / 10_001
    normal = math.sqrt(2) * torch.erfinv(2 * levels.double() - 1)
    found = outliers.deviations(0.01 * (0.3 * normal).exp())
    torch.testing.assert_close(found, normal, atol=1e-4, rtol=1e-4)
    assert outliers.deviations(torch.full((9,), 0.2)).tolist() == [0.0] * 9


def test_planted_outliers_come_first_even_if_they_are_there_twice() -> None:
    h = features(300, 16)
    odd = torch.zeros(3, 16)
    odd[0, 0], odd[1, 1], odd[2, 1] = -1, -1, -1.01  # the latter two are one image, twice
    deviation = outliers.deviations(outliers.distances(others(torch.cat([h, odd]), 10)))
    assert set(deviation.argsort(descending=True)[:3].tolist()) == {300, 301, 302}
    assert (deviation[300:] > outliers.FAR).all()
    assert (deviation[:300] > outliers.FAR).float().mean() < 0.02
