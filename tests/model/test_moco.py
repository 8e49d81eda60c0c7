"""MoCo: the queue, the key encoder, what meets what, and batch statistics that leak."""

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twoview.cli import schema
from twoview.data.batches import Batch
from twoview.errors import UserError
from twoview.losses import Contrast
from twoview.model.base import Begin, Method
from twoview.model.moco import MoCo
from twoview.model.mocov3 import MoCoV3
from twoview.model.part.head import Projector
from twoview.model.part.momentum import Momentum, follow, frozen_copy
from twoview.optim.recipe import Recipe
from twoview.parallel.norm import SplitBatchNorm

RECIPE = Recipe(torch.optim.SGD, lr_per_256=0.1, weight_decay=0.1)


class Flat(nn.Module):
    dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.linear(x.flatten(1))))


class Identity(nn.Module):
    """h is the image itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1)


class Through(nn.Identity):
    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.out_dim = in_dim


def moco(encoder: nn.Module | None = None, projector: Any = None, **options: Any) -> MoCo:
    torch.manual_seed(0)
    options = {"split_batch_norm": 1, "queue_size": 16} | options
    return MoCo(encoder or Flat(), RECIPE, projector or partial(Projector, out_dim=4), **options)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


def contrast(model: Method, v1: Tensor, v2: Tensor, index: Tensor, share: Tensor | None = None) -> Contrast:
    """Loss and accuracy of a step."""
    loss, numbers, _ = model.step(Batch((v1, v2), index, torch.full_like(index, -1), share))
    return Contrast(loss, numbers["accuracy"])


# The queue


def test_a_queue_of_10_after_three_batches_of_4() -> None:
    model = moco(queue_size=10)
    for i in range(3):
        model.queue.add(torch.eye(4)[i].repeat(4, 1), torch.arange(4 * i, 4 * i + 4))
    assert model.queue.index.tolist() == [10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert model.queue.rows.argmax(dim=1).tolist() == [2, 2, 0, 0, 1, 1, 1, 1, 2, 2]


def key_of(index: Tensor) -> Tensor:
    """A direction of its own for each sample."""
    angle = index[:, None] / 100
    return torch.cat([angle.cos(), angle.sin(), torch.zeros(len(index), 2)], dim=1)  # (n, 4)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 12), pushes=st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_a_queue_holds_the_last_keys_whatever_the_sizes(size: int, pushes: list[int]) -> None:
    model = moco(queue_size=size)
    pushed: list[int] = []
    for n in pushes:
        index = torch.arange(len(pushed), len(pushed) + n)
        model.queue.add(key_of(index), index)
        pushed += index.tolist()
    assert all(model.queue.index[key % size] == key for key in pushed[-size:])  # each at its own place
    expected = set(pushed[-size:]) | ({-1} if len(pushed) < size else set())
    assert set(model.queue.index.tolist()) == expected
    filled = model.queue.index >= 0
    torch.testing.assert_close(model.queue.rows[filled], key_of(model.queue.index[filled]))
    assert model.queue.filled() == min(size, len(pushed))
    chance = model.step(
        Batch((images(2), images(2, 1)), torch.arange(2), torch.arange(2))
    ).chance  # before its own keys
    assert float(chance) == pytest.approx(math.log(1 + min(size, len(pushed))))


def test_keys_in_the_queue_have_length_1_and_their_samples_beside_them() -> None:
    model = moco(symmetric=True)
    contrast(model, images(5), images(5, 1), torch.tensor([7, 3, 9, 1, 5]))
    assert model.queue.index.tolist() == [7, 3, 9, 1, 5] * 2 + [-1] * 6
    torch.testing.assert_close(model.queue.rows[:10].norm(dim=1), torch.ones(10))
    assert model.queue.rows[10:].abs().max() == 0


def test_everything_that_a_run_needs_to_go_on_is_in_the_checkpoint() -> None:
    names = set(moco().state_dict())
    assert {"queue.rows", "queue.index", "queue.count", "teacher.linear.weight", "teacher_projector.0.weight"} <= names


# The loss


def oracle(model: MoCo, q: Tensor, k: Tensor, owners: Tensor, index: Tensor) -> float:
    """One query at a time, against the keys that are there."""
    total = 0.0
    q = q.detach()
    for i in range(len(q)):
        here = model.queue.index >= 0
        if model.mask_same_image:
            here &= owners != index[i]
        logits = torch.cat([(q[i] @ k[i])[None], model.queue.rows[here] @ q[i]]) / model.temperature
        total += float(torch.logsumexp(logits, 0) - logits[0])
    return total / len(q)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_the_loss_is_that_of_queries_against_keys_of_earlier_steps(symmetric: bool, mask: bool) -> None:
    model = moco(symmetric=symmetric, mask_same_image=mask, queue_size=9, momentum=0.5)
    for step in range(4):
        v1, v2, index = images(4, 2 * step), images(4, 2 * step + 1), torch.arange(step, step + 4)
        before = copy.deepcopy(model)
        loss = contrast(model, v1, v2, index).loss
        for own, source in ((before.teacher, before.encoder), (before.teacher_projector, before.projector)):
            follow(own, source, 0.5)
        expected = []
        for view, other in ((v1, v2), (v2, v1))[: 1 + symmetric]:
            q = F.normalize(before.projector(before.encoder(view)), dim=1)
            k = F.normalize(before.teacher_projector(before.teacher(other)), dim=1)
            expected.append(oracle(before, q, k, before.queue.index, index))
        assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_no_query_meets_its_own_key_among_the_negatives(symmetric: bool) -> None:
    """A planted image: were its key of this very step among the negatives, it would be as near as the positive."""
    model = moco(Identity(8), Through, symmetric=symmetric, queue_size=16)
    far, near = torch.eye(8)[:4], torch.eye(8)[4:]
    contrast(model, far, far, torch.arange(4))
    loss, accuracy = contrast(model, near, near, torch.arange(4, 8))  # orthogonal to all that waits
    filled = 4 * (1 + symmetric)
    assert loss.item() == pytest.approx(
        math.log(math.exp(1 / 0.1) + filled) - 1 / 0.1, abs=1e-6
    )  # float32 at logits of 10
    assert accuracy == 1
    again = contrast(model, near, near, torch.arange(4, 8)).loss.item()  # now its key of the step before is there
    copies = 1 + symmetric
    assert again == pytest.approx(math.log(1 + copies), rel=1e-2)


def test_mask_same_image_takes_an_images_own_earlier_keys_out() -> None:
    model = moco(Identity(8), Through, mask_same_image=True)
    x, index = torch.eye(8)[:4], torch.arange(4)
    first = contrast(model, x, x, index).loss
    second = contrast(model, x, x, index).loss  # its own key waits in the queue, and does not count
    assert first == 0  # an empty queue: the key is the only candidate
    assert second.item() == pytest.approx(math.log(math.exp(10) + 3) - 10, abs=1e-6)  # float32 at logits of 10


def test_backward_after_the_queue_has_moved_on() -> None:
    model = moco(queue_size=4)
    contrast(model, images(4), images(4, 1), torch.arange(4))
    loss = contrast(model, images(4, 2), images(4, 3), torch.arange(4)).loss
    loss.backward()
    assert model.encoder.linear.weight.grad.abs().sum() > 0


# The key encoder


def test_keys_move_by_the_moving_average_alone() -> None:
    model = moco(momentum=0.9)
    optimizer, _ = RECIPE.build(model, 256, steps=10, epochs=1)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in (*model.teacher.parameters(), *model.teacher_projector.parameters())}
    for step in range(4):
        weight, key_weight = model.encoder.linear.weight.clone(), model.teacher.linear.weight.clone()
        if step == 0:
            assert key_weight.equal(weight)
        loss = contrast(model, images(6, 2 * step), images(6, 2 * step + 1), torch.arange(6)).loss
        torch.testing.assert_close(model.teacher.linear.weight, 0.9 * key_weight + 0.1 * weight)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is None for p in model.teacher.parameters())
        assert all(p.grad is None for p in model.teacher_projector.parameters())
        optimizer.step()
    assert not model.teacher.linear.weight.equal(model.encoder.linear.weight)


def test_batch_statistics_of_keys_are_their_own() -> None:
    leader = Flat()
    follower = frozen_copy(leader)
    leader.norm.running_mean += 1
    follow(follower, leader, 0.5)
    assert follower.norm.running_mean.abs().max() == 0
    model = moco()
    contrast(model, images(6), images(6, 1), torch.arange(6))
    with torch.no_grad():
        seen = model.teacher.linear(images(6, 1).flatten(1))
    torch.testing.assert_close(model.teacher.norm.running_mean, 0.1 * seen.mean(0))


def test_keys_have_no_gradient_even_from_a_trainable_key_path() -> None:
    model = moco()
    assert not model.keys(images(4), torch.arange(4)).requires_grad


def test_small_steps_of_the_average_are_not_lost() -> None:
    leader, follower = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(leader.weight, 1.001)
    nn.init.constant_(follower.weight, 1.0)
    for _ in range(1000):
        follow(follower, leader, 0.999)
    moved = follower.weight.item() - 1
    assert moved == pytest.approx(0.001 * (1 - 0.999**1000), rel=0.01)


def test_momentum_schedule() -> None:
    assert Momentum(0.99, None).at(0.7) == 0.99
    assert Momentum(0.99, 1.0).at(0.0) == pytest.approx(0.99)
    assert Momentum(0.99, 0.999).at(0.5) == pytest.approx(0.9945)
    assert Momentum(0.99, 1.0).at(1.0) == 1
    steps = [Momentum(0.9, 1.0).at(t / 50) for t in range(51)]
    assert steps == sorted(steps)


# Batch statistics


class OnlyStatistics(nn.Module):
    """Sees of an image nothing but what the statistics of its batch, or group, are: a constant, normalised with it."""

    dim = 12

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)  # (n, 12)
        return self.norm(torch.stack([x, torch.zeros_like(x)], dim=2))[:, :, 1]


def leak(groups: int, shuffle: bool) -> float:
    """Contrastive accuracy, among 33 candidates, of a network that can only use batch statistics."""
    model = moco(OnlyStatistics(), Through, split_batch_norm=groups, shuffle_keys=shuffle, queue_size=32)
    found = []
    for step in range(30):
        x = images(1024, step)
        noise = 0.1 * images(1024, 1000 + step)
        pick = torch.randperm(1024, generator=torch.Generator().manual_seed(step))[:32]
        index = torch.arange(1024) + 1024 * step
        accuracy = contrast(model, x, x + noise, index).accuracy
        keys = model.keys(x + noise, index)
        model.queue.add(keys[pick], index[pick])  # of many groups, as a queue of many batches would hold
        found.append(accuracy)
    return float(torch.stack(found[1:]).mean())


def test_batch_statistics_leak_without_a_guard() -> None:
    assert leak(groups=1, shuffle=True) > 0.9
    assert leak(groups=32, shuffle=False) > 0.9


def test_with_the_guard_a_network_that_only_has_statistics_is_at_chance() -> None:
    assert leak(groups=32, shuffle=True) < 3 / 33


def test_keys_come_back_in_the_order_of_their_samples() -> None:
    model = moco(Identity(12), Through, split_batch_norm=4)
    x = images(16)
    torch.testing.assert_close(model.keys(x, torch.randperm(16)), F.normalize(x.flatten(1), dim=1))


def test_shuffling_depends_on_the_samples_alone() -> None:
    """So that it is the same on every device and after a resumption."""
    model = moco(split_batch_norm=4)
    x, index = images(16), torch.arange(16)
    first = model.keys(x, index)
    torch.manual_seed(99)
    assert model.keys(x, index).equal(first)
    other = model.keys(x, index + 100)
    assert not other.equal(first)  # other groups, other statistics


def test_both_encoders_are_split() -> None:
    model = moco(projector=partial(Projector, out_dim=4, norm="batch_all"), split_batch_norm=2)
    for part in (model.encoder, model.projector, model.teacher, model.teacher_projector):
        assert any(isinstance(m, SplitBatchNorm) and m.groups == 2 for m in part.modules())


# Version 3


def mocov3(**options: Any) -> MoCoV3:
    torch.manual_seed(0)
    heads = partial(Projector, out_dim=4, norm="batch_all"), partial(Projector, out_dim=4, norm="batch")
    return MoCoV3(Flat(), RECIPE, *heads, **options)


@pytest.mark.parametrize("chunk", [None, 2])
def test_version_3_is_the_symmetric_sum_times_twice_the_temperature(chunk: int | None) -> None:
    model = mocov3(temperature=0.3, momentum=0.5, momentum_end=None, chunk=chunk)
    x, y, index = images(5), images(5, 1), torch.arange(5)
    before = copy.deepcopy(model)
    loss, numbers, chance = model.step(Batch((x, y), index, index))
    expected, hits = 0.0, 0
    for view, other in ((x, y), (y, x)):
        q = F.normalize(before.predictor(before.projector(before.encoder(view))), dim=1)
        k = F.normalize(before.teacher_projector(before.teacher(other)), dim=1)
        logits = q @ k.T / 0.3
        expected += 2 * 0.3 * F.cross_entropy(logits, torch.arange(5)).item()
        hits += int((logits.argmax(1) == torch.arange(5)).sum())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert numbers["accuracy"].item() == pytest.approx(hits / 10)
    assert float(chance) == pytest.approx(4 * 0.3 * math.log(5), rel=1e-6)


def test_version_3_compares_queries_with_keys_of_their_width() -> None:
    heads = partial(Projector, out_dim=4), partial(Projector, out_dim=5)
    with pytest.raises(UserError, match=r"predictor.out_dim=5 and model.projector.out_dim=4"):
        MoCoV3(Flat(), RECIPE, *heads)


def test_the_heads_of_version_3_have_no_bias(compose: Any) -> None:
    """As `_build_mlp` of the authors' code: no linear layer has one, and the projector's last norm no scale."""
    config = compose("model=mocov3")["model"]
    projector, predictor = (schema.build(config[name])(in_dim=6) for name in ("projector", "predictor"))
    for head in (projector, predictor):
        assert not any(name == "bias" for m in head if isinstance(m, nn.Linear) for name, _ in m.named_parameters())
    assert [(m.affine, m.num_features) for m in projector if isinstance(m, nn.BatchNorm1d)] == [
        (True, 4096),
        (False, 256),
    ]
    assert [(m.affine, m.num_features) for m in predictor if isinstance(m, nn.BatchNorm1d)] == [(True, 4096)]


@pytest.mark.parametrize("norm", ["none", "batch", "batch_all"])
def test_a_head_without_its_last_bias_is_otherwise_the_same(norm: Any) -> None:
    """Where the last layer has none anyway, behind a norm, nothing changes."""
    whole, bare = (Projector(6, 4, hidden_dim=5, norm=norm, bias_last=b) for b in (True, False))
    assert [type(m) for m in whole] == [type(m) for m in bare]
    lost = whole.state_dict().keys() - bare.state_dict().keys()
    assert lost == (set() if norm == "batch_all" else {f"{len(whole) - 1}.bias"})


def test_the_last_norm_of_version_3_has_no_scale() -> None:
    head = Projector(6, out_dim=4, norm="batch_all", affine_last=False)
    assert [m.affine for m in head if isinstance(m, nn.BatchNorm1d)] == [True, False]


# Mixtures


@pytest.mark.parametrize("make", [moco, partial(moco, symmetric=True), mocov3])
def test_the_loss_knows_a_mixture(make: Any) -> None:
    """Swapping the parts of all mixtures exchanges the targets: the loss is that of the neighbours exchanged."""
    index, share = torch.arange(6), torch.tensor([0.8, 0.8, 0.6, 0.6, 0.9, 0.9])
    x, y = images(6), images(6, 1)
    swapped = torch.tensor([1, 0, 3, 2, 5, 4])
    a = contrast(make(), x, y, index, share).loss
    b = contrast(make(), x, y[swapped], index, 1 - share).loss
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert abs(a - contrast(make(), x, y, index, 1 - share).loss) > 1e-5


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_size": 0}, "queue_size must be at least 1"),
        ({"momentum": 1.1}, r"momentum must lie in \[0, 1\]"),
        ({"momentum": -0.1}, r"momentum must lie in \[0, 1\]"),
        ({"momentum": math.nan}, r"momentum must lie in \[0, 1\]"),
        ({"momentum_end": 2.0}, r"momentum_end must lie in \[0, 1\]"),
        ({"split_batch_norm": 0}, "split_batch_norm must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"chunk": 0}, "loss.chunk must be at least 1"),
    ],
)
def test_bad_values_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        moco(**options)


@pytest.mark.parametrize(
    ("rows", "world", "message"),
    [
        (30, 1, "30 samples do not divide into 8"),
        (8, 1, "at least 2"),
        (32, 3, "do not divide among 3 devices"),
        (30, 2, "30 samples do not divide into 4"),
    ],
)
def test_groups_that_do_not_fit_a_devices_share_are_refused(rows: int, world: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        moco(split_batch_norm=8).begin(Begin(256, 10, 1, world, shares=frozenset({rows})))


def test_groups_that_fit_are_taken() -> None:
    for groups, rows, world in ((8, 32, 1), (8, 16, 4), (1, 7, 3)):
        model = moco(split_batch_norm=groups)
        model.begin(Begin(rows * world, 10, 1, world, shares=frozenset({rows})))
        split = [m.groups for m in model.modules() if isinstance(m, SplitBatchNorm)]
        assert set(split) == ({groups // world} if groups > 1 else set())


def test_half_precision_weights_are_refused() -> None:
    model = moco().bfloat16()
    with pytest.raises(UserError, match="bf16-mixed"):
        model.on_fit_start()


def test_a_tie_is_no_hit() -> None:
    """Of a collapsed network, to which all images are one."""
    model = moco(Identity(4), Through, queue_size=8)
    x = torch.ones(4, 4)
    contrast(model, x, x, torch.arange(4))
    assert contrast(model, x, x, torch.arange(4)).accuracy == 0


def test_the_chance_level_of_mixtures_counts_the_neighbours_key() -> None:
    model = moco(queue_size=8)
    index, share = torch.arange(4), torch.full((4,), 0.7)
    for waiting in (0, 4):
        chance = model.step(Batch((images(4), images(4)), index, index, share)).chance
        assert float(chance) == pytest.approx(math.log(1 + 1 + waiting))


def test_the_order_of_keys_changes_from_step_to_step() -> None:
    model = moco(split_batch_norm=4)
    x, index = images(16), torch.arange(16)
    first = model.keys(x, index)
    model.queue.add(first, index)
    assert not model.keys(x, index).equal(first)
