"""The linear probe: multinomial logistic regression on frozen features, solved to a certified optimum.

The problem is convex, so its answer is a property of the features: there is no learning rate, schedule or
number of epochs to choose. The one free number, the L2 strength, is chosen on a held-out part of the training
set.

Solved by Newton's method with conjugate gradients (Nocedal & Wright, "Numerical optimization", 2006, section
7.1): the gradient is computed in float64 and decides when to stop, the products with the Hessian in float32,
where their error costs at most another step. What makes the inner iterations few is the preconditioner. The
Hessian mean_i[(diag(p_i) - p_i p_i^T) (x) x_i x_i^T] + l2 is approximated by the Kronecker product of its two
means, A (x) G (as in K-FAC: Martens & Grosse, ICML 2015), which its eigenvectors invert exactly. G, the
correlation matrix of the features, has a condition number of 10^5 and more on real features; plain L-BFGS
pays for that with hundreds of iterations.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from twoview.data.images import stratified_split
from twoview.errors import UserError

log = logging.getLogger(__name__)

SELECTION_TOL = 1e-6  # nats to the optimum of the fits that only choose a strength
PATIENCE = 3  # strengths in a row that are no better than the best end the search

# Features per block. On a CPU 2 MiB stay in the cache, which halves the time; a GPU wants few large blocks.
BLOCK = {"cpu": 2**19, "cuda": 2**26}


@dataclass(frozen=True)
class LinearProbe:
    """A fitted head. All tensors float64.

    It minimises mean cross-entropy + l2/2 ||weight||^2 over features standardised by `mean` and `std`; the
    bias is not penalised. With the bias minimised out, the objective is l2-strongly convex in the weight, and
    the fit solves the bias to a gradient of rounding size. Hence the two certificates, with the Euclidean
    norm of the whole gradient: `distance_bound` on the Euclidean distance of `weight` to the optimal one, and
    `gap_bound` on the objective's excess over the minimum, in nats. The bias is the best one for this weight,
    fixed up to a common constant (it sums to zero); nothing penalises it, so its own distance to the optimum
    has no such bound.
    """

    weight: Tensor  # (classes, D)
    bias: Tensor  # (classes,)
    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    l2: float
    gradient_norm: float
    iterations: int  # Newton steps
    objective: float  # nats per sample

    @property
    def distance_bound(self) -> float:
        return self.gradient_norm / self.l2

    @property
    def gap_bound(self) -> float:
        return self.gradient_norm**2 / (2 * self.l2)

    def logits(self, features: Tensor) -> Tensor:
        """Features (N, D) as the encoder gives them to logits float64 (N, classes)."""
        scale = self.weight / self.std  # (classes, D)
        return (features.double() - self.mean) @ scale.T + self.bias


class _Problem:
    """One training set, made ready for any number of strengths: standardised, rotated statistics, blocks."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        n, dim = features.shape
        self.rows = max(1, BLOCK[features.device.type] // dim)
        self.n, self.classes, self.labels = n, classes, labels
        self.mean = features.mean(0, dtype=torch.float64)  # (D,)
        square = sum((x.double() - self.mean).square().sum(0) for x in features.split(self.rows))
        constant = features.amax(0) == features.amin(0)
        self.std = torch.where(constant, 1.0, (square / n).sqrt())  # (D,)
        self.x = torch.empty(n, dim, device=features.device)  # float32 (N, D)
        gram = torch.zeros(dim, dim, device=features.device)
        self.class_sum = torch.zeros(classes, dim, dtype=torch.float64, device=features.device)
        for x, raw, y in zip(*(t.split(self.rows) for t in (self.x, features, labels)), strict=True):
            x.copy_((raw.double() - self.mean) / self.std)
            gram.addmm_(x.T, x)
            self.class_sum.index_add_(0, y, x.double())
        self.share = torch.bincount(labels, minlength=classes).double() / n  # (classes,)
        spectrum, self.axes = torch.linalg.eigh(gram.double() / n)
        self.spectrum = spectrum.clamp_min(0).float()  # (D,)
        self.axes = self.axes.float()  # (D, D), columns

    def objective(self, theta: Tensor, l2: float) -> tuple[float, Tensor, Tensor, Tensor]:
        """Value, gradient (classes, D + 1), probabilities p float32 (classes, N), A = mean diag(p) - p p^T.

        `theta` is (classes, D + 1) float64, the bias in the last column.
        """
        weight, bias = theta[:, :-1], theta[:, -1:]
        gradient, second = torch.zeros_like(theta), theta.new_zeros(self.classes, self.classes)
        p = torch.empty(self.classes, self.n, device=theta.device)
        loss = theta.new_zeros(())
        blocks = (self.x.split(self.rows), self.labels.split(self.rows), p.split(self.rows, 1))
        for x32, y, p32 in zip(*blocks, strict=True):
            x = x32.double()
            z = torch.addmm(bias, weight, x.T)  # (classes, rows)
            normaliser = z.logsumexp(0)
            loss += (normaliser - z.gather(0, y[None])[0]).sum()
            q = (z - normaliser).exp_()
            gradient[:, :-1].addmm_(q, x)
            gradient[:, -1] += q.sum(1)
            second.addmm_(q, q.T)
            p32.copy_(q)
        curvature = torch.diag(gradient[:, -1] / self.n) - second / self.n
        gradient[:, :-1] = (gradient[:, :-1] - self.class_sum) / self.n + l2 * weight
        gradient[:, -1] = gradient[:, -1] / self.n - self.share
        return float(loss / self.n + l2 / 2 * weight.square().sum()), gradient, p, curvature

    def hessian(self, p: Tensor, step: Tensor, l2: float) -> Tensor:
        """Hessian times `step` (classes, D + 1), in float32."""
        weight, bias = step[:, :-1], step[:, -1:]
        product = torch.zeros_like(step)
        for x, q in zip(self.x.split(self.rows), p.split(self.rows, 1), strict=True):
            r = torch.addmm(bias, weight, x.T)  # (classes, rows)
            s = q * (r - (q * r).sum(0))
            product[:, :-1].addmm_(s, x)
            product[:, -1] += s.sum(1)
        product /= self.n
        product[:, :-1] += l2 * weight
        return product

    def newton_step(self, gradient: Tensor, p: Tensor, curvature: Tensor, l2: float, accuracy: float) -> Tensor:
        """-H^-1 gradient by preconditioned conjugate gradients, to `accuracy` of the gradient's norm."""
        size = gradient.norm()  # scaled out, so that float32 sees numbers near one
        values, vectors = torch.linalg.eigh(curvature)
        values, vectors = values.clamp_min(1e-12).float(), vectors.float()
        scale = torch.cat([values[:, None] * self.spectrum + l2, values[:, None]], dim=1)  # (classes, D + 1)

        def precondition(r: Tensor) -> Tensor:
            u = vectors.T @ r
            u = torch.cat([u[:, :-1] @ self.axes, u[:, -1:]], dim=1) / scale
            return vectors @ torch.cat([u[:, :-1] @ self.axes.T, u[:, -1:]], dim=1)

        residual = (-gradient / size).float()
        step = torch.zeros_like(residual)
        direction = z = precondition(residual)
        rz = (residual * z).sum()
        for _ in range(200):
            h = self.hessian(p, direction, l2)
            alpha = rz / (direction * h).sum()
            step += alpha * direction
            residual -= alpha * h
            if residual.norm() <= accuracy:
                break
            z = precondition(residual)
            rz, old = (residual * z).sum(), rz
            direction = z + rz / old * direction
        return step.double() * size

    def solve(self, l2: float, start: LinearProbe | None, tol: float, max_iter: int) -> LinearProbe:
        theta = torch.zeros(self.classes, self.x.shape[1] + 1, dtype=torch.float64, device=self.x.device)
        if start is not None:
            theta.copy_(torch.cat([start.weight, start.bias[:, None]], dim=1))
        target = math.sqrt(2 * l2 * tol)
        iterations = 0
        value, gradient, p, curvature = self.objective(theta, l2)
        while iterations < max_iter:
            # A and the gradient are zero along a common shift of all classes: lifted there, A has an inverse.
            curvature += curvature.trace().clamp_min(1e-12) / self.classes**2
            size = float(gradient.norm())
            if size > target:
                accuracy = max(min(0.3, size**0.5), 0.3 * target / size)
                step = self.newton_step(gradient, p, curvature, l2, accuracy)
            elif float(gradient[:, -1].norm()) > 1e-12:
                step = torch.zeros_like(theta)  # the certificate wants the bias solved: now it moves alone
                step[:, -1] = -torch.linalg.solve(curvature, gradient[:, -1])
            else:
                break
            slope, length = float((gradient * step).sum()), 1.0
            while True:
                result = self.objective(theta + length * step, l2)
                if result[0] <= value + 1e-4 * length * slope + 1e-14 * abs(value) or length < 1e-6:
                    break
                length /= 2
            if length < 1e-6:
                break  # rounding: no step improves on this one any more
            theta = theta + length * step
            value, gradient, p, curvature = result
            iterations += 1
        size = float(gradient.norm())
        if size > target:
            log.warning(
                "linear probe with l2=%.3g stopped after %d Newton steps at gradient norm %.1e (wanted %.1e)",
                l2, iterations, size, target,
            )  # fmt: skip
        bias = theta[:, -1] - theta[:, -1].mean()
        return LinearProbe(theta[:, :-1], bias, self.mean, self.std, l2, size, iterations, value)


def _check(features: Tensor, labels: Tensor | None, classes: int, part: str) -> Tensor:
    """The labels, or a UserError that says what is wrong with this part."""
    if labels is None:
        raise UserError(f"A probe needs labels, and the {part} set has none: choose a data set with labels.")
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise UserError(
            f"The {part} set has features of shape {tuple(features.shape)} for {len(labels)} labels: "
            "a probe needs one row of features per label."
        )
    if len(labels) == 0:
        raise UserError(f"The {part} set is empty: a probe needs images in it.")
    if not bool(features.isfinite().all()):
        raise UserError(f"The features of the {part} set hold NaN or infinite values: use an earlier checkpoint.")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UserError(
            f"The labels of the {part} set run from {int(labels.min())} to {int(labels.max())}: "
            f"with {classes} classes they must lie in 0 ... {classes - 1}."
        )
    return labels.long().to(features.device)


def _check_train(features: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    if classes < 2:
        raise UserError(f"A probe tells classes apart and this set has {classes}: choose one with two or more.")
    labels = _check(features, labels, classes, "training")
    if len(labels) < classes:
        raise UserError(f"{len(labels)} training images are fewer than the {classes} classes: use more of them.")
    missing = (torch.bincount(labels, minlength=classes) == 0).nonzero().flatten().tolist()
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise UserError(f"No training image is of class {shown}: use a part of the set that holds every class.")
    return labels


def fit_path(
    features: Tensor,
    labels: Tensor,
    classes: int,
    strengths: Sequence[float],
    *,
    start: LinearProbe | None = None,
    tol: float = 1e-10,
    max_iter: int = 100,
) -> Iterator[LinearProbe]:
    """One LinearProbe per L2 strength, from the strongest to the weakest, each starting from the one before.

    Features (N, D) float, labels int64 (N,); runs on the device of the features. A fit ends when its gradient
    norm is at most sqrt(2 l2 tol), which certifies that the objective is within `tol` nats of the minimum
    (see LinearProbe), or after `max_iter` Newton steps with a warning. `start` saves time and does not change
    the answer.
    """
    labels = _check_train(features, labels, classes)
    if not strengths or not all(0 < l2 < math.inf for l2 in strengths):
        raise UserError(f"L2 strengths must be one or more positive numbers, got {list(strengths)}.")
    problem = _Problem(features, labels, classes)
    for l2 in sorted(map(float, strengths), reverse=True):
        start = problem.solve(l2, start, tol, max_iter)
        yield start


def fit_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    l2: float,
    *,
    start: LinearProbe | None = None,
    tol: float = 1e-10,
    max_iter: int = 100,
) -> LinearProbe:
    """The one probe of strength `l2`; see `fit_path`."""
    return next(fit_path(features, labels, classes, [l2], start=start, tol=tol, max_iter=max_iter))


def wilson(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, "Probable inference", JASA 1927)."""
    z = 1.959963984540054
    share, spread = correct / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found. Shares in [0, 1]; class c is entry c of the lists."""

    protocol: str
    top1: float
    top5: float | None  # None for five classes or fewer
    interval: tuple[float, float]  # 95 %, Wilson, of top1
    per_class: list[float | None]  # None: no test image is of the class
    confusion: list[list[int]]  # [true class][predicted class], test images
    chance: float  # 1 / classes
    majority: float  # top-1 of always answering the test set's largest class
    l2: float
    path: list[dict[str, float]]  # the choice of l2: held-out accuracy and certificate of each strength
    objective: float
    gradient_norm: float
    gap_bound: float
    distance_bound: float
    train_size: int
    holdout_size: int  # part of train_size
    test_size: int
    seed: int
    seconds: float
    head: LinearProbe

    def to_json(self) -> dict[str, Any]:
        """Plain containers, without the weights."""
        result = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "head"}
        return result | {"interval": list(self.interval)}


