"""The base of the methods: what it learns of a run, from `begin` or from a Lightning trainer, and what it refuses."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from twoview.data.batches import Batch
from twoview.errors import UserError
from twoview.model.base import Begin, Method, Outcome
from twoview.model.byol import BYOL
from twoview.model.part.head import Projector
from twoview.model.simclr import SimCLR
from twoview.optim.recipe import Recipe
from twoview.optim.role import Role

HEAD = partial(Projector, out_dim=4, norm="batch")


class Flat(nn.Sequential):
    dim = 6

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6))


def recipe(lr: float = 0.1, **options: Any) -> Recipe:
    return Recipe(torch.optim.SGD, lr, **options)


def simclr(**options: Any) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(Flat(), recipe(**options), HEAD)


def byol() -> BYOL:
    torch.manual_seed(0)
    return BYOL(Flat(), recipe(), HEAD, HEAD)


def samples(n: int = 32) -> list[Any]:
    """((v1, v2), number, label) each, as a plain data set gives them."""
    x = torch.randn(n, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return [((x[i, 0], x[i, 1]), i, -1) for i in range(n)]


def trainer(path: Any = None, **options: Any) -> pl.Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    logger = False if path is None else CSVLogger(path, name="", version="")
    return pl.Trainer(accelerator="cpu", devices=1, logger=logger, log_every_n_steps=1, **{**quiet, **options})


# A Lightning trainer without begin


@pytest.mark.parametrize("make", [simclr, byol])
def test_a_plain_trainer_trains_a_method_as_its_recipe_says_and_logs_its_numbers(make: Any, tmp_path: Any) -> None:
    model = make()
    fit = trainer(tmp_path, max_epochs=3)
    fit.fit(model, DataLoader(samples(), batch_size=8))
    assert (model.run.global_batch_size, model.run.steps, model.run.epochs) == (8, 12, 3)
    assert fit.optimizers[0].param_groups[0]["initial_lr"] == pytest.approx(0.1 * 8 / 256)
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)  # the cosine ends with the run
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    told = {"loss", "accuracy", "chance_loss"} if make is simclr else {"loss", "spread"}
    assert told < set(header.split(","))
    assert len(rows) == 12


def test_a_plain_trainer_trains_as_one_that_tells_of_the_run() -> None:
    told = simclr()
    told.begin(Begin(global_batch_size=8, steps=12, epochs=3))
    alone = simclr()
    for model in (told, alone):
        trainer(max_epochs=3).fit(model, DataLoader(samples(), batch_size=8))
    assert all(a.equal(b) for a, b in zip(told.parameters(), alone.parameters(), strict=True))


def test_max_steps_end_the_schedule_too() -> None:
    model, fit = simclr(warmup_epochs=1), trainer(max_epochs=-1, max_steps=6)
    fit.fit(model, DataLoader(samples(), batch_size=8))
    assert (model.run.steps, model.run.epochs, fit.global_step) == (6, 2, 6)
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield from samples()


@pytest.mark.parametrize(
    ("options", "loader", "message"),
    [
        (
            {"max_epochs": -1},
            {"batch_size": 8},
            r"SimCLR falls until the last step.*max_epochs=\.\.\.",
        ),
        ({"max_epochs": 1}, {"batch_size": None}, r"depends on the batch size.*begin\(Begin\(global_batch_size="),
        ({"max_epochs": 1, "accumulate_grad_batches": 2}, {"batch_size": 8}, "accumulate_grad_batches=2"),
    ],
)
def test_what_a_plain_trainer_does_not_say_is_asked_for(options: Any, loader: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trainer(**options).fit(simclr(), DataLoader(samples(), **loader))


def test_an_endless_loader_needs_a_number_of_steps() -> None:
    with pytest.raises(UserError, match=r"max_steps=\.\.\."):
        trainer(max_epochs=1).fit(simclr(), DataLoader(Endless(), batch_size=8))
    model = simclr()
    trainer(max_steps=3).fit(model, DataLoader(Endless(), batch_size=8))
    assert (model.run.steps, model.run.epochs) == (3, 1)


def test_a_method_that_was_told_nothing_says_so() -> None:
    with pytest.raises(UserError, match="SimCLR knows nothing of its run yet"):
        simclr().outlook()


# What begin refuses


class Toy(Method):
    """The mean of h over three views."""

    views_needed = (3, None)
    reads_labels = True

    def step(self, batch: Batch) -> Outcome:
        h = torch.stack([self.encoder(view) for view in batch.views])
        return Outcome(h.square().mean(), {})


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy(Flat(), recipe())


SHAPE = (3, 2, 2)


@pytest.mark.parametrize(
    ("make", "facts", "message"),
    [
        (simclr, {"view_shapes": (SHAPE,) * 3}, "SimCLR takes 2 views of a sample, not 3"),
        (toy, {"view_shapes": (SHAPE,) * 2}, "Toy takes at least 3 views of a sample, not 2"),
        (toy, {"view_shapes": (SHAPE,) * 3, "labelled": False}, "Toy learns from labels"),
        (byol, {"mixed": True}, "BYOL has no use for mixtures of images; set augment.mix=null"),
    ],
)
def test_what_does_not_fit_a_method_is_said_before_the_first_step(make: Any, facts: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make().begin(Begin(8, 10, 1, **facts))


def test_the_number_of_views_is_looked_at_in_a_plain_trainer_too() -> None:
    with pytest.raises(UserError, match="Toy takes at least 3 views of a sample, not 2"):
        trainer(max_epochs=1).fit(toy(), DataLoader(samples(), batch_size=8))


# Roles, and the moment after a step


class WithRoles(SimCLR):
    """A projector that keeps its rate, and stays as it is for an epoch."""

    def roles(self) -> Sequence[Role]:
        return [Role(list(self.projector.parameters()), lr=2.0, constant=True, frozen_epochs=1)]


def test_roles_reach_the_optimizer_and_frozen_ones_stay() -> None:
    torch.manual_seed(0)
    model = WithRoles(Flat(), recipe(), HEAD)
    start = [p.clone() for p in model.projector.parameters()]
    seen: list[bool] = []

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            seen.append(all(a.equal(b) for a, b in zip(start, model.projector.parameters(), strict=True)))

    fit = trainer(max_epochs=2, callbacks=[Look()])
    fit.fit(model, DataLoader(samples(), batch_size=8))
    assert seen == [True, False]
    rest, *role = fit.optimizers[0].param_groups
    assert rest["lr"] == pytest.approx(0)
    assert {group["lr"] for group in role} == {2 * 0.1 * 8 / 256}


def test_after_step_comes_when_the_weights_have_moved_and_before_the_step_is_counted() -> None:
    seen: list[tuple[int, float, bool]] = []

    class Watched(SimCLR):
        before: Tensor

        def step(self, batch: Batch) -> Outcome:
            self.before = self.encoder[1].weight.clone()  # type: ignore[union-attr, index]
            return super().step(batch)

        def after_step(self) -> None:
            moved = not self.encoder[1].weight.equal(self.before)  # type: ignore[union-attr, index]
            seen.append((self.global_step, self.progress, moved))

    model = Watched(Flat(), recipe(), HEAD)
    trainer(max_epochs=1).fit(model, DataLoader(samples(), batch_size=8))
    assert seen == [(k, k / 4, True) for k in range(4)]
