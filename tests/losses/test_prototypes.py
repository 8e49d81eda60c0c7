import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twoview.losses.prototypes import centred_softmax, entropy, sinkhorn, swapped_prediction


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosines(b: int, k: int, d: int = 32) -> Tensor:
    return F.normalize(normal(b, d, 0), dim=1) @ F.normalize(normal(k, d, 1), dim=1).T


def test_sinkhorn_equals_the_algorithm_as_it_is_written() -> None:
    scores = cosines(6, 4)
    q = [[math.exp(s / 0.05) for s in row] for row in scores.tolist()]
    for _ in range(3):
        for k in range(4):
            column = sum(row[k] for row in q)
            for row in q:
                row[k] *= 1 / (4 * column)
        for row in q:
            s = sum(row)
            row[:] = [x / (6 * s) for x in row]
    torch.testing.assert_close(sinkhorn(scores), 6 * torch.tensor(q, dtype=torch.float64))


def test_rows_are_distributions_and_columns_equal() -> None:
    q = sinkhorn(cosines(1024, 300, d=128))
    torch.testing.assert_close(q.sum(dim=1), torch.ones(1024, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(q.sum(dim=0), torch.full((300,), 1024 / 300, dtype=torch.float64), rtol=5e-3, atol=0)
    exact = sinkhorn(cosines(1024, 300, d=128), iterations=100)
    torch.testing.assert_close(exact.sum(dim=0), torch.full((300,), 1024 / 300, dtype=torch.float64), rtol=1e-6, atol=0)


def test_equal_scores_are_uniform_and_shifts_do_nothing() -> None:
    torch.testing.assert_close(sinkhorn(torch.full((8, 5), 0.7)), torch.full((8, 5), 0.2))
    scores = cosines(8, 5)
    torch.testing.assert_close(sinkhorn(scores + 1000), sinkhorn(scores), rtol=1e-8, atol=1e-12)
    assert not sinkhorn(scores.requires_grad_()).requires_grad


def test_a_sample_keeps_its_target_when_the_batch_is_permuted() -> None:
    scores, order = cosines(8, 5), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sinkhorn(scores[order]), sinkhorn(scores)[order])


def test_extreme_scores_stay_finite() -> None:
    q = sinkhorn(torch.tensor([[1.0, -1.0, -1.0], [1.0, -1.0, -1.0]]), epsilon=0.005)  # exp(-400): 0 in float32
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(dim=1), torch.ones(2))


def test_swapped_prediction_equals_the_loops() -> None:
    targets = [normal(4, 6, i).softmax(dim=1) for i in range(2)]
    logits = [normal(4, 6, 5 + i) for i in range(5)]
    total, pairs = 0.0, 0
    for i, target in enumerate(targets):
        for j, view in enumerate(logits):
            if i == j:
                continue
            pairs += 1
            for n in range(4):
                p = [math.exp(s / 0.1) for s in view[n].tolist()]
                total -= sum(float(q) * math.log(x / sum(p)) for q, x in zip(target[n], p, strict=True)) / 4
    assert pairs == 2 * 4
    assert swapped_prediction(targets, logits, 0.1).item() == pytest.approx(total / pairs)


@pytest.mark.parametrize(("k", "value"), [(3000, 8.006), (4096, 8.318), (512, 6.238), (2048, 7.625)])
def test_uniform_targets_or_predictions_are_at_the_logarithm_of_the_prototypes(k: int, value: float) -> None:
    uniform, sharp = torch.full((2, k), 1 / k), F.one_hot(torch.tensor([0, 3]), k).float()
    flat = torch.zeros(2, k)
    assert swapped_prediction([uniform, uniform], [flat, flat], 0.1).item() == pytest.approx(value, abs=5e-4)
    assert swapped_prediction([sharp, sharp], [flat, flat], 0.1).item() == pytest.approx(math.log(k), abs=1e-5)
    assert swapped_prediction([sharp, sharp], [100 * sharp, 100 * sharp], 0.1) == 0  # all on one prototype
    assert entropy(uniform).item() == pytest.approx(math.log(k), abs=1e-5)
    assert entropy(sharp) == 0


def test_two_views_give_the_two_view_value_and_local_views_may_be_exchanged() -> None:
    targets, logits = [normal(4, 6, i).softmax(dim=1) for i in range(2)], [normal(4, 6, 5 + i) for i in range(4)]
    a = -(targets[0] * F.log_softmax(logits[1] / 0.1, dim=1)).sum(dim=1).mean()
    b = -(targets[1] * F.log_softmax(logits[0] / 0.1, dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(swapped_prediction(targets, logits[:2], 0.1), (a + b) / 2)
    full = swapped_prediction(targets, logits, 0.1)
    torch.testing.assert_close(swapped_prediction(targets, [*logits[:2], *logits[:1:-1]], 0.1), full)
    torch.testing.assert_close(swapped_prediction(targets[::-1], [*logits[1::-1], *logits[2:]], 0.1), full)


def test_targets_have_no_gradient() -> None:
    target, logits = normal(4, 6, 0).softmax(dim=1).requires_grad_(), normal(4, 6, 1).requires_grad_()
    swapped_prediction([target, target], [logits, logits], 0.1).backward()
    assert target.grad is None
    assert logits.grad is not None
    assert not centred_softmax(logits, torch.zeros(6), 0.04).requires_grad


def test_a_vector_added_to_outputs_and_centre_does_nothing() -> None:
    outputs, centre, vector = normal(4, 6, 0), normal(1, 6, 1)[0], normal(1, 6, 2)[0]
    expected = centred_softmax(outputs, centre, 0.04)
    torch.testing.assert_close(centred_softmax(outputs + vector, centre + vector, 0.04), expected)
    torch.testing.assert_close(expected, ((outputs - centre) / 0.04).softmax(dim=1))


def test_the_random_start_of_dino_is_above_the_logarithm() -> None:
    """At initialisation: log K + .19, with a teacher's entropy of log K - 1.2 (T_t .04) for cosines in 256-D."""
    k = 4096
    o = F.normalize(normal(256, 256, 0), dim=1) @ F.normalize(normal(k, 256, 1), dim=1).T
    other = F.normalize(normal(256, 256, 2), dim=1) @ F.normalize(normal(k, 256, 1), dim=1).T
    target = centred_softmax(o, torch.zeros(k), 0.04)
    assert entropy(target).item() == pytest.approx(math.log(k) - 1.2, abs=0.1)
    assert swapped_prediction([target, target], [other, other], 0.1).item() == pytest.approx(
        math.log(k) + 0.19, abs=0.05
    )


def test_bad_values_are_named() -> None:
    p = normal(4, 6, 0).softmax(dim=1)
    with pytest.raises(ValueError, match="at least two views, got 1"):
        swapped_prediction([p], [p], 0.1)
    with pytest.raises(ValueError, match="1 to 2 targets"):
        swapped_prediction([p, p, p], [p, p], 0.1)
    with pytest.raises(ValueError, match="temperature must be positive"):
        swapped_prediction([p, p], [p, p], 0.0)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        sinkhorn(p, 0.0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        centred_softmax(p, torch.zeros(6), 0.0)
