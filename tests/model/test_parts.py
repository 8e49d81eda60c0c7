"""The parts that several methods share."""

import pytest
import torch
from torch.nn import functional as F

from twoview.model.part.memory import Queue
from twoview.model.part.prototypes import Prototypes


def rows(n: int, start: int = 0) -> torch.Tensor:
    return torch.stack([torch.arange(start, start + n), torch.ones(n)], dim=1).float()


def test_the_queue_holds_the_newest_rows_of_length_one() -> None:
    queue = Queue(5, 2)
    assert queue.filled() == 0
    queue.add(rows(3), torch.arange(3))
    assert queue.filled() == 3
    assert queue.index.tolist() == [0, 1, 2, -1, -1]
    queue.add(rows(4, 3), torch.arange(3, 7))
    assert queue.index.tolist() == [5, 6, 2, 3, 4]
    torch.testing.assert_close(queue.rows, F.normalize(rows(7)[queue.index], dim=1))
    assert queue.filled() == 5
    queue.add(rows(12), torch.arange(12))  # more than it holds
    assert sorted(queue.index.tolist()) == [7, 8, 9, 10, 11]
    torch.testing.assert_close(queue.rows, F.normalize(rows(12)[queue.index], dim=1))


def test_batches_of_any_size_leave_the_queue_as_one_batch_does() -> None:
    whole, parts = Queue(7, 2), Queue(7, 2)
    whole.add(rows(20), torch.arange(20))
    for start, n in ((0, 1), (1, 9), (10, 4), (14, 6)):
        parts.add(rows(n, start), torch.arange(start, start + n))
    for name, value in whole.state_dict().items():
        assert parts.state_dict()[name].equal(value), name


def test_a_random_queue_has_directions_and_counts_as_empty() -> None:
    torch.manual_seed(0)
    queue = Queue(64, 16, random=True)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(64))
    assert queue.filled() == 0
    assert (queue.index == -1).all()
    assert queue.rows.mean(dim=0).norm() < 0.3


def test_the_queue_takes_no_gradient_and_travels_in_checkpoints() -> None:
    queue = Queue(4, 2)
    queue.add(rows(2).requires_grad_().bfloat16(), torch.arange(2))
    assert not queue.rows.requires_grad
    assert set(queue.state_dict()) == {"rows", "index", "count"}
    assert queue.rows.dtype == torch.float32


def test_prototypes_are_compared_by_direction_in_float32() -> None:
    torch.manual_seed(0)
    prototypes, z = Prototypes(8, 5), torch.randn(3, 8)
    expected = torch.stack([F.cosine_similarity(z, w[None], dim=1) for w in prototypes.weight], dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = prototypes(z)
        assert prototypes(z.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        prototypes.weight.mul_(7)
    torch.testing.assert_close(prototypes(3 * z), expected)
    prototypes.normalise()
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(prototypes(z), expected)


def test_no_gradient_changes_the_length_of_a_prototype() -> None:
    prototypes = Prototypes(8, 5)
    prototypes(torch.randn(3, 8)).square().sum().backward()
    assert prototypes.weight.grad is not None
    along = (prototypes.weight.grad * prototypes.weight).sum(dim=1)
    assert along.abs().max().item() == pytest.approx(0, abs=1e-5)
