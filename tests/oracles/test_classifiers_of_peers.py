"""Neighbours of faiss, votes and logistic regression of scikit-learn, calibration of torchmetrics."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.evaluate.classify.calibration import ece
from twoview.evaluate.classify.knn import knn_predict, nearest
from twoview.evaluate.classify.newton import LinearProbe, fit_linear

N, M, D, CLASSES = 600, 200, 12, 5


@cache
def features() -> tuple[Tensor, Tensor, Tensor]:
    """Of overlapping classes: a bank (N, D), its labels (N,), and queries (M, D)."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % CLASSES
    centres = torch.randn(CLASSES, D, generator=g)
    bank = centres[labels] + 1.5 * torch.randn(N, D, generator=g)
    return bank, labels, centres[torch.arange(M) % CLASSES] + 1.5 * torch.randn(M, D, generator=g)


def test_neighbours_are_those_of_faiss() -> None:
    faiss = pytest.importorskip("faiss", reason="the extra `bench` is not installed")
    bank, _, queries = features()
    index = faiss.IndexFlatIP(D)
    index.add(F.normalize(bank, dim=1).numpy())
    similarity, rows = index.search(F.normalize(queries, dim=1).numpy(), 20)
    found = nearest(bank, queries, 20)
    np.testing.assert_array_equal(found.rows.numpy(), rows)
    np.testing.assert_allclose(found.similarity.numpy(), similarity, atol=1e-6)


def test_votes_are_those_of_scikit_learn() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    bank, labels, queries = features()
    theirs = neighbors.KNeighborsClassifier(20, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.1))
    expected = theirs.fit(bank.double().numpy(), labels.numpy()).predict_proba(queries.double().numpy())
    found = knn_predict(bank, labels, queries, k=20, temperature=0.1, classes=CLASSES)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@cache
def probe(l2: float) -> LinearProbe:
    bank, labels, _ = features()
    return fit_linear(bank, labels, CLASSES, l2, tol=1e-14)


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg", "newton-cholesky"])
@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_the_probe_is_the_optimum_of_three_solvers(solver: str, l2: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    bank, labels, _ = features()
    mine = probe(l2)
    x = ((bank.double() - mine.mean) / mine.std).numpy()
    theirs = linear_model.LogisticRegression(C=1 / (N * l2), solver=solver, tol=1e-10, max_iter=10_000)
    theirs.fit(x, labels.numpy())
    np.testing.assert_allclose(mine.weight.numpy(), theirs.coef_ - theirs.coef_.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(mine.bias.numpy(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-6)


@pytest.mark.parametrize("bins", [10, 15])
def test_the_calibration_error_is_that_of_torchmetrics(bins: int) -> None:
    metrics = pytest.importorskip("torchmetrics.classification", reason="the extra `bench` is not installed")
    g = torch.Generator().manual_seed(1)
    p = (2 * torch.randn(3000, CLASSES, generator=g)).softmax(dim=1)
    labels = torch.randint(CLASSES, (3000,), generator=g)
    theirs = metrics.MulticlassCalibrationError(CLASSES, n_bins=bins, norm="l1")(p, labels)
    assert ece(p, labels, bins) == pytest.approx(float(theirs), abs=1e-6)
