"""A promise, and how it is tried: a function returns by how much it is missed, and there is a limit for that."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

ROUNDING = 1e-5  # of float32 over a few steps, relative to the largest number of what is compared


@dataclass(frozen=True)
class Check:
    """A promise, by how much it was missed, and by how much it may be; `note` is why there is no such number."""

    name: str
    compared: str
    limit: float = 0.0
    difference: float | None = None
    result: Literal["pass", "FAIL", "skipped"] = "skipped"
    seconds: float = 0.0
    note: str = ""


def measure(name: str, compared: str, limit: float, find: Callable[[], float]) -> Check:
    """Whether what `find` returns is within the limit; whatever it raises is a failure too."""
    check, started = Check(name, compared, limit, result="FAIL"), time.monotonic()
    logging.disable(logging.INFO)  # what is being checked has nothing to say
    try:
        found = find()
    except Exception as error:
        check = replace(check, note=f"{type(error).__name__}: {last_line(error)}")
    else:
        check = replace(check, difference=found, result="pass" if found <= limit else "FAIL")  # not a number: FAIL
    finally:
        logging.disable(logging.NOTSET)
    return replace(check, seconds=time.monotonic() - started)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest number of the second, but at least to 0.01: what
    is 0 but for rounding, as a shift in front of a normalisation, has no size of its own.
    """
    if found.shape != expected.shape:
        return math.inf
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=0.01))


def worst(differences: Iterable[float]) -> float:
    return float(torch.tensor(list(differences), dtype=torch.float64).max())  # unlike max(), it does not lose a nan


def last_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[-1]
