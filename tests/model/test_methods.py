"""What each method promises beyond what all of them do: schedules, queues, teachers, refusals."""

import copy
import logging
import math
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from test_every_method import SIDE, Flat, N, advance, batch, make, optimizer_of, shrunk
from torch import nn

from twoview.errors import UserError
from twoview.losses import negative_cosine
from twoview.model.base import Begin
from twoview.model.part.crops import by_size, count_global
from twoview.optim.recipe import Recipe


class Clock:
    """What a method asks of its trainer."""

    def __init__(self, epoch: int = 0, step: int = 0) -> None:
        self.current_epoch, self.global_step = epoch, step


def at(model: Any, epoch: int = 0, step: int = 0) -> Any:
    model._trainer = Clock(epoch, step)
    return model


# SimSiam


def test_the_predictor_of_simsiam_keeps_its_rate() -> None:
    model = make("simsiam")
    optimizer, schedule = Recipe(torch.optim.SGD, 0.05).build(model, 256, steps=10, epochs=1, roles=model.roles())
    constant = [group for group in optimizer.param_groups if group["params"][0] is model.predictor[0].weight]
    for _ in range(9):
        optimizer.step()
        schedule.step()
    assert constant[0]["lr"] == 0.05
    assert optimizer.param_groups[0]["lr"] < 0.005
    assert all(not role.constant for role in make("simsiam", constant_predictor_lr=False).roles())


def test_the_projector_of_simsiam_learns_through_the_predictor_alone() -> None:
    model = make("simsiam")
    with torch.no_grad():
        for p in model.predictor.parameters():
            p.zero_()
    model.step(batch()).loss.backward()
    assert all(not p.grad.any() for p in model.projector.parameters() if p.grad is not None)


def test_each_views_target_is_the_mean_of_the_others() -> None:
    model, given = make("simsiam", torch.float64), batch(dtype=torch.float64, views=4)
    z = [model.projector(model.encoder(view)) for view in given.views]
    p = [model.predictor(x) for x in z]
    expected = [negative_cosine(p[i], sum(z[j] for j in range(4) if j != i) / 3) for i in range(4)]
    torch.testing.assert_close(make("simsiam", torch.float64).step(given).loss, torch.stack(expected).mean())


def test_the_projection_of_simsiam_ends_in_a_norm_without_scale() -> None:
    norms = [m.affine for m in make("simsiam").projector if isinstance(m, nn.BatchNorm1d)]
    assert norms == [True, False]
    assert not isinstance(make("simsiam").predictor[-1], nn.BatchNorm1d)


# Barlow Twins


