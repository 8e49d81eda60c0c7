"""Losses of other packages give the same values and gradients, in float64. Where a definition differs, it says so here.

The packages are in the extra `bench`. They are made for training in float32, and some build constants in it: those are
compared to its accuracy.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twoview.losses.contrastive import nt_xent
from twoview.losses.decoupled import decoupled_contrast
from twoview.losses.lejepa import lejepa, sigreg
from twoview.losses.manifold import mmcr
from twoview.losses.nearest import nearest_contrast
from twoview.losses.prototypes import centred_softmax, sinkhorn, swapped_prediction
from twoview.losses.redundancy import barlow_twins
from twoview.losses.regression import negative_cosine
from twoview.losses.supervised import sup_con
from twoview.losses.vicreg import vicreg
from twoview.losses.whitening import w_mse

N, D = 16, 6


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compare(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor, rtol: float = 1e-9) -> None:
    """Values, and gradients of all inputs; where one side has none (a stop-gradient inside), the other has none."""
    found = [[x.clone().requires_grad_() for x in inputs] for _ in range(2)]
    for loss, own in zip((ours, theirs), found, strict=True):
        loss(*own).sum().backward()
    torch.testing.assert_close(ours(*inputs).sum(), theirs(*inputs).sum(), rtol=rtol, atol=rtol)
    for a, b in zip(*found, strict=True):
        zero = torch.zeros_like(a)
        grads = [zero if x.grad is None else x.grad for x in (a, b)]
        torch.testing.assert_close(*grads, rtol=10 * rtol, atol=10 * rtol)


@pytest.fixture
def lightly() -> Any:
    return pytest.importorskip("lightly.loss")


def test_nt_xent(lightly: Any) -> None:
    compare(lambda a, b: nt_xent(a, b, 0.3), lightly.NTXentLoss(temperature=0.3), normal(N, D, 0), normal(N, D, 1))


def test_nt_xent_of_labelled_rows() -> None:
    """pytorch-metric-learning takes rows with labels: here two rows have each."""
    theirs = pytest.importorskip("pytorch_metric_learning.losses").NTXentLoss(temperature=0.3)

    def rows(a: Tensor, b: Tensor) -> Tensor:
        return theirs(torch.cat([a, b]), torch.arange(N).repeat(2))

    compare(lambda a, b: nt_xent(a, b, 0.3), rows, normal(N, D, 0), normal(N, D, 1), rtol=1e-8)


def test_negative_cosine(lightly: Any) -> None:
    """lightly leaves the stop-gradient to the caller."""
    theirs = lightly.NegativeCosineSimilarity()
    compare(negative_cosine, lambda p, z: theirs(p, z.detach()), normal(N, D, 0), normal(N, D, 1))


@pytest.mark.parametrize("weight", [5e-3, 0.5])
def test_barlow_twins(lightly: Any, weight: float) -> None:
    theirs = lightly.BarlowTwinsLoss(lambda_param=weight)
    compare(lambda a, b: barlow_twins(a, b, weight).loss, theirs, normal(N, D, 0), normal(N, D, 1))


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_vicreg(lightly: Any, scale: float) -> None:
    """Both have the half of the variance term."""
    compare(lambda a, b: vicreg(a, b).loss, lightly.VICRegLoss(), scale * normal(N, D, 0), scale * normal(N, D, 1))


def test_swav(lightly: Any) -> None:
    """Codes of the batch with a queue behind it, two global and two local views."""
    theirs = lightly.SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)
    scores = [F.normalize(normal(N, D, i), dim=1) for i in range(4)]
    queues = [F.normalize(normal(2 * N, D, 10 + i), dim=1) for i in range(2)]

    def ours(*views: Tensor) -> Tensor:
        targets = [sinkhorn(torch.cat([v.detach(), queue]))[:N] for v, queue in zip(views, queues, strict=False)]
        return swapped_prediction(targets, views, 0.1)

    compare(ours, lambda a, b, c, d: theirs([a, b], [c, d], queues), *scores)


def test_dino(lightly: Any) -> None:
    """The first step: the centre, float32 there, is 0."""
    teacher = [normal(N, D, 20 + i) for i in range(2)]

    def theirs(*views: Tensor) -> Tensor:
        return lightly.DINOLoss(output_dim=D, teacher_temp=0.04)(teacher, list(views))

    def ours(*views: Tensor) -> Tensor:
        targets = [centred_softmax(t, torch.zeros(D), 0.04) for t in teacher]
        return swapped_prediction(targets, views, 0.1)

    compare(ours, theirs, *(normal(N, D, i) for i in range(5)), rtol=1e-6)


def test_dcl(lightly: Any) -> None:
    """lightly takes the mean of the two directions, which is that of the 2N rows."""
    compare(
        lambda a, b: decoupled_contrast(a, b, 0.1).loss,
        lightly.DCLLoss(temperature=0.1),
        normal(N, D, 0),
        normal(N, D, 1),
    )


def test_dclw(lightly: Any) -> None:
    """There too the weights are constants."""
    compare(
        lambda a, b: decoupled_contrast(a, b, 0.1, 0.5).loss,
        lightly.DCLWLoss(temperature=0.1, sigma=0.5),
        normal(N, D, 0),
        normal(N, D, 1),
    )


def test_w_mse(lightly: Any) -> None:
    """lightly draws its groups from torch's generator, and has a constant in float32."""
    theirs = lightly.WMSELoss(embedding_dim=4, w_size=16, track_running_stats=False)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))

    def drawn(a: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(0)
        return theirs(torch.cat([a, b]).float()).double()

    compare(lambda a, b: w_mse([a, b], order, 16), drawn, normal(32, 4, 0), normal(32, 4, 1), rtol=1e-5)


def test_sigreg_and_lejepa(lightly: Any) -> None:
    """lightly draws its directions from torch's generator."""
    theirs = lightly.LeJEPALoss(lambda_param=0.02, sigreg_num_vectors=8)
    torch.manual_seed(0)
    directions = torch.randn(D, 8, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)

    def drawn(*views: Tensor) -> Tensor:
        torch.manual_seed(0)
        return theirs(local_proj=torch.stack(views[2:]), global_proj=torch.stack(views[:2]))

    compare(
        lambda *views: lejepa(views, directions, 2, 0.02).loss, drawn, *(normal(N, D, i) for i in range(4)), rtol=1e-6
    )

    def statistic(z: Tensor) -> Tensor:
        torch.manual_seed(0)
        return theirs.sigreg(z)

    compare(lambda z: sigreg(z, directions), statistic, normal(N, D, 0), rtol=1e-6)


def test_mmcr(lightly: Any) -> None:
    """lightly takes (N, V, D) of an online and a momentum network, and does not normalise; its second term is off."""
    theirs = lightly.MMCRLoss(lmda=0)

    def normalised(a: Tensor, b: Tensor) -> Tensor:
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
        return theirs(a[:, None], b[:, None])

    compare(lambda a, b: mmcr([a, b]).loss, normalised, normal(N, D, 0), normal(N, D, 1), rtol=1e-8)


def test_nnclr(lightly: Any) -> None:
    """lightly feeds neighbours and predictions to NT-Xent. The paper's form is the N-way half of it: its candidates
    are the predictions alone.
    """
    from lightly.models.modules import NNMemoryBankModule

    z, p = normal(N, D, 0).float(), normal(N, D, 1).float()
    bank = NNMemoryBankModule(size=(50, D))
    queue = bank.bank.T if bank.bank.shape[0] == D else bank.bank
    neighbours = bank(F.normalize(z, dim=1), update=False)
    found = nearest_contrast(z, p, queue.clone(), 0.2)
    torch.testing.assert_close(queue[found.neighbour], neighbours)
    logits = F.normalize(neighbours, dim=1) @ F.normalize(p, dim=1).T / 0.2
    torch.testing.assert_close(found.loss, F.cross_entropy(logits, torch.arange(N)))


@pytest.mark.parametrize("classes", [3, 16])
def test_sup_con(classes: int) -> None:
    """pytorch-metric-learning takes rows with labels, and the mean over those whose loss is above 0: here all."""
    theirs = pytest.importorskip("pytorch_metric_learning.losses").SupConLoss(temperature=0.2)
    label = torch.arange(N) % classes

    def rows(a: Tensor, b: Tensor) -> Tensor:
        return theirs(torch.cat([a, b]), label.repeat(2))

    compare(lambda a, b: sup_con([a, b], label, 0.2).loss, rows, normal(N, D, 0), normal(N, D, 1), rtol=1e-8)
