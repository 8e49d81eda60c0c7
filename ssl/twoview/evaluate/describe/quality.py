"""Features described without labels: are positives close, are images spread out, how many dimensions are used.

All functions take features (N, D) of any scale and floating dtype, on any device. They process the N x N pairs in
tiles and the N x D features in blocks of rows: memory does not grow with N^2, and nothing is subsampled. The result is
NaN where a feature is, and where it is undefined (`uniformity` of a single row).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 2048  # rows and columns of a tile of similarities: 16 MiB of float32
BLOCK = 2**20  # features in a block that is taken to float64: 8 MiB


def quality(x1: Tensor, x2: Tensor) -> dict[str, float]:
    """All numbers below for the features (N, D) of two views of the same N images, named like the functions.

    Numbers of a single set of features are those of `x1`. Beside them: `positive_similarity` and
    `negative_similarity`, the mean cosine between two views of an image and between different images;
    `feature_std_relative`, `feature_std` in units of its healthy 1 / sqrt(D); and `dim`, the D to compare ranks with.
    """
    near, std, dim = alignment(x1, x2), feature_std(x1), x1.shape[1]
    return {
        "alignment": near,
        "uniformity": uniformity(x1),
        "rankme": rankme(x1),
        "effective_rank": effective_rank(x1),
        "participation_ratio": participation_ratio(x1),
        "feature_std": std,
        "feature_std_relative": std * math.sqrt(dim),
        "feature_correlation": feature_correlation(x1),
        "contrastive_accuracy": contrastive_accuracy(x1, x2),
        "positive_similarity": 1 - near / 2,
        "negative_similarity": mean_similarity(x1),
        "dim": float(dim),
    }


def alignment(x: Tensor, y: Tensor) -> float:
    """Mean squared distance, in [0, 4], of the two views of an image on the unit sphere (Wang & Isola, ICML 2020,
    arXiv 2005.10242, with alpha = 2). Smaller is better, and zero by itself is collapse.
    """
    a, b = _views(x, y)
    return float((a - b).square().sum(dim=1).mean(dtype=torch.float64))


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """log of the mean of exp(-t ||z_i - z_j||^2) over all pairs i < j of rows on the unit sphere (Wang & Isola, as
    above). 0 where all rows are one; features spread evenly over the sphere come to about -4 + 8 / D at t = 2.
    """
    if not t > 0:
        raise ValueError(f"t must be positive, not {t}")
    z = _unit(x)
    n, total = len(z), torch.full((), -math.inf, dtype=torch.float64, device=z.device)
    if n < 2:
        return math.nan
    for similarity in _pairs(z):
        exponent = similarity.sub_(1).clamp_max_(0).mul_(2 * t)  # ||a - b||^2 = 2 - 2 a.b
        largest = exponent.amax()  # taken out, so that no t underflows
        total = torch.logaddexp(total, largest + exponent.sub_(largest).exp_().sum(dtype=torch.float64).log())
    return float(total) - math.log(n * (n - 1) / 2)


def rankme(x: Tensor, eps: float = 1e-7) -> float:
    """exp of the entropy of the singular values of `x`, uncentred, as shares of their sum, each plus `eps` (Garrido et
    al., ICML 2023, arXiv 2210.02885): from 1, all rows along one line, to D; 0 for all zeros. Means little unless N is
    well above D.
    """
    values = _singular_values(x)  # (min(N, D),)
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total + eps).sum().exp())


def effective_rank(x: Tensor) -> float:
    """`rankme` without its small constant (Roy & Vetterli, "The effective rank", EUSIPCO 2007)."""
    return rankme(x, eps=0.0)


def participation_ratio(x: Tensor) -> float:
    """(sum of l)^2 / (sum of l^2) over the eigenvalues l of the covariance: as many dimensions as share the variance,
    from 1 to D; 0 where nothing varies.
    """
    covariance = _covariance(x)  # its trace is the sum of l, its squared norm that of l^2
    spread = float(covariance.trace())
    return spread**2 / float(covariance.square().sum()) if spread != 0 else 0.0


def feature_std(x: Tensor) -> float:
    """Mean over dimensions of the standard deviation of unit rows: about 1 / sqrt(D) where they spread over the
    sphere, 0 in collapse (Chen & He, CVPR 2021, arXiv 2011.10566, section 4.1).
    """
    return float(_covariance(_unit(x)).diagonal().sqrt().mean())


def feature_correlation(x: Tensor) -> float:
    """Mean absolute correlation, in [0, 1], between two different dimensions, of those that vary at all: what
    redundant dimensions have in common. NaN if fewer than two vary.
    """
    covariance = _covariance(x)
    varying = covariance.diagonal() != 0
    covariance = covariance[varying][:, varying]
    dim = len(covariance)
    if dim < 2:
        return math.nan
    std = covariance.diagonal().sqrt()
    correlation = covariance / std / std[:, None]
    return float((correlation.abs().sum() - dim) / (dim * (dim - 1)))


def mean_similarity(x: Tensor) -> float:
    """Mean cosine between two different rows; NaN for a single one."""
    z = _unit(x)
    n, own = len(z), z.square().sum(dtype=torch.float64)
    return float(z.sum(dim=0, dtype=torch.float64).square().sum() - own) / (n * (n - 1)) if n > 1 else math.nan


def contrastive_accuracy(z1: Tensor, z2: Tensor) -> float:
    """Share of the 2N rows whose other view is the nearest of the 2N - 1 other rows; a tie is a miss. It depends on N:
    compare it at one N.
    """
    z = torch.cat(_views(z1, z2))  # (2N, D)
    n, own = len(z), torch.arange(len(z), device=z.device)
    other, right = own.roll(n // 2), 0
    for rows in own.split(max(1, TILE**2 // n)):
        similarity = z[rows] @ z.T  # (rows, 2N)
        similarity[rows - rows[0], rows] = -math.inf
        positive = similarity.gather(1, other[rows, None])
        right += int(((similarity >= positive).sum(dim=1) == 1).sum())
    return right / n if bool(z.isfinite().all()) else math.nan


class Histograms(NamedTuple):
    """How often cosine similarities fall between two `edges` (bins + 1,) from -1 to 1: counts int64 (bins,)."""

    edges: Tensor
    positives: Tensor
    negatives: Tensor


def similarity_histograms(z1: Tensor, z2: Tensor, bins: int = 50) -> Histograms:
    """Similarities of the N positives (the two views of an image) and the N (N - 1) negatives (first view of one image,
    second of another). Images with a feature that is not finite are left out.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    a, b = _views(z1, z2)
    finite = (a.isfinite() & b.isfinite()).all(dim=1)
    a, b = a[finite], b[finite]

    def count(similarity: Tensor) -> Tensor:
        return torch.histc(similarity.clamp(-1, 1), bins, -1, 1).long()  # a tile has few enough for float32

    edges = torch.linspace(-1, 1, bins + 1)
    positives = torch.zeros(bins, dtype=torch.long, device=a.device)
    negatives = torch.zeros_like(positives)
    for x, y in zip(a.split(TILE), b.split(TILE), strict=True):
        positives += count((x * y).sum(dim=1))
    for i, x in enumerate(a.split(TILE)):
        for j, y in enumerate(b.split(TILE)):
            similarity = x @ y.T
            if i == j:
                similarity = similarity[~torch.eye(len(x), dtype=torch.bool, device=x.device)]
            negatives += count(similarity)
    return Histograms(edges, positives.cpu(), negatives.cpu())


