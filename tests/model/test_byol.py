"""BYOL: closed values, a loss by hand, stop-gradients, and a teacher that follows when and as its source says."""

import copy
import math
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from twoview.data.batches import Batch
from twoview.model.base import Begin
from twoview.model.byol import BYOL
from twoview.model.part.head import Projector
from twoview.optim.recipe import Recipe

HEAD = partial(Projector, out_dim=4, norm="batch", bias_last=False)


class Flat(nn.Module):
    dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(12, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.linear(x.flatten(1))))


def byol(**options: Any) -> BYOL:
    torch.manual_seed(0)
    return BYOL(Flat(), Recipe(torch.optim.SGD, 0.5, lr_scaling="none"), HEAD, HEAD, **options)


def batch(n: int = 8, seed: int = 0) -> Batch:
    v1, v2 = torch.randn(2, n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return Batch((v1, v2), torch.arange(n), torch.full((n,), -1))


def test_the_loss_is_the_squared_distance_of_unit_vectors_summed_over_both_directions() -> None:
    model = byol().train()
    before, views = copy.deepcopy(model), batch().views
    total = 0.0
    p = [before.predictor(before.projector(before.encoder(view))).double() for view in views]
    t = [before.teacher_projector(before.teacher(view)).double() for view in views]
    for i in range(8):
        for prediction, target in ((p[0][i], t[1][i]), (p[1][i], t[0][i])):
            total += float((prediction / prediction.norm() - target / target.norm()).square().sum())
    loss, numbers, chance = model.step(batch())
    assert loss.item() == pytest.approx(total / 8, rel=1e-5)
    assert chance is None
    assert 0 < numbers["spread"] <= 1


def test_views_are_exchangeable() -> None:
    v1, v2 = batch().views
    a, b = (byol().step(batch()._replace(views=views)).loss for views in ((v1, v2), (v2, v1)))
    torch.testing.assert_close(a, b)


def test_each_view_has_batch_statistics_of_its_own_in_student_and_teacher() -> None:
    model = byol().train()
    model.step(batch())
    for network in (model.encoder, model.teacher):
        assert network.norm.num_batches_tracked == 2


def test_no_gradient_reaches_the_teacher_and_one_reaches_all_else() -> None:
    model = byol()
    model.step(batch()).loss.backward()
    teacher = {*model.teacher.parameters(), *model.teacher_projector.parameters()}
    for parameter in model.parameters():
        assert (parameter.grad is None) == (parameter in teacher)
        assert parameter in teacher or parameter.grad.any()


@pytest.mark.parametrize(("momentum", "equal"), [(1.0, "the teacher before"), (0.0, "the student")])
def test_the_ends_of_the_momentum(momentum: float, equal: str) -> None:
    model = byol(momentum=momentum, momentum_end=None)
    before = copy.deepcopy(model.teacher)
    with torch.no_grad():
        model.encoder.linear.weight += 1
    model.after_step()
    expected = before if equal == "the teacher before" else model.encoder
    assert all(a.equal(b) for a, b in zip(model.teacher.parameters(), expected.parameters(), strict=True))


def test_the_teacher_follows_after_each_step_of_the_optimizer_with_the_momentum_of_that_step() -> None:
    """As in the authors' code: target <- tau target + (1 - tau) online of after the step, tau = 1 - (1 - m) (1 + cos
    (pi k / K)) / 2 with the number k of steps before it.
    """
    model, seen = byol(momentum=0.9), []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            self.teacher = model.teacher.linear.weight.clone()

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:  # where checkpoints are written
            k, steps = trainer.global_step - 1, 8
            tau = 1 - 0.1 * (1 + math.cos(math.pi * k / steps)) / 2
            expected = tau * self.teacher + (1 - tau) * model.encoder.linear.weight
            torch.testing.assert_close(model.teacher.linear.weight, expected.detach())
            assert not model.teacher.linear.weight.equal(self.teacher)
            seen.append(k)

    x = torch.randn(32, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    samples = [((x[i, 0], x[i, 1]), i, -1) for i in range(32)]
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, callbacks=[Look()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(samples, batch_size=8))
    assert seen == list(range(8))


def test_everything_that_a_run_needs_to_go_on_is_in_the_checkpoint() -> None:
    names = set(byol().state_dict())
    assert {"teacher.linear.weight", "teacher.norm.running_mean", "teacher_projector.0.weight"} <= names


def test_the_prediction_has_the_width_of_the_target() -> None:
    model = BYOL(Flat(), Recipe(torch.optim.SGD, 0.1), partial(HEAD, out_dim=5), partial(HEAD, out_dim=3))
    assert model.predictor.out_dim == model.projector.out_dim == 5
    assert list(model.heads()) == ["projector", "predictor"]


def test_a_tiny_batch_is_learnt_without_collapse() -> None:
    model = byol(momentum=0.9, momentum_end=None)
    model.begin(Begin(8, 60, 1))
    optimizer, _ = model.recipe.build(model, 8, steps=60, epochs=1)
    v1, _ = batch().views
    views = Batch((v1, v1 + 0.1 * torch.randn(v1.shape, generator=torch.Generator().manual_seed(1))), *batch()[1:])
    losses = []
    for _ in range(60):
        loss, numbers, _ = model.step(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0] < 4 * 0.3 * 1.5
    assert numbers["spread"] > 0.5
