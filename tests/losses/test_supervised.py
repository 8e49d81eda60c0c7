import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twoview.losses.contrastive import nt_xent_contrast
from twoview.losses.supervised import sup_con


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(views: list[Tensor], label: list[int], temperature: float) -> tuple[float, float]:
    n = len(label)
    rows = [(row / row.norm()).tolist() for view in views for row in view]
    total = hits = 0.0
    for i, anchor in enumerate(rows):
        score = {
            j: sum(a * b for a, b in zip(anchor, other, strict=True)) / temperature
            for j, other in enumerate(rows)
            if j != i
        }
        alike = [j for j in score if j % n == i % n or (label[j % n] == label[i % n] and label[i % n] >= 0)]
        if alike:
            total += sum(math.log(sum(map(math.exp, score.values()))) - score[j] for j in alike) / len(alike)
            hits += max(score, key=score.__getitem__) in alike
    return total / len(rows), hits / len(rows)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(2, 7),
    v=st.integers(1, 3),
    temperature=st.floats(0.05, 3),
    seed=st.integers(0, 2**31),
    classes=st.integers(1, 4),
    unlabelled=st.booleans(),
)
def test_it_equals_the_loops(n: int, v: int, temperature: float, seed: int, classes: int, unlabelled: bool) -> None:
    views = [normal(n, 4, seed + i) for i in range(v)]
    label = torch.randint(-unlabelled, classes, (n,), generator=torch.Generator().manual_seed(seed))
    found = sup_con(views, label, temperature)
    assert (found.loss.item(), found.accuracy.item()) == pytest.approx(slow(views, label.tolist(), temperature))


def test_without_equal_labels_it_is_nt_xent() -> None:
    z1, z2 = normal(9, 5, 0), normal(9, 5, 1)
    expected = nt_xent_contrast(z1, z2, 0.3)
    for label in (torch.arange(9), torch.full((9,), -1)):
        torch.testing.assert_close(sup_con([z1, z2], label, 0.3), expected, check_dtype=False)


def test_closed_values() -> None:
    label = torch.arange(40) % 10
    ones = torch.ones(40, 10, dtype=torch.float64)
    assert sup_con([ones, ones], label, 0.1).loss.item() == pytest.approx(math.log(79))
    assert sup_con([ones, ones], label, 0.1).accuracy == 0
    perfect = torch.eye(10, dtype=torch.float64)[label]  # 7 positives each
    assert sup_con([perfect, perfect], label, 0.02).loss.item() == pytest.approx(math.log(7), abs=1e-9)
    assert sup_con([perfect, perfect], label, 0.02).accuracy == 1


def test_the_names_of_classes_do_not_matter_and_the_samples_may_be_permuted() -> None:
    views, label = [normal(8, 5, i) for i in range(2)], torch.tensor([0, 1, 2, 0, 1, 2, 0, -1])
    loss = sup_con(views, label, 0.2).loss
    names = torch.tensor([7, 300, 4])
    torch.testing.assert_close(sup_con(views, torch.where(label < 0, label, names[label]), 0.2).loss, loss)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sup_con([view[order] for view in views], label[order], 0.2).loss, loss)
    assert abs(sup_con(views, label[order], 0.2).loss - loss) > 1e-6


def test_a_row_without_positives_costs_nothing() -> None:
    z = normal(4, 5, 0).requires_grad_()
    found = sup_con([z], torch.tensor([0, 1, 2, -1]), 0.1)
    found.loss.backward()
    assert found.loss == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_labels_must_fit() -> None:
    with pytest.raises(ValueError, match=r"label must be \(4,\)"):
        sup_con([normal(4, 5, 0)] * 2, torch.arange(5), 0.1)
    with pytest.raises(ValueError, match="temperature must be positive"):
        sup_con([normal(4, 5, 0)] * 2, torch.arange(4), 0.0)
    with pytest.raises(ValueError, match="at least 2 rows"):
        sup_con([normal(1, 5, 0)], torch.arange(1), 0.1)