def probe(
    train_features: Tensor,
    train_labels: Tensor | None,
    test_features: Tensor,
    test_labels: Tensor | None,
    classes: int,
    strengths: Sequence[float],
    holdout: float,
    seed: int,
) -> ProbeResult:
    """The convex protocol.

    Fits the path of strengths on the training set without a stratified share `holdout`, takes the strength that is
    best on that share (on a tie the stronger; after `PATIENCE` weaker ones without gain the rest is not tried),
    refits on the whole training set, and looks at the test set once. Raises UserError for features and labels that
    cannot be probed.
    """
    began = time.perf_counter()
    labels = _check_train(train_features, train_labels, classes)
    answers = _check(test_features, test_labels, classes, "test")
    if train_features.shape[1] != test_features.shape[1]:
        raise UserError(
            f"Training features have {train_features.shape[1]} dimensions, test features "
            f"{test_features.shape[1]}: extract both with the same encoder."
        )
    if not 0 < holdout < 1:
        raise UserError(f"The held-out share of the training set must lie between 0 and 1, got {holdout}.")
    kept, held = (index.to(labels.device) for index in stratified_split(labels, holdout, seed))
    if len(held) == 0:
        raise UserError("Every class has a single training image, so none can be held out: use more images.")

    best, best_accuracy, worse, path = None, -1.0, 0, []
    for head in fit_path(train_features[kept], labels[kept], classes, strengths, tol=SELECTION_TOL):
        right = head.logits(train_features[held]).argmax(1) == labels[held]
        accuracy = float(right.double().mean())
        log.debug("l2=%.3g: %.2f %% held out (%d Newton steps)", head.l2, 100 * accuracy, head.iterations)
        path.append(
            {
                "l2": head.l2,
                "accuracy": accuracy,
                "objective": head.objective,
                "gradient_norm": head.gradient_norm,
                "gap_bound": head.gap_bound,
                "iterations": head.iterations,
            }
        )
        if accuracy > best_accuracy:
            best, best_accuracy, worse = head, accuracy, 0
        elif (worse := worse + 1) == PATIENCE:
            break  # accuracy over strength has one hill, and the weakest strengths take the longest
    assert best is not None  # fit_path refuses an empty list of strengths
    head = fit_linear(train_features, labels, classes, best.l2, start=best)

    logits = head.logits(test_features.to(train_features.device))  # (M, classes)
    answers = answers.to(logits.device)
    confusion = torch.bincount(answers * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)
    hits, counts = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    top5 = None
    if classes > 5:
        top5 = float((logits.topk(5, dim=1).indices == answers[:, None]).any(1).double().mean())
    return ProbeResult(
        protocol="convex",
        top1=sum(hits) / len(answers),
        top5=top5,
        interval=wilson(sum(hits), len(answers)),
        per_class=[r / n if n else None for r, n in zip(hits, counts, strict=True)],
        confusion=confusion.tolist(),
        chance=1 / classes,
        majority=max(counts) / len(answers),
        l2=head.l2,
        path=path,
        objective=head.objective,
        gradient_norm=head.gradient_norm,
        gap_bound=head.gap_bound,
        distance_bound=head.distance_bound,
        train_size=len(labels),
        holdout_size=len(held),
        test_size=len(answers),
        seed=seed,
        seconds=time.perf_counter() - began,
        head=head,
    )
