"""torch's Muon and lightly's LARS, where they mean the same."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twoview.optim.lars import LARS
from twoview.optim.muon import Muon

STEPS = 6


def weights(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64)) for shape in shapes]


def steps(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        for w in params:
            w.grad = torch.randn(w.shape, generator=g, dtype=torch.float64)
        optimizer.step()
    return [w.detach() for w in params]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon(weight_decay: float) -> None:
    """torch keeps (1 - momentum) times our momentum, which the orthogonalisation does not see, and orthogonalises in
    bfloat16: so the directions agree to its accuracy.
    """
    torch_muon: Any = getattr(torch.optim, "Muon", None) or pytest.skip("torch.optim.Muon came with torch 2.9")
    shapes = [(24, 8), (8, 24), (16, 16)]
    start, mine, theirs = weights(*shapes), weights(*shapes), weights(*shapes)
    common = {"lr": 0.02, "momentum": 0.9, "weight_decay": weight_decay}
    ours = steps(Muon(mine, half=torch.bfloat16, **common), mine)
    others = steps(torch_muon(theirs, nesterov=True, adjust_lr_fn="original", **common), theirs)
    for first, a, b in zip(start, ours, others, strict=True):
        assert (a - b).norm() < 0.02 * (b - first).norm()


def test_lars() -> None:
    """Without decay and at a constant learning rate. lightly divides by |g| + wd |w| in place of |g + wd w|, and keeps
    the learning rate out of the momentum; where it does not decay it does not adapt either, hence the tiny decay.
    """
    lightly = pytest.importorskip("lightly.utils.lars", reason="the extra `bench` is not installed")
    shapes = [(12, 5), (3, 4, 2, 2)]
    mine, theirs = weights(*shapes), weights(*shapes)
    common = {"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-14}
    ours = steps(LARS(mine, eta=0.02, **common), mine)
    others = steps(lightly.LARS(theirs, trust_coefficient=0.02, eps=0.0, **common), theirs)
    for a, b in zip(ours, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
