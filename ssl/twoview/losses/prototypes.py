"""SwAV and DINO: what one view says about K prototypes is the target of the others."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.losses.inputs import check_positive, check_rows, check_views, in_float32


@in_float32
def swapped_prediction(targets: Sequence[Tensor], logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Cross-entropy of every view's prediction with the target of every *other* global view (SwAV, arXiv 2006.09882,
    equations 1 and 2; DINO, arXiv 2104.14294, equation 3).

    `targets`: G tensors (N, K) of probabilities, of the first G views, constants; `logits`: V >= G tensors (N, K), the
    scores of all views before the softmax at `temperature`. The mean over the G (V - 1) pairs of different views and
    over N. Symmetric in the global views; the order of the local ones does not matter.

    Closed values: uniform targets or predictions give log K (3,000: 8.006; 4,096: 8.318; 512: 6.238), targets on one
    prototype that all predict 0. Sharp targets of a network without knowledge cost more than log K. Raises ValueError
    for fewer than two views, more targets than views, unfit shapes or temperature.
    """
    check_views(logits)
    check_rows(logits[0], *targets)
    check_positive(temperature=temperature)
    if not 1 <= len(targets) <= len(logits):
        raise ValueError(f"expected 1 to {len(logits)} targets, one for each global view, got {len(targets)}")
    log_p = [F.log_softmax(view / temperature, dim=1) for view in logits]  # V times (N, K)
    pairs = [
        -(target.detach() * prediction).sum(dim=1).mean()
        for i, target in enumerate(targets)
        for j, prediction in enumerate(log_p)
        if i != j
    ]
    return torch.stack(pairs).mean()


@torch.no_grad()
@in_float32
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Assigns B samples to K prototypes in equal parts (Sinkhorn & Knopp; SwAV, arXiv 2006.09882, section 3.1).

    `scores` (B, K): cosines of all samples of the global batch, and of a queue, with the prototypes. exp(scores /
    `epsilon`) is scaled `iterations` times: each prototype's column to B / K in sum, then each sample's row to 1.
    Returns probabilities (B, K) without gradient: rows sum to 1 exactly, columns to B / K nearly. Equal scores give 1 /
    K everywhere. A shift of all scores changes nothing. Raises ValueError for an epsilon that is not positive.
    """
    check_rows(scores)
    check_positive(epsilon=epsilon)
    q = ((scores - scores.amax()) / epsilon).exp()  # (B, K) in (0, 1]: no overflow, at least one entry is 1
    for _ in range(iterations):
        q = q / q.sum(dim=0, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)  # a prototype far from all stays empty
        q = q / q.sum(dim=1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
    return q


@torch.no_grad()
@in_float32
def centred_softmax(outputs: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """DINO's targets (arXiv 2104.14294, section 3.1): softmax((outputs - centre) / temperature), (N, K), no gradient.

    `outputs` (N, K) of the teacher, `centre` (K,) their running mean, which keeps any one prototype from taking all;
    the low `temperature` keeps the targets from becoming uniform. A vector added to both changes nothing.
    """
    check_positive(temperature=temperature)
    return ((outputs - centre) / temperature).softmax(dim=1)


@torch.no_grad()
@in_float32
def entropy(p: Tensor) -> Tensor:
    """The mean entropy of rows of probabilities (N, K), in nats: log K where uniform, 0 where sure. No gradient."""
    return torch.special.entr(p).sum(dim=1).mean()
