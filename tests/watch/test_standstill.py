"""The table of standstills against the losses themselves."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twoview.losses import (
    Moments,
    barlow_twins,
    centred_softmax,
    cor_info_max,
    decoupled_contrast,
    info_nce,
    lejepa,
    mmcr,
    nearest_contrast,
    negative_cosine,
    nt_xent,
    relational,
    sinkhorn,
    sup_con,
    swapped_prediction,
    vicreg,
    w_mse,
)
from twoview.watch.standstill import page, values
from twoview.watch.standstill_table import TABLE

ROOT = Path(__file__).parents[2]
N, D, K = 64, 16, 48
CONFIG: dict[str, Any] = {
    "batch_size": N,
    "model.projector.out_dim": D,
    "model.prototypes": K,
    "model.queue_size": K,
    "model.temperature": 0.2,
}
ONES = torch.ones(N, D)


def get(key: str, default: Any = None) -> Any:
    return CONFIG.get(key, default)


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def collapsed_cor_info_max() -> Tensor:
    moments: Any = [Moments(torch.zeros(D).double(), torch.eye(D).double())] * 2
    for _ in range(12):
        found = cor_info_max(ONES, ONES, moments)
        moments = found.moments
    return found.loss


def swav(z: Tensor) -> Tensor:
    scores = z @ torch.ones(D, K) / (D * K)
    return swapped_prediction([sinkhorn(scores)] * 2, [scores] * 2, 0.1)


def dino(teacher: Tensor) -> Tensor:
    return swapped_prediction([centred_softmax(teacher, torch.zeros(K), 0.04)] * 2, [teacher] * 2, 0.1)


ONE_PROTOTYPE = torch.zeros(N, K).index_fill(1, torch.tensor([3]), 100.0)
COPIES = normal(N, 1, 0).expand(N, D)
# The state of the network that a row of the table stands for, in the order of the table.
STATES: dict[str, list[Callable[[], Tensor]]] = {
    "SimCLR": [lambda: nt_xent(ONES, ONES, 0.2)],
    "DCL": [lambda: decoupled_contrast(ONES, ONES, 0.2).loss],
    "SupCon": [lambda: sup_con([ONES, ONES], torch.arange(N) % 4, 0.2).loss],
    "MoCo": [lambda: info_nce(ONES, ONES, torch.ones(K, D), 0.2)],
    "MoCoV3": [lambda: 2 * 0.2 * 2 * info_nce(ONES, ONES, ONES[1:], 0.2)],
    "NNCLR": [lambda: nearest_contrast(ONES, ONES, torch.ones(K, D), 0.2).loss],
    "BYOL": [
        lambda: 4 + 2 * 2 * negative_cosine(normal(4000, 256, 0), normal(4000, 256, 1)),
        lambda: 4 + 2 * 2 * negative_cosine(ONES, ONES),
    ],
    "SimSiam": [
        lambda: negative_cosine(normal(4000, 256, 0), normal(4000, 256, 1)),
        lambda: negative_cosine(ONES, ONES),
    ],
    "BarlowTwins": [lambda: barlow_twins(ONES, ONES).loss, lambda: barlow_twins(COPIES, COPIES, eps=0).loss],
    "VICReg": [lambda: vicreg(ONES, ONES).loss],
    "SwAV": [lambda: swav(ONES)],
    "DINO": [lambda: dino(torch.zeros(N, K)), lambda: dino(ONE_PROTOTYPE)],
    "ReSSL": [lambda: relational(ONES, ONES, torch.ones(K, D)).loss],
    "WMSE": [lambda: w_mse([normal(4096, 8, 0), normal(4096, 8, 1)], torch.arange(4096), 4096)],
    "LeJEPA": [
        lambda: lejepa([0 * ONES, 0 * ONES], torch.nn.functional.normalize(normal(D, 8, 0), dim=0), 2).loss,
    ],
    "CorInfoMax": [collapsed_cor_info_max],
    "MMCR": [lambda: mmcr([ONES, ONES]).loss],
}


@pytest.mark.parametrize(("method", "number"), [(m, i) for m, rows in TABLE.items() for i in range(len(rows))])
def test_each_value_is_that_of_the_loss_in_this_state(method: str, number: int) -> None:
    assert len(STATES[method]) == len(TABLE[method])
    value, row = values(method, get)[number]
    assert STATES[method][number]().item() == pytest.approx(value, rel=2e-3, abs=0.03), row.formula


def test_what_a_configuration_lacks_is_left_out() -> None:
    assert values("SwAV", lambda key, default=None: default) == []
    assert values("NoSuchMethod", get) == []
    assert len(values("BYOL", lambda key, default=None: default)) == 2


@pytest.mark.parametrize(
    "number",
    ["8.3178", "8.0064", "6.2383", "5.5452", "6.9305", "24.75", "49.5", "2048", "11.09", "36.841", "-1 ", "0 ", "-16 "],
)
def test_the_numbers_that_people_look_for_are_there(number: str) -> None:
    assert f"\n| {number}" in page()


def test_the_page_of_the_documentation_is_the_table() -> None:
    """Written by `python -m twoview.watch.standstill > docs/loss_stuck.md`."""
    assert (ROOT / "docs" / "loss_stuck.md").read_text() == page()


def test_a_value_that_a_healthy_loss_may_pass_is_marked() -> None:
    """Without negatives no loss proves health: of these methods' values, none that training aims at stands alone."""
    for method in ("BYOL", "SimSiam"):
        assert not any(row.alone for row in TABLE[method])
    assert all(math.isfinite(value) for method in TABLE for value, _ in values(method, get))
