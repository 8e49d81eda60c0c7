"""Contrastive losses: pure functions of tensors, without configuration, logging or state.

All of them are one classification: each row has to find its positive among C candidates, by a softmax over cosine
similarities. The (M, C) matrix of similarities is what costs memory; `chunk` bounds how many of its rows exist at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Contrast(NamedTuple):
    """`loss`: scalar. `accuracy`: share of rows whose positive alone scores highest, scalar in [0, 1], no gradient."""

    loss: Tensor
    accuracy: Tensor


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy of SimCLR (arXiv 2002.05709, equation 1 and algorithm 1).

    `z1`, `z2` (N, D) are projections of two views of the same N samples, of any scale and floating dtype. Each of the
    2N rows has to find its other view among the 2N - 1 others; the loss is the mean over all 2N rows. (The paper's
    TensorFlow code adds the means of the two halves instead: twice this value.) The softmax is taken in float32 at
    least, under autocast too. Returns a scalar; log(2N - 1) is the chance level. Raises ValueError for shapes that
    differ or a temperature that is not positive.
    """
    return nt_xent_contrast(z1, z2, temperature).loss


def nt_xent_contrast(
    z1: Tensor, z2: Tensor, temperature: float, share: Tensor | None = None, chunk: int | None = None
) -> Contrast:
    """`nt_xent` together with the accuracy of its (2N - 1)-way classification, also of mixtures and in little memory.

    `share` (N,) in [0, 1] says that the first view holds mixtures of neighbours, as in i-Mix (arXiv 2010.08887) and
    Un-Mix (arXiv 2003.05438): row i of `z1` is `share[i]` of sample i and the rest of sample i ^ 1, with the same share
    in both rows of a pair; a lone last row is unmixed. The targets are mixed likewise, in both directions: row i of
    either view has `share[i]` on row i of the other view and the rest on row i ^ 1. Accuracy counts the larger part.

    `chunk` is the number of rows of the (2N, 2N) similarity matrix held at once, None for all. The numbers are the
    same; memory is linear in N; the loss can be differentiated once only. Raises ValueError for a chunk below 1 too.
    """
    _check(z1, z2, temperature, share, chunk)
    with torch.autocast(z1.device.type, enabled=False):
        z = F.normalize(_at_least_fp32(torch.cat([z1, z2])), dim=1)  # (2N, D)
        n, neighbour = len(z1), _neighbour(z1)
        own = torch.arange(2 * n, device=z.device).roll(n)  # (2N,) row of the other view
        mixed_in = torch.cat([neighbour + n, neighbour])  # (2N,)
        share = z.new_ones(n) if share is None else share.to(z)
        targets, weights = torch.stack([own, mixed_in], dim=1), _parts(share).repeat(2, 1)  # (2N, 2) each

        def logits(rows: slice, z: Tensor) -> Tensor:
            similarity = (z[rows] / temperature) @ z.T  # (rows, 2N)
            # No row is its own candidate. Unseen by autograd: the gradient of a softmax is zero there anyway.
            similarity.detach().diagonal(rows.start).fill_(float("-inf"))
            return similarity

        return _classify(logits, (z,), targets, weights, chunk)


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE of MoCo (arXiv 1911.05722, equation 1): each query has to find its key among the key and K negatives.

    `query`, `key` (N, D) and `negatives` (K, D), of any scale. Returns the mean over the N queries, a scalar; log(K +
    1) is the chance level. Raises ValueError for shapes that do not fit or a temperature that is not positive.
    """
    return info_nce_contrast(query, key, negatives, temperature).loss


def info_nce_contrast(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    temperature: float,
    excluded: Tensor | Callable[[slice], Tensor] | None = None,
    share: Tensor | None = None,
    chunk: int | None = None,
) -> Contrast:
    """`info_nce` together with the accuracy of its (K + 1)-way classification, also masked, mixed and in little memory.

    `excluded` (N, K) or (1, K), bool, is True where a negative is no candidate of a query: an empty place in a queue,
    the same sample from an earlier step. A function gives it for a slice of the queries, so that the whole never
    exists. A query left with its key alone has loss 0. MoCo v3 (arXiv 2104.02057), whose negatives are the other keys
    of the batch, is `negatives=key, excluded=torch.eye(N, dtype=torch.bool)`.

    `share` (N,) in [0, 1]: queries are mixtures of neighbours, see `nt_xent_contrast`. Key i is found with probability
    `share[i]`, key i ^ 1 with the rest, and so becomes a candidate: K + 2 in all (not for a lone last row, which has no
    neighbour). Shares of one therefore give the loss with the neighbour's key as a further negative, not the loss
    without `share`; where the negatives hold it already, exclude it there.

    `chunk` is the number of queries whose similarities are held at once, see `nt_xent_contrast`.
    """
    _check(query, key, temperature, share, chunk)
    if negatives.ndim != 2 or negatives.shape[1] != query.shape[1]:
        raise ValueError(f"negatives must be (K, {query.shape[1]}), not {tuple(negatives.shape)}")
    n, k = len(query), len(negatives)
    if isinstance(excluded, Tensor):
        if excluded.dtype != torch.bool or excluded.shape not in ((n, k), (1, k)):
            raise ValueError(f"excluded must be bool ({n}, {k}), not {excluded.dtype} {tuple(excluded.shape)}")
        excluded = excluded.expand(n, k).__getitem__
    with torch.autocast(query.device.type, enabled=False):
        q, keys, others = (F.normalize(_at_least_fp32(x), dim=1) for x in (query, key, negatives))
        q = q / temperature
        positives = (q * keys).sum(dim=1, keepdim=True)  # (N, 1)
        targets, weights = torch.zeros(n, 1, dtype=torch.long, device=q.device), q.new_ones(n, 1)
        if share is not None:
            neighbour = _neighbour(q)
            lone = neighbour == torch.arange(n, device=q.device)
            second = (q * keys[neighbour]).sum(dim=1).masked_fill(lone, float("-inf"))
            positives = torch.cat([positives, second[:, None]], dim=1)  # (N, 2)
            targets, weights = torch.cat([targets, (~lone).long()[:, None]], dim=1), _parts(share.to(q))  # (N, 2)

        def logits(rows: slice, q: Tensor, positives: Tensor, others: Tensor) -> Tensor:
            similarity = q[rows] @ others.T  # (rows, K)
            if excluded is not None:  # unseen by autograd, as in nt_xent
                similarity.detach().masked_fill_(excluded(rows), float("-inf"))
            return torch.cat([positives[rows], similarity], dim=1)

        return _classify(logits, (q, positives, others), targets, weights, chunk)


def _neighbour(z: Tensor) -> Tensor:
    """(N,) the rows mixed into each row: 1, 0, 3, 2, ...; a lone last row has itself."""
    return (torch.arange(len(z), device=z.device) ^ 1).clamp(max=len(z) - 1)


def _parts(share: Tensor) -> Tensor:
    return torch.stack([share, 1 - share], dim=1).detach()  # (N, 2)


def _classify(
    logits: Callable[..., Tensor], z: tuple[Tensor, ...], targets: Tensor, weights: Tensor, chunk: int | None
) -> Contrast:
    """Cross-entropy of M rows with soft targets: row i has probability `weights[i, t]` of candidate `targets[i, t]`.

    `logits(rows, *z)` gives the block (rows, C) of the matrix; `targets` and `weights` are (M, T).
    """
    best = targets.gather(1, weights.argmax(dim=1, keepdim=True))  # (M, 1) the first of equal ones

    def block(rows: slice, *z: Tensor) -> tuple[Tensor, Tensor]:
        log_p = F.log_softmax(logits(rows, *z), dim=1)  # (rows, C)
        loss = -(weights[rows] * log_p.gather(1, targets[rows])).sum(dim=1)
        score = log_p.detach()
        at_least = score >= score.gather(1, best[rows])  # (rows, C)
        return loss, at_least.sum(dim=1, keepdim=True) == 1  # only the right one: a tie is a miss

    if chunk is None:
        loss, right = block(slice(0, len(targets)), *z)
        return Contrast(loss.mean(), right.float().mean())
    return Contrast(*_InBlocks.apply(block, len(targets), chunk, *z))


class _InBlocks(torch.autograd.Function):
    """The means over M rows of what `block(rows, *z)` returns, one block at a time.

    The loss is a scalar, so a block's gradient is known as soon as its loss is, up to a factor: it is added up on the
    way forward, the block is forgotten, and the way back only scales the sum. Nothing is computed twice.
    """

    @staticmethod
    def forward(ctx: Any, block: Callable[..., tuple[Tensor, Tensor]], m: int, chunk: int, *z: Tensor) -> Any:
        # Made before the blocks: small tensors that outlive a block would hold on to the heap between large ones.
        losses, right = z[0].new_empty(m), torch.empty(m, 1, dtype=torch.bool, device=z[0].device)
        leaves = [x.detach().requires_grad_(wanted) for x, wanted in zip(z, ctx.needs_input_grad[3:], strict=True)]
        for start in range(0, m, chunk):
            rows = slice(start, min(start + chunk, m))
            with torch.enable_grad():
                loss, right[rows] = block(rows, *leaves)
            if loss.requires_grad:
                loss.backward(torch.full_like(loss, 1 / m))
            losses[rows] = loss.detach()
        ctx.gradients = [leaf.grad for leaf in leaves]
        accuracy = right.float().mean()
        ctx.mark_non_differentiable(accuracy)
        return losses.mean(), accuracy

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> Any:
        if torch.is_grad_enabled():  # as under create_graph=True
            raise RuntimeError("a loss in chunks has no second derivatives: use chunk=None")
        return None, None, None, *(None if gradient is None else scale * gradient for gradient in ctx.gradients)


def _check(a: Tensor, b: Tensor, temperature: float, share: Tensor | None, chunk: int | None) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"expected two (N, D) tensors of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if len(a) == 0:
        raise ValueError("the batch is empty")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    if share is not None and share.shape != a.shape[:1]:
        raise ValueError(f"share must be ({len(a)},), not {tuple(share.shape)}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 row, not {chunk}")


def _at_least_fp32(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()
