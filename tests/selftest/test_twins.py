"""The doctor calls broken methods ill, and whole ones not, from the curves of a short training."""

import pytest
import torch

from twoview.cli.configs import CONFIGS
from twoview.selftest.twins import ILL, TWINS, verdict

NAMES = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
QUICK = ("W-MSE without whitening", "wmse")
CPU = torch.device("cpu")


@pytest.mark.parametrize("twin", [pytest.param(t, marks=[] if t in QUICK else pytest.mark.slow) for t in TWINS])
def test_a_broken_twin_is_called_ill(twin: str) -> None:
    name, breaks = TWINS[twin]
    assert verdict(name, breaks, CPU).verdict in ILL


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_a_whole_method_is_not(name: str) -> None:
    found = verdict(name, None, CPU)
    assert found.verdict == "healthy", found