def test_vectors_of_barlow_twins_may_have_a_rate_of_their_own() -> None:
    model = make("barlow", vector_lr=0.024)
    optimizer = optimizer_of(model)
    rates = {p.ndim <= 1: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[True] == pytest.approx(0.024 * rates[False])
    assert make("barlow").roles() == []


def test_the_scale_of_barlow_twins_is_that_of_loss_and_chance() -> None:
    a, b = make("barlow").step(batch()), make("barlow", scale=0.1).step(batch())
    torch.testing.assert_close((b.loss, b.chance), (0.1 * a.loss, 0.1 * a.chance))  # type: ignore[operator]
    assert a.chance is not None
    assert a.chance.item() == pytest.approx(6 + 0.0051 * 6 * 5 / N)


# SupCon, DCL


def test_supcon_says_that_it_reads_labels(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        make("supcon")
    assert "reads the labels" in caplog.text


def test_chance_levels_are_logarithms() -> None:
    levels = {name: make(name).step(batch()).chance for name in ("supcon", "dcl", "nnclr", "wmse")}
    expected = {"supcon": math.log(2 * N - 1), "dcl": math.log(2 * N - 2), "nnclr": math.log(N), "wmse": 2.0}
    assert {name: level.item() for name, level in levels.items() if level is not None} == pytest.approx(expected)


# Queues


@pytest.mark.parametrize("name", ["nnclr", "ressl"])
def test_a_batch_meets_its_own_projections_in_the_queue_later_only(name: str) -> None:
    model = make(name)
    before = copy.deepcopy(model.queue)
    first = model.step(batch(0)).loss
    assert not model.queue.rows.equal(before.rows)
    assert (model.queue.index[:N] == batch(0).index).all()
    model = make(name)
    model.queue = before  # the loss was that of the queue as it had been
    assert model.step(batch(0)).loss.equal(first)


def test_nnclr_counts_neighbours_that_are_the_image_itself() -> None:
    model = make("nnclr")
    assert model.step(batch(0)).numbers["neighbour_itself"] == 0
    for p in (model.encoder, model.projector):
        p.eval()
    model.step(batch(0))
    again = model.step(batch(0)).numbers
    assert again["neighbour_itself"] >= 0.5  # one of two views finds its own projection of the step before
    assert again["neighbour_similarity"] > 0.9


def test_swav_uses_its_queue_once_it_is_full_and_its_epoch_has_come() -> None:
    plain = [make("swav").step(batch(step)).loss for step in range(4)]
    model = at(make("swav", queue_size=2 * N, queue_epoch=1))
    found = [model.step(batch(step)).loss for step in range(2)]
    assert model.queue.count == 0  # too early
    at(model, epoch=1)
    model.prototypes.load_state_dict(make("swav").prototypes.state_dict())
    assert model.queue.count == 0
    model.step(batch(2))
    assert model.queue.count == N
    torch.testing.assert_close(found, plain[:2])

    def targets(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.assigned(model.prototypes(model.projector(model.encoder(batch(5).views[0]))), 0)

    half = targets(copy.deepcopy(model))
    without = copy.deepcopy(model)
    without.queue = None
    assert half.equal(targets(without))  # half full: not used
    model.step(batch(3))
    assert model.queue.filled() == 2 * N
    without = copy.deepcopy(model)
    without.queue = None
    assert not targets(copy.deepcopy(model)).allclose(targets(without))


def test_swav_scores_what_waits_with_the_present_prototypes() -> None:
    model = at(make("swav", queue_size=N, queue_epoch=0))
    model.step(batch(0))
    scores = torch.rand(N, 10)
    before = model.assigned(scores, 1)
    with torch.no_grad():
        model.prototypes.weight.copy_(model.prototypes.weight.roll(1, 0))
    assert not model.assigned(scores, 1).allclose(before)


# Teachers


@pytest.mark.parametrize(("name", "early"), [("ressl", True), ("dino", False), ("byol", False)])
def test_the_moment_at_which_a_teacher_follows_is_that_of_the_source(name: str, early: bool) -> None:
    """ReSSL's before the passes of a step, those of DINO and BYOL after the optimizer."""
    model = make(name, momentum=0.0, momentum_end=None)
    optimizer = optimizer_of(model)

    def same() -> bool:
        pairs = zip(model.teacher.parameters(), model.encoder.parameters(), strict=True)  # type: ignore[union-attr]
        return all(a.equal(b) for a, b in pairs)

    advance(model, optimizer, batch(0))
    assert same() != early
    model.step(batch(1))
    assert same()


@pytest.mark.parametrize("name", ["ressl", "dino", "byol"])
def test_a_teacher_with_momentum_one_never_moves(name: str) -> None:
    model = make(name, momentum=1.0, momentum_end=None)
    before = copy.deepcopy(dict(model.teacher.named_parameters()))  # type: ignore[union-attr]
    optimizer = optimizer_of(model)
    for step in range(3):
        advance(model, optimizer, batch(step))
    assert all(p.equal(before[key]) for key, p in model.teacher.named_parameters())  # type: ignore[union-attr]
    assert any(not p.equal(before[key]) for key, p in model.encoder.named_parameters())


# DINO


def test_the_centre_is_the_running_mean_of_both_views() -> None:
    model = make("dino", torch.float64)
    given = batch(dtype=torch.float64)
    teacher = copy.deepcopy(model)
    outputs = by_size(lambda v: teacher.teacher_projector(teacher.teacher(v)), given.views)
    mean = torch.cat([teacher.teacher_prototypes(o) for o in outputs]).mean(dim=0)
    model.step(given)
    torch.testing.assert_close(model.centre, 0.1 * mean)


def test_the_temperature_of_the_teacher_rises_by_epochs() -> None:
    model = make("dino", warmup_temperature=0.02, teacher_temperature=0.06, warmup_epochs=5)
    found = [at(model, epoch).temperature for epoch in range(8)]
    assert found == pytest.approx([0.02, 0.03, 0.04, 0.05, 0.06, 0.06, 0.06, 0.06])
    assert at(make("dino"), 0).temperature == 0.04


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_prototypes_are_frozen_for_an_epoch(name: str) -> None:
    model = make(name)
    optimizer = optimizer_of(model)
    model.prototypes.normalise()
    before = model.prototypes.weight.detach().clone()
    for step in range(3):
        advance(model, optimizer, batch(step))
    torch.testing.assert_close(model.prototypes.weight.detach(), before, rtol=0, atol=1e-6)
    at(model, epoch=1)
    advance(model, optimizer, batch(3))
    assert (model.prototypes.weight - before).abs().max() > 1e-4


def test_the_weight_decay_of_dino_goes_to_its_end_where_there_is_any() -> None:
    recipe = Recipe(torch.optim.SGD, 0.05, weight_decay=0.04, decay_bias_and_norm=False)
    torch.manual_seed(0)
    model = instantiate(shrunk("dino"), encoder=Flat(), optimizer=recipe, weight_decay_end=0.4)
    model.begin(Begin(global_batch_size=N, steps=10, epochs=1))
    optimizer = recipe.build(model, N, 10, 1, roles=model.roles())[0]
    seen = []
    for step in (0, 5, 10):
        at(model, step=step).on_before_optimizer_step(optimizer)
        seen.append({group["weight_decay"] for group in optimizer.param_groups})
    assert [sorted(values) for values in seen] == [
        pytest.approx([0, 0.04]),
        pytest.approx([0, 0.22]),
        pytest.approx([0, 0.4]),
    ]


# Whitening, directions, moments


def test_groups_of_w_mse_and_directions_of_lejepa_change_with_each_step_and_are_the_same_everywhere() -> None:
    given = batch(n=N)
    for name, options in (("lejepa", {"weight": 1.0}), ("wmse", {"group": 8})):
        a, b = make(name, **options), make(name, **options)
        torch.manual_seed(99)  # no generator's state matters
        first, second = a.step(given).loss, a.step(given).loss
        assert b.step(given).loss.equal(first)
        assert not second.equal(first)
    directions = make("lejepa").sketch(5)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(8))
    many = make("lejepa", directions=4000).sketch(5)
    torch.testing.assert_close(many @ many.T / 4000, torch.eye(5) / 5, rtol=0, atol=0.02)  # in all directions alike


def test_a_failed_factorisation_names_the_step_and_the_condition_number() -> None:
    model = at(make("wmse"), step=7)
    nn.init.zeros_(model.projector[-1].weight)
    with pytest.raises(UserError, match=r"step 7: .* condition number is inf.* the last checkpoint is a good one"):
        model.step(batch())
    model = at(make("corinfomax"), step=3)
    nn.init.constant_(model.projector[-1].weight, math.nan)
    with pytest.raises(UserError, match=r"step 3: .* condition number is nan"):
        model.step(batch())


# Views


def test_views_of_one_size_pass_together() -> None:
    sizes = []

    def network(x: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(x.shape))
        return x.mean(dim=(2, 3))

    views = batch(views=5, small=3).views
    found = by_size(network, views)
    assert sizes == [(2 * N, 3, SIDE, SIDE), (3 * N, 3, SIDE // 2, SIDE // 2)]
    for out, view in zip(found, views, strict=True):
        torch.testing.assert_close(out, view.mean(dim=(2, 3)))
    assert count_global(views) == 2
    assert count_global(views[:2]) == 2


# Refusals, each before the first step


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dcl", {"temperature": 0.0}, "model.temperature must be positive"),
        ("dcl", {"sigma": -1.0}, "model.sigma must be positive"),
        ("supcon", {"temperature": math.nan}, "model.temperature must be positive"),
        ("nnclr", {"temperature": -1.0}, "model.temperature must be positive"),
        ("ressl", {"teacher_temperature": 0.1}, r"teacher_temperature=0.1 must be below .*student_temperature=0.1"),
        ("dino", {"teacher_temperature": 0.2}, r"teacher_temperature=0.2 must be below"),
        ("dino", {"warmup_temperature": 0.1}, r"warmup_temperature=0.1 must be below"),
        ("dino", {"momentum": 1.5}, r"momentum must lie in \[0, 1\]"),
        ("wmse", {"group": 6}, "model.group=6 must be larger than model.projector.out_dim=6"),
        ("swav", {"prototypes": 1}, "model.prototypes must be at least 2"),
        ("swav", {"prototypes": 40}, r"prototypes=40 are more than the 16 samples .*queue_size=24"),
        ("swav", {"epsilon": 0.0}, "model.epsilon must be positive"),
        ("lejepa", {"weight": 1.5}, r"model.weight must lie in \[0, 1\]"),
    ],
)
def test_bad_values_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(name, **options)


@pytest.mark.parametrize("name", ["barlow", "vicreg", "lejepa", "corinfomax", "mmcr"])
def test_statistics_over_two_samples_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="batch_size=2 is too small"):
        make(name).begin(Begin(global_batch_size=2, steps=5, epochs=1))


def test_batches_that_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match=r"batch_size=40 must be a multiple of model\.group=16"):
        make("wmse").begin(Begin(global_batch_size=40, steps=5, epochs=1))


def test_supcon_without_labels_is_refused() -> None:
    with pytest.raises(UserError, match="labels"):
        make("supcon").begin(Begin(N, steps=5, epochs=1, labelled=False))


def test_a_queue_lets_swav_have_more_prototypes() -> None:
    assert make("swav", prototypes=40, queue_size=24).step(batch()).loss.isfinite()
