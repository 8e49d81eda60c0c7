"""Optimizers and learning rates: LARS, Muon, parameter groups, warm-up and cosine."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from twoview.errors import UserError


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman & Ginsburg, arXiv 1708.03888), in the form of SimCLR's TensorFlow
    code.

    g <- g + wd w;  v <- momentum v + lr trust g;  w <- w - v,  with trust = `eta` |w| / |g|, or 1 where either norm
    is 0. The learning rate is inside the momentum buffer. Groups with `adapt=False` (biases and norms) keep trust 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        adapt: bool = True,
    ) -> None:
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0 or not 0 < eta < math.inf:
            raise UserError(
                f"LARS needs lr >= 0, 0 <= momentum < 1, weight_decay >= 0 and finite eta > 0, "
                f"not {lr}, {momentum}, {weight_decay} and {eta}"
            )
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": adapt}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; `closure` as in torch.optim. No norm is read back by the host."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if not weights:
                continue
            gradients = torch._foreach_add([w.grad for w in weights], weights, alpha=group["weight_decay"])
            if group["adapt"]:
                w_norms, g_norms = (torch.stack(torch._foreach_norm(x)) for x in (weights, gradients))  # (n,) each
                trust = torch.where((w_norms > 0) & (g_norms > 0), group["eta"] * w_norms / g_norms, 1.0)
                torch._foreach_mul_(gradients, trust.unbind())
            buffers = [_momentum_buffer(self.state[w], w) for w in weights]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients, alpha=group["lr"])
            torch._foreach_sub_(weights, buffers)
        return loss


class Muon(Optimizer):
    """Momentum whose update of each weight matrix is orthogonalised (Jordan et al., 2024,
    kellerjordan.github.io/posts/muon).

    v <- momentum v + g;  u <- `orthogonalize`(g + momentum v);  w <- (1 - lr wd) w - lr sqrt(max(1, rows / columns))
    u. A convolution counts as a matrix with a row for each output channel. All singular values of an update are about
    1, so every direction of a layer learns at the same pace, which makes short runs much better. Vectors (biases and
    norms) take plain Nesterov steps of `vector_lr` times lr.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        vector_lr: float = 5.0,
    ) -> None:
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0 or not 0 <= vector_lr < math.inf:
            raise UserError(
                f"Muon needs lr >= 0, 0 <= momentum < 1, weight_decay >= 0 and vector_lr >= 0, "
                f"not {lr}, {momentum}, {weight_decay} and {vector_lr}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "vector_lr": vector_lr})

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
            buffers = [_momentum_buffer(self.state[w], w) for w in weights]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, gradients)
            updates = torch._foreach_add(gradients, buffers, alpha=momentum)
            vectors = [(w, u) for w, u in zip(weights, updates, strict=True) if w.ndim <= 1]
            if vectors:
                own, change = zip(*vectors, strict=True)
                torch._foreach_add_(own, change, alpha=-lr * group["vector_lr"])
            for (rows, columns), pairs in _matrices(weights, updates).items():
                directions = _directions([u.reshape(rows, columns) for _, u in pairs])
                for (w, _), u in zip(pairs, directions, strict=True):
                    w.mul_(1 - lr * group["weight_decay"])
                    w.add_(u.view_as(w), alpha=-lr * max(1, rows / columns) ** 0.5)
        return loss


def _matrices(
    weights: Sequence[Tensor], updates: Sequence[Tensor]
) -> dict[tuple[int, int], list[tuple[Tensor, Tensor]]]:
    """Weights of more than one dimension, with their updates, by their rows and columns."""
    found: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    for w, u in zip(weights, updates, strict=True):
        if w.ndim > 1:
            found.setdefault((w.shape[0], w[0].numel()), []).append((w, u))
    return found


def _directions(matrices: list[Tensor]) -> Sequence[Tensor]:
    """`orthogonalize` of matrices of one shape."""
    if matrices[0].device.type == "cpu":  # where a product of batches is slower than its parts
        return [orthogonalize(matrix) for matrix in matrices]
    return orthogonalize(torch.stack(matrices)).unbind()  # a few large kernels for a GPU


