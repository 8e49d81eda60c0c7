"""What lies near what, by the cosine of features: exactly, or beyond some 10^5 images by an index of faiss."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.evaluate.classify.knn import Neighbours, nearest

Search = Literal["exact", "faiss"]

LINKS, EFFORT = 32, 256  # of the HNSW graph: links of a point, points that are looked at in a search


def search(bank: Tensor, queries: Tensor, k: int, how: Search = "exact") -> Neighbours:
    """The `k` rows of the bank (N, D) nearest to each query (M, D), or all of a smaller bank. "faiss" walks a graph
    (HNSW: Malkov & Yashunin 2018): it may miss some, in time that hardly grows with N.
    """
    if how == "exact":
        return nearest(bank, queries, k)
    import faiss

    k = min(k, len(bank))
    graph = faiss.IndexHNSWFlat(bank.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = graph.hnsw.efSearch = max(EFFORT, 2 * k)
    graph.add(F.normalize(bank.float(), dim=1).cpu().numpy())
    found = graph.search(F.normalize(queries.float(), dim=1).cpu().numpy(), k)
    similarity, rows = (torch.from_numpy(part).to(bank.device) for part in found)  # (M, k)
    if len(lost := (rows < 0).any(1).nonzero().flatten()):  # the walk ended before it had seen k points
        exact = nearest(bank, queries[lost.to(queries.device)], k)
        similarity[lost], rows[lost] = exact.similarity, exact.rows
    return Neighbours(similarity, rows)


def others(features: Tensor, k: int, how: Search = "exact") -> Neighbours:
    """The `k` nearest other rows of each row of the features (N, D), at most N - 1."""
    k = min(k, len(features) - 1)
    similarity, rows = search(features, features, k + 1, how)
    own = rows == torch.arange(len(rows), device=rows.device)[:, None]  # (N, k + 1)
    order = own.long().argsort(dim=1, stable=True)[:, :k]  # oneself is last, or among equals beyond the k + 1
    return Neighbours(similarity.gather(1, order), rows.gather(1, order))


def strangers(features: Tensor) -> float:
    """The mean cosine of two different rows (N, D), N > 1: how alike the images are that have nothing in common."""
    n = len(features)
    total = F.normalize(features.double(), dim=1).sum(0)  # (D,)
    return float((total.square().sum() - n) / (n * (n - 1)))
