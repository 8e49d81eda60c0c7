"""Groups of images that belong together: k-means with k by the silhouette, or HDBSCAN."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Method = Literal["kmeans", "hdbscan"]

STRUCTURE = 0.25  # below this silhouette there is "no substantial structure" (Kaufman & Rousseeuw 1990, table 4)
TRIED = (*range(2, 13), 15, 20, 25, 30)  # numbers of clusters
PARTS = 12  # where there is no structure: cuts through what is continuous, to have sheets to look at
SAMPLE = 5000  # points of which the silhouette is measured: it compares all pairs
FEW = 10_000  # points by which the number of clusters is chosen
LEAST = 5  # images of a cluster of HDBSCAN


@dataclass(frozen=True)
class Clusters:
    """`member` int64 (N,): the cluster of each row, the largest is 0, and -1 for none. `typical`: the rows of each,
    those nearest to its centre first. `silhouette`: in [-1, 1], of all that are in a cluster; `tried`: that of each
    number of clusters that was tried.
    """

    method: Method
    member: Tensor
    typical: list[list[int]]
    silhouette: float
    tried: dict[int, float] = field(default_factory=dict)

    @property
    def clear(self) -> bool:
        return self.silhouette >= STRUCTURE


def kmeans(x: Tensor, count: int | None = None, seed: int = 0) -> Clusters:
    """Into `count` clusters of rows (N, D); None: as many as have the highest silhouette (Rousseeuw 1987), or `PARTS`
    where that shows no structure.
    """
    from sklearn.cluster import KMeans

    points = x.double().cpu().numpy()

    def fit(points: np.ndarray, k: int) -> np.ndarray:
        found: np.ndarray = KMeans(min(k, len(points)), n_init=4, random_state=seed).fit_predict(points)
        return found

    tried: dict[int, float] = {}
    if count is None:
        few = drawn(points, FEW, seed)
        tried = {k: silhouette(few, fit(few, k), seed) for k in TRIED if k <= len(few) // 2}
        best = max(tried, key=lambda k: tried[k], default=1)
        count = best if tried.get(best, 0) >= STRUCTURE else min(PARTS, max(1, len(points) // 4))
    member = fit(points, count)
    return sorted_clusters("kmeans", points, member, silhouette(points, member, seed), tried)


def hdbscan(x: Tensor, seed: int = 0) -> Clusters:
    """As many clusters of rows (N, D) as there are dense regions, of any shape, and the rest in none (Campello et al.
    2013).
    """
    from sklearn.cluster import HDBSCAN

    points = x.double().cpu().numpy()
    member = HDBSCAN(min_cluster_size=min(LEAST, len(points)), copy=True).fit_predict(points)
    return sorted_clusters("hdbscan", points, member, silhouette(points[member >= 0], member[member >= 0], seed))


def drawn(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many rows, the same of all arrays of one length."""
    if len(rows) <= most:
        return rows
    return rows[np.random.default_rng(seed).choice(len(rows), most, replace=False)]


def silhouette(points: np.ndarray, member: np.ndarray, seed: int) -> float:
    """Of at most `SAMPLE` points; 0 for less than two clusters, or nothing but single points."""
    from sklearn.metrics import silhouette_score

    points, member = drawn(points, SAMPLE, seed), drawn(member, SAMPLE, seed)
    return float(silhouette_score(points, member)) if 1 < len(np.unique(member)) < len(points) else 0.0


def sorted_clusters(
    method: Method, points: np.ndarray, member: np.ndarray, score: float, tried: dict[int, float] | None = None
) -> Clusters:
    """Clusters numbered by size, the largest first."""
    labels, sizes = np.unique(member[member >= 0], return_counts=True)
    order = labels[np.lexsort((labels, -sizes))]
    new = np.full(len(member), -1, dtype=np.int64)
    typical = []
    for number, label in enumerate(order):
        rows = np.flatnonzero(member == label)
        new[rows] = number
        away = np.linalg.norm(points[rows] - points[rows].mean(0), axis=1)
        typical.append(rows[np.argsort(away, kind="stable")].tolist())
    return Clusters(method, torch.from_numpy(new), typical, score, tried or {})
