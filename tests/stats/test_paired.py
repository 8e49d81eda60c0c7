"""Two classifiers on the same images: the exact test beside scipy's, and an interval that covers."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from twoview.stats.paired import paired


@given(b=st.integers(0, 40), c=st.integers(0, 40), both=st.integers(0, 60), neither=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_binomial_test_of_discordant_images(b: int, c: int, both: int, neither: int) -> None:
    if b + c + both + neither == 0:
        return
    first = torch.tensor([1] * b + [0] * c + [1] * both + [0] * neither).bool()
    second = torch.tensor([0] * b + [1] * c + [1] * both + [0] * neither).bool()
    found, mirrored = paired(first, second), paired(second, first)
    oracle = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert found.p == pytest.approx(oracle, rel=1e-9)
    assert found.mean == pytest.approx((b - c) / len(first))
    assert -1 <= found.low <= found.high <= 1
    assert (mirrored.mean, mirrored.p) == (-found.mean, found.p)
    assert mirrored.limits == pytest.approx([-found.high, -found.low])


def test_the_interval_of_a_difference_covers() -> None:
    """95 of 100 experiments with a known difference of 0.06, on 200 images."""
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(1000):
        u = torch.rand(200, generator=generator)
        found = paired(u < 0.70, (u < 0.60) | (u > 0.96))  # 0.70 against 0.64, 0.14 discordant
        inside += found.low <= 0.06 <= found.high
    assert 930 <= inside <= 985


def test_paired_needs_the_same_images() -> None:
    with pytest.raises(ValueError, match="same images"):
        paired(torch.ones(3).bool(), torch.ones(4).bool())


def test_plain_containers_are_json() -> None:
    plain = paired(torch.tensor([1, 1, 0, 1]).bool(), torch.tensor([1, 0, 0, 0]).bool()).plain()
    assert json.loads(json.dumps(plain)) == plain
    assert (plain["difference"], plain["only_first"], plain["only_second"], plain["n"]) == (0.5, 2, 0, 4)