def _pairs(z: Tensor) -> Iterator[Tensor]:
    """The similarities of all pairs i < j of rows, a tile at a time."""
    parts = z.split(TILE)
    for i, x in enumerate(parts):
        for y in parts[i + 1 :]:
            yield x @ y.T
        if len(x) > 1:
            yield (x @ x.T)[torch.ones(len(x), len(x), dtype=torch.bool, device=x.device).triu(1)]


def _check(x: Tensor) -> Tensor:
    """Features in float32 at least, without history."""
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(f"features must be (N, D) with at least one row, not {tuple(x.shape)}")
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def _unit(x: Tensor) -> Tensor:
    return F.normalize(_check(x), dim=1)


def _views(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape:
        raise ValueError(f"two views have features of one shape, not {tuple(x.shape)} and {tuple(y.shape)}")
    return _unit(x), _unit(y)


def _blocks(x: Tensor) -> Iterator[Tensor]:
    return (block.double() for block in x.split(max(1, BLOCK // x.shape[1])))


def _singular_values(x: Tensor) -> Tensor:
    """float64 (min(N, D),), from the eigenvalues of the smaller of X^T X and X X^T.

    Squares lose values below 1e-8 of the largest. An SVD of float32 features in float32 loses those below 1e-7, and
    takes the memory of N x D several times.
    """
    x = _check(x)
    x = x if len(x) >= x.shape[1] else x.T
    gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for block in _blocks(x):
        gram.addmm_(block.T, block)
    if not bool(gram.isfinite().all()):  # the solver would raise
        return gram.new_full(gram.shape[:1], math.nan)
    values = torch.linalg.eigvalsh(gram)
    return values.where(values > values[-1] * len(values) * torch.finfo(torch.float64).eps, 0.0).sqrt()  # else rounding


def _covariance(x: Tensor) -> Tensor:
    """float64 (D, D), divided by N. Deviations are taken from the first row, so that what is constant has variance zero
    to the bit.
    """
    x = _check(x)
    first, (n, dim) = x[:1].double(), x.shape
    gram, total = first.new_zeros(dim, dim), first.new_zeros(dim)
    for block in _blocks(x):
        deviation = block - first
        gram.addmm_(deviation.T, deviation)
        total += deviation.sum(dim=0)
    mean = total / n
    covariance = gram / n - mean * mean[:, None]
    covariance.diagonal().clamp_min_(0)
    return covariance
