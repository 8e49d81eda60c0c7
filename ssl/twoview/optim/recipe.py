"""Optimizers and learning rates: LARS, Muon, parameter groups, warm-up and cosine."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence, Set
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from twoview.errors import UserError
from twoview.optim.lars import LARS
from twoview.optim.muon import Muon
from twoview.optim.role import Role


class Recipe:
    """How a model is optimized: an optimizer, the rule for its learning rate, and which parameters decay.

    The learning rate is written per 256 samples of the global batch of B: `lr_scaling` `linear` multiplies it by B /
    256, `sqrt` by sqrt(B / 256) (SimCLR, appendix B.1: better for small batches and short runs), `none` leaves it.
    Each step's rate rises linearly over `warmup_epochs` and then follows half a cosine to 0.
    `decay_bias_and_norm=False` exempts biases, normalisation layers and `undirected` weights from weight decay and from
    LARS's scaling.
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
        self,
        module: nn.Module,
        batch_size: int,
        steps: int,
        epochs: int,
        fused: bool = True,
        roles: Sequence[Role] = (),
        half: torch.dtype | None = None,
    ) -> tuple[Optimizer, "Schedule"]:
        """The optimizer of `module`'s trainable parameters and its schedule over `steps` optimizer steps in `epochs`
        epochs. `fused`: the update of all weights in one kernel, where torch has that for the optimizer. `roles`: those
        of them that are optimized otherwise; the rest comes first among the optimizer's groups. `half`: the dtype of
        products in a run of mixed precision, for optimizers that multiply matrices.

        Both go on from a stored state with the rates, decay and other options of the recipe, not with those of the run
        that stored it.
        """
        if self.warmup_epochs > epochs:
            raise UserError(f"optimizer.warmup_epochs={self.warmup_epochs} is longer than the run's epochs={epochs}")
        with_role = {parameter for role in roles for parameter in role.parameters}
        rest = Role([p for p in module.parameters() if p.requires_grad and p not in with_role])
        schedule = warmup_cosine(round(steps * self.warmup_epochs / max(epochs, 1)), steps)
        apart = undirected(module)
        groups: list[dict[str, Any]] = []
        factors: list[Callable[[int], float]] = []
        for role in (rest, *roles):
            for group in self._groups(role, apart):
                groups.append(group)
                factors.append(partial(_factor, schedule=schedule, role=role))
        try:
            more: dict[str, Any] = {"fused": True} if fused and _can_fuse(self.optimizer) else {}
            if half is not None and _takes(self.optimizer, "half"):
                more["half"] = half
            optimizer = self.optimizer(groups, lr=self.lr(batch_size), **more)
        except (ValueError, TypeError, IndexError) as error:  # torch's
            values = ", ".join(f"{key}={value}" for key, value in getattr(self.optimizer, "keywords", {}).items())
            raise UserError(f"optimizer.optimizer takes other values than {values}: {error}") from error
        optimizer.register_load_state_dict_pre_hook(_as_configured)
        return optimizer, Schedule(optimizer, factors)

    def _groups(self, role: Role, apart: Set[Tensor]) -> list[dict[str, Any]]:
        """The role's parameters as groups of the optimizer, by what decays. `apart`: weights that count as vectors."""
        weights, biases_and_norms = split_parameters(role.parameters, apart)
        decay, function = self.weight_decay if role.decay else 0.0, _function(self.optimizer)
        if self.decay_bias_and_norm and not (function is Muon and apart):
            groups: list[dict[str, Any]] = [{"params": weights + biases_and_norms, "weight_decay": decay}]
        else:
            own = {LARS: {"adapt": False}, Muon: {"vectors": True}}.get(function, {})
            groups = [
                {"params": weights, "weight_decay": decay},
                {"params": biases_and_norms, "weight_decay": 0.0, **own},
            ]
        return [group for group in groups if group["params"]]


class Schedule(LambdaLR):
    """Factors of the base rates at each step. Of a stored state it takes the number of steps alone."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        self._last_lr = [base * f(self.last_epoch) for base, f in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


SHAPED = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # states that are as large as their weight


def _as_configured(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Of a stored state what the parameters went through (momentum, moments); groups and their options as they are now.
    UserError where that is not what this optimizer remembers.
    """
    groups = optimizer.state_dict()["param_groups"]
    stored = [number for group in state_dict["param_groups"] for number in group["params"]]
    if stored != [number for group in groups for number in group["params"]]:
        raise UserError(
            f"the checkpoint holds the optimizer's state of {len(stored)} parameters, and "
            f"{sum(len(group['params']) for group in groups)} are trained now: start a new run"
        )
    found = next((set(state) for state in state_dict["state"].values() if state), set())
    missing = _remembered(optimizer) - found
    if found and missing:
        raise UserError(
            f"{type(optimizer).__name__} with these options needs {', '.join(sorted(missing))} of every parameter, and "
            f"the checkpoint holds {', '.join(sorted(found))}: another optimizer can only begin with a new run"
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, state in state_dict["state"].items():
        for name, value in state.items():
            if name in SHAPED and value.shape != parameters[number].shape:
                raise UserError(
                    f"the checkpoint is damaged: its {name} of a weight has the shape {tuple(value.shape)}, and the "
                    f"weight {tuple(parameters[number].shape)}"
                )
    return state_dict | {"param_groups": groups}


def _remembered(optimizer: Optimizer) -> set[str]:
    """The names of what it keeps of each parameter, by a step of a small one."""
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.zeros(2, 2)
    trial = type(optimizer)([optimizer.param_groups[0] | {"params": [weight]}])  # type: ignore[call-arg]
    trial.step()
    return set(trial.state[weight])


def _factor(step: int, schedule: Callable[[int], float], role: Role) -> float:
    return role.lr * (1.0 if role.constant else schedule(step))


def _function(f: Any) -> Any:
    return getattr(f, "func", f)  # what a functools.partial calls


def _takes(optimizer: Callable[..., Optimizer], name: str) -> bool:
    """Whether it has an argument of this name that the user has not given."""
    return name not in getattr(optimizer, "keywords", {}) and name in inspect.signature(_function(optimizer)).parameters


def _can_fuse(optimizer: Callable[..., Optimizer]) -> bool:
    return "foreach" not in getattr(optimizer, "keywords", {}) and _takes(optimizer, "fused")


def undirected(module: nn.Module) -> set[Tensor]:
    """Weights of several dimensions that are no maps from one space to another: rows of embeddings, and what modules
    name in `no_weight_decay()`, as timm's do (tokens, positions).
    """
    found: set[Tensor] = set()
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            found.add(part.weight)
        names = getattr(part, "no_weight_decay", None)
        named = names() if callable(names) else ()
        found |= {parameter for name, parameter in part.named_parameters() if name in named and parameter.ndim > 1}
    return found


def split_parameters(
    parameters: Iterable[Tensor], apart: Set[Tensor] = frozenset()
) -> tuple[list[Tensor], list[Tensor]]:
    """Trainable parameters as (weights, biases and norms): the latter have a single dimension, or are in `apart`."""
    trainable = [p for p in parameters if p.requires_grad]
    return (
        [p for p in trainable if p.ndim > 1 and p not in apart],
        [p for p in trainable if p.ndim <= 1 or p in apart],
    )


def warmup_cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: (step + 1) / `warmup`, then half a cosine from 1 towards 0 at step
    `steps`.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return factor
