import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twoview.losses.relational import relational


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_equals_the_loops() -> None:
    s, t, queue = normal(4, 6, 0), normal(4, 6, 1), normal(9, 6, 2)
    total = entropy = 0.0
    for i in range(4):
        a = [float(F.cosine_similarity(s[i], q, dim=0)) / 0.1 for q in queue]
        b = [float(F.cosine_similarity(t[i], q, dim=0)) / 0.04 for q in queue]
        log_a, log_b = (math.log(sum(map(math.exp, x))) for x in (a, b))
        total -= sum(math.exp(y - log_b) * (x - log_a) for x, y in zip(a, b, strict=True))
        entropy -= sum(math.exp(y - log_b) * (y - log_b) for y in b)
    found = relational(s, t, queue)
    assert (found.loss.item(), found.entropy.item()) == pytest.approx((total / 4, entropy / 4))


def test_a_collapsed_network_is_at_the_logarithm_of_the_queue() -> None:
    ones = torch.ones(4, 6)
    found = relational(ones, ones, torch.ones(4096, 6))
    assert found.loss.item() == found.entropy.item() == pytest.approx(math.log(4096), abs=1e-4)


def test_the_bound_is_the_entropy_and_an_equal_network_comes_near_it() -> None:
    z, queue = normal(16, 8, 0), normal(50, 8, 1)
    found = relational(z, z, queue, 0.0401, 0.04)
    assert found.entropy < found.loss < found.entropy + 1e-4
    assert relational(normal(16, 8, 2), z, queue).loss > found.entropy


def test_a_cold_teacher_names_its_nearest_entry() -> None:
    s, t, queue = normal(4, 6, 0), normal(4, 6, 1), normal(9, 6, 2)
    nearest = (F.normalize(t, dim=1) @ F.normalize(queue, dim=1).T).argmax(dim=1)
    logits = F.normalize(s, dim=1) @ F.normalize(queue, dim=1).T / 0.1
    torch.testing.assert_close(relational(s, t, queue, 0.1, 1e-5).loss, F.cross_entropy(logits, nearest))


def test_only_the_student_has_a_gradient() -> None:
    s, t, queue = (normal(n, 6, i).requires_grad_() for i, n in enumerate((4, 4, 9)))
    relational(s, t, queue).loss.backward()
    assert t.grad is None
    assert queue.grad is None
    assert s.grad is not None
    assert s.grad.any()


@pytest.mark.parametrize(("student", "teacher"), [(0.04, 0.1), (0.1, 0.1)])
def test_a_teacher_that_is_not_sharper_is_refused(student: float, teacher: float) -> None:
    z = normal(4, 6, 0)
    with pytest.raises(ValueError, match=f"teacher_temperature={teacher} must be below {student}"):
        relational(z, z, z, student, teacher)


def test_an_empty_or_unfit_queue_is_refused() -> None:
    z = normal(4, 6, 0)
    for queue in (torch.ones(0, 6), torch.ones(3, 5), torch.ones(6)):
        with pytest.raises(ValueError, match=r"queue must be \(K, 6\)"):
            relational(z, z, queue)
