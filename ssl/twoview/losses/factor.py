"""Factorisations that say why they fail."""

import torch
from torch import Tensor


class SingularError(ArithmeticError):
    """A covariance has no Cholesky factor: the representation has lost a dimension, or is not finite.

    `condition`: the largest eigenvalue over the smallest one, inf where that is not positive, NaN where z is.
    """

    def __init__(self, what: str, condition: float) -> None:
        super().__init__(f"{what} cannot be factorised: its condition number is {condition:.3g}")
        self.condition = condition


def cholesky(covariance: Tensor, what: str) -> Tensor:
    """Lower factors (..., D, D) of symmetric positive definite matrices. Raises `SingularError`, which names `what`."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed.any()) or not bool(factor.isfinite().all()):
        raise SingularError(what, condition_number(covariance.detach()))
    return factor


def condition_number(covariance: Tensor) -> float:
    """The largest condition number of symmetric matrices (..., D, D); inf for a singular one, NaN for NaN."""
    if not bool(covariance.isfinite().all()):
        return float("nan")
    values = torch.linalg.eigvalsh(covariance.double())  # (..., D) ascending
    largest, smallest = values[..., -1], values[..., 0]
    return float(torch.where(smallest > 0, largest / smallest, float("inf")).amax())
