"""Which samples keep their label."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twoview.errors import UserError
from twoview.evaluate.classify.labelled import labelled_rows


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_labelled_part_holds_the_share_of_every_class(counts: list[int], fraction: float, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))]
    names = [f"class{c}" for c in range(len(counts))]
    if min(round(count * fraction) for count in counts) < 1:
        with pytest.raises(UserError, match=f"leaves the class class{counts.index(min(counts))} without an image"):
            labelled_rows(labels, names, fraction, seed)
        return
    rows = labelled_rows(labels, names, fraction, seed)
    found = torch.bincount(labels[rows], minlength=len(counts)).tolist()
    assert all(abs(have - count * fraction) <= 0.5 for have, count in zip(found, counts, strict=True))
    assert torch.equal(rows, rows.unique())
    assert torch.equal(rows, labelled_rows(labels, names, fraction, seed))


def test_a_smaller_share_is_part_of_a_larger_one_and_the_seed_decides() -> None:
    labels = torch.arange(1000) % 10
    names = [str(c) for c in range(10)]
    small, large, other = (labelled_rows(labels, names, *at) for at in ((0.01, 1), (0.1, 1), (0.1, 2)))
    assert (len(small), len(large), len(other)) == (10, 100, 100)
    assert set(small.tolist()) <= set(large.tolist()) != set(other.tolist())
    assert labelled_rows(labels, names, 1.0, 0).tolist() == list(range(1000))
