"""Near duplicates: images that are to the encoder nearly one and the same."""

from typing import NamedTuple

import numpy as np
import torch

from twoview.evaluate.classify.knn import Neighbours


class Group(NamedTuple):
    """Rows, ascending, each with a near duplicate among the others; the least cosine of a row with its nearest."""

    rows: list[int]
    similarity: float


def groups(near: Neighbours, limit: float) -> list[Group]:
    """Near duplicates among the nearest other rows of each row: those of a cosine of at least `limit`, and whoever is
    linked by them. The most alike come first.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(near.rows)
    alike = near.similarity.cpu() >= limit  # (N, k)
    a, column = alike.nonzero(as_tuple=True)
    b = near.rows.cpu()[a, column]
    links = coo_matrix((np.ones(len(a)), (a.numpy(), b.numpy())), shape=(n, n))
    count, member = connected_components(links, directed=False)
    sizes = np.bincount(member, minlength=count)
    order = np.argsort(member, kind="stable")
    parts = np.split(order, np.cumsum(sizes)[:-1])
    best = near.similarity[:, 0].cpu() if near.similarity.shape[1] else torch.zeros(n)
    found = [Group(rows.tolist(), float(best[rows].min())) for rows in parts if len(rows) > 1]
    return sorted(found, key=lambda group: (-group.similarity, group.rows))
