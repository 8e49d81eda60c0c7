import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twoview.losses.contrastive import info_nce
from twoview.losses.nearest import nearest_contrast


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_equals_the_loops() -> None:
    z, p, queue = normal(5, 6, 0), normal(5, 6, 1), normal(9, 6, 2)
    total = 0.0
    for i in range(5):
        neighbour = max(queue, key=lambda q: float(F.cosine_similarity(q, z[i], dim=0)))
        scores = [float(F.cosine_similarity(neighbour, other, dim=0)) / 0.2 for other in p]
        total += math.log(sum(map(math.exp, scores))) - scores[i]
    assert nearest_contrast(z, p, queue, 0.2).loss.item() == pytest.approx(total / 5)


def test_a_queue_of_the_batch_itself_gives_plain_contrast() -> None:
    z, p = normal(6, 5, 0), normal(6, 5, 1)
    found = nearest_contrast(z, p, 3 * z, 0.2)
    assert found.neighbour.tolist() == list(range(6))
    assert found.similarity.item() == pytest.approx(1)
    torch.testing.assert_close(found.loss, F.cross_entropy(F.normalize(z) @ F.normalize(p).T / 0.2, torch.arange(6)))
    single = [info_nce(z[i : i + 1], p[i : i + 1], p[torch.arange(6) != i], 0.2) for i in range(6)]
    torch.testing.assert_close(found.loss, torch.stack(single).mean())


def test_a_collapsed_network_is_at_the_logarithm_of_the_batch() -> None:
    ones = torch.ones(256, 4)
    found = nearest_contrast(ones, ones, torch.ones(8, 4), 0.1)
    assert found.loss.item() == pytest.approx(math.log(256), abs=1e-5)  # 5.545
    assert found.accuracy == 0


def test_only_the_prediction_has_a_gradient_and_the_queue_stays() -> None:
    z, p, queue = (normal(n, 6, i).requires_grad_() for i, n in enumerate((4, 4, 9)))
    nearest_contrast(z, p, queue, 0.2).loss.backward()
    assert z.grad is None
    assert queue.grad is None
    assert p.grad is not None
    assert p.grad.any()
    assert queue.detach().equal(normal(9, 6, 2))


def test_an_empty_or_unfit_queue_is_refused() -> None:
    z = normal(4, 6, 0)
    for queue in (torch.ones(0, 6), torch.ones(3, 5)):
        with pytest.raises(ValueError, match=r"queue must be \(K, 6\)"):
            nearest_contrast(z, z, queue, 0.2)