def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """About U Vᵀ of the singular value decomposition g = U S Vᵀ of a matrix, or of n of them, (rows, columns) or (n,
    rows, columns): singular values land in [0.7, 1.2] or so.

    Newton-Schulz iteration with the quintic 3.4445 x - 4.7750 x^3 + 2.0315 x^5 of the source, tuned for speed rather
    than for convergence; in bfloat16, which is accurate enough for a direction.
    """
    add_product = torch.addmm if g.ndim == 2 else torch.baddbmm
    x = g.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if g.shape[-2] > g.shape[-1]:
        x = x.mT
    for _ in range(steps):
        a = x @ x.mT
        x = add_product(x, add_product(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if g.shape[-2] > g.shape[-1] else x).to(g.dtype)


def _momentum_buffer(state: dict[str, Tensor], w: Tensor) -> Tensor:
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(w)
    return state["momentum_buffer"]


class Recipe:
    """How a model is optimized: an optimizer, the rule for its learning rate, and which parameters decay.

    The learning rate is written per 256 samples of the global batch of B: `lr_scaling` `linear` multiplies it by B /
    256, `sqrt` by sqrt(B / 256) (SimCLR, appendix B.1: better for small batches and short runs), `none` leaves it.
    Each step's rate rises linearly over `warmup_epochs` and then follows half a cosine to 0.
    `decay_bias_and_norm=False` exempts biases and normalisation layers from weight decay and from LARS's scaling.
    """

    def __init__(
        self,
        optimizer: Callable[..., Optimizer],
        lr_per_256: float,
        lr_scaling: Literal["linear", "sqrt", "none"] = "linear",
        weight_decay: float = 0.0,
        decay_bias_and_norm: bool = True,
        warmup_epochs: float = 0,
    ) -> None:
        if not 0 < lr_per_256 < math.inf:
            raise UserError(f"optimizer.lr_per_256 must be positive, not {lr_per_256}")
        if lr_scaling not in ("linear", "sqrt", "none"):
            raise UserError(f"optimizer.lr_scaling must be linear, sqrt or none, not {lr_scaling}")
        if not (0 <= weight_decay < math.inf and 0 <= warmup_epochs < math.inf):
            raise UserError(
                f"optimizer.weight_decay and warmup_epochs must be finite and not negative, "
                f"got {weight_decay} and {warmup_epochs}"
            )
        self.optimizer = optimizer
        self.lr_per_256 = lr_per_256
        self.lr_scaling = lr_scaling
        self.weight_decay = weight_decay
        self.decay_bias_and_norm = decay_bias_and_norm
        self.warmup_epochs = warmup_epochs

    def lr(self, batch_size: int) -> float:
        """The peak learning rate for a global batch of `batch_size` samples."""
        factor = batch_size / 256
        return self.lr_per_256 * {"linear": factor, "sqrt": math.sqrt(factor), "none": 1.0}[self.lr_scaling]

    def build(
        self, module: nn.Module, batch_size: int, steps: int, epochs: int, fused: bool = True
    ) -> tuple[Optimizer, LambdaLR]:
        """The optimizer of `module`'s trainable parameters and its schedule over `steps` optimizer steps in `epochs`
        epochs. `fused`: the update of all weights in one kernel, where torch has that for the optimizer.
        """
        if self.warmup_epochs > epochs:
            raise UserError(f"optimizer.warmup_epochs={self.warmup_epochs} is longer than the run's epochs={epochs}")
        weights, biases_and_norms = split_parameters(module)
        groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": self.weight_decay}]
        if self.decay_bias_and_norm:
            weights += biases_and_norms
        elif biases_and_norms:
            exempt: dict[str, Any] = {"params": biases_and_norms, "weight_decay": 0.0}
            groups.append(exempt | ({"adapt": False} if _function(self.optimizer) is LARS else {}))
        try:
            optimizer = self.optimizer(
                groups, lr=self.lr(batch_size), **({"fused": True} if fused and _can_fuse(self.optimizer) else {})
            )
        except (ValueError, TypeError, IndexError) as error:  # torch's
            values = ", ".join(f"{key}={value}" for key, value in getattr(self.optimizer, "keywords", {}).items())
            raise UserError(f"optimizer.optimizer takes other values than {values}: {error}") from error
        return optimizer, LambdaLR(optimizer, warmup_cosine(round(steps * self.warmup_epochs / max(epochs, 1)), steps))


def _function(f: Any) -> Any:
    return getattr(f, "func", f)  # what a functools.partial calls


def _can_fuse(optimizer: Callable[..., Optimizer]) -> bool:
    said = {"fused", "foreach"} & set(getattr(optimizer, "keywords", {}))  # by the user
    return not said and "fused" in inspect.signature(_function(optimizer)).parameters


def split_parameters(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Trainable parameters as (weights, biases and norms): the latter are those with a single dimension."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    return [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]


def warmup_cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: (step + 1) / `warmup`, then half a cosine from 1 towards 0 at step
    `steps`.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return factor
