"""Muon: momentum whose update of each weight matrix is orthogonalised."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from twoview.errors import UserError
from twoview.optim.lars import momentum_buffer
from twoview.parallel.devices import shared


class Muon(Optimizer):
    """Momentum whose update of each weight matrix is orthogonalised (Jordan et al., 2024,
    kellerjordan.github.io/posts/muon).

    v <- momentum v + g;  u <- `orthogonalize`(g + momentum v);  w <- (1 - lr wd) w - lr sqrt(max(1, rows / columns))
    u. A convolution counts as a matrix with a row for each output channel. All singular values of an update are about
    1, so every direction of a layer learns at the same pace, which makes short runs much better. Vectors (biases and
    norms) and all of groups with `vectors=True` (tokens, positions) take plain Nesterov steps of `vector_lr` times lr,
    without decay. `half`: the dtype of `orthogonalize`'s products; None is that of the gradients.

    In a distributed run all processes must hold the same gradients, as DDP leaves them: each orthogonalises its share
    of the matrices, and all get the same bits.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        vector_lr: float = 5.0,
        half: torch.dtype | None = None,
        vectors: bool = False,
    ) -> None:
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0 or not 0 <= vector_lr < math.inf:
            raise UserError(
                f"Muon needs lr >= 0, 0 <= momentum < 1, weight_decay >= 0 and vector_lr >= 0, "
                f"not {lr}, {momentum}, {weight_decay} and {vector_lr}"
            )
        self.half = half
        given = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "vector_lr": vector_lr}
        super().__init__(params, given | {"vectors": vectors})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; `closure` as in torch.optim."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if not weights:
                continue
            lr, momentum = group["lr"], group["momentum"]
            gradients: list[Tensor] = [w.grad for w in weights]
            buffers = [momentum_buffer(self.state[w], w) for w in weights]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, gradients)
            updates = torch._foreach_add(gradients, buffers, alpha=momentum)
            pairs = list(zip(weights, updates, strict=True))
            vectors = [(w, u) for w, u in pairs if group["vectors"] or w.ndim <= 1]
            if vectors:
                own, change = zip(*vectors, strict=True)
                torch._foreach_add_(own, change, alpha=-lr * group["vector_lr"])
            matrices = [] if group["vectors"] else [(w, u.flatten(1)) for w, u in pairs if w.ndim > 1]
            for (w, _), u in zip(matrices, _directions([u for _, u in matrices], self.half), strict=True):
                w.mul_(1 - lr * group["weight_decay"])
                w.add_(u.view_as(w), alpha=-lr * max(1, u.shape[0] / u.shape[1]) ** 0.5)
        return loss


def _directions(matrices: list[Tensor], half: torch.dtype | None) -> list[Tensor]:
    """`orthogonalize` of matrices (rows, columns), which are the same on all processes. Each computes a share."""
    costs = [u.numel() * min(u.shape) for u in matrices]
    return shared(matrices, costs, lambda some: _orthogonal(some, half))


def _orthogonal(matrices: list[Tensor], half: torch.dtype | None) -> list[Tensor]:
    if not matrices or matrices[0].device.type == "cpu":  # where a product of batches is slower than its parts
        return [orthogonalize(matrix, half) for matrix in matrices]
    found: dict[int, Tensor] = {}
    for shape in {u.shape: None for u in matrices}:  # a few large kernels for a GPU
        of = [number for number, u in enumerate(matrices) if u.shape == shape]
        found.update(zip(of, orthogonalize(torch.stack([matrices[n] for n in of]), half), strict=True))
    return [found[number] for number in range(len(matrices))]


def orthogonalize(g: Tensor, half: torch.dtype | None = None, steps: int = 5) -> Tensor:
    """About U Vᵀ of the singular value decomposition g = U S Vᵀ of a matrix, or of n of them, (rows, columns) or (n,
    rows, columns): singular values land in [0.7, 1.2] or so.

    Newton-Schulz iteration with the quintic 3.4445 x - 4.7750 x^3 + 2.0315 x^5 of the source, tuned for speed rather
    than for convergence. `half`: the dtype of its products, if not that of `g`; half precision is accurate enough for a
    direction.
    """
    add_product = torch.addmm if g.ndim == 2 else torch.baddbmm
    x = (g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(half or g.dtype)
    if g.shape[-2] > g.shape[-1]:
        x = x.mT
    for _ in range(steps):
        a = x @ x.mT
        x = add_product(x, add_product(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if g.shape[-2] > g.shape[-1] else x).to(g.dtype)
