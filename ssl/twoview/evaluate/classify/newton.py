"""Multinomial logistic regression on features, solved to a certified optimum.

By Newton's method with conjugate gradients (Nocedal & Wright, "Numerical optimization", 2006, section
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twoview.evaluate.classify.labelled import check_strengths, checked_train
from twoview.evaluate.classify.score import Head

log = logging.getLogger(__name__)

# Features per block. On a CPU 2 MiB stay in the cache, which halves the time; a GPU wants few large blocks.
BLOCK = {"cpu": 2**19, "cuda": 2**26}


@dataclass(frozen=True)
class LinearProbe(Head):
    """A fitted head.

    It minimises mean cross-entropy + l2/2 ||weight||^2 over features standardised by `mean` and `std`; the
    bias is not penalised. With the bias minimised out, the objective is l2-strongly convex in the weight, and
    the fit solves the bias to a gradient of rounding size. Hence the two certificates, with the Euclidean
    norm of the whole gradient: `distance_bound` on the Euclidean distance of `weight` to the optimal one, and
    `gap_bound` on the objective's excess over the minimum, in nats. The bias is the best one for this weight,
    fixed up to a common constant (it sums to zero); nothing penalises it, so its own distance to the optimum
    has no such bound.

    In scikit-learn's `LogisticRegression`, `C` is 1 / (N l2) for N samples of three classes or more. Of two classes it
    fits a single weight, the difference of the two here, so there C is 2 / (N l2).
    """

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
    """One LinearProbe per L2 strength, from the strongest to the weakest, each begun where the two before it lead.

    Features (N, D) float, labels int64 (N,); runs on the device of the features. A fit ends when its gradient
    norm is at most sqrt(2 l2 tol), which certifies that the objective is within `tol` nats of the minimum
    (see LinearProbe), or after `max_iter` Newton steps with a warning. `start` saves time and does not change
    the answer.
    """
    labels = checked_train(features, labels, classes)
    check_strengths(strengths)
    problem = _Problem(features, labels, classes)
    before = None
    for l2 in sorted(map(float, strengths), reverse=True):
        guess = start
        if before is not None and start is not None and before.l2 != start.l2:
            guess = _ahead(before, start, l2)
        before, start = start, problem.solve(l2, guess, tol, max_iter)
        yield start


def _ahead(before: LinearProbe, last: LinearProbe, l2: float) -> LinearProbe:
    """Where the straight line through two optima of a path is at `l2`, over the logarithm of the strength."""
    way = math.log(l2 / last.l2) / math.log(last.l2 / before.l2)
    weight = last.weight + way * (last.weight - before.weight)
    return replace(last, weight=weight, bias=last.bias + way * (last.bias - before.bias))


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
