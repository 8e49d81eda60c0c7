"""Contrastive learning from labels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.losses.contrastive import Contrast
from twoview.losses.inputs import check_positive, check_rows, in_float32


@in_float32
def sup_con(views: Sequence[Tensor], label: Tensor, temperature: float) -> Contrast:
    """Supervised contrastive loss (arXiv 2004.11362, equation 2: the sum over positives outside the logarithm).

    `views`: V tensors (N, D) of any scale, projections of V >= 1 views of the same N samples. `label` (N,), integers;
    negative ones mean no label. The positives P of a row are the other views of its sample, and all views of the other
    samples of its class; a sample without a label has no class. With s = cosine / `temperature`, a row costs the mean
    over its positives of logsumexp over all other rows of s, less s of the positive; the loss is the mean over all V N
    rows. A row without positives costs 0. (The authors' code multiplies by temperature / 0.07, a change of learning
    rate; solo-learn's loss is another one, without the mean over positives.)

    Accuracy: the share of rows whose most similar other row is a positive. A tie is a miss.

    Closed values: at chance and at collapse log(V N - 1); classes that are perfect and apart leave log |P|, not 0. With
    two views and no two labels alike it is NT-Xent. Raises ValueError for unfit shapes, fewer than 2 rows in all, or a
    temperature that is not positive.
    """
    check_rows(*views)
    check_positive(temperature=temperature)
    n = len(views[0])
    if label.shape != (n,):
        raise ValueError(f"label must be ({n},), not {tuple(label.shape)}")
    if len(views) * n < 2:
        raise ValueError("expected at least 2 rows in all, got 1")
    z = F.normalize(torch.cat(list(views)), dim=1)  # (VN, D)
    label, sample = label.repeat(len(views)), torch.arange(n, device=z.device).repeat(len(views))  # (VN,) each
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    same_class = (label[:, None] == label) & (label >= 0)
    positive = ((sample[:, None] == sample) | same_class) & ~itself  # (VN, VN)
    log_p = F.log_softmax((z @ z.T / temperature).masked_fill(itself, float("-inf")), dim=1)
    cost = -log_p.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)  # (VN,)
    with torch.no_grad():
        best_positive = log_p.masked_fill(~positive, float("-inf")).amax(dim=1)
        best_negative = log_p.masked_fill(positive, float("-inf")).amax(dim=1)
        found = best_positive > best_negative
    return Contrast(cost.mean(), found.float().mean())
