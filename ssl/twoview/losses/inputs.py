"""What every loss does with its inputs: arithmetic in float32 at least, and one message for shapes that do not fit."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(loss: Callable[P, R]) -> Callable[P, R]:
    """`loss` with autocast off and its tensors in half precision widened to float32. float64 stays.

    Exponentials of 1 / temperature, sums over D x D entries and factorisations lose everything in half precision.
    """

    @wraps(loss)
    def exact(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [x for arg in (*args, *kwargs.values()) for x in (arg if isinstance(arg, (list, tuple)) else [arg])]
        device = next(x.device.type for x in tensors if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*map(_widen, args), **{name: _widen(arg) for name, arg in kwargs.items()})

    return exact


def _widen(arg: Any) -> Any:
    """Widens a tensor, or those of a list or tuple (which becomes a list)."""
    if isinstance(arg, (list, tuple)):
        return [_widen(x) for x in arg]
    half = isinstance(arg, Tensor) and arg.is_floating_point() and torch.finfo(arg.dtype).bits < 32
    return arg.float() if half else arg


def check_rows(*views: Tensor, fewest: int = 1) -> None:
    """Raises ValueError unless all are (N, D) tensors of one shape with N >= `fewest`."""
    shapes = [tuple(view.shape) for view in views]
    if not shapes or views[0].ndim != 2 or len(set(shapes)) > 1:
        raise ValueError(f"expected (N, D) tensors of one shape, got {', '.join(map(str, shapes)) or 'none'}")
    if len(views[0]) < fewest:
        raise ValueError(f"expected at least {fewest} rows, got {len(views[0])}")


def check_views(views: Sequence[Tensor], fewest: int = 1) -> None:
    """`check_rows` of at least two views."""
    if len(views) < 2:
        raise ValueError(f"expected at least two views, got {len(views)}")
    check_rows(*views, fewest=fewest)


def check_positive(**values: float) -> None:
    """Raises ValueError that names a value which is not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, not {value}")
